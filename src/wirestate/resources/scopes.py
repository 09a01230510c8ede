"""The bracket in which leases live: what is opened in it, and who waits for whom."""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Sequence
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from wirestate.errors import (
    AsyncResourceError,
    NoActiveScopeError,
    ScopeClosedError,
)
from wirestate.redaction import half_made_too
from wirestate.resources.endings import Ending, Heard
from wirestate.resources.failures import attach, cause, named, raise_failures
from wirestate.resources.openings import Opening, opener
from wirestate.resources.recipes import LIFETIME_WORDS, Opened, Recipe
from wirestate.resources.reports import tell
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

MISSING = object()
current: ContextVar[Scope | None] = ContextVar("wirestate_scope", default=None)


class ScopeManager(Heard, Protocol):
    """What a scope needs of its manager."""

    @property
    def root(self) -> Scope: ...

    def entry(self, name: str) -> Entry: ...

    def steps_of(self, target: object) -> Sequence[Recipe]:
        """Return what ``scope.open(target)`` opens."""
        ...

    def forget(self, scope: Any) -> None:  # Any: an owner's scope, which is a kind of the class below
        ...

    def pin(self, scope: Any, recipe: Recipe) -> bool:  # Any: as above
        ...

    def set_aside(self, scope: Any) -> None:  # Any: as above
        ...


class Entry(Protocol):
    """One name of a manager, and what must be opened for it."""

    name: str
    level: int

    def steps(self) -> Sequence[Recipe]:
        """What must be open, dependencies first; the last one is the resource itself."""
        ...

    def forget(self) -> None:
        """Know nothing that the parent of a forked child has made."""
        ...


class Taken(NamedTuple):
    """What ``manager.acquire()`` took under one name, and how often."""

    recipe: Recipe
    times: int


_NOTHING: set[Recipe] = set()  # shared and never added to: replaced when something is taken


class Scope(Ending):
    """What one bracket holds, and who waits for whom in it."""

    level = 0
    before: Scope | None = None  # the scope that was current when this one was entered
    taken: dict[str, Taken] | None = None  # by the name that was asked for
    pinned: set[Recipe] = _NOTHING  # taken, but the scope itself uses it too
    slots: dict[Recipe, Any] | None = None  # capacity that was reserved here; Any: a slot, or why there is none

    def __init__(self, manager: ScopeManager) -> None:
        self.manager: ScopeManager = manager  # pyright: ignore[reportIncompatibleVariableOverride]  # never set anew
        self.held = {}
        self.exits = []

    @property
    def owner(self) -> Scope:
        """The scope of the owner that this bracket belongs to; not an attribute, which would be a reference circle."""
        return self

    def place_of(self, recipe: Recipe) -> Scope:
        """Return the scope in which *recipe* lives, seen from here.

        Raises:
            NoActiveScopeError: it lives shorter than this scope.
        """
        level = recipe.level
        if level == 0:
            return recipe.manager.root  # type: ignore[no-any-return]  # a recipe does not know managers
        if level > self.level:
            raise NoActiveScopeError(recipe.name, LIFETIME_WORDS[level])
        return self if level == 2 else self.owner

    def counted(self) -> dict[str, Taken]:
        """Return what is taken here by name, ready to be counted in."""
        if self.taken is None:
            self.taken, self.pinned = {}, set()
        return self.taken

    def is_opening(self, recipe: Recipe) -> bool:
        """Tell whether somebody is opening *recipe* here at this moment."""
        return type(self.held.get(recipe)) is Opening

    def opened(self, recipe: Recipe) -> Any:  # Any: the resource
        """Return what *recipe* handed out, seen from here; MISSING while it is not open."""
        found = self.place_of(recipe).held.get(recipe, MISSING)
        return MISSING if type(found) is Opening else found

    # --- opening -----------------------------------------------------------------------

    def find(self, recipe: Recipe) -> Any:  # Any: the resource
        """Return what *recipe* handed out here; it must be open."""
        return self.place_of(recipe).held[recipe]

    def open_now(self, steps: Sequence[Recipe], world: World, counted: Recipe | None = None) -> bool:
        """Open *steps* in their order; False as soon as one of them has to wait, or needs a thread.

        Args:
            counted: the step that ``manager.acquire()`` counts; what else it finds here is used by the scope too.
        """
        in_task = world.is_async
        for recipe in steps:
            level = recipe.level
            place = self if level == 2 == self.level else self.place_of(recipe)
            found = place.held.get(recipe, MISSING)
            if found is MISSING:
                if (in_task and recipe.blocking) or not place._open_one(recipe):
                    return False
            elif type(found) is Opening or (  # it may be released in this very moment
                place.taken is not None
                and recipe is not counted
                and not self.manager.pin(place, recipe)
                and ((in_task and recipe.blocking) or not place._open_one(recipe))
            ):
                return False
        return True

    def _open_one(self, recipe: Recipe) -> bool:
        token = Opening(get_ident())
        found = self.held.setdefault(recipe, token)
        if found is not token:
            return type(found) is not Opening
        before = current.get()
        opened = None
        began = monotonic()
        try:
            if before is not self:  # what the recipe resolves for itself must not live shorter than it
                current.set(self)
            self._refuse_if_closed(recipe)
            opened = recipe.start(self)
            if opened is None:
                return False
            self._keep(recipe, opened, began)
        except BaseException as error:
            recipe.meter.failed(error)
            if opened is not None:
                drive(self._undo(recipe, opened, error, BLOCKING))
            raise named(recipe.name, error) from cause(error)
        finally:
            self.settle(recipe, token)
            if before is not self:
                current.set(before)
        if self.closed:  # closed meanwhile: nobody else will end it
            drive(self.end_one(recipe, None, BLOCKING))
            raise ScopeClosedError(self.owner_id, recipe.name)
        return True

    def _keep(self, recipe: Recipe, opened: Opened, began: float) -> None:
        now = monotonic()
        listener = self.manager.ears
        if listener is not None:  # before anybody can end it
            tell(listener.on_open, recipe.name, self.owner_id, now - began)
        self.exits.append((recipe, opened[1], now))
        self.held[recipe] = opened[0]
        recipe.meter.opened(now - began)  # a pool that counts its leases does not know what waiting took

    async def _undo(self, recipe: Recipe, opened: Opened, error: BaseException, world: World) -> None:
        """End what an interrupt left between its opening and its place in this scope."""
        if any(one[0] is recipe for one in self.exits):
            return  # it ends with the scope
        try:
            if recipe.waits_in(world) or not recipe.finish(opened[1], error):
                await recipe.afinish(opened[1], error, world)
        except Exception as failure:  # the interrupt stays the error
            attach(error, [failure])

    def settle(self, recipe: Recipe, token: Opening) -> None:
        """Take the token away if nothing came of it, and let the others look."""
        if self.held.get(recipe) is token:
            del self.held[recipe]
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
        until: float | None = None,
        options: dict[str, Any] | None = None,
        counted: Recipe | None = None,
    ) -> None:
        """Open *steps* in their order and in this task, waiting where it must be.

        Args:
            timeout: seconds for each of them; None means what its pool says.
            until: when waiting in line, or for another who opens, must be over; a provider that works is not disturbed.
            options: keyword arguments for the provider of the last step.
            counted: as in :meth:`open_now`.
        """
        for recipe in steps:
            place = self.place_of(recipe)
            chosen = options if options and recipe is steps[-1] else {}
            if until is not None and (longest := recipe.longest_wait) is not None:
                timeout = min(longest, max(0.0, until - monotonic()))
            late = until if timeout is None else monotonic() + timeout
            while True:
                found = place.held.get(recipe, MISSING)
                if type(found) is Opening:
                    await found.ended(recipe.name, world, late)
                elif found is MISSING:
                    if await place._open_one_waiting(recipe, world, timeout, chosen):
                        break
                elif place.taken is None or recipe is counted or self.manager.pin(place, recipe):
                    break

    async def _open_one_waiting(
        self, recipe: Recipe, world: World, timeout: float | None, options: dict[str, Any]
    ) -> bool:
        token = Opening(opener(world))
        if self.held.setdefault(recipe, token) is not token:
            return False
        before = current.get()
        opened = None
        began = monotonic()
        try:
            current.set(self)
            self._refuse_if_closed(recipe)
            opened = await recipe.astart(self, world, timeout, options)
            self._keep(recipe, opened, began)
        except BaseException as error:
            recipe.meter.failed(error)
            if opened is not None:
                await self._undo(recipe, opened, error, world)
            raise named(recipe.name, error) from cause(error)
        finally:
            self.settle(recipe, token)
            current.set(before)
        if self.closed:  # closed meanwhile: nobody else will end it
            await self.end_one(recipe, None, world)
            raise ScopeClosedError(self.owner_id, recipe.name)
        return True

    # --- for code outside the engine ---------------------------------------------------

    def resource(self, name: str) -> Any:  # Any: the resource
        """Open the resource called *name* in its scope and return it.

        Raises:
            AsyncResourceError: it is asynchronous and not open yet; ``await scope.open(name)`` first.
        """
        steps = self.manager.entry(name).steps()
        self.open_blocking(steps)
        return self.find(steps[-1])

    def open_blocking(self, steps: Sequence[Recipe], *, until: float | None = None) -> None:
        """Open *steps*, blocking where one has to wait (in line no longer than *until*)."""
        if self.open_now(steps, BLOCKING):
            return
        for recipe in steps:
            place = self.place_of(recipe)
            if recipe.is_async and (recipe not in place.held or place.is_opening(recipe)):
                raise AsyncResourceError(
                    f"resource {recipe.name!r} is asynchronous; open it first: await scope.open({recipe.name!r})",
                    recipe.name,
                    "resolve",
                )
        drive(self.open_waiting(steps, BLOCKING, until=until))

    async def open(self, *targets: Any) -> None:  # Any: names, or functions whose injections are meant
        """Open resources in order and in this task: by name, or all that a function injects."""
        for target in targets:
            steps = self.manager.steps_of(target)
            if not self.open_now(steps, SUSPENDING):
                await self.open_waiting(steps, SUSPENDING)

    def __enter__(self) -> Self:
        if self.closed:
            raise ScopeClosedError(self.owner_id)
        self.before = current.get()
        current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        current.set(self.before)
        waiting = self.async_names()
        if waiting:
            refusal = AsyncResourceError(
                f"{waiting[0]!r} in {self.owner_id!r} is open and asynchronous; leave the scope with 'async with'",
                waiting[0],
                "release",
            )
            if error is None:
                raise refusal
            attach(error, [refusal])
            return
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

    def __str__(self) -> str:  # how messages name the one who holds something
        return self.owner_id

    @half_made_too
    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.exits)} open"
        return f"<{type(self).__name__} {self.owner_id!r}, {state}>"
