"""Runs a list of records and returns their results in the same order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any  # Any: records are whatever the caller has

from wirestate.errors import NotAvailableError, RunTimeoutError
from wirestate.machine.results import RunResult
from wirestate.running.flow import Delivery, Flow, flow_inline
from wirestate.running.progress import OnProgress
from wirestate.running.rows import Row, RunOne, unstarted
from wirestate.running.sources import Source
from wirestate.waiting import World

_TASKS = 10


async def run_batch(
    run_one: RunOne,
    records: Iterable[Any],
    *,
    world: World,
    max_workers: int | None = None,
    executor: Executor | None = None,
    on_progress: OnProgress | None = None,
    timeout: float | None = None,
) -> list[RunResult]:
    """Run all *records*; a record's failure is its result.

    Args:
        run_one: runs one record: ``(record, position, line, world)``.
        records: what to run; read whole before the first one runs.
        world: threads or tasks.
        max_workers: how many run at once; None is one, in this thread, or 10 tasks.
        executor: a ``ThreadPoolExecutor`` to run in instead of threads of our own.
        on_progress: called as ``on_progress(progress)`` or ``on_progress(done, total)``.
        timeout: seconds for the whole batch; records that are not done by then fail with RunTimeoutError.
            Threads finish the record that they run.
    """
    threads = _threads(executor, world)
    if max_workers is not None and max_workers < 1:
        raise ValueError(f"max_workers is {max_workers}; it must be at least 1")
    if isinstance(records, Mapping):
        raise TypeError("process_batch() takes a list of records, not one record; use process()")
    # A generator may wait, which must not stop a loop.
    records = list(records if isinstance(records, list | tuple) else await world.offload(list, records))
    source = Source.of(records)
    delivery = _Collection(len(records), on_progress, timeout)
    if not world.is_async and threads is None and max_workers in (None, 1):
        await flow_inline(run_one, source, delivery, world)
    else:
        workers = max_workers or (_TASKS if threads is None else len(records) or 1)
        capacity = workers if threads is not None or world.is_async else 2 * workers
        flow = Flow(run_one, source, delivery, world=world, workers=workers, capacity=capacity, executor=threads)
        try:
            await world.bounded(flow.run(), timeout)
        except TimeoutError:
            if not delivery.is_late():
                raise
    delivery.raise_failure()
    await delivery.give_up_the_rest(records)
    delivery.raise_failure()
    delivery.report_end()
    return delivery.results


def _threads(executor: Executor | None, world: World) -> ThreadPoolExecutor | None:
    if executor is None:
        return None
    if isinstance(executor, ThreadPoolExecutor) and not world.is_async:
        return executor
    kind = (
        "asynchronous batches run as tasks" if world.is_async else f"a later release runs on {type(executor).__name__}"
    )
    raise NotAvailableError(f"executor=: {kind}; leave it out, and say max_workers=")


class _Collection(Delivery):
    """The results by position."""

    def __init__(self, total: int, on_progress: OnProgress | None, timeout: float | None) -> None:
        super().__init__(on_progress, total)
        self._by_position: list[RunResult | None] = [None] * total
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def must_stop(self) -> bool:
        return self.failure is not None or self.is_late()

    async def account(self, row: Row, result: RunResult) -> None:
        self._by_position[row.position] = result
        await super().account(row, result)

    @property
    def results(self) -> list[RunResult]:
        return [result for result in self._by_position if result is not None]

    async def give_up_the_rest(self, records: list[Any]) -> None:
        """Make results for the records for which no time was left."""
        for position, record in enumerate(records):
            if self._by_position[position] is None:
                row = Row(record, None, position)
                error = RunTimeoutError(f"record {position} was not done when the batch's {self._timeout} s had passed")
                await self.account(row, unstarted(row, "failed", "limit", error))
