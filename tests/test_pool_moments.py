"""What a pool does and counts at moments that come rarely: between two instructions, after an interrupt, in a fork."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from tests.crews import Bench, Crew, Resource, TaskMaker, ThreadMaker
from tests.invariant import Invariant
from wirestate.errors import CircuitOpenError, PoolTimeoutError, ResourceClosedError, ResourceUnavailableError
from wirestate.observing import Listener
from wirestate.resources.gate import Gate
from wirestate.resources.places import NOBODY
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.resources.upkeep import UPKEEP
from wirestate.waiting import BLOCKING, drive

pytestmark = [pytest.mark.usefixtures("invariant"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def bench(side: Any, invariant: Invariant) -> Bench:
    return Bench(side, invariant)


class Meanwhile(deque[Any]):
    """What rests; something happens just before one more does."""

    act: Callable[[], object] | None = None

    def append(self, one: Any) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()
        super().append(one)


# --- between two instructions ----------------------------------------------------------------------


@pytest.mark.parametrize("stacks", [False, True])
def test_who_steps_into_line_as_a_resource_is_put_to_rest_gets_it(invariant: Invariant, *, stacks: bool) -> None:
    maker, crew = invariant.watch(ThreadMaker()), Crew(BLOCKING)
    pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1, leak_threshold=60 if stacks else None)))
    pool._idle = idle = Meanwhile()
    lease = pool.acquire()
    members: list[Any] = []

    def step_in() -> None:
        members.append(crew.start(pool.take("late", 15, BLOCKING)))
        drive(crew.until(lambda: pool.snapshot().waiting == 1))

    idle.act = step_in
    lease.release()
    pool.give_back(drive(members[0].result()))


def test_who_steps_into_line_as_a_place_is_put_to_rest_gets_it() -> None:
    gate, crew = Gate(1, name="api"), Crew(BLOCKING)
    gate._idle = idle = Meanwhile()
    place = gate.enter_now()
    assert place is not None
    members: list[Any] = []

    def step_in() -> None:
        members.append(crew.start(gate.enter("late", 15, BLOCKING)))
        drive(crew.until(lambda: gate.snapshot().waiting == 1))

    idle.act = step_in
    gate.leave(place)
    gate.leave(drive(members[0].result()))


def test_nobody_overtakes_the_line_when_a_resource_has_just_come_to_rest(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1)
        lease = await bench.acquire(pool)
        first = bench.crew.start(bench.acquire(pool, 15))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        entry = lease._entry
        entry.owner = NOBODY
        pool._idle.append(entry)  # as release() does, before it serves the line
        assert pool.take_now() is None
        with pytest.raises(PoolTimeoutError):
            await bench.acquire(pool, 0)
        late = bench.crew.start(bench.use(pool))
        await bench.release(await first.result())
        await late.result()
        del lease._entry

    bench.side.run(scenario())


def test_a_resource_that_was_lost_under_the_lock_is_made_anew_for_who_must_not_wait(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, max_waiting=0)
        leases = [await bench.acquire(pool)]
        with pool._lock:
            leases.clear()
        await bench.release(await bench.acquire(pool, 5))

    bench.side.run(scenario())


def test_a_place_in_a_gate_that_was_lost_under_the_lock_is_free_at_once() -> None:
    gate = Gate(1, name="api")
    places = [gate.enter_now()]
    with gate._lock:
        places.clear()
    place = gate.enter_now()
    assert place is not None
    gate.leave(place)


def test_a_blank_for_a_task_that_is_being_cancelled_goes_back_whole(invariant: Invariant) -> None:
    async def main() -> None:
        pool = invariant.watch(ResourcePool(invariant.watch(ThreadMaker()), PoolConfig(max_size=1)))
        lease = pool.acquire()
        waiter = asyncio.create_task(pool.aacquire())
        await asyncio.sleep(0)
        waiter.cancel()
        lease.release(broken=True)
        now = pool.snapshot()
        assert (now.idle, now.creating, now.used) == (0, 0, 0)
        with pytest.raises(asyncio.CancelledError):
            await waiter

    asyncio.run(main())


# --- after an interrupt ----------------------------------------------------------------------------


def test_an_entry_that_is_lost_before_its_resource_is_made_blocks_no_creation(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2, max_creating=1)
        with pool._lock:
            entry = pool._blank()
        assert pool.snapshot().creating == 1
        del entry
        await bench.release(await bench.acquire(pool, 5))
        assert pool.snapshot().discards == {}

    bench.side.run(scenario())


def test_the_upkeep_finds_places_that_went_without_a_trace() -> None:
    gate, crew = Gate(1, name="api"), Crew(BLOCKING)
    places = [gate.enter_now()]
    waiter = crew.start(gate.enter("two", 15, BLOCKING))
    drive(crew.until(lambda: gate.snapshot().waiting == 1))
    assert places[0] is not None
    places[0].alive = False  # an interrupt ended its finalizer before it took note
    places.clear()
    gate.reap()
    gate.leave(drive(waiter.result()))
    place = gate.enter_now()
    assert place is not None
    place.alive = False
    del place
    assert gate.snapshot().used == 0


# --- what is counted -------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["broken", "lost", "lost and swept"])
def test_uses_count_once_also_when_their_resource_is_gone(bench: Bench, end: str) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2)
        await bench.use(pool)
        leases = [await bench.acquire(pool)]
        entry = leases[0]._entry
        assert pool.snapshot().acquisitions == 2
        if end == "broken":
            await bench.release(leases.pop(), broken=True)
            assert entry.uses == 2  # it is there still
        else:
            del entry
            leases.clear()
            if end == "lost and swept":
                pool.reap()
                await bench.crew.until(lambda: bench.maker.destroyed == 1)
        assert pool.snapshot().acquisitions == 2
        await bench.use(pool)
        assert pool.snapshot().acquisitions == 3

    bench.side.run(scenario())


def test_what_was_lost_is_destroyed_by_the_upkeep_and_by_the_close(bench: Bench) -> None:
    async def scenario() -> None:
        for destroyed in (1, 2):
            pool = bench.pool(max_size=1)
            leases = [await bench.acquire(pool)]
            leases.clear()
            if destroyed == 1:
                pool.reap()
            await bench.close(pool)
            await bench.crew.until(lambda destroyed=destroyed: bench.maker.destroyed == destroyed)  # type: ignore[misc]

    bench.side.run(scenario())


def test_a_creation_that_took_too_long_counts_as_a_timeout(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, creation_timeout=0.02)
        bench.maker.open.clear()
        with pytest.raises(PoolTimeoutError):
            await bench.acquire(pool)
        assert (pool.snapshot().timeouts, pool.snapshot().failures) == (1, 1)
        bench.maker.open.set()
        await bench.crew.until(lambda: pool.snapshot().creating == 0)

    bench.side.run(scenario())


def test_a_creator_that_is_well_again_is_blamed_no_more(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2, max_creating=1)
        bench.maker.failing = OSError("down")
        with pytest.raises(ResourceUnavailableError):
            await bench.acquire(pool)
        bench.maker.failing = None
        lease = await bench.acquire(pool)
        bench.maker.open.clear()
        slow = bench.crew.start(bench.acquire(pool))
        await bench.crew.until(lambda: bench.maker.creating == 1)
        with pytest.raises(PoolTimeoutError, match="none of its 2"):
            await bench.acquire(pool, 0.01)
        bench.maker.open.set()
        await bench.release(await slow.result())
        await bench.release(lease)

    bench.side.run(scenario())


# --- creation --------------------------------------------------------------------------------------


def test_when_one_is_made_the_next_in_line_may_make_one(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2, max_creating=1)
        bench.maker.open.clear()
        members = [bench.crew.start(bench.acquire(pool, 15))]
        await bench.crew.until(lambda: bench.maker.creating == 1)
        members.append(bench.crew.start(bench.acquire(pool, 15)))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        bench.maker.open.set()
        for lease in [await member.result() for member in members]:
            await bench.release(lease)
        assert bench.maker.made == 2

    bench.side.run(scenario())


@pytest.mark.parametrize("invalid", [False, True])
def test_a_timeout_of_0_forbids_waiting_in_line_not_the_work(bench: Bench, *, invalid: bool) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=1, validate_after=0, creation_timeout=15)
        if invalid:
            await bench.use(pool)
            bench.maker.valid = lambda resource: resource.number > 1
        bench.maker.open.clear()
        opener = threading.Timer(0.05, bench.maker.open.set)
        opener.start()
        await bench.release(await bench.acquire(pool, 0))
        opener.join()
        assert bench.maker.made == 1 + invalid

    bench.side.run(scenario())


def test_times_without_an_end_are_times(bench: Bench) -> None:
    forever = float("inf")

    async def scenario() -> None:
        pool = bench.pool(
            min_size=1,
            max_size=10**9,
            max_idle_time=forever,
            max_lifetime=forever,
            acquire_timeout=forever,
            creation_timeout=forever,
            validation_timeout=forever,
            destroy_timeout=forever,
            max_waiting=10**9,
            validate_after=0,
            leak_threshold=forever,
            breaker_failures=1,
            breaker_reset=forever,
        )
        await bench.crew.until(lambda: pool.available == 1)
        for _ in range(3):
            await bench.use(pool)
        assert pool.reap() == 0
        lease = await bench.acquire(pool)
        bench.maker.failing = OSError("down")
        with pytest.raises(ResourceUnavailableError):
            await bench.acquire(pool)
        with pytest.raises(CircuitOpenError, match="in inf s"):
            await bench.acquire(pool)
        await bench.release(lease)

    bench.side.run(scenario())


class Nosy(ThreadMaker):
    """Uses its own pool in each of its verbs."""

    pool: ResourcePool
    act: Callable[[ResourcePool], object]
    acting = False

    def look(self) -> None:
        if not self.acting:
            self.acting = True
            self.act(self.pool)
            self.acting = False

    def acquire(self) -> Resource:
        self.look()
        return super().acquire()

    def validate(self, resource: Resource) -> bool:
        self.look()
        return super().validate(resource)

    def reset(self, resource: Resource) -> None:
        self.look()

    def release(self, resource: Resource) -> None:
        self.look()
        super().release(resource)


@pytest.mark.parametrize("size", [1, 2])
def test_a_provider_may_use_its_own_pool_in_each_of_its_verbs(bench: Bench, size: int) -> None:
    looks: list[bool] = []

    def use(pool: ResourcePool) -> None:
        assert len(pool.holders()) <= size
        try:
            pool.acquire(0).release()
            looks.append(True)
        except (PoolTimeoutError, ResourceClosedError):
            looks.append(False)

    async def scenario() -> None:
        maker = Nosy()
        maker.act = use
        bench.use_maker(maker)
        maker.pool = pool = bench.pool(max_size=size, validate_after=0)
        for _ in range(2):
            await bench.use(pool)
        await bench.release(await bench.acquire(pool), broken=True)
        await bench.close(pool)
        assert len(looks) >= 6
        assert any(looks) == (size > 1)  # what works with the only resource gets no other

    bench.side.run(scenario())


def test_a_provider_or_a_listener_may_close_the_pool_that_it_works_for(bench: Bench) -> None:
    class Closing(Listener):
        def on_breaker(self, resource: str, before: str, after: str) -> None:
            pool.close()

    async def scenario() -> None:
        nonlocal pool
        maker = Nosy()
        maker.act = ResourcePool.close
        bench.use_maker(maker)
        maker.pool = bench.pool(max_size=1)
        with pytest.raises(ResourceClosedError):
            await bench.acquire(maker.pool)
        assert (maker.made, maker.destroyed) == (1, 1)
        plain = bench.use_maker(ThreadMaker())
        pool = bench.pool(Closing(), max_size=2, breaker_failures=1)
        lease = await bench.acquire(pool)
        plain.failing = OSError("down")
        with pytest.raises(ResourceUnavailableError):
            await bench.acquire(pool)
        with pytest.raises(ResourceClosedError):
            await bench.acquire(pool)
        await bench.release(lease)
        assert plain.destroyed == 1

    pool: ResourcePool
    bench.side.run(scenario())


# --- checks and destructions -----------------------------------------------------------------------


def test_one_that_is_dead_though_it_did_not_rest_says_nothing_of_the_others(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=2, validate_after=0)
        one, two = await bench.acquire(pool), await bench.acquire(pool)
        await bench.release(one)
        await bench.release(two, ValueError("in the body"))
        bench.maker.valid = lambda resource: resource.number != 2
        lease = await bench.acquire(pool)
        assert lease.resource.number == 1
        assert pool.snapshot().discards == {"invalid": 1}
        await bench.release(lease)

    bench.side.run(scenario())


def test_a_plain_check_runs_on_the_loop_where_its_resource_belongs_to_it(invariant: Invariant) -> None:
    where: set[int] = set()

    class Half(TaskMaker):
        def validate(self, resource: Resource) -> bool:  # type: ignore[override]
            where.add(threading.get_ident())
            return self.check(resource)

        def release(self, resource: Resource) -> None:  # type: ignore[override]
            where.add(threading.get_ident())
            self.destroy(resource)

    async def main() -> None:
        maker = invariant.watch(Half())
        pool = invariant.watch(ResourcePool(maker, PoolConfig(validate_after=0, validation_timeout=5)))
        for _ in range(2):
            await (await pool.aacquire()).arelease()
        await pool.aclose()
        assert (maker.checked, maker.destroyed) == (1, 1)

    asyncio.run(main())
    assert where == {threading.get_ident()}


def test_a_plain_check_with_a_limit_blocks_no_one_who_acquires_without_await_on_a_loop(invariant: Invariant) -> None:
    async def main() -> None:
        maker = invariant.watch(ThreadMaker())
        pool = invariant.watch(ResourcePool(maker, PoolConfig(validate_after=0, validation_timeout=5)))
        for _ in range(2):
            pool.acquire().release()
        assert (maker.checked, maker.made) == (1, 1)

    asyncio.run(main())


# --- upkeep ----------------------------------------------------------------------------------------


def test_the_upkeep_throws_out_what_is_too_old_and_leaves_the_order_of_the_others(bench: Bench) -> None:
    async def scenario() -> None:
        pool = bench.pool(max_size=4)
        leases = [await bench.acquire(pool) for _ in range(4)]
        leases[1]._entry.expires = time.monotonic()
        for lease in leases:
            await bench.release(lease)
        del lease, leases
        assert pool.reap() == 1
        await bench.crew.until(lambda: pool.snapshot().discards == {"expired": 1})
        leases = [await bench.acquire(pool) for _ in range(3)]
        assert [lease.resource.number for lease in leases] == [4, 3, 1]
        for lease in leases:
            await bench.release(lease)

    bench.side.run(scenario())


def test_a_visit_to_a_gate_that_is_watched_already_disturbs_no_upkeep() -> None:
    looks: list[str] = []

    class Watched(Gate):
        def reap(self) -> int:
            looks.append(self.name)
            return 0

    gate, barrier = (Watched(1, name=name, leak_threshold=3600) for name in ("gate", "barrier"))
    until = Crew(BLOCKING).until
    for count in range(3):
        place = gate.enter_now()
        assert place is not None
        gate.leave(place)
        UPKEEP.watch(barrier, 3600)
        drive(until(lambda count=count: looks.count("barrier") == count + 1))  # type: ignore[misc]
    assert looks.count("gate") == 1
    gate.close()
    barrier.close()
    never = Watched(1, name="never", leak_threshold=3600)
    never.close()
    for closed in (gate, never):
        with pytest.raises(ResourceClosedError):
            drive(closed.enter("late", 0, BLOCKING))
        assert closed not in UPKEEP._watched


def test_each_way_to_a_lease_keeps_its_stack_where_that_is_wanted(bench: Bench) -> None:
    class Leaks(Listener):
        def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
            stacks[str(owner_id)] = stack

    stacks: dict[str, str] = {}

    async def taken_anew(pool: ResourcePool) -> Any:
        return await bench.acquire(pool, owner="anew")

    async def taken_from_rest(pool: ResourcePool) -> Any:
        return await bench.acquire(pool, owner="from rest")

    async def taken_in_line(pool: ResourcePool) -> Any:
        return await bench.acquire(pool, 15, owner="in line")

    async def scenario() -> None:
        pool = bench.pool(listener=Leaks(), max_size=1, leak_threshold=0.01)
        for owner, take in (("anew", taken_anew), ("from rest", taken_from_rest)):
            lease = await take(pool)
            await bench.crew.until(lambda owner=owner: owner in stacks)  # type: ignore[misc]
            await bench.release(lease)
        lease = await taken_from_rest(pool)
        waiter = bench.crew.start(taken_in_line(pool))
        await bench.crew.until(lambda: pool.snapshot().waiting == 1)
        await bench.release(lease)
        lease = await waiter.result()
        await bench.crew.until(lambda: "in line" in stacks)
        await bench.release(lease)
        for owner, take in (("anew", "taken_anew"), ("from rest", "taken_from_rest"), ("in line", "taken_in_line")):
            assert f"in {test_each_way_to_a_lease_keeps_its_stack_where_that_is_wanted.__name__}" in stacks[owner]
            assert take in stacks[owner]

    bench.side.run(scenario())


# --- copies and forks ------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_pool_a_gate_and_a_lease_are_not_copied(invariant: Invariant, copied: Callable[[Any], Any]) -> None:
    pool = invariant.watch(ResourcePool(invariant.watch(ThreadMaker()), name="db"))
    lease = pool.acquire()
    with pytest.raises(TypeError, match="a lease of 'db' is one borrowing"):
        copied(lease)
    with pytest.raises(TypeError, match="ResourcePool 'db' belongs to its process"):
        copied(pool)
    with pytest.raises(TypeError, match="Gate 'api' belongs to its process"):
        copied(Gate(1, name="api"))
    lease.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # other tests' threads: 3.12 warns of fork then
def test_a_forked_child_neither_lends_nor_finishes_what_rested_or_was_out(invariant: Invariant) -> None:
    ended: list[int] = []

    class Farewell(Resource):
        def __del__(self) -> None:
            ended.append(self.number)

    class Saying(ThreadMaker):
        def finish(self) -> Resource:
            return Farewell(super().finish().number)

        def release(self, resource: Resource) -> None: ...

    pool = invariant.watch(ResourcePool(Saying(), PoolConfig(max_size=3)))
    assert pool._quick
    lease, other, lost = (pool.acquire() for _ in range(3))
    other.release()
    del lost  # its resource waits to be destroyed
    child = os.fork()
    if child == 0:
        status = 1
        try:
            gc.collect()
            lease.release()
            assert ended == []
            assert pool.size == pool.available == 0
            assert pool.acquire().resource.number == 4
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    lease.release()
    pool.reap()
