"""The pool: fairness, capacity, checks, creation, loss and close, in threads and in tasks."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import pytest

from tests.crews import Crew, Maker, TaskMaker, ThreadMaker, maker_for, whole, world_of
from wirestate.errors import (
    AsyncResourceError,
    BlockingWaitError,
    CircuitOpenError,
    InvalidSettingError,
    LeaseReleasedError,
    PoolTimeoutError,
    ResourceClosedError,
    ResourceUnavailableError,
    TooManyWaitingError,
)
from wirestate.observing import Listener
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.waiting import drive


class Bench:
    """A crew, a maker and a pool in one world."""

    def __init__(self, side: Any) -> None:
        self.side = side
        self.crew = Crew(side.world)
        self.maker = maker_for(side.world)

    def pool(self, listener: Listener | None = None, **settings: Any) -> ResourcePool:
        return ResourcePool(self.maker, PoolConfig(**settings), listener=listener)

    async def acquire(self, pool: ResourcePool, timeout: float | None = None, owner: object = None) -> Any:
        return await self.side.call(pool, "acquire", timeout, owner=owner)

    async def release(self, lease: Any, *args: Any, **kwargs: Any) -> None:
        await self.side.call(lease, "release", *args, **kwargs)

    async def use(self, pool: ResourcePool) -> None:
        await self.release(await self.acquire(pool))


@pytest.fixture
def bench(side: Any) -> Bench:
    return Bench(side)


# --- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_size": 5, "max_size": 2}, ["min_size is 5", "max_size is 2"]),
        ({"max_size": 0}, ["max_size is 0", "more than 0"]),
        ({"min_size": -1}, ["min_size is -1", "0 or more"]),
        ({"max_idle_time": 0}, ["max_idle_time is 0"]),
        ({"acquire_timeout": -2.5}, ["acquire_timeout is -2.5"]),
        ({"max_lifetime": float("nan")}, ["max_lifetime is nan"]),
        ({"max_size": 2.5}, ["max_size is 2.5", "whole number"]),
        ({"max_size": "8"}, ["max_size is '8'", "whole number"]),
        ({"max_size": True}, ["max_size is True"]),
        ({"max_creating": 0, "breaker_failures": 0}, ["max_creating is 0", "breaker_failures is 0"]),
    ],
)
def test_a_senseless_size_is_refused_with_its_numbers(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidSettingError) as refused:
        PoolConfig(**settings)
    for word in words:
        assert word in str(refused.value)


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    assert PoolConfig.from_mapping({"max_size": 3, "validate_after": 0}).max_size == 3
    with pytest.raises(InvalidSettingError, match=r"'max_sise'; did you mean 'max_size'\?"):
        PoolConfig.from_mapping({"max_sise": 3})


# --- creation ---------------------------------------------------------------------------------


def test_a_failing_creator_is_the_cause_and_capacity_stays_whole(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2)
        bench.maker.failing = OSError("refused")
        for _ in range(5):
            with pytest.raises(ResourceUnavailableError, match="OSError: refused") as failed:
                await bench.acquire(pool)
            assert failed.value.__cause__ is bench.maker.failing
        assert pool.snapshot().failures == 5
        bench.maker.failing = None
        leases = [await bench.acquire(pool, 0) for _ in range(2)]
        for lease in leases:
            await bench.release(lease)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_when_creation_fails_the_next_in_line_tries_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, acquire_timeout=15)
        bench.maker.open.clear()
        bench.maker.failing = OSError("down")
        first = bench.crew.start(bench.acquire(pool))
        await bench.crew.until(lambda: bench.maker.creating == 1)
        second = bench.crew.start(bench.acquire(pool))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        started = time.monotonic()
        bench.maker.open.set()
        assert isinstance(await first.error(), ResourceUnavailableError)
        assert isinstance(await second.error(), ResourceUnavailableError)
        assert time.monotonic() - started < 5
        assert bench.maker.tried == 2
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_slow_creation_delays_no_release_and_the_waiter_gets_the_released_one(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2)
        lease = await bench.acquire(pool)
        bench.maker.open.clear()
        slow = bench.crew.start(bench.acquire(pool))
        await bench.crew.until(lambda: bench.maker.creating == 1)
        waiter = bench.crew.start(bench.acquire(pool))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        released = lease.resource
        await bench.release(lease)
        served = await waiter.result()
        assert served.resource is released
        assert not slow.done
        bench.maker.open.set()
        await bench.release(await slow.result())
        await bench.release(served)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_a_creation_that_takes_too_long_ends_on_time_and_its_late_result_is_adopted() -> None:
    maker = ThreadMaker()
    maker.open.clear()
    pool = ResourcePool(maker, PoolConfig(max_size=1, creation_timeout=0.02))
    with pytest.raises(PoolTimeoutError, match=r"making a resource took longer than 0\.02 s"):
        pool.acquire()
    assert pool.snapshot().creating == 1
    maker.open.set()
    with pool.acquire() as resource:
        assert resource.number == 1
    drive(whole(pool, maker))


def test_a_late_failure_of_a_creation_gives_its_place_back() -> None:
    maker = ThreadMaker()
    maker.open.clear()
    pool = ResourcePool(maker, PoolConfig(max_size=1, creation_timeout=0.02))
    with pytest.raises(PoolTimeoutError):
        pool.acquire()
    maker.failing = OSError("down")
    maker.open.set()
    drive(Crew(world_of(maker)).until(lambda: pool.snapshot().creating == 0))
    maker.failing = None
    pool.acquire().release()
    drive(whole(pool, maker))


def test_a_creation_on_a_loop_ends_with_its_caller_s_deadline() -> None:
    async def scenario() -> None:
        maker = TaskMaker()
        maker.open.clear()
        pool = ResourcePool(maker, PoolConfig(max_size=1))
        with pytest.raises(PoolTimeoutError, match="making a resource took longer"):
            await pool.aacquire(0.02)
        assert pool.snapshot().creating == 0
        maker.open.set()
        async with await pool.aacquire(0.5):
            pass
        await whole(pool, maker)

    asyncio.run(scenario())


def test_a_second_acquire_makes_a_second_resource_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=4)
        one, two = await bench.acquire(pool, 0), await bench.acquire(pool, 0)
        assert one.resource is not two.resource
        await bench.release(one)
        await bench.release(two)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_many_at_a_cold_pool_make_no_more_than_allowed_at_once(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=10, max_creating=3)
        bench.maker.open.clear()
        members = [bench.crew.start(bench.use(pool)) for _ in range(60)]
        await bench.crew.until(lambda: pool.snapshot().waiting + bench.maker.creating == 60)
        bench.maker.open.set()
        for member in members:
            await member.result()
        assert bench.maker.most_creating == 3
        assert bench.maker.made <= 10
        assert pool.snapshot().acquisitions == 60
        await whole(pool, bench.maker)

    bench.side.run(scenario())


# --- checks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", [False, True])
def test_a_dead_resource_is_replaced_before_it_is_handed_out(bench: Bench, *, raises: bool) -> None:
    def dead(resource: Any) -> bool:
        if raises:
            raise OSError("reset by peer")
        return False

    async def scenario() -> None:
        pool = bench.pool(max_size=1, validate_after=0)
        await bench.use(pool)
        bench.maker.valid = dead
        lease = await bench.acquire(pool)
        assert lease.resource.number == 2
        assert bench.maker.checked == 1
        await bench.release(lease)
        assert pool.snapshot().discards == {"invalid": 1}
        bench.maker.valid = lambda resource: True
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_when_fresh_ones_cannot_be_made_either_the_caller_is_told(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2, validate_after=0)
        await bench.use(pool)
        bench.maker.valid = lambda resource: False
        bench.maker.failing = OSError("down")
        with pytest.raises(ResourceUnavailableError, match="down"):
            await bench.acquire(pool)
        assert (bench.maker.checked, bench.maker.tried) == (1, 2)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_a_recently_used_resource_is_not_checked_unless_its_last_use_failed(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, validate_after=60)
        for _ in range(5):
            await bench.use(pool)
        assert bench.maker.checked == 0
        lease = await bench.acquire(pool)
        await bench.release(lease, ValueError("in the body"))
        await bench.use(pool)
        assert bench.maker.checked == 1
        assert bench.maker.made == 1
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_after_a_restart_of_the_server_one_probe_condemns_all_that_rested_longer(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=8, validate_after=0)
        leases = [await bench.acquire(pool) for _ in range(8)]
        for lease in leases:
            await bench.release(lease)
        bench.maker.valid = lambda resource: resource.number > 8
        leases = [await bench.acquire(pool) for _ in range(8)]
        assert min(lease.resource.number for lease in leases) > 8
        assert bench.maker.checked == 1
        for lease in leases:
            await bench.release(lease)
        assert pool.snapshot().discards == {"invalid": 1, "suspect": 7}
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_a_broken_lease_is_destroyed_and_its_siblings_are_checked(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2, validate_after=60)
        one, two = await bench.acquire(pool), await bench.acquire(pool)
        await bench.release(one)
        await bench.release(two, broken=True)
        assert pool.snapshot().discards == {"broken": 1}
        await bench.use(pool)
        assert bench.maker.checked == 1
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_a_failing_destruction_keeps_no_place_and_stops_no_other(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=3)
        leases = [await bench.acquire(pool) for _ in range(3)]
        bench.maker.failing_release = OSError("cannot say goodbye")
        await bench.release(leases.pop(), broken=True)
        leases.append(await bench.acquire(pool, 0))
        for lease in leases:
            await bench.release(lease)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_lifetimes_are_spread_and_a_borrowed_expired_one_finishes(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=50, max_lifetime=1000)
        leases = [await bench.acquire(pool) for _ in range(50)]
        ends = [lease._entry.expires for lease in leases]
        assert max(ends) - min(ends) > 20
        old = leases[0]._entry
        old.expires = time.monotonic()
        assert leases[0].resource in bench.maker.live
        for lease in leases:
            await bench.release(lease)
        leases = [await bench.acquire(pool) for _ in range(50)]
        assert old.resource not in [lease.resource for lease in leases]
        assert pool.snapshot().discards == {"expired": 1}
        for lease in leases:
            await bench.release(lease)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


# --- leases --------------------------------------------------------------------------------------


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


# --- waiting -------------------------------------------------------------------------------------


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
    with pytest.raises(PoolTimeoutError, match="its provider is failing .*no route to host") as late:
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
        assert time.monotonic() - started < 1
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


def test_a_latecomer_among_greedy_ones_gets_its_turn(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        rounds = [0] * 8
        stop = threading.Event()

        async def greedy(number: int) -> None:
            while not stop.is_set():
                lease = await bench.acquire(pool)
                await bench.crew.pause(0)
                rounds[number] += 1
                await bench.release(lease)

        members = [bench.crew.start(greedy(number)) for number in range(8)]
        await bench.crew.until(lambda: min(rounds) >= 5)
        before = sum(rounds)
        lease = await bench.acquire(pool)
        waited = sum(rounds) - before
        await bench.release(lease)
        stop.set()
        for member in members:
            await member.result()
        # Turns, not seconds: 8 were in line before it, a few more pass until it is seen in line.
        assert waited <= 80
        await whole(pool, bench.maker)

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


# --- cancellation ----------------------------------------------------------------------------------


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
        await whole(pool, maker)

    asyncio.run(scenario())


# --- loss --------------------------------------------------------------------------------------------


class Leaks(Listener):
    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None, str]] = []

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        self.heard.append((resource, owner_id, stack))
        raise RuntimeError("a listener's trouble is its own")


def test_a_lost_lease_is_recovered_counted_and_reported_with_its_borrower(bench: Bench) -> None:
    leaks = Leaks()

    async def careless(pool: ResourcePool) -> None:
        await bench.acquire(pool, owner="run-1/load#1")

    async def scenario() -> None:
        pool = bench.pool(max_size=1, listener=leaks)
        with pytest.warns(ResourceWarning, match=r"pool 'db': a lease of run-1/load#1 was lost(.|\n)*in .*careless"):
            await careless(pool)
            gc.collect()
        assert pool.snapshot().leaks == 1
        [(resource, owner, stack)] = leaks.heard
        assert (resource, owner) == ("db", "run-1/load#1")
        assert "test_pool.py" in stack
        lease = await bench.acquire(pool, 0 if not bench.side.is_async else 5)
        assert lease.resource.number == 2
        await bench.release(lease)
        assert pool.snapshot().discards == {"lost": 1}
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_the_loss_of_a_lease_wakes_a_waiter(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        lost = [await bench.acquire(pool)]
        lost.append(lost)  # type: ignore[arg-type]  # a cycle: only the collector finds it
        waiter = bench.crew.start(bench.use(pool))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        with pytest.warns(ResourceWarning):
            del lost
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

    with pytest.warns(ResourceWarning, match="thread"):
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()
    pool.acquire(1).release()
    drive(whole(pool, maker))


def test_a_lease_held_longer_than_the_threshold_is_reported_once_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    leaks, maker = Leaks(), ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=1, leak_threshold=0.0001), listener=leaks)
    lease = pool.acquire(owner="run-7")
    drive(Crew(world_of(maker)).until(lambda: bool(leaks.heard)))
    for _ in range(3):
        pool.reap()
    assert [(heard[1], "test_pool.py" in heard[2]) for heard in leaks.heard] == [("run-7", True)]
    assert lease.resource in maker.live
    lease.release()
    drive(whole(pool, maker))


def test_a_pool_that_is_dropped_reports_nothing() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=2))
    pool.acquire().release()
    del pool
    gc.collect()


# --- close -------------------------------------------------------------------------------------------


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


# --- upkeep ------------------------------------------------------------------------------------------


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


# --- circuit breaker -----------------------------------------------------------------------------------


def test_an_open_breaker_refuses_creation_but_not_what_rests(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2, breaker_failures=2, breaker_reset=30)
        lease = await bench.acquire(pool)
        bench.maker.failing = OSError("down")
        for _ in range(2):
            with pytest.raises(ResourceUnavailableError):
                await bench.acquire(pool)
        with pytest.raises(CircuitOpenError) as refused:
            await bench.acquire(pool)
        assert 0 < refused.value.retry_after <= 30
        assert "down" in str(refused.value.__cause__)
        assert bench.maker.tried == 3
        await bench.release(lease)
        await bench.use(pool)
        assert "breaker open" in repr(pool)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


# --- what can be asked -----------------------------------------------------------------------------------


def test_repr_and_snapshot_answer_the_operator(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=4)
        idle, lease = await bench.acquire(pool), await bench.acquire(pool, owner="run-1/load#2")
        await bench.release(idle)
        assert repr(pool).startswith(
            "<ResourcePool 'db': 1 of 4 used, 1 idle, 0 creating, 0 waiting; longest held 0.0"
        )
        assert repr(pool).endswith(" s by run-1/load#2>")
        now = pool.snapshot()
        assert (now.size, now.available, now.acquisitions, now.created) == (2, 1, 2, 2)
        assert now.hold_time > 0
        assert now.create_time > 0
        await bench.release(lease)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


def test_the_name_of_an_owner_is_asked_for_only_when_a_message_needs_it() -> None:
    class Owner:
        asked = 0

        def __str__(self) -> str:
            self.asked += 1
            return "run-1"

    owner, maker = Owner(), ThreadMaker()
    pool = ResourcePool(maker)
    lease = pool.acquire(owner=owner)
    assert owner.asked == 0
    assert pool.holders()[0][0] == "run-1"
    lease.release()
    assert pool.holders() == []
    drive(whole(pool, maker))


# --- processes and loops -----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # other tests' threads: 3.12 warns of fork then
def test_a_forked_child_neither_uses_nor_closes_what_the_parent_made() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=2))
    lease, other = pool.acquire(), pool.acquire()
    other.release()
    with pool._lock:  # held by "another thread" at the moment of the fork
        child = os.fork()
    if child == 0:
        status = 1
        try:
            fresh = pool.acquire(1)
            another = pool.acquire(1)
            assert {fresh.resource.number, another.resource.number} == {3, 4}
            lease.release()
            fresh.release()
            another.release()
            pool.close()
            assert maker.destroyed == 2
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    lease.release()
    drive(whole(pool, maker))


def test_resources_go_only_to_their_loop_and_make_room_for_others() -> None:
    maker = TaskMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=2))
    seen: dict[int, set[int]] = {0: set(), 1: set()}

    finished: list[int] = []

    def run(number: int) -> None:
        async def main() -> None:
            await asyncio.gather(*(one_round(number) for _ in range(4)))
            finished.append(number)
            while len(finished) < 2:  # its entries could not be moved from a loop that is gone
                await asyncio.sleep(0.001)

        asyncio.run(main())

    async def one_round(number: int) -> None:
        for _ in range(10):
            async with await pool.aacquire(15) as resource:
                seen[number].add(resource.number)
                await asyncio.sleep(0)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(finished) == 2
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    assert pool.snapshot().waiting == 0


def test_a_pool_whose_loop_is_closed_starts_anew_on_the_next() -> None:
    maker = TaskMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=1))

    async def use() -> int:
        async with await pool.aacquire(5) as resource:
            return int(resource.number)

    assert [asyncio.run(use()) for _ in range(3)] == [1, 2, 3]
    assert pool.snapshot().discards == {"loop closed": 2}


def test_the_waiter_of_a_closed_loop_is_skipped() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=1))
    lease = pool.acquire()
    loop = asyncio.new_event_loop()

    async def park() -> None:
        parked.append(asyncio.ensure_future(pool.aacquire()))
        await asyncio.sleep(0)

    parked: list[Any] = []
    loop.run_until_complete(park())
    assert pool.snapshot().waiting == 1
    loop.close()
    lease.release()
    pool.acquire(0).release()
    parked[0]._log_destroy_pending = False
    drive(whole(pool, maker))


def test_threads_and_tasks_share_one_pool() -> None:
    maker = ThreadMaker()
    pool = ResourcePool(maker, PoolConfig(max_size=3))
    errors: list[BaseException] = []

    def threads_side() -> None:
        for _ in range(60):
            with pool.acquire(15) as resource:
                resource.users += 1
                assert resource.users == 1
                time.sleep(0)
                resource.users -= 1

    async def tasks_side() -> None:
        async def one() -> None:
            for _ in range(15):
                async with await pool.aacquire(15) as resource:
                    resource.users += 1
                    assert resource.users == 1
                    await asyncio.sleep(0)
                    resource.users -= 1

        await asyncio.gather(*(one() for _ in range(4)))

    def run(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    works = [threads_side] * 4 + [lambda: asyncio.run(tasks_side())] * 2
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not errors
    drive(whole(pool, maker))


# --- under fire --------------------------------------------------------------------------------------------


class Unreliable:
    """Makes a maker fail, and its resources die, now and then."""

    def __init__(self, maker: Maker) -> None:
        self.dice = random.Random(7)
        self._finish = maker.finish
        maker.finish = self.finish  # type: ignore[method-assign]
        maker.valid = lambda resource: self.dice.random() > 0.05

    def finish(self) -> Any:
        if self.dice.random() < 0.1:
            raise OSError("unlucky")
        return self._finish()


def test_chaos_keeps_the_invariant(bench: Bench) -> None:
    async def scenario() -> None:
        dice = Unreliable(bench.maker).dice
        pool = bench.pool(max_size=4, validate_after=0, max_lifetime=0.05, max_idle_time=0.02, acquire_timeout=0.05)
        end = time.monotonic() + 0.8

        async def one() -> int:
            served = 0
            while time.monotonic() < end:
                try:
                    lease = await bench.acquire(pool)
                except (PoolTimeoutError, ResourceUnavailableError):
                    continue
                try:
                    lease.resource.users += 1
                    assert lease.resource.users == 1
                    await bench.crew.pause(dice.random() * 0.001)
                    served += 1
                finally:
                    lease.resource.users -= 1
                    await bench.release(lease, broken=dice.random() < 0.05)
            return served

        members = [bench.crew.start(one()) for _ in range(60 if bench.side.is_async else 24)]
        victims = []
        while bench.side.is_async and time.monotonic() < end:
            victims.append(dice.choice(members))
            victims[-1].cancel()
            await bench.crew.pause(0.02)
        served = 0
        for member in members:
            if member in victims:
                assert isinstance(await member.error(), asyncio.CancelledError | None)
            else:
                served += await member.result()
        assert served > 50
        await bench.crew.until(lambda: pool.snapshot().used == 0)
        await whole(pool, bench.maker)

    bench.side.run(scenario())


STORM = """
    import _thread, gc, random, sys, threading, time
    from wirestate.resources.pool import PoolConfig, ResourcePool

    class Maker:
        def acquire(self): return object()
        def release(self, resource): pass
        def validate(self, resource): return True

    sys.setswitchinterval(0.0002)
    pool = ResourcePool(Maker(), PoolConfig(max_size=2, acquire_timeout=0.2, validate_after=0.001))
    stop = threading.Event()
    hits = 0

    def kick():
        while not stop.is_set():
            time.sleep(random.random() * 0.001)
            _thread.interrupt_main()

    def compete():
        while not stop.is_set():
            with pool.acquire(5):
                pass

    kicker = threading.Thread(target=kick)
    rival = threading.Thread(target=compete)
    rival.start()
    kicker.start()
    while hits < 500:
        try:
            while True:
                with pool.acquire():
                    pass
        except KeyboardInterrupt:
            hits += 1
        except TimeoutError:
            pass
    while True:
        try:
            stop.set()
            kicker.join()
            rival.join()
            time.sleep(0.05)
            break
        except KeyboardInterrupt:
            pass
    sys.last_value = None
    gc.collect()
    leases = [pool.acquire(1) for _ in range(2)]
    for lease in leases:
        lease.release()
    now = pool.snapshot()
    assert now.used == 0 and now.idle == 2 and now.waiting == 0 and now.creating == 0, now
"""


def test_a_storm_of_interrupts_loses_no_place_and_no_lock() -> None:
    storm = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(STORM)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert storm.returncode == 0, storm.stderr


def test_interpreter_exit_with_an_open_pool_is_silent() -> None:
    code = """
        from wirestate.resources.pool import PoolConfig, ResourcePool
        class Maker:
            def acquire(self): return object()
            def release(self, resource): pass
        pool = ResourcePool(Maker(), PoolConfig(min_size=1, max_idle_time=1))
        lease = pool.acquire()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
