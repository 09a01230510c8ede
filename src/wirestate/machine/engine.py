"""The one core: enter a state, open, call, choose an arc, leave."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Coroutine, Mapping, MutableMapping, Sequence
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from wirestate.errors import (
    AsyncInSyncRunError,
    AsyncResourceError,
    BlockingWaitError,
    DeadEndError,
    FailureEndError,
    FunctionResultError,
    LifetimeMismatchError,
    MachineClosedError,
    NotAMappingError,
    OwnerInUseError,
    RecordInUseError,
    RecordRejectedError,
    Reject,
    ReleaseFailedError,
    RunTimeoutError,
    StateTimeoutError,
    StepLimitExceededError,
    UnknownStateError,
)
from wirestate.injection.plans import EMPTY
from wirestate.machine.compiled import CompiledArc, CompiledState, CompiledStates
from wirestate.machine.copying import deep_copy
from wirestate.machine.definition import DataMode, Machine
from wirestate.machine.outcomes import after_transform, reason_of, refusal, truth
from wirestate.machine.plan import Call
from wirestate.machine.results import Caught, Kind, Outcome, RunResult, run_number
from wirestate.machine.retries import attempts
from wirestate.machine.run import Run, RunScope
from wirestate.machine.visit import SETTLED, Visit
from wirestate.resources.failures import attach
from wirestate.resources.manager import ResourceManager
from wirestate.resources.owners import OwnerScope, StateScope
from wirestate.resources.scopes import Entry, current
from wirestate.waiting import BLOCKING, ExpiredError, World, drive

# Mistakes of the program, not of a record: they are raised, never put into a result.
PROGRAM_MISTAKES = (
    AsyncInSyncRunError,
    BlockingWaitError,
    MachineClosedError,
    OwnerInUseError,
    LifetimeMismatchError,
)
_numbers = itertools.count(1)


class Options(NamedTuple):
    """What a caller may say about one run."""

    initial_state: str | None = None
    timeout: float | None = None
    owner_id: str | None = None
    position: int | None = None
    line: int | None = None


NO_OPTIONS = Options()


class Engine:
    """Run records through one compiled machine."""

    def __init__(
        self,
        machine: Machine,
        states: CompiledStates,
        manager: ResourceManager,
        entry: Callable[[str], Entry],
        *,
        scoped: bool,
        data_mode: DataMode,
    ) -> None:
        self.machine = machine
        self.states = states
        self.manager = manager
        manager.key_of = run_number  # a run is listed by its number: its name is made only when somebody asks
        self.entry = entry
        self.scoped = scoped  # somebody may ask for a scoped resource: every visit gets a scope
        self.data_mode = data_mode
        self.start = states[machine.start]
        self.max_path = machine.max_transitions + 1
        self._in_use: dict[int, Run] = {}  # records of runs in reference mode, by identity

    # --- one run -------------------------------------------------------------------------

    def run_blocking(self, record: Any, options: Options = NO_OPTIONS) -> RunResult:
        """Take one record from its start to an end, in this thread; what goes wrong with it is in the result."""
        began = perf_counter()
        run = self._begin(record, BLOCKING, options)
        if run.error is None:
            try:
                rest = self._start(run, options)
                if rest is not None:
                    drive(rest)
            finally:
                if self.data_mode == "reference":
                    del self._in_use[id(record)]
        return self._result(run, began)

    async def run(self, record: Any, world: World, options: Options = NO_OPTIONS) -> RunResult:
        """As :meth:`run_blocking`, in either world."""
        began = perf_counter()
        run = self._begin(record, world, options)
        if run.error is None:
            try:
                rest = self._start(run, options)
                if rest is not None:
                    await rest
            finally:
                if self.data_mode == "reference":
                    del self._in_use[id(record)]
        return self._result(run, began)

    def _begin(self, record: Any, world: World, options: Options) -> Run:
        """Check what was asked for, and make the run; nothing is opened."""
        if self.manager.closed:
            raise MachineClosedError("the container of this machine was closed; build a new machine")
        run = Run(self, next(_numbers), record, world)
        if options is not NO_OPTIONS:
            if options.initial_state is not None and options.initial_state not in self.states:
                raise UnknownStateError(options.initial_state, self.states)
            run.position, run.line = options.position, options.line
        if type(record) is not dict and not isinstance(record, Mapping):
            self._fail(run, None, NotAMappingError(type(record)), "limit")
            return run
        timeout = self.machine.timeout if options.timeout is None else options.timeout
        if timeout is not None:
            run.timeout = timeout
            run.deadline = run.limit = monotonic() + timeout
        if self.data_mode == "copy":
            run.data = deep_copy(record)
        elif self.data_mode == "direct":
            if type(record) is not dict and not isinstance(record, MutableMapping):
                raise TypeError(f"data_mode 'direct' writes into the record, and {type(record).__name__} is read-only")
        elif self._in_use.setdefault(id(record), run) is not run:
            raise RecordInUseError("this record object is in another run already; use data_mode 'copy'")
        return run

    def _start(self, run: Run, options: Options) -> Coroutine[Any, Any, None] | None:
        """Go as far as nothing waits; return what is left to do."""
        state = self.start if options.initial_state is None else self.states[options.initial_state]
        if not self.scoped and options.owner_id is None:
            following = self._walk_plainly(run, state)
            return None if following is None else self._bounded(run, following)
        scope = self._open_owner(run, options.owner_id)
        scope.before = before = current.get()
        current.set(scope)
        try:
            rest = self._walk_plainly(run, state)
        except BaseException as error:
            current.set(before)
            return self._abandon(run, error)
        if rest is None and scope.is_idle:
            current.set(before)
            self.manager.forget(scope)
            return None
        return self._run_owned(run, rest)

    def _open_owner(self, run: Run, owner_id: str | None) -> OwnerScope:
        if owner_id is not None:
            run.owner_id = owner_id
            scope = self.manager.open_owner(owner_id)
        else:
            scope = RunScope(self.manager, run.number)
            self.manager.owners[run.number] = scope
        run.scope = scope
        return scope

    async def _abandon(self, run: Run, error: BaseException) -> None:
        """End the owner scope of a run that was interrupted, and raise what interrupted it."""
        assert run.scope is not None, "only owned runs are abandoned"
        attach_failures(error, await run.scope._leave(error, run.world))
        raise error

    async def _run_owned(self, run: Run, state: CompiledState | None) -> None:
        """Run on inside the owner scope, which ends with the outcome of the run."""
        scope = run.scope
        assert scope is not None, "the owner scope was opened"
        try:
            if state is not None:
                await self._bounded(run, state)
        except BaseException as error:
            current.set(scope.before)
            await self._abandon(run, error)
        current.set(scope.before)
        failures = await scope._leave(self._failure_of(run), run.world)
        if failures:
            self._owner_failed(run, scope, failures)

    def _owner_failed(self, run: Run, scope: OwnerScope, failures: list[BaseException]) -> None:
        interrupt = next((failure for failure in failures if not isinstance(failure, Exception)), None)
        if interrupt is not None:
            raise interrupt
        if run.error is not None:
            attach(run.error, failures)
            return
        self._fail(run, run.path[-1] if run.path else None, _release_error(scope.owner_id, failures), "release")

    async def _bounded(self, run: Run, state: CompiledState) -> None:
        """Walk, and stop when the run's time is over (tasks are interrupted, threads look at the clock)."""
        if run.timeout is None or not run.world.is_async:
            await self._walk(run, state)
            return
        try:
            await run.world.bounded(self._walk(run, state), run.timeout)
        except ExpiredError as late:
            error = RunTimeoutError(f"the run took longer than its {run.timeout:g} s, in state {run.path[-1]!r}")
            error.__cause__ = late
            self._note_failure(run, run.path[-1], error, "limit")

    async def _walk(self, run: Run, state: CompiledState) -> None:
        """Visit one state after the other, until an end or a failure."""
        following: CompiledState | None = state
        while following is not None:
            state = following
            if run.pending is not None:  # entered already, in a scope (which has begun) or without
                rest = self._pass(run, state, *run.pending) if run.begun is None else self._visit(run, state)
                following = await rest
            elif state.trivial is not None:
                following = self._walk_plainly(run, state)
                continue
            elif not self._may_enter(run, state):
                return
            else:
                run.path.append(state.name)
                if state.trivial_waiting is not None:
                    following = await self._pass(run, state, state.trivial_waiting, None)
                else:
                    following = await self._visit(run, state)
            if following is None and run.error is None:
                run.end = state

    def _walk_plainly(self, run: Run, state: CompiledState) -> CompiledState | None:
        """Go through states that are nothing but calls and one way on; return the first that is more.

        No attempt, no arc to choose and no coroutine: five such states cost what five calls cost, and 2 us.
        """
        path, data = run.path, run.data
        direct = self.data_mode == "direct"
        max_path, timed = self.max_path, run.deadline is not None
        while True:
            calls = state.trivial
            if calls is None and state.simple is None:
                return state
            if (timed or len(path) >= max_path) and not self._may_enter(run, state):
                return None
            if calls is None:
                if not self._visit_plainly(run, state, direct):
                    return None if run.error is not None else state
                data = run.data
            else:
                path.append(state.name)
                try:
                    for function, call in calls:
                        result = function(data)
                        if result is not None:
                            if type(result) is not dict and run.world.is_async and inspect.isawaitable(result):
                                run.pending = [pair[1] for pair in calls[calls.index((function, call)) :]], result
                                return state
                            self._adopt(run, call, result, direct)
                            data = run.data
                    if timed:
                        self._refuse_late(run, state)
                except Exception as error:
                    self._refuse_mistake(error)
                    self._note_failure(run, state.name, error, "transform")
                    return None
            if (following := state.next) is None:
                run.end = state
                return None
            state = following

    def _visit_plainly(self, run: Run, state: CompiledState, direct: bool) -> bool:
        """Visit a state that only calls, with injected values; False if it failed, or has to wait (``run.begun``)."""
        owner, calls = run.scope, state.simple
        assert owner is not None and calls is not None, "the caller has looked"
        scope = StateScope(owner, state.name, owner.count(state.name))
        held = scope.held
        scope.before = owner  # not restored between plain visits: nothing runs there
        current.set(scope)
        run.phase = "open"
        try:
            for call in calls:
                plan = call.plan
                if plan is not EMPTY:
                    for provider, overriding in plan.watch:  # unchanged() unrolled
                        if provider.last_overriding is not overriding:
                            plan = call.fresh_plan()
                            break
                    if plan.suspends or not scope.open_quickly(plan.steps):
                        run.begun = scope
                        return False
            run.path.append(state.name)
            run.phase = "transform"
            for call in calls:
                plan = call.plan
                if plan.others:
                    injected = plan.injected(scope)
                else:  # the same unrolled; a loop, since a comprehension is a call
                    injected = {}
                    for name, recipe in plan.own:
                        injected[name] = held[recipe]
                result = call.target(run.data, **injected)
                if result is not None:
                    if type(result) is not dict and run.world.is_async and inspect.isawaitable(result):
                        run.begun, run.pending = scope, (calls[calls.index(call) :], result)
                        return False
                    self._adopt(run, call, result, direct)
            if run.deadline is not None:
                self._refuse_late(run, state)
        except BaseException as error:
            if run.path[-1:] != [state.name] or run.phase == "open":
                run.path.append(state.name)
            self._end_plainly(run, scope, error)
            return False
        failures: list[BaseException] = []
        if not scope.end_now(None, failures):
            raise AsyncResourceError(f"{scope.async_names()[0]!r} was opened asynchronously in a synchronous state")
        scope.unlist()
        if failures:
            run.phase = "release"
            unreleased = _release_failure(scope.owner_id, failures)
            if not isinstance(unreleased, Exception):
                raise unreleased
            self._note_failure(run, state.name, unreleased, "release")
            return False
        return True

    def _end_plainly(self, run: Run, scope: StateScope, error: BaseException) -> None:
        """End the scope of a plain visit that failed; what is no failure of the record is raised again."""
        failures: list[BaseException] = []
        scope.end_now(error, failures)
        scope.unlist()
        current.set(scope.before)
        attach_failures(error, failures)
        if not isinstance(error, Exception) or isinstance(error, PROGRAM_MISTAKES):
            raise error
        self._note_failure(run, scope.state_name, error, run.phase)

    async def _pass(self, run: Run, state: CompiledState, calls: Sequence[Call], given: Any) -> CompiledState | None:
        """Go through one state that is nothing but calls, some of which must be awaited, and one way on.

        *given* is what the first of *calls* returned, if it was called already.
        """
        direct = self.data_mode == "direct"
        run.pending = None
        try:
            for call in calls:
                result = call.target(run.data) if given is None else given
                given = None
                if call.is_async or (type(result) not in SETTLED and inspect.isawaitable(result)):
                    result = await result
                if result is not None:
                    self._adopt(run, call, result, direct)
            if run.deadline is not None:
                self._refuse_late(run, state)
        except Exception as error:
            self._refuse_mistake(error)
            self._note_failure(run, state.name, error, "transform")
            return None
        return state.next

    @staticmethod
    def _refuse_mistake(error: Exception) -> None:
        """Raise what is a mistake of the program and not of the record."""
        if isinstance(error, PROGRAM_MISTAKES):
            raise error

    @staticmethod
    def _refuse_late(run: Run, state: CompiledState) -> None:
        if run.deadline is not None and monotonic() > run.deadline:
            raise RunTimeoutError(f"the run took longer than its {run.timeout:g} s, in state {state.name!r}")

    def _may_enter(self, run: Run, state: CompiledState) -> bool:
        """Check the limits before anything opens; a limit that is reached ends the run."""
        error = self._over_limit(run)
        if error is None:
            return True
        self._note_failure(run, state.name, error, "limit")
        return False

    def _over_limit(self, run: Run) -> Exception | None:
        if run.deadline is not None and monotonic() > run.deadline:
            return RunTimeoutError(f"the run took longer than its {run.timeout:g} s")
        if len(run.path) == self.max_path:
            return StepLimitExceededError(self.machine.max_transitions)
        return None

    @staticmethod
    def _adopt(run: Run, call: Call, result: Any, direct: bool) -> None:
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

    # --- one visit -----------------------------------------------------------------------

    async def _visit(self, run: Run, state: CompiledState) -> CompiledState | None:
        """Visit with retries and catch arcs; return the next state, None at an end or a failure."""
        number = run.count(state.name) if run.begun is None else run.begun.number
        entry = deep_copy(run.data) if state.keeps_entry else None
        try:
            if state.state.retry is None:
                arc = await self._attempt(run, state, number, 1)
            else:
                arc = await attempts(
                    state.state.retry,
                    state.retry_on,
                    lambda attempt: self._again(run, state, number, attempt, entry),
                    world=run.world,
                    deadline=run.deadline,
                    may_retry=lambda error: self._may_retry(run, error),
                )
        except Exception as error:
            self._refuse_mistake(error)
            return await self._failed(run, state, number, error, entry)
        except BaseException:  # interrupted: nobody goes on with the record, but in two modes it is the caller's
            if state.keeps_entry:
                self._restore(run, entry)
            raise
        return None if arc is None else arc.target

    async def _again(
        self, run: Run, state: CompiledState, number: int, attempt: int, entry: Any
    ) -> CompiledArc | None:
        if attempt > 1:
            self._restore(run, entry)
        return await self._attempt(run, state, number, attempt)

    def _restore(self, run: Run, entry: Any) -> None:
        """Bring the record back to what it was when it entered the state."""
        if self.data_mode == "direct":
            fresh = deep_copy(entry)
            run.data.clear()
            run.data.update(fresh)
        else:
            run.data = deep_copy(entry)

    @staticmethod
    def _may_retry(run: Run, error: BaseException) -> bool:
        if kind_of(error) in ("reject", "limit") or isinstance(error, (*PROGRAM_MISTAKES, FunctionResultError)):
            return False
        return run.phase not in ("route", "release")

    async def _attempt(self, run: Run, state: CompiledState, number: int, attempt: int) -> CompiledArc | None:
        seconds = state.state.timeout
        if seconds is None:
            return await self._in_scope(run, state, number, attempt, "")
        before = run.limit
        late = monotonic() + seconds
        run.limit = late if before is None else min(before, late)

        async def stay_in_time(visit: Visit) -> CompiledArc | None:
            # Leaving is not part of it: a commit that was begun is not interrupted.
            try:
                return await run.world.bounded(self._stay(visit), seconds)
            except ExpiredError as expired:
                raise visit.state_timeout() from expired

        try:
            return await self._in_scope(run, state, number, attempt, "", stay_in_time)
        finally:
            run.limit = before

    async def _in_scope(
        self,
        run: Run,
        state: CompiledState,
        number: int,
        attempt: int,
        mark: str,
        stay: Callable[[Visit], Any] | None = None,
        **about: Any,
    ) -> CompiledArc | None:
        """Open the bracket of a visit, stay in it, and close it with the outcome."""
        owner = run.scope
        scope = None
        if owner is not None:
            scope = run.begun
            if scope is None:
                scope = StateScope(owner, state.name, number)
                scope.before = owner
                if mark or attempt > 1:
                    scope.attempt = mark or f".{attempt}"
            run.begun = None
            before = scope.before
            current.set(scope)
        visit = Visit(run, state, number, attempt, scope, **about)
        old = run.data
        if state.data_mode == "copy":
            run.data = deep_copy(old)
        try:
            arc: CompiledArc | None = await (self._stay(visit) if stay is None else stay(visit))
            if run.limit is not None:
                visit.check_time()
        except BaseException as error:
            if state.data_mode == "copy":
                run.data = old
            run.failing = attempt, visit.arc_label
            raised = self._in_time(visit, error)
            if scope is not None:
                current.set(before)
                attach_failures(raised, await scope._leave(raised, run.world))
            if raised is error:
                raise
            raise raised from error
        finally:
            visit.expire()
        if scope is not None:
            current.set(before)
            failures: list[BaseException] = []
            if not scope.end_now(None, failures):
                failures += await scope.end(None, run.world)
            scope.unlist()
            if failures:
                if state.data_mode == "copy":
                    run.data = old
                run.phase, run.failing = "release", (attempt, None)
                raise _release_failure(scope.owner_id, failures)
        if self.data_mode == "direct" and run.data is not old:  # a state of mode copy: adopt what it worked on
            fresh = dict(run.data)
            old.clear()
            old.update(fresh)
            run.data = old
        return arc

    @staticmethod
    def _in_time(visit: Visit, error: BaseException) -> BaseException:
        """A wait that ended because the run's or the attempt's time was over is late, not unavailable."""
        if isinstance(error, TimeoutError) and not isinstance(error, RunTimeoutError | StateTimeoutError):
            try:
                visit.check_time()
            except (RunTimeoutError, StateTimeoutError) as late:
                return late
        return error

    async def _stay(self, visit: Visit) -> CompiledArc | None:
        """Do what a state does: refuse, transform, decide where to go."""
        run, state = visit.run, visit.state
        if state.schema is not None or state.early:
            await self._check_early(visit)
        for phase in state.phases:
            run.phase = "open"
            await visit.open_for(phase.calls)
            run.phase = phase.name
            if phase.refuses:
                await self._validate(visit, phase.calls)
            else:
                await self._transform(visit, phase.calls, write_back=True)
        if state.end_test is not None and await self._decide(visit, state.end_test):
            return None
        if state.state.is_end:
            return None
        arc = await self._choose(visit)
        if arc.transforms:
            await self._transform_on_arc(visit, arc)
        return arc

    async def _check_early(self, visit: Visit) -> None:
        """Refuse by the schema and by expressions: these need no resource, so none is open yet."""
        run, state = visit.run, visit.state
        reasons = []
        if state.schema is not None:
            run.phase = "schema"
            reason = state.schema(run.data)
            if reason is not None:
                reasons.append(reason)
        run.phase = "validate"
        await self._validate(visit, state.early, reasons)

    @staticmethod
    async def _validate(visit: Visit, calls: tuple[Call, ...], reasons: list[str] | None = None) -> None:
        """Run all validators of a phase, so that all their reasons come together."""
        reasons = [] if reasons is None else reasons
        for call in calls:
            try:
                result = await visit.call(call)
                reason = refusal(call.name, bool(result) if call.expression else result)
            except Exception as error:  # what does not refuse goes on
                reason = reason_of(error)
                if reason is None or isinstance(error, PROGRAM_MISTAKES):
                    raise
            if reason is not None:
                reasons.append(reason)
        if reasons:
            raise RecordRejectedError(reasons)

    async def _transform(self, visit: Visit, calls: tuple[Call, ...], *, write_back: bool) -> None:
        run = visit.run
        direct = write_back and (visit.state.data_mode or self.data_mode) == "direct"
        given = None
        if run.pending is not None:
            calls, given = run.pending
            run.pending = None
        for call in calls:
            result = await (visit.call(call) if given is None else given)
            given = None
            if result is not None:
                self._adopt(run, call, result, direct)

    async def _decide(self, visit: Visit, call: Call) -> bool:
        if not call.expression:
            visit.run.phase = "open"
            await visit.open_for((call,))
        visit.run.phase = "condition"
        return truth(call.name, await visit.call(call))

    async def _choose(self, visit: Visit) -> CompiledArc:
        """Return the first arc whose condition holds; later ones are not evaluated."""
        tried = []
        for arc in visit.state.arcs:
            if await self._holds(visit, arc):
                return arc
            assert arc.condition is not None, "an arc without a condition always holds"
            tried.append(f"{arc.label}: {arc.condition.name} was false")
        visit.run.phase = "route"
        raise DeadEndError(f"no arc of state {visit.state.name!r} could be taken: {'; '.join(tried)}")

    async def _holds(self, visit: Visit, arc: CompiledArc) -> bool:
        if arc.condition is None:
            return True
        visit.arc = arc  # it stays there if this raises: the error's note names it
        if arc.declared:
            visit.run.phase = "open"
            await visit.open_declared(arc.declared)
        holds = await self._decide(visit, arc.condition)
        visit.arc = None
        return holds

    async def _transform_on_arc(self, visit: Visit, arc: CompiledArc) -> None:
        visit.arc = arc
        visit.run.phase = "open"
        if arc.declared:
            await visit.open_declared(arc.declared)
        await visit.open_for(arc.transforms)
        visit.run.phase = "arc"
        await self._transform(visit, arc.transforms, write_back=True)

    # --- failures ------------------------------------------------------------------------

    async def _failed(
        self, run: Run, state: CompiledState, number: int, error: Exception, entry: Any
    ) -> CompiledState | None:
        """Restore the record, then look for a catch arc; without one the run ends."""
        phase, failing = run.phase, run.failing
        if state.keeps_entry:
            self._restore(run, entry)
        kind = kind_of(error)
        candidates = [arc for arc in state.catch_arcs if arc.catches(kind)]
        candidates.sort(key=lambda arc: (-arc.catches(kind), -arc.arc.priority))
        if candidates:
            caught = Caught(state.name, kind, error, "")
            try:
                arc = await self._in_scope(
                    run, state, number, 1, "!", lambda visit: self._catch(visit, candidates), error=error, caught=caught
                )
            except Exception as second:
                self._refuse_mistake(second)
                error.add_note(f"and its catch arc failed: {type(second).__name__}: {second}")
                error.catch_error = second  # type: ignore[attr-defined]  # as release_errors: found by who looks for it
                arc = None
            if arc is not None:
                run.caught += (Caught(state.name, kind, error, arc.target.name),)
                return arc.target
        self._note_failure(run, state.name, error, phase, *failing)
        return None

    async def _catch(self, visit: Visit, candidates: list[CompiledArc]) -> CompiledArc | None:
        for arc in candidates:
            if await self._holds(visit, arc):
                await self._transform_on_arc(visit, arc)
                return arc
        return None

    def _note_failure(
        self, run: Run, state: str, error: BaseException, phase: Any, attempt: int = 1, arc: str | None = None
    ) -> None:
        if kind_of(error) == "limit":
            phase = "limit"
        note = f"in state {state!r}{f', arc {arc!r}' if arc else ''}, attempt {attempt}, phase {phase}"
        if note not in getattr(error, "__notes__", ()):  # one error object may be raised again and again
            error.add_note(note)
        self._fail(run, state, error, phase)

    @staticmethod
    def _fail(run: Run, state: str | None, error: BaseException, phase: Any) -> None:
        run.state, run.error, run.phase, run.kind = state, error, phase, kind_of(error)

    # --- the end -------------------------------------------------------------------------

    def _result(self, run: Run, began: float) -> RunResult:
        path, end = run.path, run.end
        if run.error is not None or end is None or not end.succeeds:
            return self._unsuccessful(run, began)
        placed = (perf_counter() - began, run.number, run.owner_id, run.position, run.line, end.emits)
        return RunResult(("done", path[-1], run.data, path, None, None, None, (), run.caught, *placed))

    @staticmethod
    def _failure_of(run: Run) -> BaseException | None:
        """Return why the run did not succeed: its error, or that its end is one for failures."""
        if run.error is None and run.end is not None and not run.end.succeeds:
            caught = run.caught[-1].error if run.caught else None
            run.error, run.phase = caught or FailureEndError(f"the run ended in {run.end.name!r}"), None
        return run.error

    def _unsuccessful(self, run: Run, began: float) -> RunResult:
        outcome: Outcome = "failed"
        reasons: tuple[str, ...] = ()
        error = self._failure_of(run)
        if run.kind == "reject":
            outcome = "rejected"
            reasons = error.reasons if isinstance(error, RecordRejectedError) else (str(error),)
        emit = run.end is not None and run.end.emits
        final = run.path[-1] if run.path else None
        values = (outcome, final, run.data, run.path, error, run.state, run.phase, reasons, run.caught)
        took = perf_counter() - began
        return RunResult((*values, took, run.number, run.owner_id, run.position, run.line, emit))


def kind_of(error: BaseException) -> Kind:
    """Tell what went wrong: it decides whether a record is rejected, and which arcs catch it."""
    if isinstance(error, RecordRejectedError | Reject):
        return "reject"
    if isinstance(error, StateTimeoutError):
        return "timeout"
    if isinstance(error, RunTimeoutError | StepLimitExceededError | NotAMappingError):
        return "limit"
    return "error"


def attach_failures(error: BaseException, failures: list[BaseException]) -> None:
    """Attach what releases raised to the error of the body."""
    if failures:
        attach(error, failures)


def _release_error(where: str, failures: list[BaseException]) -> ReleaseFailedError:
    return ReleaseFailedError(f"release failed in {where!r}", [f for f in failures if isinstance(f, Exception)])


def _release_failure(where: str, failures: list[BaseException]) -> BaseException:
    for failure in failures:
        if not isinstance(failure, Exception):
            return failure
    return _release_error(where, failures)
