"""What a provider calls when it is called: the edges of the dependency graph.

The library's configuration makes a child for every attribute that it is asked for, and dependencies, containers,
aggregates and ``provided`` hand such a question on. So attributes of a provider are read here only, by its class.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dependency_injector import providers

from wirestate.injection.options import OPTIONS, chosen_by
from wirestate.resources.calls import is_async_callable

AnyProvider = providers.Provider[Any]  # Any: what a provider gives is the user's type
# Calling one of these calls nothing in turn. Configuration and DependenciesContainer are kinds of Object.
LEAVES = (providers.Delegate, providers.Container, providers.Self, providers.Aggregate, providers.Object)
WITH_PROVIDES = (providers.BaseResource, providers.BaseSingleton, providers.Callable, providers.Factory)

WITH_MEMBERS = (providers.Aggregate, providers.Container, providers.DependenciesContainer, providers.Selector)


def provides_of(provider: AnyProvider | None) -> Any:  # Any: what users declare
    """Return what *provider* calls, or holds if it is an Object; None if its class tells of no such thing."""
    if isinstance(provider, providers.Configuration | providers.DependenciesContainer):
        return None
    return provider.provides if isinstance(provider, (*WITH_PROVIDES, providers.Object)) else None


def is_provider(value: object) -> bool:
    """Tell whether *value* is a provider of the library."""
    return isinstance(value, providers.Provider)


def members_of(container: Any) -> Mapping[str, AnyProvider]:  # Any: a container, or a provider in one
    """Return the providers in *container*, or in a provider that holds some, by name."""
    if isinstance(container, providers.Provider) and not isinstance(container, WITH_MEMBERS):
        return {}
    return container.providers  # type: ignore[no-any-return]


def member_of(container: Any, name: str) -> AnyProvider | None:  # Any: as above
    """Return the provider, or the option of a configuration, that *container* has under *name*."""
    if isinstance(container, providers.Configuration | providers.ConfigurationOption):
        return None if name.startswith("_") else getattr(container, name)
    return members_of(container).get(name)


def effective(provider: AnyProvider) -> AnyProvider:
    """Follow overrides to the provider that is really called."""
    while (overriding := provider.last_overriding) is not None:
        provider = overriding
    return provider


def is_handed_out(provider: AnyProvider) -> bool:
    """Tell whether *provider*, as an argument, is passed itself instead of what it gives."""
    return getattr(type(provider), "__IS_DELEGATED__", False) is True


def direct_edges(provider: AnyProvider) -> Iterator[AnyProvider]:
    """Yield what a call of *provider* calls in turn; *provider* itself must not be overridden."""
    if isinstance(provider, LEAVES):
        return
    if isinstance(provider, providers.ConfigurationOption):  # its children are not called, but its parent is
        yield from (part for part in provider.get_name_segments() if isinstance(part, providers.Provider))
        yield provider._get_root()
    elif isinstance(provider, providers.Selector):
        yield from _chosen(provider)
    else:
        called = provides_of(provider)
        for related in provider.related:
            if related is called or not is_handed_out(related):
                yield related


def _chosen(selector: providers.Selector[Any]) -> Iterator[AnyProvider]:
    """Yield what chooses, and what it has chosen; nothing where only a call of the user's could tell."""
    choice = selector.selector
    if isinstance(choice, OPTIONS):
        yield choice
        yield selector.providers[chosen_by(choice, list(selector.providers))]
    elif isinstance(choice, providers.Provider) and isinstance(effective(choice), providers.Object):
        yield choice
        yield from (made for name, made in selector.providers.items() if name == choice())


def suspends(provider: AnyProvider) -> bool:
    """Tell whether a call of *provider*, a plain one of the library, may give an awaitable."""
    if isinstance(provider, providers.Coroutine):
        return True
    made = provides_of(provider)
    if isinstance(provider, providers.BaseResource):
        # The library wraps generator functions in (async) context managers: look at what it wrapped.
        return made is not None and (is_async_callable(made) or inspect.isasyncgenfunction(inspect.unwrap(made)))
    called = made if isinstance(provider, WITH_PROVIDES) and not isinstance(made, providers.Provider) else None
    return provider.is_async_mode_enabled() or inspect.iscoroutinefunction(called)


Watch = tuple[tuple[AnyProvider, AnyProvider | None], ...]


NEVER_FRESH: Watch = ((providers.Provider(), providers.Provider()),)  # the first is not overridden by the second


def unchanged(watch: Iterable[tuple[AnyProvider, AnyProvider | None]]) -> bool:
    """Tell whether every watched provider is overridden by what it was when the watch was made."""
    for provider, overriding in watch:  # noqa: SIM110  # all() with a generator costs three times as much
        if provider.last_overriding is not overriding:
            return False
    return True
