"""Paths into settings, ``settings.provided.a["b"].c``: which of them lead nowhere, and what was probably meant.

Any stands for settings objects and their models, which are the user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args, get_origin

from dependency_injector import providers

from wirestate.errors import nearest
from wirestate.injection.edges import AnyProvider, provides_of

Getter = providers.AttributeGetter | providers.ItemGetter


class LostPath(NamedTuple):
    """A settings path that ends too early: *near* is the name that was probably meant."""

    text: str
    near: str | None


def lost_paths(used: Iterable[AnyProvider]) -> list[LostPath]:
    """Return those of the paths among the *used* providers that the settings model does not have."""
    found = (_lost_in_model(_model_of(root), steps) for root, steps in map(path_of, used) if root is not None)
    # Getters are used with those that they begin with, which are lost at the same place.
    return list(dict.fromkeys(lost for lost in found if lost is not None))


def lost_on_the_way(used: Iterable[AnyProvider]) -> LostPath | None:
    """Return the first path that the settings themselves do not have: what no model tells is asked of them."""
    for root, steps in map(path_of, used):
        if root is not None and (lost := _lost_in(root, steps)):
            return lost
    return None


def _lost_in(root: AnyProvider, steps: list[Any]) -> LostPath | None:
    try:
        value: Any = root()
        for number, step in enumerate(steps):
            if not _has(value, step):
                return _lost(steps[: number + 1], value, _names_in(value))
            value = getattr(value, step.name) if _is_attribute(step) else value[step.name]
    except Exception:  # the settings fail by themselves: it is not the path that is wrong
        pass
    return None


def _has(value: Any, step: Any) -> bool:
    if _is_attribute(step):  # hasattr() would call a property, which may fail by itself
        return step.name in dir(value) or step.name in _names_in(value)
    return not isinstance(value, Mapping) or step.name in value


def path_of(provider: object) -> tuple[AnyProvider | None, list[Any]]:
    """Return what gives the settings, and the getters from there on; None if *provider* is no such path."""
    steps: list[Any] = []
    root: Any = provider
    while isinstance(root, Getter):
        steps.insert(0, root)
        root = root.provides
    return (root.provides, steps) if steps and isinstance(root, providers.ProvidedInstance) else (None, [])


def _model_of(root: AnyProvider) -> Any:
    made = provides_of(root)
    return type(made) if isinstance(root, providers.Object) else made


def _lost_in_model(model: Any, steps: list[Any]) -> LostPath | None:
    for number, step in enumerate(steps):
        if not _is_attribute(step):
            model = get_args(model)[1] if get_origin(model) in (dict, Mapping) else None
            continue
        fields = getattr(model, "model_fields", None)
        if not isinstance(fields, Mapping):
            return None
        if step.name not in fields and not hasattr(model, step.name):
            free = getattr(model, "model_config", {}).get("extra") == "allow"
            return None if free else _lost(steps[: number + 1], model, fields)
        model = fields[step.name].annotation if step.name in fields else None
    return None


def _lost(steps: list[Any], where: Any, known: Iterable[Any]) -> LostPath:
    kind = where if isinstance(where, type) else type(where)
    path = "".join(f".{step.name}" if _is_attribute(step) else f"[{step.name!r}]" for step in steps).lstrip(".")
    shown = f"'{path}'" if "'" not in path else f'"{path}"'
    near = nearest(str(steps[-1].name), [name for name in known if isinstance(name, str)])
    return LostPath(f"uses settings path {shown}, which {kind.__name__} does not have", near)


def _names_in(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value)
    return [*getattr(type(value), "model_fields", ()), *(getattr(value, "model_extra", None) or ())]


def _is_attribute(step: Any) -> bool:
    return isinstance(step, providers.AttributeGetter)
