"""Reads records from files, URLs and iterables, each with its position and physical line.

``Any`` here: records are whatever their source holds.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack
from itertools import count, islice
from typing import Any, BinaryIO, TextIO

from wirestate.errors import AsyncInSyncRunError, SourceError
from wirestate.running.files import Path, open_to_read, place_of, said
from wirestate.running.json_array import JsonArray, why_not_json
from wirestate.running.rows import Row, damaged, no_mapping, readable
from wirestate.waiting import World

Records = Path | Iterable[Any] | AsyncIterable[Any]


class Source:
    """Rows that are read one at a time.

    ``name`` is the path or None, ``total`` the number of rows if it is known before reading;
    ``is_remote`` says that reading may wait on a network.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        opened: ExitStack,
        *,
        name: str | None = None,
        total: int | None = None,
        is_remote: bool = False,
    ) -> None:
        self.name = name
        self.total = total
        self.is_remote = is_remote
        self._rows = rows
        self._opened = opened

    @classmethod
    def of(cls, records: Iterable[Any], limit: int | None = None) -> Source:
        """Return the source of an iterable's records."""
        total = len(records) if isinstance(records, Sized) else None
        if total is not None and limit is not None:
            total = min(total, limit)
        return cls(_numbered(islice(records, limit)), ExitStack(), total=total)

    def read(self) -> Row | None:
        """Return the next row, None at the end; raise SourceError if the source fails."""
        try:
            return next(self._rows, None)
        except Exception as error:  # whatever a source raises ends it, and only it
            # What a library says of a URL may quote its password.
            raise _broken(self.name, error) from (None if self.is_remote else error)

    def close(self) -> None:
        self._opened.close()


class AsyncSource:
    """Rows of an asynchronous iterable."""

    name = None
    total = None

    def __init__(self, records: AsyncIterable[Any], limit: int | None) -> None:
        self._records: AsyncIterator[Any] = aiter(records)
        self._left = limit
        self._position = 0

    async def read(self) -> Row | None:
        """Return the next row, None at the end; raise SourceError if the source fails."""
        if self._position == self._left:
            return None
        try:
            record = await anext(self._records)
        except StopAsyncIteration:
            return None
        except Exception as error:  # whatever a source raises ends it, and only it
            raise _broken(self.name, error) from error
        self._position += 1
        return Row(record, None, self._position - 1)

    def close(self) -> None:
        """Leave the iterable to its maker."""


def open_source(
    source: Records, *, world: World, format: str | None = None, limit: int | None = None
) -> Source | AsyncSource:
    """Open *source*; what is wrong with its beginning is raised here, before any record runs.

    Args:
        source: a path, a URL, or a (in asynchronous runs also asynchronous) iterable of records.
        world: the side that will read.
        format: the format of a path, whatever its suffix says.
        limit: the most rows to read.
    """
    if isinstance(source, str | os.PathLike):
        return _open_file(source, format, limit)
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable | AsyncIterable):
        raise SourceError(f"a source is a path, a URL or an iterable of records, not {type(source).__name__}")
    if isinstance(source, AsyncIterable):
        if not world.is_async:
            raise AsyncInSyncRunError("an asynchronous source needs aprocess_stream()")
        return AsyncSource(source, limit)
    return Source.of(source, limit)


def _open_file(path: Path, format: str | None, limit: int | None) -> Source:
    place = place_of(path, SourceError, chosen=format)
    with ExitStack() as opened:
        data = open_to_read(place, opened)
        try:
            if place.format == "jsonl":
                rows = _json_lines(data)
            elif place.format == "txt":
                rows = _text_lines(data)
            else:
                text = opened.enter_context(
                    io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline="")
                )
                rows = iter(JsonArray(text) if place.format == "json" else _Table(text, place.format))
        except Exception as error:  # of decompressing, too: gzip, bz2, lzma and zstandard raise their own
            raise SourceError(f"source {place.shown!r}: {said(error)}") from place.cause(error)
        return Source(islice(rows, limit), opened.pop_all(), name=place.shown, is_remote=place.is_url)


def _broken(name: str | None, error: Exception) -> SourceError:
    who = "the source" if name is None else f"source {name!r}"
    return SourceError(f"{who} failed while it was read: {said(error)}")


def _numbered(records: Iterable[Any]) -> Iterator[Row]:
    for position, record in enumerate(records):
        yield Row(record, None, position)


def _lines(data: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(data, 1):
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _text_lines(data: BinaryIO) -> Iterator[Row]:
    for number, line in _lines(data):
        try:
            yield Row({"text": line.decode().rstrip("\r\n")}, number, number - 1)
        except UnicodeDecodeError:
            yield Row(None, number, number - 1, _shown(line), "not UTF-8")


def _json_lines(data: BinaryIO) -> Iterator[Row]:
    positions = count()
    for number, line in _lines(data):
        if line.isspace() or not line:
            continue
        position = next(positions)
        try:
            record = json.loads(line.decode())
            if isinstance(record, dict):
                yield Row(record, number, position)
            else:
                yield Row(None, number, position, _shown(line), no_mapping(record))
        except UnicodeDecodeError:
            yield Row(None, number, position, _shown(line), "not UTF-8")
        except (ValueError, RecursionError) as error:
            yield Row(None, number, position, _shown(line), why_not_json(error))


def _shown(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace").rstrip("\r\n")


class _Table:
    """The rows below the header of a CSV or TSV text; values stay the texts that they are."""

    def __init__(self, text: TextIO, format: str) -> None:
        self._text = text
        self._delimiter = "\t" if format == "tsv" else ","
        self._again: deque[str] = deque()  # lines to read once more
        self._kept: list[str] = []  # the physical lines of the present row
        self._start()
        self._columns = self._header()

    def _start(self) -> None:
        # Strict, so that a quote that nobody closes is an error and not a value of many lines.
        self._reader = csv.reader(self._physical_lines(), delimiter=self._delimiter, strict=True)

    def _physical_lines(self) -> Iterator[str]:
        kept, again = self._kept, self._again
        while again:
            kept.append(again.popleft())
            yield kept[-1]
        for line in self._text:
            kept.append(line)
            yield line

    def _header(self) -> list[str]:
        columns = next(filter(None, self._reader), None)
        if columns is None:
            raise ValueError("it is empty; a table begins with a line of column names")
        if damaged("".join(columns)):
            raise ValueError("its column names are not UTF-8")
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise ValueError(f"column names come twice: {', '.join(map(repr, twice))}")
        self._kept.clear()
        return columns

    def __iter__(self) -> Iterator[Row]:
        columns, kept = self._columns, self._kept
        width = len(columns)
        make = tuple.__new__  # half the cost of Row(...)
        position = 0
        done = self._reader.line_num  # physical lines that belong to rows before this one
        base = 0  # those that an earlier reader counted
        while True:
            try:
                for fields in self._reader:
                    if fields:
                        plain = len(kept) == 1 and kept[0].isascii()  # one flag: spares nearly all rows the search
                        if len(fields) == width and (plain or not damaged(*kept)):
                            record = dict(zip(columns, fields))  # noqa: B905  # same length, and strict costs
                            yield make(Row, (record, done + 1, position, None, None))
                        else:
                            yield self._bad(done + 1, position, _why(fields, width))
                        position += 1
                    done = base + self._reader.line_num
                    kept.clear()
                return
            except csv.Error as error:
                # Nobody knows where this row ends: give up its first line only and read on after it.
                self._again.extendleft(reversed(kept[1:]))
                del kept[1:]
                yield self._bad(done + 1, position, _why_broken(error))
                position += 1
                done += 1
                base = done
                kept.clear()
                self._start()

    def _bad(self, line: int, position: int, reason: str) -> Row:
        return Row(None, line, position, readable("".join(self._kept)).rstrip("\r\n"), reason)


def _why(fields: list[str], width: int) -> str:
    return "not UTF-8" if len(fields) == width else f"{len(fields)} fields where the header has {width}"


def _why_broken(error: csv.Error) -> str:
    # Not raised by us: the limit is the whole process's, and it is what bounds the search for a missing quote.
    hint = (
        "; csv.field_size_limit(n), called where your functions are, raises it" if "field limit" in str(error) else ""
    )
    return f"{error}{hint}"
