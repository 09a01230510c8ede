"""Counts what was done and tells the caller, ten times a second at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any  # Any: on_progress may return anything

from wirestate.machine.results import RunResult
from wirestate.running.rows import reason_of
from wirestate.running.signatures import is_async, takes_second

OnProgress = Callable[..., Any]
_PAUSE = 0.1  # seconds between two reports
_KEPT_ERRORS = 10


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch or stream is; ``elapsed`` and ``remaining`` are seconds, ``rate`` records per second.

    ``total`` and ``remaining`` are None where the length of the source is not known.
    """

    done: int
    total: int | None
    successful: int
    failed: int
    rejected: int
    elapsed: float
    rate: float
    remaining: float | None
    final: bool


@dataclass(slots=True)
class Tally:
    """What was done so far."""

    successful: int = 0
    failed: int = 0
    rejected: int = 0
    by_state: dict[str, int] = field(default_factory=dict)
    unsuccessful_by_state: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    # State and reason -> where it came first, and how often; the first reasons only.
    _reasons: dict[tuple[str | None, str], tuple[str, int]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.successful + self.failed + self.rejected

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def count(self, result: RunResult) -> None:
        state = result.final_state
        if state is not None:
            self.by_state[state] = self.by_state.get(state, 0) + 1
            if not result.success:
                self.unsuccessful_by_state[state] = self.unsuccessful_by_state.get(state, 0) + 1
        if result.outcome == "done":
            self.successful += 1
            return
        if result.outcome == "failed":
            self.failed += 1
        else:
            self.rejected += 1
        self._note(result)

    @property
    def errors(self) -> list[str]:
        """The first messages, each with its first record and how often it came."""
        found = []
        for (state, reason), (where, times) in self._reasons.items():
            at = f" (state {state!r})" if state else ""
            found.append(f"{where}{at}: {reason}" + (f"  ({times:,} times)" if times > 1 else ""))
        return found

    def _note(self, result: RunResult) -> None:
        what = (result.state, reason_of(result))
        known = self._reasons.get(what)
        if known is not None:
            self._reasons[what] = (known[0], known[1] + 1)
        elif len(self._reasons) < _KEPT_ERRORS:
            self._reasons[what] = (f"record {result.position}" if result.line is None else f"line {result.line}", 1)


class Reporter:
    """Calls ``on_progress(progress)``, or ``on_progress(done, total)`` if it takes two."""

    def __init__(self, on_progress: OnProgress | None, tally: Tally, total: int | None) -> None:
        if on_progress is not None and is_async(on_progress):
            raise TypeError("on_progress must be a plain function; it is called between two records")
        self._call = on_progress
        self._takes_two = on_progress is not None and takes_second(on_progress, "total")
        self._tally = tally
        self._total = total
        self._due = tally.started + _PAUSE

    def tick(self) -> None:
        """Report if the last report is long enough ago."""
        if self._call is not None and time.monotonic() >= self._due:
            self._report(final=False)

    def finish(self) -> None:
        """Report for the last time."""
        self._report(final=True)

    def _report(self, *, final: bool) -> None:
        if self._call is None:
            return
        tally, total = self._tally, self._total
        done, elapsed = tally.done, tally.elapsed
        if self._takes_two:
            self._call(done, total)
        else:
            rate = done / elapsed if elapsed > 0 else 0.0
            remaining = (total - done) / rate if total is not None and rate > 0 else None
            counts = (tally.successful, tally.failed, tally.rejected)
            self._call(Progress(done, total, *counts, elapsed, rate, remaining, final))
        self._due = time.monotonic() + _PAUSE
