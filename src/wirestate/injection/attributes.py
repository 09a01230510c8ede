"""The attributes of an object that is given as a function: markers and providers there are not replaced by anything.

No code of the object's class is run: no property, no ``__getattr__``, no ``__class__`` of its own is asked.
``Any`` here: attributes hold whatever a person gives them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType
from typing import Any, NamedTuple

from dependency_injector import containers, providers

from wirestate.injection.wiring import is_marker, is_wired_attribute
from wirestate.resources.calls import layers


class Held(NamedTuple):
    """A marker or provider that an object holds, and the name of the method that would work with it."""

    attribute: str
    value: Any
    method: str

    @property
    def parameter(self) -> str:
        """The attribute's name as that of a parameter."""
        return self.attribute.strip("_").rpartition("__")[2] or self.attribute


def held_by(function: Callable[..., Any]) -> Iterator[Held]:
    """Yield the markers in attributes of the objects behind *function*, and the providers that are defaults there.

    A provider that the object was given by its maker is there on purpose, as one of ``Provide[C.db.provider]`` is.
    """
    told: set[tuple[str, int]] = set()
    for layer in layers(function):
        if type(layer) is MethodType:
            holder, method = layer.__self__, getattr(layer.__func__, "__name__", "__call__")
        elif inspect.isroutine(layer) or isinstance(layer, functools.partial | type):
            continue
        else:
            holder, method = layer, "__call__"
        if isinstance(holder, type) or issubclass(type(holder), providers.Provider | containers.Container):
            continue
        for name, value in _forgotten(holder):
            if (name, id(value)) not in told:  # ``functools.update_wrapper`` copies the attributes of what it wraps
                told.add((name, id(value)))
                yield Held(name, value, method)


def _forgotten(holder: object) -> Iterator[tuple[str, Any]]:
    of_class: dict[str, Any] = {}
    wired: set[str] = set()
    for kind in reversed(type(holder).__mro__):
        for name, value in list(vars(kind).items()):
            of_class[name] = value
            if _is_provider(value) and is_wired_attribute(kind, name):
                wired.add(name)
            else:
                wired.discard(name)
    defaults = [value for name, value in of_class.items() if name not in wired and _is_provider(value)]
    defaults += filter(_is_provider, _constructor_defaults(of_class.get("__init__")))
    for name, value in {**of_class, **_own(holder, of_class)}.items():
        if is_marker(value) or any(value is default for default in defaults):
            yield name, value


def _is_provider(value: object) -> bool:
    return issubclass(type(value), providers.Provider)  # not isinstance: that asks for a ``__class__``


def _constructor_defaults(constructor: Any) -> list[Any]:
    *_, plain = layers(constructor)
    if type(plain) is not FunctionType:
        return []
    return [*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values()]


def _own(holder: object, of_class: dict[str, Any]) -> dict[str, Any]:
    """Return what the object itself holds, in its slots and its ``__dict__``."""
    found = {}
    for name, descriptor in of_class.items():
        if type(descriptor) is MemberDescriptorType:
            try:
                found[name] = descriptor.__get__(holder)
            except AttributeError:  # nothing was put there
                continue
    own = of_class.get("__dict__")
    if type(own) is GetSetDescriptorType:
        found.update(own.__get__(holder))
    return found
