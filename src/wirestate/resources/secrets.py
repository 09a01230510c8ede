"""Secrets are unwrapped here, at the moment they are needed, and nowhere else in the adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr


def revealed(value: str | SecretStr) -> str:
    """Return the text of a setting that may be wrapped."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def revealed_all(values: Mapping[str, Any]) -> dict[str, Any]:  # Any: settings of any kind
    """Return settings of which any may be wrapped."""
    return {key: revealed(value) if isinstance(value, SecretStr) else value for key, value in values.items()}
