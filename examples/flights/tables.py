"""The tables of the example, and the statements that its states run."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, MetaData, String, Table

metadata = MetaData()


def _flight_key() -> list[Column[int] | Column[str]]:
    """What tells one departure from another in this data."""
    numbers = [Column(name, Integer, primary_key=True) for name in ("year", "month", "day", "flight")]
    return [*numbers, Column("carrier", String(2), primary_key=True)]


airlines = Table("airlines", metadata, Column("carrier", String(2), primary_key=True), Column("name", String(60)))
planes = Table(
    "planes",
    metadata,
    Column("tailnum", String(8), primary_key=True),
    *(Column(name, String(40)) for name in ("type", "manufacturer", "model", "engine")),
    *(Column(name, Integer) for name in ("year", "engines", "seats", "speed")),
)
flights = Table(
    "flights",
    metadata,
    *_flight_key(),
    *(Column(name, Integer) for name in ("sched_dep_time", "dep_time", "dep_delay")),
    *(Column(name, Integer) for name in ("sched_arr_time", "arr_time", "arr_delay")),
    *(Column(name, String(8)) for name in ("tailnum", "origin", "dest")),
    *(Column(name, Integer) for name in ("air_time", "distance")),
    Column("time_hour", String(20)),
    Column("airline", String(60)),
    *(Column(name, String(40)) for name in ("manufacturer", "model")),
    Column("seats", Integer),
    *(Column(name, Float) for name in ("temp", "wind_speed", "precip", "visib")),
)
audit = Table(
    "audit",
    metadata,
    *_flight_key(),
    Column("outcome", String(8), nullable=False),
    Column("final_state", String(20), nullable=False),
    Column("states", String(100), nullable=False),
    Column("error", String(200)),
)


def upsert(table: Table) -> str:
    """Insert a row or replace the one with its key, as SQLite and PostgreSQL both say it."""
    names = [column.name for column in table.columns]
    key = [column.name for column in table.primary_key]
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name not in key)
    return (
        f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
    )


UPSERT_AUDIT = upsert(audit)
UPSERT_FLIGHT = upsert(flights)
# Always one row: what is not found is NULL in it.
FIND_AIRLINE_AND_PLANE = (
    "SELECT airlines.name AS airline, manufacturer, model, seats FROM (SELECT 1 AS one) AS flight "
    "LEFT JOIN airlines ON carrier = :carrier LEFT JOIN planes ON tailnum = :tailnum"
)
# A failed flight is tried again, so it does not count as done.
FIND_EARLIER = (
    "SELECT final_state FROM audit WHERE outcome = 'done' AND "
    "year = :year AND month = :month AND day = :day AND carrier = :carrier AND flight = :flight"
)
