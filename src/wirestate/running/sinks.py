"""Hands finished records to files, URLs and functions.

``Any`` here: records are whatever the machine made of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from wirestate.errors import AsyncInSyncRunError, SinkError
from wirestate.machine.results import RunResult
from wirestate.running.encoding import encoder
from wirestate.running.files import Path, Place, place_of
from wirestate.running.out_file import OutFile
from wirestate.running.signatures import is_async, takes_second
from wirestate.waiting import World

Columns = Sequence[str]
Receiver = Path | Callable[..., Any]


class FileSink:
    """A file or URL, written record by record.

    ``put`` raises SinkError if the file cannot be written, anything else if the record does not fit.
    """

    def __init__(self, place: Place, columns: Columns | None, world: World, run: str) -> None:
        self._encoder = encoder(place.format, columns)
        self._file = OutFile(place, run, self._encoder.end().encode())
        self._begun = False
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
        begin = "" if self._begun else self._encoder.begin(record)
        is_due = self._file.add((begin + self._encoder.encode(record)).encode())
        self._begun = True
        if is_due:
            await self._world.offload(self._file.flush)

    async def finish(self) -> None:
        tail = ("" if self._begun else self._encoder.begin(None)) + self._encoder.end()
        await self._world.offload(self._file.finish, tail.encode())

    def discard(self) -> None:
        """Leave nothing behind, for a run that never began."""
        self._file.discard()


class CallSink:
    """A function ``call(record)``, or ``call(record, result)`` if it takes two."""

    shown = ""
    part = left = None

    def __init__(self, call: Callable[..., Any], world: World) -> None:
        self.records = 0
        self._call = call
        self._takes_result = takes_second(call, "result")
        self._is_async = is_async(call)
        if self._is_async and not world.is_async:
            raise AsyncInSyncRunError(f"sink {call!r} is asynchronous; use aprocess_stream()")

    async def put(self, record: Any, result: RunResult) -> None:
        given = self._call(record, result) if self._takes_result else self._call(record)
        if self._is_async:
            await given
        self.records += 1

    async def finish(self) -> None:
        """Leave the function to its maker."""

    def discard(self) -> None:
        """Leave the function to its maker."""


def open_sink(
    sink: Receiver, *, world: World, run: str, format: str | None = None, columns: Columns | None = None
) -> FileSink | CallSink:
    """Open *sink*: a path or URL (*format* where its suffix says nothing), or a function; *run* names part files."""
    if isinstance(sink, str | os.PathLike):
        return FileSink(place_of(sink, SinkError, fallback=format), columns, world, run)
    if not callable(sink):
        raise SinkError(f"a sink is a path, a URL or a function, not {type(sink).__name__}")
    return CallSink(sink, world)
