"""Metrics: a workload of which every number is known is counted truly, for every way in which resources are lent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.conftest import Side
from tests.crews import Crew, Maker, TaskMaker, ThreadMaker, maker_for
from tests.invariant import Invariant
from wirestate import (
    BaseResourceProvider,
    DatabaseResourceAdapter,
    HTTPResourceAdapter,
    PoolConfig,
    ResourceContainer,
    ResourceError,
    ResourceHealth,
    ResourceManager,
    ResourceMetrics,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import PoolTimeoutError, ResourceTimeoutError, ResourceUnavailableError, TooManyWaitingError
from wirestate.resources.measurements import Measurement
from wirestate.resources.meter import FOLD_AT
from wirestate.testing import override

HOLD = 0.02  # seconds


class Native:
    """What a library with a pool of its own says of itself."""

    native_pool = True
    pool_config = PoolConfig(max_size=2, acquire_timeout=5.0)

    def configure_pool(self, config: PoolConfig) -> None:
        self.pool_config = config

    def idle_connections(self) -> int:
        return 1


class NativeThreadMaker(Native, ThreadMaker):
    pass


class NativeTaskMaker(Native, TaskMaker):
    pass


WAYS = ("plain", "pooled", "gated")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def maker(side: Side, way: str, invariant: Invariant) -> Maker:
    native = NativeTaskMaker if side.is_async else NativeThreadMaker
    made: Maker = invariant.watch(native() if way == "gated" else maker_for(side.world))
    return made


@pytest.fixture
def empty(side: Side, invariant: Invariant) -> Iterator[ResourceManager]:
    made: ResourceManager = invariant.watch(ResourceManager())
    yield made
    side.run(side.call(made, "close"))  # here: what belongs to the test's loop can be destroyed only on it


@pytest.fixture
def manager(empty: ResourceManager, maker: Maker, way: str) -> ResourceManager:
    config = None if way == "plain" else PoolConfig(max_size=2, acquire_timeout=5.0)
    empty.register_provider("db", maker, config)
    return empty


def counted(manager: ResourceManager) -> ResourceMetrics:
    found: ResourceMetrics = manager.get_metrics("db")["db"]
    return found


async def use(side: Side, manager: ResourceManager, owner: str) -> None:
    await side.call(manager, "acquire", "db", owner)
    await Crew(side.world).pause(HOLD)
    await side.call(manager, "release", "db", owner)


in_line = pytest.mark.parametrize("way", ["pooled", "gated"], indirect=True)  # nobody waits without a limit


# --- counted workloads ---------------------------------------------------------------------


def test_what_succeeds_is_counted_with_the_time_that_it_took_and_was_held(side: Side, manager: ResourceManager) -> None:
    async def scenario() -> None:
        for number in range(5):
            await use(side, manager, f"owner {number}")
        await side.call(manager, "acquire", "db", "holder")
        await side.call(manager, "acquire", "db", "holder")  # the same lease: no acquisition of its own
        found = counted(manager)
        assert (found.total_acquisitions, found.active_connections) == (6, 1)
        assert (found.failed_acquisitions, found.timeouts, found.refused, found.leaks) == (0, 0, 0, 0)
        assert 5 * HOLD <= found.total_hold_time < 5
        assert HOLD <= found.average_hold_time == found.total_hold_time / 5
        await side.call(manager, "release_all", "holder")
        assert counted(manager).active_connections == 0

    side.run(scenario())


def test_making_a_resource_is_part_of_the_acquisition(side: Side, manager: ResourceManager, maker: Maker) -> None:
    maker.open.clear()
    crew = Crew(side.world)

    async def scenario() -> None:
        waiting = crew.start(side.call(manager, "acquire", "db", "a"))
        await crew.until(lambda: maker.tried == 1)
        await crew.pause(HOLD)
        maker.open.set()
        await waiting.result()
        found = counted(manager)
        assert HOLD <= found.total_acquisition_time == found.average_acquisition_time < 5
        await side.call(manager, "release", "db", "a")

    side.run(scenario())


@in_line
def test_waiting_in_line_is_part_of_the_acquisition(side: Side, manager: ResourceManager) -> None:
    crew = Crew(side.world)

    async def scenario() -> None:
        for owner in "ab":
            await side.call(manager, "acquire", "db", owner)
        line = manager.entry("db").steps()[-1]
        waiting = crew.start(side.call(manager, "acquire", "db", "c"))
        await crew.until(lambda: line.pool_snapshot().waiting == 1)  # type: ignore[union-attr,attr-defined]
        await crew.pause(HOLD)
        await side.call(manager, "release", "db", "a")
        await waiting.result()
        assert HOLD <= counted(manager).total_acquisition_time < 5
        for owner in "bc":
            await side.call(manager, "release", "db", owner)

    side.run(scenario())


def test_a_failure_of_the_provider_is_one_failed_acquisition(
    side: Side, manager: ResourceManager, maker: Maker
) -> None:
    async def scenario() -> None:
        maker.failing = OSError("down")
        for _ in range(3):
            with pytest.raises(ResourceUnavailableError):
                await side.call(manager, "acquire", "db", "a")
        maker.failing = None
        await use(side, manager, "a")
        found = counted(manager)
        assert (found.total_acquisitions, found.failed_acquisitions, found.timeouts) == (1, 3, 0)

    side.run(scenario())


@in_line
def test_a_line_that_is_too_slow_or_too_long_is_counted_as_that(
    side: Side, maker: Maker, empty: ResourceManager
) -> None:
    manager = empty
    manager.register_provider("db", maker, PoolConfig(max_size=1, acquire_timeout=0.05, max_waiting=1))
    crew = Crew(side.world)

    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "holder")
        for _ in range(2):
            with pytest.raises(PoolTimeoutError):
                await side.call(manager, "acquire", "db", "late")
        waiting = crew.start(side.call(manager, "acquire", "db", "patient", 30.0))
        line = manager.entry("db").steps()[-1]
        await crew.until(lambda: line.pool_snapshot().waiting == 1)  # type: ignore[union-attr,attr-defined]
        with pytest.raises(TooManyWaitingError):
            await side.call(manager, "acquire", "db", "refused")
        await side.call(manager, "release", "db", "holder")
        await waiting.result()
        await side.call(manager, "release", "db", "patient")
        found = counted(manager)
        assert (found.total_acquisitions, found.failed_acquisitions) == (2, 3)
        assert (found.timeouts, found.refused) == (2, 1)

    side.run(scenario())


# A blocking library behind a gate keeps its own time, and a plain creation of a pool takes what it needs.
@pytest.mark.parametrize(
    ("side", "way"),
    [("threads", "plain"), ("tasks", "plain"), ("tasks", "pooled"), ("tasks", "gated")],
    indirect=True,
)
def test_a_provider_that_is_too_slow_is_a_timeout(side: Side, manager: ResourceManager, maker: Maker) -> None:
    maker.open.clear()

    async def scenario() -> None:
        with pytest.raises(ResourceTimeoutError):
            await side.call(manager, "acquire", "db", "a", 0.05)
        maker.open.set()
        await Crew(side.world).until(lambda: not maker.creating and not maker.live)
        found = counted(manager)
        assert (found.total_acquisitions, found.failed_acquisitions, found.timeouts) == (0, 1, 1)

    side.run(scenario())


@pytest.mark.parametrize("side", ["tasks"], indirect=True)
def test_who_is_cancelled_has_not_failed(manager: ResourceManager, maker: Maker, side: Side) -> None:
    maker.open.clear()
    crew = Crew(side.world)

    async def scenario() -> None:
        waiting = crew.start(side.call(manager, "acquire", "db", "a"))
        await crew.until(lambda: maker.tried == 1)
        waiting.cancel()
        assert isinstance(await waiting.error(), asyncio.CancelledError)
        assert counted(manager).failed_acquisitions == 0

    side.run(scenario())


def test_failures_of_the_refill_are_no_failed_acquisitions(invariant: Invariant) -> None:
    maker = invariant.watch(ThreadMaker())
    manager: ResourceManager = invariant.watch(ResourceManager())
    manager.register_provider("db", maker, PoolConfig(min_size=1, max_size=2))
    recipe = manager.entry("db").steps()[-1]
    pool = recipe.pool  # type: ignore[attr-defined]
    pool.reap()
    assert maker.made == 1
    with manager.resource_context("db", "a"):
        maker.failing = OSError("down")
        pool.config = PoolConfig(min_size=2, max_size=2)
        pool._refill_at = 0.0
        pool.reap()
    assert pool.snapshot().failures >= 1  # of creations; the upkeep may have tried, too
    found = counted(manager)
    assert (found.total_acquisitions, found.failed_acquisitions, found.created) == (1, 0, 1)


def test_a_pool_s_creations_and_discards_are_counted_by_reason(
    side: Side, empty: ResourceManager, invariant: Invariant
) -> None:
    maker, manager = invariant.watch(maker_for(side.world)), empty
    manager.register_provider("db", maker, PoolConfig(max_size=2, validate_after=1e-9))

    async def scenario() -> None:
        await use(side, manager, "a")
        maker.valid = lambda resource: resource.number != 1
        await use(side, manager, "a")
        found = counted(manager)
        assert (found.created, dict(found.discards)) == (2, {"invalid": 1})
        assert found.total_creation_time == 2 * found.average_creation_time > 0

    side.run(scenario())


@in_line
def test_a_lost_place_is_counted_as_a_leak(side: Side, manager: ResourceManager) -> None:

    async def scenario() -> None:
        recipe = manager.entry("db").steps()[-1]
        line = recipe.pool or recipe.gate  # type: ignore[attr-defined]
        place = await line.take("owner", None, side.world)
        with pytest.warns(ResourceWarning, match="was lost"):
            del place
        assert counted(manager).leaks == 1
        await use(side, manager, "a")  # what was lost is taken back

    side.run(scenario())


def test_a_double_has_numbers_of_its_own_and_those_of_the_real_one_come_back() -> None:
    class Real(BaseResourceProvider):
        def acquire(self, **options: Any) -> str:
            return self.name

    class App(ResourceContainer):
        db = lifetimes.PerOwner(Real)

    def numbers(manager: ResourceManager) -> tuple[int, int]:
        found = counted(manager)
        return found.total_acquisitions, found.active_connections

    with App() as app:
        manager = app.manager
        for owner in "ab":
            with manager.resource_context("db", owner):
                pass
        with override(app, db=Real("double")), manager.resource_context("db", "c"):
            assert numbers(manager) == (1, 1)
        assert numbers(manager) == (2, 0)


def test_counters_stay_small_under_a_machine_s_runs() -> None:
    config = {"states": {"s": {"transform": "same", "resources": ["db"]}}}
    with SimpleFSM(config, functions={"same": lambda record: record}, resources={"db": Steady("db")}) as fsm:
        for _ in range(FOLD_AT + 10):
            assert fsm.process({}).success
        meter = fsm.manager.entry("db").steps()[-1].meter
        assert len(meter.takes) + len(meter.holds) < FOLD_AT
        assert counted(fsm.manager).total_acquisitions == FOLD_AT + 10


class Steady(BaseResourceProvider):
    """Is well, counts, and has a token that no measurement may show."""

    def acquire(self, **options: Any) -> object:
        return object()

    def health_check(self) -> ResourceHealth:
        return ResourceHealth.HEALTHY

    def counters(self) -> Mapping[str, float]:
        return {"gen_ai.client.inference.usage.input_tokens": 12, "hits": 3}


# --- the snapshot --------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[ResourceManager]:
    manager = ResourceManager()
    database = DatabaseResourceAdapter("orders", url=f"sqlite:///{tmp_path / 'db'}", pool=PoolConfig(max_size=3))
    manager.register_provider("orders", database)
    manager.register_provider("pooled", ThreadMaker(), PoolConfig(min_size=1, max_size=4))
    manager.register_provider("steady", Steady("steady"))
    manager.register_provider("api", HTTPResourceAdapter("api", base_url="http://127.0.0.1:1"))
    for owner in ("0wner-one", "0wner-two"):
        manager.acquire("orders", owner)
        manager.acquire("pooled", owner)
        manager.acquire("steady", owner)
    manager.release("orders", "0wner-one")
    manager.release("pooled", "0wner-one")
    with manager.scope("0wner-three") as owner, owner.state("v1sit") as visit:
        visit.resource("steady")
        yield manager
    manager.close()


def values(manager: ResourceManager, name: str) -> dict[str, float]:
    """Return all values of one resource, by name and further attributes."""
    found: dict[str, float] = {}
    for one in manager.snapshot():
        attributes = dict(one["attributes"])
        owner = next(attributes.pop(key) for key in list(attributes) if key.endswith(".pool.name"))
        if owner == name:
            found[" ".join([one["name"], *attributes.values()])] = one["value"]
    return found


def test_databases_are_measured_under_the_names_of_opentelemetry(measured: ResourceManager) -> None:
    found = values(measured, "orders")
    prefix = "db.client.connection"
    assert found[f"{prefix}.count used"] == 1
    assert found[f"{prefix}.count idle"] == 1
    assert found[f"{prefix}.max"] == found[f"{prefix}.idle.max"] == 3
    assert found[f"{prefix}.idle.min"] == found[f"{prefix}.pending_requests"] == found[f"{prefix}.timeouts"] == 0
    assert found[f"{prefix}.wait_time"] > 0
    assert found[f"{prefix}.use_time"] > 0
    assert found["wirestate.resource.acquisitions"] == 2


def test_all_else_is_measured_under_our_names_with_the_same_endings(measured: ResourceManager) -> None:
    found = values(measured, "pooled")
    prefix = "wirestate.resource"
    assert (found[f"{prefix}.count used"], found[f"{prefix}.count idle"]) == (1, 1)
    assert (found[f"{prefix}.max"], found[f"{prefix}.idle.min"]) == (4, 1)
    assert found[f"{prefix}.create_time"] > 0
    found = values(measured, "steady")
    assert found[f"{prefix}.count used"] == 3
    assert f"{prefix}.max" not in found
    assert (found["gen_ai.client.inference.usage.input_tokens"], found[f"{prefix}.hits"]) == (12, 3)
    assert measured.get_metrics("steady")["steady"].counters["hits"] == 3


def test_health_and_breakers_are_measured_as_numbers(measured: ResourceManager) -> None:
    prefix = "wirestate.resource"
    assert values(measured, "steady")[f"{prefix}.health"] == -1
    assert f"{prefix}.health.age" not in values(measured, "steady")
    measured.health_check("steady")
    assert values(measured, "steady")[f"{prefix}.health"] == 1
    assert values(measured, "steady")[f"{prefix}.health.age"] >= 0
    assert values(measured, "api")[f"{prefix}.breaker"] == 1
    breaker = measured.entry("api").steps()[-1].breaker
    assert breaker is not None
    for _ in range(5):
        breaker.failure()
    assert values(measured, "api")[f"{prefix}.breaker"] == 0


UNITS = {
    "count": ("updowncounter", {"{connection}", "{resource}"}),
    "max": ("updowncounter", {"{connection}", "{resource}"}),
    "idle.max": ("updowncounter", {"{connection}", "{resource}"}),
    "idle.min": ("updowncounter", {"{connection}", "{resource}"}),
    "pending_requests": ("updowncounter", {"{request}"}),
    "timeouts": ("counter", {"{timeout}"}),
    "create_time": ("histogram", {"s"}),
    "wait_time": ("histogram", {"s"}),
    "use_time": ("histogram", {"s"}),
}


def test_units_and_attributes_follow_the_conventions(measured: ResourceManager) -> None:
    seen: set[str] = set()
    for one in measured.snapshot():
        prefix = "db.client.connection" if one["name"].startswith("db.") else "wirestate.resource"
        ending = one["name"].removeprefix(f"{prefix}.")
        if ending in UNITS:
            seen.add(ending)
            instrument, units = UNITS[ending]
            assert one["instrument"] == instrument
            assert one["unit"] in units
            assert (one["unit"] == "{connection}") <= (prefix == "db.client.connection")
        assert ("count" in one) is (one["instrument"] == "histogram")
        assert one["attributes"].keys() <= {f"{prefix}.pool.name", f"{prefix}.state", f"{prefix}.reason"}
    assert seen == UNITS.keys()


def test_a_snapshot_is_plain_and_names_no_owner(measured: ResourceManager) -> None:
    text = json.dumps(measured.snapshot())
    assert json.loads(text) == json.loads(text)
    assert "orders" in text
    for owner in ("0wner", "v1sit"):
        assert owner not in text
        assert owner in str(measured.holders())


def test_a_histogram_says_how_many_values_it_sums(measured: ResourceManager) -> None:
    def of(name: str, ending: str) -> Measurement:
        return next(
            one for one in measured.snapshot() if one["name"].endswith(ending) and name in one["attributes"].values()
        )

    assert (of("orders", ".wait_time")["count"], of("orders", ".use_time")["count"]) == (2, 1)
    assert of("pooled", ".create_time")["count"] == 2


def test_a_deferred_provider_is_measured_as_what_it_is() -> None:
    class Made(ThreadMaker):
        def __init__(self, wanted: str) -> None:
            super().__init__()
            self.wanted = wanted

    class App(ResourceContainer):
        text = lifetimes.Singleton(lambda: "text")
        db = lifetimes.PerOwner(Made, text, pool=PoolConfig(max_size=2))

    with App() as app:
        assert counted(app.manager).total_acquisitions == 0
        with app.manager.resource_context("db", "a"):
            assert values(app.manager, "db")["wirestate.resource.max"] == 2
            found = counted(app.manager)
            assert (found.total_acquisitions, found.active_connections, found.created) == (1, 1, 1)


def test_a_provider_that_is_no_child_of_ours_is_measured_without_what_it_does_not_have() -> None:
    with ResourceManager() as manager:
        manager.register_provider("mock", Mock(spec=["acquire", "release", "counters", "measured_as", "breaker"]))
        with manager.resource_context("mock", "a"):
            found = values(manager, "mock")
    assert found["wirestate.resource.acquisitions"] == 1


def test_a_failing_acquire_of_several_is_counted_where_it_failed() -> None:
    good, bad = ThreadMaker(), ThreadMaker()
    bad.failing = OSError("down")
    with ResourceManager() as manager:
        manager.register_provider("good", good)
        manager.register_provider("bad", bad)
        manager.acquire("good", "a")
        with pytest.raises(ResourceError):
            manager.acquire("bad", "a")
        found = manager.get_metrics()
        assert (found["good"].failed_acquisitions, found["bad"].failed_acquisitions) == (0, 1)
