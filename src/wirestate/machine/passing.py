"""Visits that are nothing but calls and one way on: unrolled, because most visits are of this kind."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from time import monotonic
from typing import Any

from wirestate.errors import AsyncResourceError, RunTimeoutError
from wirestate.machine.compiled import CompiledState, Ready
from wirestate.machine.failing import (
    PROGRAM_MISTAKES,
    attach_failures,
    note_failure,
    refuse_mistake,
    release_failure,
)
from wirestate.machine.plan import Call
from wirestate.machine.run import Run
from wirestate.machine.staying import adopt
from wirestate.machine.visit import SETTLED, fresh_plan
from wirestate.resources.owners import OwnerScope, StateScope
from wirestate.resources.scopes import current
from wirestate.waiting import BLOCKING


def visit_plainly(  # noqa: PLR0912  # unrolled: each call less is felt by every visit
    run: Run, state: CompiledState, calls: Sequence[Call], direct: bool
) -> bool:
    """Visit a state that only calls, with injected values; False if it failed, or has to wait (``run.begun``)."""
    owner = run.scope
    assert owner is not None, "the caller has looked"
    scope = _entered(owner, state)
    held = scope.held
    run.phase = "open"
    try:
        if owner.closed:
            raise owner.interruption()
        watch, steps, suspends, blocking, ready = state.ready  # read once: an override by another thread may replace it
        for provider, overriding in watch:  # unchanged() unrolled
            if provider.last_overriding is not overriding:
                state.ready = Ready.of(calls, [fresh_plan(call, run, state) for call in calls])
                watch, steps, suspends, blocking, ready = state.ready
                break
        if suspends or (blocking and run.world.is_async) or not scope.open_quickly(steps, run.world):
            run.begun = scope
            return False
        run.path.append(state.name)
        run.phase = "transform"
        for target, plan, call in ready:
            if plan.others or plan.longer:
                injected = plan.injected(scope)
            else:  # the same unrolled; a loop, since a comprehension is a call
                injected = {}
                for parameter, recipe in plan.own:
                    injected[parameter] = held[recipe]
            result = target(run.data, **injected)
            if result is not None:
                if type(result) is not dict and run.world.is_async and inspect.isawaitable(result):
                    run.begun, run.pending = scope, (calls[calls.index(call) :], result)
                    return False
                adopt(run, call, result, direct=direct)
        if scope.interrupted:
            raise scope.interruption()
        if run.deadline is not None:
            refuse_late(run, state)
    except BaseException as error:
        if run.phase == "open":
            run.path.append(state.name)
        failures: list[BaseException] = []
        scope.end_now(error, failures, BLOCKING)
        _failed(run, scope, error, failures)
        return False
    failures = []
    if not scope.end_now(None, failures, BLOCKING):
        raise AsyncResourceError(f"{scope.async_names()[0]!r} was opened asynchronously in a synchronous state")
    scope.unlist()
    return not failures or _unreleased(run, scope, failures)


async def visit_waiting(run: Run, state: CompiledState, calls: Sequence[Call]) -> CompiledState | None:
    """As :func:`visit_plainly`, where calls or what they need must be awaited; return the next state."""
    owner = run.scope
    assert owner is not None, "the caller has looked"
    scope = _entered(owner, state)
    direct = run.engine.data_mode == "direct"
    plans = []
    run.phase = "open"
    try:
        if owner.closed:
            raise owner.interruption()
        for call in calls:
            plan = call.fresh_plan()
            plans.append(plan)
            if plan.steps and not scope.open_quickly(plan.steps, run.world):
                await scope.open_quickly_waiting(plan.steps, run.world)
        run.phase = "transform"
        for call, plan in zip(calls, plans, strict=True):
            injected = await plan.injected_waiting(scope) if plan.suspends else plan.injected(scope)
            result = call.target(run.data, **injected)
            if call.is_async or (type(result) not in SETTLED and inspect.isawaitable(result)):
                result = await result
            if result is not None:
                adopt(run, call, result, direct=direct)
        if scope.interrupted:
            raise scope.interruption()
        if run.deadline is not None:
            refuse_late(run, state)
    except BaseException as error:
        _failed(run, scope, error, await scope.end(error, run.world))
        return None
    failures = await scope.end(None, run.world)
    scope.unlist()
    current.set(owner)
    return state.next if not failures or _unreleased(run, scope, failures) else None


async def pass_waiting(run: Run, state: CompiledState, calls: Sequence[Call], given: Any) -> CompiledState | None:
    """Go through one state without a scope, some of whose calls must be awaited; return the next state.

    *given* is what the first of *calls* returned, if it was called already.
    """
    direct = run.engine.data_mode == "direct"
    run.pending = None
    try:
        for call in calls:
            result = call.target(run.data) if given is None else given
            given = None
            if call.is_async or (type(result) not in SETTLED and inspect.isawaitable(result)):
                result = await result
            if result is not None:
                adopt(run, call, result, direct=direct)
        if run.deadline is not None:
            refuse_late(run, state)
    except Exception as error:
        refuse_mistake(error)
        note_failure(run, state.name, error, "transform")
        return None
    return state.next


def refuse_late(run: Run, state: CompiledState) -> None:
    """Raise if the time of the run is over."""
    if run.deadline is not None and monotonic() > run.deadline:
        raise RunTimeoutError(f"the run took longer than its {run.timeout:g} s, in state {state.name!r}")


def _entered(owner: OwnerScope, state: CompiledState) -> StateScope:
    name = state.name
    number = owner.counts[name] = owner.counts.get(name, 0) + 1
    scope = StateScope(owner, name, number)
    scope.before = owner  # not restored between plain visits: nothing runs there
    current.set(scope)
    return scope


def _failed(run: Run, scope: StateScope, error: BaseException, failures: list[BaseException]) -> None:
    """End the run with *error*; what is no failure of the record is raised again."""
    scope.unlist()
    current.set(scope.before)
    attach_failures(error, failures)
    if not isinstance(error, Exception) or isinstance(error, PROGRAM_MISTAKES):
        raise error
    note_failure(run, scope.state_name, error, run.phase)


def _unreleased(run: Run, scope: StateScope, failures: list[BaseException]) -> bool:
    """End the run because its leases could not be given back; False, for the caller to return."""
    run.phase = "release"
    error = release_failure(scope.owner_id, failures)
    if not isinstance(error, Exception):
        raise error
    note_failure(run, scope.state_name, error, "release")
    return False
