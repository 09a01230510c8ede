"""The audit trail: one row for each flight, written when its run has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from examples.flights.tables import UPSERT_AUDIT
from wirestate import Reject
from wirestate.errors import RecordRejectedError

Values = Mapping[str, Any]  # Any: the columns of a row


@dataclass(slots=True)
class Trail:
    """What the states of one run note about it."""

    states: list[str] = field(default_factory=list)
    flight: Values = field(default_factory=dict)
    wanted: bool = True

    def note(self, state: str, flight: Values) -> None:
        """Note that the run is in *state*."""
        self.states.append(state)
        self.flight = flight

    def row(self, error: Exception | None = None) -> dict[str, Any]:
        """Return the row to write, with the outcome that *error* says."""
        return {
            **self.flight,
            "outcome": "failed" if error else "done",
            "final_state": self.states[-1],
            "states": " ".join(self.states),
            "error": type(error).__name__ if error else None,
        }


def follow(db: Any) -> Iterator[Trail]:  # Any: a session with query(), of any driver
    """Lend a trail to one run and write its row; a rejected record leaves none."""
    trail = Trail()
    try:
        yield trail
    except (Reject, RecordRejectedError):
        raise
    except Exception as error:
        if trail.states:
            db.query(UPSERT_AUDIT, **trail.row(error))
        raise
    if trail.wanted:
        db.query(UPSERT_AUDIT, **trail.row())


async def afollow(db: Any) -> AsyncIterator[Trail]:  # Any: as in follow
    """Do the same in an event loop."""
    trail = Trail()
    try:
        yield trail
    except (Reject, RecordRejectedError):
        raise
    except Exception as error:
        if trail.states:
            await db.query(UPSERT_AUDIT, **trail.row(error))
        raise
    if trail.wanted:
        await db.query(UPSERT_AUDIT, **trail.row())
