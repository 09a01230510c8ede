"""What must be in the database before the first flight: the tables, the airlines and the planes."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import Any  # Any: the columns of a row

from sqlalchemy import Table, text

from examples.flights.tables import airlines, metadata, planes, upsert
from wirestate import ResourceManager


def prepare(manager: ResourceManager) -> None:
    """Make the tables that are missing, and load the airlines and planes."""
    with manager.scope("reference") as owner, owner.state("load") as visit:
        db, data = visit.resource("database"), visit.resource("data")
        metadata.create_all(db.connection())
        for table, file in ((airlines, "airlines.csv"), (planes, "planes.csv")):
            with data.open(file, newline="") as lines:
                db.execute(text(upsert(table)), rows_of(table, lines))
    with manager.scope("audit") as owner:
        metadata.create_all(owner.resource("audit_database").connection())


def rows_of(table: Table, lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the rows of a CSV file with the types of the table's columns; NA is a missing value."""
    kinds = {column.name: column.type.python_type for column in table.columns}
    return [
        {name: None if row[name] == "NA" else kind(row[name]) for name, kind in kinds.items()}
        for row in csv.DictReader(lines)
    ]
