"""A registered provider as something that scopes can open: through its pool, its gate, or directly."""

from __future__ import annotations

import threading
from typing import Any

from wirestate.errors import InvalidSettingError, ResourceTimeoutError
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.gate import Gate
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.resources.recipes import HoldingScope, Opened, Recipe
from wirestate.waiting import ExpiredError, World, run_in_thread


class ManagedRecipe(Recipe):
    """Lend the resources of one provider.

    A provider whose library pools already (``native_pool = True``) keeps that pool, with a gate in
    front; any other gets a :class:`ResourcePool` if a configuration is given, and is called
    directly if not.
    """

    __slots__ = ("calls", "gate", "pool", "provider")

    def __init__(self, name: str, level: int, provider: Any, pool_config: PoolConfig | None = None) -> None:
        self.provider = provider  # Any: whatever follows IResourceProvider
        self.calls = ProviderCalls.of(provider)
        super().__init__(name, level, is_async=self.calls.is_async)
        self.pool: ResourcePool | None = None
        self.gate: Gate | None = None
        if getattr(provider, "native_pool", False):
            if pool_config is not None:
                provider.configure_pool(pool_config)
            limits: PoolConfig | None = getattr(provider, "pool_config", None)
            if limits is not None and getattr(provider, "gate_per_lease", True):
                self.gate = Gate(
                    limits.max_size, name=name, timeout=limits.acquire_timeout, max_waiting=limits.max_waiting
                )
        elif pool_config is not None:
            self.pool = ResourcePool(provider, pool_config, name=name)

    # --- opening -----------------------------------------------------------------------

    def start(self, scope: HoldingScope) -> Opened | None:
        if self.pool is not None:
            entry = self.pool.take_now(scope)
            return None if entry is None else (entry.resource, entry)
        if self.calls.acquire_is_async:
            return None
        if self.gate is None:
            made = self.calls.acquire()
            return made, made
        ticket = self.gate.enter_now(scope)
        if ticket is None:
            return None
        try:
            made = self.calls.acquire()
        except BaseException:
            self.gate.leave(ticket)
            raise
        return made, (made, ticket)

    async def astart(
        self, scope: HoldingScope, world: World, timeout: float | None, options: dict[str, Any]
    ) -> Opened:
        if self.pool is not None:
            if options:
                raise InvalidSettingError(
                    f"resource {self.name!r} is pooled: its resources are made ahead and take no arguments "
                    f"({', '.join(options)})",
                    self.name,
                    "acquire",
                )
            entry = await self.pool.take(scope, timeout, world)
            return entry.resource, entry
        if self.gate is None:
            made = await self._acquire(world, timeout, options)
            return made, made
        ticket = await self.gate.enter(scope, timeout, world)
        try:
            made = await self._acquire(world, timeout, options)
        except BaseException:
            self.gate.leave(ticket)
            raise
        return made, (made, ticket)

    async def _acquire(self, world: World, timeout: float | None, options: dict[str, Any]) -> Any:
        if self.calls.acquire_is_async:
            try:
                return await world.bounded(self.calls.acquire(**options), timeout)
            except ExpiredError as error:
                raise self._late(timeout) from error
        if timeout is None:
            return self.calls.acquire(**options)
        return await _Bounded(self, options).result(world, timeout)

    def _late(self, timeout: float | None) -> ResourceTimeoutError:
        return ResourceTimeoutError(
            f"resource {self.name!r} was not ready in {timeout:.2f} s; its provider is still at it", self.name, "acquire"
        )

    # --- ending ------------------------------------------------------------------------

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        if self.pool is not None:
            return self.pool.give_back(handle, error)
        if self.calls.release_is_async:
            return False
        if self.gate is None:
            self._release(handle, error)
            return True
        try:
            self._release(handle[0], error)
        finally:
            self.gate.leave(handle[1])
        return True

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        if self.pool is not None:
            await self.pool.discard(handle, world)
            return
        made, ticket = handle if self.gate is not None else (handle, None)
        try:
            pending = self._release(made, error)
            if pending is not None:
                await pending
        finally:
            if self.gate is not None:
                self.gate.leave(ticket)

    def _release(self, made: Any, error: BaseException | None) -> Any:
        if self.calls.release_takes_error:
            return self.calls.release(made, error=error)
        return self.calls.release(made)

    # --- the provider's own end ----------------------------------------------------------

    @property
    def closes_async(self) -> bool:
        """True if the provider or its pooled resources can only be closed with an event loop."""
        return self.calls.close_is_async or (self.pool is not None and self.calls.release_is_async)

    async def close(self, world: World) -> None:
        """Close the pool, then what the provider itself holds."""
        try:
            if self.gate is not None:
                self.gate.close()
            if self.pool is not None:
                await (self.pool.aclose() if world.is_async else world.offload(self.pool.close))
        finally:
            if self.calls.close is not None:
                pending = self.calls.close()
                if self.calls.close_is_async:
                    await pending


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
