"""``${VAR}`` in texts: from the environment, with defaults, never printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wirestate.errors import nearest
from wirestate.machine.definition import Place
from wirestate.machine.faults import MISSING_SETTING, WRONG_VALUE, Report, did_you_mean
from wirestate.redaction import half_made_too

_BEGIN = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_]\w*)(?P<how>:-|:\?|:|(?=\})))?")


class Filled(str):
    """A text with its variables filled in; messages, which quote by ``repr``, show it as it was written."""

    __slots__ = ("written",)
    written: str

    def __new__(cls, text: str, written: str) -> Filled:
        made = super().__new__(cls, text)
        made.written = written
        return made

    @half_made_too
    def __repr__(self) -> str:
        return repr(self.written)

    def strip(self, chars: str | None = None, /) -> Filled:
        return Filled(super().strip(chars), self.written.strip(chars))

    def __reduce__(self) -> tuple[Any, ...]:  # Any: see object.__reduce__
        return Filled, (str(self), self.written)


def as_written(text: str) -> str:
    """Return *text* as messages may show it without quotes."""
    return text.written if isinstance(text, Filled) else text


def joined(*parts: str) -> str:
    """Return *parts* as one text, which remembers what was filled in."""
    whole = "".join(parts)
    return Filled(whole, "".join(map(as_written, parts))) if any(isinstance(part, Filled) for part in parts) else whole


def fill(text: str, place: Place, environ: Mapping[str, str], report: Report) -> str:
    """Return *text* with its variables filled in; what is missing goes to the report by name."""
    if "${" not in text:
        return text
    parts: list[str] = []
    end = 0
    missing: set[str] = set()
    while begin := _BEGIN.search(text, end):
        parts.append(text[end : begin.start()])
        end = begin.end()
        if begin[0] == "$${":
            parts.append("${")
            continue
        close = text.find("}", end)
        if begin["name"] is None or close < 0:  # once for a text, however often it says so
            report.fault(WRONG_VALUE, "'${' begins no variable; write '$${' for a literal '${'", place)
            return ""
        value = _value(begin["name"], begin["how"], text[end:close], environ)
        if value is None and begin["name"] not in missing:
            missing.add(begin["name"])
            why = text[end:close] if begin["how"] == ":?" and close > end else "it is not set and has no default"
            near = did_you_mean(nearest(begin["name"], environ))
            report.fault(MISSING_SETTING, f"variable {begin['name']} is needed: {why}", place, near)
        parts.append(value or "")
        end = close + 1
    return Filled("".join([*parts, text[end:]]), text)


def _value(name: str, how: str, rest: str, environ: Mapping[str, str]) -> str | None:
    """Return what stands for a variable; as in a shell, the forms with a colon also take an empty value for missing."""
    found = environ.get(name)
    if found is not None and (found or not how):
        return found
    return rest if how in (":-", ":") else None
