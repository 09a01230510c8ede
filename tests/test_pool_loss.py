"""Lost leases, the end of a pool, and its upkeep in between."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sys
import threading
import time
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
from wirestate.resources.upkeep import UPKEEP
from wirestate.waiting import BLOCKING, drive

pytestmark = pytest.mark.usefixtures("invariant")


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
        bench.stacks = True
        pool = bench.pool(max_size=1, listener=leaks)
        with pytest.warns(ResourceWarning, match=r"pool 'db': a lease of run-1/load#1 was lost(.|\n)*in .*careless"):
            await careless(pool)
        assert pool.snapshot().leaks == 1
        await bench.crew.until(lambda: bool(leaks.heard))
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
        started = time.monotonic()
        held = await bench.close(pool)
        assert [owner for owner, _ in held] == ["run-3"]
        assert isinstance(await waiter.error(), ResourceClosedError)
        assert time.monotonic() - started < 10  # it would have waited for 30 s
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


def test_a_drain_that_is_not_enough_says_who_still_holds(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2)
        lease, other = await bench.acquire(pool, owner="run-3"), await bench.acquire(pool, owner="run-4")
        await bench.release(other)
        [(owner, seconds)] = await bench.close(pool, drain=0.03)
        assert owner == "run-3"
        assert seconds >= 0.03
        await bench.release(lease)

    bench.side.run(scenario())


def test_many_that_close_at_once_destroy_each_resource_once(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=20)
        leases = [await bench.acquire(pool) for _ in range(20)]
        for lease in leases:
            await bench.release(lease)
        members = [bench.crew.start(bench.close(pool)) for _ in range(8)]
        for member in members:
            assert await member.result() == []
        await bench.crew.until(lambda: bench.maker.destroyed == 20)
        assert pool.snapshot().discards == {"closed": 20}

    bench.side.run(scenario())


def test_what_is_given_back_while_a_pool_closes_is_destroyed(bench: Bench) -> None:
    async def scenario() -> None:
        for _ in range(30):
            pool = bench.pool(max_size=8)
            leases = [await bench.acquire(pool) for _ in range(8)]
            members = [bench.crew.start(bench.release(lease)) for lease in leases]
            closing = bench.crew.start(bench.close(pool))
            leases.clear()
            for member in (closing, *members):
                await member.result()
            del members, closing
            await bench.crew.until(lambda: not bench.maker.live)

    bench.side.run(scenario())


def test_a_waiter_cancelled_when_served_leaves_nothing_in_a_closed_pool(invariant: Invariant) -> None:
    async def scenario() -> None:
        maker = invariant.watch(TaskMaker())
        pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1)))
        lease = await pool.aacquire()
        waiter = asyncio.create_task(pool.aacquire())
        await asyncio.sleep(0)
        lease.release()
        waiter.cancel()
        closing = asyncio.create_task(pool.aclose())
        await asyncio.gather(waiter, closing, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert not maker.live

    asyncio.run(scenario())


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


def test_a_minimum_is_made_as_soon_as_it_can_be(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(min_size=3, max_size=5)
        await bench.crew.until(lambda: pool.available == 3)
        assert bench.maker.made == 3

    bench.side.run(scenario())


def test_a_minimum_of_asynchronous_resources_is_made_beside_the_first_acquire_of_a_loop() -> None:
    maker = TaskMaker()
    pool = ResourcePool(maker, PoolConfig(min_size=3, max_size=5))  # where no loop runs

    async def scenario() -> None:
        maker.open.clear()
        first = asyncio.create_task(pool.aacquire())
        await Crew(world_of(maker)).until(lambda: maker.creating >= 2)  # the first one is not made yet
        maker.open.set()
        (await first).release()
        await Crew(world_of(maker)).until(lambda: pool.available == 3)
        await whole(pool, maker)

    assert maker.tried == 0
    asyncio.run(scenario())


def test_a_shrinking_pool_never_goes_below_its_minimum(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(min_size=2, max_size=6, max_idle_time=0.02)
        await bench.crew.until(lambda: pool.available == 2)
        leases = [await bench.acquire(pool) for _ in range(6)]
        for lease in leases:
            await bench.release(lease)
        least = pool.size
        while pool.size > 2:
            await bench.crew.pause(0.005)
            least = min(least, pool.size)
        for _ in range(5):
            pool.reap()
            await bench.crew.pause(0.01)
            least = min(least, pool.size)
        assert least == 2
        assert pool.snapshot().discards == {"idle": 4}

    bench.side.run(scenario())


def test_what_is_discarded_below_the_minimum_is_made_again_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(min_size=2, max_size=2)
        await bench.crew.until(lambda: pool.available == 2)
        pool._period = 60.0
        UPKEEP.watch(pool, 60.0)  # the next regular look is far away
        await bench.crew.pause(0.05)
        started = time.monotonic()
        await bench.release(await bench.acquire(pool), broken=True)
        await bench.crew.until(lambda: pool.available == 2)
        assert time.monotonic() - started < 10
        assert bench.maker.made == 3

    bench.side.run(scenario())


def test_refills_that_fail_pause_longer_and_longer_and_the_first_success_goes_to_the_first_in_line(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    times: list[float] = []

    def note() -> None:
        times.append(time.monotonic())
        begin()

    begin, bench.maker.begin = bench.maker.begin, note  # type: ignore[method-assign]

    async def scenario() -> None:
        bench.maker.failing = OSError("down")
        pool = bench.pool(min_size=1, max_size=1)
        await bench.crew.until(lambda: bench.maker.tried == 4)
        pauses = [after - before for before, after in itertools.pairwise(times)]
        for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True):  # 0.1, 0.2, 0.4 less at most a half
            assert pause >= least
        assert pool._refill_delay == pytest.approx(0.8)
        bench.maker.open.clear()
        bench.maker.failing = None
        await bench.crew.until(lambda: bench.maker.creating == 1)
        order: list[int] = []

        async def wait(number: int) -> None:
            lease = await bench.acquire(pool, 15)
            order.append(number)
            await bench.release(lease)

        members = []
        for number in range(3):
            members.append(bench.crew.start(wait(number)))
            await bench.crew.until(lambda number=number: pool.snapshot().waiting == number + 1)  # type: ignore[misc]
        bench.maker.open.set()
        for member in members:
            await member.result()
        assert order == [0, 1, 2]
        assert bench.maker.made == 1
        assert pool._refill_delay == 0

    bench.side.run(scenario())


def test_a_pool_whose_server_hangs_delays_the_upkeep_of_no_other(invariant: Invariant) -> None:
    slow, quick = invariant.watch(ThreadMaker()), invariant.watch(ThreadMaker())
    slow.open.clear()
    crew = Crew(world_of(slow))
    stuck = invariant.watch(ResourcePool(slow, PoolConfig(min_size=1)))
    drive(crew.until(lambda: slow.creating == 1))
    pool = invariant.watch(ResourcePool(quick, PoolConfig(min_size=2)))
    drive(crew.until(lambda: pool.available == 2))
    slow.open.set()
    drive(crew.until(lambda: stuck.available == 1))


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


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lease_that_is_lost_while_somebody_asks_the_pool_wakes_a_waiter_too(invariant: Invariant) -> None:
    maker = invariant.watch(ThreadMaker())
    pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1)))
    crew = Crew(BLOCKING)
    leases = [pool.acquire()]

    async def wait() -> None:
        pool.acquire(10).release()

    async def scenario() -> None:
        waiter = crew.start(wait())
        await crew.until(lambda: pool.snapshot().waiting == 1)
        with pool._lock:  # as snapshot() holds it
            leases.clear()
        pool.snapshot()
        await waiter.result()

    drive(scenario())


class Asks(Listener):
    """Asks other pools as soon as it hears of a loss."""

    def __init__(self, *pools: ResourcePool) -> None:
        self.pools = pools
        self.heard: list[int] = []

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        for pool in self.pools:
            with pool.acquire(0):
                self.heard.append(pool.snapshot().used)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("locked", ["lost", "other", "none"])
def test_a_listener_that_hears_of_a_loss_may_use_any_pool_whatever_lock_the_loser_holds(
    invariant: Invariant, locked: str
) -> None:
    maker, other_maker = invariant.watch(ThreadMaker()), invariant.watch(ThreadMaker())
    pool, other = (invariant.watch(ResourcePool(each, PoolConfig(max_size=1))) for each in (maker, other_maker))
    asks = Asks(pool, other)
    pool.listen(asks)

    async def lose() -> None:
        leases = [pool.acquire()]
        locks = {"lost": [pool._lock], "other": [other._lock], "none": []}[locked]
        with contextlib.ExitStack() as held:
            for lock in locks:
                held.enter_context(lock)
            leases.clear()

    crew = Crew(BLOCKING)
    drive(crew.start(lose()).result())
    drive(crew.until(lambda: asks.heard == [1, 1]))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("locked", [False, True])
def test_what_is_lost_after_the_close_is_destroyed(bench: Bench, *, locked: bool) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        leases = [await bench.acquire(pool)]
        await bench.close(pool)
        with pool._lock if locked else contextlib.nullcontext():
            leases.clear()
        await bench.crew.until(lambda: bench.maker.destroyed == 1)
        await bench.crew.until(lambda: pool.snapshot().discards == {"lost": 1})

    bench.side.run(scenario())
