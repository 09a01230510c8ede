"""Lending: how owners get resources and give them back, counted by owner and name."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from wirestate.errors import AsyncResourceError, NotHeldError, OwnerInUseError, ScopeClosedError
from wirestate.resources.endings import Lease
from wirestate.resources.failures import outcome_of, raise_failures
from wirestate.resources.owners import OwnerScope
from wirestate.resources.questions import parts_of
from wirestate.resources.quick_lending import QuickLending
from wirestate.resources.recipes import Recipe
from wirestate.resources.registry import new_owner_id
from wirestate.resources.scopes import MISSING, Scope, Taken
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

Rest = Coroutine[Any, Any, None]  # what is left to do where something must be awaited


class Use(NamedTuple):
    """One use that an owner asked for: under which name, where it is counted, of what."""

    name: str
    scope: Scope
    recipe: Recipe
    value: Any  # Any: the resource, MISSING if it was not open when the use was counted


class Lending(QuickLending):
    """The lending half of a manager."""

    def scope(self, owner_id: str | None = None) -> OwnerScope:
        """Open the bracket of one owner; use it with ``with`` or ``async with``.

        Raises:
            OwnerInUseError: *owner_id* has an open scope already.
        """
        return self.open_owner(new_owner_id() if owner_id is None else owner_id)

    def open_owner(self, owner_id: str) -> OwnerScope:
        """Make the scope of *owner_id* and list it, without entering it."""
        owner_id = str(owner_id)
        with self._lock:
            if self.closed:
                raise self._closed_error(None, "scope")
            found = self.listed(owner_id)  # a run's id too, and a visit's
            if found is None:
                found = self._new_owner(owner_id)
            if not isinstance(found, OwnerScope) or found.bracket:
                raise OwnerInUseError(owner_id)
            found.bracket = True  # it takes over what acquire() holds for this owner
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
        quick = self._quick.get(name)
        if quick is not None and timeout is None and not kwargs and self.ears is None:
            value = self._lend(quick, owner_id if type(owner_id) is str else str(owner_id))
            if value is not MISSING:
                return value
        steps = self.entry(name).steps()
        for step in steps:
            if step.is_async:
                refuse_names([step.name], f"acquire({name!r})", "aacquire()")
        use = self._count(name, owner_id, steps[-1])
        if use.value is not MISSING:
            return use.value
        if timeout is not None or kwargs or not self._opened_now(use, steps, BLOCKING):
            drive(self._open(use, steps, timeout, kwargs, BLOCKING))
        return use.scope.find(use.recipe)

    async def aacquire(self, name: str, owner_id: str, timeout: float | None = None, **kwargs: Any) -> Any:
        """Asynchronous twin of :meth:`acquire`."""
        quick = self._quick.get(name)
        if quick is not None and timeout is None and not kwargs and self.ears is None and not quick[0].blocking:
            value = self._lend(quick, owner_id if type(owner_id) is str else str(owner_id))
            if value is not MISSING:
                return value
        steps = self.entry(name).steps()
        use = self._count(name, owner_id, steps[-1])
        if use.value is not MISSING:
            return use.value
        if timeout is not None or kwargs or not self._opened_now(use, steps, SUSPENDING):
            await self._open(use, steps, timeout, kwargs, SUSPENDING)
        return use.scope.find(use.recipe)

    def _count(self, name: str, owner_id: str, recipe: Recipe) -> Use:
        """Count one more use before anything opens.

        So no release of another thread can end the owner while this one still opens, nor what is open already.
        """
        with self._lock:
            if self.closed:
                raise self._closed_error(name, "acquire")
            owner_id = str(owner_id)  # a number would be taken for the engine's key of a run
            found = self.listed(owner_id) or self._new_owner(owner_id)
            scope = found.lending() if recipe.level == 2 and isinstance(found, OwnerScope) else found
            if scope.closed or scope.owner.closed:
                raise ScopeClosedError(scope.owner_id, name)
            counts = scope.counted()
            before = counts.get(name)
            if before is not None:
                counts[name] = Taken(before.recipe, before.times + 1)
                return Use(name, scope, before.recipe, scope.opened(before.recipe))
            if recipe.level != scope.level or recipe in scope.held:  # the last release must not end it
                scope.pinned.add(recipe)
            counts[name] = Taken(recipe, 1)
            return Use(name, scope, recipe, scope.opened(recipe))

    def _opened_now(self, use: Use, steps: Sequence[Recipe], world: World) -> bool:
        try:
            return use.recipe is steps[-1] and use.scope.open_now(steps, world, use.recipe)
        except BaseException as error:
            drive(self._uncount(use.name, use.scope, error, BLOCKING))
            raise

    async def _open(
        self, use: Use, steps: Sequence[Recipe], timeout: float | None, options: dict[str, Any], world: World
    ) -> None:
        if use.recipe is not steps[-1]:  # overridden since: it is open, or another opens it
            steps = (use.recipe,)
        try:
            await use.scope.open_waiting(steps, world, timeout=timeout, options=options, counted=use.recipe)
        except BaseException as error:
            await self._uncount(use.name, use.scope, error, world)
            raise

    async def _uncount(self, name: str, scope: Scope, error: BaseException | None, world: World) -> None:
        with suppress(NotHeldError):  # its owner was ended, the name unregistered, or somebody else released it
            rest = self._give_back(name, scope, error, world)
            if rest is not None:
                await rest

    # --- release -----------------------------------------------------------------------

    def release(self, name: str, owner_id: str) -> None:
        """Give back what *owner_id* acquired; the last of several acquires counts.

        Called while an exception is being handled, that exception is the outcome (a database rolls back).

        Raises:
            NotHeldError: the owner does not hold it.
        """
        error = sys.exception()
        if not self._give_loan_back(name, owner_id, error, BLOCKING):
            self._release_now(name, owner_id, error)

    async def arelease(self, name: str, owner_id: str) -> None:
        """Asynchronous twin of :meth:`release`."""
        await self._release(name, owner_id, sys.exception())

    def _release_now(self, name: str, owner_id: str, error: BaseException | None) -> None:
        if self._give_loan_back(name, owner_id, error, BLOCKING):
            return
        scope, taken = self._lent(name, owner_id)
        if taken.recipe.is_async:
            refuse_names([name], f"release({name!r})", "arelease()")
        if isinstance(scope.owner, OwnerScope) and not scope.owner.bracket:
            refuse_names(scope.async_names(), f"release({name!r})", "arelease()")
        rest = self._give_back(name, scope, error, BLOCKING)
        if rest is not None:
            drive(rest)

    async def _release(self, name: str, owner_id: str, error: BaseException | None) -> None:
        if self._give_loan_back(name, owner_id, error, SUSPENDING):
            return
        rest = self._give_back(name, self._lent(name, owner_id)[0], error, SUSPENDING)
        if rest is not None:
            await rest

    def _lent(self, name: str, owner_id: str) -> tuple[Scope, Taken]:
        """Return where *owner_id* holds what it acquired as *name*."""
        self.entry(name, "release")
        found = self._found(name, owner_id)
        if found is None:
            with self._lock:  # until who moves a loan into a scope is done
                pass
            found = self._found(name, owner_id)
        if found is None:
            raise NotHeldError(name, owner_id)
        return found

    def _found(self, name: str, owner_id: str) -> tuple[Scope, Taken] | None:
        scope = self.find(owner_id)
        for part in () if scope is None else parts_of(scope):
            if part.taken is not None and (taken := part.taken.get(name)) is not None:
                return part, taken
        return None

    def _give_back(self, name: str, scope: Scope, error: BaseException | None, world: World) -> Rest | None:
        """Count one use less and end what nobody uses any more, as far as nothing waits; return the rest."""
        lease, owner = self._discount(name, scope)
        if owner is None:
            return None if lease is None else self._end_lease(scope, lease, error, world)
        failures: list[BaseException] = []
        if not owner.leave_now(error, failures, world):
            return self._end_rest(owner, error, failures, world)
        if failures:
            raise_failures(failures, error, owner.owner_id)
        return None

    async def _end_lease(self, scope: Scope, lease: Lease, error: BaseException | None, world: World) -> None:
        try:
            await scope.end_lease(lease, error, world)
        except BaseException as failure:  # raised, or attached to the error in flight
            raise_failures([failure], error, scope.owner_id)

    async def _end_rest(
        self, owner: OwnerScope, error: BaseException | None, failures: list[BaseException], world: World
    ) -> None:
        failures += await owner._leave(outcome_of(error, failures), world)
        raise_failures(failures, error, owner.owner_id)

    def _discount(self, name: str, scope: Scope, times: int = 1) -> tuple[Lease | None, OwnerScope | None]:
        """Count uses less; return the lease that is over, which nobody can get any more, or the owner that is."""
        with self._lock:
            taken = None if scope.taken is None else scope.taken.get(name)
            if taken is None or scope.taken is None:
                raise NotHeldError(name, scope.owner_id)
            if taken.times > times:
                scope.taken[name] = Taken(taken.recipe, taken.times - times)
                return None, None
            del scope.taken[name]
            pinned = taken.recipe in scope.pinned
            scope.pinned.discard(taken.recipe)
            owner = scope.owner
            if isinstance(owner, OwnerScope) and not owner.is_wanted:
                self._end_owner(owner)
                return None, owner
            return None if pinned else scope.take_off(taken.recipe), None

    def _end_owner(self, owner: OwnerScope) -> None:
        """Let nobody find *owner* any more; the lock is held."""
        owner.closed = True
        self.forget(owner)

    def release_all(self, owner_id: str) -> None:
        """Give back everything that *owner_id* acquired; nothing held is no error."""
        error = sys.exception()
        if self._give_loan_back(None, owner_id, error, BLOCKING):
            return
        scope = self.find(owner_id)
        if scope is not None:
            refuse_names(_async_taken(scope), "release_all()", "arelease_all()")
            drive(self._release_all(scope, error, BLOCKING))

    async def arelease_all(self, owner_id: str) -> None:
        """Asynchronous twin of :meth:`release_all`."""
        error = sys.exception()
        if self._give_loan_back(None, owner_id, error, SUSPENDING):
            return
        scope = self.find(owner_id)
        if scope is not None:
            await self._release_all(scope, error, SUSPENDING)

    async def _release_all(self, scope: Scope, error: BaseException | None, world: World) -> None:
        failures: list[BaseException] = []
        if isinstance(scope, OwnerScope) and not scope.bracket:
            with self._lock:
                self._end_owner(scope)
            if not scope.leave_now(error, failures, world):
                failures += await scope._leave(outcome_of(error, failures), world)
        else:
            for part in parts_of(scope):
                for name, taken in reversed(list((part.taken or {}).items())):
                    if part.opened(taken.recipe) is not MISSING:  # what another still opens is acquired after this
                        outcome = outcome_of(error, failures)
                        await self._end_taken(name, part, taken.times, outcome, world=world, failures=failures)
        raise_failures(failures, error, scope.owner_id)

    async def _end_taken(
        self,
        name: str,
        scope: Scope,
        times: int,
        error: BaseException | None,
        *,
        world: World,
        failures: list[BaseException],
    ) -> None:
        """Count uses off; what that raises goes into *failures*, since the others must be released."""
        try:
            lease, owner = self._discount(name, scope, times)
            if lease is not None:
                await scope.end_lease(lease, error, world)
        except NotHeldError:  # another was faster
            return
        except BaseException as failure:
            failures.append(failure)
            return
        if owner is not None:
            failures += await owner._leave(outcome_of(error, failures), world)


def refuse_names(names: Sequence[str], what: str, instead: str) -> None:
    """Refuse a synchronous call that would meet asynchronous resources, before anything happens."""
    if names:
        raise AsyncResourceError(
            f"{what}: resource {names[0]!r} is asynchronous; use {instead}", names[0], what.partition("(")[0]
        )


def _async_taken(scope: Scope) -> list[str]:
    """Return the asynchronous ones of what release_all() would end."""
    if isinstance(scope, OwnerScope) and not scope.bracket:
        return scope.async_names()
    return [name for part in parts_of(scope) for name, taken in (part.taken or {}).items() if taken.recipe.is_async]
