"""What the states of flights.yaml do; each function says by name what it needs, and nobody opens anything."""

from __future__ import annotations

from typing import Any

import httpx
from dependency_injector.wiring import Provide, inject

from examples.flights.audit import Trail
from examples.flights.tables import FIND_AIRLINE_AND_PLANE, FIND_EARLIER, UPSERT_FLIGHT
from wirestate import FunctionContext, Reject
from wirestate.resources.database.sessions import LeasedSession

Flight = dict[str, Any]  # Any: texts at first, then the values of one departure

TEXTS = {"carrier", "tailnum", "origin", "dest", "time_hour"}
WEATHER = ("temp", "wind_speed", "precip", "visib")


def read_values(row: Flight) -> Flight:
    """Turn the texts of a row into values; NA is a missing one."""
    return {name: read_value(name, text) for name, text in row.items()}


def read_value(name: str, text: str) -> str | int | None:
    if text == "NA":
        return None
    if name in TEXTS:
        return text
    try:
        return int(text)
    except ValueError:
        raise Reject(f"{text!r} is no number", field=name) from None


@inject
def note_state(flight: Flight, context: FunctionContext, audit: Trail = Provide["audit"]) -> None:
    """Tell the audit trail where the flight is."""
    audit.note(context.state, flight)


@inject
def look_back(flight: Flight, db: LeasedSession = Provide["database"]) -> Flight:
    """Add the state in which an earlier run ended, None for a flight that is new."""
    found = db.query(FIND_EARLIER, **flight)
    return {**flight, "earlier": found[0]["final_state"] if found else None}


@inject
def leave_no_trail(flight: Flight, audit: Trail = Provide["audit"]) -> None:
    """Keep the audit row of the earlier run."""
    audit.wanted = False


@inject
def add_airline_and_plane(flight: Flight, db: LeasedSession = Provide["database"]) -> Flight:
    """Add what is known about them: many tail numbers are in no register."""
    [known] = db.query(FIND_AIRLINE_AND_PLANE, **flight)
    return {**flight, **known}


@inject
def add_weather(flight: Flight, weather: httpx.Client = Provide["weather"]) -> Flight:
    return flight | read_weather(weather.get(weather_path(flight)))


@inject
def load(flight: Flight, db: LeasedSession = Provide["database"]) -> None:
    """Write the flight; a second time replaces the first."""
    db.query(UPSERT_FLIGHT, **flight)


def weather_path(flight: Flight) -> str:
    return f"/weather/{flight['origin']}/{flight['time_hour']}"


def read_weather(answer: httpx.Response) -> Flight:
    """Return the weather of the hour; the service says 404 where nobody measured it."""
    if answer.status_code == httpx.codes.NOT_FOUND:
        return dict.fromkeys(WEATHER)
    measured = answer.raise_for_status().json()
    return {name: measured[name] for name in WEATHER}
