"""Secrets are unwrapped here, at the moment they are needed, and nowhere else; and taken out of what is shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

# User and password of a URL, up to the last @ before the path; or before a space, if a password holds a slash.
_CREDENTIALS = re.compile(r"(?<=://)(?:[^/\s]*@|[^/\s:]*:(?!\d*/)\S*@)")
_QUERY = re.compile(r"(?<=://)([^\s?#]*)[?#]\S*")


def revealed(value: str | SecretStr) -> str:
    """Return the text of a setting that may be wrapped."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


class Revealed(dict[str, Any]):  # Any: settings of any kind
    """Settings whose values are unwrapped and must not be shown: its picture has the names only."""

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{key!r}: …' for key in self)}}}"


def revealed_all(values: Mapping[str, Any]) -> Revealed:  # Any: settings of any kind
    """Return settings of which any may be wrapped.

    >>> revealed_all({"key": SecretStr("sesame"), "anon": False})
    {'key': …, 'anon': …}
    """
    return Revealed({key: revealed(value) if isinstance(value, SecretStr) else value for key, value in values.items()})


def without_credentials(text: str) -> str:
    """Return *text* with no user, password and query in its URLs.

    >>> without_credentials("cannot read ftp://me:secret@host/orders.csv")
    'cannot read ftp://host/orders.csv'
    """
    return _QUERY.sub(r"\1", _CREDENTIALS.sub("", text)) if "://" in text else text


def trouble_of(error: BaseException, *secrets: str) -> str:
    """Return kind and text of what a probe raised, without passwords: those of URLs, and *secrets*."""
    text = without_credentials(str(error))
    for secret in filter(None, secrets):
        text = text.replace(secret, "…")
    return f"{type(error).__name__}: {' '.join(text.split())}"
