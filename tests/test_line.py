"""The line in front of places: who is told, who is passed by, and what comes back when nobody is there to take it."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tests.crews import PATIENCE, Crew
from wirestate.errors import PoolTimeoutError, ResourceClosedError, TooManyWaitingError
from wirestate.resources.gate import Gate, Place
from wirestate.resources.places import NOBODY
from wirestate.waiting import BLOCKING, SUSPENDING, drive

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture
def crew(side: Any) -> Crew:
    return Crew(side.world)


def held(gate: Gate, owner: object = None) -> Place:
    place = gate.enter_now(owner)
    assert place is not None
    return place


async def parked(crew: Crew, gate: Gate, timeout: float = 15) -> Any:
    """Start one that waits in line."""
    before = gate.snapshot().waiting
    member = crew.start(gate.enter("parked", timeout, crew.world))
    await crew.until(lambda: gate.snapshot().waiting == before + 1)
    return member


class Meanwhile(int):
    """A ``max_waiting`` that lets something happen as it is looked at: between the claim and the line."""

    act: Callable[[], object]

    def __le__(self, other: int) -> bool:
        self.act()
        return False


# --- who is late ---------------------------------------------------------------------------------


def test_one_timer_of_a_loop_looks_at_all_its_waiters_whoever_is_less_patient() -> None:
    timers: list[object] = []

    class Loop(asyncio.SelectorEventLoop):
        def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
            timer = super().call_later(delay, callback, *args, context=context)
            if callback == gate._ring:
                timers.append(timer)
            return timer

    async def late(seconds: float) -> None:
        with pytest.raises(PoolTimeoutError):
            await gate.enter("late", seconds, SUSPENDING)

    async def main() -> None:
        place = held(gate)
        waiters = [asyncio.create_task(late(0.3 - number / 1000)) for number in range(200)]
        await asyncio.sleep(0)
        assert 1 < len(timers) <= 200  # nearly each was less patient than the one before
        assert sum(not timer.cancelled() for timer in timers) == 1  # type: ignore[attr-defined]
        await asyncio.gather(*waiters)
        assert len(timers) < 1000  # one more for each that is told; a clock that is not exact may add some
        gate.leave(place)

    gate = Gate(1, name="api")
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())
    assert not gate._alarms
    assert not gate._timers


def test_a_task_that_comes_after_another_was_late_is_told_too() -> None:
    async def main() -> None:
        gate = Gate(1, name="api")
        place = held(gate)
        for seconds in (0.01, 0.02):
            with pytest.raises(PoolTimeoutError):
                await asyncio.wait_for(gate.enter("late", seconds, SUSPENDING), PATIENCE)
        gate.leave(place)

    asyncio.run(main())


def test_a_loop_that_is_gone_is_not_kept_for_its_alarm() -> None:
    gate = Gate(1, name="api")
    place = held(gate)
    loops: list[weakref.ref[Any]] = []

    async def wait_and_leave() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        waiter = asyncio.create_task(gate.enter("one", 60, SUSPENDING))
        await asyncio.sleep(0)
        waiter.cancel()

    for _ in range(3):
        asyncio.run(wait_and_leave())
    gc.collect()
    assert [loop() is None for loop in loops] == [True, True, False]
    gate.leave(place)


@pytest.mark.parametrize("timeout", [0, -1.0, float("-inf"), float("nan")])
def test_no_time_to_wait_is_told_at_once(side: Any, timeout: float) -> None:
    gate = Gate(1, name="api")

    async def scenario() -> None:
        gate.leave(await gate.enter("one", timeout, side.world))
        place = held(gate)
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError):
            await gate.enter("two", timeout, side.world)
        assert time.monotonic() - started < 5
        gate.leave(place)

    side.run(scenario())


@pytest.mark.parametrize("timeout", [1e300, float("inf")])
def test_a_wait_without_an_end_ends_with_a_place(side: Any, crew: Crew, timeout: float) -> None:
    gate = Gate(1, name="api")

    async def scenario() -> None:
        place = held(gate)
        waiter = await parked(crew, gate, timeout)
        gate.leave(place)
        gate.leave(await waiter.result())

    side.run(scenario())


# --- at the very moment --------------------------------------------------------------------------


def test_a_place_that_comes_back_as_somebody_steps_into_line_is_theirs(side: Any) -> None:
    meanwhile = Meanwhile(5)
    gate = Gate(1, name="api", max_waiting=meanwhile)

    async def scenario() -> None:
        place = held(gate)
        meanwhile.act = lambda: gate.leave(place)
        gate.leave(await gate.enter("two", 1, side.world))

    side.run(scenario())


def test_a_gate_that_closes_as_somebody_steps_into_line_tells_them(side: Any) -> None:
    meanwhile = Meanwhile(5)
    gate = Gate(1, name="api", max_waiting=meanwhile)

    def close() -> None:
        gate._closed = True  # close() goes on when the lock is free; nobody is in line yet

    async def scenario() -> None:
        place = held(gate)
        meanwhile.act = close
        started = time.monotonic()
        with pytest.raises(ResourceClosedError):
            await gate.enter("two", 15, side.world)
        assert time.monotonic() - started < 5  # not at its deadline
        gate.leave(place)

    side.run(scenario())


def test_nobody_overtakes_those_in_line_when_a_place_has_just_come_back(side: Any, crew: Crew) -> None:
    gate = Gate(1, name="api")

    async def scenario() -> None:
        place = held(gate)
        first = await parked(crew, gate)
        place.owner = NOBODY
        gate._idle.append(place)  # as leave() puts it back, before it serves the line
        assert gate.enter_now("late") is None
        with pytest.raises(PoolTimeoutError):
            await gate.enter("late", 0, side.world)
        latecomer = crew.start(gate.enter("late", 15, side.world))
        gate.leave(await first.result())
        gate.leave(await latecomer.result())

    side.run(scenario())


def test_who_goes_on_waiting_goes_on_at_the_head_of_the_line_however_full_it_is(crew: Crew, side: Any) -> None:
    gate = Gate(1, name="api", max_waiting=1)

    async def scenario() -> None:
        place = held(gate)
        second = await parked(crew, gate)
        now = time.monotonic()
        turn = gate._claim(now, now + 15, crew.world, first=True)  # one whose place was no good
        assert isinstance(turn, tuple)
        with pytest.raises(TooManyWaitingError):
            await gate.enter("third", 15, side.world)
        gate.leave(place)
        assert not second.done
        got = await gate._outcome(turn)
        assert got is place
        gate._put_back(place)
        gate.leave(await second.result())

    side.run(scenario())


@pytest.mark.parametrize("told", ["served", "closed"])
def test_what_was_handed_to_an_interrupted_thread_comes_back(told: str) -> None:
    gate = Gate(1, name="api")
    place = held(gate)
    now = time.monotonic()
    turn = gate._claim(now, now + 15, BLOCKING)
    if told == "served":
        gate.leave(place)
    else:
        gate.close()
    assert isinstance(turn, tuple)
    gate._withdraw(turn)  # as a KeyboardInterrupt does that hits the thread before it looks
    if told == "served":
        assert gate.enter_now() is place
    gate.leave(place)
    assert gate.snapshot().used == 0


def test_a_task_that_is_cancelled_as_it_is_told_of_the_close_brings_nothing_back() -> None:
    async def main() -> None:
        gate = Gate(1, name="api")
        place = held(gate)
        waiter = asyncio.create_task(gate.enter("two", 15, SUSPENDING))
        await asyncio.sleep(0)
        gate.close()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert gate.snapshot().used == 1
        gate.leave(place)

    asyncio.run(main())


@pytest.mark.parametrize("way", ["handed on", "served"])
def test_a_place_for_a_task_that_is_being_cancelled_rests_and_nobody_waited_for_it(way: str) -> None:
    async def main() -> None:
        gate = Gate(1, name="api")
        place = held(gate)
        waiter = asyncio.create_task(gate.enter("two", 15, SUSPENDING))
        await asyncio.sleep(0.02)
        waiter.cancel()  # it is in line still, until it runs
        if way == "handed on":
            gate.leave(place)
        else:
            place.owner = NOBODY
            gate._put_back(place)
        assert gate.snapshot().wait_time == pytest.approx(0, abs=1e-6)
        assert gate.enter_now() is place
        gate.leave(place)
        with pytest.raises(asyncio.CancelledError):
            await waiter

    asyncio.run(main())


# --- what an interrupt leaves --------------------------------------------------------------------


def test_a_thread_whose_turn_was_lost_has_what_is_free_when_its_time_is_over() -> None:
    gate, crew = Gate(2, name="api"), Crew(BLOCKING)
    places = [held(gate), held(gate)]
    lost = drive(parked(crew, gate, 0.2))
    gate._waiting.popleft()  # an interrupt came after this, before the turn was filled
    other = drive(parked(crew, gate))
    for place in places:
        place.owner = NOBODY
        gate._idle.append(place)  # here too: nobody serves the line
    served = drive(lost.result())
    gate._serve()
    gate.leave(served)
    gate.leave(drive(other.result()))


def test_a_release_serves_what_an_interrupted_one_left(side: Any, crew: Crew) -> None:
    gate = Gate(2, name="api")

    async def scenario() -> None:
        places = [held(gate), held(gate)]
        waiters = [await parked(crew, gate) for _ in range(2)]
        places[0].owner = NOBODY
        gate._idle.append(places[0])  # an interrupt came here
        gate.leave(places[1])
        for place in [await waiter.result() for waiter in waiters]:
            gate.leave(place)

    side.run(scenario())


def test_a_place_that_went_without_a_trace_is_counted_again_for_who_does_not_wait(side: Any) -> None:
    gate = Gate(1, name="api")

    async def scenario() -> None:
        held(gate).alive = False  # an interrupt ended its finalizer before it took note
        gate.leave(await gate.enter("two", 0, side.world))

    side.run(scenario())


def test_a_place_that_was_lost_under_the_lock_is_there_for_who_must_not_wait(side: Any) -> None:
    gate = Gate(1, name="api", max_waiting=0)

    async def scenario() -> None:
        places = [held(gate)]
        with gate._lock, pytest.warns(ResourceWarning):
            places.clear()
        gate.leave(await gate.enter("two", 5, side.world))

    side.run(scenario())


# --- loops that are gone -------------------------------------------------------------------------


def left_behind(gate: Gate) -> None:
    """Let a task wait in line on a loop that is closed then."""

    async def park() -> Any:
        waiter = asyncio.ensure_future(gate.enter("gone", 60, SUSPENDING))
        await asyncio.sleep(0)
        return waiter

    loop = asyncio.new_event_loop()
    waiter = loop.run_until_complete(park())
    loop.close()
    waiter._log_destroy_pending = False


def test_those_who_wait_on_a_closed_loop_fill_no_line(side: Any, crew: Crew) -> None:
    gate = Gate(1, name="api", max_waiting=1)
    place = held(gate)
    left_behind(gate)

    async def scenario() -> None:
        assert gate.snapshot().waiting == 0
        waiter = await parked(crew, gate)
        with pytest.raises(TooManyWaitingError):
            await gate.enter("three", 15, side.world)
        gate.leave(place)
        gate.leave(await waiter.result())

    side.run(scenario())
