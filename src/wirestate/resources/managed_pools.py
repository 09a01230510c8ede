"""Registered providers behind a line: a gate in front of the pool of their library, or a pool of ours."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import Any

from wirestate.errors import InvalidSettingError
from wirestate.resources.base import ResourceMetrics
from wirestate.resources.gate import Gate, GateSnapshot
from wirestate.resources.managed import Creation, ManagedRecipe
from wirestate.resources.places import Place
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.resources.pool_config import PoolSnapshot
from wirestate.resources.pool_store import Entry
from wirestate.resources.recipes import HoldingScope, Opened
from wirestate.resources.threads import Threads
from wirestate.waiting import World


def managed_recipe(
    name: str,
    level: int,
    provider: Any,
    pool_config: PoolConfig | None = None,
    creation: Creation | None = None,
    *,
    blocking: bool = False,
) -> ManagedRecipe:
    """Return how the resources of one provider are lent.

    A provider whose library pools already (``native_pool = True``) keeps that pool, with a gate in
    front; any other gets a :class:`ResourcePool` if a configuration is given, and is called
    directly if not. *blocking* says of the provider what it does not say itself.
    """
    if pool_config is not None:
        pool_config = PoolConfig.of(pool_config, name)
    if getattr(provider, "native_pool", False):
        if pool_config is not None:
            provider.configure_pool(pool_config)
        limits: PoolConfig | None = getattr(provider, "pool_config", None)
        if limits is not None and getattr(provider, "gate_per_lease", True):
            gate = Gate.of(name, limits)
            return GatedRecipe(name, level, provider, gate, creation, blocking=blocking)
    elif pool_config is not None:
        return PooledRecipe(name, level, provider, pool_config, creation, blocking=blocking)
    return ManagedRecipe(name, level, provider, creation, blocking=blocking)


class GatedRecipe(ManagedRecipe):
    """Lend the resources of a provider that pools by itself: a gate in front keeps the order and knows who holds."""

    __slots__ = ("_gate", "_threads")

    def __init__(
        self,
        name: str,
        level: int,
        provider: Any,
        gate: Gate,
        creation: Creation | None = None,
        *,
        blocking: bool = False,
    ) -> None:
        super().__init__(name, level, provider, creation, blocking=blocking)
        self.gate = self._gate = gate
        self._threads = Threads(name, gate.limit)

    @property
    def threads(self) -> Threads:
        return self._threads

    async def reserve(self, owner: object, timeout: float | None, world: World) -> Place:
        return await self._gate.enter(owner, timeout, world)

    def give_up(self, slot: Place) -> None:
        self._gate.give_up(slot)

    @property
    def longest_wait(self) -> float:
        return self._gate.longest_wait

    def start(self, scope: object) -> Opened | None:
        if self.waits:
            return None
        ticket = self._gate.enter_now(scope)
        if ticket is None:
            return None
        try:
            made = self.calls.acquire()
        except BaseException:
            self._gate.leave(ticket)
            raise
        return made, (made, ticket)

    async def astart(self, scope: HoldingScope, world: World, timeout: float | None, options: dict[str, Any]) -> Opened:
        began = monotonic()
        ticket = reserved(scope, self) or await self._gate.enter(scope, timeout, world)
        # 0 forbids to wait in line, not the work itself.
        left = max(0.001, timeout - (monotonic() - began)) if timeout else None
        try:
            # The pool behind the gate keeps its own time: a blocking call gets no thread to be timed in.
            if not self.calls.acquire_is_async and left is not None and getattr(self.provider, "takes_timeout", False):
                options = {**options, "timeout": left}
            made = await self._acquire(world, left if self.calls.acquire_is_async else None, options)
        except BaseException:
            self._gate.leave(ticket)
            raise
        return made, (made, ticket)

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        if self.calls.release_is_async:
            return False
        try:
            self._release(handle[0], error)
        finally:
            self._gate.leave(handle[1])
        return True

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        try:
            await super().afinish(handle[0], error, world)
        finally:
            self._gate.leave(handle[1])

    def metrics(self) -> ResourceMetrics:
        counted = self._gate.snapshot()
        return replace(super().metrics(), leaks=counted.leaks, refused=counted.refused)

    def pool_snapshot(self) -> GateSnapshot:
        counted = self._gate.snapshot()
        idle = getattr(self.provider, "idle_connections", None)
        return counted if idle is None else replace(counted, idle=idle())

    async def close(self, world: World) -> None:
        try:
            self._gate.close()
        finally:
            try:
                await super().close(world)
            finally:
                self._threads.close()


class PooledRecipe(ManagedRecipe):
    """Lend the resources of a provider from a pool of ours, which also counts."""

    __slots__ = ("lender",)
    metered = False
    pooled = True

    def __init__(
        self,
        name: str,
        level: int,
        provider: Any,
        config: PoolConfig,
        creation: Creation | None = None,
        *,
        blocking: bool = False,
    ) -> None:
        super().__init__(name, level, provider, creation, blocking=blocking)
        self.pool = self.lender = ResourcePool(provider, config, name=name, blocking=self.blocking)

    @property
    def threads(self) -> Threads:
        return self.lender.threads

    async def reserve(self, owner: object, timeout: float | None, world: World) -> Entry:
        return await self.lender.reserve(owner, timeout, world)

    def give_up(self, slot: Entry) -> None:
        self.lender.give_up(slot)

    @property
    def longest_wait(self) -> float:
        return self.lender.longest_wait

    def start(self, scope: object) -> Opened | None:
        entry = self.lender.take_now(scope)
        return None if entry is None else (entry.resource, entry)

    async def astart(self, scope: HoldingScope, world: World, timeout: float | None, options: dict[str, Any]) -> Opened:
        if options:
            raise InvalidSettingError(
                f"resource {self.name!r} is pooled: its resources are made ahead and take no arguments "
                f"({', '.join(options)})",
                self.name,
                "acquire",
            )
        entry = await self._persist(lambda: self.lender.take(scope, timeout, world, slot=reserved(scope, self)), world)
        return entry.resource, entry

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        if self.calls.release_is_async or self.calls.reset_is_async:
            return False  # wholly undone: whoever asks may ask again before afinish()
        if not self.lender.give_back(handle, error):
            self.lender.finish(handle, error)
        return True

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        if not self.lender.give_back(handle, error):
            await self.lender.give_back_later(handle, world, error)

    def pool_snapshot(self) -> PoolSnapshot:
        return self.lender.snapshot()

    def metrics(self) -> ResourceMetrics:
        # The pool counts what it lends; who was not served, and what waiting took, is known to the meter only.
        counted, met = self.lender.snapshot(), super().metrics()
        return ResourceMetrics(
            total_acquisitions=counted.acquisitions,
            failed_acquisitions=met.failed_acquisitions,
            timeouts=met.timeouts,
            active_connections=counted.used,
            total_hold_time=counted.hold_time,
            total_acquisition_time=met.total_acquisition_time,
            leaks=counted.leaks,
            refused=counted.refused,
            created=counted.created,
            total_creation_time=counted.create_time,
            discards=counted.discards,
            counters=met.counters,
        )

    @property
    def closes_async(self) -> bool:
        return self.calls.close_is_async or self.calls.release_is_async

    @property
    def needs_loop(self) -> bool:
        return super().needs_loop or (self.calls.release_is_async and self.lender.size > 0)

    async def close(self, world: World) -> None:
        try:
            await (self.lender.aclose() if world.is_async else world.offload(self.lender.close))
        finally:
            await super().close(world)


def reserved(scope: HoldingScope, recipe: ManagedRecipe) -> Any:  # Any: a place of a gate, or an entry of a pool
    """Return the slot that was reserved for *recipe* in *scope*, None without one.

    Raises:
        Exception: the one for which there is no slot.
    """
    slot = scope.slots.pop(recipe, None) if scope.slots else None
    if isinstance(slot, Exception):
        raise slot
    return slot
