"""Checks before a resource is handed out, resets when it comes back, destructions: also those that fail or hang."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from tests.crews import PATIENCE, Bench, Maker, Resource, TaskMaker, ThreadMaker
from tests.invariant import Invariant
from wirestate.errors import InvalidSettingError, PoolTimeoutError, ResourceUnavailableError
from wirestate.resources.pool import PoolConfig, ResourcePool

pytestmark = pytest.mark.usefixtures("invariant")

LONG = 5.0  # seconds: far more than what is measured, far less than what it would be without the guard


class Hanging(Maker):
    """One whose verbs hang for the resources in ``stuck``, until ``free`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck: dict[str, set[int]] = {"validate": set(), "reset": set(), "release": set()}
        self.free = threading.Event()
        self.resets: list[int] = []

    def hangs(self, verb: str, resource: Resource) -> bool:
        return resource.number in self.stuck[verb] and not self.free.is_set()

    def tidy(self, resource: Resource) -> None:
        assert resource in self.live, "reset after its end"
        self.resets.append(resource.number)


class HangingThreads(Hanging, ThreadMaker):
    def wait(self, verb: str, resource: Resource) -> None:
        if self.hangs(verb, resource):
            assert self.free.wait(PATIENCE)

    def validate(self, resource: Resource) -> bool:
        self.wait("validate", resource)
        return self.check(resource)

    def reset(self, resource: Resource) -> None:
        self.wait("reset", resource)
        self.tidy(resource)

    def release(self, resource: Resource) -> None:
        self.wait("release", resource)
        self.destroy(resource)


class HangingTasks(Hanging, TaskMaker):
    async def wait(self, verb: str, resource: Resource) -> None:
        while self.hangs(verb, resource):
            await asyncio.sleep(0.001)

    async def validate(self, resource: Resource) -> bool:
        await self.wait("validate", resource)
        return self.check(resource)

    async def reset(self, resource: Resource) -> None:
        await self.wait("reset", resource)
        self.tidy(resource)

    async def release(self, resource: Resource) -> None:
        try:
            await self.wait("release", resource)
        finally:
            self.destroy(resource)


@pytest.fixture
def bench(side: Any, invariant: Invariant) -> Bench:
    return Bench(side, invariant)


@pytest.fixture(params=["its own world", "plain"])
def hanging(request: pytest.FixtureRequest, bench: Bench) -> Hanging:
    """Give a maker of the test's world, and a plain one in both worlds."""
    tasks = bench.side.is_async and request.param != "plain"
    maker = HangingTasks() if tasks else HangingThreads()
    bench.use_maker(maker)
    return maker


async def fill(bench: Bench, pool: ResourcePool, count: int, error: BaseException | None = None) -> None:
    """Let so many rest in *pool*."""
    leases = [await bench.acquire(pool) for _ in range(count)]
    for lease in leases:
        await bench.release(lease, error)


# --- checks --------------------------------------------------------------------------------------


def test_when_fresh_ones_fail_their_check_too_nothing_runs_in_circles(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(min_size=2, max_size=2, validate_after=0)
        bench.maker.valid = lambda resource: False
        end, rounds = time.monotonic() + 0.4, 0
        while time.monotonic() < end:
            await bench.use(pool)
            rounds += 1
            await bench.crew.pause(0.02)
        # Each round destroys one and makes one; what is made ahead pauses longer and longer.
        assert bench.maker.checked <= 2 * rounds + 4
        assert bench.maker.tried <= 2 * rounds + 8
        assert pool.snapshot().discards["invalid"] >= 1
        await bench.close(pool)

    bench.side.run(scenario())


def test_a_server_that_refuses_all_checks_is_not_hammered_by_the_refill(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(min_size=1, max_size=1, validate_after=0)
        await bench.use(pool)
        bench.maker.valid = lambda resource: False
        for _ in range(3):
            await bench.crew.until(lambda: pool.available == 1)
            tried = bench.maker.tried
            await bench.use(pool)  # what was used before is replaced at once
            assert bench.maker.tried - tried <= 2
        await bench.close(pool)

    bench.side.run(scenario())


def test_checks_end_with_the_deadline_of_the_caller_and_the_last_one_is_the_cause(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=4, validate_after=0)
        await fill(bench, pool, 4, ValueError("in the body"))  # so that each is checked

        def dead(resource: Resource) -> bool:
            time.sleep(0.1)
            raise OSError("reset by peer")

        bench.maker.valid = dead
        with pytest.raises(PoolTimeoutError, match=r"provider is failing .*OSError: reset by peer") as late:
            await bench.acquire(pool, 0.05)
        assert isinstance(late.value.__cause__, ResourceUnavailableError)
        assert bench.maker.checked == 1
        assert pool.snapshot().timeouts == 1
        bench.maker.valid = lambda resource: True
        await bench.close(pool)

    bench.side.run(scenario())


def test_a_check_that_hangs_ends_at_its_own_limit_and_costs_no_place(bench: Bench, hanging: Hanging) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=3, validate_after=0, validation_timeout=0.05)
        await fill(bench, pool, 3)
        hanging.stuck["validate"] = {1, 2, 3}
        started = time.monotonic()
        leases = [await bench.acquire(pool, 15) for _ in range(3)]
        assert time.monotonic() - started < LONG
        assert {lease.resource.number for lease in leases} == {4, 5, 6}
        # One probe for those that rested as long: the others are as dead.
        assert pool.snapshot().discards.get("suspect") == 2
        hanging.free.set()
        await bench.crew.until(lambda: hanging.destroyed == 3)
        for lease in leases:
            await bench.release(lease)
        assert pool.snapshot().discards == {"invalid": 1, "suspect": 2}

    bench.side.run(scenario())


def test_the_deadline_of_one_impatient_caller_condemns_no_other_resource(bench: Bench, hanging: Hanging) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2, validate_after=0, validation_timeout=60)
        await fill(bench, pool, 2)
        hanging.stuck["validate"] = {2}
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError, match="gave no answer in"):
            await bench.acquire(pool, 0.05)
        assert time.monotonic() - started < LONG
        lease = await bench.acquire(pool, 15)
        assert lease.resource.number == 1
        hanging.free.set()
        await bench.release(lease)
        await bench.crew.until(lambda: pool.snapshot().destroyed == 1)

    bench.side.run(scenario())


def test_whose_resource_was_no_good_goes_on_at_the_head_of_the_line(bench: Bench, hanging: Hanging) -> None:
    order: list[str] = []

    async def work(pool: ResourcePool, name: str) -> None:
        lease = await bench.acquire(pool, 15)
        order.append(name)
        if name == "first in line":
            await bench.crew.until(lambda: pool.snapshot().waiting == 2)
        await bench.release(lease)

    async def scenario() -> None:
        pool = bench.pool(max_size=1, validate_after=0, validation_timeout=60)
        await fill(bench, pool, 1)
        hanging.stuck["validate"] = {1}
        members = [bench.crew.start(work(pool, "unlucky"))]
        await bench.crew.until(lambda: pool.available == 0)
        for number, name in enumerate(("first in line", "second in line"), 1):
            members.append(bench.crew.start(work(pool, name)))
            await bench.crew.until(lambda number=number: pool.snapshot().waiting == number)  # type: ignore[misc]
        hanging.valid = lambda resource: resource.number != 1
        hanging.free.set()
        for member in members:
            await member.result()
        assert order == ["first in line", "unlucky", "second in line"]

    bench.side.run(scenario())


# --- reset ---------------------------------------------------------------------------------------


def test_a_resource_is_reset_before_its_next_owner_gets_it(bench: Bench, hanging: Hanging) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        lease = await bench.acquire(pool)
        assert hanging.resets == []  # a fresh one is tidy
        await bench.release(lease)
        assert hanging.resets == [1]
        lease = await bench.acquire(pool)
        assert hanging.resets == [1]
        await bench.release(lease, ValueError("in the body"))
        lease = await bench.acquire(pool)
        assert hanging.resets == [1, 1]
        await bench.release(lease, broken=True)
        assert hanging.resets == [1, 1]  # what is destroyed is not tidied up before

    bench.side.run(scenario())


def test_a_waiter_gets_the_resource_only_after_its_reset(bench: Bench, hanging: Hanging) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, destroy_timeout=15)
        lease = await bench.acquire(pool)
        waiter = bench.crew.start(bench.acquire(pool, 15))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        hanging.stuck["reset"] = {1}
        if isinstance(hanging, TaskMaker) or not bench.side.is_async:  # else it would block the loop
            releaser = bench.crew.start(bench.release(lease))
            await bench.crew.until(lambda: lease.__repr__().endswith("released>"))
            await bench.crew.pause(0.02)
            assert not waiter.done
            hanging.free.set()
            await releaser.result()
        else:
            hanging.free.set()
            await bench.release(lease)
        assert hanging.resets == [1]
        await bench.release(await waiter.result())

    bench.side.run(scenario())


def test_a_failing_reset_costs_the_resource_and_touches_no_result(
    bench: Bench, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(resource: Resource) -> None:
        raise OSError("cannot roll back")

    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        lease = await bench.acquire(pool)
        waiter = bench.crew.start(bench.acquire(pool, 15))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        hanging.tidy = fail  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING):
            await bench.release(lease)  # raises nothing
        assert "resetting a resource failed: OSError: cannot roll back" in caplog.text
        served = await waiter.result()
        assert served.resource.number == 2
        assert pool.snapshot().discards == {"reset": 1}
        hanging.tidy = lambda resource: None  # type: ignore[method-assign]
        await bench.release(served)

    bench.side.run(scenario())


def test_a_reset_that_hangs_ends_at_its_limit(bench: Bench, hanging: Hanging) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, validation_timeout=0.05)
        lease = await bench.acquire(pool)
        hanging.stuck["reset"] = {1}
        started = time.monotonic()
        await bench.release(lease)
        served = await bench.acquire(pool, 15)
        assert time.monotonic() - started < LONG
        assert served.resource.number == 2
        hanging.free.set()
        await bench.release(served)
        await bench.crew.until(lambda: pool.snapshot().discards == {"reset": 1})

    bench.side.run(scenario())


def test_a_lease_of_an_asynchronous_pool_released_without_await_is_reset_on_its_loop(invariant: Invariant) -> None:
    async def scenario() -> None:
        maker = invariant.watch(HangingTasks())
        pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1)))
        (await pool.aacquire()).release()
        assert maker.resets == []
        async with await pool.aacquire(15):
            assert maker.resets == [1]
        (await pool.aacquire()).release()
        await pool.aclose()
        await asyncio.sleep(0.01)  # it came back to a closed pool
        assert not maker.live

    asyncio.run(scenario())


def test_a_task_cancelled_in_reset_leaves_its_place(invariant: Invariant) -> None:
    async def scenario() -> None:
        maker = invariant.watch(HangingTasks())
        pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1)))
        lease = await pool.aacquire()
        waiter = asyncio.create_task(pool.aacquire(15))
        maker.stuck["reset"] = {1}
        task = asyncio.create_task(lease.arelease())
        for _ in range(3):
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        served = await waiter
        assert served.resource.number == 2
        assert pool.snapshot().discards == {"interrupted": 1}
        await served.arelease()
        await pool.aclose()

    asyncio.run(scenario())


def test_a_reset_that_does_not_take_the_resource_is_refused_when_the_pool_is_made() -> None:
    class Wrong(ThreadMaker):
        def reset(self) -> None:
            """Reset all of it."""

    with pytest.raises(InvalidSettingError, match=r"Wrong\.reset\(\) must take the resource"):
        ResourcePool(Wrong())


# --- destruction ---------------------------------------------------------------------------------


def test_a_destruction_that_hangs_gives_its_place_back_and_ends_later(bench: Bench, hanging: Hanging) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, destroy_timeout=0.05)
        lease = await bench.acquire(pool)
        hanging.stuck["release"] = {1}
        started = time.monotonic()
        await bench.release(lease, broken=True)
        served = await bench.acquire(pool, 15)
        assert time.monotonic() - started < LONG
        assert served.resource.number == 2
        hanging.free.set()
        await bench.release(served)
        await bench.crew.until(lambda: pool.snapshot().destroyed == hanging.destroyed == 1)

    bench.side.run(scenario())


@pytest.mark.parametrize("trouble", ["hangs", "raises"])
def test_close_is_bounded_and_destroys_the_others_when_one(bench: Bench, hanging: Hanging, trouble: str) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=8, destroy_timeout=0.3)
        await fill(bench, pool, 8)
        if trouble == "hangs":
            hanging.stuck["release"] = {3, 5, 7, 8}
        else:
            hanging.failing_release = OSError("cannot say goodbye")
        started = time.monotonic()
        await bench.close(pool)
        assert time.monotonic() - started < LONG
        assert pool.snapshot().size == 0
        survivors = {resource.number for resource in hanging.live}
        assert survivors <= hanging.stuck["release"]
        hanging.free.set()
        await bench.crew.until(lambda: pool.snapshot().destroyed == 8)

    bench.side.run(scenario())


def test_a_hanging_destruction_of_what_is_too_old_holds_up_no_acquire(bench: Bench, hanging: Hanging) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, max_lifetime=1000)
        lease = await bench.acquire(pool)
        lease._entry.expires = time.monotonic()
        await bench.release(lease)
        hanging.stuck["release"] = {1}
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError):
            await bench.acquire(pool, 0.1)
        assert time.monotonic() - started < LONG - 1
        hanging.free.set()
        await bench.use(pool)

    bench.side.run(scenario())


def test_without_a_limit_a_resource_is_destroyed_in_the_thread_that_discards_it() -> None:
    threads: list[int] = []

    class Bound(ThreadMaker):
        def release(self, resource: Resource) -> None:
            threads.append(threading.get_ident())
            self.destroy(resource)

    for limit in (None, 5.0):
        pool = ResourcePool(Bound(), PoolConfig(destroy_timeout=limit))
        pool.acquire().release()
        pool.close()
    mine = threading.get_ident()
    assert [thread == mine for thread in threads] == [True, False]
