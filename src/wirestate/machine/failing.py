"""What goes wrong with a record: its kind, where it was, and what is no matter of the record."""

from __future__ import annotations

import traceback
from collections.abc import Iterable

from wirestate.errors import (
    AsyncInSyncRunError,
    BlockingWaitError,
    FailureEndError,
    LifetimeMismatchError,
    MachineClosedError,
    NotAMappingError,
    NotInjectedError,
    OwnerInUseError,
    RecordRejectedError,
    Reject,
    ReleaseFailedError,
    RunTimeoutError,
    StateTimeoutError,
    StepLimitExceededError,
    listed,
)
from wirestate.injection.wiring import is_marker
from wirestate.machine.plan import Call
from wirestate.machine.results import Kind, Phase
from wirestate.machine.run import Run
from wirestate.resources.failures import attach, note

# Mistakes of the program, not of a record: they are raised, never put into a result.
PROGRAM_MISTAKES = (
    AsyncInSyncRunError,
    BlockingWaitError,
    MachineClosedError,
    OwnerInUseError,
    LifetimeMismatchError,
)

# What Python says of an await, an `async with` and an `async for` of what has no such thing.
AWAITED = ("can't be used in 'await'", "asynchronous context manager protocol", "'async for' requires")


def kind_of(error: BaseException) -> Kind:
    """Tell what went wrong: it decides whether a record is rejected, and which arcs catch it."""
    if isinstance(error, RecordRejectedError | Reject):
        return "reject"
    if isinstance(error, StateTimeoutError):
        return "timeout"
    if isinstance(error, RunTimeoutError | StepLimitExceededError | NotAMappingError):
        return "limit"
    return "error"


def refuse_mistake(error: Exception) -> None:
    """Raise what is a mistake of the program and not of the record."""
    if isinstance(error, PROGRAM_MISTAKES):
        raise error


def note_failure(
    run: Run, state: str, error: BaseException, phase: Phase | None, *, attempt: int = 1, arc: str | None = None
) -> None:
    """End the run with *error*, which gets a note that says where it was."""
    error = not_injected(error) or error
    if isinstance(error, AttributeError | TypeError) and state in run.engine.states:
        note_mix_up(error, run.engine.states[state].calls())
    if kind_of(error) == "limit":
        phase = "limit"
    place = f"in state {state!r}{f', arc {arc!r}' if arc else ''}, attempt {attempt}, phase {phase}"
    if place not in getattr(error, "__notes__", ()):  # one error object may be raised again and again
        note(error, place)
    fail(run, state, error, phase)


def note_mix_up(error: BaseException, calls: Iterable[Call]) -> None:
    """Note on *error* that one of *calls* took what it injects for asynchronous, or for not, if it looks so."""
    forgot, needless = "'coroutine' object" in str(error), any(text in str(error) for text in AWAITED)
    for call in calls if forgot or needless else ():
        names = [step.name for step in call.plan.steps if step.is_async is forgot]
        if not names or (needless and not call.is_async):
            continue
        note = f"{call.name} awaits what {listed(names)} gives, which is not asynchronous: leave out 'await' or 'async'"
        if forgot:
            mend = "await its calls" if call.is_async else "declare it with 'async def', and await"
            note = f"{call.name} gets {listed(names)}, which is asynchronous: {mend}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def not_injected(error: BaseException) -> NotInjectedError | None:
    """Return the error that tells what happened if a function met a marker where its resource should be."""
    marker = getattr(error, "obj", None) if isinstance(error, AttributeError) else None
    if not is_marker(marker) or error.__traceback__ is None:
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    parameter = next((name for name, value in frame.f_locals.items() if value is marker), "a parameter")
    code = frame.f_code
    told = NotInjectedError(
        f"NotInjected [I001]: {frame.f_globals.get('__name__')}.{code.co_qualname} was called with an unresolved "
        f"marker for {parameter!r}.  The machine injects the functions that it names; one that these call is wired by "
        f"its container: container.wire(modules=[…]), or takes the resource as an argument.  "
        f"In a test: with wirestate.testing.injected(container, {code.co_name}) as {code.co_name}: …"
    )
    told.__cause__ = error
    return told


def fail(run: Run, state: str | None, error: BaseException, phase: Phase | None) -> None:
    """End the run with *error*."""
    run.state, run.error, run.phase, run.kind = state, error, phase, kind_of(error)


def failure_of(run: Run) -> BaseException | None:
    """Return why the run did not succeed: its error, or that its end is one for failures."""
    if run.error is None and run.end is not None and not run.end.succeeds:
        caught = run.caught[-1].error if run.caught else None
        run.error, run.phase = caught or FailureEndError(f"the run ended in {run.end.name!r}"), None
    return run.error


def attach_failures(error: BaseException, failures: list[BaseException]) -> None:
    """Attach what releases raised to the error of the body."""
    if failures:
        attach(error, failures)


def release_error(where: str, failures: list[BaseException]) -> ReleaseFailedError:
    """Return the one error for what the releases of *where* raised."""
    return ReleaseFailedError(f"release failed in {where!r}", [f for f in failures if isinstance(f, Exception)])


def release_failure(where: str, failures: list[BaseException]) -> BaseException:
    """Return the same, or the interrupt among it, which goes on as it is."""
    for failure in failures:
        if not isinstance(failure, Exception):
            return failure
    return release_error(where, failures)
