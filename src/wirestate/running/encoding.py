"""Writes records as lines of text: CSV, JSON and plain.

``Any`` here: records hold whatever their makers put in.
"""

from __future__ import annotations

import base64
import csv
import datetime
import decimal
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from wirestate.errors import listed
from wirestate.running.files import Format


def storable(value: Any) -> Any:
    """Return what JSON can hold of a value that it cannot: dates as ISO 8601, decimals as text, bytes as base64."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset | Sequence):
        return list(value)
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


to_json = json.JSONEncoder(default=storable, ensure_ascii=False, allow_nan=False).encode


class Encoder(Protocol):
    """Turns records into the text of one file."""

    between: str  # what stands between two records

    def begin(self, record: Any) -> str:
        """Return what stands before the first record; *record* is that one, or None if there is none.

        It is asked for again after each record that is refused, until one is taken.
        """
        ...

    def encode(self, record: Any) -> str:
        """Return the text of one record; raise if it does not fit."""
        ...

    def end(self) -> str: ...


class _JsonLines:
    between = ""

    def begin(self, record: Any) -> str:
        return ""

    def encode(self, record: Any) -> str:
        return to_json(record) + "\n"

    def end(self) -> str:
        return ""


class _JsonArray:
    between = ",\n"

    def begin(self, record: Any) -> str:
        return "[" if record is None else "[\n"

    def encode(self, record: Any) -> str:
        return to_json(record)

    def end(self) -> str:
        return "\n]\n"


class _PlainLines:
    between = ""

    def begin(self, record: Any) -> str:
        if record is not None and self.encode(record).startswith("\ufeff"):
            raise ValueError("a txt sink's first text begins with a byte order mark, which readers drop there")
        return ""

    def encode(self, record: Any) -> str:
        if list(record) != ["text"] or not isinstance(text := record["text"], str):
            raise ValueError("a txt sink takes records with one key, 'text', that holds one line")
        if "\n" in text or text.endswith("\r"):  # either would be read as the end of the line
            raise ValueError("a txt sink writes one line for each record, and this text holds the end of one")
        return text + "\n"

    def end(self) -> str:
        return ""


class _Echo:
    """A file for ``csv.writer`` that hands each row back."""

    def write(self, text: str) -> str:
        return text


# What some reader takes for the end of a line, and a mark that it drops at the start of a file. csv.writer quotes
# what its line terminator holds; CPython before 3.11.9 and 3.12.3 quotes a "\r" for no other reason.
_QUOTED = "\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029\ufeff"


class _Table:
    between = ""

    def __init__(self, delimiter: str, columns: Iterable[str] | None) -> None:
        self._said = None if columns is None else tuple(columns)
        self._columns = self._said or ()
        self._row = csv.writer(_Echo(), delimiter=delimiter, lineterminator=_QUOTED).writerow

    def begin(self, record: Any) -> str:
        if self._said is None:
            if record is None:
                return ""
            self._columns = tuple(record)  # anew with each until one is taken: a refused one fixes no columns
        return self._text(self._columns)

    def encode(self, record: Any) -> str:
        columns = self._columns
        if len(record) != len(columns) or not all(name in record for name in columns):
            extra, missing = record.keys() - set(columns), set(columns) - record.keys()
            raise ValueError(
                f"the record's keys are not the sink's columns: {listed(sorted(extra, key=str))} has no column, "
                f"{listed(sorted(missing, key=str))} has no value; say columns= or give every record the same keys"
            )
        return self._text([record[name] for name in columns])

    def end(self) -> str:
        return ""

    def _text(self, values: Sequence[Any]) -> str:
        row = cast(str, self._row(values))  # csv.writer returns what write returned
        return row.removesuffix(_QUOTED) + "\n"


def encoder(format: Format, columns: Iterable[str] | None) -> Encoder:
    """Return the encoder of one file; *columns* are those of a table, else its first record's keys."""
    if format in ("csv", "tsv"):
        return _Table("\t" if format == "tsv" else ",", columns)
    makers: dict[str, Callable[[], Encoder]] = {"jsonl": _JsonLines, "json": _JsonArray, "txt": _PlainLines}
    return makers[format]()
