"""The brackets in which leases live: the manager's root, an owner, a visit to a state."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

from wirestate.errors import (
    AsyncResourceError,
    NoActiveScopeError,
    ReleaseFailedError,
    ResourceUnavailableError,
    ScopeClosedError,
    WirestateError,
)
from wirestate.resources.managed import PooledRecipe
from wirestate.resources.meter import FOLD_AT
from wirestate.resources.recipes import END, LIFETIME_WORDS, GeneratorRecipe, Recipe
from wirestate.waiting import BLOCKING, SUSPENDING, Waiter, World, drive

MISSING = object()
current: ContextVar[Scope | None] = ContextVar("wirestate_scope", default=None)


class ScopeManager(Protocol):
    """What a scope needs of its manager."""

    root: RootScope

    def entry(self, name: str) -> Entry: ...

    def entries_of(self, target: object) -> Sequence[Entry]: ...

    def forget(self, scope: OwnerScope) -> None: ...


class Entry(Protocol):
    """One name of a manager: what must be opened for it, and what is handed out then."""

    name: str
    level: int

    def steps(self) -> Sequence[Recipe]:
        """What must be open, dependencies first."""
        ...

    def value(self, scope: Scope) -> Any:  # Any: the resource
        ...


class _Opening:
    """Stands in ``held`` while somebody opens: the others wait for it (single flight)."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        self.waiters: list[Waiter] = []

    def finish(self) -> None:
        while self.waiters:
            self.waiters.pop().fill(None)


_NOTHING: set[Recipe] = set()  # shared and never added to: replaced when something is taken


class Scope:
    """What one bracket holds and how each part of it ends: last in, first out."""

    level = 0
    closed = False
    before: Scope | None = None  # the scope that was current when this one was entered
    taken: dict[Recipe, int] | None = None  # what manager.acquire() took, and how often
    pinned: set[Recipe] = _NOTHING  # taken, but the scope itself uses it too

    def __init__(self, manager: ScopeManager) -> None:
        self.manager = manager
        self.held: dict[Recipe, Any] = {}  # Any: the resources themselves
        self.exits: list[tuple[Recipe, Any, float]] = []  # Any: whatever ends the lease; float: open since

    @property
    def owner(self) -> Scope:
        """The scope of the owner that this bracket belongs to; not an attribute, which would be a reference circle."""
        return self

    @property
    def owner_id(self) -> str:
        """The public name of this bracket."""
        raise NotImplementedError

    def place_of(self, recipe: Recipe) -> Scope:
        """Return the scope in which *recipe* lives, seen from here.

        Raises:
            NoActiveScopeError: it lives shorter than this scope.
        """
        level = recipe.level
        if level == 0:
            return recipe.manager.root
        if level > self.level:
            raise NoActiveScopeError(recipe.name, LIFETIME_WORDS[level])
        return self if level == 2 else self.owner

    def is_opening(self, recipe: Recipe) -> bool:
        """Tell whether somebody is opening *recipe* here at this moment."""
        return type(self.held.get(recipe)) is _Opening

    # --- opening -----------------------------------------------------------------------

    def find(self, recipe: Recipe) -> Any:  # Any: the resource
        """Return what *recipe* handed out here; it must be open."""
        return self.place_of(recipe).held[recipe]

    def open_now(self, steps: Sequence[Recipe]) -> bool:
        """Open *steps* in their order; False as soon as one of them has to wait."""
        for recipe in steps:
            level = recipe.level
            place = self if level == 2 == self.level else self.place_of(recipe)
            found = place.held.get(recipe, MISSING)
            if found is MISSING:
                if not place._open_one(recipe):
                    return False
            elif type(found) is _Opening:
                return False
            elif place.taken:
                place.pinned.add(recipe)
        return True

    def _open_one(self, recipe: Recipe) -> bool:
        token = _Opening()
        found = self.held.setdefault(recipe, token)
        if found is not token:
            return type(found) is not _Opening
        before = current.get()
        if before is not self:  # what the recipe resolves for itself must not live shorter than it
            current.set(self)
        began = monotonic()
        try:
            self._refuse_if_closed(recipe)
            opened = recipe.start(self)
            if opened is None:
                return False
            self._keep(recipe, opened, began)
        except BaseException as error:
            recipe.meter.failed(error)
            raise _named(recipe, error) from _cause(error)
        finally:
            self._settle(recipe, token)
            if before is not self:
                current.set(before)
        if self.closed:  # closed meanwhile: nobody else will end it
            drive(self.end_one(recipe, None, BLOCKING))
            raise ScopeClosedError(self.owner_id, recipe.name)
        return True

    def _keep(self, recipe: Recipe, opened: tuple[Any, Any], began: float) -> None:
        now = monotonic()
        self.exits.append((recipe, opened[1], now))
        self.held[recipe] = opened[0]
        if recipe.metered:
            recipe.meter.takes.append(now - began)

    def _settle(self, recipe: Recipe, token: _Opening) -> None:
        """Take the token away if nothing came of it, and let the others look."""
        if self.held.get(recipe) is token:
            del self.held[recipe]
        if token.waiters:
            token.finish()

    def _refuse_if_closed(self, recipe: Recipe) -> None:
        if self.closed:
            raise ScopeClosedError(self.owner_id, recipe.name)

    async def open_waiting(
        self,
        steps: Sequence[Recipe],
        world: World,
        *,
        timeout: float | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Open *steps* in their order and in this task, waiting where it must be.

        Args:
            timeout: seconds for each of them; None means what its pool says.
            options: keyword arguments for the provider of the last step.
        """
        for recipe in steps:
            place = self.place_of(recipe)
            chosen = options if options and recipe is steps[-1] else {}
            while not await place._open_one_waiting(recipe, world, timeout, chosen):
                pass

    async def _open_one_waiting(
        self, recipe: Recipe, world: World, timeout: float | None, options: dict[str, Any]
    ) -> bool:
        token = _Opening()
        found = self.held.setdefault(recipe, token)
        if found is not token:
            if type(found) is not _Opening:
                if self.taken:
                    self.pinned.add(recipe)
                return True
            await self._wait_for_other(recipe, found, world)
            return False
        before = current.get()
        current.set(self)
        began = monotonic()
        try:
            self._refuse_if_closed(recipe)
            opened = await recipe.astart(self, world, timeout, options)
            self._keep(recipe, opened, began)
        except BaseException as error:
            recipe.meter.failed(error)
            raise _named(recipe, error) from _cause(error)
        finally:
            self._settle(recipe, token)
            current.set(before)
        if self.closed:  # closed meanwhile: nobody else will end it
            await self.end_one(recipe, None, world)
            raise ScopeClosedError(self.owner_id, recipe.name)
        return True

    async def _wait_for_other(self, recipe: Recipe, opening: _Opening, world: World) -> None:
        waiter = world.new_waiter()
        opening.waiters.append(waiter)
        if self.held.get(recipe) is opening:  # else it ended before it could see this waiter
            await waiter.wait(None)

    # --- ending ------------------------------------------------------------------------

    def async_names(self) -> list[str]:
        """Names of what is open here and can only be ended with an event loop."""
        return [recipe.name for recipe, _, _ in self.exits if recipe.is_async]

    def end_now(self, error: BaseException | None, failures: list[BaseException]) -> bool:
        """End everything that needs no event loop, newest first; False if one is met that does.

        Every release runs; what they raise goes into *failures*.
        """
        self.closed = True
        exits = self.exits
        now = monotonic()
        while exits:
            recipe, handle, since = last = exits.pop()
            try:
                if error is None and type(recipe) is GeneratorRecipe:
                    if next(handle, END) is not END:
                        raise recipe.second_yield(handle)
                elif not recipe.finish(handle, error):
                    exits.append(last)
                    return False
            except BaseException as raised:  # carried on: the others must be released
                _note(raised, recipe, self, failures)
            if recipe.metered:
                holds = recipe.meter.holds  # meter.ended() unrolled
                holds.append(now - since)
                if len(holds) > FOLD_AT:
                    recipe.meter.fold()
        self.held = {}
        return True

    async def end(self, error: BaseException | None, world: World) -> list[BaseException]:
        """End everything, newest first; return what the releases raised."""
        failures: list[BaseException] = []
        while not self.end_now(error, failures):
            recipe, handle, since = self.exits.pop()
            try:
                await recipe.afinish(handle, error, world)
            except BaseException as raised:  # carried on: the others must be released
                _note(raised, recipe, self, failures)
            if recipe.metered:
                recipe.meter.ended(monotonic() - since)
        return failures

    async def end_one(self, recipe: Recipe, error: BaseException | None, world: World) -> None:
        """End one lease before its scope ends."""
        for index in range(len(self.exits) - 1, -1, -1):
            if self.exits[index][0] is recipe:
                _, handle, since = self.exits.pop(index)
                self.held.pop(recipe, None)
                try:
                    if not recipe.finish(handle, error):
                        await recipe.afinish(handle, error, world)
                finally:
                    if recipe.metered:
                        recipe.meter.ended(monotonic() - since)
                return

    # --- for code outside the engine ---------------------------------------------------

    def resource(self, name: str) -> Any:  # Any: the resource
        """Open the resource called *name* in its scope and return it.

        Raises:
            AsyncResourceError: it is asynchronous and not open yet; ``await scope.open(name)`` first.
        """
        entry = self.manager.entry(name)
        steps = entry.steps()
        self.open_blocking(steps)
        return entry.value(self)

    def open_blocking(self, steps: Sequence[Recipe]) -> None:
        """Open *steps*, blocking where one has to wait."""
        if self.open_now(steps):
            return
        for recipe in steps:
            place = self.place_of(recipe)
            if recipe.is_async and (recipe not in place.held or place.is_opening(recipe)):
                raise AsyncResourceError(
                    f"resource {recipe.name!r} is asynchronous; open it first: await scope.open({recipe.name!r})",
                    recipe.name,
                    "resolve",
                )
        drive(self.open_waiting(steps, BLOCKING))

    async def open(self, *targets: Any) -> None:  # Any: names, or functions whose injections are meant
        """Open resources in order and in this task: by name, or all that a function injects."""
        for target in targets:
            for entry in self.manager.entries_of(target):
                await self.open_waiting(entry.steps(), SUSPENDING)

    def __enter__(self) -> Self:
        self.before = current.get()
        current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        waiting = self.async_names()
        if waiting:
            raise AsyncResourceError(
                f"{waiting[0]!r} in {self.owner_id!r} is open and asynchronous; leave the scope with 'async with'",
                waiting[0],
                "release",
            )
        current.set(self.before)
        raise_failures(drive(self._leave(error, BLOCKING)), error, self.owner_id)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        current.set(self.before)
        raise_failures(await self._leave(error, SUSPENDING), error, self.owner_id)

    async def _leave(self, error: BaseException | None, world: World) -> list[BaseException]:
        return await self.end(error, world)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.exits)} open"
        return f"<{type(self).__name__} {self.owner_id!r}, {state}>"


class RootScope(Scope):
    """Holds what lives as long as its manager."""

    @property
    def owner_id(self) -> str:
        return "container"


class OwnerScope(Scope):
    """One run, request or job: holds what is per owner; its visits hold the rest."""

    level = 1
    bracket = True  # False: only manager.acquire() made it; it ends with its last release
    lent: StateScope | None = None  # per-state resources that manager.acquire() took for this owner

    def __init__(self, manager: ScopeManager, owner_id: Any) -> None:
        super().__init__(manager)
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
    def is_idle(self) -> bool:
        """True if nothing is open in it or in its visits."""
        return not self.exits and not self.visits and self.lent is None

    def lending(self) -> StateScope:
        """Return the inner scope for per-state resources that were acquired by owner id."""
        if self.lent is None:
            self.lent = StateScope(self, "", 0)
        return self.lent

    async def _leave(self, error: BaseException | None, world: World) -> list[BaseException]:
        failures: list[BaseException] = []
        for visit in (*reversed(self.visits), self.lent):
            if visit is not None:
                failures += await visit._leave(error, world)
        failures += await self.end(error, world)
        self.manager.forget(self)
        return failures

    def async_names(self) -> list[str]:
        inner = [*self.visits, *([self.lent] if self.lent else [])]
        return [name for visit in inner for name in visit.async_names()] + super().async_names()


class StateScope(Scope):
    """One visit to a state."""

    level = 2
    owner: OwnerScope = None  # type: ignore[assignment]  # set at once: an attribute here, no property
    attempt = ""  # ``.2`` for the second attempt, ``!`` for the scope of catch arcs

    def __init__(self, owner: OwnerScope, state_name: str, number: int) -> None:
        # Scope.__init__ unrolled: one call less on the way of every visit.
        self.manager = owner.manager
        self.owner = owner
        self.held = {}
        self.exits = []
        self.state_name = state_name
        self.number = number
        if number:
            owner.visits.append(self)

    def open_quickly(self, steps: Sequence[Recipe]) -> bool:
        """As :meth:`open_now`, for the engine: nobody else knows this scope yet, so nobody opens in it meanwhile."""
        held, exits = self.held, self.exits
        now = monotonic()
        for recipe in steps:
            if recipe in held:
                continue
            if recipe.level != 2 or recipe.is_async:
                if not self.open_now((recipe,)):
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
                raise _named(recipe, error) from _cause(error)
            held[recipe] = value
            before, now = now, monotonic()
            exits.append((recipe, handle, now))
            if recipe.metered:
                recipe.meter.takes.append(now - before)
        return True

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


def _named(recipe: Recipe, error: BaseException) -> BaseException:
    """Return the error that tells which resource could not be had."""
    return error if _tells(error) else ResourceUnavailableError(recipe.name, error)


def _cause(error: BaseException) -> BaseException | None:
    """Return the cause of what :func:`_named` returns."""
    return error.__cause__ if _tells(error) else error


def _tells(error: BaseException) -> bool:
    """Tell whether *error* is no matter of the provider, or names the resource already."""
    return isinstance(error, WirestateError) or not isinstance(error, Exception)


def _note(raised: BaseException, recipe: Recipe, scope: Scope, failures: list[BaseException]) -> None:
    raised.add_note(f"raised while {recipe.name!r} of {scope.owner_id!r} was released")
    failures.append(raised)


def raise_failures(failures: Sequence[BaseException], error: BaseException | None, where: str) -> None:
    """Raise what releases raised, or attach it to the body's *error*, which stays the error.

    Attached errors are found in ``error.release_errors`` and named in its notes.
    """
    if not failures:
        return
    for failure in failures:
        if not isinstance(failure, Exception) and error is None:
            raise failure
    if error is None:
        raise ReleaseFailedError(f"release failed in {where!r}", [f for f in failures if isinstance(f, Exception)])
    attach(error, failures)


def attach(error: BaseException, failures: Sequence[BaseException]) -> None:
    """Note on *error* what releases raised after it."""
    for failure in failures:
        error.add_note(f"and a release failed: {type(failure).__name__}: {failure}")
    error.release_errors = (*getattr(error, "release_errors", ()), *failures)  # type: ignore[attr-defined]
