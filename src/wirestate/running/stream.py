"""Carries records from a source through the machine to a sink, in flat memory.

``Any`` here: what a later release will take.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from wirestate.errors import NotAvailableError, SinkError
from wirestate.machine.results import RunResult
from wirestate.redaction import without_secrets
from wirestate.resources.failures import note
from wirestate.resources.threads import Threads
from wirestate.running.files import Path
from wirestate.running.flow import Delivery, Flow, Pair, flow_inline
from wirestate.running.progress import OnProgress
from wirestate.running.reading import SourceThread, open_rows
from wirestate.running.rejects import Rejects, open_rejects
from wirestate.running.rows import Row, RunOne, StopSignal, refused_by_sink
from wirestate.running.same_file import shared_file
from wirestate.running.sinks import (
    CallSink,
    Columns,
    FileSink,
    Receiver,
    may_wait,
    needs_loop,
    open_sink,
    opened_by_reader,
)
from wirestate.running.sources import AsyncSource, Records, Source
from wirestate.waiting import BLOCKING, World, drive

_TASKS = 32
_WHILE = 0.05  # seconds; progress is told ten times a second


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What a stream did.

    ``total_processed`` is ``successful + failed + rejected``; ``skipped`` were done in an earlier run,
    ``emitted`` reached the sink (if it broke off, they are in its part file), ``by_state`` counts by final state,
    ``duration`` is seconds, ``rate`` records per second, ``stopped`` says that the source was left before its end,
    ``errors`` holds the first messages, each once with the number of records that it came for;
    ``unsuccessful_by_state`` is the part of ``by_state`` that did not succeed; ``parts`` names the part file of
    each sink or rejects that broke off, by the path that was asked for.
    """

    total_processed: int
    successful: int
    failed: int
    rejected: int
    skipped: int
    emitted: int
    by_state: dict[str, int]
    duration: float
    rate: float
    stopped: bool
    run_id: str | None
    errors: tuple[str, ...]
    unsuccessful_by_state: dict[str, int]
    parts: dict[str, str]


async def run_stream(
    run_one: RunOne,
    source: Records,
    sink: Receiver | None = None,
    *,
    world: World,
    max_in_flight: int | None = None,
    ordered: bool = True,
    workers: int | None = None,
    rejects: Receiver | None = None,
    on_progress: OnProgress | None = None,
    max_failures: int | None = None,
    stop: StopSignal | None = None,
    limit: int | None = None,
    format: str | None = None,
    columns: Columns | None = None,
    also_read: Mapping[str, str] | None = None,
    refusal: Callable[[], Exception | None] = lambda: None,
    on_part: Callable[[str, str], None] | None = None,
    **later: Any,
) -> StreamSummary:
    """Run every record of *source*; hand successful ones to *sink* and the others to *rejects*.

    Args:
        run_one: runs one record: ``(record, position, line, world)``.
        source: a path, a URL, an iterable, or in asynchronous runs an asynchronous iterable. Asynchronous runs
            read what may wait in a thread: all but lists and other collections of Python's own.
        sink: a path, a URL, or a function ``sink(record)`` or ``sink(record, result)``.
        world: threads or tasks.
        max_in_flight: the most records that are read and not yet handed over; default twice *workers*, or 32 tasks.
        ordered: hand over in the order of the source; rejects always are.
        workers: how many run at once; None is one, in this thread, or as many tasks as may be in flight.
        rejects: a path, a URL, or a function that takes one mapping.
        on_progress: called as ``on_progress(progress)`` or ``on_progress(done, total)``.
        max_failures: read no further when so many records have failed; rejected ones do not count.
        stop: when it is set no further record is read, and those in flight finish.
        limit: the most rows to read.
        format: of the source, whatever its suffix says; of sink and rejects, where theirs say nothing.
        columns: of a CSV or TSV sink; else the first record's keys.
        also_read: name to path of other files that must not be written, such as the machine's.
        refusal: returns why no record may begin any more, None while one may; what it returns is raised.
        on_part: called as ``on_part(path, part)`` for each file that has another name until it is whole.

    Raises:
        SourceError: the source cannot be opened, or fails; then its ``summary`` says what was done.
        SinkError: sink or rejects cannot be written; its ``summary`` is None if that is so before the first record.
    """
    _refuse(later)
    for name, value in (("max_in_flight", max_in_flight), ("workers", workers), ("max_failures", max_failures)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    _refuse_shared({"sink": sink, "rejects": rejects}, {"source": source, **(also_read or {})})
    async with AsyncExitStack() as opened:
        rows = await open_rows(source, world=world, format=format, limit=limit)
        opened.push_async_callback(rows.stop) if isinstance(rows, SourceThread) else opened.callback(rows.close)
        delivery = _Handover(
            on_progress=on_progress,
            total=rows.total,
            ordered=ordered,
            max_failures=max_failures,
            stop=stop,
            refusal=refusal,
        )
        opened.callback(delivery.close)
        await delivery.open(sink, rejects, source=rows.name, world=world, format=format, columns=columns)
        try:
            delivery.tell_parts(on_part)
            await _flow(run_one, rows, delivery, world=world, workers=workers, max_in_flight=max_in_flight)
            delivery.ask_for_refusal()
            delivery.raise_failure()
        except BaseException as error:  # files are made whole, whatever stopped the stream
            delivery.stopped = True
            await delivery.finish(error)
            raise
        await delivery.finish()
    return delivery.summary()


async def _flow(
    run_one: RunOne,
    rows: Source | AsyncSource | SourceThread,
    delivery: Delivery,
    *,
    world: World,
    workers: int | None,
    max_in_flight: int | None,
) -> None:
    if isinstance(rows, Source) and not world.is_async and workers in (None, 1):
        await flow_inline(run_one, rows, delivery, world)
        return
    capacity = max_in_flight or (_TASKS if workers is None else 2 * workers)
    flow = Flow(run_one, rows, delivery, world=world, workers=workers or capacity, capacity=capacity)
    await flow.run()


def _refuse(later: dict[str, Any]) -> None:
    for name, value in later.items():
        if name not in ("executor", "commit", "run_id", "ledger", "key"):
            raise TypeError(f"run_stream() got an unexpected keyword argument {name!r}")
        if value is not None and (name, value) != ("commit", "state"):
            raise NotAvailableError(f"{name}= of a stream: a later release brings it; leave it out for now")


def _refuse_shared(written: Mapping[str, object], read: Mapping[str, object]) -> None:
    """Raise SinkError if a file would be written that is read, or written twice."""
    shared = shared_file(written, read)
    if shared is not None:
        name, other = shared
        shown = without_secrets(os.fspath(cast(Path, written[name])))
        raise SinkError(f"{name} {shown!r} is the file of the {other} too; name another file")


class _Handover(Delivery):
    """Gives records to sink and rejects, and knows when enough was read."""

    def __init__(
        self,
        *,
        on_progress: OnProgress | None,
        total: int | None,
        ordered: bool,
        max_failures: int | None,
        stop: StopSignal | None,
        refusal: Callable[[], Exception | None],
    ) -> None:
        super().__init__(on_progress, total)
        self._refusal = refusal
        self._sink: FileSink | CallSink | None = None
        self._rejects: Rejects | None = None
        self._ordered = ordered
        self._max_failures = max_failures
        self._stop = stop
        self.stopped = False
        self._threads: Threads | None = None  # the one thread in which an asynchronous stream hands over
        self._together = False  # both receivers are served there, many records at a time

    async def open(
        self,
        sink: Receiver | None,
        rejects: Receiver | None,
        *,
        source: str | None,
        world: World,
        format: str | None,
        columns: Columns | None,
    ) -> None:
        """Open both receivers, or neither."""
        if world.is_async and (may_wait(sink) or may_wait(rejects)):
            self._threads = Threads("sink", 1)
            self._together = not (needs_loop(sink) or needs_loop(rejects))
        options: dict[str, Any] = {"run": secrets.token_hex(4), "format": format}
        options |= {"world": BLOCKING} if self._together else {"world": world, "threads": self._threads}

        pipes: list[int | None] = [None, None]

        def open_both() -> None:
            if sink is not None:
                self._sink = open_sink(sink, columns=columns, descriptor=pipes[0], **options)
            if rejects is not None:
                try:
                    self._rejects = open_rejects(rejects, source, descriptor=pipes[1], **options)
                except BaseException:
                    discard()
                    raise

        def discard(_: None = None) -> None:
            for receiver in self._receivers():
                receiver.discard()

        if self._threads is None:
            open_both()
        else:
            with ExitStack() as opened:
                pipes = [await opened_by_reader(receiver, opened) for receiver in (sink, rejects)]
                await self._threads.run(open_both, undo=discard)

    def ask_for_refusal(self) -> None:
        """Fail if no record may begin any more; those that were read and did not begin have failed already."""
        if self.failure is None and (error := self._refusal()) is not None:
            self.fail(error)

    def tell_parts(self, on_part: Callable[[str, str], None] | None) -> None:
        """Tell the names of the files that are not whole yet."""
        for receiver in self._receivers():
            if receiver.part is not None and on_part is not None:
                on_part(receiver.shown, receiver.part)

    def must_stop(self) -> bool:
        self.ask_for_refusal()
        if (
            self.failure is not None
            or (self._stop is not None and self._stop.is_set())
            or (self._max_failures is not None and self.tally.failed >= self._max_failures)
        ):
            self.stopped = True
        return self.stopped

    def in_turn(self, result: RunResult) -> bool:
        return self._ordered or (self._rejects is not None and not result.success)

    async def emit(self, result: RunResult) -> RunResult:
        if self._sink is None or not result.success or not result.emit:
            return result
        try:
            await self._sink.put(result.data, result)
        except SinkError:
            raise
        except Exception as error:  # one record that the sink refuses is that record's failure
            return refused_by_sink(result, error)
        return result

    async def account(self, row: Row, result: RunResult) -> None:
        await self._reject(row, result)
        self.count(result)

    async def _reject(self, row: Row, result: RunResult) -> None:
        if self._rejects is not None and not result.success:
            await self._rejects.put(row, result)

    async def hand_over(self, pairs: deque[Pair], deferred: list[Pair] | None = None) -> None:
        needed = self._sink is not None or not all(result.success for _, result in pairs)
        if self._threads is None or not self._together or not needed:
            await super().hand_over(pairs, deferred)
            return
        while pairs:
            done: list[Pair] = []
            try:
                await self._threads.run(partial(self._hand_over_some, pairs, done, wait_for_turn=deferred is not None))
            finally:
                for row, result in done:
                    if deferred is not None and self.in_turn(result):
                        deferred.append((row, result))
                    else:
                        self.count(result)

    def _hand_over_some(self, pairs: deque[Pair], done: list[Pair], *, wait_for_turn: bool) -> None:
        """Do in the thread what :meth:`hand_over` does, for a while: the caller counts, and tells how far all is."""
        end = time.monotonic() + _WHILE
        while pairs and (not done or time.monotonic() < end):
            row, result = pairs.popleft()
            result = drive(self.emit(result))
            if not (wait_for_turn and self.in_turn(result)):
                drive(self._reject(row, result))
            done.append((row, result))

    async def finish(self, error: BaseException | None = None) -> None:
        """Make whole what was written, and report for the last time if no *error* came before.

        Raises:
            SinkError: a file cannot be made whole; where an *error* came before that becomes a note of it.
        """
        failure = error
        for receiver in self._receivers():
            try:
                await self._finish(receiver)
            except SinkError as second:
                if failure is None:
                    failure = second
                else:
                    note(failure, str(second))
            except BaseException as interrupt:
                failure = interrupt
                with suppress(SinkError):  # the summary names what is left; the files are made whole all the same
                    await self._finish(receiver)
        if failure is None:
            try:
                self.report_end()
            except BaseException as raised:  # by the caller's function
                failure = raised
        if failure is not None:
            vars(failure)["summary"] = self.summary()  # an interrupt carries it too
            if failure is not error:
                raise failure

    async def _finish(self, receiver: FileSink | CallSink) -> None:
        if self._threads is not None and self._together:
            await self._threads.run(lambda: drive(receiver.finish()))
        else:
            await receiver.finish()

    def close(self) -> None:
        """Let the thread end in which records were handed over."""
        if self._threads is not None:
            self._threads.close()

    def _receivers(self) -> list[FileSink | CallSink]:
        rejects = None if self._rejects is None else self._rejects.sink
        return [receiver for receiver in (self._sink, rejects) if receiver is not None]

    def summary(self) -> StreamSummary:
        tally, duration = self.tally, self.tally.elapsed
        return StreamSummary(
            total_processed=tally.done,
            successful=tally.successful,
            failed=tally.failed,
            rejected=tally.rejected,
            skipped=0,
            emitted=0 if self._sink is None else self._sink.records,
            by_state=dict(tally.by_state),
            duration=duration,
            rate=tally.done / duration if duration > 0 else 0.0,
            stopped=self.stopped,
            run_id=None,
            errors=tuple(tally.errors),
            unsuccessful_by_state=dict(tally.unsuccessful_by_state),
            parts={one.shown: one.left for one in self._receivers() if one.left is not None},
        )
