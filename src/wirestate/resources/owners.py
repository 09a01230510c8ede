"""The three brackets: the container's own, an owner's, a visit's."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from wirestate.errors import ScopeClosedError
from wirestate.resources.failures import cause, named, outcome_of
from wirestate.resources.managed_pools import PooledRecipe
from wirestate.resources.recipes import END, GeneratorRecipe, Recipe
from wirestate.resources.scopes import Scope, ScopeManager, current
from wirestate.waiting import World


class RootScope(Scope):
    """Holds what lives as long as its manager."""

    @property
    def owner_id(self) -> str:
        return "container"


class OwnerScope(Scope):
    """One run, request or job: holds what is per owner; its visits hold the rest."""

    level = 1
    bracket = True  # False: only manager.acquire() made it; it ends with its last release
    guest_of: object = None  # whose end is the end of this owner too, besides its manager's
    lent: StateScope | None = None  # per-state resources that manager.acquire() took for this owner

    def __init__(self, manager: ScopeManager, owner_id: Any) -> None:
        # Scope.__init__ unrolled, as below: one of these is made for every run.
        self.manager = manager
        self.held = {}
        self.exits = []
        self.closed = self.interrupted = False  # set here: what a class keeps is read more slowly
        self._id = owner_id  # Any: a text, or what a subclass makes its text from when somebody asks
        self.visits: list[StateScope] = []
        self.counts: dict[str, int] = {}  # visits by state

    @property
    def owner_id(self) -> str:
        return str(self._id)

    @property
    def key(self) -> Any:
        """What the manager knows this owner by."""
        return self._id

    def state(self, name: str) -> StateScope:
        """Return the bracket of one more visit to *name*; enter it with ``with`` or ``async with``."""
        if self.closed:
            raise ScopeClosedError(self.owner_id)
        return StateScope(self, name, self.count(name))

    def count(self, state: str) -> int:
        """Count one more visit to *state* and return its number."""
        number = self.counts[state] = self.counts.get(state, 0) + 1
        return number

    @property
    def since(self) -> float:
        """When the oldest that it holds was opened; 0 if it holds nothing."""
        parts = (self, *self.visits, *([self.lent] if self.lent else []))
        return min((part.exits[0][2] for part in parts if part.exits), default=0.0)

    @property
    def is_idle(self) -> bool:
        """True if nothing is open in it or in its visits."""
        return not self.exits and not self.visits and self.lent is None

    @property
    def is_wanted(self) -> bool:
        """True if somebody will end it: its bracket, or a release of what was acquired."""
        return self.bracket or bool(self.taken) or (self.lent is not None and bool(self.lent.taken))

    def lending(self) -> StateScope:
        """Return the inner scope for per-state resources that were acquired by owner id."""
        if self.lent is None:
            self.lent = StateScope(self, "", 0)
        return self.lent

    def resource(self, name: str) -> Any:  # Any: the resource
        """Open the resource called *name* where it lives: in the visit of this owner that is open here, if one is."""
        visit = self._visit_here()
        return super().resource(name) if visit is None else visit.resource(name)

    async def open(self, *targets: Any) -> None:  # Any: names, or functions whose injections are meant
        """Do the same in order and in this task, with all that *targets* need."""
        visit = self._visit_here()
        await (super().open(*targets) if visit is None else visit.open(*targets))

    def _visit_here(self) -> StateScope | None:
        scope = current.get()
        while scope is not None and scope.owner is not self:
            scope = scope.before
        return scope if isinstance(scope, StateScope) and not scope.closed else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, tb)
        finally:
            if not self.closed:  # refused: what is open waits for an event loop, but nobody else shall wait for the id
                self.manager.set_aside(self)

    async def _leave(self, error: BaseException | None, world: World) -> list[BaseException]:
        self.closed = True  # from now on nobody begins a visit, or takes for this owner
        failures: list[BaseException] = []
        for visit in (*reversed(self.visits), self.lent):
            if visit is not None:
                failures += await visit._leave(outcome_of(error, failures), world)
        failures += await self.end(outcome_of(error, failures), world)
        self.manager.forget(self)
        return failures

    def interrupt(self) -> bool:
        """Let nobody commit what is open here: the manager is closed; False if nothing is."""
        self.closed = True
        inside = [*self.visits, *(part for part in (self.lent, self) if part is not None and part.exits)]
        for part in inside:
            part.interrupted = True
        return bool(inside)

    def leave_now(self, error: BaseException | None, failures: list[BaseException], world: World) -> bool:
        """Leave without waiting; False if something is met that needs an event loop, or a thread."""
        if self.visits or (self.lent is not None and not self.lent.end_now(error, failures, world)):
            return False
        return self.end_now(error, failures, world)

    def async_names(self) -> list[str]:
        inner = [*self.visits, *([self.lent] if self.lent else [])]
        return [name for visit in inner for name in visit.async_names()] + super().async_names()


class StateScope(Scope):
    """One visit to a state."""

    level = 2
    # An attribute here, no property, and set at once.
    owner: OwnerScope = None  # type: ignore[assignment]
    attempt = ""  # ``.2`` for the second attempt, ``!`` for the scope of catch arcs

    def __init__(self, owner: OwnerScope, state_name: str, number: int) -> None:
        # Scope.__init__ unrolled: one call less on the way of every visit.
        self.manager = owner.manager
        self.owner = owner  # pyright: ignore[reportIncompatibleMethodOverride]
        self.held = {}
        self.exits = []
        self.interrupted = False
        self.state_name = state_name
        self.number = number
        if number:
            owner.visits.append(self)

    def open_quickly(self, steps: Sequence[Recipe], world: World) -> bool:
        """As :meth:`open_now`, for the engine: nobody else knows this scope yet, so nobody opens in it meanwhile."""
        held, exits = self.held, self.exits
        told = self.manager.ears is not None
        now = monotonic()
        for recipe in steps:
            if recipe in held:
                continue
            if recipe.level != 2 or recipe.is_async or told or (recipe.blocking and world.is_async):
                if not self.open_now((recipe,), world):
                    return False
                continue
            try:
                if type(recipe) is GeneratorRecipe:  # start() unrolled: the commonest, and 0.2 us
                    handle = recipe.make(self)
                    if (value := next(handle, END)) is END:
                        raise recipe.without_yield()
                elif type(recipe) is PooledRecipe:
                    if (handle := recipe.lender.take_now(self)) is None:
                        return False
                    held[recipe] = handle.resource
                    exits.append((recipe, handle, now))
                    continue
                else:
                    opened = recipe.start(self)
                    if opened is None:
                        return False
                    value, handle = opened
            except BaseException as error:
                recipe.meter.failed(error)
                raise named(recipe.name, error) from cause(error)
            held[recipe] = value
            before, now = now, monotonic()
            exits.append((recipe, handle, now))
            if recipe.metered:
                recipe.meter.takes.append(now - before)
        return True

    async def open_quickly_waiting(self, steps: Sequence[Recipe], world: World) -> None:
        """As :meth:`open_quickly`, waiting where it must be."""
        held = self.held
        told = self.manager.ears is not None
        now = monotonic()
        for recipe in steps:
            if recipe in held:
                continue
            if recipe.level != 2 or told or recipe.blocking:
                await self.open_waiting((recipe,), world)
                continue
            try:
                opened = None if recipe.is_async else recipe.start(self)
                if opened is None:
                    opened = await recipe.astart(self, world, None, {})
            except BaseException as error:
                recipe.meter.failed(error)
                raise named(recipe.name, error) from cause(error)
            held[recipe], handle = opened
            before, now = now, monotonic()
            self.exits.append((recipe, handle, now))
            recipe.meter.takes.append(now - before)

    @property
    def owner_id(self) -> str:
        if not self.number:
            return self.owner.owner_id
        return f"{self.owner.owner_id}/{self.state_name}#{self.number}{self.attempt}"

    async def _leave(self, error: BaseException | None, world: World) -> list[BaseException]:
        try:
            return await self.end(error, world)
        finally:
            self.unlist()

    def unlist(self) -> None:
        """Take this visit off its owner's list."""
        visits = self.owner.visits
        if visits and visits[-1] is self:
            visits.pop()
        elif self in visits:
            visits.remove(self)
