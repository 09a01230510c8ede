"""One attempt at one visit: its scope, its calls, its resources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from wirestate.errors import AsyncInSyncRunError, NoActiveScopeError, ResourceError, RunTimeoutError, StateTimeoutError
from wirestate.injection.plans import EMPTY, Plan
from wirestate.machine.compiled import CompiledArc, CompiledState
from wirestate.machine.context import DeclaredResources, FunctionContext
from wirestate.machine.definition import ResourceUse
from wirestate.machine.plan import Argument, Call, view
from wirestate.machine.run import Run
from wirestate.resources.owners import StateScope
from wirestate.resources.recipes import LIFETIME_WORDS, Recipe
from wirestate.resources.scopes import Scope, current

SETTLED = frozenset({dict, bool, type(None)})  # the types of nearly all results: none of them is awaitable


class Visit:
    """What one attempt holds; also what a FunctionContext reads."""

    __slots__ = (
        "_contexts",
        "_declared",
        "_found",
        "_plans",
        "arc",
        "attempt",
        "caught",
        "error",
        "number",
        "run",
        "scope",
        "state",
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
        if type(result) not in SETTLED and run.world.is_async and hasattr(result, "__await__"):
            result = await result  # of a function that nothing showed to be asynchronous
        if run.limit is not None:
            self.check_time()
        return result

    async def _plain(self, call: Call) -> Any:
        if call.is_async:
            return await call.target(self.run.data)
        if self.state.state.offload:
            return await self.run.world.offload(call.target, self.run.data)
        return call.target(self.run.data)

    async def _full(self, call: Call, injected: dict[str, Any]) -> Any:
        args = [self._argument(argument, call) for argument in call.positions]
        kwargs = {name: self._argument(argument, call) for name, argument in call.keywords.items()} | injected
        if call.is_async:
            return await call.target(*args, **kwargs)
        if self.state.state.offload:
            return await self.run.world.offload(call.target, *args, **kwargs)
        return call.target(*args, **kwargs)

    def _argument(self, argument: Argument, call: Call) -> Any:
        if argument == "record":
            return self.run.data
        if argument == "context":
            context = FunctionContext(self, call.name)
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
        if not scope.open_now(steps):
            # Tasks are interrupted when their time is over; threads look at the clock.
            await scope.open_waiting(steps, run.world, until=None if run.world.is_async else run.limit)

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

    def declared(self) -> Mapping[str, Any]:
        return DeclaredResources(self._found, self.roles())

    def roles(self) -> Mapping[str, str]:
        uses = (*self.state.declared, *(self.arc.declared if self.arc is not None else ()))
        return {use.role: use.name for use in uses if use.role is not None}

    def require(self, name: str) -> Any:
        """Open a resource by name, in this visit."""
        entry = self.run.engine.entry(name)
        if self.scope is None:  # of a name that was registered after the machine had been built
            raise NoActiveScopeError(name, LIFETIME_WORDS[entry.level])
        steps = entry.steps()
        with current_scope(self.scope):
            self.scope.open_blocking(steps, until=self.run.limit)
        return self.scope.find(steps[-1])


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
