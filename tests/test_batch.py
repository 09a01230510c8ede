"""Batches: all results in input order, several at once, and nothing left running."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest

from wirestate.errors import AsyncInSyncRunError, NotAvailableError, RunTimeoutError
from wirestate.machine.results import RunResult
from wirestate.running.batch import run_batch
from wirestate.running.progress import Progress
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

WAYS = {
    "inline": (BLOCKING, {}),
    "threads": (BLOCKING, {"max_workers": 4}),
    "tasks": (SUSPENDING, {"max_workers": 4}),
}
several = pytest.mark.parametrize("way", ["threads", "tasks"])
every_way = pytest.mark.parametrize("way", list(WAYS))
seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


def batch(way: str, run_one: Any, records: Any, **options: Any) -> list[RunResult]:
    world, chosen = WAYS[way]
    made = run_batch(run_one, records, world=world, **{**chosen, **options})
    return asyncio.run(made) if world.is_async else drive(made)


def ended(record: Any, position: int | None, line: int | None, error: Exception | None = None) -> RunResult:
    outcome = "done" if error is None else "failed"
    return RunResult((outcome, "end", record, (), error, None, None, (), (), 0.0, 1, None, position, line, True))


async def run(record: Any, position: int | None, line: int | None, world: World) -> RunResult:
    return ended(record, position, line)


def after(act: Callable[[Any, World], Coroutine[Any, Any, None]]) -> Any:
    async def run_one(record: Any, position: int | None, line: int | None, world: World) -> RunResult:
        try:
            await act(record, world)
        except ValueError as error:
            return ended(record, position, line, error)
        return ended(record, position, line)

    return run_one


class Meeting:
    """A barrier for threads or tasks; it breaks instead of hanging."""

    def __init__(self, parties: int) -> None:
        self.threads = threading.Barrier(parties)
        self.tasks = asyncio.Barrier(parties)

    async def wait(self, world: World) -> None:
        if world.is_async:
            async with asyncio.timeout(5):
                await self.tasks.wait()
        else:
            self.threads.wait(5)


@every_way
def test_results_come_in_input_order(way: str) -> None:
    async def later_ones_are_faster(record: int, world: World) -> None:
        await world.sleep(0.001 * (8 - record % 8))

    results = batch(way, after(later_ones_are_faster), range(30))
    assert [result.data for result in results] == list(range(30))
    assert [result.position for result in results] == list(range(30))


@every_way
def test_a_failure_is_the_result_of_its_record(way: str) -> None:
    async def odd_ones_fail(record: int, world: World) -> None:
        if record % 2:
            raise ValueError(record)

    assert [result.success for result in batch(way, after(odd_ones_fail), range(6))] == [True, False] * 3


@every_way
def test_an_empty_batch_has_no_results(way: str) -> None:
    assert batch(way, run, []) == []


@several
def test_so_many_workers_run_at_once(way: str) -> None:
    meeting = Meeting(4)

    async def meet(record: int, world: World) -> None:
        await meeting.wait(world)

    assert all(result.success for result in batch(way, after(meet), range(8)))


def test_ten_tasks_run_at_once_where_nobody_says_how_many() -> None:
    meeting = Meeting(10)

    async def meet(record: int, world: World) -> None:
        await meeting.wait(world)

    assert len(batch("tasks", after(meet), range(20), max_workers=None)) == 20


@several
def test_failures_do_not_queue_behind_a_slow_record(way: str) -> None:
    others = 0
    free = threading.Event()

    async def first_waits_for_all(record: int, world: World) -> None:
        nonlocal others
        if record == 0:
            deadline = time.monotonic() + 5
            while not free.is_set() and time.monotonic() < deadline:
                await world.sleep(0.001)
            return
        others += 1
        if others == 29:
            free.set()
        raise ValueError("no")

    results = batch(way, after(first_waits_for_all), range(30), max_workers=2)
    assert free.is_set()
    assert [result.success for result in results] == [True] + [False] * 29


@every_way
def test_runs_see_the_context_variables_of_the_caller(way: str) -> None:
    token = seen.set("the caller's")
    try:
        found = []

        async def look(record: int, world: World) -> None:
            found.append(seen.get())

        batch(way, after(look), range(8))
        assert found == ["the caller's"] * 8
    finally:
        seen.reset(token)


@every_way
@pytest.mark.parametrize("mistake", [KeyboardInterrupt, AsyncInSyncRunError])
def test_what_escapes_from_a_run_stops_the_batch(way: str, mistake: type[BaseException]) -> None:
    begun: list[int] = []
    left: list[int] = []

    async def third_one_breaks(record: int, world: World) -> None:
        begun.append(record)
        try:
            await world.sleep(0.001)
            if record == 2:
                raise mistake("stop")
            await world.sleep(0.01)
        finally:
            left.append(record)

    with pytest.raises(mistake):
        batch(way, after(third_one_breaks), range(1000))
    assert sorted(begun) == sorted(left)
    assert len(begun) < 20


def test_a_cancelled_batch_cancels_its_runs() -> None:
    begun, cancelled = [], []

    async def wait(record: int, world: World) -> None:
        begun.append(record)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(record)
            raise

    async def go() -> None:
        task = asyncio.create_task(run_batch(after(wait), range(100), world=SUSPENDING, max_workers=5))
        while len(begun) < 5:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())
    assert sorted(cancelled) == sorted(begun) == list(range(5))


@every_way
def test_progress_is_told_in_the_callers_thread_and_once_at_the_end(way: str) -> None:
    told: list[Progress] = []
    threads = set()

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        threads.add(threading.get_ident())

    async def some_fail(record: int, world: World) -> None:
        await world.sleep(0.005)
        if record < 3:
            raise ValueError(record)

    begun = time.monotonic()
    batch(way, after(some_fail), range(40), on_progress=on_progress)
    assert len(told) <= (time.monotonic() - begun) / 0.1 + 1
    assert threads == {threading.get_ident()}
    last = told[-1]
    assert (last.done, last.total, last.successful, last.failed, last.rejected) == (40, 40, 37, 3, 0)
    assert last.final
    assert last.remaining == 0
    assert not any(progress.final for progress in told[:-1])


def test_progress_with_two_parameters_gets_done_and_total() -> None:
    told = []
    batch("inline", run, range(3), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 3)]


def test_an_asynchronous_progress_function_is_refused() -> None:
    async def on_progress(progress: Progress) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        batch("tasks", run, range(3), on_progress=on_progress)


@every_way
def test_a_progress_function_that_raises_stops_the_batch_cleanly(way: str) -> None:
    begun: list[int] = []
    left: list[int] = []

    async def slow(record: int, world: World) -> None:
        begun.append(record)
        await world.sleep(0.02)
        left.append(record)

    def on_progress(progress: Progress) -> None:
        raise LookupError("the bar broke")

    with pytest.raises(LookupError, match="the bar broke"):
        batch(way, after(slow), range(1000), on_progress=on_progress)
    assert sorted(begun) == sorted(left)
    assert len(begun) < 100


@every_way
def test_records_without_time_left_fail_with_a_timeout(way: str) -> None:
    async def slow(record: int, world: World) -> None:
        await world.sleep(0.05)

    told: list[Progress] = []
    results = batch(way, after(slow), range(40), timeout=0.12, on_progress=told.append)
    assert results[0].success
    assert isinstance(results[-1].error, RunTimeoutError)
    assert (results[-1].outcome, results[-1].phase, results[-1].position) == ("failed", "limit", 39)
    assert told[-1].done == 40


def test_a_timeout_that_escapes_from_a_run_is_not_the_batchs() -> None:
    async def run_one(record: Any, position: int | None, line: int | None, world: World) -> RunResult:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        batch("tasks", run_one, range(3), timeout=60)


def test_a_thread_pool_of_the_caller_is_used_and_left_open() -> None:
    names = set()

    async def look(record: int, world: World) -> None:
        names.add(threading.current_thread().name.split("_")[0])

    with ThreadPoolExecutor(2, thread_name_prefix="mine") as pool:
        assert len(batch("inline", after(look), range(9), executor=pool)) == 9
        assert pool.submit(int).result() == 0
    assert names == {"mine"}


def test_other_executors_come_later() -> None:
    with pytest.raises(NotAvailableError, match="max_workers"):
        batch("inline", run, [1], executor=Executor())
    with ThreadPoolExecutor(1) as pool, pytest.raises(NotAvailableError, match="tasks"):
        batch("tasks", run, [1], executor=pool)


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(workers: int) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        batch("inline", run, [1], max_workers=workers)


def test_one_record_is_no_batch() -> None:
    with pytest.raises(TypeError, match="takes a list of records, not one record"):
        drive(run_batch(None, {"a": 1}, world=BLOCKING))  # type: ignore[arg-type]
