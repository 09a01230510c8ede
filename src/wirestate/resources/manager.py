"""The manager: register, lend, ask, and take everything back at the end."""

from __future__ import annotations

import asyncio
import logging
import sys
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from wirestate.errors import ResourceClosedError, ResourceError, UnknownResourceError
from wirestate.redaction import half_made_too
from wirestate.resources.base import ResourceConfig, ResourceHealth
from wirestate.resources.endings import Lease
from wirestate.resources.failures import attaching, note, outcome_of, raise_failures
from wirestate.resources.health import ask_all
from wirestate.resources.lending import Lending, refuse_names
from wirestate.resources.loans import Loan
from wirestate.resources.managed import ManagedRecipe
from wirestate.resources.openings import Opening, opener
from wirestate.resources.owners import OwnerScope
from wirestate.resources.questions import last_step
from wirestate.resources.recipes import Recipe
from wirestate.resources.registry import ProviderEntry, new_owner_id
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive, running_loop

log = logging.getLogger("wirestate.resources")

VALIDATION_TIMEOUT = 5.0
TOLD_AT_MOST = 10  # owners in the log record of a close


class ResourceManager(Lending):
    """Register providers, lend their resources to owners, and take everything back at the end.

    Args:
        listener: hears of leases, leaks, breakers and health.

    Example:
        >>> with ResourceManager() as manager:
        ...     manager.register_from_dict("settings", {"data": {"limit": 3}})
        ...     with manager.resource_context("settings", "job-1") as settings:
        ...         settings["limit"]
        3
    """

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
                    if world.is_async:
                        await self._release(name, owner_id, error)
                    else:
                        self._release_now(name, owner_id, error)
                raise
        return had

    def validate_resource(self, name: str) -> bool:
        """Tell whether the resource can be used now: its probe does not say unhealthy, and a lease validates."""
        return drive(self._validate(name, BLOCKING))

    async def avalidate_resource(self, name: str) -> bool:
        """Asynchronous twin of :meth:`validate_resource`."""
        return await self._validate(name, SUSPENDING)

    async def _validate(self, name: str, world: World) -> bool:
        recipe = last_step(self.entry(name, "validate")).source
        calls = recipe.calls if isinstance(recipe, ManagedRecipe) else None
        if recipe.is_async and not world.is_async:
            refuse_names([name], "validate_resource()", "avalidate_resource()")
        probes = {} if recipe.probe is None else {name: recipe.probe}
        if ResourceHealth.UNHEALTHY in (await ask_all(probes, world)).values():
            return False
        if calls is None or calls.validate is None:
            return True
        context = self.resource_context(name, f"validate-{new_owner_id()}", VALIDATION_TIMEOUT)
        try:
            if not world.is_async:
                with context as resource:
                    return bool(calls.validate(resource))
            async with context as resource:
                if calls.validate_is_async:
                    return bool(await calls.validate(resource))
                return bool(await recipe.call(world, partial(calls.validate, resource)))
        except Exception as error:  # what cannot be had, checked or given back cannot be used
            log.debug("%r is not valid: %s", name, type(error).__name__)
            return False

    # --- resets ------------------------------------------------------------------------

    def reset(self, recipes: Collection[Recipe]) -> asyncio.Task[None] | None:
        """End *recipes*, which live as long as this manager, and close what they were made by; the newest first.

        Returns:
            What ends them where an event loop must; whoever asks for one of them meanwhile waits for its end.

        Raises:
            AsyncResourceError: one is open and asynchronous, and no event loop runs here; nothing was ended.
        """
        names = [recipe.name for recipe in recipes if self._ends_in_loop(recipe)]
        loop = running_loop()
        if names and loop is None:
            refuse_names(names, "reset()", f"'await container.{names[0]}.reset()' in its event loop")
        world = SUSPENDING if names else BLOCKING
        taken: list[tuple[Recipe, Opening, Lease | None]] = []
        with self._lock:
            order = [lease[0] for lease in reversed(self.root.exits) if lease[0] in recipes]
            for recipe in dict.fromkeys((*order, *recipes)):
                if not self.root.is_opening(recipe):  # else it is made anew at this moment
                    token = Opening(opener(world))
                    taken.append((recipe, token, self.root.take_over(recipe, token)))
        work = self._end_reset(taken, world)
        if not names or loop is None:
            drive(work)
            return None
        task = loop.create_task(work)
        for _, token, _ in taken:
            token.by = task
        self._resets.add(task)
        task.add_done_callback(self._resets.discard)
        return task

    def _ends_in_loop(self, recipe: Recipe) -> bool:
        made = recipe.source
        is_open = any(lease[0] is recipe for lease in list(self.root.exits))
        return (is_open and recipe.is_async) or (isinstance(made, ManagedRecipe) and made.needs_loop)

    async def _end_reset(self, taken: Sequence[tuple[Recipe, Opening, Lease | None]], world: World) -> None:
        failures: list[BaseException] = []
        try:
            for recipe, _, lease in taken:
                try:
                    if lease is not None:
                        await self.root.end_lease(lease, outcome_of(None, failures), world)
                except Exception as failure:  # carried on: the others must be ended
                    failures.append(failure)
                made = recipe.renew()
                if isinstance(made, ManagedRecipe):
                    with self._lock, suppress(ValueError):  # it was closed with the manager
                        self._managed.remove(made)
                    if made.probe is not None:
                        await made.probe.close(world)
                    await _close_provider(made, world, failures)
        finally:
            for recipe, token, _ in taken:
                self.root.settle(recipe, token)
        raise_failures(failures, None, self.name)

    # --- the end -----------------------------------------------------------------------

    def unregister_provider(self, name: str) -> None:
        """Take *name* back from every owner that holds it (it is rolled back), and close its provider."""
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
            refuse_names([name], "unregister_provider()", "aunregister_provider()")
        with self._lock:
            if self._entries.get(name) is not entry:  # another thread was faster
                raise UnknownResourceError(name, self._entries, "unregister")
            del self._entries[name]
            self._quick.pop(name, None)
            for owner_id, loan in list(self._loans.items()):
                if loan.recipe is recipe:
                    self._new_owner(owner_id)
            self._managed.remove(recipe)
        if recipe.probe is not None:
            await recipe.probe.close(world)
        failures: list[BaseException] = []
        for scope in list(self.scopes()):
            error = ResourceClosedError(
                f"{name!r} was unregistered before {scope.owner_id!r} released it", name, "close"
            )
            try:
                await self._end_taken(name, scope, sys.maxsize, error, world=world, failures=failures)
                await scope.end_one(recipe, error, world)
            except BaseException as failure:  # carried on: the others must be released, and the provider closed
                failures.append(failure)
        await _close_provider(recipe, world, failures)
        raise_failures(failures, None, f"unregister {name}")

    def absorb(self, other: ResourceManager) -> None:
        """Take over what lives as long as *other*, which is closed without closing any of it."""
        with other._lock:
            other.closed = True
            managed, other._managed = other._managed, []
        drive(other.stop_monitors(BLOCKING))
        for lent in managed:
            self.manage(lent)
        for recipe, handle, since in other.root.exits:
            recipe.manager = self
            self.root.held[recipe] = other.root.held[recipe]
            self.root.exits.append((recipe, handle, since))
        other.root.exits = []

    def close(self) -> None:
        """Release everything, newest first, then close every provider.

        What an owner acquired and has not given back is rolled back, and told in a log record: nobody said that it
        went well. Called while an exception is being handled, that exception is the outcome.

        Raises:
            AsyncResourceError: something asynchronous is open (nothing was released); use aclose().
            ReleaseFailedError: releases failed; everything else was released.
        """
        self.close_with(sys.exception())

    def close_with(self, error: BaseException | None) -> None:
        """As :meth:`close`, with *error* as the outcome."""
        if not self.closed:
            refuse_names(self.async_names(), "close()", "'await manager.aclose()' or 'async with'")
            drive(self._close(error, BLOCKING))

    def async_names(self) -> list[str]:
        """Names of what is open and can only be closed with an event loop."""
        names = [name for scope in (self.root, *list(self.owners.values())) for name in scope.async_names()]
        names += [recipe.name for recipe in list(self._managed) if recipe.needs_loop]
        return names + ["what was reset" for task in list(self._resets) if not task.get_loop().is_closed()]

    async def aclose(self) -> None:
        """Asynchronous twin of :meth:`close`."""
        await self.aclose_with(sys.exception())

    async def aclose_with(self, error: BaseException | None) -> None:
        """Asynchronous twin of :meth:`close_with`."""
        await self._close(error, SUSPENDING)

    async def cleanup(self) -> None:
        """Do what :meth:`aclose` does."""
        await self.aclose()

    async def _close(self, error: BaseException | None, world: World) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = True
            loans = list(self._loans.items())  # who comes later sees that this is closed, and takes the loan back
            for owner_id, loan in loans:
                # Its opener finds a closed scope; a scope tells its end, and waits for it in a thread.
                if not loan.since or self.ears is not None or loan.recipe.waits_in(world):
                    self._new_owner(owner_id)
            # Any: whatever owners are listed by
            left = [(owner_id, loan) for owner_id, loan in loans if self._loans.get(owner_id) is loan]
            parties: list[tuple[Any, OwnerScope | Loan]] = [*self.owners.items(), *left]
            managed = self._managed[::-1]
            self._managed.clear()
            held = self._unreleased()
        if held:
            more = [f"and {len(held) - TOLD_AT_MOST} more"] if len(held) > TOLD_AT_MOST else []
            log.warning(
                "%s was closed before everything was released, and rolled back: %s",
                self.name,
                "; ".join([told(*one) for one in held[:TOLD_AT_MOST]] + more),
            )
        parties.sort(key=_since)
        if under_way := [task for task in list(self._resets) if task.get_loop() is running_loop()]:
            await asyncio.wait(under_way)  # what goes wrong there is raised to who awaits the reset
        await self.stop_monitors(world)
        for recipe in managed:
            if recipe.probe is not None:
                await recipe.probe.close(world)
        failures: list[BaseException] = []
        for key, party in reversed(parties):
            if isinstance(party, OwnerScope):
                failures += await self._end_inside(party, error, world)
            elif self._loans.pop(key, None) is not None:  # not released meanwhile
                outcome = error if error is not None or party.release is not None else self._closed_before_release(key)
                failure = self._ended(key, party, outcome)
                failures += [] if failure is None else [failure]
        failures += await self.root.end(error, world)
        for recipe in managed:
            await _close_provider(recipe, world, failures)
        for threads in (self.call_threads, self.visit_threads):
            threads.close()
        raise_failures(failures, None, self.name)

    async def expel(self, owners: Sequence[OwnerScope], world: World) -> None:
        """End *owners* now, as the end of this manager would; what they hold must be what *world* can end."""
        failures: list[BaseException] = []
        for owner in reversed(owners):
            failures += await self._end_inside(owner, None, world)
        raise_failures(failures, None, self.name)

    async def _end_inside(self, owner: OwnerScope, error: BaseException | None, world: World) -> list[BaseException]:
        """End an owner who has not left: it may be in the middle of something, which must not be kept."""
        if owner.bracket:
            if owner.interrupt() and error is None:
                error = owner.interruption()
        elif error is None:
            error = self._closed_before_release(owner.owner_id)
        failures: list[BaseException] = []
        if not owner.leave_now(error, failures, world):
            return failures + await owner._leave(outcome_of(error, failures), world)
        self.forget(owner)
        return failures

    def _closed_before_release(self, owner_id: str) -> ResourceClosedError:
        return ResourceClosedError(
            f"{self.name} was closed before {owner_id!r} released what it had acquired, which was rolled back",
            None,
            "close",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with attaching(error):
            self.close_with(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with attaching(error):
            await self.aclose_with(error)

    def __del__(self) -> None:
        # An interrupt may have left it half made. What rests in pools cannot be told any more: it may be finalized.
        if getattr(self, "closed", True) or sys.is_finalizing():
            return
        if held := [told(*one) for one in self._unreleased()]:
            warnings.warn(
                f"{self.name} was lost before it was closed: {'; '.join(held)}.  Close it, or use it with 'with'",
                ResourceWarning,
                stacklevel=1,
                source=self,
            )

    def _unreleased(self) -> list[tuple[str, Recipe]]:
        """Return who has not given back what a release would end."""
        loans = [(owner, loan.recipe) for owner, loan in self._loans.items() if loan.since]
        scopes = (scope for scope in self.scopes() if scope is not self.root)
        leases = [(scope.owner_id, lease[0]) for scope in scopes for lease in scope.exits]
        return [(owner, recipe) for owner, recipe in loans + leases if recipe.must_end]

    @half_made_too
    def __repr__(self) -> str:
        owners = len(self.owners) + len(self._loans)
        state = "closed" if self.closed else f"{len(self._entries)} resources, {owners} owners"
        return f"<ResourceManager {state}>"


class ResourceContext:
    """One acquire and its release, in both worlds."""

    def __init__(self, manager: ResourceManager, name: str, owner_id: str, timeout: float | None) -> None:
        self._ask = (name, owner_id, timeout)
        self._manager = manager

    def __enter__(self) -> Any:  # Any: the resource
        return self._manager.acquire(*self._ask)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._is_held(error):
            with attaching(error):
                self._manager._release_now(*self._ask[:2], error)

    async def __aenter__(self) -> Any:  # Any: the resource
        return await self._manager.aacquire(*self._ask)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._is_held(error):
            with attaching(error):
                await self._manager._release(*self._ask[:2], error)

    def _is_held(self, error: BaseException | None) -> bool:
        if not self._manager.closed:
            return True
        if error is None:  # the body must not take for kept what the close has rolled back
            raise self._manager._closed_before_release(self._ask[1])
        return False


def _since(party: tuple[Any, OwnerScope | Loan]) -> float:  # Any: as there
    return party[1].since


def told(owner_id: str, recipe: Recipe) -> str:
    """Tell for an operator who holds what."""
    return f"{owner_id!r} holds {recipe.name!r}"


async def _close_provider(recipe: ManagedRecipe, world: World, failures: list[BaseException]) -> None:
    try:
        await recipe.close(world)
    except BaseException as failure:  # carried on: the others must be closed
        note(failure, f"raised while the provider of {recipe.name!r} was closed")
        failures.append(failure)
    recipe.listen(None)  # what still ends by itself, such as a request under way, is told to nobody
