"""Secrets are unwrapped here, at the moment they are needed, and nowhere else in the adapters."""

from __future__ import annotations

from pydantic import SecretStr


def revealed(value: str | SecretStr) -> str:
    """Return the text of a setting that may be wrapped."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value
