"""Runs several records at once: threads in the blocking world, tasks in the suspending one."""

from __future__ import annotations

import asyncio
import contextvars
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from wirestate.machine.results import RunResult
from wirestate.running.rows import Row, RunOne
from wirestate.waiting import BLOCKING, SUSPENDING, Waiter, World, drive


@dataclass(frozen=True, slots=True)
class Read:
    """A row came in; None is the end of the source."""

    row: Row | None


@dataclass(frozen=True, slots=True)
class Done:
    """A run ended."""

    row: Row
    result: RunResult


@dataclass(frozen=True, slots=True)
class Broken:
    """Something escaped: an error of the source, of the program, or an interrupt."""

    error: BaseException


Event = Read | Done | Broken


class Mailbox:
    """Events from any thread or task for the one that coordinates."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._events: deque[Event] = deque()
        self._waiters: deque[Waiter] = deque()

    def put(self, event: Event) -> None:
        self._events.append(event)
        try:
            waiter = self._waiters.pop()  # atomic: of two threads that post at once, one fills it
        except IndexError:
            return
        waiter.fill(None)

    def glance(self) -> Event | None:
        """Return the next event if there is one."""
        return self._events.popleft() if self._events else None

    async def take(self, timeout: float | None) -> Event | None:
        """Wait for the next event; None after *timeout* seconds."""
        if not self._events:
            waiter = self._world.new_waiter()
            self._waiters.append(waiter)
            if not self._events:  # nobody posted between the look and the waiter
                await waiter.wait(timeout)
            self._waiters.clear()
        return self.glance()


class Crew(Protocol):
    """Runs records and posts how each ended."""

    def start(self, row: Row) -> None:
        """Run *row* as soon as somebody is free."""
        ...

    async def dismiss(self) -> None:
        """Begin nothing more, and wait until what was begun has ended; tasks are cancelled."""
        ...


class ThreadCrew:
    """At most *size* threads, or those of an executor; each run sees the caller's context variables."""

    def __init__(
        self, run_one: RunOne, post: Callable[[Event], None], size: int, executor: ThreadPoolExecutor | None
    ) -> None:
        self._run_one = run_one
        self._post = post
        self._own = executor is None
        self._executor = executor or ThreadPoolExecutor(size, thread_name_prefix="wirestate-worker")
        self._under_way: set[Future[None]] = set()
        self._busy: dict[int, Any] = {}  # by position: a lock that is held while its record runs
        self._dismissed = False

    def start(self, row: Row) -> None:
        future = self._executor.submit(contextvars.copy_context().run, self._run, row)
        self._under_way.add(future)
        future.add_done_callback(self._ended)

    def _run(self, row: Row) -> None:
        busy = self._busy[row.position] = allocate_lock()
        with busy:
            # Posted here and not by the callback: a future counts as done before its callbacks have run.
            try:
                if not self._dismissed:
                    self._post(Done(row, drive(self._run_one(row.record, row.position, row.line, BLOCKING))))
            except BaseException as error:  # carried to the thread that coordinates
                self._post(Broken(error))
        del self._busy[row.position]

    def _ended(self, future: Future[None]) -> None:
        self._under_way.discard(future)
        if future.cancelled():  # by the owner of the executor, unless we are dismissed already
            self._post(Broken(CancelledError("the executor was shut down before it ran all records")))

    async def dismiss(self) -> None:
        self._dismissed = True
        for future in tuple(self._under_way):
            future.cancel()
        wait(tuple(self._under_way))
        for busy in list(self._busy.values()):  # an interrupt in start() leaves a future that nobody knows
            with busy:
                pass
        if self._own:
            self._executor.shutdown(cancel_futures=True)


class TaskCrew:
    """At most *size* tasks at once."""

    def __init__(self, run_one: RunOne, post: Callable[[Event], None], size: int) -> None:
        self._run_one = run_one
        self._post = post
        self._size = size
        self._queue: deque[Row] = deque()
        self._under_way: set[asyncio.Task[RunResult]] = set()

    def start(self, row: Row) -> None:
        if len(self._under_way) >= self._size:
            self._queue.append(row)
            return
        task = asyncio.create_task(self._run_one(row.record, row.position, row.line, SUSPENDING))
        self._under_way.add(task)
        task.add_done_callback(partial(self._ended, row))

    def _ended(self, row: Row, task: asyncio.Task[RunResult]) -> None:
        self._under_way.discard(task)
        error = ended_with(task)
        self._post(Done(row, task.result()) if error is None else Broken(error))
        if self._queue:
            self.start(self._queue.popleft())

    async def dismiss(self) -> None:
        self._queue.clear()
        for task in self._under_way:
            task.cancel()
        while self._under_way:
            await asyncio.wait(self._under_way)


def ended_with(task: asyncio.Task[Any]) -> BaseException | None:  # Any: a task of anything
    """Return what escaped from a task, None if nothing did."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()
