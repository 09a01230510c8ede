"""The one core: take a record from its start to an end, from visit to visit."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from contextvars import ContextVar
from time import monotonic, perf_counter
from typing import Any, NamedTuple

from wirestate.errors import (
    MachineClosedError,
    NotAMappingError,
    RecordInUseError,
    RecordRejectedError,
    RunTimeoutError,
    StepLimitExceededError,
    UnknownStateError,
)
from wirestate.machine.compiled import CompiledState, CompiledStates
from wirestate.machine.copying import deep_copy
from wirestate.machine.definition import DataMode, Machine
from wirestate.machine.failing import (
    attach_failures,
    fail,
    failure_of,
    note_failure,
    refuse_mistake,
    release_error,
)
from wirestate.machine.passing import pass_waiting, refuse_late, visit_plainly, visit_waiting
from wirestate.machine.placing import may_block
from wirestate.machine.results import Outcome, RunResult, run_number
from wirestate.machine.run import Run, RunScope
from wirestate.machine.staying import adopt
from wirestate.machine.visiting import visit_state
from wirestate.resources import inherited
from wirestate.resources.failures import attach
from wirestate.resources.manager import ResourceManager
from wirestate.resources.owners import OwnerScope
from wirestate.resources.scopes import Entry, current
from wirestate.waiting import BLOCKING, ExpiredError, World, drive

_numbers = itertools.count(1)
# Callers' own objects that runs of any machine work on: by identity, and below that by the run that works on it and
# waits for another one, which a function of it began.
_in_use: dict[int | Run, Run] = {}
_inside: ContextVar[Run | None] = ContextVar("wirestate_run", default=None)  # set in the modes that copy nothing


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
        self.data_mode: DataMode = data_mode
        self.start = states[machine.start]
        self.max_path = machine.max_transitions + 1
        self.closed = False
        inherited.forget_at_fork(self)

    def forget_parent(self) -> None:
        """Plan every call anew, in a forked child."""
        _in_use.clear()
        for state in self.states.values():
            state.forget_plans()

    # --- one run -------------------------------------------------------------------------

    def run_blocking(self, record: Any, options: Options = NO_OPTIONS) -> RunResult:
        """Take one record from its start to an end, in this thread; what goes wrong with it is in the result."""
        began = perf_counter()
        run = self._begin(record, BLOCKING, options)
        if run.error is None:
            rest = None
            try:
                rest = self._start(run, options)
                if rest is not None:
                    drive(rest)
                self._let_go(run)
            except BaseException as error:
                self._let_go(run)
                drive(self._rescue(run, rest, error))
                raise
        return self._result(run, began)

    async def run(self, record: Any, world: World, options: Options = NO_OPTIONS) -> RunResult:
        """As :meth:`run_blocking`, in either world."""
        began = perf_counter()
        run = self._begin(record, world, options)
        if run.error is None:
            rest = None
            try:
                rest = self._start(run, options)
                if rest is not None:
                    await rest
                self._let_go(run)
            except BaseException as error:
                self._let_go(run)
                await self._rescue(run, rest, error)
                raise
        return self._result(run, began)

    def _begin(self, record: Any, world: World, options: Options) -> Run:
        """Check what was asked for, and make the run; nothing is opened."""
        if (self.closed or self.manager.closed) and (refusal := self.refusal()) is not None:
            raise refusal
        run = Run(self, next(_numbers), record, world)
        if options is not NO_OPTIONS:
            if options.initial_state is not None and options.initial_state not in self.states:
                raise UnknownStateError(options.initial_state, self.states)
            run.position, run.line = options.position, options.line
        if type(record) is not dict and not isinstance(record, Mapping):
            fail(run, None, NotAMappingError(type(record)), "limit")
            return run
        timeout = self.machine.timeout if options.timeout is None else options.timeout
        if timeout is not None:
            run.timeout = timeout
            run.deadline = run.limit = monotonic() + timeout
        if self.data_mode == "copy":
            try:
                run.data = deep_copy(record)
            except Exception as error:  # whatever is in the record may refuse to be copied
                error.add_note("the record could not be copied; data_mode 'reference' and 'direct' need no copy")
                fail(run, None, error, "read")
        elif self.data_mode == "direct" and type(record) is not dict and not isinstance(record, MutableMapping):
            raise TypeError(f"data_mode 'direct' writes into the record, and {type(record).__name__} is read-only")
        return run

    def _start(self, run: Run, options: Options) -> Coroutine[Any, Any, None] | None:
        """Go as far as nothing waits; return what is left to do."""
        if self.data_mode != "copy":
            self._hold(run)
        state = self.start if options.initial_state is None else self.states[options.initial_state]
        if not self.scoped and options.owner_id is None:
            following = self._walk_plainly(run, state)
            return None if following is None else self._bounded(run, following)
        scope = self._open_owner(run, options.owner_id)
        scope.before = before = current.get()  # every visit makes itself the current scope
        try:
            rest = self._walk_plainly(run, state)
        except BaseException as error:
            current.set(before)
            return self._abandon(run, error)
        if rest is None and not scope.exits and scope.is_idle and not scope.interrupted:
            current.set(before)
            self.manager.forget(scope)
            return None
        current.set(scope)
        return self._run_owned(run, rest)

    def _open_owner(self, run: Run, owner_id: str | None) -> OwnerScope:
        if owner_id is not None:
            run.owner_id = owner_id
            scope = self.manager.open_owner(owner_id)
        else:
            scope = run.scope = RunScope(self.manager, run.number)
            self.manager.owners[run.number] = scope
        run.scope = scope
        scope.guest_of = self
        return scope

    def refusal(self) -> MachineClosedError | None:
        """Return why no run may begin any more, None while one may."""
        if self.closed:
            return MachineClosedError("this machine was closed; build a new one")
        if self.manager.closed:
            return MachineClosedError("the container of this machine was closed; build a new machine")
        return None

    def close(self) -> None:
        """Begin no run and no state any more."""
        self.closed = True
        self.max_path = 0  # so that every state is asked whether it may begin

    async def end_runs(self, world: World) -> None:
        """End every run that is inside, and roll back what it holds."""
        await self.manager.expel(self._owners(), world)

    def async_names(self) -> list[str]:
        """Names of what runs hold that can only be ended with an event loop."""
        return [name for owner in self._owners() for name in owner.async_names()]

    def _owners(self) -> list[OwnerScope]:
        return [owner for owner in list(self.manager.owners.values()) if owner.guest_of is self]

    async def _abandon(self, run: Run, error: BaseException) -> None:
        """End the owner scope of a run that was interrupted, and raise what interrupted it."""
        assert run.scope is not None, "only owned runs are abandoned"
        attach_failures(error, await run.scope._leave(error, run.world))
        raise error

    def _hold(self, run: Run) -> None:
        """Refuse a record that another run works on, unless a function of that one, which waits, began this run."""
        run.outer = _inside.get()
        run.slot = id(run.data)
        while (holder := _in_use.setdefault(run.slot, run)) is not run:
            if holder.engine is self or holder not in run.outers():
                raise RecordInUseError("this record object is in another run already; use data_mode 'copy'")
            run.slot = holder
        _inside.set(run)

    def _let_go(self, run: Run) -> None:
        """Let other runs have the record; not by ``finally``, which an interrupt would leave in its middle."""
        if run.slot is not None and _in_use.get(run.slot) is run:
            del _in_use[run.slot]
            _inside.set(run.outer)

    async def _rescue(self, run: Run, rest: Coroutine[Any, Any, None] | None, error: BaseException) -> None:
        """End the owner scope if an interrupt came in between two steps of its regular end."""
        scope = run.scope
        if scope is None or self.manager.owners.get(scope.key) is not scope:
            return
        if rest is not None:
            rest.close()  # if it has not begun, nobody will drive it
        inner = current.get()
        while inner is not None and inner.owner is scope:
            inner = inner.before
        current.set(inner)
        attach_failures(error, await scope._leave(error, run.world))

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
        failures = await scope._leave(failure_of(run), run.world)
        if failures:
            self._owner_failed(run, scope, failures)

    def _owner_failed(self, run: Run, scope: OwnerScope, failures: list[BaseException]) -> None:
        interrupt = next((failure for failure in failures if not isinstance(failure, Exception)), None)
        if interrupt is not None:
            raise interrupt
        if run.error is not None:
            attach(run.error, failures)
            return
        fail(run, run.path[-1] if run.path else None, release_error(scope.owner_id, failures), "release")

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
            note_failure(run, run.path[-1], error, "limit")

    async def _walk(self, run: Run, state: CompiledState) -> None:
        """Visit one state after the other, until an end or a failure."""
        following: CompiledState | None = state
        while following is not None:
            state = following
            if run.pending is not None:  # entered already, in a scope (which has begun) or without
                rest = pass_waiting(run, state, *run.pending) if run.begun is None else visit_state(run, state)
                following = await rest
            elif state.trivial is not None:
                following = self._walk_plainly(run, state)
                continue
            elif not self._may_enter(run, state):
                return
            else:
                run.path.append(state.name)
                if state.trivial_waiting is not None:
                    following = await pass_waiting(run, state, state.trivial_waiting, None)
                elif state.simple_waiting and run.begun is None and not may_block(state.simple_waiting):
                    following = await visit_waiting(run, state, state.simple_waiting)
                else:
                    following = await visit_state(run, state)
            if following is None and run.error is None:
                run.end = state

    def _walk_plainly(self, run: Run, state: CompiledState) -> CompiledState | None:
        """Go through states that are nothing but calls and one way on; return the first that is more.

        No attempt, no arc to choose and no coroutine: five such states cost what five calls cost, and 2 us.
        """
        path, data = run.path, run.data
        direct = self.data_mode == "direct"
        timed = run.deadline is not None
        while True:
            calls = state.trivial
            if calls is None and not state.simple:
                return state
            if (timed or len(path) >= self.max_path) and not self._may_enter(run, state):
                return None
            if calls is None:
                if not visit_plainly(run, state, state.simple, direct):
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
                            adopt(run, call, result, direct=direct)
                            data = run.data
                    if timed:
                        refuse_late(run, state)
                except Exception as error:
                    refuse_mistake(error)
                    note_failure(run, state.name, error, "transform")
                    return None
            if (following := state.next) is None:
                run.end = state
                return None
            state = following

    def _may_enter(self, run: Run, state: CompiledState) -> bool:
        """Check the limits before anything opens; a limit that is reached ends the run."""
        error = self._over_limit(run, state)
        if error is None:
            return True
        note_failure(run, state.name, error, "limit")
        return False

    def _over_limit(self, run: Run, state: CompiledState) -> Exception | None:
        if self.closed:
            return MachineClosedError(f"the machine was closed; state {state.name!r} did not begin")
        if run.deadline is not None and monotonic() > run.deadline:
            return RunTimeoutError(f"the run took longer than its {run.timeout:g} s")
        if len(run.path) == self.max_path:
            return StepLimitExceededError(self.machine.max_transitions)
        return None

    # --- the end -------------------------------------------------------------------------

    def _result(self, run: Run, began: float) -> RunResult:
        path, end = run.path, run.end
        if run.error is not None or end is None or not end.succeeds:
            return self._unsuccessful(run, began)
        placed = (perf_counter() - began, run.number, run.owner_id, run.position, run.line, end.emits)
        return RunResult(("done", path[-1], run.data, path, None, None, None, (), run.caught, *placed))

    def _unsuccessful(self, run: Run, began: float) -> RunResult:
        outcome: Outcome = "failed"
        reasons: tuple[str, ...] = ()
        error = failure_of(run)
        if run.kind == "reject":
            outcome = "rejected"
            reasons = error.reasons if isinstance(error, RecordRejectedError) else (str(error),)
        emit = run.end is not None and run.end.emits
        final = run.path[-1] if run.path else None
        values = (outcome, final, run.data, run.path, error, run.state, run.phase, reasons, run.caught)
        took = perf_counter() - began
        return RunResult((*values, took, run.number, run.owner_id, run.position, run.line, emit))
