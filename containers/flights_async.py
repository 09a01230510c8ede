"""What stands behind the same names when the flights run in an event loop."""

from __future__ import annotations

from containers.flights import FlightsContainer
from examples.flights.audit import afollow
from wirestate import HTTPResourceAdapter, lifetimes


class AsyncFlightsContainer(FlightsContainer):
    """Give it the URL of an asynchronous driver: ``sqlite+aiosqlite:///flights.db``."""

    audit = lifetimes.PerOwner(afollow, FlightsContainer.audit_database)
    weather = lifetimes.Singleton(
        HTTPResourceAdapter, base_url=FlightsContainer.settings.provided.weather_url, async_client=True
    )
