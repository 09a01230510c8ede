"""Metrics of what pools by itself: connections that an engine makes, requests behind a gate, leaks by the clock."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.crews import PATIENCE, Crew, maker_for
from wirestate import (
    DatabaseResourceAdapter,
    HTTPResourceAdapter,
    Listener,
    PoolConfig,
    ResourceError,
    ResourceManager,
    ResourceMetrics,
)
from wirestate.resources.measurements import Measurement
from wirestate.waiting import BLOCKING, drive

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant


class Leaks(Listener):
    def __init__(self) -> None:
        self.heard: list[str | None] = []

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        self.heard.append(owner_id)


def counted(manager: ResourceManager) -> ResourceMetrics:
    found: ResourceMetrics = manager.get_metrics("db")["db"]
    return found


def measured(manager: ResourceManager, ending: str, **attributes: str) -> Measurement | None:
    found = [
        one
        for one in manager.snapshot()
        if one["name"].endswith(ending) and {*attributes.values()} <= {*one["attributes"].values()}
    ]
    assert len(found) < 2
    return found[0] if found else None


@pytest.mark.parametrize("resource", ["session", "connection", "engine"])
def test_connections_that_an_engine_makes_are_counted_with_the_time_that_it_took(
    side: Side, resource: str, tmp_path: Path, invariant: Invariant
) -> None:
    url = f"sqlite{'+aiosqlite' if side.is_async else ''}:///{tmp_path / 'db'}"
    adapter = DatabaseResourceAdapter("db", url=url, resource=resource)  # type: ignore[arg-type]  # one of them
    manager = invariant.watch(ResourceManager())
    manager.register_provider("db", adapter)

    async def use(owner: str) -> None:
        await side.call(manager, "acquire", "db", owner)
        if resource == "engine":
            engine = manager.get_resource("db", owner)
            if side.is_async:
                async with engine.connect():
                    pass
            else:
                engine.connect().close()

    async def scenario() -> None:
        assert counted(manager).created == 0
        found = measured(manager, "create_time")
        assert found is not None
        assert found.get("count") == 0
        await use("a")
        await side.call(manager, "health_check")  # a probe's connection is none of the pool's
        assert counted(manager).created == 1
        await use("b")
        for owner in ("a", "b"):
            await side.call(manager, "release", "db", owner)
        await use("c")
        made = 1 if resource == "engine" else 2  # what rests is used again
        assert counted(manager).created == made
        assert counted(manager).average_creation_time > 0
        found = measured(manager, "create_time")
        assert found is not None
        assert found["name"] == "db.client.connection.create_time"
        assert (found.get("count"), found["value"]) == (made, counted(manager).total_creation_time)
        await side.call(manager, "close")

    side.run(scenario())


def test_a_connection_that_cannot_be_made_is_not_counted(tmp_path: Path, invariant: Invariant) -> None:
    folder = tmp_path / "db"
    folder.mkdir()
    manager = invariant.watch(ResourceManager())
    manager.register_provider("db", DatabaseResourceAdapter("db", url=f"sqlite:///{folder}"))
    with pytest.raises(ResourceError):
        manager.acquire("db", "a")
    manager.close()
    assert counted(manager).created == 0


@pytest.mark.parametrize("native", [False, True])
def test_a_lease_over_its_threshold_is_a_leak_told_and_counted_once_even_if_it_is_lost_then(
    side: Side, native: bool, invariant: Invariant
) -> None:
    ears, config = Leaks(), PoolConfig(max_size=2, leak_threshold=0.02)
    manager = invariant.watch(ResourceManager(listener=ears))
    maker = maker_for(side.world)
    if native:
        maker.native_pool = True  # type: ignore[attr-defined]
        maker.pool_config = config  # type: ignore[attr-defined]
    manager.register_provider("db", maker, None if native else config)
    recipe = manager.entry("db").steps()[-1]
    line = recipe.pool or recipe.gate

    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "slow")
        place = await line.take("lost", None, side.world)
        await Crew(side.world).until(lambda: len(ears.heard) == 2)
        line.reap()
        assert counted(manager).leaks == 2
        assert recipe.pool_snapshot().leaks == 2
        with pytest.warns(ResourceWarning, match="lease of lost was lost"):
            del place
        assert counted(manager).leaks == 2
        await side.call(manager, "release", "db", "slow")
        assert counted(manager).leaks == 2
        await side.call(manager, "close")

    side.run(scenario())
    assert sorted(map(str, ears.heard)) == ["lost", "slow"]


def test_requests_behind_a_gate_are_measured_as_the_uses_of_their_service(invariant: Invariant) -> None:
    entered, go = threading.Event(), threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        entered.set()
        assert go.wait(PATIENCE)
        return httpx.Response(200)

    config = PoolConfig(max_size=1, acquire_timeout=0.02, leak_threshold=0.02)
    adapter = HTTPResourceAdapter(
        "db", base_url="https://api.test", transport=httpx.MockTransport(answer), pool=config, retry_count=0
    )
    manager = invariant.watch(ResourceManager(listener=(ears := Leaks())))
    manager.register_provider("db", adapter)
    client = manager.acquire("db", "a")
    asking = threading.Thread(target=client.get, args=("/long",))
    asking.start()
    assert entered.wait(PATIENCE)
    assert manager.get_metrics("db_pool")["db_pool"].used == 1
    assert manager.get_resource_status("db")["has_pool"]
    used = measured(manager, ".count", state="used")
    assert used is not None
    assert used["value"] == 1
    with pytest.raises(ResourceError):
        client.get("/late")
    adapter.gate.reap()
    crew = Crew(BLOCKING)
    drive(crew.until(lambda: ears.heard == ["GET /long"]))
    go.set()
    asking.join(PATIENCE)
    client.get("/third")
    found = counted(manager)
    assert (found.total_acquisitions, found.timeouts) == (1, 1)
    drive(crew.until(lambda: counted(manager).leaks == len(ears.heard)))  # a slow third one is a leak, too
    for ending, count in ((".wait_time", 2), (".use_time", 2)):
        one = measured(manager, ending)
        assert one is not None
        assert one.get("count") == count
    most = measured(manager, ".max")
    assert most is not None
    assert most["value"] == 1
    assert measured(manager, ".count", state="idle") is None  # only httpx knows what rests
    manager.close()
