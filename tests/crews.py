"""Threads or tasks that compete for one thing, and providers that count what they make."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from wirestate.observing import Listener
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

PATIENCE = 20.0  # seconds after which a test is stuck


def forbid_threads_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this thread start no other; what a test before has lost is attended to in one that others start."""
    here, start = threading.get_ident(), threading.Thread.start

    def start_elsewhere(thread: threading.Thread) -> None:
        assert threading.get_ident() != here, "a thread was made"
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_elsewhere)


class Member:
    """One thread or task; ``result()`` waits for its end."""

    def __init__(self, world: World, work: Coroutine[Any, Any, Any]) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._outcome: list[Any] = []
        if world.is_async:
            self._task = asyncio.get_running_loop().create_task(work)
        else:
            self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self._thread.start()

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            self._outcome = [drive(work), None]
        except BaseException as error:
            self._outcome = [None, error]

    @property
    def done(self) -> bool:
        return self._task.done() if self._task else not self._thread.is_alive()

    def cancel(self) -> None:
        assert self._task is not None
        self._task.cancel()

    async def result(self) -> Any:
        if self._task is not None:
            return await asyncio.wait_for(asyncio.shield(self._task), PATIENCE)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "stuck"
        value, error = self._outcome
        self._outcome = []
        if error is not None:
            raise error
        return value

    async def error(self) -> BaseException | None:
        try:
            await self.result()
        except BaseException as error:
            return error
        return None


class Crew:
    """Start members in one world, and wait until something is so."""

    def __init__(self, world: World) -> None:
        self.world = world

    def start(self, work: Coroutine[Any, Any, Any]) -> Member:
        return Member(self.world, work)

    async def until(self, so: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not so():
            assert time.monotonic() < end, "it never came to that"
            await self.pause(0.001)

    async def pause(self, seconds: float = 0.0) -> None:
        await self.world.sleep(seconds)


class Resource:
    """What a maker makes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.users = 0

    def __repr__(self) -> str:
        return f"resource {self.number}"


class Maker:
    """A provider that counts; ``open`` lets creations through, ``failing`` fails them."""

    name = "db"

    def __init__(self) -> None:
        self.live: set[Resource] = set()
        self.made = self.destroyed = self.checked = self.tried = 0
        self.creating = self.most_creating = self.most_live = 0
        self.failing: BaseException | None = None
        self.valid: Callable[[Resource], bool] = lambda resource: True
        self.failing_release: BaseException | None = None
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self.tried += 1
            self.creating += 1
            self.most_creating = max(self.most_creating, self.creating)

    def end(self) -> None:
        with self._lock:
            self.creating -= 1

    def finish(self) -> Resource:
        if self.failing is not None:
            raise self.failing
        with self._lock:
            self.made += 1
            resource = Resource(self.made)
            self.live.add(resource)
            self.most_live = max(self.most_live, len(self.live))
            return resource

    def check(self, resource: Resource) -> bool:
        self.checked += 1
        assert resource in self.live, "checked after its end"
        return self.valid(resource)

    def destroy(self, resource: Resource) -> None:
        with self._lock:
            assert resource in self.live, "destroyed twice"
            self.live.remove(resource)
            self.destroyed += 1
        if self.failing_release is not None:
            raise self.failing_release


class ThreadMaker(Maker):
    def acquire(self) -> Resource:
        self.begin()
        try:
            assert self.open.wait(PATIENCE)
            return self.finish()
        finally:
            self.end()

    def release(self, resource: Resource) -> None:
        self.destroy(resource)

    def validate(self, resource: Resource) -> bool:
        return self.check(resource)


class TaskMaker(Maker):
    async def acquire(self) -> Resource:
        self.begin()
        try:
            while not self.open.is_set():
                await asyncio.sleep(0.001)
            return self.finish()
        finally:
            self.end()

    async def release(self, resource: Resource) -> None:
        self.destroy(resource)
        await asyncio.sleep(0)

    async def validate(self, resource: Resource) -> bool:
        await asyncio.sleep(0)
        return self.check(resource)


def world_of(maker: Maker) -> World:
    return SUSPENDING if isinstance(maker, TaskMaker) else BLOCKING


def maker_for(world: World) -> Maker:
    return TaskMaker() if world.is_async else ThreadMaker()


async def whole(pool: ResourcePool, maker: Maker, *, used: int = 0) -> None:
    """Check what must hold after every test, then close the pool."""
    now = pool.snapshot()
    assert now.waiting == 0
    assert now.creating == 0
    assert now.used == used == len(pool.holders())
    assert len(maker.live) == now.size <= now.max_size
    assert maker.most_live <= now.max_size
    if isinstance(maker, TaskMaker):
        await pool.aclose()
    else:
        pool.close()
    assert len(maker.live) == used
    assert maker.made - maker.destroyed == used
    after = pool.snapshot()
    assert after.created == maker.made
    assert after.destroyed == maker.destroyed == sum(after.discards.values())


class Bench:
    """A crew, a maker and a pool in one world, all watched by the invariant.

    Its pools keep no stacks, as where no ResourceWarning is shown: then a lease goes the shortest way.
    """

    def __init__(self, side: Any, invariant: Any, *, stacks: bool = False) -> None:
        self.side = side
        self.stacks = stacks
        self.crew = Crew(side.world)
        self._invariant = invariant
        self.maker: Maker = invariant.watch(maker_for(side.world))

    def use_maker(self, maker: Maker) -> Maker:
        """Make the pools of *maker* from now on."""
        self.maker = self._invariant.watch(maker)
        return maker

    def pool(self, listener: Listener | None = None, **settings: Any) -> ResourcePool:
        with warnings.catch_warnings():
            warnings.simplefilter("default" if self.stacks else "ignore", ResourceWarning)
            pool = ResourcePool(self.maker, PoolConfig(**settings), listener=listener)
        self._invariant.watch(pool)
        return pool

    async def close(self, pool: ResourcePool, **kwargs: Any) -> Any:
        return await self.side.call(pool, "close", **kwargs)

    async def acquire(self, pool: ResourcePool, timeout: float | None = None, owner: object = None) -> Any:
        return await self.side.call(pool, "acquire", timeout, owner=owner)

    async def release(self, lease: Any, *args: Any, **kwargs: Any) -> None:
        await self.side.call(lease, "release", *args, **kwargs)

    async def use(self, pool: ResourcePool) -> None:
        await self.release(await self.acquire(pool))
