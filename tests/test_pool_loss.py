"""Lost leases, the end of a pool, and its upkeep in between."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import Any

import pytest

from tests.crews import Bench, Crew, TaskMaker, ThreadMaker, whole, world_of
from tests.invariant import Invariant
from wirestate.errors import (
    AsyncResourceError,
    ResourceClosedError,
)
from wirestate.observing import Listener
from wirestate.resources.places import Place
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.resources.pool_store import Entry
from wirestate.waiting import drive


@pytest.fixture
def bench(side: Any, invariant: Invariant) -> Bench:
    return Bench(side, invariant)


# --- loss --------------------------------------------------------------------------------------


class Leaks(Listener):
    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None, str]] = []

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        self.heard.append((resource, owner_id, stack))
        raise RuntimeError("a listener's trouble is its own")


def test_a_lost_lease_is_recovered_counted_and_reported_with_its_borrower(bench: Bench) -> None:
    leaks = Leaks()

    async def careless(pool: ResourcePool) -> None:
        lease = await bench.acquire(pool, owner="run-1/load#1")
        del lease
        gc.collect()

    async def scenario() -> None:
        pool = bench.pool(max_size=1, listener=leaks)
        with pytest.warns(ResourceWarning, match=r"pool 'db': a lease of run-1/load#1 was lost(.|\n)*in .*careless"):
            await careless(pool)
        assert pool.snapshot().leaks == 1
        [(resource, owner, stack)] = leaks.heard
        assert (resource, owner) == ("db", "run-1/load#1")
        assert "test_pool_loss.py" in stack
        lease = await bench.acquire(pool, 0 if not bench.side.is_async else 5)
        assert lease.resource.number == 2
        await bench.release(lease)
        assert pool.snapshot().discards == {"lost": 1}
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_the_loss_of_a_lease_wakes_a_waiter(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        cycle: list[Any] = [await bench.acquire(pool)]
        cycle.append(cycle)  # only the collector finds it
        lost = [cycle]
        del cycle
        waiter = bench.crew.start(bench.use(pool))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        lost.clear()
        with pytest.warns(ResourceWarning):
            gc.collect()
        await waiter.result()
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_the_leases_of_a_dead_thread_come_back() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=1))

    def die() -> None:
        lease = pool.acquire(owner="thread")
        assert lease.resource.number

    def live() -> None:
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()

    with pytest.warns(ResourceWarning, match="thread"):
        live()
    pool.acquire(1).release()
    drive(whole(pool, maker))


def test_a_lease_held_longer_than_the_threshold_is_reported_once_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    leaks, maker = Leaks(), ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=1, leak_threshold=0.02), listener=leaks)
    lease = pool.acquire(owner="run-7")
    drive(Crew(world_of(maker)).until(lambda: bool(leaks.heard)))
    for _ in range(3):
        pool.reap()
    assert [(heard[1], "test_pool_loss.py" in heard[2]) for heard in leaks.heard] == [("run-7", True)]
    assert lease.resource in maker.live
    lease.release()
    drive(whole(pool, maker))


def test_a_pool_that_is_dropped_reports_nothing() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=2))
    pool.acquire().release()
    del pool
    gc.collect()


# --- close -------------------------------------------------------------------------------------


def test_close_tells_waiters_and_lets_the_borrower_finish(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        lease = await bench.acquire(pool, owner="run-3")
        waiter = bench.crew.start(bench.acquire(pool))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        if bench.side.is_async:
            held = await pool.aclose()
        else:
            held = pool.close()
        assert [owner for owner, _ in held] == ["run-3"]
        assert isinstance(await waiter.error(), ResourceClosedError)
        assert lease.resource in bench.maker.live
        with pytest.raises(ResourceClosedError):
            await bench.acquire(pool)
        await bench.release(lease)
        assert pool.snapshot().discards == {"closed": 1}
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_close_drains_for_a_while(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2)
        lease = await bench.acquire(pool)
        closing = bench.crew.start(bench.side.call(pool, "close", drain=15))
        await bench.crew.until(lambda: "closed" in repr(pool))
        assert not closing.done
        await bench.release(lease)
        assert await closing.result() == []
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_close_during_creation_destroys_what_was_made(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        bench.maker.open.clear()
        creator = bench.crew.start(bench.acquire(pool))
        await bench.crew.until(lambda: bench.maker.creating == 1)
        await bench.side.call(pool, "close")
        await bench.side.call(pool, "close")
        bench.maker.open.set()
        assert isinstance(await creator.error(), ResourceClosedError)
        assert bench.maker.made == bench.maker.destroyed == 1
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_a_sync_close_of_asynchronous_resources_is_refused_before_anything_happens() -> None:
    async def scenario() -> None:
        maker = TaskMaker()
        pool = ResourcePool(maker)
        (await pool.aacquire()).release()
        with pytest.raises(AsyncResourceError, match="use await aclose"):
            pool.close()
        with pytest.raises(AsyncResourceError, match="use aacquire"):
            pool.acquire()
        (await pool.aacquire()).release()
        await whole(pool, maker)

    asyncio.run(scenario())


# --- upkeep ------------------------------------------------------------------------------------


def test_what_rests_too_long_goes_down_to_the_minimum_and_discards_are_refilled() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(min_size=2, max_size=5, max_idle_time=0.05))
    crew = Crew(world_of(maker))
    drive(crew.until(lambda: pool.available == 2))
    leases = [pool.acquire() for _ in range(5)]
    for lease in leases:
        lease.release()
    drive(crew.until(lambda: pool.size == 2))
    assert pool.snapshot().discards["idle"] == 3
    leases = [pool.acquire() for _ in range(2)]
    for lease in leases:
        lease.release(broken=True)
    drive(crew.until(lambda: pool.available == 2))
    drive(whole(pool, maker))


def test_a_minimum_of_asynchronous_resources_is_filled_on_their_loop() -> None:
    async def scenario() -> None:
        maker = TaskMaker()
        pool = ResourcePool(maker, PoolConfig(min_size=3, max_size=5))
        (await pool.aacquire()).release()
        await Crew(world_of(maker)).until(lambda: pool.available == 3)
        await whole(pool, maker)

    asyncio.run(scenario())


def test_refill_pauses_after_failures_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    maker = ThreadMaker()
    maker.failing = OSError("down")
    pool = ResourcePool(maker, PoolConfig(min_size=1, max_size=1))
    crew = Crew(world_of(maker))
    drive(crew.until(lambda: maker.tried == 1))
    for _ in range(20):
        pool.reap()
    assert maker.tried <= 2
    maker.failing = None
    drive(crew.until(lambda: pool.reap() == 0 and pool.available == 1))
    drive(whole(pool, maker))


def test_the_upkeep_thread_ends_with_the_last_pool() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(min_size=1))
    crew = Crew(world_of(maker))
    drive(crew.until(lambda: pool.available == 1))
    drive(whole(pool, maker))
    drive(crew.until(lambda: all(thread.name != "wirestate-upkeep" for thread in threading.enumerate())))


def test_a_place_that_an_interrupt_left_unmade_is_collected_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    Place.__new__(Place)
    Entry.__new__(Entry)
    assert complaints == []
