"""How each function of a machine is called: signature, async flag and needs, compiled once."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from wirestate.errors import BlockingWaitError, Fault, ResourceClosedError
from wirestate.injection.edges import NEVER_FRESH
from wirestate.injection.parameters import Parameter, parameters_of
from wirestate.injection.plans import EMPTY, Plan, Planner, Where
from wirestate.injection.wiring import is_decorated, unwrapped
from wirestate.machine.context import FunctionContext, StateView
from wirestate.machine.definition import FunctionRef, Role
from wirestate.machine.guards import Expression
from wirestate.redaction import half_made_too
from wirestate.resources.calls import has_code, is_async_callable, layers
from wirestate.resources.recipes import Recipe

CONTEXT_NAMES = ("context", "ctx")
Argument = Literal["record", "view", "context", "error"]


class Call:
    """One function of a machine, ready to be called.

    ``plain`` says that ``target(record)`` is the whole call: nothing is injected, no context is made.
    """

    __slots__ = (
        "expression",
        "is_async",
        "keywords",
        "name",
        "plain",
        "plan",
        "planner",
        "positions",
        "role",
        "source",
        "target",
    )

    def __init__(self, name: str, role: Role, function: Any, planner: Planner) -> None:
        self.name = name
        self.role = role
        self.source = function  # Any: the function as it was given; the plan is kept under it
        self.expression = isinstance(function, Expression)
        self.planner = planner
        self.positions: tuple[Argument, ...] = ()
        self.keywords: dict[str, Argument] = {}
        self.plan: Plan = EMPTY
        self.target = function
        # An asynchronous generator cannot be awaited: it comes back as a result that no role allows.
        self.is_async = is_async_callable(function) and not any(
            has_code(layer) and inspect.isasyncgenfunction(layer) for layer in layers(function)
        )
        self.plain = False

    def fresh_plan(self) -> Plan:
        """Return what must be open and handed in, under the overrides of now."""
        plan = self.plan
        if plan is not EMPTY and not self.planner.is_fresh(plan):
            made = self.planner.plan(self.source)
            if plan.manager is not None and plan.manager.closed:
                raise ResourceClosedError(f"the container behind {self.name} was closed", None, "open")
            if self.is_async:
                refuse_session(f"{self.name} is asynchronous and injects", made.steps)
            plan = self.plan = made
        return plan

    def forget_plan(self) -> None:
        """Make the plan anew at the next use."""
        if self.plan is not EMPTY:
            self.plan = self.plan._replace(watch=NEVER_FRESH)

    @half_made_too
    def __repr__(self) -> str:
        return f"<Call {self.role} {self.name}>"


def compile_call(
    ref: FunctionRef, function: Any, role: Role, *, who: str, catching: bool, planner: Planner
) -> tuple[Call, list[Fault]]:
    """Compile one reference whose function was found; return it with what is wrong with it."""
    name = function_name(ref, function)
    call = Call(name, role, function, planner)
    if call.expression:
        return call, []
    place = str(ref.place)
    where = Where(
        f"{who} ({place}, function {name})" if place else f"{who} (function {name})",
        ref.place.file,
        ref.place.line,
        ref.place.column,
    )
    parameters = parameters_of(function)
    if parameters is None:  # some built-in functions tell nothing about themselves
        call.positions = ("record",)
        call.plain = True
        return call, []
    faults = planner.faults(function, where)
    faults += _Signature(call, planner, where, catching=catching).read(parameters)
    if any(parameter.marker is not None for parameter in parameters) and not faults:
        call.plan = planner.plan(function)
        call.target = unwrapped(function)
        faults += _blocking_sessions(call, where)
    call.plain = call.plan is EMPTY and not call.keywords and call.positions == ("record",)
    return call, faults


def _blocking_sessions(call: Call, where: Where) -> list[Fault]:
    """Return a fault for each resource whose every use would stop the event loop that *call* runs on."""
    if not call.is_async:
        return []
    found = dict(sync_sessions((*call.plan.steps, *call.planner.later_steps(call.source))))
    return [
        where.fault(
            "R006",
            "BlockingSession",
            f"is asynchronous and injects {name!r}, whose synchronous sessions stop the event loop.",
            f"Declare {name!r} with {instead}, and await its statements; "
            "or make the function a plain one: it then runs in a thread.",
        )
        for name, instead in found.items()
    ]


def sync_sessions(steps: Iterable[Recipe]) -> list[tuple[str, str]]:
    """Return the names of those of *steps* that no asynchronous function must use, each with what it takes instead."""
    found = ((step.name, getattr(getattr(step.source, "provider", None), "asynchronous_twin", None)) for step in steps)
    return [(name, instead) for name, instead in found if instead is not None]


def refuse_session(who: str, steps: Iterable[Recipe]) -> None:
    """Refuse that an asynchronous function uses what *steps* open: each statement would stop its event loop."""
    for one in sync_sessions(steps):
        raise BlockingWaitError(f"{who} {_text_of(*one)}")


def _text_of(name: str, instead: str) -> str:
    return (
        f"{name!r}, whose synchronous sessions stop the event loop; declare it with {instead}, "
        "or make the function a plain one"
    )


class _Signature:
    """Decides which parameter gets what; a parameter that nothing would fill is a fault."""

    def __init__(self, call: Call, planner: Planner, where: Where, *, catching: bool) -> None:
        self.call = call
        self.planner = planner
        self.where = where
        self.catching = catching
        self.decorated = is_decorated(call.source)
        self.given: list[Argument] = []
        self.faults: list[Fault] = []

    def read(self, parameters: Sequence[Parameter]) -> list[Fault]:
        """Decide for all *parameters*; return what is wrong with those that inject nothing."""
        positions: list[Argument] = []
        for index, parameter in enumerate(parameters):
            kind = parameter.declared.kind
            if parameter.marker is not None or kind in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD):
                continue
            argument = None if parameter.meant else self._argument(parameter)
            if argument is None:
                if parameter.declared.default is inspect.Parameter.empty and not parameter.meant:
                    self.faults.append(self._unfilled(parameter))
                continue
            self.given.append(argument)
            # One before it is injected or keeps its default: then it can only be passed by keyword.
            if kind is kind.KEYWORD_ONLY or (index > len(positions) and kind is not kind.POSITIONAL_ONLY):
                self.call.keywords[parameter.name] = argument
            else:
                positions.append(argument)
        if not self._has_record and any(one.declared.kind is one.declared.VAR_POSITIONAL for one in parameters):
            positions.append("record")  # a decorator that does not say what it decorates, or a mock
        elif not self._has_record and not self.faults and not any(one.meant for one in parameters):
            self.faults.append(self._without_record())
        self.call.positions = tuple(positions)
        return self.faults

    @property
    def _has_record(self) -> bool:
        return "record" in self.given or "view" in self.given

    def _argument(self, parameter: Parameter) -> Argument | None:
        name, kind = parameter.name, parameter.declared.kind
        annotated = _annotated_context(parameter.declared.annotation)
        is_context = annotated or name in CONTEXT_NAMES
        if name == "error" and self.catching and self._has_record:
            return "error"
        if kind is kind.KEYWORD_ONLY:
            return "context" if is_context else None
        if not self._has_record and not annotated:
            return "view" if name == "state" else "record"
        by_place = parameter.declared.default is inspect.Parameter.empty and self._takes_context(parameter)
        return "context" if "context" not in self.given and (is_context or by_place) else None

    def _takes_context(self, parameter: Parameter) -> bool:
        """Tell whether a second parameter of another name is meant to get the context, as far as it shows."""
        name, annotation = parameter.name, parameter.declared.annotation
        if name.lstrip("_") in {"", *CONTEXT_NAMES}:
            return True
        if self.decorated or name == "error" or parameter.unread is not None or self.planner.named(name) is not None:
            return False
        if not isinstance(annotation, type) or annotation in (Any, inspect.Parameter.empty, dict):
            return True  # unannotated, or it says nothing that a context contradicts: that can be read like a mapping
        try:
            return issubclass(FunctionContext, annotation) or issubclass(annotation, Mapping)
        except TypeError:  # a protocol that cannot be asked
            return True

    def _unfilled(self, parameter: Parameter) -> Fault:
        name = parameter.name
        if parameter.unread is not None:
            return self.planner.unreadable(parameter, self.where)
        known = self.planner.named(name)
        if known is not None:
            help = f'Write {name}=Provide["{known}"].'
        elif name == "error":
            help = "Only functions of catch arcs get an error: on_error, on_reject, on_timeout."
        else:
            help = (
                "The first parameter gets the record, one called 'context' the context; "
                "inject the others with Provide[...] or give them with 'params:'."
            )
        return self.where.fault("I005", "UnfilledParameter", f"has a parameter {name!r} that nothing fills.", help)

    def _without_record(self) -> Fault:
        help = "Give it a first positional parameter for the record."
        return self.where.fault("I006", "NoRecord", "takes no record.", help)


def _annotated_context(annotation: Any) -> bool:
    """Tell whether *annotation* is the context, or a union with it; a text is one that cannot be evaluated."""
    if isinstance(annotation, str):
        return re.fullmatch(r"(Optional\[)?([\w.]*\.)?FunctionContext(\]| *\| *None)?", annotation) is not None
    return FunctionContext in (annotation, *get_args(annotation))


def function_name(ref: FunctionRef, function: Any) -> str:
    """Return ``module.name`` of a function, the text of an expression, else the reference."""
    if isinstance(function, Expression):
        return repr(function.text)
    while isinstance(function, functools.partial):
        function = function.func
    qualified = getattr(function, "__qualname__", None)
    module = getattr(function, "__module__", None)
    return f"{module}.{qualified}" if isinstance(qualified, str) and isinstance(module, str) else ref.name


def view(record: Any, state: str) -> StateView:
    """Return the record as functions see it whose first parameter is called ``state``."""
    return StateView(record, state)
