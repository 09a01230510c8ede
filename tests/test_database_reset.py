"""What one database lease does to its connection, by every driver: the next lease sees nothing of it."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject
from sqlalchemy import Engine, Sequence, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import Pool

from tests.databases import ASYNC, DRIVERS, REMOTE, SYNC, Database, Driver, database, named, opened
from tests.stores import work_machine
from wirestate import DatabaseResourceAdapter, PoolConfig, ResourceContainer, SimpleFSM, lifetimes, manager_of
from wirestate.errors import ResourceUnavailableError

pytestmark = pytest.mark.usefixtures("invariant")

__all__ = ["database"]  # a fixture

POSTGRESQL = [driver for driver in REMOTE if driver.server == "postgresql"]
MARIADB = [driver for driver in REMOTE if driver.server == "mariadb"]
ENDINGS = {"committed": None, "failed": ValueError(), "cancelled": asyncio.CancelledError()}
IDENTITY: dict[str | None, str] = {
    "postgresql": "SELECT pg_backend_pid() AS id",
    "mariadb": "SELECT connection_id() AS id",
}

# What a lease does, and the question by which the next one would see it.
TRACES: dict[str | None, dict[str, tuple[list[str], str]]] = {
    "postgresql": {
        "set_config": (
            ["SELECT set_config('app.tenant', 'one', false)"],
            "SELECT coalesce(current_setting('app.tenant', true), '') AS x",
        ),
        "search_path": (["SET search_path = pg_temp"], "SELECT current_setting('search_path') AS x"),
        "read-only": (["SET default_transaction_read_only = on"], "SHOW transaction_read_only"),
        "isolation": (
            ["SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"],
            "SHOW transaction_isolation",
        ),
        "time zone": (["SET TIME ZONE 'Asia/Tokyo'"], "SHOW TimeZone"),
        "encoding": (["SET client_encoding = 'LATIN1'"], "SHOW client_encoding"),
        "temporary table": (["CREATE TEMP TABLE mine (n integer)"], "SELECT to_regclass('pg_temp.mine') AS x"),
        "temporary function": (
            ["CREATE FUNCTION pg_temp.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'"],
            "SELECT to_regproc('pg_temp.mine') AS x",
        ),
        "advisory lock": (
            ["SELECT pg_advisory_lock(4711, pg_backend_pid())", "SELECT pg_advisory_lock_shared(4712)"],
            "SELECT count(*) AS x FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        "listen": (["LISTEN news"], "SELECT count(*) AS x FROM pg_listening_channels()"),
        "cursor": (
            ["DECLARE mine CURSOR WITH HOLD FOR SELECT 1"],
            "SELECT count(*) AS x FROM pg_cursors WHERE name = 'mine'",
        ),
        "role": (["SET ROLE pg_monitor"], "SELECT current_user AS x"),
        "authorization": (["SET SESSION AUTHORIZATION pg_monitor"], "SELECT session_user AS x"),
        "currval": (["CREATE TEMP SEQUENCE mine", "SELECT nextval('mine')"], "SELECT lastval() AS x"),
        "timeout": (["SET statement_timeout = 0", "SET lock_timeout = 0"], "SHOW statement_timeout"),
    },
    "mariadb": {
        "user variable": (["SET @tenant = 1"], "SELECT @tenant AS x"),
        "sql_mode": (["SET sql_mode = 'ANSI_QUOTES'"], "SELECT @@sql_mode AS x"),
        "read-only": (["SET SESSION TRANSACTION READ ONLY"], "SELECT @@tx_read_only AS x"),
        "isolation": (["SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"], "SELECT @@tx_isolation AS x"),
        "autocommit": (["SET autocommit = 1"], "SELECT @@autocommit AS x"),
        "time zone": (["SET time_zone = '+09:00'"], "SELECT @@time_zone AS x"),
        "charset": (
            ["SET NAMES latin1 COLLATE latin1_german1_ci"],
            "SELECT concat(@@character_set_client, @@character_set_results, @@collation_connection) AS x",
        ),
        "temporary table": (["CREATE TEMPORARY TABLE mine (n integer)"], "SELECT count(*) AS x FROM mine"),
        "lock": (
            ["SELECT GET_LOCK(concat('mine', connection_id()), 0)"],
            "SELECT IS_USED_LOCK(concat('mine', connection_id())) AS x",
        ),
        "last id": (["SELECT LAST_INSERT_ID(42)"], "SELECT LAST_INSERT_ID() AS x"),
        "prepared": (["PREPARE mine FROM 'SELECT 1'"], "EXECUTE mine"),
        "database": (["USE information_schema"], "SELECT DATABASE() AS x"),
        "behind a comment": (["# now\n/* or then */ -- at last\nUSE information_schema"], "SELECT DATABASE() AS x"),
        "in a comment": (["/*!50000 USE information_schema */"], "SELECT DATABASE() AS x"),
        "database of a block": (
            ["IF 1 THEN EXECUTE IMMEDIATE 'USE information_schema'; END IF"],
            "SELECT DATABASE() AS x",
        ),
        **{
            f"role by {statement}": ([statement], "SELECT CURRENT_ROLE() AS x")
            for statement in (
                "SET ROLE wirestate_reset",
                "IF 1 THEN SET ROLE wirestate_reset; END IF",
                "FOR i IN (SELECT 1) DO SET ROLE wirestate_reset; END FOR",
                "CASE 1 WHEN 1 THEN SET ROLE wirestate_reset; END CASE",
                "REPEAT SET ROLE wirestate_reset; UNTIL 1 END REPEAT",
                "EXECUTE IMMEDIATE 'SET ROLE wirestate_reset'",
                "/*!50000 SET ROLE wirestate_reset */",
                "CALL wirestate_take_role()",
                "SELECT wirestate_role()",
            )
        },
        "checks": (["SET foreign_key_checks = 0, unique_checks = 0"], "SELECT @@foreign_key_checks AS x"),
        "timeout": (["SET max_statement_time = 0"], "SELECT @@max_statement_time AS x"),
    },
    None: {
        "read-only": (["PRAGMA query_only = ON"], "PRAGMA query_only"),
        "behind a comment": (["/* now */ -- then\n ; PRAGMA query_only = ON"], "PRAGMA query_only"),
        "explained": (["EXPLAIN PRAGMA query_only = ON"], "PRAGMA query_only"),
        "foreign keys": (["PRAGMA recursive_triggers = ON"], "PRAGMA recursive_triggers"),
        "attached": (["ATTACH ':memory:' AS mine"], "SELECT count(*) AS x FROM pragma_database_list"),
        "temporary table": (["CREATE TEMP TABLE mine (n integer)"], "SELECT count(*) AS x FROM sqlite_temp_master"),
        "temporary view": (
            ["create\ttemporary view mine AS SELECT 1"],
            "SELECT count(*) AS x FROM sqlite_temp_master",
        ),
        "table of temp": (
            ['CREATE TABLE IF NOT EXISTS "temp" . mine (n integer)'],
            "SELECT count(*) AS x FROM sqlite_temp_master",
        ),
    },
}


@contextmanager
def on(driver: Driver, folder: Path) -> Iterator[Database]:
    """Open a database, on MariaDB with a role that can be taken."""
    with opened(driver, folder) as made:
        if driver.server == "mariadb":
            made.look("CREATE OR REPLACE ROLE wirestate_reset")
            made.look("CREATE OR REPLACE PROCEDURE wirestate_take_role() SET ROLE wirestate_reset")
            made.look(
                "CREATE OR REPLACE FUNCTION wirestate_role() RETURNS INTEGER "
                "BEGIN SET ROLE wirestate_reset; RETURN 1; END"
            )
        try:
            yield made
        finally:
            if driver.server == "mariadb":
                made.look("DROP PROCEDURE wirestate_take_role")
                made.look("DROP FUNCTION wirestate_role")
                made.look("DROP ROLE wirestate_reset")


@pytest.fixture(params=REMOTE, ids=named)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with opened(request.param, tmp_path) as made:
        yield made


async def execute(lease: Any, statement: str) -> Any:
    """Run SQL text by a session or a connection, of either world."""
    answer = lease.execute(text(statement))
    answer = await answer if asyncio.iscoroutine(answer) else answer
    return [tuple(row) for row in answer] if answer.returns_rows else []


async def seen(database: Database, adapter: Any, question: str) -> Any:
    """Return the answer that a lease of its own gets, be it an error."""
    lease = await database.call(adapter, "acquire")
    answer: Any = None
    error: BaseException | None = None
    try:
        answer = await execute(lease, question)
    except DBAPIError as failure:
        answer, error = type(failure.orig).__name__, failure
    await database.call(adapter, "release", lease, error)
    return answer


async def lease_with(
    database: Database, adapter: Any, statements: list[str], error: BaseException | None = None
) -> None:
    lease = await database.call(adapter, "acquire")
    for statement in statements:
        await execute(lease, statement)
    await database.call(adapter, "release", lease, error)


async def driver_of(database: Database, session: Any) -> Any:
    """Return the driver's own connection, as SQLAlchemy's users reach for it."""
    if not database.is_async:
        return session.connection().connection.driver_connection
    return (await (await session.connection()).get_raw_connection()).driver_connection


# --- nothing is seen ----------------------------------------------------------------------------


@pytest.mark.parametrize("resource", ["session", "connection"])
@pytest.mark.parametrize("driver", DRIVERS, ids=named)
def test_nothing_that_a_lease_set_is_seen_by_the_next(driver: Driver, resource: str, tmp_path: Path) -> None:
    settings = {"resource": resource, "statement_timeout": 30.0, "pool": PoolConfig(max_size=1)}

    async def scenario(database: Database) -> list[str]:
        adapter, found = database.adapter(**settings), []
        for trace, (statements, question) in TRACES[driver.server].items():
            clean = await seen(database, adapter, question)
            for how, error in ENDINGS.items():
                await lease_with(database, adapter, statements, error)
                if await seen(database, adapter, question) != clean:
                    found.append(f"{trace} of a lease that {how}")
        return found

    with on(driver, tmp_path) as database:
        assert database.run(scenario(database)) == []


@pytest.mark.parametrize("driver", DRIVERS, ids=named)
def test_a_transaction_reset_leaves_all_of_it(driver: Driver, tmp_path: Path) -> None:
    """Which also proves that each of the traces above would be seen."""

    async def scenario(database: Database) -> list[str]:
        found = []
        for trace, (statements, question) in TRACES[driver.server].items():
            adapter = database.adapter(reset="transaction", statement_timeout=30.0, pool=PoolConfig(max_size=1))
            clean = await seen(database, adapter, question)
            await lease_with(database, adapter, statements)
            if await seen(database, adapter, question) == clean:
                found.append(trace)
            await database.call(adapter, "close")
        return found

    with on(driver, tmp_path) as database:
        assert database.run(scenario(database)) == []


def test_what_was_done_with_the_drivers_own_connection_is_not_seen_by_the_next(database: Database) -> None:
    """No statement shows it, so that connection ends with the lease."""

    async def change(driver: Any) -> None:
        if "asyncpg" in database.driver.scheme:
            await driver.add_listener("news", lambda *_: None)
        elif database.driver.server == "postgresql":
            driver.add_notify_handler(lambda _: None)
        elif database.driver.server == "mariadb":
            driver.decoders = {}
        else:
            function = driver.create_function("mine", 0, lambda: 1)
            assert function is None or await function is None

    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        session = await database.call(adapter, "acquire")
        before = await driver_of(database, session)
        await change(before)
        await database.call(adapter, "release", session)
        if database.driver.is_sqlite:
            assert await seen(database, adapter, "SELECT mine()") == "OperationalError"
        session = await database.call(adapter, "acquire")
        assert await driver_of(database, session) is not before
        await database.call(adapter, "release", session)

    database.run(scenario())


def test_what_a_lease_noted_of_its_connection_is_not_seen_by_the_next(database: Database) -> None:
    async def info_of(session: Any) -> Any:
        return (await session.connection()).info if database.is_async else session.connection().info

    async def scenario() -> None:
        adapter = database.adapter(statement_timeout=30.0, pool=PoolConfig(max_size=1))
        for error in ENDINGS.values():
            session = await database.call(adapter, "acquire")
            info = await info_of(session)
            assert "tenant" not in info
            info["tenant"] = "one"
            await database.do(session, "SELECT n FROM rows")
            await database.call(adapter, "release", session, error)
        assert adapter.creations()[0] == 1  # for which no connection is closed

    database.run(scenario())


@pytest.mark.parametrize("driver", SYNC, ids=named)
def test_what_a_lost_lease_set_is_not_seen_by_the_next(driver: Driver, tmp_path: Path) -> None:
    trace = {None: "read-only", "postgresql": "advisory lock", "mariadb": "user variable"}[driver.server]
    statements, question = TRACES[driver.server][trace]
    with opened(driver, tmp_path) as database:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        clean = database.run(seen(database, adapter, question))
        session = adapter.acquire()
        for statement in statements:
            session.execute(text(statement))
        del session
        gc.collect()
        assert database.run(seen(database, adapter, question)) == clean


@pytest.mark.parametrize("driver", [driver for driver in ASYNC if driver.server], ids=named)
def test_what_a_cancelled_statement_held_is_not_seen_by_the_next(driver: Driver, tmp_path: Path) -> None:
    trace, sleep = {"postgresql": ("advisory lock", "SELECT pg_sleep(30)"), "mariadb": ("lock", "SELECT SLEEP(30)")}[
        driver.server or ""
    ]
    statements, question = TRACES[driver.server][trace]

    async def scenario(database: Database) -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        clean = await seen(database, adapter, question)
        inside = asyncio.Event()

        async def body() -> None:
            session = await adapter.aacquire()
            try:
                for statement in statements:
                    await execute(session, statement)
                inside.set()
                await execute(session, sleep)
            except BaseException as error:
                await adapter.arelease(session, error)
                raise

        task = asyncio.create_task(body())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await seen(database, adapter, question) == clean

    with opened(driver, tmp_path) as database:
        database.run(scenario(database))


@pytest.mark.parametrize("driver", POSTGRESQL, ids=named)
def test_a_sequence_asked_alone_is_not_seen_by_the_next(driver: Driver, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        session = await database.call(adapter, "acquire")
        number = session.scalar(Sequence(f"s_{database.table}"))
        assert (await number if database.is_async else number) == 1
        await database.call(adapter, "release", session)
        assert await seen(database, adapter, "SELECT lastval()") in ("ObjectNotInPrerequisiteState", "Error")

    with opened(driver, tmp_path) as database:
        database.look("CREATE SEQUENCE s_rows")
        try:
            database.run(scenario(database))
        finally:
            database.look("DROP SEQUENCE s_rows")


@pytest.mark.parametrize(
    "statement",
    ["DEALLOCATE ALL", "/* now */ deallocate all", "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"],
)
@pytest.mark.parametrize("driver", POSTGRESQL, ids=named)
def test_what_the_driver_prepared_can_be_used_after_a_lease_took_it_away(
    driver: Driver, statement: str, tmp_path: Path
) -> None:
    async def scenario(database: Database) -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        for _ in range(8):  # psycopg prepares what comes often
            await seen(database, adapter, "SELECT 1 AS x")
        await lease_with(database, adapter, [statement])
        for _ in range(2):
            assert await seen(database, adapter, "SELECT 1 AS x") == [(1,)]

    with opened(driver, tmp_path) as database:
        database.run(scenario(database))


@pytest.mark.parametrize("lifetime", [lifetimes.PerState, lifetimes.PerOwner])
@pytest.mark.parametrize("driver", [SYNC[0], SYNC[1], ASYNC[2]], ids=named)
def test_what_one_run_set_is_not_seen_by_the_next(driver: Driver, lifetime: Any, tmp_path: Path) -> None:
    statements, question = TRACES[driver.server]["set_config" if driver.server else "read-only"]

    @inject
    def blocking(record: dict[str, Any], db: Any = Provide["db"]) -> dict[str, Any]:
        found = db.execute(text(question)).scalar()
        for statement in statements:
            db.execute(text(statement))
        return {"found": found}

    @inject
    async def suspending(record: dict[str, Any], db: Any = Provide["db"]) -> dict[str, Any]:
        found = (await db.execute(text(question))).scalar()
        for statement in statements:
            await db.execute(text(statement))
        return {"found": found}

    async def scenario(database: Database) -> list[Any]:
        class Shop(ResourceContainer):
            db = lifetime(DatabaseResourceAdapter, url=database.url, pool=PoolConfig(max_size=1))

        shop = Shop()
        transform = suspending if driver.is_async else blocking
        fsm = SimpleFSM(work_machine({"transform": "look"}), container=shop, functions={"look": transform})
        results = [await database.call(fsm, "process", {}) for _ in range(2)]
        await database.call(fsm, "close")
        await database.call(manager_of(shop), "close")
        return [result.data["found"] for result in results]

    with opened(driver, tmp_path) as database:
        first, second = database.run(scenario(database))
        assert first == second


# --- how a connection comes back ----------------------------------------------------------------


@contextmanager
def hooked(hook: Any) -> Iterator[None]:
    """Call *hook* for each new connection of each engine, as applications do."""
    event.listen(Pool, "connect", hook)
    try:
        yield
    finally:
        event.remove(Pool, "connect", hook)


HOOKS = {
    None: ("PRAGMA recursive_triggers = ON", "PRAGMA recursive_triggers", "PRAGMA recursive_triggers = OFF"),
    "postgresql": ("SET application_name = 'hooked'", "SHOW application_name", "SET application_name = 'other'"),
    "mariadb": ("SET @hooked = 'hooked'", "SELECT @hooked AS x", "SET @hooked = 'other'"),
}


@pytest.mark.parametrize("error", [None, ValueError()])
def test_the_users_connect_hooks_hold_for_each_lease(database: Database, error: BaseException | None) -> None:
    setting, question, change = HOOKS[database.driver.server]

    def hook(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(setting)
        cursor.close()

    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        await seen(database, adapter, question)
        for _ in range(2):
            hooked_to = await seen(database, adapter, question)
            assert hooked_to in ([(1,)], [("hooked",)])
            await lease_with(database, adapter, [change], error)

    with hooked(hook):
        database.run(scenario())


def test_a_lease_that_sent_no_statement_is_not_reset(remote: Database) -> None:
    calls: list[object] = []

    async def scenario() -> None:
        adapter = remote.adapter(pool=PoolConfig(max_size=1))
        await remote.lease(adapter)
        assert len(calls) == 1  # it connected
        await remote.lease(adapter, error=ValueError())
        assert len(calls) == 1
        await remote.lease(adapter, "SELECT 1")
        assert len(calls) == 2
        assert adapter.creations()[0] == 1

    with hooked(lambda connection, record: calls.append(record)):
        remote.run(scenario())


def test_sqlite_keeps_a_connection_on_which_nothing_stays(tmp_path: Path) -> None:
    for driver in DRIVERS:
        if driver.is_sqlite:
            with opened(driver, tmp_path) as database:
                adapter = database.adapter(pool=PoolConfig(max_size=1))
                for number in range(3):
                    database.run(database.lease(adapter, f"INSERT INTO rows VALUES ({number})"))
                assert adapter.creations()[0] == 1
                database.run(database.lease(adapter, "PRAGMA query_only"))
                database.run(database.lease(adapter, "SELECT n FROM rows"))
                assert adapter.creations()[0] == 2


def test_a_lease_that_could_not_begin_costs_no_connection(tmp_path: Path) -> None:
    with opened(SYNC[0], tmp_path) as database:
        adapter = database.adapter(begin="IMMEDIATE", busy_timeout=0, pool=PoolConfig(max_size=2))
        first = adapter.acquire()
        for _ in range(3):
            with pytest.raises(ResourceUnavailableError, match="locked"):
                adapter.acquire()
        adapter.release(first)
        assert adapter.creations()[0] == 2


def test_comments_before_a_statement_cost_no_time(tmp_path: Path) -> None:
    """A search that goes back in them takes twice as long with each comment more: for ever, with sixty."""
    with opened(SYNC[0], tmp_path) as database:
        database.run(database.lease(database.adapter(), "/* one */ " * 60 + "SELECT 1"))


def test_a_reset_that_fails_costs_the_connection_and_nothing_else(
    remote: Database, caplog: pytest.LogCaptureFixture
) -> None:
    fails = False

    def hook(connection: object, record: object) -> None:
        if fails:
            raise ValueError("no more: postgresql://anna:sesame@host/db")

    async def scenario() -> None:
        nonlocal fails
        adapter = remote.adapter(pool=PoolConfig(max_size=1, acquire_timeout=5.0))
        before = await seen(remote, adapter, IDENTITY[remote.driver.server])
        fails = True
        await remote.lease(adapter, "INSERT INTO rows VALUES (1)")  # is not told
        fails = False
        assert await seen(remote, adapter, IDENTITY[remote.driver.server]) != before

    with hooked(hook):
        remote.run(scenario())
    assert remote.look("SELECT n FROM rows") == [(1,)]
    told = [record.getMessage() for record in caplog.records if record.name == "wirestate.resources"]
    assert told == [
        "pool 'db': a connection could not be reset, and is closed: ValueError: no more: postgresql://host/db; "
        "see reset= of the adapter"
    ]
    assert "sesame" not in caplog.text


def test_a_lease_after_a_reset_rolls_back(database: Database) -> None:
    """The reset of MariaDB's protocol switches autocommit on."""

    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        for number in range(3):
            await database.lease(adapter, f"INSERT INTO rows VALUES ({number})", error=ValueError())
        assert adapter.creations()[0] == 1

    database.run(scenario())
    assert database.look("SELECT n FROM rows") == []


def test_an_isolation_level_holds_for_each_lease(remote: Database) -> None:
    question = {"postgresql": "SHOW transaction_isolation", "mariadb": "SELECT lower(@@tx_isolation) AS x"}

    async def scenario() -> None:
        adapter = remote.adapter(isolation_level="serializable", pool=PoolConfig(max_size=1))
        for _ in range(3):
            found = await seen(remote, adapter, question[remote.driver.server or ""])
            assert found == [("serializable",)]
        assert adapter.creations()[0] == 1

    remote.run(scenario())


def test_a_limit_that_a_lease_lifted_holds_for_the_next(remote: Database) -> None:
    lift, sleep = {
        "postgresql": ("SET statement_timeout = 0", "SELECT pg_sleep(30)"),
        "mariadb": ("SET max_statement_time = 0", "SELECT SLEEP(30)"),
    }[remote.driver.server or ""]

    async def scenario() -> None:
        adapter = remote.adapter(statement_timeout=0.2, pool=PoolConfig(max_size=1))
        await lease_with(remote, adapter, [lift])
        session = await remote.call(adapter, "acquire")
        with pytest.raises(DBAPIError, match="statement_timeout of resource 'db'") as told:
            await remote.do(session, sleep)
        await remote.call(adapter, "release", session, told.value)

    remote.run(scenario())


@pytest.mark.parametrize("driver", MARIADB, ids=named)
def test_what_connecting_to_mariadb_set_holds_for_each_lease(driver: Driver, tmp_path: Path) -> None:
    """As said in connect_args: the protocol's reset knows nothing of it."""
    names = {"charset": "latin1", "init_command": "SET @mine = 7"}
    names["sql_mode"] = "ANSI_QUOTES" if driver.scheme.endswith("pymysql") else "'ANSI_QUOTES'"
    question = "SELECT @mine, @@sql_mode, @@character_set_client, @@collation_connection"

    async def scenario(database: Database) -> None:
        adapter = database.adapter(connect_args=names, pool=PoolConfig(max_size=1))
        connected = await seen(database, adapter, question)
        assert connected == [(7, "ANSI_QUOTES", "latin1", "latin1_swedish_ci")]
        await lease_with(database, adapter, ["SET @mine = 8, sql_mode = '', NAMES utf8mb4"])
        assert await seen(database, adapter, question) == connected
        assert adapter.creations()[0] == 1

    with opened(driver, tmp_path) as database:
        database.run(scenario(database))


def test_postgresql_is_reset_in_one_round_trip(tmp_path: Path) -> None:
    def trips(database: Database, reset: Any) -> int:
        """Return how often the server was ready for the next question during a lease of one statement."""
        traced: list[Any] = []
        adapter = database.adapter(reset=reset, statement_timeout=30.0, pool=PoolConfig(max_size=1))
        with hooked(lambda connection, record: traced.append(connection.pgconn)):
            database.run(database.lease(adapter))
        with (tmp_path / reset).open("w") as file:
            traced[0].trace(os.dup(file.fileno()))
            database.run(database.lease(adapter, "SELECT 1"))
            traced[0].untrace()
        return (tmp_path / reset).read_text().count("ReadyForQuery")

    with opened(SYNC[1], tmp_path) as database:
        assert trips(database, "session") == trips(database, "transaction") + 1


def test_an_engine_is_handed_out_as_it_is(tmp_path: Path) -> None:
    with opened(SYNC[1], tmp_path) as database:
        adapter = database.adapter(resource="engine", pool=PoolConfig(max_size=1))
        engine: Engine = adapter.acquire()
        with engine.connect() as connection:
            connection.execute(text("SELECT set_config('app.tenant', 'one', false)"))
            connection.commit()
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT current_setting('app.tenant')")) == "one"
        adapter.release(engine)


def test_what_was_done_past_the_lease_is_not_seen_by_the_next(tmp_path: Path) -> None:
    with opened(SYNC[1], tmp_path) as database:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        session = adapter.acquire()
        engine = session.get_bind().engine
        adapter.release(session)
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(4711)"))
        question = TRACES["postgresql"]["advisory lock"][1]
        assert database.run(seen(database, adapter, question)) == [(0,)]
