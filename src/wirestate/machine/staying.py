"""What a state does while a record stays in it: refuse, transform, decide where to go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wirestate.errors import DeadEndError, RecordRejectedError
from wirestate.machine.compiled import CompiledArc
from wirestate.machine.outcomes import after_transform, reason_of, refusal, truth
from wirestate.machine.plan import Call
from wirestate.machine.run import Run
from wirestate.machine.visit import Visit


async def stay(visit: Visit) -> CompiledArc | None:
    """Do what a state does: refuse, transform, decide where to go."""
    run, state = visit.run, visit.state
    if state.schema is not None or state.early:
        await _check_early(visit)
    for phase in state.phases:
        run.phase = "open"
        await visit.open_for(phase.calls)
        run.phase = phase.name
        if phase.refuses:
            await _validate(visit, phase.calls)
        else:
            await _transform(visit, phase.calls)
    if state.end_test is not None and await _decide(visit, state.end_test):
        return None
    if state.state.is_end:
        return None
    arc = await _choose(visit)
    if arc.transforms:
        await transform_on_arc(visit, arc)
    return arc


async def _check_early(visit: Visit) -> None:
    """Refuse by the schema and by expressions: these need no resource, so none is open yet."""
    run, state = visit.run, visit.state
    reasons = []
    if state.schema is not None:
        run.phase = "schema"
        reason = state.schema(run.data)
        if reason is not None:
            reasons.append(reason)
    run.phase = "validate"
    await _validate(visit, state.early, reasons)


async def _validate(visit: Visit, calls: Sequence[Call], reasons: list[str] | None = None) -> None:
    """Run all validators of a phase, so that all their reasons come together."""
    reasons = [] if reasons is None else reasons
    for call in calls:
        injected = await visit.injected(call)  # a ValueError of a provider is no refusal of the validator
        try:
            result = await visit.call(call, injected)
            reason = refusal(call.name, bool(result) if call.expression else result)
        except Exception as error:  # what does not refuse goes on
            reason = reason_of(error)
            if reason is None:
                raise
        if reason is not None:
            reasons.append(reason)
    if reasons:
        raise RecordRejectedError(reasons)


async def _transform(visit: Visit, calls: Sequence[Call]) -> None:
    """Call one after the other; each result becomes the record."""
    run = visit.run
    direct = (visit.state.data_mode or run.engine.data_mode) == "direct"
    given = None
    if run.pending is not None:  # begun where nothing can wait: the first of what is left was called already
        calls, given = run.pending
        run.pending = None
    for call in calls:
        result = await (visit.call(call) if given is None else given)
        given = None
        if result is not None:
            adopt(run, call, result, direct=direct)


def adopt(run: Run, call: Call, result: Any, *, direct: bool) -> None:
    """Make what a transform returned the record."""
    if type(result) is not dict:
        result = after_transform(call.name, result, run.data)
    data = run.data
    if direct and result is not data:
        fresh = dict(result)  # it may be a view of what is about to be cleared
        data.clear()
        data.update(fresh)
    else:
        run.data = result


async def _decide(visit: Visit, call: Call) -> bool:
    """Ask a condition or an end test; what it needs is opened just before."""
    if not call.expression:
        visit.run.phase = "open"
        await visit.open_for((call,))
    visit.run.phase = "condition"
    return truth(call.name, await visit.call(call))


async def _choose(visit: Visit) -> CompiledArc:
    """Return the first arc whose condition holds; later ones are not evaluated."""
    tried = []
    for arc in visit.state.arcs:
        if await holds(visit, arc):
            return arc
        assert arc.condition is not None, "an arc without a condition always holds"
        tried.append(f"{arc.label}: {arc.condition.name} was false")
    visit.run.phase = "route"
    raise DeadEndError(f"no arc of state {visit.state.name!r} could be taken: {'; '.join(tried)}")


async def holds(visit: Visit, arc: CompiledArc) -> bool:
    """Tell whether the condition of *arc* is true; without one it is."""
    if arc.condition is None:
        return True
    visit.arc = arc  # it stays there if this raises: the error's note names it
    if arc.declared:
        visit.run.phase = "open"
        await visit.open_declared(arc.declared)
    decided = await _decide(visit, arc.condition)
    visit.arc = None
    return decided


async def transform_on_arc(visit: Visit, arc: CompiledArc) -> None:
    """Run the transforms of an arc that was chosen."""
    visit.arc = arc
    visit.run.phase = "open"
    if arc.declared:
        await visit.open_declared(arc.declared)
    await visit.open_for(arc.transforms)
    visit.run.phase = "arc"
    await _transform(visit, arc.transforms)
