"""Hands finished records to files, URLs and functions.

``Any`` here: records are whatever the machine made of them.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from types import BuiltinMethodType
from typing import Any

from wirestate.errors import AsyncInSyncRunError, SinkError
from wirestate.machine.results import RunResult
from wirestate.resources.threads import Threads
from wirestate.running.encoding import encoder
from wirestate.running.files import Path, Place, local_path, place_of
from wirestate.running.out_file import OutFile
from wirestate.running.signatures import is_async, takes_second
from wirestate.running.targets import names_descriptor
from wirestate.waiting import World

Columns = Sequence[str]
Receiver = Path | Callable[..., Any]
_PAUSE = 0.02  # seconds between two looks for a reader


class FileSink:
    """A file or URL, written record by record.

    ``put`` raises SinkError if the file cannot be written, anything else if the record does not fit.
    """

    def __init__(self, place: Place, columns: Columns | None, world: World, run: str) -> None:
        self._encoder = encoder(place.format, columns)
        self._file = OutFile(place, run, self._encoder.end().encode())
        self._world = world
        self.shown = place.shown

    @property
    def records(self) -> int:
        """How many records it took; of a file that broke off, how many are in it."""
        return self._file.records

    @property
    def part(self) -> str | None:
        """The name of the file while it is not whole, if that is another."""
        return self._file.part

    @property
    def left(self) -> str | None:
        """The name of the part file that stays, since the file broke off."""
        return self._file.left

    async def put(self, record: Any, result: RunResult) -> None:
        before = self._encoder.begin(record) if self._file.is_empty else self._encoder.between
        is_due = self._file.add((before + self._encoder.encode(record)).encode())
        if is_due:
            await self._world.offload(self._file.flush)

    async def finish(self) -> None:
        tail = (self._encoder.begin(None) if self._file.is_empty else "") + self._encoder.end()
        await self._world.offload(self._file.finish, tail.encode())

    def discard(self) -> None:
        """Leave nothing behind, for a run that never began."""
        self._file.discard()


class CallSink:
    """A function ``call(record)``, or ``call(record, result)`` if it takes two."""

    shown = ""
    part = left = None

    def __init__(self, call: Callable[..., Any], world: World, threads: Threads | None = None) -> None:
        self.records = 0
        self._threads = threads  # where a plain function of an asynchronous stream is called
        self._call = call
        self._takes_result = takes_second(call, "result")
        self._is_async = is_async(call)
        if self._is_async and not world.is_async:
            raise AsyncInSyncRunError(f"sink {call!r} is asynchronous; use aprocess_stream()")

    async def put(self, record: Any, result: RunResult) -> None:
        call = partial(self._call, record, result) if self._takes_result else partial(self._call, record)
        if self._is_async:
            await call()
        elif self._threads is not None:
            await self._threads.run(call)
        else:
            call()
        self.records += 1

    async def finish(self) -> None:
        """Leave the function to its maker."""

    def discard(self) -> None:
        """Leave the function to its maker."""


def may_wait(receiver: Receiver | None) -> bool:
    """Return True if *receiver* can keep the thread that hands something to it waiting."""
    if receiver is None or needs_loop(receiver):
        return False
    call = _unwrapped(receiver)
    return not (isinstance(call, BuiltinMethodType) and isinstance(call.__self__, list | deque | set | dict))


def needs_loop(receiver: Receiver | None) -> bool:
    """Return True if *receiver* is asynchronous, or a method of a thing of asyncio, as of its queues."""
    if receiver is None or isinstance(receiver, str | os.PathLike):
        return False
    owner = getattr(_unwrapped(receiver), "__self__", None)
    return is_async(receiver) or type(owner).__module__.partition(".")[0] == "asyncio"


def _unwrapped(receiver: Receiver) -> object:
    while isinstance(receiver, partial):
        receiver = receiver.func
    return receiver


async def opened_by_reader(receiver: Receiver | None, opened: ExitStack) -> int | None:
    """Wait until *receiver* has a reader, if it is a named pipe; return its descriptor, which *opened* closes.

    Opening it without a look would wait for that, too, but in a thread, which cannot be cancelled. It is opened
    this once: the reader may be gone at a second time, which would wait for the next one.
    """
    path = local_path(receiver) if isinstance(receiver, str | os.PathLike) else None
    while path is not None and _is_pipe(path):
        with suppress(OSError):  # ENXIO: nobody yet
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            opened.callback(os.close, descriptor)
            os.set_blocking(descriptor, True)
            return descriptor
        await asyncio.sleep(_PAUSE)
    return None


def _is_pipe(path: str) -> bool:
    try:
        return not names_descriptor(path) and stat.S_ISFIFO(os.stat(path).st_mode) and os.access(path, os.W_OK)
    except (OSError, ValueError):  # there is none, or it is no local file
        return False


def open_sink(
    sink: Receiver,
    *,
    world: World,
    run: str,
    format: str | None = None,
    columns: Columns | None = None,
    threads: Threads | None = None,
    descriptor: int | None = None,
) -> FileSink | CallSink:
    """Open *sink*.

    Args:
        sink: a path or URL, or a function.
        world: the side that writes.
        run: names part files.
        format: of a path whose suffix says nothing.
        columns: of a table; else its first record's keys.
        threads: where a plain function is called; None is here.
        descriptor: of a named pipe that is open already.
    """
    if isinstance(sink, str | os.PathLike):
        place = replace(place_of(sink, SinkError, fallback=format), descriptor=descriptor)
        return FileSink(place, columns, world, run)
    if not callable(sink):
        raise SinkError(f"a sink is a path, a URL or a function, not {type(sink).__name__}")
    return CallSink(sink, world, threads if may_wait(sink) else None)
