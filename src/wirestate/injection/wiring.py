"""Markers of a function and the providers they mean; the library's private names live here only."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dependency_injector import containers, providers, wiring

from wirestate.injection.edges import AnyProvider

AnyContainer = containers.Container | type[containers.DeclarativeContainer]


class Marker(NamedTuple):
    """One injected parameter: its name, what the marker points at, and which of the three markers it is."""

    parameter: str
    target: Any  # Any: a text, a provider or a container class
    modifier: Any  # Any: the library's modifier objects have no public type
    kind: str  # "Provide", "Provider" or "Closing"
    positional_only: bool


def markers_of(function: Callable[..., Any]) -> tuple[Marker, ...]:
    """Read the injection markers of *function*: defaults and ``Annotated``, postponed annotations too."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ()
    hints = _hints(function, signature)
    found = []
    for name, parameter in signature.parameters.items():
        evaluated = parameter.replace(annotation=hints.get(name, parameter.annotation))
        marker = wiring._extract_marker(evaluated) or (parameter.default if _is_marker(parameter.default) else None)
        if marker is not None:
            found.append(_read(name, marker, parameter.kind is parameter.POSITIONAL_ONLY))
    return tuple(found)


def _hints(function: Callable[..., Any], signature: inspect.Signature) -> Mapping[str, Any]:
    """Evaluate postponed annotations; where that fails, keep those that are there."""
    if not any(isinstance(parameter.annotation, str) for parameter in signature.parameters.values()):
        return {}
    plain = inspect.unwrap(getattr(function, "func", function))
    try:
        return typing.get_type_hints(plain, include_extras=True)
    except Exception:  # a name that exists for type checkers only: each annotation on its own
        found = {}
        for name, text in getattr(plain, "__annotations__", {}).items():
            try:
                one = typing.get_type_hints(
                    type("_", (), {"__annotations__": {name: text}}),
                    getattr(plain, "__globals__", {}),
                    include_extras=True,
                )
            except Exception:  # this one cannot be evaluated, so it holds no marker that anybody could read
                continue
            found.update(one)
        return found


def _is_marker(value: object) -> bool:
    return bool(getattr(value, "__IS_MARKER__", False)) and not isinstance(value, type)


def is_marker(value: object) -> bool:
    """Tell whether *value* is a marker that nobody replaced by its resource."""
    return _is_marker(value)


def _read(name: str, marker: Any, positional_only: bool) -> Marker:
    kind = type(marker).__name__
    inner = marker.provider
    if _is_marker(inner):  # Closing[Provide[...]]
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
        return list(_dotted(self.container, ""))


def _dotted(container: Any, prefix: str) -> typing.Iterator[str]:
    for name, provider in container.providers.items():
        if name == "__self__":
            continue
        yield prefix + name
        if isinstance(provider, providers.Container):
            yield from _dotted(provider.container, f"{prefix}{name}.")


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what the library's own ``@inject`` wrapper calls; any other function as it is.

    With every injection given explicitly the wrapper has nothing to do, and costs 1.2 to 3.7 us.
    Only a wrapper that the library itself knows is looked through, so outer decorators still run.
    """
    registry = getattr(wiring, "_patched_registry", None)
    patched = registry.get_callable(function) if registry is not None and _hashable(function) else None
    if patched is None or patched.reference_closing:
        return function
    return patched.original  # type: ignore[no-any-return]


def _hashable(function: object) -> bool:
    try:
        hash(function)
    except TypeError:
        return False
    return True


def is_walked_for_closing() -> bool:
    """Tell whether ``wire()`` walks the providers below one that a function injects, from its ``related`` property.

    It looks for the resources that ``Closing[...]`` shuts down after each call. Nothing else in the library tells
    that walk from the one of ``shutdown_resources()``, whose caller is not the library.
    """
    return sys._getframe(2).f_globals.get("__name__") == wiring.__name__
