"""The gate: a limit, a fair line in front of it, and no place lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.crews import Crew
from wirestate.errors import (
    BlockingWaitError,
    LeaseReleasedError,
    PoolTimeoutError,
    ResourceClosedError,
    TooManyWaitingError,
)
from wirestate.resources.gate import Gate
from wirestate.waiting import BLOCKING, SUSPENDING, drive


def whole(gate: Gate) -> None:
    """Check what must hold after every test."""
    now = gate.snapshot()
    assert (now.used, now.waiting) == (0, 0)
    assert gate.holders() == []


@pytest.fixture
def crew(side: Any) -> Crew:
    return Crew(side.world)


def test_as_many_as_the_limit_are_inside(side: Any, crew: Crew) -> None:
    gate = Gate(3, name="api")
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
    whole(gate)


def test_the_line_is_served_in_order(side: Any, crew: Crew) -> None:
    gate = Gate(1, name="api")
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
    whole(gate)


def test_lateness_and_crowds_are_refused_and_counted(side: Any, crew: Crew) -> None:
    gate = Gate(1, name="api", timeout=0.02, max_waiting=1)

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
    whole(gate)


def test_a_place_is_left_once(side: Any) -> None:
    gate = Gate(1, name="api")

    async def scenario() -> None:
        place = await gate.enter("run-1", 0, side.world)
        gate.leave(place)
        with pytest.raises(LeaseReleasedError):
            gate.leave(place)

    side.run(scenario())
    whole(gate)


def test_a_lost_place_comes_back(side: Any) -> None:
    gate = Gate(1, name="api")

    async def scenario() -> None:
        held = [await gate.enter("run-9", 0, side.world)]
        with pytest.warns(ResourceWarning, match="pool 'api': a lease of run-9 was lost"):
            held.clear()
        gate.leave(await gate.enter("run-10", 5, side.world))

    side.run(scenario())
    assert gate.snapshot().leaks == 1
    whole(gate)


def test_a_closed_gate_lets_nobody_in_and_everybody_out(side: Any, crew: Crew) -> None:
    gate = Gate(1, name="api")

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
    whole(gate)


@pytest.mark.parametrize("served", [False, True])
def test_a_task_cancelled_in_line_keeps_no_place(*, served: bool) -> None:
    gate = Gate(1, name="api")

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
    whole(gate)


def test_a_blocking_wait_on_a_running_loop_is_refused() -> None:
    async def scenario() -> None:
        gate = Gate(1, name="api")
        place = gate.enter_now()
        assert place is not None
        with pytest.raises(BlockingWaitError):
            drive(gate.enter("run-2", 15, BLOCKING))
        gate.leave(place)
        whole(gate)

    asyncio.run(scenario())


def test_repr_says_who_is_inside_the_longest() -> None:
    gate = Gate(4, name="api")
    place = gate.enter_now("run-1/call#1")
    assert place is not None
    assert repr(gate).startswith("<Gate 'api': 1 of 4 inside, 0 waiting; longest held 0.0")
    assert repr(gate).endswith(" s by run-1/call#1>")
    gate.leave(place)
    gate.close()
    assert "'api' closed" in repr(gate)
    whole(gate)
