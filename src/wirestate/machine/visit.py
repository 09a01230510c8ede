"""One attempt at one visit: its scope, its calls, its resources."""

from __future__ import annotations

import inspect
from asyncio import AbstractEventLoop, CancelledError, run_coroutine_threadsafe
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any

from wirestate.errors import (
    AsyncInSyncRunError,
    BlockingWaitError,
    NoActiveScopeError,
    ResourceError,
    RunTimeoutError,
    StateTimeoutError,
)
from wirestate.injection.plans import EMPTY, Plan
from wirestate.machine.compiled import CompiledArc, CompiledState
from wirestate.machine.context import DeclaredResources, FunctionContext
from wirestate.machine.definition import ResourceUse
from wirestate.machine.plan import Argument, Call, refuse_session, view
from wirestate.machine.run import Run
from wirestate.resources.owners import StateScope
from wirestate.resources.recipes import LIFETIME_WORDS, Recipe
from wirestate.resources.scopes import MISSING, Scope, current
from wirestate.resources.threads import Threads
from wirestate.waiting import running_loop

SETTLED = frozenset({dict, bool, type(None)})  # the types of nearly all results: none of them is awaitable


class Visit:
    """What one attempt holds; also what a FunctionContext reads."""

    __slots__ = (
        "_awaited",
        "_contexts",
        "_declared",
        "_found",
        "_plans",
        "arc",
        "attempt",
        "cancelled",
        "caught",
        "error",
        "loop",
        "number",
        "run",
        "scope",
        "state",
        "threads",
    )

    def __init__(
        self,
        run: Run,
        state: CompiledState,
        number: int,
        attempt: int,
        scope: StateScope | None,
        *,
        error: BaseException | None = None,
        caught: Any = None,
    ) -> None:
        self.run = run
        self.state = state
        self.number = number
        self.attempt = attempt
        self.scope = scope
        self.error = error
        self.caught = caught  # Any: what expressions of catch arcs read as ``error``
        self.arc: CompiledArc | None = None
        self.threads: Threads | None = None  # where plain functions run that stand beside asynchronous ones
        self.loop: AbstractEventLoop | None = None  # of the run, where the visit is in a thread
        self.cancelled = False  # its run was, while it is in a thread
        self._awaited: Future[Any] | None = None  # Any: what a function gave to be awaited
        # What the state declares is opened with its first function; a catch arc opens only what is its own.
        self._declared = state.declared if error is None else ()
        self._found: dict[str, Any] = {}  # Any: the declared resources
        self._plans: dict[Call, Plan] = {}  # as each was opened: an override must not change it before the call
        self._contexts: list[FunctionContext] = []

    # --- calling -----------------------------------------------------------------------

    async def injected(self, call: Call) -> dict[str, Any]:
        """Return the injected arguments of one function, whose needs are open."""
        plan = self._plans.get(call, EMPTY)
        if plan is EMPTY:
            return {}
        assert self.scope is not None, "a machine with injected functions opens scopes"
        return await plan.injected_waiting(self.scope) if plan.suspends else plan.injected(self.scope)

    async def call(self, call: Call, injected: dict[str, Any] | None = None) -> Any:
        """Call one function, whose needs are open.

        Args:
            call: the function.
            injected: its injected arguments; None makes them now.
        """
        run = self.run
        if call.plain:
            result = await self._plain(call)
        elif call.expression:
            return call.target(run.data, run.variables, self.state.name, self.number, self.attempt, self.caught)
        else:
            result = await self._full(call, await self.injected(call) if injected is None else injected)
        if type(result) not in SETTLED and hasattr(result, "__await__") and (run.world.is_async or self.loop):
            # Of a function that nothing showed to be asynchronous.
            self._refuse_awaited(call, result)
            if run.world.is_async:
                result = await result
            elif self.loop is not None:
                result = self._await_on(self.loop, result)
        if self.cancelled:
            raise CancelledError
        if run.limit is not None:
            self.check_time()
        return result

    def _refuse_awaited(self, call: Call, result: Any) -> None:
        """Refuse to await what may use a synchronous session on the event loop."""
        try:
            refuse_session(f"{call.name} gave something to be awaited and injects", call.plan.steps)
        except BlockingWaitError:
            if inspect.iscoroutine(result):
                result.close()  # nobody awaits it
            raise

    def _await_on(self, loop: AbstractEventLoop, result: Awaitable[Any]) -> Any:
        """Await *result* on the loop of the run, from the thread of this visit."""

        async def awaiting() -> Any:
            return await result

        self._awaited = run_coroutine_threadsafe(awaiting(), loop)
        if self.cancelled:  # meanwhile
            self._awaited.cancel()
        try:
            return self._awaited.result()
        except FutureCancelledError:
            raise CancelledError from None

    def cancel(self) -> None:
        """Stop as soon as the function that runs in a thread has ended, and roll back."""
        self.cancelled = True
        if self._awaited is not None:
            self._awaited.cancel()

    async def _plain(self, call: Call) -> Any:
        if call.is_async:
            return await call.target(self.run.data)
        if self.threads is not None:
            return await self.threads.run(partial(call.target, self.run.data))
        return call.target(self.run.data)

    async def _full(self, call: Call, injected: dict[str, Any]) -> Any:
        args = [self._argument(argument, call) for argument in call.positions]
        kwargs = {name: self._argument(argument, call) for name, argument in call.keywords.items()} | injected
        if call.is_async:
            return await call.target(*args, **kwargs)
        if self.threads is not None:
            return await self.threads.run(partial(call.target, *args, **kwargs))
        return call.target(*args, **kwargs)

    def _argument(self, argument: Argument, call: Call) -> Any:
        if argument == "record":
            return self.run.data
        if argument == "context":
            context = FunctionContext(self, call.name, on_loop=call.is_async)
            self._contexts.append(context)
            return context
        return self.error if argument == "error" else view(self.run.data, self.state.name)

    def expire(self) -> None:
        """End the contexts that functions of this visit may have kept."""
        for context in self._contexts:
            context.expire()

    def check_time(self) -> None:
        """Raise if the time of the run, or of this attempt, is over."""
        run = self.run
        if run.limit is not None and (now := monotonic()) > run.limit:
            if run.deadline is not None and now > run.deadline:
                raise RunTimeoutError(f"the run took longer than its {run.timeout:g} s, in state {self.state.name!r}")
            raise self.state_timeout()

    def state_timeout(self) -> StateTimeoutError:
        return StateTimeoutError(
            f"state {self.state.name!r} took longer than its {self.state.state.timeout:g} s (attempt {self.attempt})"
        )

    # --- opening -----------------------------------------------------------------------

    async def open_for(self, calls: Sequence[Call]) -> None:
        """Open what *calls* need, in dependency order, and with the first of them what the state declares."""
        if self._declared:
            declared, self._declared = self._declared, ()
            await self.open_declared(declared)
        for call in calls:
            plan = self._plans[call] = fresh_plan(call, self.run, self.state)
            if plan.steps:
                await self._open(plan.steps)

    async def _open(self, steps: Sequence[Recipe]) -> None:
        scope = self.scope
        assert scope is not None, "a machine with resources opens scopes"
        run = self.run
        if scope.owner.closed:
            raise scope.interruption()
        if not run.world.is_async:
            refuse_async(self.state, steps)
        # A slot that was reserved is taken by who can wait. Tasks are interrupted when their time is over; threads
        # look at the clock, and a blocking provider connects no longer than that.
        if self.loop is not None or not scope.open_now(steps, run.world):
            looks = not run.world.is_async or any(step.blocking for step in steps)
            await scope.open_waiting(steps, run.world, until=run.limit if looks else None)

    async def open_declared(self, uses: Sequence[ResourceUse]) -> None:
        """Open declared resources; an optional one that cannot be had is None."""
        for use in uses:
            entry = self.run.engine.entry(use.name)
            try:
                steps = entry.steps()
                await self._open(steps)
                assert self.scope is not None, "a machine with resources opens scopes"
                self._found[use.name] = self.scope.find(steps[-1])
            except ResourceError:
                if use.required:
                    raise
                self._found[use.name] = None

    # --- what a context reads ----------------------------------------------------------

    @property
    def state_name(self) -> str:
        return self.state.name

    @property
    def network_name(self) -> str:
        return self.run.engine.machine.main_network

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.state.state.metadata

    @property
    def arc_label(self) -> str | None:
        return None if self.arc is None else self.arc.label

    @property
    def run_id(self) -> str:
        return self.run.name

    @property
    def owner_id(self) -> str:
        return f"{self.run.owner_name}/{self.state.name}#{self.number}" if self.scope is None else self.scope.owner_id

    @property
    def last_error(self) -> BaseException | None:
        return self.run.caught[-1].error if self.error is None and self.run.caught else self.error

    @property
    def path(self) -> list[str]:
        return self.run.path

    @property
    def variables(self) -> dict[str, Any]:
        return self.run.variables

    @property
    def deadline(self) -> float | None:
        return self.run.deadline

    @property
    def source(self) -> tuple[int | None, int | None]:
        return self.run.position, self.run.line

    def declared(self, on_loop: str | None) -> Mapping[str, Any]:
        check = None if on_loop is None else partial(self._check_session, on_loop)
        return DeclaredResources(self._found, self.roles(), check)

    def _check_session(self, function: str, name: str) -> None:
        steps = self.run.engine.entry(name).steps()
        refuse_session(f"{function} is asynchronous and takes from its context", steps)

    def roles(self) -> Mapping[str, str]:
        uses = (*self.state.declared, *(self.arc.declared if self.arc is not None else ()))
        return {use.role: use.name for use in uses if use.role is not None}

    def require(self, name: str, on_loop: str | None) -> Any:
        """Open a resource by name, in this visit; *on_loop* is the asynchronous function that asks."""
        if on_loop is not None:
            self._check_session(on_loop, name)
        entry = self.run.engine.entry(name)
        if self.scope is None:  # of a name that was registered after the machine had been built
            raise NoActiveScopeError(name, LIFETIME_WORDS[entry.level])
        steps = entry.steps()
        if self.run.world.is_async and running_loop() is not None:
            self._refuse_blocking(name, steps)
        with current_scope(self.scope):
            self.scope.open_blocking(steps, until=self.run.limit)
        return self.scope.find(steps[-1])

    def _refuse_blocking(self, name: str, steps: Sequence[Recipe]) -> None:
        assert self.scope is not None, "the caller has looked"
        for step in steps:
            if step.blocking and self.scope.opened(step) is MISSING:
                raise BlockingWaitError(
                    f"state {self.state.name!r} asks for {name!r} by require_resource() in an asynchronous run, and "
                    f"opening {step.name!r} would stop the event loop; in a plain function, declare it "
                    f"(resources: [{name}]), inject it, or say 'offload: true'"
                )


def fresh_plan(call: Call, run: Run, state: CompiledState) -> Plan:
    """Return the plan of *call* under the overrides of now; a synchronous run refuses what became asynchronous."""
    plan = call.fresh_plan()
    if plan.is_async and not run.world.is_async:
        refuse_async(state, plan.steps)
        raise AsyncInSyncRunError(
            f"state {state.name!r}: an argument of {call.name} comes from an asynchronous provider; use aprocess()"
        )
    return plan


def refuse_async(state: CompiledState, steps: Sequence[Recipe]) -> None:
    """Refuse what a synchronous run cannot open, before anything opens."""
    for step in steps:
        if step.is_async:
            raise AsyncInSyncRunError(
                f"state {state.name!r} needs resource {step.name!r}, which is asynchronous; use aprocess()"
            )


@contextmanager
def current_scope(scope: Scope | None) -> Iterator[None]:
    """Make *scope* the current one for a while; restored by value, since another context may do it."""
    before = current.get()
    current.set(scope)
    try:
        yield
    finally:
        current.set(before)
