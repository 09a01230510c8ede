"""What a provider calls when it is called: the edges of the dependency graph."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from dependency_injector import providers

from wirestate.resources.calls import is_async_callable

AnyProvider = providers.Provider[Any]  # Any: what a provider gives is the user's type
LAZY = (providers.Delegate, providers.Container, providers.Self, providers.DependenciesContainer, providers.Selector)


def is_lazy(provider: AnyProvider) -> bool:
    """Tell whether calling *provider* hands out something that resolves later, or what is chosen later."""
    return isinstance(provider, LAZY)


def effective(provider: AnyProvider) -> AnyProvider:
    """Follow overrides to the provider that is really called."""
    while (overriding := provider.last_overriding) is not None:
        provider = overriding
    return provider


def direct_edges(provider: AnyProvider) -> Iterator[AnyProvider]:
    """Yield what a call of *provider* calls in turn; *provider* itself must not be overridden."""
    if not is_lazy(provider):
        yield from provider.related


def suspends(provider: AnyProvider) -> bool:
    """Tell whether a call of *provider*, a plain one of the library, may give an awaitable."""
    if isinstance(provider, providers.Coroutine):
        return True
    made = getattr(provider, "provides", None)
    if isinstance(provider, providers.BaseResource):
        # The library wraps generator functions in (async) context managers: look at what it wrapped.
        return made is not None and (is_async_callable(made) or inspect.isasyncgenfunction(inspect.unwrap(made)))
    return provider.is_async_mode_enabled() or inspect.iscoroutinefunction(made)


Watch = tuple[tuple[AnyProvider, AnyProvider | None], ...]


NEVER_FRESH: Watch = ((providers.Provider(), providers.Provider()),)  # the first is not overridden by the second


def unchanged(watch: Watch) -> bool:
    """Tell whether every watched provider is overridden by what it was when the watch was made."""
    for provider, overriding in watch:  # noqa: SIM110  # all() with a generator costs three times as much
        if provider.last_overriding is not overriding:
            return False
    return True
