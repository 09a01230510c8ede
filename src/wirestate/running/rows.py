"""One row of a source, and the result of a row that no run was started for.

``Any`` in this package: records are whatever their source holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

from wirestate.errors import NotAMappingError, RecordRejectedError
from wirestate.machine.results import Outcome, Phase, RunResult
from wirestate.redaction import without_secrets
from wirestate.resources.reports import resource_notes
from wirestate.waiting import World

# What SQLAlchemy appends to a database's own words.
_STATEMENT = re.compile(r"\n(\[SQL: |\(Background on this error).*", re.DOTALL)

RunOne = Callable[[Any, int | None, int | None, World], Coroutine[Any, Any, RunResult]]


class Row(NamedTuple):
    """A record and where it stood; ``reason`` says why it could not be read, ``raw`` is then its text."""

    record: Any
    line: int | None
    position: int
    raw: str | None = None
    reason: str | None = None


class StopSignal(Protocol):
    """A ``threading.Event``, an ``asyncio.Event`` or anything that can say the same."""

    def is_set(self) -> bool: ...


def unstarted(row: Row, outcome: Outcome, phase: Phase, error: Exception) -> RunResult:
    """Return the result of a row that never ran: it visited no state and owned nothing."""
    reasons = error.reasons if isinstance(error, RecordRejectedError) else ()
    no_run = ""
    head = (outcome, None, row.record, (), error, None, phase, reasons, (), 0.0)
    return RunResult((*head, no_run, None, row.position, row.line, False))


def unreadable(row: Row) -> RunResult:
    """Return the result of a row that could not be read."""
    return unstarted(row, "rejected", "read", RecordRejectedError([row.reason or "unreadable"]))


def refused_by_sink(result: RunResult, error: Exception) -> RunResult:
    """Return *result* as failed in phase ``sink``."""
    head = ("failed", result.final_state, result.data, tuple(result.path), error, result.final_state, "sink")
    tail = (result.reasons, result.caught, result.duration, result.run_id, result.owner_id)
    return RunResult((*head, *tail, result.position, result.line, False))


def reason_of(result: RunResult) -> str:
    """Return in words why a record did not succeed; without secrets, and without a statement's text."""
    error = result.error
    if result.reasons or error is None:
        return without_secrets("; ".join(result.reasons)) or "its end state counts as a failure"
    said = _STATEMENT.sub("", str(error))
    text = said if result.outcome == "rejected" else f"{type(error).__name__}: {said}"
    return without_secrets("; ".join((text, *resource_notes(error))))


def no_mapping(record: Any) -> str:
    """Return why something that was read is no record."""
    return str(NotAMappingError(type(record)))


def damaged(*texts: str) -> bool:
    """True if one of *texts* was decoded with ``surrogateescape`` from bytes that are not UTF-8."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return True
    return False


def readable(text: str) -> str:
    r"""Return *text* with bytes that are not UTF-8 written as ``\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
