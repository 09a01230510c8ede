"""What comes back from one record's run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wirestate.errors import RunError, printable
from wirestate.redaction import half_made_too, quoted

Outcome = Literal["done", "failed", "rejected"]
Kind = Literal["error", "reject", "timeout", "limit"]
Phase = Literal[
    "limit", "open", "schema", "validate", "transform", "condition", "arc", "route", "release", "read", "sink"
]


@dataclass(frozen=True, slots=True)
class Caught:
    """An error that a catch arc handled."""

    state: str
    kind: Kind
    error: BaseException
    target: str


class RunResult:
    """The end of one run; frozen, and readable as attributes or ``result["final_state"]``.

    ``success`` is true if the run reached an end whose outcome is success. ``final_state`` is the
    last state entered, ``state`` the failing one or None, ``path`` every state entered in order,
    ``error`` the original exception, ``phase`` where it was raised, ``reasons`` what validators said,
    ``caught`` the errors that catch arcs handled, ``duration`` float seconds.
    """

    # One tuple behind read-only properties: making a result costs 0.2 us, fifteen frozen fields 0.9.
    __slots__ = ("_values",)
    # In this order: outcome, final state, data, path, error, state, phase, reasons, caught, duration,
    # number of the run, owner, position, line, emit.
    _values: tuple[Any, ...]  # Any: one slot for fields of many types; the properties give them back typed

    def __init__(self, values: tuple[Any, ...]) -> None:
        self._values = values

    @property
    def outcome(self) -> Outcome:
        return self._values[0]  # type: ignore[no-any-return]

    @property
    def success(self) -> bool:
        return bool(self._values[0] == "done")

    @property
    def final_state(self) -> str | None:
        return self._values[1]  # type: ignore[no-any-return]

    @property
    def data(self) -> Any:  # Any: the record, of the caller's own type
        return self._values[2]

    @property
    def path(self) -> list[str]:
        return list(self._values[3])

    @property
    def error(self) -> BaseException | None:
        return self._values[4]  # type: ignore[no-any-return]

    @property
    def state(self) -> str | None:
        return self._values[5]  # type: ignore[no-any-return]

    @property
    def phase(self) -> Phase | None:
        return self._values[6]  # type: ignore[no-any-return]

    @property
    def reasons(self) -> tuple[str, ...]:
        return self._values[7]  # type: ignore[no-any-return]

    @property
    def caught(self) -> tuple[Caught, ...]:
        return self._values[8]  # type: ignore[no-any-return]

    @property
    def duration(self) -> float:
        return self._values[9]  # type: ignore[no-any-return]

    @property
    def run_id(self) -> str:
        return run_name(self._values[10])

    @property
    def owner_id(self) -> str:
        owner_id: str | None = self._values[11]
        return run_name(self._values[10]) if owner_id is None else owner_id

    @property
    def position(self) -> int | None:
        """Zero-based position in the batch or source, None for a single record."""
        return self._values[12]  # type: ignore[no-any-return]

    @property
    def line(self) -> int | None:
        """Physical line in the source file where the record starts, if there is one."""
        return self._values[13]  # type: ignore[no-any-return]

    @property
    def steps(self) -> tuple[object, ...]:
        """The history of the run; empty, since this version keeps none."""
        return ()

    @property
    def emit(self) -> bool:
        """False where the end state keeps its records out of the sink."""
        return self._values[14]  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, Any]:  # Any: it holds the record
        """Return the public fields; the error as ``Type: message``."""
        public = {name: getattr(self, name) for name in PUBLIC}
        if self.error is not None:
            public["error"] = quoted(self.error)
        public["caught"] = [{"state": c.state, "kind": c.kind, "error": quoted(c.error)} for c in self.caught]
        return public

    def at(self, position: int | None, line: int | None) -> RunResult:
        """Return this result placed in its source."""
        values = self._values
        return RunResult((*values[:12], position, line, values[14]))

    def __getitem__(self, name: str) -> Any:  # Any: one accessor for fields of many types
        if name in PUBLIC:
            return getattr(self, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(PUBLIC)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunResult) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]  # it holds a record, and records are mutable

    def __reduce__(self) -> tuple[type[RunResult], tuple[tuple[Any, ...]]]:
        # The counter of another process says nothing here: the name is fixed before it travels.
        return RunResult, ((*self._values[:10], self.run_id, self.owner_id, *self._values[12:]),)

    @half_made_too
    def __repr__(self) -> str:
        way = " -> ".join(self.path)
        tail = "" if self.error is None else f", {type(self.error).__name__} in {self.state} ({self.phase})"
        return printable(f"<RunResult {self.outcome}: {way}{tail}>")

    def raise_error(self) -> None:
        """Raise the error of a run that did not succeed."""
        if not self.success:
            raise self.error if self.error is not None else RunError("the run did not succeed")


PUBLIC = (
    "success",
    "outcome",
    "final_state",
    "data",
    "path",
    "error",
    "state",
    "phase",
    "reasons",
    "caught",
    "duration",
    "owner_id",
    "run_id",
    "position",
    "line",
    "steps",
)
Record = Mapping[str, Any]  # Any: a record holds whatever its source holds


class _ProcessMark:
    """The part of a run's name that tells processes apart; a forked child gets its own."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.text = os.urandom(4).hex()


_process_mark = _ProcessMark()


def run_name(number: int | str) -> str:
    """Return the public name of a run: unique over processes, made only when somebody asks."""
    return number if isinstance(number, str) else f"run-{_process_mark.text}{number:x}"


def run_number(name: str) -> int | None:
    """Return the number of the run called *name* if it is one of this process."""
    prefix = f"run-{_process_mark.text}"
    try:
        return int(name.removeprefix(prefix), 16) if name.startswith(prefix) else None
    except ValueError:
        return None
