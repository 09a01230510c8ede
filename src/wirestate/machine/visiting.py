"""One visit to a state: its scope, its attempts, and the catch arcs behind them."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any

from wirestate.errors import FunctionResultError, ResourceClosedError, RunTimeoutError, StateTimeoutError
from wirestate.machine.compiled import CompiledArc, CompiledState
from wirestate.machine.copying import deep_copy
from wirestate.machine.definition import ResourceUse
from wirestate.machine.failing import (
    PROGRAM_MISTAKES,
    attach_failures,
    kind_of,
    note_failure,
    refuse_mistake,
    release_failure,
)
from wirestate.machine.placing import in_place, may_block
from wirestate.machine.plan import Call
from wirestate.machine.results import Caught
from wirestate.machine.retries import as_raised, attempts
from wirestate.machine.run import Run
from wirestate.machine.staying import holds, stay, transform_on_arc
from wirestate.machine.visit import Visit
from wirestate.redaction import quoted
from wirestate.resources.failures import note, outcome_of
from wirestate.resources.owners import StateScope
from wirestate.resources.scopes import current
from wirestate.waiting import ExpiredError


async def visit_state(run: Run, state: CompiledState) -> CompiledState | None:
    """Visit with retries and catch arcs; return the next state, None at an end or a failure."""
    number = run.count(state.name) if run.begun is None else run.begun.number
    entry = None
    try:
        if state.keeps_entry:
            run.phase = "read"
            entry = deep_copy(run.data)
        if state.state.retry is None:
            arc = await _attempt(run, state, number, 1)
        else:
            arc = await attempts(
                state.state.retry,
                state.retry_on,
                lambda attempt: _again(run, state, number, attempt, entry),
                world=run.world,
                deadline=run.deadline,
                may_retry=lambda error: _may_retry(run, error),
            )
    except Exception as raised:
        error = as_raised(raised)
        assert isinstance(error, Exception)
        refuse_mistake(error)
        return await _failed(run, state, number, error, entry)
    except BaseException:  # interrupted: nobody goes on with the record, but in two modes it is the caller's
        if entry is not None:
            _restore(run, entry)
        raise
    return None if arc is None else arc.target


async def _again(run: Run, state: CompiledState, number: int, attempt: int, entry: Any) -> CompiledArc | None:
    if attempt > 1:
        _restore(run, entry)
        if run.engine.closed:  # while it waited
            raise ResourceClosedError(f"the machine was closed; attempt {attempt} did not begin", None, "close")
    return await _attempt(run, state, number, attempt)


def _restore(run: Run, entry: Any) -> None:
    """Bring the record back to what it was when it entered the state."""
    if run.engine.data_mode == "direct":
        fresh = deep_copy(entry)
        run.data.clear()
        run.data.update(fresh)
    else:
        run.data = deep_copy(entry)


def _may_retry(run: Run, error: BaseException) -> bool:
    if kind_of(error) in ("reject", "limit") or isinstance(error, (*PROGRAM_MISTAKES, FunctionResultError)):
        return False
    if run.engine.closed or (run.scope is not None and run.scope.closed):
        return False
    return run.phase not in ("route", "release")


async def _attempt(run: Run, state: CompiledState, number: int, attempt: int) -> CompiledArc | None:
    """Try once, within the time that the state gives to one attempt."""
    visit = _entered(run, state, number, attempt, f".{attempt}" if attempt > 1 else "")
    seconds = state.state.timeout
    if seconds is None:
        return await _in_scope(visit, stay, state.stay_calls, state.stay_uses)
    before = run.limit
    late = monotonic() + seconds
    run.limit = late if before is None else min(before, late)

    async def stay_in_time(visit: Visit) -> CompiledArc | None:
        # Leaving is not part of it: a commit that was begun is not interrupted.
        try:
            return await run.world.bounded(stay(visit), seconds)
        except ExpiredError as expired:
            raise visit.state_timeout() from expired

    try:
        return await _in_scope(visit, stay_in_time, state.stay_calls, state.stay_uses)
    finally:
        run.limit = before


def _entered(run: Run, state: CompiledState, number: int, attempt: int, mark: str, **about: Any) -> Visit:
    """Return a visit with its bracket, if the machine has any; that acquires nothing."""
    scope, run.begun = run.begun, None
    if scope is None and run.scope is not None:
        scope = StateScope(run.scope, state.name, number)
        scope.before = run.scope
        if mark:
            scope.attempt = mark
    return Visit(run, state, number, attempt, scope, **about)


def _in_scope(
    visit: Visit,
    staying: Callable[[Visit], Awaitable[CompiledArc | None]],
    calls: Sequence[Call],
    uses: Sequence[ResourceUse],
) -> Awaitable[CompiledArc | None]:
    """Stay in the scope of a visit, which makes *calls* and opens *uses*, and close it with the outcome."""
    offload = visit.state.state.offload
    if visit.run.world.is_async and offload is not False and (offload or uses or may_block(calls)):
        return in_place(visit, calls, uses, lambda: _stay_in_scope(visit, staying))
    return _stay_in_scope(visit, staying)


async def _stay_in_scope(visit: Visit, staying: Callable[[Visit], Awaitable[CompiledArc | None]]) -> CompiledArc | None:
    run, scope = visit.run, visit.scope
    came = run.data
    if scope is not None:
        current.set(scope)
    try:
        if visit.state.data_mode == "copy":
            run.phase = "read"
            run.data = deep_copy(came)
        arc = await staying(visit)
        if visit.cancelled:
            raise CancelledError
        if scope is not None and scope.interrupted:
            raise scope.interruption()
        if run.limit is not None:
            visit.check_time()
    except BaseException as error:
        _take_back(visit, came)
        raised = _in_time(visit, error)
        if scope is not None:
            current.set(scope.before)
            attach_failures(raised, await scope._leave(raised, run.world))
        if raised is error:
            raise
        raise raised from error
    finally:
        visit.expire()
    if scope is not None:
        current.set(scope.before)
        failures: list[BaseException] = []
        if not scope.end_now(None, failures, run.world):
            failures += await scope.end(outcome_of(None, failures), run.world)
        scope.unlist()
        if failures:
            visit.arc, run.phase = None, "release"
            _take_back(visit, came)
            raise release_failure(scope.owner_id, failures)
    _write_back(run, came)
    return arc


def _write_back(run: Run, came: Any) -> None:
    """Bring what a state of another mode worked on into the object that mode ``direct`` keeps."""
    if run.data is not came and run.engine.data_mode == "direct":
        fresh = dict(run.data)
        came.clear()
        came.update(fresh)
        run.data = came


def _take_back(visit: Visit, came: Any) -> None:
    """Remember where a visit failed; a state of mode ``copy`` leaves the record as it came."""
    visit.run.failing = visit.attempt, visit.arc_label
    if visit.state.data_mode == "copy":
        visit.run.data = came


def _in_time(visit: Visit, error: BaseException) -> BaseException:
    """A wait that ended because the run's or the attempt's time was over is late, not unavailable."""
    if isinstance(error, TimeoutError) and not isinstance(error, RunTimeoutError | StateTimeoutError):
        try:
            visit.check_time()
        except (RunTimeoutError, StateTimeoutError) as late:
            return late
    return error


async def _failed(run: Run, state: CompiledState, number: int, error: Exception, entry: Any) -> CompiledState | None:
    """Restore the record, then look for a catch arc; without one the run ends."""
    phase, failing = run.phase, run.failing
    if entry is not None:
        _restore(run, entry)
    kind = kind_of(error)
    candidates = [arc for arc in state.catch_arcs if arc.catches(kind) and not run.engine.closed]
    candidates.sort(key=lambda arc: (-arc.catches(kind), -arc.arc.priority))
    if candidates:
        caught = Caught(state.name, kind, error, "")
        try:
            visit = _entered(run, state, number, 1, "!", error=error, caught=caught)
            uses = [use for arc in candidates for use in arc.declared]
            calls = [call for arc in candidates for call in arc.calls()]
            arc = await _in_scope(visit, lambda visit: _catch(visit, candidates), calls, uses)
        except Exception as second:
            refuse_mistake(second)
            note(error, f"and its catch arc failed: {quoted(second)}")
            object.__setattr__(error, "catch_error", second)  # as release_errors: found by who looks for it
            arc = None
        if arc is not None:
            run.caught += (Caught(state.name, kind, error, arc.target.name),)
            return arc.target
    note_failure(run, state.name, error, phase, attempt=failing[0], arc=failing[1])
    return None


async def _catch(visit: Visit, candidates: list[CompiledArc]) -> CompiledArc | None:
    """Take the first of *candidates* whose condition holds."""
    for arc in candidates:
        if await holds(visit, arc):
            await transform_on_arc(visit, arc)
            return arc
    return None
