"""How each function of a machine is called: signature, async flag and needs, compiled once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

from wirestate.errors import Fault, ResourceClosedError
from wirestate.injection.edges import NEVER_FRESH
from wirestate.injection.plans import EMPTY, Plan, Planner, Where
from wirestate.injection.wiring import markers_of, unwrapped
from wirestate.machine.context import FunctionContext, StateView
from wirestate.machine.definition import FunctionRef, Role
from wirestate.machine.guards import Expression
from wirestate.resources.calls import is_async_callable

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
        self.is_async = is_async_callable(function) and not inspect.isasyncgenfunction(inspect.unwrap(function))
        self.plain = False

    def fresh_plan(self) -> Plan:
        """Return what must be open and handed in, under the overrides of now."""
        plan = self.plan
        if plan is not EMPTY and not self.planner.is_fresh(plan):
            made = self.planner.plan(self.source)
            if plan.manager is not None and plan.manager.closed:
                raise ResourceClosedError(f"the container behind {self.name} was closed", None, "open")
            plan = self.plan = made
        return plan

    def forget_plan(self) -> None:
        """Make the plan anew at the next use."""
        if self.plan is not EMPTY:
            self.plan = self.plan._replace(watch=NEVER_FRESH)

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
    injected = {marker.parameter for marker in markers_of(function)}
    faults = _read_signature(call, function, injected, catching=catching, where=where)
    if injected:
        faults += planner.faults(function, where)
        if not faults:
            call.plan = planner.plan(function)
            call.target = unwrapped(function)
    call.plain = not injected and not call.keywords and call.positions == ("record",)
    return call, faults


def _read_signature(
    call: Call, function: Callable[..., Any], injected: set[str], *, catching: bool, where: Where
) -> list[Fault]:
    """Decide which parameter gets what; a parameter that nothing would fill is a fault."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions tell nothing about themselves
        call.positions = ("record",)
        return []
    positions: list[Argument] = []
    faults: list[Fault] = []
    for parameter in parameters:
        if parameter.name in injected or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        argument = _argument(parameter, positions, catching=catching)
        if argument is None:
            if parameter.default is parameter.empty:
                faults.append(
                    where.fault(
                        "I005",
                        "UnfilledParameter",
                        f"has a parameter {parameter.name!r} that nothing fills.",
                        "The first parameter gets the record, the next the context; "
                        "inject the others with Provide[...] or give them with 'params:'.",
                    )
                )
        elif parameter.kind is parameter.KEYWORD_ONLY or _after_gap(parameter, parameters, len(positions)):
            call.keywords[parameter.name] = argument
        else:
            positions.append(argument)
    if not positions and not faults:
        faults.append(
            where.fault("I006", "NoRecord", "takes no record.", "Give it a first positional parameter for the record.")
        )
    call.positions = tuple(positions)
    return faults


def _argument(parameter: inspect.Parameter, positions: list[Argument], *, catching: bool) -> Argument | None:
    is_context = parameter.name in CONTEXT_NAMES or _annotated_context(parameter)
    if parameter.name == "error" and catching and positions:
        return "error"
    if parameter.kind is parameter.KEYWORD_ONLY:
        return "context" if is_context else None
    if not positions:
        return "view" if parameter.name == "state" else "record"
    if "context" not in positions and (is_context or parameter.default is parameter.empty):
        return "context"
    return None


def _annotated_context(parameter: inspect.Parameter) -> bool:
    return parameter.annotation is FunctionContext or str(parameter.annotation).rpartition(".")[2] == "FunctionContext"


def _after_gap(parameter: inspect.Parameter, parameters: list[inspect.Parameter], filled: int) -> bool:
    """Tell whether one before this is injected or keeps its default: then it can only be passed by keyword."""
    return parameters.index(parameter) > filled and parameter.kind is not parameter.POSITIONAL_ONLY


def function_name(ref: FunctionRef, function: Any) -> str:
    """Return ``module.name`` of a function, the text of an expression, else the reference."""
    if isinstance(function, Expression):
        return repr(function.text)
    while isinstance(function, functools.partial):
        function = function.func
    qualified = getattr(function, "__qualname__", None)
    module = getattr(function, "__module__", None)
    return f"{module}.{qualified}" if qualified and module else ref.name


def view(record: Any, state: str) -> StateView:
    """Return the record as functions see it whose first parameter is called ``state``."""
    return StateView(record, state)
