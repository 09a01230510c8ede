"""Reads sources of asynchronous streams in a thread, so that a slow one does not stop the event loop."""

from __future__ import annotations

import contextvars
import logging
import os
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from types import GeneratorType
from typing import cast

from wirestate.redaction import quoted
from wirestate.running.crew import Broken, Event, Read
from wirestate.running.sources import AsyncSource, Records, Source, open_source
from wirestate.waiting import World

log = logging.getLogger("wirestate.machine")

_IN_MEMORY: tuple[type, ...] = (
    list,
    tuple,
    deque,
    set,
    frozenset,
    range,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
# A thread cannot be stopped while it waits: a pipe without a writer may keep it for ever, a slow generator must
# be closed before the stream has ended, if it can.
_GRACE = 1.0


async def open_rows(
    source: Records, *, world: World, format: str | None = None, limit: int | None = None
) -> Source | AsyncSource | SourceThread:
    """Open *source* as :func:`open_source` does; in asynchronous streams in a thread, if it may wait."""
    opening = partial(open_source, source, world=world, format=format, limit=limit)
    if not world.is_async or not _may_wait(source):
        return opening()
    thread = SourceThread(opening, source, world)
    await thread.open()
    return thread


def _may_wait(source: Records) -> bool:
    if isinstance(source, str | os.PathLike):
        return True
    return isinstance(source, Iterable) and not isinstance(source, AsyncIterable) and type(source) not in _IN_MEMORY


class SourceThread:
    """Opens, reads and closes a source in one thread, with the caller's context variables.

    It reads no further than it is asked to, and as many rows at a time; a generator that it has not read to its
    end is closed in the thread in which it ran.
    """

    def __init__(self, opening: Callable[[], Source | AsyncSource], records: Records, world: World) -> None:
        self.name: str | None = None
        self.total: int | None = None
        self._opening = opening
        self._generator = records if isinstance(records, GeneratorType) else None
        self._post: Callable[[Event], None] = lambda event: None
        self._asked: SimpleQueue[int] = SimpleQueue()
        self._left = False
        self._awaited = False
        self._opened = world.new_waiter()
        self._over = world.new_waiter()

    async def open(self) -> None:
        """Open the source, and raise what its opening raises."""
        work = contextvars.copy_context().run
        # A daemon: one that waits for ever must not hold the end of the process.
        Thread(target=work, args=(self._work,), name="wirestate-source", daemon=True).start()
        try:
            await self._opened.wait(None)
        except BaseException:
            self.leave()
            raise
        opened: Source | BaseException = self._opened.value
        if isinstance(opened, BaseException):
            raise opened
        self.name, self.total = opened.name, opened.total

    def begin(self, post: Callable[[Event], None]) -> None:
        """Hand what is read to *post*."""
        self._post = post

    def ask(self, room: int) -> int:
        """Read *room* more rows; return how many come."""
        self._asked.put(room)
        return room

    def leave(self) -> None:
        """Read no further."""
        self._left = True
        self._asked.put(0)

    async def stop(self) -> None:
        """Read no further, and wait until the source is closed, unless it does not come back."""
        self.leave()
        if not self._awaited:
            self._awaited = True
            if not await self._over.wait(_GRACE):
                log.warning(
                    "%s does not come back from reading; its thread is left, and closes it when it does",
                    "a source" if self.name is None else f"source {self.name!r}",
                )

    def _work(self) -> None:
        try:
            source = cast(Source, self._opening())  # asynchronous ones do not come here
        except BaseException as error:  # carried to the task that waits for it
            self._opened.fill(error)
            return
        self._opened.fill(source)
        try:
            self._read(source)
        finally:
            source.close()
            self._over.fill(None)

    def _read(self, source: Source) -> None:
        while not self._left:
            for _ in range(self._asked.get()):
                if self._left:
                    break
                try:
                    row = source.read()
                except BaseException as error:  # carried to the task that coordinates
                    self._post(Broken(error))
                    return
                self._post(Read(row))
                if row is None:
                    return
        if self._generator is not None:
            try:
                self._generator.close()
            except Exception as error:  # of the caller's own clean-up, when nobody waits for it any more
                log.warning("a source raised when it was left before its end: %s", quoted(error))
