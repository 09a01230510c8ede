"""Databases: one transaction per lease, who may end it, and where a database is, on real files and servers."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from pydantic import SecretStr
from sqlalchemy import URL, Connection, Engine, create_engine, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.crews import Crew
from wirestate.errors import (
    AsyncResourceError,
    InvalidSettingError,
    LeaseOwnsTransactionError,
    LeaseReleasedError,
    MissingDriverError,
    PoolTimeoutError,
    ResourceClosedError,
    ResourceError,
    ResourceUnavailableError,
)
from wirestate.resources.base import ResourceHealth
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.database.adapter import DatabaseResourceAdapter
from wirestate.resources.pool_config import PoolConfig

pytestmark = pytest.mark.usefixtures("invariant")

if TYPE_CHECKING:
    from tests.conftest import Side


def unreachable(port: int) -> str | None:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError as error:
        return f"no server answers on port {port}: {error}"
    return None


POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/test"
MARIADB = "mariadb://root@127.0.0.1:3306/test"
needs_postgresql = pytest.mark.skipif(unreachable(5432) is not None, reason=str(unreachable(5432)))
needs_mariadb = pytest.mark.skipif(unreachable(3306) is not None, reason=str(unreachable(3306)))
SERVERS = [
    pytest.param(POSTGRESQL, marks=needs_postgresql, id="postgresql"),
    pytest.param(MARIADB, marks=needs_mariadb, id="mariadb"),
    pytest.param(
        "postgresql+psycopg_async" + POSTGRESQL.removeprefix("postgresql"), marks=needs_postgresql, id="async"
    ),
]


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    n: Mapped[int] = mapped_column(primary_key=True)


class Database:
    """One adapter, used in the same words in both worlds."""

    def __init__(self, side: Side, adapter: DatabaseResourceAdapter) -> None:
        self.side = side
        self.adapter = adapter

    async def acquire(self) -> Any:
        return await self.side.call(self.adapter, "acquire")

    async def release(self, resource: Any, error: BaseException | None = None) -> None:
        await self.side.call(self.adapter, "release", resource, error)

    async def do(self, resource: Any, statement: str, **parameters: Any) -> Any:
        answer = resource.execute(text(statement), parameters)
        return await answer if self.side.is_async else answer

    async def lease(self, *statements: str, error: BaseException | None = None) -> None:
        resource = await self.acquire()
        for statement in statements:
            await self.do(resource, statement)
        await self.release(resource, error)

    async def count(self) -> int:
        resource = await self.acquire()
        found = (await self.do(resource, "SELECT count(*) FROM rows")).scalar()
        await self.release(resource)
        return int(found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "rows.db") as connection:
        connection.execute("CREATE TABLE rows (n INTEGER PRIMARY KEY)")
    connection.close()
    return tmp_path / "rows.db"


@pytest.fixture
def db(side: Side, path: Path) -> Iterator[Database]:
    scheme = "sqlite+aiosqlite" if side.is_async else "sqlite"
    adapter = DatabaseResourceAdapter("db", url=f"{scheme}:///{path}")
    yield Database(side, adapter)

    async def close() -> None:
        await side.call(adapter, "close")

    side.run(close())


def blocking(path: Path, **settings: Any) -> DatabaseResourceAdapter:
    return DatabaseResourceAdapter("db", url=f"sqlite:///{path}", **settings)


# --- one transaction per lease ------------------------------------------------------------


def test_a_lease_that_ends_well_is_committed(db: Database) -> None:
    async def scenario() -> None:
        await db.lease("INSERT INTO rows VALUES (1)")
        assert await db.count() == 1

    db.side.run(scenario())


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_lease_that_fails_is_rolled_back(db: Database, error: BaseException) -> None:
    async def scenario() -> None:
        await db.lease("INSERT INTO rows VALUES (1)", error=error)
        assert await db.count() == 0

    db.side.run(scenario())


def test_ddl_is_rolled_back_too(db: Database) -> None:
    async def scenario() -> None:
        await db.lease("CREATE TABLE more (n INTEGER)", "DROP TABLE rows", error=ValueError())
        assert await db.count() == 0
        await db.lease("CREATE TABLE more (n INTEGER)")

    db.side.run(scenario())


def test_two_owners_get_two_sessions(db: Database) -> None:
    async def scenario() -> None:
        one, two = await db.acquire(), await db.acquire()
        await db.do(one, "INSERT INTO rows VALUES (1)")
        assert (await db.do(two, "SELECT count(*) FROM rows")).scalar() == 0
        await db.release(two, ValueError())
        await db.release(one)
        assert await db.count() == 1

    db.side.run(scenario())


def test_a_part_of_a_lease_can_fail_alone(db: Database) -> None:
    async def insert_in_a_part(session: Any, n: int) -> None:
        if not db.side.is_async:
            with session.begin_nested():
                session.execute(text("INSERT INTO rows VALUES (:n)"), {"n": n})
            return
        async with session.begin_nested():
            await session.execute(text("INSERT INTO rows VALUES (:n)"), {"n": n})

    async def scenario() -> None:
        session = await db.acquire()
        await insert_in_a_part(session, 1)
        with pytest.raises(IntegrityError):
            await insert_in_a_part(session, 1)
        await insert_in_a_part(session, 2)
        await db.release(session)
        assert await db.count() == 2

    db.side.run(scenario())


def test_objects_are_written_when_the_lease_ends(db: Database) -> None:
    async def scenario() -> None:
        session = await db.acquire()
        session.add(Row(n=1))
        await db.release(session)
        assert await db.count() == 1

    db.side.run(scenario())


def test_a_flush_that_fails_at_the_end_raises_and_gives_the_connection_back(path: Path) -> None:
    adapter = blocking(path, pool=PoolConfig(max_size=1, acquire_timeout=0))
    session = adapter.acquire()
    session.execute(text("INSERT INTO rows VALUES (1)"))
    session.add(Row(n=1))
    with pytest.raises(IntegrityError):
        adapter.release(session)
    adapter.release(adapter.acquire())
    assert sqlite_count(path) == 0
    adapter.close()


def sqlite_count(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM rows").fetchone()[0])
    finally:
        connection.close()


def test_a_commit_that_fails_raises_and_gives_the_connection_back(path: Path) -> None:
    adapter = blocking(path, pool=PoolConfig(max_size=1, acquire_timeout=0))
    session = adapter.acquire()
    session.execute(text("CREATE TABLE parts (n INTEGER REFERENCES rows DEFERRABLE INITIALLY DEFERRED)"))
    session.execute(text("INSERT INTO parts VALUES (7)"))
    with pytest.raises(IntegrityError):
        adapter.release(session)
    session = adapter.acquire()
    assert session.query("SELECT name FROM sqlite_master WHERE name = 'parts'") == []
    adapter.release(session)
    adapter.close()


def test_a_flush_error_that_was_swallowed_is_no_success(path: Path) -> None:
    adapter = blocking(path)
    session = adapter.acquire()
    session.execute(text("INSERT INTO rows VALUES (1)"))
    session.add(Row(n=1))
    with pytest.raises(IntegrityError):
        session.flush()
    with pytest.raises(ResourceError, match="a flush failed"):
        adapter.release(session)
    assert sqlite_count(path) == 0
    adapter.close()


def test_failed_work_can_be_kept(path: Path) -> None:
    adapter = blocking(path, keep_on_failure=True)
    session = adapter.acquire()
    session.execute(text("INSERT INTO rows VALUES (1)"))
    adapter.release(session, ValueError())
    assert sqlite_count(path) == 1
    adapter.close()


@pytest.mark.parametrize("verb", ["commit", "rollback", "close", "begin", "reset", "invalidate"])
def test_only_the_lease_ends_its_transaction(db: Database, verb: str) -> None:
    async def scenario() -> None:
        session = await db.acquire()
        await db.do(session, "INSERT INTO rows VALUES (1)")
        with pytest.raises(LeaseOwnsTransactionError, match=rf"{verb}\(\) on the session of 'db'"):
            await side_call(session, verb)
        await db.release(session)
        assert await db.count() == 1

    async def side_call(session: Any, verb: str) -> None:
        answer = getattr(session, verb)()
        if db.side.is_async:
            await answer

    db.side.run(scenario())


def test_nor_does_its_connection(path: Path) -> None:
    adapter = blocking(path)
    session = adapter.acquire()
    for verb in ("commit", "rollback", "close"):
        with pytest.raises(LeaseOwnsTransactionError):
            getattr(session.connection(), verb)()
    adapter.release(session)
    adapter.close()


@pytest.mark.parametrize("then", ["nothing", "a statement", "an object"])
def test_what_the_server_rolled_back_by_itself_is_no_success(db: Database, path: Path, then: str) -> None:
    async def scenario() -> None:
        await db.lease("INSERT INTO rows VALUES (1)")
        session = await db.acquire()
        await db.do(session, "INSERT INTO rows VALUES (2)")
        with pytest.raises(IntegrityError):
            await db.do(session, "INSERT OR ROLLBACK INTO rows VALUES (1)")
        if then == "a statement":  # it would be its own transaction, and stay
            with pytest.raises(ResourceError, match="ended before its lease"):
                await db.do(session, "INSERT INTO rows VALUES (3)")
        elif then == "an object":
            session.add(Row(n=3))
        with pytest.raises(ResourceError, match="ended before its lease"):
            await db.release(session)
        assert sqlite_count(path) == 1
        assert await db.count() == 1  # the connection is fit for the next lease

    db.side.run(scenario())


@pytest.mark.parametrize(
    "statement",
    ["COMMIT", "commit;", " -- done\n COMMIT", "/* a */END TRANSACTION", "ROLLBACK", "rollback transaction", "BEGIN"],
)
def test_no_statement_ends_the_transaction_of_a_lease(db: Database, path: Path, statement: str) -> None:
    async def scenario() -> None:
        session = await db.acquire()
        await db.do(session, "INSERT INTO rows VALUES (1)")
        with pytest.raises(LeaseOwnsTransactionError):
            await db.do(session, statement)
        await db.release(session, ValueError())
        assert sqlite_count(path) == 0
        await db.lease("SAVEPOINT a", "INSERT INTO rows VALUES (1)", "ROLLBACK TO a", "ROLLBACK TRANSACTION TO a")
        assert sqlite_count(path) == 0

    db.side.run(scenario())


def test_the_transaction_of_a_lease_cannot_be_ended_past_its_session(path: Path) -> None:
    adapter = blocking(path)
    session = adapter.acquire()
    session.execute(text("INSERT INTO rows VALUES (1)"))
    with pytest.raises(LeaseOwnsTransactionError):
        session.connection().get_transaction().commit()
    adapter.release(session, ValueError())
    assert sqlite_count(path) == 0
    for end in (
        lambda session: session.connection().get_transaction().rollback(),
        lambda session: session.connection().connection.dbapi_connection.rollback(),
    ):
        session = adapter.acquire()
        session.execute(text("INSERT INTO rows VALUES (1)"))
        end(session)
        with pytest.raises(ResourceError, match="ended before its lease"):
            session.execute(text("INSERT INTO rows VALUES (2)"))
        with pytest.raises(ResourceError, match="ended before its lease"):
            adapter.release(session)
        assert sqlite_count(path) == 0
    adapter.close()


def test_a_lease_ends_once(db: Database) -> None:
    async def scenario() -> None:
        session = await db.acquire()
        assert db.adapter.validate(session)
        await db.release(session)
        assert not db.adapter.validate(session)
        with pytest.raises(LeaseReleasedError):
            await db.release(session)

    db.side.run(scenario())


def test_a_released_session_reaches_no_other_lease(path: Path) -> None:
    adapter = blocking(path, pool=PoolConfig(max_size=1))
    old = adapter.acquire()
    adapter.release(old)
    new = adapter.acquire()
    with pytest.raises(LeaseReleasedError, match="released already"):
        old.execute(text("INSERT INTO rows VALUES (1)"))
    adapter.release(new)
    assert sqlite_count(path) == 0
    adapter.close()


def test_a_cancelled_task_ends_its_transaction(path: Path) -> None:
    async def main() -> None:
        adapter = DatabaseResourceAdapter("db", url=f"sqlite+aiosqlite:///{path}", pool=PoolConfig(max_size=1))
        inside = asyncio.Event()

        async def body() -> None:
            session = await adapter.aacquire()
            try:
                await session.execute(text("INSERT INTO rows VALUES (1)"))
                inside.set()
                await asyncio.Event().wait()
            except BaseException as error:
                await adapter.arelease(session, error)
                raise

        task = asyncio.create_task(body())
        await inside.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # again, while it rolls back
        with pytest.raises(asyncio.CancelledError):
            await task
        session = await adapter.aacquire()
        assert await session.query("SELECT * FROM rows") == []
        await adapter.arelease(session)
        await adapter.aclose()

    asyncio.run(main())


# --- what is handed out -------------------------------------------------------------------


def test_text_gives_rows_as_dicts(db: Database) -> None:
    async def scenario() -> None:
        await db.lease("INSERT INTO rows VALUES (1), (2)")
        session = await db.acquire()

        async def query(statement: str, **parameters: Any) -> Any:
            answer = session.query(statement, **parameters)
            return await answer if db.side.is_async else answer

        assert await query("SELECT n FROM rows WHERE n = :n", n=2) == [{"n": 2}]
        assert await query("DELETE FROM rows") == []
        await db.release(session)

    db.side.run(scenario())


def test_anything_else_gives_what_a_session_gives(path: Path) -> None:
    adapter = blocking(path)
    session = adapter.acquire()
    session.add(Row(n=1))
    assert session.query(Row).filter_by(n=1).one().n == 1
    adapter.release(session)
    adapter.close()


def test_the_resource_is_a_native_object(path: Path) -> None:
    for resource, kind in (("session", Session), ("connection", Connection), ("engine", Engine)):
        adapter = blocking(path, resource=resource)
        leased = adapter.acquire()
        assert isinstance(leased, kind)
        adapter.release(leased)
        adapter.close()


def test_the_asynchronous_resource_is_a_native_object(path: Path) -> None:
    async def main() -> None:
        for resource, kind in (("session", AsyncSession), ("connection", AsyncConnection), ("engine", AsyncEngine)):
            adapter = DatabaseResourceAdapter("db", url=f"sqlite+aiosqlite:///{path}", resource=resource)  # type: ignore[arg-type]
            leased = await adapter.aacquire()
            assert isinstance(leased, kind)
            await adapter.arelease(leased)
            await adapter.aclose()

    asyncio.run(main())


def test_a_leased_connection_is_committed_or_rolled_back_like_a_session(path: Path) -> None:
    adapter = blocking(path, resource="connection")
    for n, error in ((1, None), (2, ValueError())):
        connection = adapter.acquire()
        connection.execute(text("INSERT INTO rows VALUES (:n)"), {"n": n})
        with pytest.raises(LeaseOwnsTransactionError):
            connection.commit()
        adapter.release(connection, error)
    assert sqlite_count(path) == 1
    adapter.close()


def test_an_engine_begins_for_ddl_too(path: Path) -> None:
    adapter = blocking(path, resource="engine")
    engine = adapter.acquire()
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        connection.execute(text("DROP TABLE rows")) and 1 / 0
    adapter.close()
    assert sqlite_count(path) == 0


# --- SQLite -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"url": "memory"}, {"url": "sqlite://"}, {"backend": "memory"}])
def test_memory_is_a_private_file_that_is_deleted_at_close(settings: dict[str, Any]) -> None:
    one, two = DatabaseResourceAdapter("one", **settings), DatabaseResourceAdapter("two", **settings)
    session = one.acquire()
    session.execute(text("CREATE TABLE rows (n INTEGER)"))
    file = Path(session.query("PRAGMA database_list")[0]["file"])
    one.release(session)
    other = two.acquire()
    assert other.query("SELECT name FROM sqlite_master") == []
    two.release(other)
    assert file.exists()
    one.close()
    two.close()
    assert not file.parent.exists()


def test_memory_is_shared_by_threads_of_one_adapter() -> None:
    adapter = DatabaseResourceAdapter("db", url="memory")
    session = adapter.acquire()
    session.execute(text("CREATE TABLE rows (n INTEGER PRIMARY KEY)"))
    adapter.release(session)

    def insert(n: int) -> None:
        session = adapter.acquire()
        session.execute(text("INSERT INTO rows VALUES (:n)"), {"n": n})
        adapter.release(session, ValueError() if n % 2 else None)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(insert, range(40)))
    session = adapter.acquire()
    assert session.query("SELECT count(*) AS n FROM rows") == [{"n": 20}]
    adapter.release(session)
    adapter.close()


def test_a_file_is_a_file(tmp_path: Path) -> None:
    for settings in ({"url": f"sqlite:///{tmp_path}/a.db"}, {"backend": "file", "database": str(tmp_path / "b.db")}):
        adapter = DatabaseResourceAdapter("db", **settings)  # type: ignore[arg-type]
        adapter.release(adapter.acquire())
        adapter.close()
    assert (tmp_path / "a.db").exists()
    assert (tmp_path / "b.db").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    adapter = blocking(tmp_path / "typo" / "x.db")
    with pytest.raises(InvalidSettingError, match="typo' of its SQLite file does not exist"):
        adapter.acquire()
    assert adapter.health_check() is ResourceHealth.UNHEALTHY


def test_pragmas_are_set(path: Path) -> None:
    adapter = blocking(path, busy_timeout=1.5)
    session = adapter.acquire()
    found = {p: session.execute(text(f"PRAGMA {p}")).scalar() for p in ("journal_mode", "synchronous", "foreign_keys")}
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1}
    assert session.execute(text("PRAGMA busy_timeout")).scalar() == 1500
    adapter.release(session)
    adapter.close()


def test_writers_that_begin_at_once_wait_for_each_other(path: Path) -> None:
    adapter = blocking(path, begin="IMMEDIATE")
    reader = blocking(path)
    reading = reader.acquire()  # one that only reads is in nobody's way

    def insert(n: int) -> None:
        session = adapter.acquire()
        seen = session.query("SELECT count(*) AS n FROM rows")[0]["n"]
        session.execute(text("INSERT INTO rows VALUES (:n)"), {"n": seen})
        adapter.release(session)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(insert, range(30)))
    assert sqlite_count(path) == 30
    reader.release(reading)
    reader.close()
    adapter.close()


def test_many_threads_may_meet_at_a_new_file(tmp_path: Path) -> None:
    for attempt in range(20):
        adapters = [blocking(tmp_path / f"new{attempt}.db") for _ in range(6)]
        barrier = threading.Barrier(6)

        def open_one(adapter: DatabaseResourceAdapter, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            adapter.release(adapter.acquire())

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(open_one, adapters))
        for adapter in adapters:
            adapter.close()


# --- where it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give url="),
        ({"backend": "sqlite"}, "needs database="),
        ({"backend": "postgre"}, "did you mean 'postgresql'"),
        ({"url": "postgresql://me:ses/ame@word:x@host/db"}, "cannot be read"),
        ({"url": "sesame"}, "cannot be read"),
        ({"url": "postgresql://me:open@sesame@host/db"}, "cannot be read"),
        ({"url": SecretStr("mysql://me:open@sesame/x@host/db")}, "cannot be read"),
        ({"url": "memory", "connection_string": "memory"}, "one setting"),
        ({"url": "postgresql://host/db", "password": "sesame"}, "leave out password"),
        ({"url": "postgresql://host/db", "backend": "mysql"}, "backend is 'mysql'"),
        ({"url": "sqlite:///file:x?mode=memory&cache=shared&uri=true"}, "private temporary file"),
        ({"url": "memory", "isolation_level": "SERIALIZABLE"}, "begin="),
        ({"url": "memory", "begin": "LATER"}, "must be one of"),
        ({"url": "memory", "resource": "cursor"}, "must be one of"),
        ({"url": "memory", "reset": "all"}, "reset is 'all'; it must be one of 'session', 'transaction'"),
        (
            {"url": "memory", "resource": "engine", "pool": PoolConfig(max_waiting=1)},
            "'max_waiting' cannot be honoured",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words) as caught:
        DatabaseResourceAdapter("db", **settings)
    assert "sesame" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"backend": "postgresql"}, "postgresql+psycopg://"),
        ({"url": "postgres://host/db"}, "postgresql+psycopg://host/db"),
        ({"connection_string": SecretStr("mysql://host/db")}, "mysql+pymysql://host/db"),
        ({"url": URL.create("mariadb", "me", "sesame", "host")}, "mariadb+pymysql://me:***@host"),
        (
            {"backend": "postgresql", "host": "h", "port": 1, "database": "d", "user": "u", "password": "sesame"},
            "postgresql+psycopg://u:***@h:1/d",
        ),
        ({"backend": "postgresql", "connection_string": "postgresql://u:sesame@h/d?password=sesame"}, "u:***@h/d"),
        ({"url": "postgresql+psycopg://h/d#sesame"}, "postgresql+psycopg://h/d "),
        ({"url": "postgresql://h/d?a=1#sesame"}, "postgresql+psycopg://h/d "),
        ({"url": "mysql://h#sesame"}, "mysql+pymysql://h "),
        ({"url": "mysql://u#sesame@h/d"}, "mysql+pymysql://u "),
        ({"url": "sqlite:///file:here.db?uri=true#sesame"}, "sqlite:///file:here.db "),
        ({"url": "sqlite:///file:here.db#sesame"}, "sqlite:///file:here.db "),
        ({"url": "sqlite:////here/a#b.db"}, "sqlite:////here/a#b.db "),
    ],
)
def test_a_database_is_shown_without_its_password(settings: dict[str, Any], shown: str) -> None:
    adapter = DatabaseResourceAdapter("db", **settings)
    assert shown in unquote(repr(adapter))  # SQLAlchemy 2.1 quotes names of files, 2.0 does not
    assert "sesame" not in repr(adapter)
    assert "sesame" not in repr(vars(adapter))


@pytest.mark.parametrize(
    ("scheme", "module", "extra"),
    [
        ("postgresql+psycopg", "psycopg", "postgresql"),
        ("postgresql+asyncpg", "asyncpg", "asyncpg"),
        ("mysql+pymysql", "pymysql", "mysql"),
        ("mysql+aiomysql", "aiomysql", "aiomysql"),
        ("sqlite+aiosqlite", "aiosqlite", "aiosqlite"),
    ],
)
def test_a_missing_driver_names_its_extra(scheme: str, module: str, extra: str) -> None:
    program = (
        f"import sys; sys.modules['{module}'] = None\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == '{module}' else find(name, *a)\n"
        "from wirestate.resources.database.adapter import DatabaseResourceAdapter\n"
        f"DatabaseResourceAdapter('db', url='{scheme}://{'/' if 'sqlite' in scheme else 'host/'}db')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"MissingDriverError: '{scheme}://' needs {module}: pip install 'wirestate[{extra}]'" in done.stderr


def test_a_driver_without_an_extra_is_named() -> None:
    with pytest.raises((InvalidSettingError, MissingDriverError), match="needs the package 'oracledb'"):
        DatabaseResourceAdapter("db", url="oracle+oracledb://host/db")


def test_a_server_that_cannot_be_reached_shows_when_the_lease_opens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    adapter = DatabaseResourceAdapter("db", url=f"postgresql://me:sesame@127.0.0.1:{port}/db")
    with pytest.raises(ResourceUnavailableError, match="resource 'db' could not be had: OperationalError") as caught:
        adapter.acquire()
    assert caught.value.__notes__ == [f"the database is postgresql+psycopg://me:***@127.0.0.1:{port}/db"]
    assert isinstance(caught.value.__cause__, OperationalError)
    assert "sesame" not in f"{caught.value} {caught.value.__cause__} {caught.value.__cause__.orig!r}"
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    adapter.close()


@needs_mariadb
def test_a_wrong_password_is_not_shown() -> None:
    adapter = DatabaseResourceAdapter("db", url="mariadb://nobody:sesame@127.0.0.1:3306/test")
    with pytest.raises(ResourceUnavailableError) as caught:
        adapter.acquire()
    assert "sesame" not in f"{caught.value} {caught.value.__cause__} {caught.value.__notes__}"
    adapter.close()


def test_parameters_of_a_failing_statement_are_not_shown(path: Path) -> None:
    adapter = blocking(path)
    session = adapter.acquire()
    with pytest.raises(OperationalError) as caught:
        session.query("SELECT :word FROM nowhere", word="sesame")
    assert "sesame" not in str(caught.value)
    adapter.release(session, caught.value)
    adapter.close()


# --- pool, loops, processes ---------------------------------------------------------------


def test_the_pool_has_no_overflow(path: Path) -> None:
    adapter = blocking(path, pool=PoolConfig(max_size=2, acquire_timeout=0.01))
    leases = [adapter.acquire(), adapter.acquire()]
    with pytest.raises(PoolTimeoutError, match="none of its 2 connections came free"):
        adapter.acquire()
    for lease in leases:
        adapter.release(lease)
    adapter.close()


def test_min_size_connections_are_made_in_the_background(db: Database) -> None:
    async def scenario() -> None:
        db.adapter.configure_pool(PoolConfig(min_size=3, max_size=4))
        await db.lease()
        await Crew(db.side.world).until(lambda: db.adapter.idle_connections() == 3)

    db.side.run(scenario())


def test_a_connection_that_rested_too_long_is_replaced(path: Path) -> None:
    adapter = blocking(path, pool=PoolConfig(max_idle_time=1e-9))
    used = []
    for _ in range(2):
        session = adapter.acquire()
        used.append(session.connection().connection.dbapi_connection)
        adapter.release(session)
    assert used[0] is not used[1]
    adapter.close()


def test_a_pool_is_sized_before_its_first_use(path: Path) -> None:
    adapter = blocking(path)
    adapter.release(adapter.acquire())
    with pytest.raises(InvalidSettingError, match="in use"):
        adapter.configure_pool(PoolConfig(max_size=1))
    adapter.close()


def test_one_adapter_serves_several_event_loops(path: Path) -> None:
    adapter = DatabaseResourceAdapter("db", url=f"sqlite+aiosqlite:///{path}")

    async def main(n: int) -> None:
        session = await adapter.aacquire()
        await session.execute(text("INSERT INTO rows VALUES (:n)"), {"n": n})
        await adapter.arelease(session)
        await adapter._engines.get().dispose()  # type: ignore[misc]

    asyncio.run(main(1))
    asyncio.run(main(2))
    assert sqlite_count(path) == 2


def test_a_closed_adapter_leases_nothing_but_takes_back(path: Path) -> None:
    adapter = blocking(path)
    session = adapter.acquire()
    session.execute(text("INSERT INTO rows VALUES (1)"))
    adapter.close()
    with pytest.raises(ResourceClosedError):
        adapter.acquire()
    adapter.release(session)
    assert sqlite_count(path) == 1
    assert adapter.health_check() is ResourceHealth.UNHEALTHY


def use_in_child(adapter: DatabaseResourceAdapter, answer: Any) -> None:
    session = adapter.acquire()
    answer.send(session.query("SELECT pg_backend_pid() AS pid")[0]["pid"])
    adapter.release(session)


@needs_postgresql
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests leave threads behind
def test_a_forked_child_opens_connections_of_its_own() -> None:
    adapter = DatabaseResourceAdapter("db", url=POSTGRESQL)
    session = adapter.acquire()
    mine = session.query("SELECT pg_backend_pid() AS pid")[0]["pid"]
    adapter.release(session)
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=use_in_child, args=(adapter, there))
    child.start()
    assert here.poll(10)
    assert here.recv() != mine
    child.join()
    session = adapter.acquire()
    assert session.query("SELECT pg_backend_pid() AS pid")[0]["pid"] == mine  # still alive
    adapter.release(session)
    adapter.close()


# --- servers ------------------------------------------------------------------------------


@pytest.mark.parametrize("url", SERVERS)
def test_a_server_answers(url: str) -> None:
    adapter = DatabaseResourceAdapter("db", url=url)
    assert adapter.health_check() is ResourceHealth.HEALTHY

    async def main() -> None:
        session = await adapter.aacquire() if adapter.is_async else adapter.acquire()
        answer = session.query("SELECT 1 AS one")
        assert (await answer if adapter.is_async else answer) == [{"one": 1}]
        await adapter.arelease(session)
        await adapter.aclose() if adapter.is_async else adapter.close()

    if adapter.is_async:
        asyncio.run(main())
        return
    session = adapter.acquire()
    assert session.query("SELECT 1 AS one") == [{"one": 1}]
    adapter.release(session)
    adapter.close()


@needs_postgresql
def test_an_error_that_was_swallowed_is_no_success_where_the_server_gave_up() -> None:
    adapter = DatabaseResourceAdapter("db", url=POSTGRESQL)
    session = adapter.acquire()
    with pytest.raises(Exception, match="division by zero"):
        session.execute(text("SELECT 1 / 0"))
    with pytest.raises(ResourceError, match="the server gave it up"):
        adapter.release(session)
    session = adapter.acquire()
    with pytest.raises(Exception, match="division by zero"), session.begin_nested():
        session.execute(text("SELECT 1 / 0"))
    adapter.release(session)  # only the part was given up
    adapter.close()


@needs_mariadb
def test_a_statement_may_take_longer_than_connecting() -> None:
    adapter = DatabaseResourceAdapter("db", url=MARIADB, connect_timeout=1)
    session = adapter.acquire()
    assert session.query("SELECT SLEEP(1.2) AS answer") == [{"answer": 0}]
    adapter.release(session)
    adapter.close()


@pytest.mark.parametrize("url", SERVERS[:2])
def test_a_connection_that_was_cut_off_while_it_rested_is_not_handed_out(url: str) -> None:
    adapter = DatabaseResourceAdapter("db", url=url, pool=PoolConfig(validate_after=0))
    kill = "SELECT pg_terminate_backend(:id)" if "postgresql" in url else "KILL :id"
    ask = "SELECT pg_backend_pid() AS id" if "postgresql" in url else "SELECT connection_id() AS id"
    session = adapter.acquire()
    identity = session.query(ask)[0]["id"]
    adapter.release(session)
    killer = create_engine(adapter._engines.target.url)
    with killer.connect() as connection:
        connection.execute(text(kill), {"id": identity})
    killer.dispose()
    session = adapter.acquire()
    assert session.query(ask)[0]["id"] != identity
    adapter.release(session)
    adapter.close()


# --- health -------------------------------------------------------------------------------


def test_health_asks_the_database(side: Side, path: Path) -> None:
    scheme = "sqlite+aiosqlite" if side.is_async else "sqlite"
    assert DatabaseResourceAdapter("db", url=f"{scheme}:///{path}").health_check() is ResourceHealth.HEALTHY
    missing = DatabaseResourceAdapter("db", url=f"{scheme}:///{path.parent}/later.db")
    assert missing.health_check() is ResourceHealth.UNKNOWN
    assert not (path.parent / "later.db").exists()
    (path.parent / "broken.db").write_text("this is no database, but a text that is long enough")
    broken = DatabaseResourceAdapter("db", url=f"{scheme}:///{path.parent}/broken.db")
    assert broken.health_check() is ResourceHealth.UNHEALTHY


def test_a_probe_says_why_it_failed_without_the_password() -> None:
    pytest.importorskip("psycopg")
    adapter = DatabaseResourceAdapter("db", url="postgresql://me:hidden@127.0.0.1:1/hidden")
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert adapter.trouble is not None
    assert adapter.trouble.startswith("OperationalError: ")
    assert "hidden" not in adapter.trouble


def test_a_file_that_could_not_be_made_is_unhealthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = DatabaseResourceAdapter("db", url=f"sqlite:///{tmp_path / 'new.db'}")
    assert adapter.health_check() is ResourceHealth.UNKNOWN
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs the tests may be allowed everything
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert adapter.trouble == f"the folder {str(tmp_path)!r} of its SQLite file cannot be written"


def test_a_write_after_a_read_that_is_out_of_date_says_what_helps(path: Path) -> None:
    adapter = DatabaseResourceAdapter("db", url=f"sqlite:///{path}")
    first = adapter.acquire()
    first.query("CREATE TABLE t (n INTEGER)")
    adapter.release(first)
    reader, writer = adapter.acquire(), adapter.acquire()
    reader.query("SELECT * FROM t")
    writer.query("INSERT INTO t VALUES (1)")
    adapter.release(writer)
    with pytest.raises(OperationalError, match=r'database is locked: SQLite refuses .*begin="IMMEDIATE"') as told:
        reader.query("INSERT INTO t VALUES (2)")
    adapter.release(reader, told.value)
    adapter.close()


@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "postgresql+psycopg_async"])
def test_a_server_that_never_answers_is_unhealthy_in_time(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://me@127.0.0.1:{silent.getsockname()[1]}/db"
        began = monotonic()
        assert DatabaseResourceAdapter("db", url=url, connect_timeout=1).health_check() is ResourceHealth.UNHEALTHY
        assert monotonic() - began < 5  # libpq waits for no less than 2 s


def test_a_full_pool_is_healthy(path: Path) -> None:
    adapter = blocking(path, pool=PoolConfig(max_size=1, acquire_timeout=0))
    session = adapter.acquire()
    assert adapter.health_check() is ResourceHealth.HEALTHY
    adapter.release(session)
    adapter.close()


def test_an_asynchronous_adapter_is_called_by_its_twins(path: Path) -> None:
    adapter = DatabaseResourceAdapter("db", url=f"sqlite+aiosqlite:///{path}")
    calls = ProviderCalls.of(adapter)
    assert calls.is_async
    assert calls.release_takes_error
    assert calls.close_is_async
    assert not ProviderCalls.of(blocking(path)).is_async
    with pytest.raises(AsyncResourceError, match="aacquire"):
        adapter.acquire()
    with pytest.raises(AsyncResourceError, match="aclose"):
        adapter.close()


def test_importing_the_adapters_imports_no_library_of_theirs() -> None:
    program = (
        "import sys; from wirestate.resources import database, filesystem, http, values\n"
        "print(sorted({'sqlalchemy', 'httpx', 'fsspec', 'tenacity'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
