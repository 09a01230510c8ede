"""What a database lease promises, on SQLite, PostgreSQL and MariaDB, by every driver: the same everywhere."""

from __future__ import annotations

import asyncio
import logging
import traceback
import tracemalloc
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from tests.crews import Crew
from tests.databases import ASYNC, DRIVERS, REMOTE, Database, Driver, database, named, opened
from tests.invariant import Invariant
from wirestate import PoolConfig, ResourceHealth, ResourceManager
from wirestate.errors import InvalidSettingError, ResourceError, ResourceUnavailableError
from wirestate.resources.database.timeouts import UNTIL

pytestmark = pytest.mark.usefixtures("invariant")

__all__ = ["database"]  # a fixture

IDENTITY = {"postgresql": "SELECT pg_backend_pid() AS id", "mariadb": "SELECT connection_id() AS id"}
KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}
SERIES = (
    "WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < :most) SELECT n FROM series"
)
ENDLESS = "WITH RECURSIVE series (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series) SELECT count(*) FROM series"
LOCK = "pg_advisory_xact_lock(hashtext('rows'))"
WAITS = (
    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
    "AND pid IN (SELECT pid FROM pg_locks WHERE relation = 'rows'::regclass)"
)
SLEEP = {"postgresql": "SELECT pg_sleep(2)", "mariadb": "SELECT SLEEP(2)"}


@pytest.fixture(params=REMOTE, ids=named)
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with opened(request.param, tmp_path) as made:
        yield made


# --- one transaction per lease --------------------------------------------------------------


def test_a_lease_that_ends_well_is_committed(database: Database) -> None:
    database.run(database.lease(database.adapter(), "INSERT INTO rows VALUES (1)"))
    assert database.look("SELECT n FROM rows") == [(1,)]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_lease_that_fails_is_rolled_back(database: Database, error: BaseException) -> None:
    database.run(database.lease(database.adapter(), "INSERT INTO rows VALUES (1)", error=error))
    assert database.look("SELECT n FROM rows") == []


@pytest.mark.parametrize("driver", ASYNC, ids=named)
def test_a_cancelled_task_rolls_back_in_the_middle_of_a_statement(driver: Driver, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        await database.lease(adapter)
        inside = asyncio.Event()

        async def body() -> None:
            session = await adapter.aacquire()
            try:
                await database.do(session, "INSERT INTO rows VALUES (1)")
                inside.set()
                await session.execute(text(SLEEP.get(driver.server or "", ENDLESS)))
            except BaseException as error:
                await adapter.arelease(session, error)
                raise

        task = asyncio.create_task(body())
        await inside.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # again, while it rolls back
        with pytest.raises(asyncio.CancelledError):
            await task
        await database.lease(adapter, "INSERT INTO rows VALUES (2)")  # the only place came back

    if driver.is_sqlite:
        pytest.skip("a statement of SQLite goes on in its thread; see test_database.py")
    with opened(driver, tmp_path) as database:
        database.run(scenario(database))
        assert database.look("SELECT n FROM rows") == [(2,)]


@pytest.mark.parametrize("driver", [one for one in ASYNC if one.server == "postgresql"], ids=named)
def test_a_commit_that_is_cancelled_is_waited_for_and_its_place_comes_back(driver: Driver, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        other = database.adapter()
        holder = await database.call(other, "acquire")
        await database.do(holder, f"SELECT 1 FROM {LOCK}")
        session = await database.call(adapter, "acquire")
        await database.do(session, "INSERT INTO rows VALUES (1)")
        release = asyncio.create_task(database.call(adapter, "release", session))
        while not database.look(WAITS):
            await asyncio.sleep(0.01)
        release.cancel()
        try:
            assert await asyncio.wait([release], timeout=0.1) == (set(), {release})
        finally:
            await database.call(other, "release", holder)
        with pytest.raises(asyncio.CancelledError):
            await release
        assert database.look("SELECT n FROM rows") == [(1,)]  # the caller is told when it is known
        await database.lease(adapter, "INSERT INTO rows VALUES (2)")

    with opened(driver, tmp_path) as database:
        database.look(
            f"CREATE FUNCTION f_rows() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM {LOCK}; RETURN NULL; END $$"
        )
        try:
            database.look(
                "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON rows DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION f_rows()"
            )
            database.run(scenario(database))
            assert database.look("SELECT n FROM rows ORDER BY n") == [(1,), (2,)]
        finally:
            database.look("DROP FUNCTION f_rows CASCADE")


def test_two_owners_get_two_sessions(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter()
        one, two = [await database.call(adapter, "acquire") for _ in range(2)]
        await database.do(one, "INSERT INTO rows VALUES (1)")
        assert await database.do(two, "SELECT n FROM rows") == []
        await database.call(adapter, "release", two, ValueError())
        await database.call(adapter, "release", one)

    database.run(scenario())
    assert database.look("SELECT n FROM rows") == [(1,)]


def test_owners_of_a_manager_have_transactions_of_their_own(database: Database, invariant: Invariant) -> None:
    async def scenario() -> None:
        adapter = database.adapter()
        database.made.remove(adapter)
        manager = invariant.watch(ResourceManager())
        manager.register_provider("db", adapter)
        invariant.watch(manager.entry("db").recipe.gate)
        for n, error in enumerate([None, ValueError("mine"), asyncio.CancelledError()]):
            held = await database.call(manager, "acquire", "db", f"owner-{n}")
            other = await database.call(manager, "acquire", "db", "other")
            assert held is not other
            await database.do(held, f"INSERT INTO rows VALUES ({n})")
            assert (await database.do(other, "SELECT count(*) AS n FROM rows"))[0]["n"] == (n > 0)
            try:
                if error is not None:
                    raise error
            except BaseException:
                await database.call(manager, "release", "db", f"owner-{n}")
            else:
                await database.call(manager, "release", "db", f"owner-{n}")
            await database.call(manager, "release", "db", "other")
        assert manager.holders() == []
        await database.call(manager, "close")

    database.run(scenario())
    assert database.look("SELECT n FROM rows") == [(0,)]


def test_a_part_of_a_lease_can_fail_alone(database: Database) -> None:
    async def part(session: Any, n: int) -> None:
        if database.is_async:
            async with session.begin_nested():
                await database.do(session, f"INSERT INTO rows VALUES ({n})")
        else:
            with session.begin_nested():
                await database.do(session, f"INSERT INTO rows VALUES ({n})")

    async def scenario() -> None:
        adapter = database.adapter()
        session = await database.call(adapter, "acquire")
        await part(session, 1)
        with pytest.raises(IntegrityError):
            await part(session, 1)
        await part(session, 2)
        await database.call(adapter, "release", session)

    database.run(scenario())
    assert database.look("SELECT n FROM rows ORDER BY n") == [(1,), (2,)]


# --- lost transactions ------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["nothing", "a statement"])
def test_a_transaction_that_was_ended_past_the_lease_is_no_success(database: Database, then: str) -> None:
    async def commit(session: Any) -> None:
        """Do what nobody should: commit on the driver's own connection."""
        if not database.is_async:
            session.connection().connection.driver_connection.commit()
            return
        raw = (await (await session.connection()).get_raw_connection()).driver_connection
        await (raw.execute("COMMIT") if "asyncpg" in database.driver.scheme else raw.commit())

    async def scenario() -> None:
        adapter = database.adapter()
        session = await database.call(adapter, "acquire")
        await database.do(session, "INSERT INTO rows VALUES (1)")
        await commit(session)
        if then == "a statement":  # it would be its own transaction, and stay
            with pytest.raises(ResourceError, match="ended before its lease"):
                await database.do(session, "INSERT INTO rows VALUES (2)")
        with pytest.raises(ResourceError, match="ended before its lease"):
            await database.call(adapter, "release", session)
        await database.lease(adapter, "INSERT INTO rows VALUES (3)")  # the connection is fit for the next lease

    database.run(scenario())
    assert database.look("SELECT n FROM rows ORDER BY n") == [(1,), (3,)]


@pytest.mark.parametrize("driver", [driver for driver in REMOTE if driver.server == "mariadb"], ids=named)
def test_a_transaction_that_mariadb_gave_up_in_a_deadlock_is_no_success(driver: Driver, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        adapter, crew = database.adapter(), Crew(database.world)
        await database.lease(adapter, "INSERT INTO rows VALUES (1), (2)")
        one, two = [await database.call(adapter, "acquire") for _ in range(2)]
        await database.do(one, "UPDATE rows SET n = 11 WHERE n = 1")
        await database.do(two, "INSERT INTO rows VALUES (3), (4), (5)")  # the heavier one survives
        await database.do(two, "UPDATE rows SET n = 12 WHERE n = 2")
        other = crew.start(database.do(two, "UPDATE rows SET n = 21 WHERE n = 1"))
        with pytest.raises(DBAPIError, match="Deadlock"):
            await database.do(one, "UPDATE rows SET n = 22 WHERE n = 2")
        await other.result()
        with pytest.raises(ResourceError, match="to break a deadlock"):
            await database.do(one, "INSERT INTO rows VALUES (6)")
        with pytest.raises(ResourceError, match="to break a deadlock"):
            await database.call(adapter, "release", one)
        await database.call(adapter, "release", two)

    with opened(driver, tmp_path) as database:
        database.run(scenario(database))
        assert [n for (n,) in database.look("SELECT n FROM rows ORDER BY n")] == [3, 4, 5, 12, 21]


def test_tables_may_be_made_in_a_lease_that_only_read_before(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter()
        await database.lease(adapter, "INSERT INTO rows VALUES (1)")
        await database.lease(
            adapter, "SELECT n FROM rows", "CREATE TABLE rows_more (n INTEGER)", "INSERT INTO rows_more VALUES (1)"
        )
        await database.lease(adapter, "DROP TABLE rows_more")

    database.run(scenario())


@pytest.mark.parametrize("driver", [driver for driver in REMOTE if driver.server == "mariadb"], ids=named)
def test_what_mariadb_commits_by_itself_is_told(driver: Driver, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        adapter = database.adapter()
        session = await database.call(adapter, "acquire")
        await database.do(session, "INSERT INTO rows VALUES (1)")
        await database.do(session, "CREATE TABLE rows_more (n INTEGER)")
        with pytest.raises(ResourceError, match="as MariaDB and MySQL do for CREATE TABLE"):
            await database.call(adapter, "release", session)
        await database.lease(adapter, "DROP TABLE rows_more")

    with opened(driver, tmp_path) as database:
        database.run(scenario(database))


def test_a_swallowed_error_ends_as_the_database_sees_it(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter()
        session = await database.call(adapter, "acquire")
        await database.do(session, "INSERT INTO rows VALUES (1)")
        with pytest.raises(IntegrityError):
            await database.do(session, "INSERT INTO rows VALUES (1)")
        if database.driver.server == "postgresql":
            with pytest.raises(ResourceError, match="the server gave it up"):
                await database.call(adapter, "release", session)
        else:
            await database.call(adapter, "release", session)

    database.run(scenario())
    assert database.look("SELECT n FROM rows") == ([] if database.driver.server == "postgresql" else [(1,)])


# --- streams ----------------------------------------------------------------------------------


async def series(database: Database, session: Any, many: int) -> Any:
    """Return a stream of *many* numbers, more than come at once."""
    if database.driver.server == "mariadb":
        await database.do(session, f"SET max_recursive_iterations = {many}")
    return session.stream(SERIES, most=many)


async def streamed(database: Database, rows: Any) -> AsyncGenerator[dict[str, Any], None]:
    """Iterate in either world."""
    if database.is_async:
        async for row in rows:
            yield row
    else:
        for row in rows:
            yield row


def test_rows_are_streamed_in_bounded_memory(database: Database) -> None:
    many = 100_000

    async def scenario() -> None:
        adapter = database.adapter()
        session = await database.call(adapter, "acquire")
        rows = streamed(database, await series(database, session, many))
        tracemalloc.start()
        assert await anext(rows) == {"n": 1}
        assert tracemalloc.get_traced_memory()[1] < 3_000_000  # all rows at once take several times as much
        tracemalloc.stop()
        count = 1
        async for row in rows:
            count += 1
            assert row == {"n": count}
        assert count == many
        assert await database.do(session, "SELECT n FROM rows") == []  # the session can be used on
        await database.call(adapter, "release", session)

    database.run(scenario())


@pytest.mark.parametrize("driver", [driver for driver in REMOTE if driver.server == "postgresql"], ids=named)
def test_postgresql_keeps_the_rows_of_a_stream_in_a_cursor(driver: Driver, tmp_path: Path) -> None:
    """The memory that libpq takes is not Python's."""

    async def scenario(database: Database) -> None:
        adapter = database.adapter()
        session = await database.call(adapter, "acquire")
        rows = streamed(database, await series(database, session, 3000))
        await anext(rows)
        found = await database.do(session, "SELECT count(*) AS n FROM pg_cursors WHERE statement LIKE '%series%'")
        assert found[0]["n"] >= 1
        await rows.aclose()
        await database.call(adapter, "release", session)

    with opened(driver, tmp_path) as database:
        database.run(scenario(database))


def test_a_stream_that_is_left_early_leaves_the_lease_whole(database: Database) -> None:
    async def first_of(session: Any) -> Any:
        if database.is_async:
            async with aclosing(await series(database, session, 3000)) as rows:
                return await anext(rows)
        with closing(await series(database, session, 3000)) as rows:
            return next(rows)

    async def scenario() -> None:
        adapter = database.adapter()
        session = await database.call(adapter, "acquire")
        assert await first_of(session) == {"n": 1}
        await database.do(session, "INSERT INTO rows VALUES (1)")
        await database.call(adapter, "release", session)

    database.run(scenario())
    assert database.look("SELECT n FROM rows") == [(1,)]


def test_a_stream_that_nobody_finished_ends_with_its_lease(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter(pool=PoolConfig(max_size=1))
        session = await database.call(adapter, "acquire")
        await database.do(session, "INSERT INTO rows VALUES (1)")
        rows = streamed(database, await series(database, session, 3000))
        assert await anext(rows) == {"n": 1}
        await database.call(adapter, "release", session)
        await database.lease(adapter, "INSERT INTO rows VALUES (2)")
        await rows.aclose()

    database.run(scenario())
    assert database.look("SELECT n FROM rows ORDER BY n") == [(1,), (2,)]


@pytest.mark.parametrize("driver", [driver for driver in REMOTE if driver.server == "mariadb"], ids=named)
def test_no_statement_may_cut_a_stream_short(driver: Driver, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        adapter = database.adapter()
        session = await database.call(adapter, "acquire")
        numbers = []
        async for row in streamed(database, await series(database, session, 3000)):
            numbers.append(row["n"])
            if len(numbers) == 1:
                with pytest.raises(ResourceError, match=r"still streamed.*or take another lease"):
                    await database.do(session, "INSERT INTO rows VALUES (1)")
        assert len(numbers) == 3000
        await database.call(adapter, "release", session)

    with opened(driver, tmp_path) as database:
        database.run(scenario(database))


# --- timeouts ---------------------------------------------------------------------------------


def test_a_statement_that_takes_too_long_is_ended(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter(statement_timeout=0.2)
        session = await database.call(adapter, "acquire")
        began = monotonic()
        with pytest.raises(DBAPIError, match=r"statement_timeout of resource 'db' is 0\.2 s") as told:
            await database.do(session, SLEEP.get(database.driver.server or "", ENDLESS))
        assert monotonic() - began < 10
        await database.call(adapter, "release", session, told.value)
        await database.lease(adapter, "INSERT INTO rows VALUES (1)")

    database.run(scenario())


def test_a_wait_for_a_lock_is_ended(database: Database) -> None:
    async def scenario() -> None:
        adapter = database.adapter(lock_timeout=0.5)
        await database.lease(adapter, "INSERT INTO rows VALUES (1)")
        one, two = [await database.call(adapter, "acquire") for _ in range(2)]
        await database.do(one, "UPDATE rows SET n = 2")
        began = monotonic()
        with pytest.raises(DBAPIError, match=r"lock_timeout of resource 'db' is 0\.5 s") as told:
            await database.do(two, "UPDATE rows SET n = 3")
        assert 0.3 < monotonic() - began < 10
        await database.call(adapter, "release", two, told.value)
        await database.call(adapter, "release", one)

    database.run(scenario())
    assert database.look("SELECT n FROM rows") == [(2,)]


def test_the_timeouts_hold_for_each_lease(database: Database) -> None:
    """PostgreSQL takes a SET back with the transaction, and SQLite counts over statements."""

    async def scenario() -> None:
        adapter = database.adapter(statement_timeout=0.3, pool=PoolConfig(max_size=1))
        for error in (ValueError(), None):
            await database.lease(adapter, "SELECT n FROM rows", error=error)
        await Crew(database.world).pause(0.4)
        for _ in range(100):  # none of them takes long
            await database.lease(adapter, "SELECT n FROM rows")
        session = await database.call(adapter, "acquire")
        with pytest.raises(DBAPIError, match="statement_timeout") as told:
            await database.do(session, SLEEP.get(database.driver.server or "", ENDLESS))
        await database.call(adapter, "release", session, told.value)

    database.run(scenario())


def test_sqlite_interrupts_statements_and_nothing_else(tmp_path: Path) -> None:
    """The work of a BEGIN or COMMIT counts from the lease before on, and would be interrupted some day."""
    with opened(DRIVERS[0], tmp_path) as database:
        adapter = database.adapter(statement_timeout=5.0)
        session = adapter.acquire()
        session.query("SELECT 1")
        connection = session.connection()
        info = connection.info
        assert 0 < info[UNTIL][0] - monotonic() <= 5.0
        adapter.release(session)
        assert info[UNTIL] == [float("inf")]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"statement_timeout": 0}, "statement_timeout is 0; it must be more than 0"),
        ({"statement_timeout": True}, "statement_timeout is True"),
        ({"lock_timeout": -1}, "lock_timeout is -1"),
        ({"lock_timeout": "5"}, "lock_timeout is '5'"),
        ({"connect_timeout": 0}, "connect_timeout is 0"),
    ],
)
def test_timeouts_that_make_no_sense_are_refused(database: Database, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words):
        database.adapter(**settings)


# --- connections that die -----------------------------------------------------------------------


def test_a_lease_whose_connection_died_is_discarded(remote: Database) -> None:
    kind = remote.driver.server or ""

    async def scenario() -> None:
        adapter = remote.adapter(pool=PoolConfig(max_size=1, acquire_timeout=0.5))
        session = await remote.call(adapter, "acquire")
        await remote.do(session, "INSERT INTO rows VALUES (1)")
        identity = (await remote.do(session, IDENTITY[kind]))[0]["id"]
        remote.look(KILL[kind].format(identity))
        with pytest.raises(DBAPIError) as told:
            await remote.do(session, "INSERT INTO rows VALUES (2)")
        assert told.value.connection_invalidated
        assert not adapter.validate(session)
        await remote.call(adapter, "release", session, told.value)
        session = await remote.call(adapter, "acquire")
        assert (await remote.do(session, IDENTITY[kind]))[0]["id"] != identity
        await remote.do(session, "INSERT INTO rows VALUES (3)")
        await remote.call(adapter, "release", session)

    remote.run(scenario())
    assert remote.look("SELECT n FROM rows") == [(3,)]


def test_a_body_that_swallows_the_loss_of_its_connection_is_no_success(remote: Database) -> None:
    kind = remote.driver.server or ""

    async def scenario() -> None:
        adapter = remote.adapter()
        session = await remote.call(adapter, "acquire")
        await remote.do(session, "INSERT INTO rows VALUES (1)")
        remote.look(KILL[kind].format((await remote.do(session, IDENTITY[kind]))[0]["id"]))
        with pytest.raises(DBAPIError):
            await remote.do(session, "INSERT INTO rows VALUES (2)")
        with pytest.raises(ResourceError, match="ended before its lease: its connection broke"):
            await remote.call(adapter, "release", session)

    remote.run(scenario())
    assert remote.look("SELECT n FROM rows") == []


def test_a_body_that_failed_for_its_own_reason_hears_nothing_of_a_roll_back_that_broke(remote: Database) -> None:
    kind = remote.driver.server or ""

    async def scenario() -> None:
        adapter = remote.adapter(pool=PoolConfig(max_size=1, acquire_timeout=5.0))
        session = await remote.call(adapter, "acquire")
        await remote.do(session, "INSERT INTO rows VALUES (1)")
        remote.look(KILL[kind].format((await remote.do(session, IDENTITY[kind]))[0]["id"]))
        await remote.call(adapter, "release", session, ValueError("the body's own"))
        await remote.lease(adapter, "INSERT INTO rows VALUES (2)")  # by a connection that lives

    remote.run(scenario())
    assert remote.look("SELECT n FROM rows") == [(2,)]


# --- secrets and health -------------------------------------------------------------------------


@pytest.mark.parametrize("driver", REMOTE, ids=named)
def test_a_password_is_shown_nowhere(driver: Driver, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with opened(driver, tmp_path) as database:
        where = database.url.rpartition("@")[2].replace("/test", "/no_such_database")
        adapter = database.adapter(url=f"{driver.scheme}://nobody_knows:sesame@{where}")
        with pytest.raises(ResourceUnavailableError) as caught:
            database.run(database.call(adapter, "acquire"))
        assert database.run(database.call(adapter, "health_check")) is ResourceHealth.UNHEALTHY
        shown = "".join(traceback.format_exception(caught.value)) + repr(adapter) + str(vars(adapter)) + caplog.text
        assert "nobody_knows:***@" in shown
        assert "sesame" not in shown + str(adapter.trouble)


def test_health_is_asked_by_every_driver(database: Database) -> None:
    assert database.run(database.call(database.adapter(), "health_check")) is ResourceHealth.HEALTHY


def test_every_driver_is_tested() -> None:
    assert {driver.server for driver in DRIVERS} == {None, "postgresql", "mariadb"}
    assert {driver.server for driver in ASYNC} == {None, "postgresql", "mariadb"}
