"""What can be asked about the resources of one manager: who holds what, is it well, what was counted."""

from __future__ import annotations

from operator import itemgetter
from time import monotonic
from typing import Any, NamedTuple

from wirestate.errors import UnknownResourceError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.health import ask_all
from wirestate.resources.measurements import Measurement, measured
from wirestate.resources.owners import OwnerScope
from wirestate.resources.recipes import LIFETIME_WORDS, Recipe
from wirestate.resources.registry import Registry
from wirestate.resources.scopes import MISSING, Entry, Scope
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

INF = float("inf")


class Holder(NamedTuple):
    """Who holds what, and since how many seconds."""

    resource: str
    owner_id: str
    seconds: float


class Questions(Registry):
    """The asking half of a manager; nothing here opens, waits or changes anything but for a probe."""

    # --- who holds what ----------------------------------------------------------------

    def has_resource(self, name: str, owner_id: str) -> bool:
        """Tell whether *owner_id* holds *name* now."""
        return self._held(name, owner_id) is not MISSING

    def get_resource(self, name: str, owner_id: str) -> Any:  # Any: the resource
        """Return what *owner_id* holds under *name*; None if it holds nothing there."""
        found = self._held(name, owner_id)
        return None if found is MISSING else found

    def _held(self, name: str, owner_id: str) -> Any:  # Any: the resource
        loan = self._loans.get(str(owner_id))
        if loan is not None:
            return loan.value if loan.since and loan.recipe.name == name else MISSING
        scope = self.find(owner_id)
        entry = self._entries.get(name)
        if scope is None or entry is None:
            return MISSING
        recipe = last_step(entry)
        for part in parts_of(scope):
            taken = (part.taken or {}).get(name)
            if taken is not None:
                return part.place_of(taken.recipe).held.get(taken.recipe, MISSING)
            if recipe in part.held and not part.is_opening(recipe):
                return part.held.get(recipe, MISSING)
        return MISSING

    def get_resource_owners(self, name: str) -> list[str]:
        """Return the ids of all owners and visits that hold *name*, the longest first."""
        recipe = last_step(self.entry(name, "owners"))
        found = {owner_id: loan.since or INF for owner_id, loan in list(self._loans.items()) if loan.recipe is recipe}
        for scope in self.scopes():
            if scope is not self.root and (recipe in scope.held or name in (scope.taken or ())):
                since = (since for held, _, since in list(scope.exits) if held is recipe)
                found.setdefault(scope.owner_id, next(since, INF))
        return sorted(found, key=found.__getitem__)

    def holders(self) -> list[Holder]:
        """Return every lease that is open, the longest held first: resource, owner, seconds held."""
        now = monotonic()
        loans = ((loan.since, loan.recipe, owner_id) for owner_id, loan in list(self._loans.items()) if loan.since)
        leases = ((since, recipe, scope.owner_id) for scope in self.scopes() for recipe, _, since in list(scope.exits))
        found = sorted((*loans, *leases), key=itemgetter(0))
        return [Holder(recipe.name, owner_id, now - since) for since, recipe, owner_id in found]

    # --- how it is ---------------------------------------------------------------------

    def get_resource_status(self, name: str) -> dict[str, Any]:  # Any: values of several types, as the guide shows them
        """Return what is known of one resource, without a new probe.

        ``provider_exists has_pool active_count owners lifetime``, ``health`` (UNKNOWN before the first
        probe), ``health_age`` (seconds since that answer), ``trouble`` (why it is not healthy),
        ``breaker`` (the state of its circuit breaker); None where there is nothing to tell.
        """
        entry = self._entries.get(name)
        if entry is None:
            return {"provider_exists": False, "has_pool": False, "active_count": 0, "owners": []}
        recipe = last_step(entry).source
        owners = self.get_resource_owners(name)
        probe, breaker = recipe.probe, recipe.breaker
        return {
            "provider_exists": True,
            "has_pool": recipe.pool_snapshot() is not None,
            "active_count": len(owners),
            "owners": owners,
            "lifetime": LIFETIME_WORDS[recipe.level],
            "health": ResourceHealth.UNKNOWN if probe is None else probe.answer,
            "health_age": None if probe is None else probe.age,
            "trouble": None if probe is None else probe.trouble,
            "breaker": None if breaker is None else breaker.state,
        }

    def get_all_resources(self) -> dict[str, dict[str, Any]]:  # Any: see get_resource_status
        """Return the status of every resource by its name."""
        return {name: self.get_resource_status(name) for name in self.names}

    def health_check(self, name: str | None = None, *, max_age: float = 0.0) -> dict[str, ResourceHealth]:
        """Probe one resource, or all of them at once; each probe is bounded in time.

        Args:
            name: one resource; None means all.
            max_age: seconds; an answer that is younger is given again.

        Raises:
            BlockingWaitError: an event loop runs in this thread; use :meth:`ahealth_check`.
        """
        return drive(self._healths(name, BLOCKING, max_age))

    async def ahealth_check(self, name: str | None = None, *, max_age: float = 0.0) -> dict[str, ResourceHealth]:
        """Asynchronous twin of :meth:`health_check`; it stops no event loop, and a cancelled one leaves at once."""
        return await self._healths(name, SUSPENDING, max_age)

    async def _healths(self, name: str | None, world: World, max_age: float) -> dict[str, ResourceHealth]:
        entries = [self.entry(name, "health_check")] if name is not None else list(self._entries.values())
        asked = {entry.name: last_step(entry).source.probe for entry in entries}
        probes = {key: probe for key, probe in asked.items() if probe is not None}
        return dict.fromkeys(asked, ResourceHealth.UNKNOWN) | await ask_all(probes, world, max_age=max_age)

    def get_metrics(self, name: str | None = None) -> dict[str, Any]:  # Any: ResourceMetrics or a pool's snapshot
        """Return counters by name; a resource with a pool, or a gate in front, also has ``"<name>_pool"``.

        Values are :class:`ResourceMetrics`; those of pools are snapshots with ``size`` (idle + used), ``available``
        (idle), ``used`` and ``waiting``.
        """
        entries = (
            list(self._entries.values()) if name is None else [self._entries[name]] if name in self._entries else []
        )
        found: dict[str, Any] = {}  # Any: as above
        for entry in entries:
            recipe = last_step(entry).source
            found[entry.name] = recipe.metrics()
            if (pool := recipe.pool_snapshot()) is not None:
                found[f"{entry.name}_pool"] = pool
        if name is not None and not found:
            if name.endswith("_pool") and name in (pools := self.get_metrics(name.removesuffix("_pool"))):
                return {name: pools[name]}
            raise UnknownResourceError(name, self._entries, "get_metrics")
        return found

    def snapshot(self) -> list[Measurement]:
        """Return what was measured of every resource, as plain values under OpenTelemetry's names.

        Pools of databases are told as ``db.client.connection.*``, all else as ``wirestate.resource.*``
        with the same endings. No measurement names an owner.
        """
        return [one for entry in list(self._entries.values()) for one in measured(entry.name, last_step(entry).source)]


def last_step(entry: Entry) -> Recipe:
    """Return the recipe of what *entry* itself hands out."""
    return entry.steps()[-1]


def parts_of(scope: Scope) -> list[Scope]:
    """Return the scopes in which what *scope*'s owner acquired may be: its own, and the inner one that lends."""
    lent = scope.lent if isinstance(scope, OwnerScope) else None
    return [scope] if lent is None else [lent, scope]
