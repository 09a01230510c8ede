"""The pool: its configuration, creation, checks and what it says about itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.crews import Bench, Crew, TaskMaker, ThreadMaker, whole, world_of
from tests.invariant import Invariant
from wirestate.errors import (
    CircuitOpenError,
    InvalidSettingError,
    PoolTimeoutError,
    ResourceUnavailableError,
)
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.waiting import drive

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture
def bench(side: Any, invariant: Invariant) -> Bench:
    return Bench(side, invariant)


# --- configuration -----------------------------------------------------------------------------


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


# --- creation ----------------------------------------------------------------------------------


def test_a_failing_creator_is_the_cause_and_capacity_stays_whole(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2)
        bench.maker.failing = OSError("refused")
        started = time.monotonic()
        for _ in range(5):
            with pytest.raises(ResourceUnavailableError, match="OSError: refused") as failed:
                await bench.acquire(pool)
            assert failed.value.__cause__ is bench.maker.failing
        assert time.monotonic() - started < 5
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


def test_a_creation_that_never_returns_ends_on_time_and_what_comes_after_the_close_is_destroyed(
    side: Any, invariant: Invariant
) -> None:
    async def scenario() -> None:
        maker = invariant.watch(ThreadMaker())
        maker.open.clear()
        pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1, creation_timeout=0.02)))
        started = time.monotonic()
        for timeout in (15, 0.05):  # the second one waits in line: the place is taken
            with pytest.raises(PoolTimeoutError):
                await side.call(pool, "acquire", timeout)
        assert time.monotonic() - started < 5
        await side.call(pool, "close")
        assert maker.made == 0
        maker.open.set()
        await Crew(side.world).until(lambda: maker.made == maker.destroyed == 1)

    side.run(scenario())


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
        members = [bench.crew.start(bench.use(pool)) for _ in range(100)]
        await bench.crew.until(lambda: pool.snapshot().waiting + bench.maker.creating == 100)
        bench.maker.open.set()
        for member in members:
            await member.result()
        assert bench.maker.most_creating == 3
        assert bench.maker.made <= 10
        assert pool.snapshot().acquisitions == 100
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


# --- circuit breaker ---------------------------------------------------------------------------


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


def test_a_half_open_breaker_lets_one_probe_through_and_closes_on_its_success(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=4, breaker_failures=1, breaker_reset=0.05)
        assert pool.breaker is not None
        bench.maker.failing = OSError("down")
        with pytest.raises(ResourceUnavailableError):
            await bench.acquire(pool)
        await bench.crew.until(lambda: pool.breaker is not None and pool.breaker.retry_after == 0)
        with pytest.raises(ResourceUnavailableError):  # the probe fails: open again
            await bench.acquire(pool)
        assert pool.breaker.state == "open"
        pool.breaker._reset_after = 60.0  # no second probe on a slow machine
        await bench.crew.until(lambda: pool.breaker is not None and pool.breaker.retry_after == 0)
        bench.maker.failing = None
        bench.maker.open.clear()
        probe = bench.crew.start(bench.acquire(pool))
        await bench.crew.until(lambda: bench.maker.creating == 1)
        assert "breaker half-open" in repr(pool)
        for _ in range(3):
            with pytest.raises(CircuitOpenError):
                await bench.acquire(pool)
        bench.maker.open.set()
        await bench.release(await probe.result())
        assert pool.breaker.state == "closed"
        leases = [await bench.acquire(pool, 0) for _ in range(4)]
        for lease in leases:
            await bench.release(lease)
        assert bench.maker.tried == 6

    bench.side.run(scenario())


@pytest.mark.parametrize(("limit", "opens"), [(60.0, False), (None, True)])
def test_a_caller_of_little_patience_opens_no_breaker(*, limit: float | None, opens: bool) -> None:
    async def scenario() -> None:
        maker = TaskMaker()
        maker.open.clear()
        pool = ResourcePool(maker, PoolConfig(breaker_failures=1, creation_timeout=limit))
        with pytest.raises(PoolTimeoutError):
            await pool.aacquire(0.01)
        assert pool.breaker is not None
        assert (pool.breaker.state == "open") == opens
        maker.open.set()
        await whole(pool, maker)

    asyncio.run(scenario())


# --- what can be asked -------------------------------------------------------------------------


def test_repr_and_snapshot_answer_the_operator(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=4)
        idle, lease = await bench.acquire(pool), await bench.acquire(pool, owner="run-1/load#2")
        await bench.release(idle)
        assert repr(pool).startswith("<ResourcePool 'db': 1 of 4 used, 1 idle, 0 creating, 0 waiting; longest held 0.0")
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
