"""Markers of a function and the providers they mean; the library's private names live here only."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dependency_injector import containers, providers, wiring

from wirestate.injection.edges import AnyProvider
from wirestate.resources.calls import layers

AnyContainer = containers.Container | type[containers.DeclarativeContainer]


class Marker(NamedTuple):
    """One injected parameter: its name, what the marker points at, and which of the three markers it is."""

    parameter: str
    target: Any  # Any: a text, a provider or a container class
    modifier: Any  # Any: the library's modifier objects have no public type
    kind: str  # "Provide", "Provider" or "Closing"
    positional_only: bool


def marker_of(name: str, parameter: inspect.Parameter) -> Marker | None:
    """Return the marker of a parameter, from its ``Annotated`` or its default."""
    found = wiring._extract_marker(parameter) or (parameter.default if is_marker(parameter.default) else None)
    return None if found is None else _read(name, found, parameter.kind is parameter.POSITIONAL_ONLY)


def is_marker(value: object) -> bool:
    """Tell whether *value* is a marker that nobody replaced by its resource."""
    return getattr(type(value), "__IS_MARKER__", False) is True  # of its class: ``provided`` has every attribute


def is_container(value: object) -> bool:
    """Tell whether *value* is a container, or a class of containers."""
    return isinstance(value, containers.Container) or (
        isinstance(value, type) and issubclass(value, containers.Container)
    )


def is_misplaced(value: object) -> bool:
    """Tell whether *value* is meant to be injected and has no marker around it, or is a marker around nothing."""
    empty = isinstance(value, type) and bool(getattr(value, "__IS_MARKER__", False))
    return empty or isinstance(value, providers.Provider) or is_container(value)


def _read(name: str, marker: Any, positional_only: bool) -> Marker:
    kind = type(marker).__name__
    inner = marker.provider
    if is_marker(inner):  # Closing[Provide[...]]
        return Marker(name, inner.provider, inner.modifier, kind, positional_only)
    return Marker(name, inner, marker.modifier, kind, positional_only)


class _TolerantMap(wiring.ProvidersMap):
    """The library's own resolution, also for classes, and for containers that gained or lost providers later."""

    def __init__(self, container: Any) -> None:  # Any: see AnyContainer
        if isinstance(container, type):  # nobody instantiated it: it stands for itself
            self._container = container
            self._map = self._create_providers_map(container, container)
        else:
            super().__init__(container)

    @classmethod
    def _create_providers_map(cls, current_container: Any, original_container: Any) -> dict[AnyProvider, AnyProvider]:
        found: dict[AnyProvider, AnyProvider] = {original_container.__self__: current_container.__self__}
        originals = original_container.providers
        for name, now in current_container.providers.items():
            if name == "__self__":
                continue
            found[now] = now
            before = originals.get(name)
            if before is None:
                continue
            found[before] = now
            if isinstance(now, providers.Container) and isinstance(before, providers.Container):
                found.update(cls._create_providers_map(now.container, before.container))
            elif isinstance(now, providers.DependenciesContainer) and isinstance(
                before, providers.DependenciesContainer
            ):
                found.update({dependency: getattr(now, name) for name, dependency in before.providers.items()})
        return found

    def _resolve_string_id(self, id: str, modifier: Any = None) -> AnyProvider | None:
        found = super()._resolve_string_id(id, modifier)
        return found if isinstance(found, providers.Provider) else None


class Resolver:
    """Find the providers that markers mean in one container."""

    def __init__(self, container: AnyContainer) -> None:
        self.container = container
        self._map = _TolerantMap(container)

    def provider(self, marker: Marker) -> AnyProvider | None:
        """Return the provider that *marker* means, or None."""
        try:
            found = self._map.resolve_provider(marker.target, marker.modifier)
        except AttributeError:  # a modifier that does not fit what it found
            return None
        if found is not None and marker.kind == "Provider" and not isinstance(found, providers.Delegate):
            return found.provider
        return found

    def names(self) -> list[str]:
        """Return every string id that would resolve."""
        return [name for name, _ in _dotted(self.container, "")]

    def path_of(self, provider: AnyProvider) -> str | None:
        """Return the string id of *provider*, or of what it has become in this container."""
        try:
            now = self._map.resolve_provider(provider)
        except AttributeError:  # an attribute of an object that only a call would give
            return None
        return next((name for name, known in _dotted(self.container, "") if known is now), None)


def _dotted(container: Any, prefix: str) -> Iterator[tuple[str, AnyProvider]]:
    for name, provider in container.providers.items():
        if name == "__self__":
            continue
        yield prefix + name, provider
        if isinstance(provider, providers.Container):
            yield from _dotted(provider.container, f"{prefix}{name}.")
        elif isinstance(provider, providers.DependenciesContainer):
            yield from ((f"{prefix}{name}.{inner}", found) for inner, found in provider.providers.items())


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what the library's own ``@inject`` wrapper calls; any other function as it is.

    With every injection given explicitly the wrapper has nothing to do, and costs 1.2 to 3.7 us.
    Only a wrapper that the library itself knows is looked through, so outer decorators still run.
    """
    patched = _patched(function)
    if patched is None or patched.reference_closing:
        return function
    return patched.original  # type: ignore[no-any-return]


def is_decorated(function: Callable[..., Any]) -> bool:
    """Tell whether ``@inject`` stands among the decorators of *function*."""
    return any(_patched(layer) is not None for layer in layers(function))


def is_wired(function: Callable[..., Any], parameter: str) -> bool:
    """Tell whether the library itself fills *parameter*: a container was wired to the module of *function*."""
    return any(
        (patched := _patched(layer)) is not None and parameter in patched.injections for layer in layers(function)
    )


def is_wired_attribute(kind: type, name: str) -> bool:
    """Tell whether the library itself filled the attribute *name* of the class *kind* by ``wire()``."""
    registry = getattr(wiring, "_patched_registry", None)
    known = [] if registry is None else list(registry._attributes)
    return any(patched.member is kind and patched.name == name for patched in known)


def _patched(function: object) -> Any:  # Any: the library's record of it has no public type
    registry = getattr(wiring, "_patched_registry", None)
    # Looked up by hash and equality, which objects may have of their own; it holds functions and nothing else.
    return registry.get_callable(function) if registry is not None and inspect.isroutine(function) else None


def is_walked_for_closing() -> bool:
    """Tell whether ``wire()`` walks the providers below one that a function injects, from its ``related`` property.

    It looks for the resources that ``Closing[...]`` shuts down after each call. Nothing else in the library tells
    that walk from the one of ``shutdown_resources()``, whose caller is not the library.
    """
    return sys._getframe(2).f_globals.get("__name__") == wiring.__name__
