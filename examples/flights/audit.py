"""The audit trail: one row for each flight, written when its run has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from examples.flights.tables import UPSERT_AUDIT
from wirestate import Reject
from wirestate.errors import RecordRejectedError
from wirestate.resources.database.sessions import LeasedAsyncSession, LeasedSession

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

    def rows(self, error: Exception | None = None) -> list[dict[str, Any]]:
        """Return the row to write at the end of the run, or none: a rejected record leaves no trail."""
        if not self.wanted or not self.states or isinstance(error, Reject | RecordRejectedError):
            return []
        return [
            {
                **self.flight,
                "outcome": "failed" if error else "done",
                "final_state": self.states[-1],
                "states": " ".join(self.states),
                "error": type(error).__name__ if error else None,
            }
        ]


def follow(db: LeasedSession) -> Iterator[Trail]:
    """Lend a trail to one run, and write it down when the run ends, well or with an error."""
    trail = Trail()
    try:
        yield trail
    except Exception as error:
        for row in trail.rows(error):
            db.query(UPSERT_AUDIT, **row)
        raise
    for row in trail.rows():
        db.query(UPSERT_AUDIT, **row)


async def afollow(db: LeasedAsyncSession) -> AsyncIterator[Trail]:
    """Do the same in an event loop."""
    trail = Trail()
    try:
        yield trail
    except Exception as error:
        for row in trail.rows(error):
            await db.query(UPSERT_AUDIT, **row)
        raise
    for row in trail.rows():
        await db.query(UPSERT_AUDIT, **row)
