"""Reads the elements of a JSON array one by one, however long the array is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO  # Any: what JSON holds

from wirestate.running.rows import Row, damaged, no_mapping, readable

_PIECE = 1 << 16  # characters; the buffer holds one piece, or one element if that is longer
_SPACE = re.compile(r"[ \t\r\n]*+")
_AFTER = re.compile(r"[ \t\r\n]*+[,\]]")
# A lone quote is a text whose end is not in the buffer yet. Possessive, so that it cannot backtrack.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)
_decode = json.JSONDecoder().raw_decode


def why_not_json(error: Exception) -> str:
    """Return in words why a text could not be parsed; its lines are not the file's, so they are left out."""
    return (
        f"not JSON: {error.msg} (character {error.pos})"
        if isinstance(error, json.JSONDecodeError)
        else f"not JSON: {error}"
    )


class JsonArray:
    """An iterator over the rows of an array; one that is not valid JSON is unreadable, and alone so."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._buffer = ""
        self._at = 0
        self._line = 1
        if self._peek() != "[":
            raise ValueError("a json source is one array; for one record per line say format='jsonl'")
        self._at += 1

    def __iter__(self) -> Iterator[Row]:
        position = 0
        more = self._peek() != "]"
        while more:
            self._peek()
            yield self._row(position)
            position += 1
            more = self._peek() == ","
            self._at += more
        if self._peek() != "]":
            raise ValueError(f"line {self._line}: an element ends with {self._peek()!r}")
        self._at += 1
        if self._peek():
            raise ValueError(f"line {self._line}: text after the end of the array")

    def _row(self, position: int) -> Row:
        line = self._line
        record, end = self._quick()
        reason = None
        if end is None:  # not whole in the buffer, or not JSON: its end tells
            end = self._end_of_element()
            try:
                record = json.loads(self._buffer[self._at : end])
            except (ValueError, RecursionError) as error:
                reason = why_not_json(error)
        if reason is None and not isinstance(record, dict):
            reason = no_mapping(record)
        raw = self._buffer[self._at : end]
        self._at = end
        self._line += raw.count("\n")
        if damaged(raw):
            reason = "not UTF-8"
        return Row(record, line, position) if reason is None else Row(None, line, position, readable(raw), reason)

    def _quick(self) -> tuple[Any, int] | tuple[None, None]:
        """Return the element and its end if all of it is in the buffer; nearly always, and at C speed."""
        try:
            record, end = _decode(self._buffer, self._at)
        except (ValueError, RecursionError):
            return None, None
        return (record, end) if _AFTER.match(self._buffer, end) else (None, None)

    def _end_of_element(self) -> int:
        """Return where the element ends that starts here; read until it is whole."""
        depth, seen = 0, 0
        while True:
            for token in _TOKEN.finditer(self._buffer, self._at + seen):
                mark = token[0]
                if mark == '"':
                    break
                if depth == 0 and mark in ",]}":
                    return token.start()
                depth += (mark in "[{") - (mark in "]}")
                seen = token.end() - self._at
            if not self._read_on():
                raise ValueError(f"line {self._line}: the array is not closed; is the file whole?")

    def _peek(self) -> str:
        """Skip white space and return the next character, or an empty text at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            end = space.end() if space else self._at
            self._line += self._buffer.count("\n", self._at, end)
            self._at = end
            if end < len(self._buffer):
                return self._buffer[end]
            if not self._read_on():
                return ""

    def _read_on(self) -> bool:
        rest = self._buffer[self._at :]
        piece = self._text.read(max(_PIECE, len(rest)))  # doubling keeps the work linear for a huge element
        self._buffer, self._at = rest + piece, 0
        return bool(piece)
