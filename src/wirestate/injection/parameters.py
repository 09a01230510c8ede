"""The parameters of a function: annotations evaluated, markers found, and what was meant to be a marker.

``Any`` here: annotations and defaults are whatever a person writes.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, NamedTuple

from wirestate.injection.wiring import Marker, is_container, is_marker, is_misplaced, marker_of
from wirestate.redaction import quoted
from wirestate.resources.calls import layers

MARKERS = ("Provide", "Closing")


class Unread(NamedTuple):
    """An annotation that cannot be evaluated: its text, why, and whether it may hold a marker."""

    text: str
    why: str
    marked: bool


class Parameter(NamedTuple):
    """One parameter of a function, its annotation evaluated where that is possible."""

    declared: inspect.Parameter
    marker: Marker | None = None
    unread: Unread | None = None

    @property
    def name(self) -> str:
        return self.declared.name

    @property
    def misplaced(self) -> Any:
        """What was meant to be injected and is not: a provider without a marker, a marker in the wrong place; or None.

        Such a value would be handed in itself, or be no more than an annotation.
        """
        if self.marker is not None:
            return None
        default = self.declared.default
        if is_misplaced(default):
            return default
        return next(chain(_misplaced_within(default), _misplaced_in(self.declared.annotation)), None)

    @property
    def collected(self) -> bool:
        """Whether what is misplaced stands in a tuple, list or dictionary that is the default."""
        found = self.misplaced
        return found is not None and any(found is part for part in _misplaced_within(self.declared.default))

    @property
    def meant(self) -> bool:
        """Whether it is meant to be injected and is not: it is misplaced, or its marker cannot be read."""
        unread = self.unread is not None and self.unread.marked and self.marker is None
        return unread or self.misplaced is not None


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...] | None:
    """Read the parameters of *function*, its postponed annotations too; None if it tells nothing about itself."""
    declared = _declared(function)
    if declared is None:
        return None
    hints, unread = _evaluated(function, declared)
    found = []
    for name, parameter in declared.items():
        evaluated = parameter.replace(annotation=hints.get(name, parameter.annotation))
        found.append(Parameter(evaluated, marker_of(name, evaluated), unread.get(name)))
    return tuple(found)


def _declared(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    for asked in (function, getattr(function, "__call__", None)):  # noqa: B004  # looked at, not asked for
        try:
            return inspect.signature(asked).parameters  # type: ignore[arg-type]
        except (TypeError, ValueError):  # an object that equals everything is taken for a built-in
            continue
    return None


def markers_of(function: Callable[..., Any]) -> tuple[Marker, ...]:
    """Return the injection markers of *function*: defaults and ``Annotated``."""
    return tuple(parameter.marker for parameter in parameters_of(function) or () if parameter.marker is not None)


def _misplaced_within(default: Any) -> Iterator[Any]:
    """Yield the providers and markers in a collection; one of a class of its own is not asked, that could run code."""
    if type(default) is dict:
        yield from _misplaced_within([*default.values()])
    elif type(default) in (tuple, list, set, frozenset):
        yield from (part for part in default if is_marker(part) or is_misplaced(part))


def _misplaced_in(annotation: Any) -> Iterator[Any]:
    """Yield the providers and markers in an annotation that the library does not look at."""
    looked_at: list[Any] = []
    waiting = [annotation]
    while waiting:
        part = waiting.pop()
        if any(part is known for known in looked_at):  # the alias of a ``type`` statement may name itself
            continue
        looked_at.append(part)
        if is_marker(part) or (is_misplaced(part) and not is_container(part)):
            yield part
        inner = typing.get_args(part)
        if typing.get_origin(part) is Annotated:
            yield from filter(is_container, inner)
        waiting += inner
        with contextlib.suppress(Exception):  # no alias, or one of a name that exists for type checkers only
            waiting.append(part.__value__)


def _evaluated(
    function: Callable[..., Any], declared: Mapping[str, inspect.Parameter]
) -> tuple[Mapping[str, Any], Mapping[str, Unread]]:
    """Evaluate postponed annotations; say of each why it cannot be evaluated."""
    texts = {name: one.annotation for name, one in declared.items() if isinstance(one.annotation, str)}
    if not texts:
        return {}, {}
    *_, plain = layers(function)
    if isinstance(plain, type):
        plain = plain.__init__  # type: ignore[misc]  # its text is read, it is not called
    try:
        return typing.get_type_hints(plain, include_extras=True), {}
    except Exception:  # a name that exists for type checkers only: each annotation on its own
        names = getattr(plain, "__globals__", {})
    hints: dict[str, Any] = {}
    unread: dict[str, Unread] = {}
    for name, text in texts.items():
        try:
            hints[name] = _evaluated_alone(text, names)
        except Exception as error:
            unread[name] = Unread(text, quoted(error), _may_hold_marker(text, names))
    return hints, unread


def _evaluated_alone(text: str, names: dict[str, Any]) -> Any:
    holder = type("_", (), {"__annotations__": {"it": text}})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["it"]
    except NameError:  # perhaps only a text within it: Annotated["Session", Provide["db"]]
        return eval(text, names)


def _may_hold_marker(text: str, names: Mapping[str, Any]) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except SyntaxError:
        return False
    words = [node.id for node in nodes if isinstance(node, ast.Name)]
    words += [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    return any(word in MARKERS or is_misplaced(names.get(word)) or is_marker(names.get(word)) for word in words)
