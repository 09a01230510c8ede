"""Secrets are unwrapped here, at the moment they are needed, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from pydantic import SecretBytes, SecretStr

from wirestate.errors import ResourceError
from wirestate.redaction import quoted


def revealed(value: str | SecretStr) -> str:
    """Return the text of a setting that may be wrapped."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


class Revealed(dict[str, Any]):  # Any: settings of any kind
    """Settings whose values are unwrapped and must not be shown: its picture has the names only."""

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{key!r}: …' for key in self)}}}"


class Hidden(tuple[Any, ...]):  # Any: settings of any kind
    """Settings by position, likewise."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"({', '.join('…' for _ in self)})"


def revealed_all(values: Mapping[str, Any]) -> Revealed:  # Any: settings of any kind
    """Return settings of which any may be wrapped.

    >>> revealed_all({"key": SecretStr("sesame"), "anon": False})
    {'key': …, 'anon': …}
    """
    return Revealed({key: revealed(value) if isinstance(value, SecretStr) else value for key, value in values.items()})


def concealed(value: Any) -> Any:  # Any: a setting of any kind
    """Wrap what may be secret in a setting, so that a traceback with locals does not show it.

    >>> concealed(("me", "sesame")), concealed({"key": "sesame"})
    ((SecretStr('**********'), SecretStr('**********')), {'key': …})
    """
    if isinstance(value, str):
        return SecretStr(value)
    if isinstance(value, bytes):
        return SecretBytes(value)
    if isinstance(value, Mapping):
        return Revealed(value)
    if type(value) is list:  # no subclass: a URL of SQLAlchemy's is a tuple
        return [concealed(part) for part in value]
    return tuple(map(concealed, value)) if type(value) is tuple else value


def title_of(value: object) -> str:
    """Return the name of the type of a setting, wrapped or not."""
    return type(value.get_secret_value() if isinstance(value, SecretStr | SecretBytes) else value).__name__


class NoFrames:
    """Raise what a check of settings refuses without the frames of the check, whose locals are the settings."""

    def __enter__(self) -> None:
        """Begin to check."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, ResourceError):
            if error.__suppress_context__ and error.__cause__ is None:
                # What `from None` hides is looked at all the same by a traceback with locals.
                error.__context__ = None
            raise error.with_traceback(None)


def trouble_of(error: BaseException, *secrets: str) -> str:
    """Return kind and text of what a probe raised, in one line and without secrets: *secrets*, and what looks so."""
    return " ".join(quoted(error, *secrets).split())
