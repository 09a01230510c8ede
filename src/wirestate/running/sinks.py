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
from wirestate.running.files import OutFile, Path, Place, place_of
from wirestate.running.signatures import is_async, takes_second
from wirestate.waiting import World

Columns = Sequence[str]
Receiver = Path | Callable[..., Any]


class FileSink:
    """A file or URL, written record by record.

    ``put`` raises SinkError if the file cannot be written, anything else if the record does not fit.
    """

    def __init__(self, place: Place, columns: Columns | None, world: World) -> None:
        self._encoder = encoder(place.format, columns)
        self._file = OutFile(place)
        self._begun = False
        # A local file takes its text at once; a URL may wait on a network, which must not stop a loop.
        self._write = self._write_remote if place.is_url and world.is_async else self._write_local
        self._world = world

    async def put(self, record: Any, result: RunResult) -> None:
        if not self._begun:
            await self._write(self._encoder.begin(record))
            self._begun = True
        await self._write(self._encoder.encode(record))

    async def finish(self) -> None:
        if self._file.broken is not None:  # a write has raised it already
            return
        await self._write(("" if self._begun else self._encoder.begin(None)) + self._encoder.end())
        await self._world.offload(self._file.finish)

    def discard(self) -> None:
        """Leave nothing behind, for a run that never began."""
        self._file.discard()

    async def _write_local(self, text: str) -> None:
        self._file.write(text)

    async def _write_remote(self, text: str) -> None:
        await self._world.offload(self._file.write, text)


class CallSink:
    """A function ``call(record)``, or ``call(record, result)`` if it takes two."""

    def __init__(self, call: Callable[..., Any], world: World) -> None:
        self._call = call
        self._takes_result = takes_second(call, "result")
        self._is_async = is_async(call)
        if self._is_async and not world.is_async:
            raise AsyncInSyncRunError(f"sink {call!r} is asynchronous; use aprocess_stream()")

    async def put(self, record: Any, result: RunResult) -> None:
        given = self._call(record, result) if self._takes_result else self._call(record)
        if self._is_async:
            await given

    async def finish(self) -> None:
        """Leave the function to its maker."""

    def discard(self) -> None:
        """Leave the function to its maker."""


def open_sink(
    sink: Receiver, *, world: World, format: str | None = None, columns: Columns | None = None
) -> FileSink | CallSink:
    """Open *sink*: a path or URL (*format* where its suffix says nothing), or a function."""
    if isinstance(sink, str | os.PathLike):
        return FileSink(place_of(sink, SinkError, fallback=format), columns, world)
    if not callable(sink):
        raise SinkError(f"a sink is a path, a URL or a function, not {type(sink).__name__}")
    return CallSink(sink, world)
