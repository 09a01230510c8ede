"""States and arcs with their functions found and their plans made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from wirestate.injection.edges import NEVER_FRESH, Watch
from wirestate.injection.plans import EMPTY, Plan
from wirestate.machine.definition import Arc, DataMode, ResourceUse, State
from wirestate.machine.plan import Call
from wirestate.machine.results import Kind, Phase
from wirestate.resources.recipes import Recipe

Trivial = tuple[tuple[Callable[[Any], Any], Call], ...]  # Any: records are of the caller's own type
Check = Callable[[Any], str | None]  # a schema: the record in, why it is refused out


class Ready(NamedTuple):
    """What a visit needs that is nothing but calls, under the overrides of one moment."""

    watch: Watch
    steps: tuple[Recipe, ...]
    suspends: bool
    blocking: bool
    calls: tuple[tuple[Callable[..., Any], Plan, Call], ...]  # Any: records are of the caller's own type

    @classmethod
    def of(cls, calls: Sequence[Call], plans: Sequence[Plan]) -> Ready:
        """Put the *plans* of *calls* together."""
        steps = tuple(dict.fromkeys(step for plan in plans for step in plan.steps))
        return cls(
            tuple(watched for plan in plans for watched in plan.watch),
            steps,
            any(plan.suspends for plan in plans),
            any(step.blocking for step in steps),
            tuple((call.target, plan, call) for call, plan in zip(calls, plans, strict=True)),
        )


class CompiledArc:
    """One arc; ``target`` is set when all states are there."""

    __slots__ = ("arc", "condition", "declared", "label", "target", "transforms")

    def __init__(self, arc: Arc, condition: Call | None, transforms: Sequence[Call]) -> None:
        self.arc = arc
        self.label = arc.label
        self.condition = condition
        self.transforms = tuple(transforms)
        self.declared: tuple[ResourceUse, ...] = arc.resources
        self.target: CompiledState

    @property
    def is_bare(self) -> bool:
        """True if taking it needs no call and no resource."""
        return self.condition is None and not self.transforms and not self.declared

    def calls(self) -> list[Call]:
        """Every function of this arc."""
        return [*([self.condition] if self.condition else []), *self.transforms]

    def catches(self, kind: Kind) -> int:
        """How specifically this arc catches *kind*; 0 is not at all."""
        catch = self.arc.catch
        if kind == "limit":
            return 0
        if kind in catch:
            return 3
        if kind == "timeout" and "error" in catch:
            return 2
        return 1 if "any" in catch else 0


class CompiledPhase:
    """Functions that run together: all that they need is open before the first one runs."""

    __slots__ = ("calls", "name", "refuses")

    def __init__(self, name: Phase, calls: Sequence[Call], *, refuses: bool) -> None:
        self.name: Phase = name
        self.calls = tuple(calls)
        self.refuses = refuses  # validators: they refuse, and never change the record


class CompiledState:
    """One state, ready to be visited."""

    __slots__ = (
        "arcs",
        "catch_arcs",
        "data_mode",
        "declared",
        "early",
        "emits",
        "end_test",
        "keeps_entry",
        "name",
        "next",
        "phases",
        "ready",
        "retry_on",
        "schema",
        "simple",
        "simple_waiting",
        "state",
        "stay_calls",
        "stay_uses",
        "succeeds",
        "trivial",
        "trivial_waiting",
    )

    def __init__(
        self,
        state: State,
        *,
        schema: Check | None,
        early: Sequence[Call],
        phases: Sequence[CompiledPhase],
        end_test: Call | None,
        arcs: Sequence[CompiledArc],
        catch_arcs: Sequence[CompiledArc],
        retry_on: tuple[type[Exception], ...],
    ) -> None:
        self.state = state
        self.name = state.name
        self.schema = schema
        self.early = tuple(early)
        self.phases = tuple(phases)
        self.end_test = end_test
        self.arcs = tuple(sorted(arcs, key=lambda arc: -arc.arc.priority))
        self.catch_arcs = tuple(catch_arcs)
        self.declared = state.resources
        # What a stay may call and open, if nothing goes wrong; expressions need nothing.
        self.stay_calls = tuple(call for call in self._calls(self.arcs) if not call.expression)
        self.stay_uses = (*state.resources, *(use for arc in self.arcs for use in arc.declared))
        self.succeeds = state.outcome == "success"
        self.emits = state.emit_output
        self.data_mode: DataMode | None = state.data_mode
        self.retry_on = retry_on or (Exception,)
        self.keeps_entry = state.retry is not None or bool(catch_arcs)
        self.next: CompiledState | None = None
        self.simple: tuple[Call, ...] = ()  # a visit is nothing but these calls, in a scope, and ``next``
        self.ready: Ready  # of ``simple``
        self.simple_waiting: tuple[Call, ...] = ()  # the same, where some must be awaited
        self.trivial: Trivial | None = None  # a visit is nothing but these calls and ``next``
        self.trivial_waiting: tuple[Call, ...] | None = None  # the same, where some must be awaited

    def calls(self) -> list[Call]:
        """Every function of this state and its arcs."""
        return self._calls((*self.arcs, *self.catch_arcs))

    def _calls(self, arcs: Sequence[CompiledArc]) -> list[Call]:
        return [
            *self.early,
            *(call for phase in self.phases for call in phase.calls),
            *([self.end_test] if self.end_test else []),
            *(call for arc in arcs for call in arc.calls()),
        ]

    @property
    def injects(self) -> bool:
        """True if one of its functions gets something from the container."""
        return any(call.plan is not EMPTY for call in self.calls())

    def settle(self, *, scoped: bool) -> None:
        """Find out whether a visit is nothing but plain calls and one way on (or the end)."""
        state = self.state
        only_transforms = all(phase.name == "transform" for phase in self.phases)
        calls = [call for phase in self.phases for call in phase.calls]
        one_way = state.is_end or (len(self.arcs) == 1 and self.arcs[0].is_bare)
        special = (
            self.schema is not None
            or self.early
            or self.end_test is not None
            or self.keeps_entry
            or state.timeout is not None
            or self.data_mode is not None
            or state.offload
            or self.declared
        )
        if not only_transforms or not one_way or special:
            return
        self.next = None if state.is_end else self.arcs[0].target
        waits = any(call.is_async for call in calls)
        if not calls or (not scoped and all(call.plain for call in calls)):
            if waits:
                self.trivial_waiting = tuple(calls)
            else:
                self.trivial = tuple((call.target, call) for call in calls)
        elif scoped and all(call.positions == ("record",) and not call.keywords for call in calls):
            waits = waits or any(call.plan.is_async for call in calls)
            self.simple, self.simple_waiting = ((), tuple(calls)) if waits else (tuple(calls), ())
            self.ready = Ready.of(self.simple, [call.plan for call in self.simple])

    def forget_plans(self) -> None:
        """Plan every call anew at its next use."""
        for call in self.calls():
            call.forget_plan()
        if self.simple:
            self.ready = self.ready._replace(watch=NEVER_FRESH)


CompiledStates = Mapping[str, CompiledState]
