"""Carries rows from a source through runs to whoever takes the results, never more than may be under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from wirestate.errors import SinkError, SourceError
from wirestate.machine.results import RunResult
from wirestate.running.crew import Broken, Crew, Done, Event, Mailbox, Read, TaskCrew, ThreadCrew, ended_with
from wirestate.running.progress import OnProgress, Reporter, Tally
from wirestate.running.reading import SourceThread
from wirestate.running.rows import Row, RunOne, unreadable
from wirestate.running.sources import AsyncSource, Source
from wirestate.waiting import World

Pair = tuple[Row, RunResult]
_PATIENCE = 0.1  # seconds until a stop signal is looked at while nothing happens


class Delivery:
    """Takes what was done, one record at a time, in the caller's thread or task."""

    def __init__(self, on_progress: OnProgress | None, total: int | None) -> None:
        self.tally = Tally()
        self.failure: Exception | None = None
        self._reporter = Reporter(on_progress, self.tally, total)

    def must_stop(self) -> bool:
        """True when no further record may be read."""
        return self.failure is not None

    def fail(self, error: Exception) -> None:
        """Stop the intake; *error* is raised when what is under way has ended."""
        self.failure = self.failure or error

    def in_turn(self, result: RunResult) -> bool:
        """True if *result* must be handed over in the order of the source."""
        return False

    async def emit(self, result: RunResult) -> RunResult:
        """Hand a successful record over; return the result that this made."""
        return result

    async def account(self, row: Row, result: RunResult) -> None:
        """Count a record, and hand it over if it did not succeed."""
        self.count(result)

    async def hand_over(self, pairs: deque[Pair], deferred: list[Pair] | None = None) -> None:
        """Emit and account for *pairs*, each taken off before that.

        Args:
            pairs: rows and their results.
            deferred: given if their turn has not come; takes those that must wait for it after all.
        """
        while pairs:
            row, result = pairs.popleft()
            result = await self.emit(result)
            if deferred is not None and self.in_turn(result):  # the sink refused it, and rejects keep their order
                deferred.append((row, result))
            else:
                await self.account(row, result)

    def count(self, result: RunResult) -> None:
        """Count a record, and tell how far all is."""
        self.tally.count(result)
        if self.failure is None:
            try:
                self._reporter.tick()
            except Exception as error:  # of the caller's function: what is under way must end first
                self.fail(error)

    def raise_failure(self) -> None:
        """Raise what :meth:`fail` remembered."""
        if self.failure is not None:
            raise self.failure

    def report_end(self) -> None:
        self._reporter.finish()


async def flow_inline(run_one: RunOne, source: Source, delivery: Delivery, world: World) -> None:
    """Run one record after the other, in the caller's thread."""
    while not delivery.must_stop():
        try:
            row = source.read()
        except SourceError as error:
            delivery.fail(error)
            return
        if row is None:
            return
        if row.reason is None:
            result = await delivery.emit(await run_one(row.record, row.position, row.line, world))
        else:
            result = unreadable(row)
        await delivery.account(row, result)


class Flow:
    """Runs several records at once; the caller's thread or task reads and hands over.

    Args:
        workers: how many run at once.
        capacity: how many may have been read and not yet handed over; those that wait for their turn count.
    """

    def __init__(
        self,
        run_one: RunOne,
        source: Source | AsyncSource | SourceThread,
        delivery: Delivery,
        *,
        world: World,
        workers: int,
        capacity: int,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        self._delivery = delivery
        self._world = world
        self._capacity = capacity
        self._mailbox = Mailbox(world)
        post = self._mailbox.put
        self._crew: Crew = (
            TaskCrew(run_one, post, workers) if world.is_async else ThreadCrew(run_one, post, workers, executor)
        )
        self._source = _Pump(source, post) if isinstance(source, AsyncSource) else source
        if isinstance(source, SourceThread):
            source.begin(post)
        self._asked = 0  # rows that were asked for and have not come yet
        self._ended = False
        # By position, in reading order: None until the run has ended, then what waits for its turn.
        self._under_way: dict[int, Pair | None] = {}
        self._early: deque[Pair] = deque()  # ended, and need not wait for their turn; None above
        self._ready: deque[Pair] = deque()  # their turn has come

    async def run(self) -> None:
        try:
            await self._move()
        except BaseException:
            if isinstance(self._source, SourceThread):
                self._source.leave()  # it may not come back soon, and what it brings begins no more
                self._ended = True
            await self._end_intake()
            await self._crew.dismiss()
            with suppress(SinkError):  # the first error is the one to raise
                await self._hand_over_the_rest()
            raise
        await self._crew.dismiss()

    async def _move(self) -> None:
        while True:
            if not self._ended and self._delivery.must_stop():
                await self._end_intake()
            event = self._mailbox.glance()
            if event is None:
                if await self._deliver():  # all that has ended by now, so that a thread gets many at a time
                    continue
                event = self._read()
            if event is None:
                if self._ended and not self._under_way:
                    return
                event = await self._mailbox.take(_PATIENCE)
            if event is not None:
                await self._handle(event)

    def _read(self) -> Event | None:
        """Return the next row of a source that can be read here and now, or ask for as many as there is room for."""
        room = self._capacity - len(self._under_way) - self._asked
        if self._ended or room <= 0:
            return None
        if not isinstance(self._source, Source):
            self._asked += self._source.ask(room)
            return None
        try:
            return Read(self._source.read())
        except SourceError as error:
            return Broken(error)

    async def _handle(self, event: Event) -> None:
        if isinstance(event, Done):
            self._settle(event.row, event.result)
        elif isinstance(event, Broken):
            if not isinstance(event.error, SourceError):
                raise event.error
            self._delivery.fail(event.error)
        elif event.row is None:
            self._ended = True
        else:
            self._asked -= self._asked > 0
            self._under_way[event.row.position] = None
            if event.row.reason is None:
                self._crew.start(event.row)
            else:
                self._settle(event.row, unreadable(event.row))
                if self._world.is_async:
                    await self._world.sleep(0)  # a long stretch of such rows must not starve the loop

    def _settle(self, row: Row, result: RunResult) -> None:
        """Note what may be handed over: at once, or when its turn comes."""
        if self._delivery.in_turn(result):
            self._under_way[row.position] = (row, result)
        else:
            self._early.append((row, result))

    async def _deliver(self) -> bool:
        """Hand over what may be; return True if there was anything."""
        early = [row.position for row, _ in self._early]
        if early:
            deferred: list[Pair] = []
            try:
                await self._delivery.hand_over(self._early, deferred)
            finally:
                self._under_way |= {row.position: (row, result) for row, result in deferred}
            for position in early:
                if self._under_way[position] is None:
                    del self._under_way[position]
        while self._under_way:
            first = next(iter(self._under_way))
            waiting = self._under_way[first]
            if waiting is None:
                break
            self._ready.append(waiting)
            del self._under_way[first]
        if self._ready:
            await self._delivery.hand_over(self._ready)
            return True
        return bool(early)

    async def _hand_over_the_rest(self) -> None:
        """Hand over what has ended, in order, around what never will."""
        while (event := self._mailbox.glance()) is not None:
            if isinstance(event, Done):
                self._under_way[event.row.position] = (event.row, event.result)
        rest = deque([*self._ready, *self._early, *filter(None, self._under_way.values())])
        await self._delivery.hand_over(rest)

    async def _end_intake(self) -> None:
        if not self._ended:
            self._ended = True
            if not isinstance(self._source, Source):
                await self._source.stop()


class _Pump:
    """Reads an asynchronous source in one task of its own, one row whenever it is asked.

    One task for all rows: a generator with a timeout or a task group in it must not change tasks.
    """

    def __init__(self, source: AsyncSource, post: Callable[[Event], None]) -> None:
        self._source = source
        self._post = post
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ask(self, room: int) -> int:
        """Read one row unless one is being read; return how many more come."""
        if self._asked.is_set():
            return 0
        self._asked.set()
        if self._task is None:
            self._task = asyncio.create_task(self._read())
            self._task.add_done_callback(self._ended)
        return 1

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.remove_done_callback(self._ended)
            task.cancel()
            await asyncio.wait([task])
            ended_with(task)  # looked at, or asyncio logs it; what a source raises when it is left is its own affair

    async def _read(self) -> None:
        row: Row | None
        while True:
            await self._asked.wait()
            row = await self._source.read()
            self._asked.clear()
            self._post(Read(row))
            if row is None:
                return

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = ended_with(task)
        if error is not None:
            self._post(Broken(error))
