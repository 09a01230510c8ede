"""Pools across forks, threads and loops, and under interrupts and chaos."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.crews import Bench, Maker, TaskMaker, ThreadMaker
from tests.invariant import Invariant
from wirestate.errors import (
    PoolTimeoutError,
    ResourceUnavailableError,
)
from wirestate.resources.gate import Gate
from wirestate.resources.pool import PoolConfig, ResourcePool
from wirestate.resources.upkeep import UPKEEP
from wirestate.waiting import BLOCKING, drive

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture
def bench(side: Any, invariant: Invariant) -> Bench:
    return Bench(side, invariant)


CHAOS_SECONDS = float(os.environ.get("CHAOS_SECONDS", "1"))  # `make soak` gives it more


# --- processes and loops -----------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # other tests' threads: 3.12 warns of fork then
def test_a_forked_child_neither_uses_nor_closes_what_the_parent_made(invariant: Invariant) -> None:
    maker = invariant.watch(ThreadMaker())
    pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=2, breaker_failures=1)))
    gate = invariant.watch(Gate(1, name="api"))
    place = gate.enter_now("parent")
    lease, other = pool.acquire(), pool.acquire()
    other.release()
    assert pool.breaker is not None
    with pool._lock, gate._lock, pool.breaker._lock, UPKEEP._changed:  # held by other threads at the fork, say
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
            gate.leave(place)  # the parent's: nothing happens
            gate.leave(drive(gate.enter("child", 1, BLOCKING)))
            pool.breaker.failure()
            pool.close()
            assert maker.destroyed == 2
            filled = ResourcePool(maker, PoolConfig(min_size=1))  # upkeep has a thread of its own here
            while not filled.available:
                time.sleep(0.001)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert maker.destroyed == 0
    lease.release()
    gate.leave(place)


def test_resources_go_only_to_their_loop_and_make_room_for_others(invariant: Invariant) -> None:
    maker = TaskMaker()
    pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=2)))
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
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]


def test_a_pool_whose_loop_is_closed_starts_anew_on_the_next(invariant: Invariant) -> None:
    maker = TaskMaker()
    pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1)))

    async def use() -> int:
        async with await pool.aacquire(5) as resource:
            return int(resource.number)

    assert [asyncio.run(use()) for _ in range(3)] == [1, 2, 3]
    assert pool.snapshot().discards == {"loop closed": 2}


def test_the_waiter_of_a_closed_loop_is_skipped(invariant: Invariant) -> None:
    maker = invariant.watch(ThreadMaker())
    pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1)))
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


def test_threads_and_tasks_share_one_pool(invariant: Invariant) -> None:
    maker = invariant.watch(ThreadMaker())
    pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=3)))
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


def test_a_place_on_its_way_to_the_cancelled_task_of_another_thread_comes_back(invariant: Invariant) -> None:
    maker = invariant.watch(ThreadMaker())
    pool = invariant.watch(ResourcePool(maker, PoolConfig(max_size=1)))
    outcomes: set[str] = set()

    def release(lease: Any, at: threading.Barrier) -> None:
        at.wait(5)
        lease.release()

    async def one_round(number: int) -> None:
        lease, barrier = pool.acquire(), threading.Barrier(2)
        thread = threading.Thread(target=release, args=(lease, barrier))
        thread.start()
        del lease
        waiter = asyncio.create_task(pool.aacquire(15))
        await asyncio.sleep(0)
        barrier.wait(5)
        for _ in range(number % 20):
            pool.available  # a little time
        waiter.cancel()
        try:
            (await waiter).release()
            outcomes.add("served")
        except asyncio.CancelledError:
            outcomes.add("cancelled")
        thread.join(5)
        await asyncio.sleep(0)
        (await pool.aacquire(5)).release()

    async def main() -> None:
        for number in range(300):
            await one_round(number)

    asyncio.run(main())
    assert "cancelled" in outcomes
    assert maker.made == 1  # none was lost on its way, and made anew


# --- under fire --------------------------------------------------------------------------------


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


@pytest.mark.timeout(60 + 3 * CHAOS_SECONDS)
@pytest.mark.filterwarnings("ignore:pool 'db'.*was lost:ResourceWarning")  # a cancelled task may drop a lease
def test_chaos_keeps_the_invariant(bench: Bench) -> None:
    async def scenario() -> None:
        dice = Unreliable(bench.maker).dice
        pool = bench.pool(
            min_size=1,
            max_size=4,
            max_creating=2,
            validate_after=0,
            max_lifetime=0.02,
            max_idle_time=0.02,
            acquire_timeout=0.05,
            leak_threshold=5,
        )
        end = time.monotonic() + CHAOS_SECONDS

        async def one() -> int:
            served = 0
            while time.monotonic() < end:
                try:
                    lease = await bench.acquire(pool)
                except (PoolTimeoutError, ResourceUnavailableError):
                    continue
                try:
                    lease.resource.users += 1
                    assert lease.resource.users == 1, "two owners"
                    assert lease.resource in bench.maker.live, "used after its end"
                    await bench.crew.pause(dice.random() * 0.001)
                    served += 1
                finally:
                    lease.resource.users -= 1
                    await bench.release(lease, broken=dice.random() < 0.05)
            return served

        members = [bench.crew.start(one()) for _ in range(60 if bench.side.is_async else 24)]
        served = 0
        while bench.side.is_async and time.monotonic() < end:
            victim = members.pop(dice.randrange(len(members)))
            victim.cancel()
            members.append(bench.crew.start(one()))
            if (error := await victim.error()) is not None:
                assert isinstance(error, asyncio.CancelledError)
            await bench.crew.pause(0.02)
        await bench.crew.pause(max(0.0, end - time.monotonic()))
        for member in members:
            served += await member.result()
        assert served > 50
        assert bench.maker.most_live <= 4
        assert bench.maker.most_creating <= 2
        assert pool.snapshot().discards.keys() >= {"invalid", "broken"}

    bench.side.run(scenario())


STORM = """
    import _thread, gc, random, sys, threading, time, warnings
    from wirestate.resources.gate import Gate
    from wirestate.resources.pool import PoolConfig, ResourcePool
    from wirestate.waiting import BLOCKING, drive

    class Maker:
        def acquire(self): return object()
        def release(self, resource): pass
        def validate(self, resource): return True
        def reset(self, resource): pass

    warnings.simplefilter("ignore")  # each interrupt may lose a lease
    sys.unraisablehook = id  # and what it hits in a finalizer goes no further; no interrupt can hit this one
    sys.setswitchinterval(0.0002)
    way = sys.argv[1]
    if way == "gate":
        line = Gate(2, name="api", timeout=0.2)
    else:
        line = ResourcePool(Maker(), PoolConfig(max_size=2, acquire_timeout=0.2, validate_after=0.001))
    go, stop = [], []  # no events: an interrupt inside Event.set() leaves the event's own lock held
    hits = 0

    def kick():
        while not go:
            time.sleep(0.0005)
        while not stop:
            time.sleep(random.random() * 0.001)
            _thread.interrupt_main()

    def use(timeout):
        if way == "gate":
            place = line.enter_now("storm") or drive(line.enter("storm", timeout, BLOCKING))
            line.leave(place)
        elif way == "by hand":
            lease = line.acquire(timeout)
            try:
                lease.resource
            finally:
                lease.release()
        else:
            with line.acquire(timeout):
                pass

    def compete():
        while not stop:
            use(5)

    kicker = threading.Thread(target=kick, daemon=True)
    rival = threading.Thread(target=compete, daemon=True)
    rival.start()
    kicker.start()
    while hits < 500:
        try:
            go.append(1)
            while True:
                use(None)
        except KeyboardInterrupt:
            hits += 1
        except TimeoutError:
            pass
    while True:
        try:
            stop.append(1)
            kicker.join()
            rival.join()
            time.sleep(0.05)
            break
        except KeyboardInterrupt:
            pass
    sys.last_value = None
    gc.collect()
    if way == "gate":
        places = [drive(line.enter("after", 1, BLOCKING)) for _ in range(2)]
        for place in places:
            line.leave(place)
    else:
        leases = [line.acquire(1) for _ in range(2)]
        for lease in leases:
            lease.release()
    now = line.snapshot()
    assert now.used == 0 and now.waiting == 0, now
    if way != "gate":
        assert now.idle == 2 and now.creating == 0, now
"""


def run_python(code: str, *arguments: str) -> None:
    """Run *code* in a process of its own; it must end well and say nothing."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("way", ["with", "by hand", "gate"])
def test_a_storm_of_interrupts_loses_no_place_and_no_lock(way: str) -> None:
    run_python(STORM, way)


@pytest.mark.parametrize("way", ["release", "broken", "reset"])
def test_an_interrupted_release_leaves_nobody_in_line_without_it(way: str) -> None:
    root = Path(__file__).parent.parent
    storm = [sys.executable, "-m", "tests.interrupts", "hand over", way]
    subprocess.run(storm, cwd=root, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=50, check=True)


EXITS = {
    "with a lease out": "lease = pool.acquire()",
    "and closes then": "import atexit; atexit.register(pool.close); pool.acquire().release()",
    "and uses it then": """
import atexit
def late():
    with pool.acquire(): pass
    pool.close()
    ResourcePool(Maker(), PoolConfig(min_size=1, creation_timeout=1)).acquire().release()
atexit.register(late)
""",
    "while a thread waits": """
import threading, time
lease = pool.acquire()
threading.Thread(target=pool.acquire, daemon=True).start()
while not pool.snapshot().waiting: time.sleep(0.001)
""",
    "while its creator hangs": """
import threading
Maker.acquire = lambda self: threading.Event().wait()
try: pool.acquire(0.05)
except TimeoutError: pass
""",
}


@pytest.mark.parametrize("how", EXITS)
def test_the_interpreter_ends_in_silence(how: str) -> None:
    code = """
from wirestate.resources.pool import PoolConfig, ResourcePool
class Maker:
    def acquire(self): return object()
    def release(self, resource): pass
    def validate(self, resource): return True
pool = ResourcePool(Maker(), PoolConfig(max_size=1, max_idle_time=1, creation_timeout=0.5, validation_timeout=1))
"""
    run_python(code + EXITS[how])
