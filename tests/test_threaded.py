"""A call in a thread of its own: its outcome goes to whoever is still there, once."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

from tests.crews import PATIENCE, Crew
from wirestate.resources.threaded import ThreadedCall
from wirestate.waiting import BLOCKING, SUSPENDING, ExpiredError, World, drive

word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="nothing")


class Work:
    """Something to call, that stands still until it may go on, and what came too late for its caller."""

    def __init__(self, outcome: Any = "done") -> None:
        self.outcome = outcome
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.calls = 0
        self.late: list[tuple[Any, BaseException | None]] = []

    def __call__(self) -> Any:
        self.calls += 1
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def call(self, world: World) -> ThreadedCall[Any]:
        return ThreadedCall(self, lambda result, error: self.late.append((result, error)), world)


@pytest.fixture
def crew(side: Any) -> Crew:
    return Crew(side.world)


@pytest.mark.parametrize("outcome", ["done", None, OSError("down"), KeyboardInterrupt()])
def test_the_outcome_in_time_is_the_caller_s(side: Any, outcome: Any) -> None:
    work = Work(outcome)
    work.go_on.set()

    async def scenario() -> None:
        call = work.call(side.world)
        if isinstance(outcome, BaseException):
            with pytest.raises(type(outcome)) as raised:
                await call.wait(PATIENCE)
            assert raised.value is outcome
        else:
            assert await call.wait(PATIENCE) is outcome
        assert not call.left

    side.run(scenario())
    assert (work.calls, work.late) == (1, [])
    assert all(thread.name != "wirestate-call" for thread in threading.enumerate())


@pytest.mark.parametrize("outcome", ["done", OSError("down")])
def test_who_waits_no_longer_is_told_and_the_outcome_goes_elsewhere_once(side: Any, crew: Crew, outcome: Any) -> None:
    work = Work(outcome)

    async def scenario() -> None:
        call = work.call(side.world)
        with pytest.raises(ExpiredError):
            await call.wait(0.01)
        assert call.left
        assert work.late == []
        work.go_on.set()
        await crew.until(lambda: bool(work.late))

    side.run(scenario())
    assert work.late == [(None, outcome) if isinstance(outcome, BaseException) else (outcome, None)]
    assert work.calls == 1


@pytest.mark.parametrize("finished", [False, True])
def test_a_task_that_is_cancelled_leaves_the_outcome_to_others(*, finished: bool) -> None:
    work = Work()

    async def scenario() -> None:
        call = work.call(SUSPENDING)
        task = asyncio.create_task(call.wait(PATIENCE))
        await asyncio.sleep(0)
        assert work.begun.wait(PATIENCE)  # the loop stands still meanwhile: it hears of nothing
        if finished:
            work.go_on.set()
            while call._waiter.value is None:
                threading.Event().wait(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.left
        work.go_on.set()
        await Crew(SUSPENDING).until(lambda: bool(work.late))

    asyncio.run(scenario())
    assert work.late == [("done", None)]


def test_it_sees_the_context_of_its_caller(side: Any) -> None:
    async def scenario() -> None:
        word.set("seen")
        call = ThreadedCall(word.get, lambda result, error: None, side.world)
        assert await call.wait(PATIENCE) == "seen"

    contextvars.copy_context().run(side.run, scenario())


def test_where_no_thread_can_be_started_the_caller_does_it_itself(side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("can't start new thread")

    where: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def scenario() -> None:
        call = ThreadedCall(lambda: where.append(threading.get_ident()), lambda result, error: None, side.world)
        assert await call.wait(PATIENCE) is None

    side.run(scenario())
    assert where == [threading.get_ident()]


def test_an_interrupt_after_the_start_calls_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    work.go_on.set()
    start = threading.Thread.start

    def started(thread: threading.Thread) -> None:
        start(thread)
        assert work.begun.wait(PATIENCE)
        raise RuntimeError("told after the start")

    monkeypatch.setattr(threading.Thread, "start", started)
    assert drive(work.call(BLOCKING).wait(PATIENCE)) == "done"
    assert work.calls == 1
