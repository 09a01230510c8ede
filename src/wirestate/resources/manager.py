"""The manager: names, owners, and every verb that a person calls on them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self

from wirestate.errors import (
    AsyncResourceError,
    DuplicateResourceError,
    NotHeldError,
    OwnerInUseError,
    ReleaseFailedError,
    ResourceClosedError,
    ResourceError,
    UnknownResourceError,
)
from wirestate.resources.base import ResourceConfig, ResourceHealth, ResourceMetrics
from wirestate.resources.health import Probe
from wirestate.resources.managed import ManagedRecipe, managed_recipe
from wirestate.resources.pool import PoolConfig
from wirestate.resources.recipes import LEVELS, Lifetime, Recipe
from wirestate.resources.scopes import Entry, OwnerScope, RootScope, Scope, StateScope, raise_failures
from wirestate.resources.values import ValuesProvider
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive


class Holder(NamedTuple):
    """Who holds what, and since how many seconds."""

    resource: str
    owner_id: str
    seconds: float


class ProviderEntry:
    """A name behind which one registered provider stands."""

    def __init__(self, recipe: ManagedRecipe) -> None:
        self.name = recipe.name
        self.level = recipe.level
        self.recipe = recipe
        self.probe = Probe(recipe.name, recipe.provider)

    def steps(self) -> Sequence[Recipe]:
        return (self.recipe,)

    def value(self, scope: Scope) -> Any:
        return scope.find(self.recipe)


class ResourceManager:
    """Register providers, lend their resources to owners, and take everything back at the end.

    Example:
        >>> with ResourceManager() as manager:
        ...     manager.register_from_dict("settings", {"data": {"limit": 3}})
        ...     with manager.resource_context("settings", "job-1") as settings:
        ...         settings["limit"]
        3
    """

    def __init__(
        self, *, name: str = "manager", entries_of: Callable[[object], Sequence[Entry]] | None = None
    ) -> None:
        self.name = name
        self._entries_of = entries_of  # what scope.open(function) means, where functions have injections
        self.root = RootScope(self)
        self.owners: dict[Any, OwnerScope] = {}  # Any: a text, or the engine's own run
        self.closed = False
        self._entries: dict[str, Entry] = {}
        self._managed: list[ManagedRecipe] = []
        self._lock = threading.Lock()  # guards the three above; never held while a provider works

    # --- names -------------------------------------------------------------------------

    def register_provider(
        self,
        name: str,
        provider: Any,  # Any: whatever follows IResourceProvider
        pool_config: PoolConfig | None = None,
        *,
        lifetime: Lifetime | None = None,
    ) -> None:
        """Put *provider* behind *name*.

        Args:
            name: what owners ask for.
            provider: an object with the verbs of :class:`IResourceProvider`.
            pool_config: how many resources there may be; a provider with a pool of its own gets it.
            lifetime: how long a lease lasts inside scopes; None means what the provider says, else per state.

        Raises:
            DuplicateResourceError: the name is taken.
            InvalidSettingError: the provider cannot honour *pool_config*.
        """
        for verb in ("acquire", "release"):
            if not callable(getattr(provider, verb, None)):
                raise ResourceError(
                    f"provider of {name!r} has no {verb}(); derive it from BaseResourceProvider", name, "register"
                )
        if name in self._entries:
            raise DuplicateResourceError(name)
        level = LEVELS[lifetime or getattr(provider, "default_lifetime", "per_state")]
        recipe = managed_recipe(name, level, provider, pool_config)
        self.manage(recipe)
        self.register_entry(ProviderEntry(recipe))

    def manage(self, recipe: ManagedRecipe) -> None:
        """Close *recipe*'s provider when this manager closes."""
        recipe.manager = self
        with self._lock:
            self._managed.append(recipe)

    def register_entry(self, entry: Entry) -> None:
        """Put anything that can be opened behind its name."""
        with self._lock:
            if self.closed:
                raise self._closed_error(entry.name, "register")
            if entry.name in self._entries:
                raise DuplicateResourceError(entry.name)
            self._entries[entry.name] = entry

    def unregister_provider(self, name: str) -> None:
        """Take *name* back from every owner that holds it, and close its provider."""
        entry = self.entry(name, "unregister")
        recipe = self._recipe(entry)
        for scope in self._scopes():
            if recipe in scope.held:
                self._forget_taken(scope, recipe)
                drive(scope.end_one(recipe, None, BLOCKING))
        with self._lock:
            self._entries.pop(name, None)
        if isinstance(recipe, ManagedRecipe):
            with self._lock:
                self._managed.remove(recipe)
            drive(recipe.close(BLOCKING))

    def create_simple_provider(self, name: str, data: Any) -> ValuesProvider:
        """Make a provider that hands out copies of *data*; registering it is a second step."""
        return ValuesProvider(name, data)

    def register_from_dict(self, name: str, config: Mapping[str, Any]) -> None:
        """Register the values under ``data`` in *config*, or *config* itself."""
        self.register_provider(name, ValuesProvider(name, config.get("data", config)))

    @property
    def names(self) -> list[str]:
        """Every name, in the order of registration."""
        return list(self._entries)

    @property
    def entries(self) -> dict[str, Entry]:
        """What stands behind each name."""
        return dict(self._entries)

    def entry(self, name: str, operation: str = "acquire") -> Entry:
        """Return what stands behind *name*."""
        if self.closed:
            raise self._closed_error(name, operation)
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownResourceError(name, self._entries, operation) from None

    def entries_of(self, target: object) -> Sequence[Entry]:
        """Return the entries that ``scope.open(target)`` means."""
        if isinstance(target, str):
            return (self.entry(target),)
        if self._entries_of is not None:
            return self._entries_of(target)
        raise ResourceError(f"scope.open() takes names here, not {type(target).__name__}", None, "open")

    def _closed_error(self, name: str | None, operation: str) -> ResourceClosedError:
        return ResourceClosedError(f"{self.name} is closed; make a new one", name, operation)

    @staticmethod
    def _recipe(entry: Entry) -> Recipe:
        steps = entry.steps()
        if not steps:
            raise ResourceError(f"resource {entry.name!r} is overridden by a plain object", entry.name, "resolve")
        return steps[-1]

    # --- owners ------------------------------------------------------------------------

    def scope(self, owner_id: str | None = None) -> OwnerScope:
        """Open the bracket of one owner; use it with ``with`` or ``async with``.

        Raises:
            OwnerInUseError: *owner_id* has an open scope already.
        """
        return self.open_owner(f"owner-{id(object()):x}-{monotonic():.6f}" if owner_id is None else owner_id)

    def open_owner(self, owner_id: Any) -> OwnerScope:
        """Make the scope of *owner_id* and list it, without entering it."""
        if self.closed:
            raise self._closed_error(None, "scope")
        made = OwnerScope(self, owner_id)
        found = self.owners.setdefault(owner_id, made)
        if found is made:
            return made
        if found.bracket:
            raise OwnerInUseError(str(owner_id))
        found.bracket = True  # until now only acquire() knew this owner: the scope takes over what it holds
        return found

    def forget(self, scope: OwnerScope) -> None:
        """Take an ended owner off the list."""
        self.owners.pop(scope.key, None)

    def _owner_scope(self, owner_id: str, *, make: bool) -> Scope | None:
        """Return the scope that *owner_id* names: an owner, one of its visits, or a new owner."""
        found = self.owners.get(owner_id)
        if found is None:
            for owner in list(self.owners.values()):
                if owner_id.startswith(owner.owner_id):
                    if owner.owner_id == owner_id:
                        return owner
                    for visit in owner.visits:
                        if visit.owner_id == owner_id:
                            return visit
            if make:
                made = OwnerScope(self, owner_id)
                made.bracket = False
                found = self.owners.setdefault(owner_id, made)
        return found

    def _place(self, owner_id: str, recipe: Recipe, *, make: bool = False) -> Scope | None:
        """Return the scope where *recipe* is, or would be, held for *owner_id*."""
        scope = self._owner_scope(owner_id, make=make)
        if isinstance(scope, OwnerScope) and recipe.level == 2:
            return scope.lending() if make else scope.lent
        return scope

    # --- acquire and release -----------------------------------------------------------

    def acquire(self, name: str, owner_id: str, timeout: float | None = None, **kwargs: Any) -> Any:
        """Lend the resource called *name* to *owner_id*.

        The same owner gets the same resource again; it leaves with the last release.

        Args:
            name: a registered name.
            owner_id: any text.
            timeout: seconds; 0 means now or never, None what its pool says.
            kwargs: for the provider's own ``acquire``.

        Raises:
            ResourceError: it is unknown, closed, late, or its provider failed (then that is the cause).
        """
        return drive(self._acquire(name, owner_id, timeout, kwargs, BLOCKING))

    async def aacquire(self, name: str, owner_id: str, timeout: float | None = None, **kwargs: Any) -> Any:
        """Asynchronous twin of :meth:`acquire`."""
        return await self._acquire(name, owner_id, timeout, kwargs, SUSPENDING)

    async def _acquire(
        self, name: str, owner_id: str, timeout: float | None, options: dict[str, Any], world: World
    ) -> Any:
        entry = self.entry(name)
        steps = entry.steps()
        if not world.is_async:
            refuse_async(steps, f"acquire({name!r})", "aacquire")
        if not steps:
            return entry.value(self.root)
        recipe = steps[-1]
        while True:
            scope = self._place(owner_id, recipe, make=True)
            assert scope is not None, "a new owner was allowed"
            place = scope if recipe.level == scope.level else scope.place_of(recipe)
            own = recipe not in place.held
            if timeout is not None or options or not scope.open_now(steps):
                await scope.open_waiting(steps, world, timeout=timeout, options=options)
            with self._lock:
                if scope.closed or scope.owner.closed:
                    if self.closed:
                        raise self._closed_error(name, "acquire")
                    continue  # its last release ended the owner meanwhile: begin again with a new one
                if scope.taken is None:
                    scope.taken, scope.pinned = {}, set()
                if recipe not in scope.taken and (not own or place is not scope):
                    scope.pinned.add(recipe)
                scope.taken[recipe] = scope.taken.get(recipe, 0) + 1
            return entry.value(scope)

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
        recipe = self._recipe(self.entry(name, "release"))
        scope = self._place(owner_id, recipe)
        if scope is None or not scope.taken or recipe not in scope.taken:
            raise NotHeldError(name, owner_id)
        if not world.is_async:
            refuse_async([recipe], f"release({name!r})", "arelease")
        with self._lock:
            scope.taken[recipe] -= 1
            last = scope.taken[recipe] == 0
            pinned = recipe in scope.pinned
            if last:
                self._forget_taken(scope, recipe)
        if last and not pinned:
            await scope.end_one(recipe, error, world)
        if last:
            await self._end_if_idle(scope, error, world)

    @staticmethod
    def _forget_taken(scope: Scope, recipe: Recipe) -> None:
        if scope.taken is not None:
            scope.taken.pop(recipe, None)
        scope.pinned.discard(recipe)

    async def _end_if_idle(self, scope: Scope, error: BaseException | None, world: World) -> None:
        """End an owner that only acquire() knew, once it holds nothing that was asked for."""
        owner = scope.owner
        assert isinstance(owner, OwnerScope), "resources are lent to owners"
        with self._lock:
            if owner.bracket or owner.taken or (owner.lent is not None and owner.lent.taken):
                return
            owner.closed = True
            self.forget(owner)
        raise_failures(await owner._leave(error, world), error, owner.owner_id)

    def release_all(self, owner_id: str) -> None:
        """Give back everything that *owner_id* acquired; nothing held is no error."""
        drive(self._release_all(owner_id, sys.exception(), BLOCKING))

    async def arelease_all(self, owner_id: str) -> None:
        """Asynchronous twin of :meth:`release_all`."""
        await self._release_all(owner_id, sys.exception(), SUSPENDING)

    async def _release_all(self, owner_id: str, error: BaseException | None, world: World) -> None:
        scope = self._owner_scope(owner_id, make=False)
        if scope is None:
            return
        if not world.is_async:
            names = scope.async_names()
            if names:
                raise AsyncResourceError(f"{names[0]!r} is asynchronous; use arelease_all()", names[0], "release")
        if isinstance(scope, OwnerScope) and not scope.bracket:
            with self._lock:
                scope.closed = True
                self.forget(scope)
            raise_failures(await scope._leave(error, world), error, owner_id)
            return
        failures: list[BaseException] = []
        inner = [scope, scope.lent] if isinstance(scope, OwnerScope) and scope.lent is not None else [scope]
        for part in reversed(inner):
            for recipe in reversed(list(part.taken or ())):
                pinned = recipe in part.pinned
                self._forget_taken(part, recipe)
                if not pinned:
                    try:
                        await part.end_one(recipe, error, world)
                    except Exception as failure:  # carried on: the others must be released
                        failures.append(failure)
        raise_failures(failures, error, owner_id)

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
        had: dict[str, Any] = {}
        for requirement in requirements:
            try:
                had[requirement.name] = self.acquire(requirement.name, owner_id, requirement.timeout)
            except ResourceError:
                if requirement.required:
                    for name in reversed([name for name, value in had.items() if value is not None]):
                        self.release(name, owner_id)
                    raise
                had[requirement.name] = None
        return had

    # --- questions ---------------------------------------------------------------------

    def has_resource(self, name: str, owner_id: str) -> bool:
        """Tell whether *owner_id* holds *name* now."""
        return name in self._held_by(owner_id)

    def get_resource(self, name: str, owner_id: str) -> Any:
        """Return what *owner_id* holds under *name*; None if it holds nothing there."""
        return self._held_by(owner_id).get(name)

    def _held_by(self, owner_id: str) -> dict[str, Any]:
        scope = self._owner_scope(owner_id, make=False)
        if scope is None:
            return {}
        parts = [scope, *([scope.lent] if isinstance(scope, OwnerScope) and scope.lent else [])]
        held = {recipe.name: s.place_of(recipe).held.get(recipe) for s in parts for recipe in s.taken or ()}
        for part in parts:
            held |= {recipe.name: value for recipe, value in list(part.held.items())}
        return held

    def get_resource_owners(self, name: str) -> list[str]:
        """Return the ids of all owners and visits that hold *name*."""
        self.entry(name, "owners")
        owners = dict.fromkeys(holder.owner_id for holder in self.holders() if holder.resource == name)
        for scope in self._scopes():
            if any(recipe.name == name for recipe in scope.taken or ()):
                owners[scope.owner_id] = None
        owners.pop(self.root.owner_id, None)
        return list(owners)

    def holders(self) -> list[Holder]:
        """Return every lease that is open: resource, owner, seconds held."""
        now = monotonic()
        return [
            Holder(recipe.name, scope.owner_id, now - since)
            for scope in self._scopes()
            for recipe, _, since in list(scope.exits)
        ]

    def _scopes(self) -> Iterator[Scope]:
        yield self.root
        for owner in list(self.owners.values()):
            yield owner
            yield from list(owner.visits)
            if owner.lent is not None:
                yield owner.lent

    def get_resource_status(self, name: str) -> dict[str, Any]:
        """Return ``provider_exists has_pool active_count owners lifetime health`` of one resource."""
        entry = self._entries.get(name)
        if entry is None:
            return {"provider_exists": False, "has_pool": False, "active_count": 0, "owners": []}
        steps = entry.steps()
        recipe = steps[-1] if steps else None
        probe = getattr(entry, "probe", None)
        owners = self.get_resource_owners(name)
        return {
            "provider_exists": True,
            "has_pool": isinstance(recipe, ManagedRecipe) and (recipe.pool or recipe.gate) is not None,
            "active_count": len(owners),
            "owners": owners,
            "health": probe.answer if probe is not None else ResourceHealth.UNKNOWN,
        }

    def get_all_resources(self) -> dict[str, dict[str, Any]]:
        """Return the status of every resource by its name."""
        return {name: self.get_resource_status(name) for name in self.names}

    def validate_resource(self, name: str) -> bool:
        """Tell whether the resource can be used now: its probe does not say unhealthy, and a lease validates."""
        if self.health_check(name)[name] is ResourceHealth.UNHEALTHY:
            return False
        recipe = self._recipe(self.entry(name, "validate"))
        if not isinstance(recipe, ManagedRecipe) or recipe.calls.validate is None or recipe.is_async:
            return True
        try:
            with self.resource_context(name, f"validate-{name}-{threading.get_ident()}", timeout=5.0) as resource:
                return bool(recipe.calls.validate(resource))
        except ResourceError:
            return False

    def health_check(self, name: str | None = None) -> dict[str, ResourceHealth]:
        """Probe one resource, or all of them; each probe is bounded in time."""
        entries = [self.entry(name, "health_check")] if name is not None else list(self._entries.values())
        return {entry.name: self._probe(entry) for entry in entries}

    @staticmethod
    def _probe(entry: Entry) -> ResourceHealth:
        probe = getattr(entry, "probe", None)
        return probe.ask() if probe is not None else ResourceHealth.UNKNOWN

    def get_metrics(self, name: str | None = None) -> dict[str, Any]:
        """Return counters by name; a pooled resource also has ``"<name>_pool"``.

        Values are :class:`ResourceMetrics`; those of pools have ``size`` (idle + used) and ``available`` (idle).
        """
        found: dict[str, Any] = {}  # Any: ResourceMetrics or a pool's snapshot
        for entry in list(self._entries.values()):
            steps = entry.steps()
            if not steps:
                continue
            found[entry.name] = steps[-1].metrics()
            recipe = steps[-1]
            if isinstance(recipe, ManagedRecipe) and (pool := recipe.pool_snapshot()) is not None:
                found[f"{entry.name}_pool"] = pool
        if name is None:
            return found
        wanted = {key: value for key, value in found.items() if key in (name, f"{name}_pool")}
        if not wanted:
            raise UnknownResourceError(name, found, "get_metrics")
        return wanted

    # --- the end -----------------------------------------------------------------------

    def close(self) -> None:
        """Release everything, newest first, then close every provider.

        Raises:
            AsyncResourceError: something asynchronous is open (nothing was released); use aclose().
            ReleaseFailedError: releases failed; everything else was released.
        """
        if self.closed:
            return
        names = self.async_names()
        if names:
            raise AsyncResourceError(
                f"{names[0]!r} is open and asynchronous; use 'await manager.aclose()' or 'async with'",
                names[0],
                "close",
            )
        drive(self._close(None, BLOCKING))

    def async_names(self) -> list[str]:
        """Names of what is open and can only be closed with an event loop."""
        names = [name for scope in (self.root, *self.owners.values()) for name in scope.async_names()]
        return names + [recipe.name for recipe in self._managed if recipe.closes_async and _was_used(recipe)]

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
            failures += await owner._leave(error, world)
        failures += await self.root.end(error, world)
        for recipe in managed:
            try:
                await recipe.close(world)
            except Exception as failure:  # carried on: the others must be closed
                failure.add_note(f"raised while the provider of {recipe.name!r} was closed")
                failures.append(failure)
        if failures:
            raise ReleaseFailedError(f"closing {self.name} failed", [f for f in failures if isinstance(f, Exception)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with _attaching(error):
            self.close() if error is None else drive(self._close(error, BLOCKING))

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

    def __enter__(self) -> Any:
        return self._manager.acquire(*self._ask)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with _attaching(error):
            drive(self._manager._release(*self._ask[:2], error, BLOCKING))

    async def __aenter__(self) -> Any:
        return await self._manager.aacquire(*self._ask)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
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
            raise AsyncResourceError(
                f"{what}: resource {recipe.name!r} is asynchronous; use {twin}()", recipe.name, "acquire"
            )


def _was_used(recipe: ManagedRecipe) -> bool:
    return bool(recipe.metrics().total_acquisitions)
