"""A registered provider as something that scopes can open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from wirestate.errors import ResourceTimeoutError
from wirestate.observing import Listener
from wirestate.resources.base import BaseResourceProvider, ResourceMetrics
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.calls import ProviderCalls, can_block
from wirestate.resources.gate import Gate, GateSnapshot
from wirestate.resources.health import Probe
from wirestate.resources.line import Line
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.resources.pool_config import PoolSnapshot
from wirestate.resources.recipes import HoldingScope, Opened, Recipe
from wirestate.waiting import ExpiredError, World, run_in_thread


class Creation(NamedTuple):
    """How often a resource that cannot be had is asked for, and the seconds between two tries."""

    attempts: int
    delay: float = 1.0


class ManagedRecipe(Recipe):
    """Lend the resources of one provider by calling it."""

    __slots__ = ("_probe", "calls", "creation", "gate", "inherited", "pool", "provider", "waits")
    pooled = False

    def __init__(
        self, name: str, level: int, provider: Any, creation: Creation | None = None, *, blocking: bool = False
    ) -> None:
        self.provider = provider  # Any: whatever follows IResourceProvider
        self.calls = ProviderCalls.of(provider, pooled=self.pooled, shared=level == 0)
        blocking = blocking or can_block(provider)
        super().__init__(name, level, is_async=self.calls.is_async, blocking=blocking and not self.calls.is_async)
        self._probe = Probe(name, provider) if hasattr(provider, "health_check") else None
        self.creation = creation
        self.waits = self.calls.acquire_is_async or creation is not None  # an acquire may have to wait
        self.pool: ResourcePool | None = None
        self.gate: Gate | None = None
        self.inherited = False  # the provider itself was made by the parent of this process

    def inherit(self) -> None:
        """Leave to the parent what the provider itself holds: in a forked child.

        An adapter of a library that pools makes its pool anew, and is closed as ever.
        """
        self.inherited = not getattr(self.provider, "native_pool", False)

    @property
    def probe(self) -> Probe | None:
        return self._probe

    @property
    def must_end(self) -> bool:
        return getattr(type(self.provider), "release", None) is not BaseResourceProvider.release

    @property
    def breaker(self) -> CircuitBreaker | None:
        """The circuit breaker of its pool, or of the provider itself."""
        breaker = getattr(self.provider, "breaker", None) if self.pool is None else self.pool.breaker
        return breaker if isinstance(breaker, CircuitBreaker) else None

    @property
    def pool_config(self) -> PoolConfig | None:
        config = getattr(self.provider, "pool_config", None) if self.pool is None else self.pool.config
        return config if isinstance(config, PoolConfig) else None

    @property
    def measured_as(self) -> str:
        own = getattr(self.provider, "measured_as", None)
        return own if isinstance(own, str) else super().measured_as

    @property
    def counts_creations(self) -> bool:
        return self.pool is not None or callable(getattr(type(self.provider), "creations", None))

    @property
    def requests(self) -> GateSnapshot | None:
        """What the provider's own gate counts: its uses one by one, where all leases share one client."""
        gate = getattr(self.provider, "gate", None)
        return gate.snapshot() if self.pool is None and isinstance(gate, Gate) else None

    def metrics(self) -> ResourceMetrics:
        count = getattr(self.provider, "counters", None)
        counters: object = count() if callable(count) else None
        found = replace(super().metrics(), counters={**counters} if isinstance(counters, Mapping) else {})
        if self.pool is None and self.counts_creations:
            found.created, found.total_creation_time = self.provider.creations()
        if (requests := self.requests) is not None:
            found.leaks, found.refused = requests.leaks, requests.refused
            found.timeouts += requests.timeouts
        return found

    def listen(self, listener: Listener | None) -> None:
        """Let *listener* hear of the probe, and of what the provider, its pool and its gate have to tell."""
        if isinstance(self.provider, BaseResourceProvider):
            self.provider.listener = listener
        for line in (self.pool, self.gate, getattr(self.provider, "gate", None)):
            if isinstance(line, Line):
                line.listen(listener)
        if self.breaker is not None:
            self.breaker.listener = listener
        if self._probe is not None:
            self._probe.listener = listener

    def start(self, scope: object) -> Opened | None:
        if self.waits:
            return None
        made = self.calls.acquire()
        return made, made

    async def astart(self, scope: HoldingScope, world: World, timeout: float | None, options: dict[str, Any]) -> Opened:
        made = await self._acquire(world, timeout, options)
        return made, made

    async def _acquire(self, world: World, timeout: float | None, options: dict[str, Any]) -> Any:
        return await self._persist(lambda: self._acquire_once(world, timeout, options), world)

    async def _persist(self, work: Callable[[], Awaitable[Any]], world: World) -> Any:
        """Try as often as the declaration says."""
        if self.creation is None:
            return await work()
        import tenacity  # at first use: `import wirestate` stays light

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.creation.attempts),
            wait=tenacity.wait_fixed(self.creation.delay),
            retry=tenacity.retry_if_exception_type(Exception),
            sleep=world.sleep,
            reraise=True,
        )
        made: Any = None  # Any: the resource
        async for tried in retrying:
            with tried:
                made = await work()
        return made

    async def _acquire_once(self, world: World, timeout: float | None, options: dict[str, Any]) -> Any:
        if self.calls.acquire_is_async:
            try:
                return await world.bounded(self.calls.acquire(**options), timeout)
            except ExpiredError as error:
                raise self._late(timeout) from error
        if timeout is None:
            return await self.call(world, partial(self.calls.acquire, **options), undo=self._release_unused)
        return await _Bounded(self, options).result(world, timeout)

    def _late(self, timeout: float | None) -> ResourceTimeoutError:
        return ResourceTimeoutError(
            f"resource {self.name!r} was not ready in {timeout:.2f} s; its provider is still at it",
            self.name,
            "acquire",
        )

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        if self.calls.release_is_async:
            return False
        if self.calls.release_takes_error:
            self.calls.release(handle, error=error)
        else:
            self.calls.release(handle)
        return True

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        pending = await self.call(world, partial(self._release, handle, error))
        if pending is not None:
            await pending

    def _release_unused(self, made: Any) -> None:
        """Give back what was made for a task that has been cancelled meanwhile."""
        self._release(made, asyncio.CancelledError())

    def _release(self, made: Any, error: BaseException | None) -> Any:
        if self.calls.release_takes_error:
            return self.calls.release(made, error=error)
        return self.calls.release(made)

    def pool_snapshot(self) -> PoolSnapshot | GateSnapshot | None:
        """Return what its pool or gate holds and has counted, None without one."""
        return self.requests

    @property
    def closes_async(self) -> bool:
        """True if the provider can only be closed with an event loop: always, or as it was used."""
        return self.calls.close_is_async or self._was_used_in_loop

    @property
    def _was_used_in_loop(self) -> bool:
        return getattr(self.provider, "needs_loop", False) is True

    @property
    def needs_loop(self) -> bool:
        """True if it was used, and what is left of that can only be closed with an event loop."""
        return self.closes_async and bool(self.metrics().total_acquisitions)

    async def close(self, world: World) -> None:
        """Close what the provider itself holds."""
        if world.is_async and self._was_used_in_loop:
            await self.provider.aclose()
        elif self.calls.close is not None and not self.inherited:
            if self.calls.close_is_async:
                await self.calls.close()
            else:
                await self.call(world, self.calls.close)


class _Bounded:
    """One blocking acquire in a daemon thread, waited for no longer than allowed.

    A resource that comes too late is given back at once by the thread that made it.
    """

    def __init__(self, recipe: ManagedRecipe, options: dict[str, Any]) -> None:
        self.recipe = recipe
        self.options = options
        self.lock = threading.Lock()
        self.abandoned = False

    async def result(self, world: World, timeout: float) -> Any:
        waiter = world.new_waiter()

        def work() -> None:
            try:
                outcome = (True, self.recipe.calls.acquire(**self.options))
            except BaseException as error:  # handed to the one who waits
                outcome = (False, error)
            with self.lock:
                if not self.abandoned:
                    self.abandoned = not waiter.fill(outcome)
                late = self.abandoned
            if late and outcome[0]:
                self.recipe._release(outcome[1], None)

        threading.Thread(target=run_in_thread(work), name=f"wirestate-acquire-{self.recipe.name}", daemon=True).start()
        try:
            await waiter.wait(timeout)
        except BaseException:  # interrupted or cancelled: what arrived in the same instant goes back
            with self.lock:
                self.abandoned = True
            if waiter.value is not None and waiter.value[0]:
                self.recipe._release(waiter.value[1], None)
            raise
        with self.lock:
            self.abandoned = waiter.value is None
        if waiter.value is None:
            raise self.recipe._late(timeout)
        done, outcome = waiter.value
        if not done:
            raise outcome
        return outcome
