"""The databases that the adapter is tested on, by each driver, in the same words in both worlds."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.services import url_of
from wirestate import DatabaseResourceAdapter
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive


@dataclass(frozen=True)
class Driver:
    """A scheme of SQLAlchemy, and the server that it speaks to; None is SQLite."""

    scheme: str
    server: str | None
    is_async: bool

    @property
    def is_sqlite(self) -> bool:
        return self.server is None

    def url(self, base: str) -> str:
        """Return the URL of a server in the scheme of this driver."""
        return f"{self.scheme}://{base.partition('://')[2]}"


SYNC = [
    Driver("sqlite", None, False),
    Driver("postgresql+psycopg", "postgresql", False),
    Driver("mariadb+pymysql", "mariadb", False),
]
ASYNC = [
    Driver("sqlite+aiosqlite", None, True),
    Driver("postgresql+psycopg_async", "postgresql", True),
    Driver("postgresql+asyncpg", "postgresql", True),
    Driver("mariadb+aiomysql", "mariadb", True),
]
DRIVERS = [*SYNC, *ASYNC]
REMOTE = [driver for driver in DRIVERS if not driver.is_sqlite]


def named(driver: Driver) -> str:
    return driver.scheme.replace("+", "-")


class Database:
    """One table on one database, by one driver."""

    def __init__(self, driver: Driver, url: str, table: str, run: Any) -> None:
        self.driver = driver
        self.url = url
        self.table = table
        self.world: World = SUSPENDING if driver.is_async else BLOCKING
        self.run = run
        self.made: list[DatabaseResourceAdapter] = []
        self.out: list[tuple[Any, Any]] = []  # leases: one that a failed test leaves would block its table

    @property
    def is_async(self) -> bool:
        return self.driver.is_async

    def adapter(self, **settings: Any) -> DatabaseResourceAdapter:
        """Return an adapter, which is closed after the test."""
        made = DatabaseResourceAdapter("db", **{"url": self.url, **settings})
        self.made.append(made)
        return made

    async def call(self, thing: Any, verb: str, *args: Any, **kwargs: Any) -> Any:
        """Call *verb*, or await its asynchronous twin."""
        answer = getattr(thing, f"a{verb}" if self.is_async else verb)(*args, **kwargs)
        answer = await answer if self.is_async else answer
        if verb == "acquire":
            self.out.append((thing, answer))
        elif verb == "release":
            self.out = [(owner, lease) for owner, lease in self.out if lease is not args[0]]
        return answer

    async def do(self, session: Any, statement: str, **parameters: Any) -> Any:
        """Run SQL text, in which ``rows`` is the table of the test; return its rows."""
        answer = session.query(statement.replace("rows", self.table), **parameters)
        return await answer if self.is_async else answer

    async def lease(self, adapter: Any, *statements: str, error: BaseException | None = None) -> None:
        session = await self.call(adapter, "acquire")
        try:
            for statement in statements:
                await self.do(session, statement)
        except BaseException as failure:
            await self.call(adapter, "release", session, failure)
            raise
        await self.call(adapter, "release", session, error)

    def look(self, statement: str) -> list[tuple[Any, ...]]:
        """Return rows as another client sees them."""
        return look(self.url, statement.replace("rows", self.table))


def look(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run SQL text by a plain driver, past everything that is tested, and commit."""
    plain = url
    for driver in DRIVERS:
        if driver.is_async:
            scheme = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mariadb": "mariadb+pymysql"}
            plain = plain.replace(f"{driver.scheme}://", f"{scheme[driver.scheme.partition('+')[0]]}://")
    engine = create_engine(plain)
    try:
        with engine.begin() as connection:
            found = connection.execute(text(statement))
            return [tuple(row) for row in found] if found.returns_rows else []
    finally:
        engine.dispose()


@contextmanager
def opened(driver: Driver, folder: Path, base: str | None = None) -> Iterator[Database]:
    """Make a table of its own on the shared server, or the one at *base*."""
    if driver.is_sqlite:
        url = f"{driver.scheme}:///{folder / 'rows.db'}"
    else:
        url = driver.url(base or url_of(driver.server or ""))
    table = f"rows_{os.getpid()}_{random.SystemRandom().randrange(10**9)}"
    look(url, f"CREATE TABLE {table} (n INTEGER PRIMARY KEY)")
    try:
        if driver.is_async:
            with asyncio.Runner() as runner:
                yield from _used(Database(driver, url, table, runner.run))
        else:
            yield from _used(Database(driver, url, table, drive))
    finally:
        look(url, f"DROP TABLE {table}")


def _used(database: Database) -> Iterator[Database]:
    try:
        yield database
    finally:
        database.run(_closed(database))
        gc.collect()


async def _closed(database: Database) -> None:
    for adapter, lease in list(database.out):
        with suppress(Exception):
            await database.call(adapter, "release", lease, ValueError())
    for adapter in database.made:
        await database.call(adapter, "close")


@pytest.fixture(params=DRIVERS, ids=named)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with opened(request.param, tmp_path) as made:
        yield made
