"""The gate: a limit, a fair line in front of it, and no place lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.crews import Crew
from tests.invariant import Invariant
from wirestate.errors import (
    BlockingWaitError,
    LeaseReleasedError,
    PoolTimeoutError,
    ResourceClosedError,
    TooManyWaitingError,
)
from wirestate.observing import Listener
from wirestate.resources.gate import Gate, Place
from wirestate.resources.upkeep import UPKEEP
from wirestate.waiting import BLOCKING, SUSPENDING, drive


class Leaks(Listener):
    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None, str]] = []

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        self.heard.append((resource, owner_id, stack))


@pytest.fixture
def crew(side: Any) -> Crew:
    return Crew(side.world)


def test_as_many_as_the_limit_are_inside(side: Any, crew: Crew, invariant: Invariant) -> None:
    gate = invariant.watch(Gate(3, name="api"))
    inside, most = 0, 0
    lock = threading.Lock()

    async def visit() -> None:
        nonlocal inside, most
        for _ in range(20):
            place = gate.enter_now("visitor") or await gate.enter("visitor", 15, side.world)
            with lock:
                inside += 1
                most = max(most, inside)
            await crew.pause(0)
            with lock:
                inside -= 1
            gate.leave(place)

    async def scenario() -> None:
        members = [crew.start(visit()) for _ in range(12)]
        for member in members:
            await member.result()

    side.run(scenario())
    assert most == 3
    assert gate.snapshot().acquisitions == 240


def test_the_line_is_served_in_order(side: Any, crew: Crew, invariant: Invariant) -> None:
    gate = invariant.watch(Gate(1, name="api"))
    order: list[int] = []

    async def visit(number: int) -> None:
        place = await gate.enter(number, 15, side.world)
        order.append(number)
        gate.leave(place)

    async def scenario() -> None:
        place = gate.enter_now()
        assert place is not None
        members = []
        for number in range(8):
            members.append(crew.start(visit(number)))
            await crew.until(lambda number=number: gate.snapshot().waiting == number + 1)  # type: ignore[misc]
        assert gate.enter_now() is None
        gate.leave(place)
        for member in members:
            await member.result()

    side.run(scenario())
    assert order == list(range(8))


def test_lateness_and_crowds_are_refused_and_counted(side: Any, crew: Crew, invariant: Invariant) -> None:
    gate = invariant.watch(Gate(1, name="api", timeout=0.02, max_waiting=1))

    async def scenario() -> None:
        place = gate.enter_now("run-1")
        assert place is not None
        with pytest.raises(PoolTimeoutError, match=r"pool 'api': none of its 1 .* by run-1\)"):
            await gate.enter("run-2", None, side.world)
        waiter = crew.start(gate.enter("run-3", 15, side.world))
        await crew.until(lambda: gate.snapshot().waiting == 1)
        with pytest.raises(TooManyWaitingError):
            await gate.enter("run-4", None, side.world)
        gate.leave(place)
        gate.leave(await waiter.result())

    side.run(scenario())
    now = gate.snapshot()
    assert (now.timeouts, now.refused, now.acquisitions) == (1, 1, 2)


def test_a_place_is_left_once(side: Any, invariant: Invariant) -> None:
    gate = invariant.watch(Gate(1, name="api"))

    async def scenario() -> None:
        place = await gate.enter("run-1", 0, side.world)
        gate.leave(place)
        with pytest.raises(LeaseReleasedError):
            gate.leave(place)

    side.run(scenario())


def test_a_lost_place_comes_back(side: Any, invariant: Invariant) -> None:
    gate = invariant.watch(Gate(1, name="api"))

    async def scenario() -> None:
        held = [await gate.enter("run-9", 0, side.world)]
        with pytest.warns(ResourceWarning, match="pool 'api': a lease of run-9 was lost"):
            held.clear()
        gate.leave(await gate.enter("run-10", 5, side.world))

    side.run(scenario())
    assert gate.snapshot().leaks == 1


def test_a_closed_gate_lets_nobody_in_and_everybody_out(side: Any, crew: Crew, invariant: Invariant) -> None:
    gate = invariant.watch(Gate(1, name="api"))

    async def scenario() -> None:
        place = gate.enter_now()
        assert place is not None
        waiter = crew.start(gate.enter("run-2", 15, side.world))
        await crew.until(lambda: gate.snapshot().waiting == 1)
        gate.close()
        gate.close()
        assert isinstance(await waiter.error(), ResourceClosedError)
        gate.leave(place)
        assert gate.enter_now() is None
        with pytest.raises(ResourceClosedError):
            await gate.enter("run-3", 0, side.world)

    side.run(scenario())


@pytest.mark.parametrize("served", [False, True])
def test_a_task_cancelled_in_line_keeps_no_place(invariant: Invariant, *, served: bool) -> None:
    gate = invariant.watch(Gate(1, name="api"))

    async def scenario() -> None:
        place = gate.enter_now()
        assert place is not None
        task = asyncio.create_task(gate.enter("run-2", 15, SUSPENDING))
        await asyncio.sleep(0)
        if served:
            gate.leave(place)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if not served:
            gate.leave(place)
        gate.leave(await gate.enter("run-3", 0, SUSPENDING))

    asyncio.run(scenario())


def test_a_blocking_wait_on_a_running_loop_is_refused(invariant: Invariant) -> None:
    async def scenario() -> None:
        gate = invariant.watch(Gate(1, name="api"))
        place = gate.enter_now()
        assert place is not None
        with pytest.raises(BlockingWaitError):
            drive(gate.enter("run-2", 15, BLOCKING))
        gate.leave(place)

    asyncio.run(scenario())


def test_repr_says_who_is_inside_the_longest(invariant: Invariant) -> None:
    gate = invariant.watch(Gate(4, name="api"))
    place = gate.enter_now("run-1/call#1")
    assert place is not None
    assert repr(gate).startswith("<Gate 'api': 1 of 4 inside, 0 waiting; longest held 0.0")
    assert repr(gate).endswith(" s by run-1/call#1>")
    gate.leave(place)
    gate.close()
    assert "'api' closed" in repr(gate)


# --- who stays too long --------------------------------------------------------------------------


def test_who_stays_longer_than_the_threshold_is_reported_once_and_may_stay(
    side: Any, crew: Crew, invariant: Invariant, caplog: pytest.LogCaptureFixture
) -> None:
    leaks = Leaks()
    gate = invariant.watch(Gate(2, name="api", leak_threshold=0.02, listener=leaks))

    async def linger() -> Place:
        place = gate.enter_now("run-1/call#1") if side.is_async else await gate.enter("run-1/call#1", 0, side.world)
        assert place is not None
        return place

    async def scenario() -> None:
        quick = await gate.enter("run-2", 0, side.world)
        gate.leave(quick)
        place = await linger()
        await crew.until(lambda: bool(leaks.heard))
        for _ in range(3):
            gate.reap()
        [(resource, owner, stack)] = leaks.heard
        assert (resource, owner) == ("api", "run-1/call#1")
        assert "test_gate.py" in stack
        assert "linger" in stack
        assert caplog.text.count("run-1/call#1 holds a lease for") == 1
        assert [owner for owner, _ in gate.holders()] == ["run-1/call#1"]
        gate.leave(place)
        place = await linger()  # another stay is another report
        await crew.until(lambda: len(leaks.heard) == 2)
        gate.leave(place)

    side.run(scenario())


def test_a_place_of_another_gate_is_refused(invariant: Invariant) -> None:
    one, other = (invariant.watch(Gate(1, name=name)) for name in ("one", "other"))
    place = one.enter_now()
    with pytest.raises(LeaseReleasedError):
        other.leave(place)
    assert (one.snapshot().used, other.snapshot().used) == (1, 0)
    one.leave(place)


def test_a_closed_gate_is_looked_after_no_more(invariant: Invariant) -> None:
    gate = invariant.watch(Gate(1, name="api", leak_threshold=60))
    place = gate.enter_now()
    assert gate in UPKEEP._watched
    gate.close()
    assert gate not in UPKEEP._watched
    gate.leave(place)


def test_holders_are_told_the_longest_first_whatever_place_they_have(side: Any, invariant: Invariant) -> None:
    gate = invariant.watch(Gate(3, name="api"))

    async def scenario() -> None:
        inside = {name: await gate.enter(name, 0, side.world) for name in ("a", "b", "c")}
        gate.leave(inside.pop("a"))
        inside["d"] = await gate.enter("d", 0, side.world)  # where the first was
        assert [owner for owner, _ in gate.holders()] == ["b", "c", "d"]
        held = [seconds for _, seconds in gate.holders()]
        assert held == sorted(held, reverse=True)
        with pytest.raises(PoolTimeoutError, match=r"longest held .* by b"):
            await gate.enter("e", 0, side.world)
        for place in inside.values():
            gate.leave(place)

    side.run(scenario())
