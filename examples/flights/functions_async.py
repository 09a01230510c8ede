"""The same functions for an event loop: those that wait are coroutines, the others are the same."""

from __future__ import annotations

import httpx
from dependency_injector.wiring import Provide, inject

from examples.flights.functions import (
    Flight,
    leave_no_trail,
    note_state,
    read_values,
    read_weather,
    weather_path,
)
from examples.flights.tables import FIND_AIRLINE_AND_PLANE, FIND_EARLIER, UPSERT_FLIGHT
from wirestate.resources.database.sessions import LeasedAsyncSession

__all__ = [
    "add_airline_and_plane",
    "add_weather",
    "leave_no_trail",
    "load",
    "look_back",
    "note_state",
    "read_values",
]


@inject
async def look_back(flight: Flight, db: LeasedAsyncSession = Provide["database"]) -> Flight:
    found = await db.query(FIND_EARLIER, **flight)
    return {**flight, "earlier": found[0]["final_state"] if found else None}


@inject
async def add_airline_and_plane(flight: Flight, db: LeasedAsyncSession = Provide["database"]) -> Flight:
    [known] = await db.query(FIND_AIRLINE_AND_PLANE, **flight)
    return {**flight, **known}


@inject
async def add_weather(flight: Flight, weather: httpx.AsyncClient = Provide["weather"]) -> Flight:
    return flight | read_weather(await weather.get(weather_path(flight)))


@inject
async def load(flight: Flight, db: LeasedAsyncSession = Provide["database"]) -> None:
    await db.query(UPSERT_FLIGHT, **flight)
