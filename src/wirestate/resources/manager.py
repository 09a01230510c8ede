"""The manager: every verb by which owners get resources and give them back."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from wirestate.errors import AsyncResourceError, NotHeldError, OwnerInUseError, ResourceError, ScopeClosedError
from wirestate.resources.base import ResourceConfig, ResourceHealth
from wirestate.resources.failures import raise_failures
from wirestate.resources.managed import ManagedRecipe
from wirestate.resources.owners import OwnerScope
from wirestate.resources.questions import Questions, last_step, parts_of
from wirestate.resources.recipes import Recipe
from wirestate.resources.registry import ProviderEntry, new_owner_id
from wirestate.resources.scopes import MISSING, Scope, Taken
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive


class ResourceManager(Questions):
    """Register providers, lend their resources to owners, and take everything back at the end.

    Example:
        >>> with ResourceManager() as manager:
        ...     manager.register_from_dict("settings", {"data": {"limit": 3}})
        ...     with manager.resource_context("settings", "job-1") as settings:
        ...         settings["limit"]
        3
    """

    def scope(self, owner_id: str | None = None) -> OwnerScope:
        """Open the bracket of one owner; use it with ``with`` or ``async with``.

        Raises:
            OwnerInUseError: *owner_id* has an open scope already.
        """
        return self.open_owner(new_owner_id() if owner_id is None else owner_id)

    def open_owner(self, owner_id: str) -> OwnerScope:
        """Make the scope of *owner_id* and list it, without entering it."""
        with self._lock:
            if self.closed:
                raise self._closed_error(None, "scope")
            found = self.owners.get(owner_id)
            if found is None:
                found = self.owners[owner_id] = OwnerScope(self, owner_id)
            elif found.bracket:
                raise OwnerInUseError(owner_id)
            else:
                found.bracket = True  # until now only acquire() knew it: the bracket takes over what it holds
        return found

    # --- acquire -----------------------------------------------------------------------

    def acquire(self, name: str, owner_id: str, timeout: float | None = None, **kwargs: Any) -> Any:
        """Lend the resource called *name* to *owner_id*.

        The same owner gets the same resource again; it leaves with the last release.

        Args:
            name: a registered name.
            owner_id: any text; the id of a run or of a visit means what that run or visit holds.
            timeout: seconds; 0 means now or never, None what its pool says.
            kwargs: for the provider's own ``acquire``.

        Raises:
            ResourceError: it is unknown, closed, late, or its provider failed (then that is the cause).
        """
        steps = self.entry(name).steps()
        refuse_async(steps, f"acquire({name!r})", "aacquire")
        scope, recipe = self._count(name, owner_id, steps[-1])
        if timeout is not None or kwargs or not self._opened_now(name, scope, recipe, steps):
            drive(self._open(name, scope, recipe, steps, timeout, kwargs, BLOCKING))
        return scope.find(recipe)

    async def aacquire(self, name: str, owner_id: str, timeout: float | None = None, **kwargs: Any) -> Any:
        """Asynchronous twin of :meth:`acquire`."""
        steps = self.entry(name).steps()
        scope, recipe = self._count(name, owner_id, steps[-1])
        if timeout is not None or kwargs or not self._opened_now(name, scope, recipe, steps):
            await self._open(name, scope, recipe, steps, timeout, kwargs, SUSPENDING)
        return scope.find(recipe)

    def _count(self, name: str, owner_id: str, recipe: Recipe) -> tuple[Scope, Recipe]:
        """Count one more use before anything opens; return where it is counted, and what it is a use of.

        So no release of another thread can end the owner while this one still opens.
        """
        with self._lock:
            if self.closed:
                raise self._closed_error(name, "acquire")
            scope = self._borrower(owner_id, recipe)
            if scope.closed or scope.owner.closed:
                raise ScopeClosedError(scope.owner_id, name)
            if scope.taken is None:
                scope.taken, scope.pinned = {}, set()
            found = scope.taken.get(name)
            if found is None:
                if recipe.level != scope.level or recipe in scope.held:  # the last release must not end it
                    scope.pinned.add(recipe)
                found = Taken(recipe, 0)
            scope.taken[name] = Taken(found.recipe, found.times + 1)
            return scope, found.recipe

    def _borrower(self, owner_id: str, recipe: Recipe) -> Scope:
        """Return the scope for what *owner_id* acquires: a visit's, an owner's, or a new owner's."""
        found = self.find(owner_id)
        if found is None:
            found = self.owners[owner_id] = OwnerScope(self, owner_id)
            found.bracket = False
        return found.lending() if recipe.level == 2 and isinstance(found, OwnerScope) else found

    def _opened_now(self, name: str, scope: Scope, recipe: Recipe, steps: Sequence[Recipe]) -> bool:
        try:
            return recipe is steps[-1] and scope.open_now(steps, recipe)
        except BaseException as error:
            drive(self._uncount(name, scope, error, BLOCKING))
            raise

    async def _open(
        self,
        name: str,
        scope: Scope,
        recipe: Recipe,
        steps: Sequence[Recipe],
        timeout: float | None,
        options: dict[str, Any],  # Any: for the provider
        world: World,
    ) -> None:
        steps = steps if recipe is steps[-1] else (recipe,)  # overridden since: it is open, or another opens it
        try:
            await scope.open_waiting(steps, world, timeout=timeout, options=options, counted=recipe)
        except BaseException as error:
            await self._uncount(name, scope, error, world)
            raise

    async def _uncount(self, name: str, scope: Scope, error: BaseException, world: World) -> None:
        """Take back the count of what could not be had."""
        if name in (scope.taken or ()):
            raise_failures(await self._give_back(name, scope, error, world), error, scope.owner_id)

    # --- release -----------------------------------------------------------------------

    def release(self, name: str, owner_id: str) -> None:
        """Give back what *owner_id* acquired; the last of several acquires counts.

        Called while an exception is being handled, that exception is the outcome (a database rolls back).

        Raises:
            NotHeldError: the owner does not hold it.
        """
        drive(self._release(name, owner_id, sys.exception(), BLOCKING))

    async def arelease(self, name: str, owner_id: str) -> None:
        """Asynchronous twin of :meth:`release`."""
        await self._release(name, owner_id, sys.exception(), SUSPENDING)

    async def _release(self, name: str, owner_id: str, error: BaseException | None, world: World) -> None:
        self.entry(name, "release")
        scope = self.find(owner_id)
        part = None if scope is None else next((one for one in parts_of(scope) if name in (one.taken or ())), None)
        if part is None or part.taken is None:
            raise NotHeldError(name, owner_id)
        if not world.is_async:
            refuse_async([part.taken[name].recipe], f"release({name!r})", "arelease")
            if isinstance(part.owner, OwnerScope) and not part.owner.bracket:
                _refuse_names(part.async_names(), f"release({name!r})", "arelease()")
        raise_failures(await self._give_back(name, part, error, world), error, owner_id)

    async def _give_back(
        self, name: str, scope: Scope, error: BaseException | None, world: World
    ) -> list[BaseException]:
        """Count one use less, and end what nobody uses any more; return what that raised."""
        recipe, owner = self._discount(name, scope)
        failures: list[BaseException] = []
        if owner is not None:
            if not owner.leave_now(error, failures):
                failures += await owner._leave(error, world)
        elif recipe is not None:
            try:
                await scope.end_one(recipe, error, world)
            except BaseException as failure:  # the caller raises it, or attaches it to the error in flight
                failures.append(failure)
        return failures

    def _discount(self, name: str, scope: Scope) -> tuple[Recipe | None, OwnerScope | None]:
        """Count one use less; return the lease that is over, or the owner that is."""
        with self._lock:
            taken = (scope.taken or {}).get(name)
            if taken is None or scope.taken is None:
                raise NotHeldError(name, scope.owner_id)
            if taken.times > 1:
                scope.taken[name] = Taken(taken.recipe, taken.times - 1)
                return None, None
            del scope.taken[name]
            pinned = taken.recipe in scope.pinned
            scope.pinned.discard(taken.recipe)
            owner = scope.owner
            if isinstance(owner, OwnerScope) and not owner.is_wanted:
                self._end_owner(owner)
                return None, owner
            return None if pinned else taken.recipe, None

    def _end_owner(self, owner: OwnerScope) -> None:
        """Let nobody find *owner* any more; the lock is held."""
        owner.closed = True
        self.forget(owner)

    def release_all(self, owner_id: str) -> None:
        """Give back everything that *owner_id* acquired; nothing held is no error."""
        drive(self._release_all(owner_id, sys.exception(), BLOCKING))

    async def arelease_all(self, owner_id: str) -> None:
        """Asynchronous twin of :meth:`release_all`."""
        await self._release_all(owner_id, sys.exception(), SUSPENDING)

    async def _release_all(self, owner_id: str, error: BaseException | None, world: World) -> None:
        scope = self.find(owner_id)
        if scope is None:
            return
        if not world.is_async:
            _refuse_names(_async_taken(scope), "release_all()", "arelease_all()")
        failures: list[BaseException] = []
        if isinstance(scope, OwnerScope) and not scope.bracket:
            with self._lock:
                self._end_owner(scope)
            if not scope.leave_now(error, failures):
                failures += await scope._leave(error, world)
        else:
            for part in parts_of(scope):
                for name, taken in reversed(list((part.taken or {}).items())):
                    for _ in range(taken.times):
                        failures += await self._give_back(name, part, error, world)
        raise_failures(failures, error, owner_id)

    # --- both at once ------------------------------------------------------------------

    def resource_context(self, name: str, owner_id: str, timeout: float | None = None) -> ResourceContext:
        """Acquire on entry and release on exit, with ``with`` or ``async with``."""
        return ResourceContext(self, name, owner_id, timeout)

    def configure_from_requirements(
        self, requirements: Sequence[ResourceConfig], owner_id: str
    ) -> dict[str, Any]:  # Any: the resources
        """Acquire all *requirements* for one owner; an optional one that cannot be had is None.

        Raises:
            ResourceError: a required one cannot be had; those taken before it were given back.
        """
        return drive(self._configure(requirements, owner_id, BLOCKING))

    async def aconfigure_from_requirements(
        self, requirements: Sequence[ResourceConfig], owner_id: str
    ) -> dict[str, Any]:  # Any: the resources
        """Asynchronous twin of :meth:`configure_from_requirements`."""
        return await self._configure(requirements, owner_id, SUSPENDING)

    async def _configure(
        self, requirements: Sequence[ResourceConfig], owner_id: str, world: World
    ) -> dict[str, Any]:  # Any: the resources
        had: dict[str, Any] = {}  # Any: the resources
        taken: list[str] = []
        for wanted in requirements:
            ask = (wanted.name, owner_id, wanted.timeout)
            try:
                had[wanted.name] = await self.aacquire(*ask) if world.is_async else self.acquire(*ask)
                taken.append(wanted.name)
            except BaseException as error:
                if isinstance(error, ResourceError) and not wanted.required:
                    had[wanted.name] = None
                    continue
                for name in reversed(taken):
                    await self._release(name, owner_id, error, world)
                raise
        return had

    def validate_resource(self, name: str) -> bool:
        """Tell whether the resource can be used now: its probe does not say unhealthy, and a lease validates."""
        recipe = last_step(self.entry(name, "validate"))
        if recipe.probe is not None and recipe.probe.ask() is ResourceHealth.UNHEALTHY:
            return False
        if not isinstance(recipe, ManagedRecipe) or recipe.calls.validate is None or recipe.is_async:
            return True
        try:
            with self.resource_context(name, f"validate-{name}-{threading.get_ident()}", timeout=5.0) as resource:
                return bool(recipe.calls.validate(resource))
        except ResourceError:
            return False

    # --- the end -----------------------------------------------------------------------

    def unregister_provider(self, name: str) -> None:
        """Take *name* back from every owner that holds it, and close its provider."""
        drive(self._unregister(name, BLOCKING))

    async def aunregister_provider(self, name: str) -> None:
        """Asynchronous twin of :meth:`unregister_provider`."""
        await self._unregister(name, SUSPENDING)

    async def _unregister(self, name: str, world: World) -> None:
        entry = self.entry(name, "unregister")
        if not isinstance(entry, ProviderEntry):
            raise ResourceError(
                f"resource {name!r} is declared by a container; override it there instead", name, "unregister"
            )
        recipe = entry.recipe
        if not world.is_async and (recipe.is_async or recipe.closes_async):
            _refuse_names([name], "unregister_provider()", "aunregister_provider()")
        with self._lock:
            self._entries.pop(name, None)
            self._managed.remove(recipe)
        failures: list[BaseException] = []
        for scope in list(self.scopes()):
            try:
                if name in (scope.taken or ()):
                    _, owner = self._discount_all(name, scope)
                    failures += [] if owner is None else await owner._leave(None, world)
                await scope.end_one(recipe, None, world)
            except Exception as failure:  # carried on: the others must be released, and the provider closed
                failures.append(failure)
        await _close_provider(recipe, world, failures)
        raise_failures(failures, None, f"unregister {name}")

    def _discount_all(self, name: str, scope: Scope) -> tuple[Recipe | None, OwnerScope | None]:
        while True:
            found = self._discount(name, scope)
            if name not in (scope.taken or ()):
                return found

    def absorb(self, other: ResourceManager) -> None:
        """Take over what lives as long as *other*, which is closed without closing any of it."""
        with other._lock:
            other.closed = True
            managed, other._managed = other._managed, []
        for lent in managed:
            self.manage(lent)
        for recipe, handle, since in other.root.exits:
            recipe.manager = self
            self.root.held[recipe] = other.root.held[recipe]
            self.root.exits.append((recipe, handle, since))
        other.root.exits = []

    def close(self) -> None:
        """Release everything, newest first, then close every provider.

        Raises:
            AsyncResourceError: something asynchronous is open (nothing was released); use aclose().
            ReleaseFailedError: releases failed; everything else was released.
        """
        self._close_blocking(None)

    def _close_blocking(self, error: BaseException | None) -> None:
        if not self.closed:
            _refuse_names(self.async_names(), "close()", "'await manager.aclose()' or 'async with'")
            drive(self._close(error, BLOCKING))

    def async_names(self) -> list[str]:
        """Names of what is open and can only be closed with an event loop."""
        names = [name for scope in (self.root, *list(self.owners.values())) for name in scope.async_names()]
        return names + [recipe.name for recipe in list(self._managed) if recipe.needs_loop]

    async def aclose(self) -> None:
        """Asynchronous twin of :meth:`close`."""
        await self._close(None, SUSPENDING)

    async def cleanup(self) -> None:
        """Do what :meth:`aclose` does."""
        await self.aclose()

    async def _close(self, error: BaseException | None, world: World) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = True
            owners, managed = list(self.owners.values()), self._managed[::-1]
            self._managed.clear()
        failures: list[BaseException] = []
        for owner in reversed(owners):
            owner.closed = True
            if owner.leave_now(error, failures):
                self.forget(owner)
            else:
                failures += await owner._leave(error, world)
        failures += await self.root.end(error, world)
        for recipe in managed:
            await _close_provider(recipe, world, failures)
        raise_failures(failures, None, self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with _attaching(error):
            self._close_blocking(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with _attaching(error):
            await self._close(error, SUSPENDING)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._entries)} resources, {len(self.owners)} owners"
        return f"<ResourceManager {state}>"


class ResourceContext:
    """One acquire and its release, in both worlds."""

    def __init__(self, manager: ResourceManager, name: str, owner_id: str, timeout: float | None) -> None:
        self._ask = (name, owner_id, timeout)
        self._manager = manager

    def __enter__(self) -> Any:  # Any: the resource
        return self._manager.acquire(*self._ask)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._manager.closed:  # else its close() released the resource
            with _attaching(error):
                drive(self._manager._release(*self._ask[:2], error, BLOCKING))

    async def __aenter__(self) -> Any:  # Any: the resource
        return await self._manager.aacquire(*self._ask)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not self._manager.closed:
            with _attaching(error):
                await self._manager._release(*self._ask[:2], error, SUSPENDING)


@contextmanager
def _attaching(error: BaseException | None) -> Iterator[None]:
    """What a release raises is attached to the body's *error*, which stays the error."""
    try:
        yield
    except Exception as failure:
        if error is None:
            raise
        raise_failures([failure], error, "")


def refuse_async(steps: Sequence[Recipe], what: str, twin: str) -> None:
    """Refuse an asynchronous step in a synchronous call, before anything is opened."""
    for recipe in steps:
        if recipe.is_async:
            _refuse_names([recipe.name], what, f"{twin}()")


def _refuse_names(names: Sequence[str], what: str, instead: str) -> None:
    if names:
        raise AsyncResourceError(
            f"{what}: resource {names[0]!r} is asynchronous; use {instead}", names[0], what.partition("(")[0]
        )


def _async_taken(scope: Scope) -> list[str]:
    """Return the asynchronous ones of what release_all() would end."""
    if isinstance(scope, OwnerScope) and not scope.bracket:
        return scope.async_names()
    return [name for part in parts_of(scope) for name, taken in (part.taken or {}).items() if taken.recipe.is_async]


async def _close_provider(recipe: ManagedRecipe, world: World, failures: list[BaseException]) -> None:
    try:
        await recipe.close(world)
    except BaseException as failure:  # carried on: the others must be closed
        failure.add_note(f"raised while the provider of {recipe.name!r} was closed")
        failures.append(failure)
