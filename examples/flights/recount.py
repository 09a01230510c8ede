"""Counts what happened to the flights, and counts again: by SQL, and by the file of rejects."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any  # Any: records hold values of many types

from wirestate import ResourceManager, RunResult, StreamSummary
from wirestate.resources.database.sessions import LeasedSession

Stored = Counter[str]
OUTCOMES = ("loaded", "cancelled", "rejected", "failed")


@dataclass(slots=True)
class Counts:
    """What became of the flights of one input: in this run, and (for those done before) in earlier ones."""

    now: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)

    def succeeded(self, record: dict[str, Any], result: RunResult) -> None:
        """Count a flight that reached its end."""
        if result.final_state == "skipped":
            self.before[record["earlier"]] += 1
        else:
            self.now[result.final_state or ""] += 1

    def total(self, state: str) -> int:
        return self.now[state] + self.before[state]

    @property
    def done_before(self) -> int:
        return self.before.total()


def stored(manager: ResourceManager) -> Stored:
    """Count the rows in the database."""
    with manager.scope("recount") as owner, owner.state("count") as visit:
        audit, db = owner.resource("audit_database"), visit.resource("database")
        return Counter(
            loaded=rows_of(audit, "audit WHERE outcome = 'done' AND final_state = 'loaded'"),
            cancelled=rows_of(audit, "audit WHERE outcome = 'done' AND final_state = 'cancelled'"),
            audit=rows_of(audit, "audit"),
            flights=rows_of(db, "flights"),
        )


def rows_of(db: LeasedSession, rows: str) -> int:
    """Return how many *rows* there are: a table, with or without a condition."""
    found: list[dict[str, int]] = db.query(f"SELECT count(*) AS number FROM {rows}")
    return found[0]["number"]


def refused(manager: ResourceManager, file: str) -> Counter[str]:
    """Count the entries of the rejects file by their outcome."""
    with manager.scope("recount") as owner, owner.resource("output").open(file) as lines:
        return Counter(json.loads(line)["outcome"] for line in lines)


def mismatches(
    counts: Counts, summary: StreamSummary, *, added: Stored, after: Stored, entries: Counter[str]
) -> list[str]:
    """Return in words every number that does not agree with another.

    Args:
        counts: what the run counted.
        summary: what the stream counted.
        added: what the run added to the database.
        after: what the database holds now.
        entries: what the rejects file holds.
    """
    agree = {
        "read": (summary.total_processed, sum(counts.total(name) for name in OUTCOMES)),
        "audit rows, loaded": (added["loaded"], counts.now["loaded"]),
        "audit rows, cancelled": (added["cancelled"], counts.now["cancelled"]),
        "rejects, rejected": (entries["rejected"], counts.now["rejected"]),
        "rejects, failed": (entries["failed"], counts.now["failed"]),
    }
    if not summary.stopped:
        # A run killed between its flight and its audit row leaves a flight too many, until it is repeated.
        agree["flights"] = (after["flights"], after["loaded"])
    return [
        f"{name}: {found:,} where {right:,} was expected" for name, (found, right) in agree.items() if found != right
    ]
