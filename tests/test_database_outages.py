"""Databases that restart, break off and fall silent: what is handed out, and when callers hear of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from logging import LogRecord
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError

from tests.crews import Crew
from tests.databases import ASYNC, REMOTE, Database, Driver, named, opened
from tests.invariant import Invariant
from tests.services.private import PrivateServer
from tests.stores import work_machine
from wirestate import PoolConfig, ResourceHealth, ResourceManager, SimpleFSM
from wirestate.errors import CircuitOpenError, ReleaseFailedError, ResourceTimeoutError, ResourceUnavailableError
from wirestate.waiting import BLOCKING, drive

pytestmark = pytest.mark.usefixtures("invariant")

IDENTITY = {"postgresql": "SELECT pg_backend_pid() AS id", "mariadb": "SELECT connection_id() AS id"}
KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}
PATIENCE = 15.0  # seconds; deadlines here are below 2, drivers left alone would wait for minutes


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], PrivateServer]]:
    started: dict[str, PrivateServer] = {}
    with ExitStack() as end:

        def server(kind: str) -> PrivateServer:
            if kind not in started:
                started[kind] = end.enter_context(PrivateServer(kind))
            return started[kind]

        yield server


@pytest.fixture(params=REMOTE, ids=named)
def driver(request: pytest.FixtureRequest) -> Driver:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def server(driver: Driver, servers: Callable[[str], PrivateServer]) -> PrivateServer:
    return servers(driver.server or "")


@pytest.fixture
def database(driver: Driver, server: PrivateServer, tmp_path: Path) -> Iterator[Database]:
    with opened(driver, tmp_path, server.url) as made:
        yield made


class Desk:
    """A manager that lends one database, and what its engine is seen to do."""

    def __init__(self, database: Database, invariant: Invariant, **settings: Any) -> None:
        self.database = database
        self.kind = database.driver.server or ""
        self.adapter = database.adapter(**settings)
        database.made.remove(self.adapter)  # the manager closes it
        self.manager = ResourceManager()
        self.manager.register_provider("db", self.adapter)
        self.connects = 0
        gate = self.manager.entry("db").recipe.gate
        assert gate is not None
        invariant.watch(gate)

    async def acquire(self, owner: str, timeout: float | None = None) -> Any:
        return await self.database.call(self.manager, "acquire", "db", owner, timeout)

    async def release(self, owner: str) -> None:
        await self.database.call(self.manager, "release", "db", owner)

    async def identity(self, session: Any) -> int:
        return int((await self.database.do(session, IDENTITY[self.kind]))[0]["id"])

    async def use(self, owner: str, timeout: float | None = None) -> int:
        """Lease, ask who serves, and give back."""
        identity = await self.identity(await self.acquire(owner, timeout))
        await self.release(owner)
        return identity

    async def rest(self, size: int) -> list[int]:
        """Let *size* connections rest; return who serves them."""
        sessions = [await self.acquire(f"first-{n}") for n in range(size)]
        found = [await self.identity(session) for session in sessions]
        for n in range(size):
            await self.release(f"first-{n}")
        assert self.adapter.idle_connections() == size
        return found

    def count_connects(self) -> None:
        engine = self.adapter._engines.get()
        event.listen(getattr(engine, "sync_engine", engine), "connect", self._connected)

    def _connected(self, *_: object) -> None:
        self.connects += 1

    async def close(self) -> None:
        await self.database.call(self.manager, "close")


@contextmanager
def checks(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], int]]:
    """Count what SQLAlchemy's pool says why it let go of connections."""
    caplog.set_level(logging.INFO, logger="sqlalchemy.pool")
    told = "Disconnection detected"
    yield lambda words: sum(words in text and told in text for text in map(LogRecord.getMessage, caplog.records))


def test_a_server_that_restarted_costs_one_failed_check(
    database: Database, server: PrivateServer, invariant: Invariant, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(found: Callable[[str], int]) -> None:
        desk = Desk(database, invariant, pool=PoolConfig(max_size=8, validate_after=0))
        before = await desk.rest(8)
        desk.count_connects()
        server.restart()
        sessions = [await desk.acquire(f"again-{n}") for n in range(8)]
        for session in sessions:  # all of them work at once
            await desk.identity(session)
        assert found("it is dead") == 1
        assert found("another one that was found dead") == 7
        assert desk.connects == 8
        for n in range(8):
            await desk.release(f"again-{n}")
        assert len(before) == desk.adapter.idle_connections() == 8
        await desk.close()

    with checks(caplog) as found:
        database.run(scenario(found))


def test_a_connection_that_was_made_ahead_is_checked_like_any_other(
    database: Database, server: PrivateServer, invariant: Invariant
) -> None:
    async def scenario() -> None:
        desk = Desk(database, invariant, pool=PoolConfig(min_size=3, max_size=3, validate_after=0))
        desk.adapter._engines.get()  # makes them, and nobody has used one
        await Crew(database.world).until(lambda: desk.adapter.idle_connections() == 3)
        server.restart()
        sessions = [await desk.acquire(f"first-{n}") for n in range(3)]
        for session in sessions:
            await desk.identity(session)
        for n in range(3):
            await desk.release(f"first-{n}")
        await desk.close()

    database.run(scenario())


def test_a_connection_that_dies_in_use_is_discarded_and_its_siblings_are_checked(
    database: Database, invariant: Invariant, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(found: Callable[[str], int]) -> None:
        desk = Desk(database, invariant, pool=PoolConfig(max_size=4, validate_after=300))
        siblings = set(await desk.rest(3))
        session = await desk.acquire("unlucky")
        own = await desk.identity(session)
        siblings.discard(own)
        database.look(KILL[desk.kind].format(own))
        with pytest.raises(DBAPIError):
            await database.do(session, "SELECT n FROM rows")
        with pytest.raises(ReleaseFailedError) as lost:
            await desk.release("unlucky")
        assert "ended before its lease: its connection broke" in str(lost.value.exceptions[0])
        sessions = [await desk.acquire(f"next-{n}") for n in range(2)]
        assert {await desk.identity(session) for session in sessions} == siblings  # alive, hence kept
        for n in range(2):
            await desk.release(f"next-{n}")
        assert found("") == 0
        await desk.close()

    with checks(caplog) as found:
        database.run(scenario(found))


def test_siblings_that_died_too_are_not_handed_out(database: Database, invariant: Invariant) -> None:
    """Used a moment ago, they would be handed out unchecked."""

    async def scenario() -> None:
        desk = Desk(database, invariant, pool=PoolConfig(max_size=4, validate_after=300))
        siblings = set(await desk.rest(4))
        session = await desk.acquire("unlucky")
        for identity in siblings:
            database.look(KILL[desk.kind].format(identity))
        with pytest.raises(DBAPIError) as told:
            await database.do(session, "SELECT n FROM rows")
        with pytest.raises(ReleaseFailedError):
            await desk.release("unlucky")
        assert told.value.connection_invalidated
        sessions = [await desk.acquire(f"next-{n}") for n in range(4)]
        assert not siblings & {await desk.identity(session) for session in sessions}
        for n in range(4):
            await desk.release(f"next-{n}")
        await desk.close()

    database.run(scenario())


def test_a_run_whose_connection_dies_says_in_which_state(database: Database, invariant: Invariant) -> None:
    kind = database.driver.server or ""

    @inject
    def breaks(record: dict[str, Any], db: Any = Provide["db"]) -> None:
        database.look(KILL[kind].format(db.query(IDENTITY[kind])[0]["id"]))
        db.query("SELECT 1")

    @inject
    async def abreaks(record: dict[str, Any], db: Any = Provide["db"]) -> None:
        database.look(KILL[kind].format((await db.query(IDENTITY[kind]))[0]["id"]))
        await db.query("SELECT 1")

    async def scenario() -> None:
        adapter = database.adapter()
        database.made.remove(adapter)
        fsm = SimpleFSM(
            work_machine({"transform": "breaks"}),
            resources={"db": adapter},
            functions={"breaks": abreaks if database.is_async else breaks},
        )
        invariant.watch(fsm.manager)
        result = await database.call(fsm, "process", {})
        assert (result.outcome, result.state, result.phase) == ("failed", "w", "transform")
        assert isinstance(result.error, DBAPIError)
        assert fsm.manager.holders() == []
        await database.call(fsm, "close")

    database.run(scenario())


def test_a_server_that_falls_silent_holds_nobody_longer_than_allowed(
    database: Database, server: PrivateServer, invariant: Invariant
) -> None:
    """A check, a connect and a probe each end at their own deadline."""

    async def timed(work: Any) -> tuple[BaseException | None, float]:
        began = monotonic()
        try:
            await work
        except Exception as error:
            return error, monotonic() - began
        return None, monotonic() - began

    async def scenario() -> None:
        desk = Desk(database, invariant, connect_timeout=1.0, pool=PoolConfig(max_size=2, validate_after=0))
        await desk.rest(1)
        with server.frozen():
            error, took = await timed(desk.acquire("checked"))
            assert isinstance(error, ResourceTimeoutError)
            assert 0.9 < took < PATIENCE
            error, took = await timed(desk.acquire("connected"))
            assert isinstance(error, ResourceTimeoutError)
            assert 0.9 < took < PATIENCE
            error, took = await timed(desk.acquire("hurried", 0.2))
            assert isinstance(error, ResourceTimeoutError)
            assert 0.1 < took < 0.9
            began = monotonic()
            assert await database.call(desk.adapter, "health_check") is ResourceHealth.UNHEALTHY
            assert 0.9 < monotonic() - began < PATIENCE
            assert "no answer within 1 s" in str(desk.adapter.trouble)
        await desk.use("after")  # whole again
        await desk.close()

    database.run(scenario())


def test_a_check_ends_at_the_deadline_of_who_acquires_and_condemns_nothing_else(
    database: Database, server: PrivateServer, invariant: Invariant
) -> None:
    async def scenario() -> None:
        desk = Desk(database, invariant, connect_timeout=30.0, pool=PoolConfig(max_size=2, validate_after=0))
        resting = await desk.rest(2)
        with server.frozen():
            began = monotonic()
            with pytest.raises(ResourceTimeoutError):
                await desk.acquire("hurried", 0.5)
            assert 0.4 < monotonic() - began < PATIENCE
        assert await desk.use("after") in resting
        await desk.close()

    database.run(scenario())


def test_callers_in_a_hurry_do_not_open_the_breaker(
    database: Database, server: PrivateServer, invariant: Invariant
) -> None:
    async def scenario() -> None:
        desk = Desk(database, invariant, pool=PoolConfig(max_size=2, breaker_failures=1))
        with server.frozen():
            for n in range(2):
                with pytest.raises(ResourceTimeoutError):
                    await desk.acquire(f"hurried-{n}", 0.1)
        await desk.use("after")
        await desk.close()

    database.run(scenario())


def test_a_connection_that_is_made_while_its_pool_closes_is_closed(database: Database, server: PrivateServer) -> None:
    """By the upkeep, which nobody waits for."""

    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(min_size=2, max_size=2))
        database.made.remove(adapter)
        crew = Crew(database.world)
        with server.frozen():
            engine = adapter._engines.get()  # the upkeep begins to connect
            pool = getattr(engine, "sync_engine", engine).pool  # type: ignore[union-attr]
            await crew.until(lambda: pool.checkedout() == 1)
            await database.call(adapter, "close")
        await crew.until(lambda: connected_to(database) == 0)
        assert adapter.idle_connections() == 0

    database.run(scenario())


def test_a_server_that_refuses_opens_the_breaker_and_a_probe_closes_it(
    database: Database, server: PrivateServer, invariant: Invariant
) -> None:
    async def scenario() -> None:
        pool = PoolConfig(max_size=2, breaker_failures=2, breaker_reset=0.5, validate_after=300)
        desk = Desk(database, invariant, pool=pool)
        breaker = desk.adapter.breaker
        assert breaker is not None
        await desk.rest(1)
        held = await desk.acquire("holder")
        server.stop()
        for n in range(2):
            with pytest.raises(ResourceUnavailableError):
                await desk.acquire(f"refused-{n}")
        assert breaker.state == "open"
        with pytest.raises(CircuitOpenError, match="the next try is allowed in") as told:
            await desk.acquire("too-early")
        assert 0 < told.value.retry_after <= 0.5
        assert isinstance(told.value.__cause__, Exception)
        server.start()
        with pytest.raises(DBAPIError):
            await database.do(held, "SELECT n FROM rows")
        with pytest.raises(ReleaseFailedError):
            await desk.release("holder")
        await Crew(database.world).until(lambda: breaker.retry_after == 0)
        await desk.use("probe")
        assert breaker.state == "closed"
        await desk.close()

    database.run(scenario())


def test_healthy_connections_are_handed_out_while_the_breaker_is_open(
    servers: Callable[[str], PrivateServer], invariant: Invariant, tmp_path: Path
) -> None:
    """Nor does a place whose connection could not be replaced hide a healthy one."""

    async def scenario(database: Database) -> None:
        autocommit(database, "CREATE DATABASE closing")
        pool = PoolConfig(max_size=3, breaker_failures=1, breaker_reset=60, validate_after=300)
        desk = Desk(database, invariant, url=f"{database.url.rpartition('/')[0]}/closing", pool=pool)
        healthy, doomed = await desk.rest(2)
        database.look("ALTER DATABASE closing WITH ALLOW_CONNECTIONS false")
        sessions = {await desk.identity(session): session for session in [await desk.acquire(n) for n in "ab"]}
        with pytest.raises(ResourceUnavailableError):
            await desk.acquire("new")
        assert desk.adapter.breaker is not None
        assert desk.adapter.breaker.state == "open"
        with pytest.raises(CircuitOpenError):
            await desk.acquire("new")
        owners = dict(zip(sessions, "ab", strict=True))
        await desk.release(owners[healthy])
        database.look(f"SELECT pg_terminate_backend({doomed})")
        with pytest.raises(DBAPIError):
            await database.do(sessions[doomed], "SELECT 1")
        with pytest.raises(ReleaseFailedError):
            await desk.release(owners[doomed])
        assert desk.adapter.idle_connections() == 1
        for _ in range(3):
            assert await desk.use("last") == healthy
        await desk.close()
        autocommit(database, "DROP DATABASE closing")

    with opened(REMOTE[0], tmp_path, servers("postgresql").url) as database:
        database.run(scenario(database))


def connected_to(database: Database) -> int:
    """Count the connections that the server has, without the one that asks."""
    if database.driver.server == "postgresql":
        found = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    else:
        found = "SELECT count(*) FROM information_schema.processlist WHERE user = 'root'"
    return int(database.look(found)[0][0]) - 1


def autocommit(database: Database, statement: str) -> None:
    engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_nothing_stays_connected_after_close(database: Database, invariant: Invariant) -> None:
    async def scenario() -> None:
        desk = Desk(database, invariant, pool=PoolConfig(min_size=3, max_size=4))
        session = await desk.acquire("late")
        await Crew(database.world).until(lambda: connected_to(database) >= 3)
        assert session is not None
        await desk.release("late")
        await desk.close()
        await Crew(database.world).until(lambda: connected_to(database) == 0)

    database.run(scenario())


@pytest.mark.parametrize("driver", ASYNC, ids=named)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:Unclosed:ResourceWarning")
def test_a_loop_that_is_gone_takes_its_connections_with_it(driver: Driver, tmp_path: Path) -> None:
    """Used in a second loop, closed in a third: new connections, and no call into a loop that is closed.

    Python says of the sockets of a closed loop that nobody closed them.
    """
    threads = threading.active_count()
    with opened(driver, tmp_path) as database:
        adapter = database.adapter()
        database.made.remove(adapter)

        async def use(n: int) -> None:
            session = await adapter.aacquire()
            await database.do(session, f"INSERT INTO rows VALUES ({n})")
            await adapter.arelease(session)

        asyncio.run(use(1))
        asyncio.run(use(2))
        assert adapter.idle_connections() == 1
        asyncio.run(adapter.aclose())
        gc.collect()
        assert database.look("SELECT n FROM rows ORDER BY n") == [(1,), (2,)]
        drive(Crew(BLOCKING).until(lambda: threading.active_count() <= threads))


def test_a_close_from_elsewhere_closes_in_the_loop_that_still_runs(
    servers: Callable[[str], PrivateServer], tmp_path: Path
) -> None:
    """A loop in another thread: its connections are closed there, by no other thread."""
    with opened(ASYNC[2], tmp_path, servers("postgresql").url) as database:
        adapter = database.adapter()
        database.made.remove(adapter)
        loop = asyncio.new_event_loop()
        loop.set_debug(True)  # it refuses calls from other threads
        other = threading.Thread(target=loop.run_forever)
        other.start()
        asyncio.run_coroutine_threadsafe(database.lease(adapter), loop).result(PATIENCE)
        asyncio.run(adapter.aclose())
        drive(Crew(BLOCKING).until(lambda: connected_to(database) == 0))
        loop.call_soon_threadsafe(loop.stop)
        other.join(PATIENCE)
        loop.close()


@pytest.mark.parametrize("limit", [1, 3])
def test_so_many_connect_at_once_and_each_only_so_long(driver: Driver, tmp_path: Path, limit: int) -> None:
    """Behind a server that lets connect and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        silent.setblocking(False)
        where = f"127.0.0.1:{silent.getsockname()[1]}"

        async def scenario(database: Database) -> None:
            pool = PoolConfig(max_size=6, max_creating=limit, creation_timeout=0.7)
            adapter = database.adapter(url=f"{driver.scheme}://me@{where}/db", connect_timeout=30, pool=pool)
            crew, began = Crew(database.world), monotonic()
            members = [crew.start(database.call(adapter, "acquire")) for _ in range(6)]
            arrived = 0
            while not all(member.done for member in members):
                try:
                    silent.accept()[0].detach()
                    arrived += 1
                except BlockingIOError:
                    await crew.pause(0.01)
                if monotonic() - began < 0.5:
                    assert arrived <= limit
            errors = [await member.error() for member in members]
            assert all(isinstance(error, ResourceTimeoutError) for error in errors), errors
            assert "connecting took longer than 0.70 s" in str(errors[0])
            assert monotonic() - began < PATIENCE

        database = Database(driver, "", "rows", partial(run_anywhere, driver))
        database.run(scenario(database))
        del tmp_path


def run_anywhere(driver: Driver, work: Any) -> Any:
    return asyncio.run(work) if driver.is_async else drive(work)
