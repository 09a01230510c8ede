"""Hands over the records that did not succeed, with where they stood and why.

``Any`` here: entries hold records.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wirestate.errors import SinkError
from wirestate.machine.results import RunResult
from wirestate.redaction import quoted
from wirestate.resources.threads import Threads
from wirestate.running.encoding import to_json
from wirestate.running.files import place_of, said
from wirestate.running.rows import Row, reason_of
from wirestate.running.sinks import CallSink, FileSink, Receiver, may_wait
from wirestate.waiting import World

COLUMNS = ("line", "position", "source", "outcome", "state", "phase", "reason", "error", "record", "raw")


class Rejects:
    """A file or function that takes one entry for each rejected or failed record."""

    def __init__(self, sink: FileSink | CallSink, source: str | None, *, as_table: bool) -> None:
        self.sink = sink
        self._source = source
        self._as_table = as_table

    async def put(self, row: Row, result: RunResult) -> None:
        """Hand over one entry.

        Raises:
            SinkError: it could not be; a record must not vanish, so the stream ends.
        """
        try:
            await self.sink.put(self._entry(row, result), result)
        except SinkError:
            raise
        except Exception as error:  # of the caller's function
            raise SinkError(f"rejects cannot be handed over: {said(error)}") from error

    async def finish(self) -> None:
        await self.sink.finish()

    def _entry(self, row: Row, result: RunResult) -> dict[str, Any]:
        error = result.error
        entry = {
            "line": row.line,
            "position": row.position,
            "source": self._source,
            "outcome": result.outcome,
            "state": result.state,
            "phase": result.phase,
            "reason": reason_of(result),
            "error": None if error is None else quoted(error),
        }
        if row.reason is not None:
            entry["raw"] = row.raw
        else:
            # The record as it came, so that the entries can be repaired and run again.
            entry["record"] = _writable(row.record) if isinstance(self.sink, FileSink) else row.record
        if self._as_table:
            record = entry.get("record")
            entry["record"] = None if record is None else to_json(record)
            entry.setdefault("raw", None)
        return entry


def open_rejects(
    receiver: Receiver,
    source: str | None,
    *,
    world: World,
    run: str,
    format: str | None = None,
    threads: Threads | None = None,
    descriptor: int | None = None,
) -> Rejects:
    """Open the place for rejects: a path or URL, or a function that takes one entry; the rest as for a sink."""
    if callable(receiver):
        return Rejects(CallSink(receiver, world, threads if may_wait(receiver) else None), source, as_table=False)
    place = replace(place_of(receiver, SinkError, fallback=format), descriptor=descriptor)
    if place.format == "txt":
        raise SinkError(f"rejects {place.shown!r}: a txt file cannot hold them; use .jsonl, .json or .csv")
    return Rejects(FileSink(place, COLUMNS, world, run), source, as_table=place.format in ("csv", "tsv"))


def _writable(record: Any) -> Any:
    """Return *record*, or its ``repr`` if a file of text cannot hold it."""
    try:
        to_json(record).encode()
    except (TypeError, ValueError, RecursionError):
        return repr(record).encode("utf-8", "backslashreplace").decode()
    return record
