"""Names and what stands behind them; owners and how they are found."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from wirestate.errors import DuplicateResourceError, ResourceClosedError, ResourceError, UnknownResourceError
from wirestate.observing import Listener
from wirestate.resources import inherited
from wirestate.resources.health import Probe
from wirestate.resources.loans import Loan, Quick, quick_of
from wirestate.resources.managed import ManagedRecipe
from wirestate.resources.managed_pools import managed_recipe
from wirestate.resources.monitor import HealthMonitor
from wirestate.resources.owners import OwnerScope, RootScope
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.recipes import LEVELS, Lifetime, Recipe
from wirestate.resources.reports import tell
from wirestate.resources.scopes import MISSING, Entry, Scope
from wirestate.resources.threads import SHARED_THREADS, Threads
from wirestate.resources.values import ValuesProvider
from wirestate.waiting import World

log = logging.getLogger("wirestate.resources")

_numbers = itertools.count(1)
StepsOf = Callable[[object], Sequence[Recipe]]
on_new: Callable[[Registry], object] | None = None  # hears of each that is made: set while a test is watched


class ProviderEntry:
    """A name behind which one registered provider stands."""

    def __init__(self, recipe: ManagedRecipe) -> None:
        self.name = recipe.name
        self.level = recipe.level
        self.recipe = recipe
        self._steps = (recipe,)

    def steps(self) -> Sequence[Recipe]:
        return self._steps

    def forget(self) -> None:
        """Keep the provider in a forked child."""


class Both(Listener):
    """Tell two listeners of leases."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def on_open(self, resource: str, owner_id: str, seconds: float) -> None:
        for one in self._listeners:
            tell(one.on_open, resource, owner_id, seconds)

    def on_close(self, resource: str, owner_id: str, seconds: float, error: BaseException | None) -> None:
        for one in self._listeners:
            tell(one.on_close, resource, owner_id, seconds, error)


class Registry:
    """Know every name and every owner of one manager."""

    def __init__(
        self, *, name: str = "manager", steps_of: StepsOf | None = None, listener: Listener | None = None
    ) -> None:
        self.name = name
        self.ears = self._listener = listener
        self._watcher: Listener | None = None
        self.monitors: WeakSet[HealthMonitor] = WeakSet()
        self._monitor: HealthMonitor | None = None  # of what is probed because its settings say so
        self._steps_of = steps_of  # what scope.open(function) opens, where functions have injections
        self.root = RootScope(self)
        self.owners: dict[Any, OwnerScope] = {}  # Any: a text, or the engine's own key of a run
        self.key_of: Callable[[str], Any] = _no_key  # the key of an owner that is not listed under its text
        self.closed = False
        self._loans: dict[str, Loan] = {}  # by owner id, of owners who hold one thing and have no scope
        self._quick: dict[str, Quick] = {}  # names that can be lent so
        self._entries: dict[str, Entry] = {}
        self._managed: list[ManagedRecipe] = []
        self._resets: set[asyncio.Task[None]] = set()  # what ends singletons that were reset in a loop
        self._lock = threading.Lock()  # guards owners, entries and managed; never held while a provider works
        # Of blocking resources without a pool. Two, since who stays in a visit may wait for what a call opens.
        self.call_threads = Threads("calls", SHARED_THREADS)
        self.visit_threads = Threads("visits", SHARED_THREADS)
        inherited.forget_at_fork(self)
        if on_new is not None:
            on_new(self)

    def forget_parent(self) -> None:
        """Hold nothing: in a forked child, whose parent goes on with all that is open."""
        scopes = list(self.scopes())
        inherited.keep(scopes, self._managed, [scope.held for scope in scopes], [scope.exits for scope in scopes])
        for scope in scopes:  # the child may be inside one, and will leave it
            scope.held, scope.exits, scope.closed = {}, [], True
        inherited.keep(self._loans)
        self.root, self.owners, self._loans, self._lock = RootScope(self), {}, {}, threading.Lock()
        # Who registered a provider could make another, not we: it stays, with new resources.
        self._managed = [entry.recipe for entry in self._entries.values() if isinstance(entry, ProviderEntry)]
        for recipe in self._managed:
            recipe.inherit()
        for entry in self._entries.values():
            entry.forget()

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
        if self.closed:
            raise self._closed_error(name, "register")
        if name in self._entries:
            raise DuplicateResourceError(name)
        own: Lifetime = getattr(provider, "default_lifetime", "per_state")
        recipe = managed_recipe(name, LEVELS[lifetime or own], provider, pool_config)
        self.register_entry(ProviderEntry(recipe))
        self.manage(recipe)
        if (quick := quick_of(recipe)) is not None:
            self._quick[name] = quick

    def register_entry(self, entry: Entry, *, replace: bool = False) -> None:
        """Put anything that can be opened behind its name."""
        with self._lock:
            if self.closed:
                raise self._closed_error(entry.name, "register")
            if entry.name in self._entries and not replace:
                raise DuplicateResourceError(entry.name)
            self._entries[entry.name] = entry
            self._quick.pop(entry.name, None)

    def manage(self, recipe: ManagedRecipe) -> None:
        """Close *recipe*'s provider when this manager closes."""
        recipe.manager = self
        with self._lock:
            self._managed.append(recipe)
        if self._listener is not None:
            recipe.listen(self._listener)
        if recipe.probe is not None and recipe.probe.interval is not None:
            with self._lock:
                monitor = self._monitor = self._monitor or HealthMonitor(self, interval=None)
            monitor.start()

    async def stop_monitors(self, world: World) -> None:
        """Probe no more in the background."""
        for monitor in list(self.monitors):
            await monitor.end(world)

    @property
    def listener(self) -> Listener | None:
        """Who hears of leases, leaks, breakers and health; may be set at any time."""
        return self._listener

    @listener.setter
    def listener(self, listener: Listener | None) -> None:
        self._listener = listener
        self.watch(self._watcher)
        for recipe in list(self._managed):
            recipe.listen(listener)

    def watch(self, watcher: Listener | None) -> None:
        """Let *watcher*, which is no listener of the user's, hear of every lease."""
        self._watcher = watcher
        both = [one for one in (watcher, self._listener) if one is not None]
        self.ears = Both(*both) if len(both) > 1 else both[0] if both else None

    def probes(self, *, made: bool = False) -> dict[str, Probe]:
        """Return what can be asked for its health, by name; or only what was *made* so far."""
        found: dict[str, Probe | None] = {}
        if made:
            found = {recipe.name: recipe.probe for recipe in list(self._managed)}
        else:
            for entry in list(self._entries.values()):
                try:
                    found[entry.name] = entry.steps()[-1].source.probe
                except Exception as error:  # a constructor of the user's: who acquires it will be told
                    log.debug("%r cannot be probed: %s", entry.name, type(error).__name__)
        return {name: probe for name, probe in found.items() if probe is not None}

    def create_simple_provider(self, name: str, data: Mapping[str, Any]) -> ValuesProvider:  # Any: the user's values
        """Make a provider that hands out copies of *data*; registering it is a second step."""
        return ValuesProvider(name, data)

    def register_from_dict(self, name: str, config: Mapping[str, Any]) -> None:  # Any: the user's values
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

    def steps_of(self, target: object) -> Sequence[Recipe]:
        """Return what ``scope.open(target)`` opens: a name, or all that a function injects."""
        if isinstance(target, str):
            return self.entry(target).steps()
        if self._steps_of is not None:
            return self._steps_of(target)
        raise ResourceError(f"scope.open() takes names here, not {type(target).__name__}", None, "open")

    def _closed_error(self, name: str | None, operation: str) -> ResourceClosedError:
        return ResourceClosedError(f"{self.name} is closed; make a new one", name, operation)

    # --- owners ------------------------------------------------------------------------

    def find(self, owner_id: str) -> Scope | None:
        """Return the scope that *owner_id* names: an owner's, made now if it has a loan, or a visit's."""
        owner_id = str(owner_id)  # a number would be taken for the engine's key of a run
        found = self.listed(owner_id)
        if found is None and owner_id in self._loans:
            with self._lock:
                found = self.listed(owner_id)
                if found is None:
                    found = made = self._new_owner(owner_id)
                    if not made.is_wanted:  # released meanwhile
                        self.forget(made)
                        return None
        return found

    def _new_owner(self, owner_id: str) -> OwnerScope:
        """Make the scope of an owner who has none; it takes over what the owner has on loan. The lock is held."""
        owner = OwnerScope(self, owner_id)
        owner.bracket = False
        self.owners[owner_id] = owner  # before the loan is taken off: who lends looks in the other order
        loan = self._loans.pop(owner_id, None)
        if loan is not None:
            loan.move(owner)
        return owner

    def listed(self, owner_id: str) -> Scope | None:
        """Return the scope that *owner_id* names, if it has been made."""
        found = self.owners.get(owner_id) or self._owner(owner_id)
        if found is not None:
            return found
        at = owner_id.find("/")
        while at >= 0:
            owner = self._owner(owner_id[:at])
            for visit in list(owner.visits) if owner is not None else ():
                if visit.owner_id == owner_id:
                    return visit
            at = owner_id.find("/", at + 1)
        return None

    def _owner(self, owner_id: str) -> OwnerScope | None:
        found = self.owners.get(owner_id)
        if found is None and (key := self.key_of(owner_id)) is not None:
            return self.owners.get(key)
        return found

    def forget(self, scope: OwnerScope) -> None:
        """Take an ended owner off the list."""
        if self.owners.get(scope.key) is scope:  # else its id has a new owner already
            self.owners.pop(scope.key, None)
        else:
            self.owners.pop(scope, None)  # it was set aside

    def pin(self, scope: Scope, recipe: Recipe) -> bool:
        """Let no release end *recipe*, which *scope* itself uses too; False if one was faster."""
        with self._lock:
            if scope.opened(recipe) is MISSING:
                return False
            scope.pinned.add(recipe)
            return True

    def set_aside(self, scope: OwnerScope) -> None:
        """Free the id of an owner that could not be left; it ends with this registry, or when it is left after all."""
        with self._lock:
            if self.owners.get(scope.key) is scope:
                self.owners[scope] = self.owners.pop(scope.key)

    def scopes(self) -> Iterator[Scope]:
        """Yield every open bracket."""
        yield self.root
        for owner in list(self.owners.values()):
            yield owner
            yield from list(owner.visits)
            if owner.lent is not None:
                yield owner.lent


def _no_key(owner_id: str) -> None:
    return None


def new_owner_id() -> str:
    """Return an id for an owner that was given none."""
    return f"owner-{os.getpid():x}-{next(_numbers):x}"
