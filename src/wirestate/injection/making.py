"""What may be made while something is only looked at: our own adapters, and nothing that users declare.

``Any`` here: classes and callables of users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from dependency_injector import providers
from pydantic_settings import BaseSettings

from wirestate.injection.edges import LEAVES, WITH_PROVIDES, AnyProvider, provides_of
from wirestate.injection.home import Lifetime

_only_ours: ContextVar[bool] = ContextVar("wirestate_only_ours", default=False)
# A call of one of these runs no code of its own: it hands on, picks or collects what others give.
QUIET = (
    *LEAVES,
    providers.ConfigurationOption,
    providers.ProvidedInstance,
    providers.AttributeGetter,
    providers.ItemGetter,
    providers.Dependency,
    providers.Selector,
    providers.List,
    providers.Dict,
    Lifetime,
)


@contextmanager
def making_only_ours() -> Iterator[None]:
    """Build within this block without a call of what users declare, their settings excepted.

    A provider of theirs is taken as it is declared: it would be made when its resource is opened.
    """
    before = _only_ours.get()
    _only_ours.set(True)
    try:
        yield
    finally:
        _only_ours.set(before)


def may_make(made: Any, used: Iterable[AnyProvider] = ()) -> bool:
    """Tell whether *made* may be made now, from what a call of the *used* providers gives."""
    if not _only_ours.get():
        return True
    return (not isinstance(made, type) or is_ours(made)) and all(map(_is_quiet, used))


def is_ours(kind: type) -> bool:
    """Tell whether a class is defined in this package."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _is_quiet(provider: AnyProvider) -> bool:
    if provider.last_overriding is not None or isinstance(provider, QUIET):
        return True
    made = provides_of(provider) if isinstance(provider, WITH_PROVIDES) else None
    return isinstance(made, type) and (issubclass(made, BaseSettings) or is_ours(made) or made.__module__ == "builtins")
