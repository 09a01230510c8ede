"""Leases: released once, waited for in order, cancelled without loss."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from typing import Any

import pytest

from tests.crews import Bench, Crew, TaskMaker, ThreadMaker, whole, world_of
from tests.invariant import Invariant
from wirestate.errors import (
    BlockingWaitError,
    LeaseReleasedError,
    PoolTimeoutError,
    ResourceUnavailableError,
    TooManyWaitingError,
)
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.waiting import drive

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture(params=["shortest way", "stacks"])
def bench(request: pytest.FixtureRequest, side: Any, invariant: Invariant) -> Bench:
    return Bench(side, invariant, stacks=request.param == "stacks")


# --- leases ------------------------------------------------------------------------------------


def test_a_lease_is_released_once_and_gives_nothing_afterwards(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        lease = await bench.acquire(pool, owner="run-1")
        assert "run-1" in repr(lease)
        await bench.release(lease)
        with pytest.raises(LeaseReleasedError, match="lease of 'db' was released already"):
            await bench.release(lease)
        with pytest.raises(LeaseReleasedError):
            _ = lease.resource
        assert "released" in repr(lease)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_a_stale_lease_cannot_release_the_next_owner_s(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        stale = await bench.acquire(pool)
        await bench.release(stale)
        current = await bench.acquire(pool)
        with pytest.raises(LeaseReleasedError):
            await bench.release(stale)
        with pytest.raises(PoolTimeoutError):
            await bench.acquire(pool, 0)
        await bench.release(current)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_two_threads_that_release_one_lease_at_once_release_it_once() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=2))
    for _ in range(200):
        lease = pool.acquire()
        barrier, refused = threading.Barrier(2), []

        def release(lease: Any = lease, barrier: Any = barrier, refused: list[Any] = refused) -> None:
            barrier.wait(5)
            try:
                lease.release()
            except LeaseReleasedError as error:
                refused.append(error)

        threads = [threading.Thread(target=release) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 1
        assert pool.available == pool.size
    drive(whole(pool, maker))


def test_an_entry_that_comes_back_twice_is_refused() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker)
    lease = pool.acquire()
    lease.release()
    entry = pool.take_now("engine")
    assert entry is not None
    assert pool.give_back(entry) is True
    with pytest.raises(LeaseReleasedError):
        pool.give_back(entry)
    del entry
    drive(whole(pool, maker))


def test_an_entry_of_another_pool_is_refused() -> None:
    maker = ThreadMaker()
    pool, other = (ResourcePool(maker, name=name) for name in ("one", "other"))
    pool.acquire().release()
    entry = pool.take_now()
    assert entry is not None
    with pytest.raises(LeaseReleasedError):
        other.give_back(entry)
    assert (pool.snapshot().used, other.available) == (1, 0)
    pool.give_back(entry)
    del entry
    other.close()
    drive(whole(pool, maker))


def test_with_gives_back_also_when_the_body_fails(bench: Bench) -> None:
    async def body(pool: ResourcePool) -> None:
        lease = await bench.acquire(pool)
        if bench.side.is_async:
            async with lease as resource:
                raise KeyError(resource.number)
        with lease as resource:
            raise KeyError(resource.number)

    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        with pytest.raises(KeyError):
            await body(pool)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_leases_of_an_asynchronous_pool_can_be_released_without_await() -> None:
    async def scenario() -> None:
        maker = TaskMaker()
        pool = ResourcePool(maker, PoolConfig(max_size=1))
        (await pool.aacquire()).release(broken=True)
        async with await pool.aacquire(5):
            assert maker.destroyed == 1
        await whole(pool, maker)

    asyncio.run(scenario())


# --- waiting -----------------------------------------------------------------------------------


def test_a_timeout_says_who_holds_what_and_what_to_do(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        lease = await bench.acquire(pool, owner="run-8f/charge#1")
        with pytest.raises(PoolTimeoutError) as late:
            await bench.acquire(pool, 0.02)
        assert str(late.value) == (
            "pool 'db': none of its 1 resources came free in 0.02 s (0 waiting; longest held 0.02 s by "
            "run-8f/charge#1); raise max_size or hold them for less time"
        ).replace("held 0.02 s", f"held {str(late.value).split('longest held ')[1].split(' by')[0]}")
        assert isinstance(late.value, TimeoutError)
        assert pool.snapshot().timeouts == 1
        await bench.release(lease)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_holders_of_a_pool_are_told_the_longest_first_whatever_entry_they_have(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=3)
        leases = {name: await bench.acquire(pool, owner=name) for name in ("a", "b", "c")}
        await bench.release(leases.pop("a"))
        leases["d"] = await bench.acquire(pool, owner="d")  # what the first had
        assert [owner for owner, _ in pool.holders()] == ["b", "c", "d"]
        with pytest.raises(PoolTimeoutError, match=r"longest held .* by b"):
            await bench.acquire(pool, 0)
        for lease in leases.values():
            await bench.release(lease)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_a_timeout_while_the_creator_fails_has_its_last_error_as_cause() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=2, max_creating=1))
    lease = pool.acquire()
    maker.failing = OSError("no route to host")
    with pytest.raises(ResourceUnavailableError):
        pool.acquire()
    maker.failing = None
    maker.open.clear()
    crew = Crew(world_of(maker))
    slow = crew.start(pool.take("slow", 10, crew.world))
    drive(crew.until(lambda: maker.creating == 1))
    with pytest.raises(PoolTimeoutError, match=r"its provider is failing .*no route to host") as late:
        pool.acquire(0.01)
    assert isinstance(late.value.__cause__, ResourceUnavailableError)
    maker.open.set()
    pool.give_back(drive(slow.result()))
    lease.release()
    drive(whole(pool, maker))


def test_timeout_zero_means_now(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        lease = await bench.acquire(pool, 0)
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError, match=r"in 0\.00 s"):
            await bench.acquire(pool, 0)
        assert time.monotonic() - started < 5
        await bench.release(lease)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_one_more_than_may_wait_is_refused_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, max_waiting=1)
        lease = await bench.acquire(pool)
        waiter = bench.crew.start(bench.use(pool))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        with pytest.raises(TooManyWaitingError, match="1 are waiting already"):
            await bench.acquire(pool)
        assert pool.snapshot().refused == 1
        await bench.release(lease)
        await waiter.result()
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_waiters_are_served_in_the_order_they_came(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        order: list[int] = []

        async def wait(number: int) -> None:
            lease = await bench.acquire(pool)
            order.append(number)
            await bench.release(lease)

        lease = await bench.acquire(pool)
        members = []
        for number in range(16):
            members.append(bench.crew.start(wait(number)))
            await bench.crew.until(lambda number=number: pool.snapshot().waiting == number + 1)  # type: ignore[misc]
        await bench.release(lease)
        for member in members:
            await member.result()
        assert order == list(range(16))
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_a_latecomer_among_greedy_ones_waits_no_longer_than_ten_of_their_turns(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        turns = [0]  # one more with each release
        waits: list[int] = []  # turns, not seconds: a busy machine stretches those of all
        stop = threading.Event()

        async def take_turn(waits: list[int]) -> None:
            before = turns[0]
            lease = await bench.acquire(pool)
            waits.append(turns[0] - before)
            await bench.crew.pause(0)
            turns[0] += 1
            await bench.release(lease)

        async def greedy() -> None:
            while not stop.is_set():
                await take_turn(waits)

        members = [bench.crew.start(greedy()) for _ in range(8)]
        await bench.crew.until(lambda: len(waits) >= 80)
        late: list[int] = []
        for _ in range(5):
            await take_turn(late)
        stop.set()
        for member in members:
            await member.result()
        assert statistics.median(late) <= 10 * max(1.0, statistics.median(waits))

    bench.side.run(scenario())


def test_timeouts_of_tasks_are_told_in_their_own_time() -> None:
    async def scenario() -> None:
        maker = TaskMaker()
        pool = ResourcePool(maker, PoolConfig(max_size=1))
        lease = await pool.aacquire()
        started = time.monotonic()

        async def late(seconds: float) -> float:
            with pytest.raises(PoolTimeoutError):
                await pool.aacquire(seconds)
            return time.monotonic() - started

        times = await asyncio.gather(*map(late, (0.09, 0.03, 0.06)))
        for asked, took in zip((0.09, 0.03, 0.06), times, strict=True):
            assert asked <= took < asked + 1
        assert times[1] < times[2] < times[0]
        lease.release()
        await whole(pool, maker)

    asyncio.run(scenario())


def test_a_blocking_wait_on_a_running_loop_is_refused_and_loses_no_place() -> None:
    async def scenario() -> None:
        maker = ThreadMaker()
        pool = ResourcePool(maker, PoolConfig(max_size=1))
        lease = pool.acquire()
        with pytest.raises(BlockingWaitError, match="aacquire"):
            pool.acquire()
        lease.release()
        pool.acquire(0).release()
        await whole(pool, maker)

    asyncio.run(scenario())


# --- cancellation ------------------------------------------------------------------------------


def test_a_cancelled_waiter_gives_its_resource_back() -> None:
    async def scenario() -> None:
        maker = TaskMaker()
        pool = ResourcePool(maker, PoolConfig(max_size=1))
        for served_first in (False, True):
            lease = await pool.aacquire()
            waiter = asyncio.create_task(pool.aacquire())
            await asyncio.sleep(0)
            if served_first:
                lease.release()  # in the same tick as the cancellation
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            if not served_first:
                lease.release()
            (await pool.aacquire(0)).release()
        await whole(pool, maker)

    asyncio.run(scenario())


def test_a_cancelled_first_in_line_passes_its_turn_on() -> None:
    async def scenario() -> None:
        maker = TaskMaker()
        pool = ResourcePool(maker, PoolConfig(max_size=1))
        lease = await pool.aacquire()
        first, second = (asyncio.create_task(pool.aacquire()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        lease.release()
        (await asyncio.wait_for(second, 5)).release()
        with pytest.raises(asyncio.CancelledError):
            await first
        await whole(pool, maker)

    asyncio.run(scenario())


@pytest.mark.parametrize("stage", ["create", "validate", "destroy"])
def test_cancellation_while_the_provider_works_loses_no_place(stage: str) -> None:
    class Slow(TaskMaker):
        reached = 0

        async def pause(self, here: str) -> None:
            if here == stage and not self.open.is_set():
                self.reached += 1
                await asyncio.sleep(60)

        async def acquire(self) -> Any:
            await self.pause("create")
            return self.finish()

        async def validate(self, resource: Any) -> bool:
            await self.pause("validate")
            return self.check(resource)

        async def release(self, resource: Any) -> None:
            self.destroy(resource)
            await self.pause("destroy")

    async def scenario() -> None:
        maker = Slow()
        pool = ResourcePool(maker, PoolConfig(max_size=1, validate_after=0))
        if stage != "create":
            (await pool.aacquire()).release()
        maker.open.clear()

        async def work() -> None:
            async with await pool.aacquire() as resource:
                assert resource in maker.live

        if stage == "destroy":
            lease = await pool.aacquire()
            task = asyncio.create_task(lease.arelease(broken=True))
        else:
            task = asyncio.create_task(work())
        while not maker.reached:
            await asyncio.sleep(0)
        waiter = asyncio.create_task(pool.aacquire(10))
        await asyncio.sleep(0)
        maker.open.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (await waiter).release()
        if stage == "validate":
            assert pool.snapshot().discards == {"interrupted": 1}
        await whole(pool, maker)

    asyncio.run(scenario())
