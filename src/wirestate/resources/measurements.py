"""What is measured of one resource, as plain values with OpenTelemetry's names and units."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, NotRequired, TypedDict

from wirestate.resources.base import BaseResourceProvider, ResourceHealth, ResourceMetrics
from wirestate.resources.gate import GateSnapshot
from wirestate.resources.pool_config import PoolSnapshot
from wirestate.resources.recipes import Recipe

OWN = BaseResourceProvider.measured_as
# Numbers for what is a word: the better, the higher; what nobody knows is below all.
HEALTH = {
    ResourceHealth.HEALTHY: 1.0,
    ResourceHealth.DEGRADED: 0.5,
    ResourceHealth.UNHEALTHY: 0.0,
    ResourceHealth.UNKNOWN: -1.0,
}
BREAKER = {"closed": 1.0, "half-open": 0.5, "open": 0.0}
Instrument = Literal["updowncounter", "counter", "gauge", "histogram"]


class Measurement(TypedDict):
    """One value at this moment; a histogram has how many values there were (``count``), and their sum (``value``)."""

    name: str
    instrument: Instrument
    unit: str
    value: float
    count: NotRequired[int]
    attributes: dict[str, str]


class _Of(NamedTuple):
    """One resource, and what the names of its measurements begin with."""

    prefix: str
    resource: str

    def one(
        self, what: str, instrument: Instrument, unit: str, value: float, *, count: int | None = None, **labels: str
    ) -> Measurement:
        attributes = {f"{self.prefix}.{key}": text for key, text in labels.items()}
        entry: Measurement = {
            "name": f"{self.prefix}.{what}",
            "instrument": instrument,
            "unit": unit,
            "value": value,
            "attributes": {f"{self.prefix}.pool.name": self.resource, **attributes},
        }
        if count is not None:
            entry["count"] = count
        return entry


def measured(name: str, recipe: Recipe) -> Iterator[Measurement]:
    """Yield all that is measured of the resource called *name*; no attribute tells an owner."""
    counted, lender = recipe.metrics(), recipe.pool_snapshot()
    pool = lender if isinstance(lender, PoolSnapshot | GateSnapshot) else None
    of = _Of(recipe.measured_as, name)
    unit = "{connection}" if of.prefix.endswith(".connection") else "{resource}"
    yield of.one("count", "updowncounter", unit, pool.used if pool else counted.active_connections, state="used")
    if pool is not None:
        most = pool.max_size if isinstance(pool, PoolSnapshot) else pool.limit
        config = recipe.pool_config
        yield of.one("max", "updowncounter", unit, most)
        if recipe.requests is None:  # else what rests is known to the client only
            yield of.one("count", "updowncounter", unit, pool.idle, state="idle")
            yield of.one("idle.max", "updowncounter", unit, most)
            yield of.one("idle.min", "updowncounter", unit, config.min_size if config is not None else 0)
        yield of.one("pending_requests", "updowncounter", "{request}", pool.waiting)
    yield of.one("timeouts", "counter", "{timeout}", counted.timeouts)
    begun, ended = counted.total_acquisitions, counted.total_acquisitions - counted.active_connections
    waited, held = counted.total_acquisition_time, counted.total_hold_time
    if (uses := recipe.requests) is not None:
        begun, ended, waited, held = uses.acquisitions, uses.acquisitions - uses.used, uses.wait_time, uses.hold_time
    yield of.one("wait_time", "histogram", "s", waited, count=begun)
    yield of.one("use_time", "histogram", "s", held, count=ended)
    if recipe.counts_creations:
        yield of.one("create_time", "histogram", "s", counted.total_creation_time, count=counted.created)
    yield from _named_by_us(_Of(OWN, name), recipe, counted)


def _named_by_us(of: _Of, recipe: Recipe, counted: ResourceMetrics) -> Iterator[Measurement]:
    """Yield what OpenTelemetry has no name for."""
    yield of.one("acquisitions", "counter", "{lease}", counted.total_acquisitions)
    yield of.one("failures", "counter", "{lease}", counted.failed_acquisitions)
    yield of.one("refused", "counter", "{lease}", counted.refused)
    yield of.one("leaks", "counter", "{lease}", counted.leaks)
    for reason, times in counted.discards.items():
        yield of.one("discards", "counter", "{resource}", times, reason=reason)
    if recipe.probe is not None:
        yield of.one("health", "gauge", "1", HEALTH[recipe.probe.answer])
        if (age := recipe.probe.age) is not None:
            yield of.one("health.age", "gauge", "s", age)
    if recipe.breaker is not None:
        yield of.one("breaker", "gauge", "1", BREAKER[recipe.breaker.state])
    for what, value in counted.counters.items():
        entry = of.one(what, "counter", "1", value)
        yield {**entry, "name": what} if "." in what else entry
