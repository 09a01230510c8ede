"""The pool of an engine: sized by the user's settings, filled and thinned out behind, and never beyond its size."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.crews import Crew
from tests.databases import ASYNC, SYNC, Database, Driver, named, opened
from tests.invariant import Invariant
from wirestate import PoolConfig, ResourceManager, container_from_settings
from wirestate.errors import CircuitOpenError, InvalidSettingError, ResourceUnavailableError
from wirestate.resources.database.pool import EnginePool
from wirestate.resources.database.upkeep import KEPT

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture(params=[SYNC[0], ASYNC[0], SYNC[1], ASYNC[2]], ids=named)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with opened(request.param, tmp_path) as made:
        yield made


def pool_of(adapter: Any) -> EnginePool:
    engine = adapter._engines.get()
    pool = (engine.sync_engine if isinstance(engine, AsyncEngine) else engine).pool
    assert isinstance(pool, EnginePool)
    return pool


async def hold(database: Database, adapter: Any, size: int) -> None:
    """Have *size* connections at once, and give them all back."""
    sessions = [await database.call(adapter, "acquire") for _ in range(size)]
    for session in sessions:
        await database.call(adapter, "release", session)


def test_settings_of_the_environment_reach_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables = {
        "URL": f"sqlite:///{tmp_path / 'rows.db'}",
        "POOL__MAX_SIZE": "7",
        "POOL__MIN_SIZE": "3",
        "POOL__MAX_LIFETIME": "1800",
        "POOL__ACQUIRE_TIMEOUT": "2.5",
        "POOL__BREAKER_FAILURES": "4",
        "LOCK_TIMEOUT": "1.5",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"WIRESTATE_RESOURCES__DATABASE__{name}", value)
    container = container_from_settings()
    with container.manager as manager:
        session = manager.acquire("database", "reader")
        pool = session.get_bind().engine.pool
        assert (pool.size(), pool._max_overflow, pool.timeout(), pool._recycle) == (7, 0, 2.5, 1800)
        assert session.query("PRAGMA busy_timeout")[0]["timeout"] == 1500
        manager.release("database", "reader")
        managed: Any = manager.entry("database").steps()[-1]
        assert managed.gate.snapshot().limit == 7
        assert "of 4 failures" in repr(managed.provider.breaker)


def test_min_size_is_filled_in_the_background_and_again_after_a_loss(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(min_size=3, max_size=4, max_idle_time=0.4))
        crew = Crew(database.world)
        await hold(database, adapter, 1)
        await crew.until(lambda: adapter.idle_connections() == 3)
        assert pool_of(adapter).total == 3
        session = await database.call(adapter, "acquire")
        answer = getattr(session, "sync_session", session).leased.invalidate
        if database.is_async:
            await session.run_sync(lambda _: answer())
        else:
            answer()
        await database.call(adapter, "release", session, ValueError())
        await crew.until(lambda: adapter.idle_connections() == 3)

    database.run(scenario())


def test_what_rests_too_long_is_ended_down_to_min_size(database: Database, invariant: Invariant) -> None:
    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(min_size=1, max_size=6, max_idle_time=0.3))
        crew = Crew(database.world)
        await hold(database, adapter, 6)
        await crew.until(lambda: adapter.idle_connections() == 1)
        (kept,) = [entry.dbapi_connection for entry in pool_of(adapter).resting]
        await crew.pause(0.6)
        assert [entry.dbapi_connection for entry in pool_of(adapter).resting] == [kept]
        assert pool_of(adapter).total == 1
        await hold(database, adapter, 6)  # the rights to connect are all there
        assert adapter.idle_connections() <= 6

    database.run(scenario())


def test_expiries_of_connections_made_together_are_spread(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=6, max_lifetime=100))
        await hold(database, adapter, 6)
        expiries = [entry.info[KEPT].expires - entry.info[KEPT].since for entry in pool_of(adapter).resting]
        assert all(89 < seconds <= 100 for seconds in expiries)
        assert max(expiries) - min(expiries) > 0.1

    database.run(scenario())


def test_a_borrowed_connection_outlives_its_lifetime_and_is_replaced_then(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=2, max_lifetime=0.2))
        session = await database.call(adapter, "acquire")
        await database.do(session, "INSERT INTO rows VALUES (1)")
        await Crew(database.world).pause(0.4)
        await database.do(session, "INSERT INTO rows VALUES (2)")
        await database.call(adapter, "release", session)
        await Crew(database.world).until(lambda: adapter.idle_connections() == 0)

    database.run(scenario())
    assert database.look("SELECT n FROM rows ORDER BY n") == [(1,), (2,)]


def test_no_more_connections_than_allowed_whatever_the_upkeep_does(database: Database, invariant: Invariant) -> None:
    """Owners come and go, connections break, rest too long, expire and are filled up."""
    live: set[int] = set()
    made_in_all = most = 0

    def made(connection: object, _: object) -> None:
        """Count a connection, for which this is called again when it is reset."""
        nonlocal made_in_all, most
        made_in_all += id(connection) not in live
        live.add(id(connection))
        most = max(most, len(live))

    def closed(connection: object, _: object) -> None:
        live.discard(id(connection))

    async def scenario() -> None:
        pool = PoolConfig(min_size=2, max_size=4, max_idle_time=0.05, max_lifetime=0.2, validate_after=0)
        adapter = database.adapter(pool=pool)
        database.made.remove(adapter)
        event.listen(pool_of(adapter), "connect", made)
        event.listen(pool_of(adapter), "close", closed)
        manager = ResourceManager()
        manager.register_provider("db", adapter)
        invariant.watch(manager.entry("db").recipe.gate)
        crew = Crew(database.world)

        async def work(seed: int) -> None:
            luck = random.Random(seed)
            for turn in range(12):
                session = await database.call(manager, "acquire", "db", f"{seed}-{turn}", 20.0)
                if luck.random() < 0.2:
                    inner = getattr(session, "sync_session", session)
                    if database.is_async:
                        await session.run_sync(lambda _, inner=inner: inner.leased.invalidate())
                    else:
                        inner.leased.invalidate()
                else:
                    await database.do(session, "SELECT n FROM rows")
                with contextlib.suppress(Exception):
                    await database.call(manager, "release", "db", f"{seed}-{turn}")
                await crew.pause(luck.random() / 50)

        members = [crew.start(work(seed)) for seed in range(8)]
        for member in members:
            await member.result()
        await crew.until(lambda: adapter.idle_connections() == pool_of(adapter).total == 2)
        await database.call(manager, "close")
        await crew.until(lambda: not live)  # the upkeep may have been at work

    database.run(scenario())
    assert 0 < most <= 4 < made_in_all


@pytest.mark.parametrize("driver", [SYNC[0], ASYNC[0]], ids=named)
def test_failing_connects_open_the_breaker_and_one_probe_closes_it(driver: Driver, tmp_path: Path) -> None:
    with opened(driver, tmp_path) as database:
        blocked = tmp_path / "blocked.db"
        blocked.mkdir()

        async def scenario() -> None:
            pool = PoolConfig(max_size=2, breaker_failures=3, breaker_reset=0.3)
            adapter = database.adapter(url=f"{driver.scheme}:///{blocked}", pool=pool)
            for _ in range(3):
                with pytest.raises(ResourceUnavailableError):
                    await database.call(adapter, "acquire")
            with pytest.raises(CircuitOpenError) as told:
                await database.call(adapter, "acquire")
            assert 0 < told.value.retry_after <= 0.3
            assert "unable to open" in str(told.value.__cause__)
            assert adapter.breaker is not None
            assert adapter.breaker.state == "open"
            blocked.rmdir()
            await Crew(database.world).pause(0.4)
            await hold(database, adapter, 1)
            assert adapter.breaker.state == "closed"

        database.run(scenario())


def test_a_refill_that_fails_pauses_longer_and_longer(tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        blocked = tmp_path / "blocked.db"
        blocked.mkdir()
        pool = PoolConfig(min_size=1, max_size=2, max_idle_time=0.2)
        adapter = database.adapter(url=f"sqlite:///{blocked}", pool=pool)
        pool_of(adapter)
        (keeper,) = adapter._engines._keepers
        crew = Crew(database.world)
        await crew.until(lambda: keeper._refill_delay >= 0.4)
        blocked.rmdir()
        await crew.until(lambda: adapter.idle_connections() == 1)
        assert keeper._refill_delay == 0

    with opened(SYNC[0], tmp_path) as database:
        database.run(scenario(database))


def test_a_pool_setting_that_cannot_be_honoured_is_refused_by_name(database: Database) -> None:
    with pytest.raises(InvalidSettingError, match="'leak_threshold' cannot be honoured"):
        database.adapter(resource="engine", pool=PoolConfig(leak_threshold=5))


def test_two_loops_share_one_adapter_and_each_its_own_connections(tmp_path: Path) -> None:
    with opened(ASYNC[2], tmp_path) as database:
        adapter = database.adapter(pool=PoolConfig(max_size=2, min_size=1))
        database.made.remove(adapter)

        async def use(n: int) -> int:
            session = await adapter.aacquire()
            await database.do(session, f"INSERT INTO rows VALUES ({n})")
            await adapter.arelease(session)
            engine = adapter._engines.get()
            assert isinstance(engine, AsyncEngine)
            await engine.dispose()
            return id(engine)

        assert asyncio.run(use(1)) != asyncio.run(use(2))
        asyncio.run(adapter.aclose())
        assert database.look("SELECT n FROM rows ORDER BY n") == [(1,), (2,)]
