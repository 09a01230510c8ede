"""What a database lease hands out: sessions and connections whose transaction belongs to the lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NoReturn, cast

from sqlalchemy import Connection, CursorResult, Engine, MappingResult, RootTransaction, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from wirestate.errors import LeaseOwnsTransactionError, LeaseReleasedError, ResourceError, ResourceTimeoutError
from wirestate.resources.database.deadlines import until, within
from wirestate.resources.database.transactions import (
    LeasedConnection,
    LeaseTransaction,
    lease,
    lost,
    pooled,
    traced,
    why_lost,
)

__all__ = ["Ending", "LeaseOptions", "aend_lease", "aopen_lease", "end_lease", "is_pool_timeout", "is_usable"]
__all__ += ["open_lease", "probe", "until"]
OVER = ("begin", "begin_nested", "execute", "exec_driver_sql", "scalar", "scalars")
BATCH = 1000  # rows of a stream that are in memory at once


def _refuse(name: str, verb: str, *_: object, **__: object) -> NoReturn:
    raise LeaseOwnsTransactionError(name, verb)


def _refuse_late(name: str, *_: object, **__: object) -> NoReturn:
    raise LeaseReleasedError(name)


class LeasedSession(Session):
    """A session in the one transaction of its lease, which ends it; ``begin_nested()`` is free."""

    def __init__(self, name: str, leased: Connection) -> None:
        # rollback_only: a flush that fails rolls the lease's own transaction back, too.
        super().__init__(leased, join_transaction_mode="rollback_only")
        self.lease_name = name
        self.leased = leased
        self.streams: list[MappingResult] = []

    def query(self, *entities: Any, **parameters: Any) -> Any:  # Any: as in Session.query
        """Run SQL text and return its rows as dicts; for anything else, do what ``Session.query`` does.

        Example: ``db.query("SELECT name FROM users WHERE id = :id", id=1)``
        """
        if len(entities) == 1 and isinstance(entities[0], str):
            return _rows(self.execute(_statement(entities[0]), parameters))
        return super().query(*entities, **parameters)

    def stream(self, statement: str, **parameters: Any) -> Iterator[dict[str, Any]]:  # Any: values of columns
        """Run SQL text and yield its rows as dicts, no more than a thousand of them in memory at a time.

        Example: ``for row in db.stream("SELECT * FROM events WHERE day = :day", day=day)``
        """
        rows = self.open_stream(statement, parameters)
        try:
            while batch := next_of(rows):
                yield from batch
        finally:
            self.close_stream(rows)

    def open_stream(self, statement: str, parameters: dict[str, Any]) -> MappingResult:  # Any: values of columns
        """Run SQL text with a cursor on the server, where its driver has such."""
        options = {"stream_results": True, "yield_per": BATCH}
        rows = self.execute(_statement(statement), parameters, execution_options=options).mappings()
        self.streams.append(rows)
        self._note_streams()
        return rows

    def close_stream(self, rows: MappingResult) -> None:
        """Drop what is left of *rows*."""
        if rows in self.streams:
            self.streams.remove(rows)
            rows.close()
            self._note_streams()

    def _note_streams(self) -> None:
        transaction = self.leased.get_transaction()
        if isinstance(transaction, LeaseTransaction):
            transaction.stream = bool(self.streams)

    def begin(self, nested: bool = False) -> Any:  # Any: as in Session.begin
        return super().begin(nested=True) if nested else _refuse(self.lease_name, "begin")

    def commit(self) -> NoReturn:
        _refuse(self.lease_name, "commit")

    def rollback(self) -> NoReturn:
        _refuse(self.lease_name, "rollback")

    def close(self) -> NoReturn:
        _refuse(self.lease_name, "close")

    def reset(self) -> NoReturn:
        _refuse(self.lease_name, "reset")

    def invalidate(self) -> NoReturn:
        _refuse(self.lease_name, "invalidate")

    def prepare(self) -> NoReturn:
        _refuse(self.lease_name, "prepare")


class LeasedAsyncSession(AsyncSession):
    """The same for tasks: an ``AsyncSession`` over a :class:`LeasedSession`."""

    def __init__(self, name: str, connection: AsyncConnection) -> None:
        def over(bind: Connection, **_: object) -> LeasedSession:
            return LeasedSession(name, bind)

        super().__init__(connection, sync_session_class=over)  # type: ignore[arg-type]  # any callable will do

    async def query(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:  # Any: values of columns
        """Run SQL text and return its rows as dicts."""
        return _rows(await self.execute(_statement(statement), parameters))

    def stream(self, statement: Any, *args: Any, **parameters: Any) -> Any:  # Any: as in AsyncSession.stream
        """Run SQL text and yield its rows as dicts; for anything else, do what ``AsyncSession.stream`` does.

        Example: ``async for row in db.stream("SELECT * FROM events WHERE day = :day", day=day)``
        """
        if isinstance(statement, str):
            return self._stream(statement, parameters)
        return super().stream(statement, *args, **parameters)

    async def _stream(self, statement: str, parameters: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        session = cast("LeasedSession", self.sync_session)
        rows = await self.run_sync(lambda _: session.open_stream(statement, parameters))
        try:
            while batch := await self.run_sync(lambda _: next_of(rows)):
                for row in batch:
                    yield row
        finally:
            await self.run_sync(lambda _: session.close_stream(rows))


# TextClause is immutable; parsing its parameters again costs as much as opening a lease.
_statement = lru_cache(maxsize=256)(text)


def _rows(result: Any) -> list[dict[str, Any]]:  # Any: any kind of Result, values of columns
    if isinstance(result, CursorResult) and not result.returns_rows:
        return []
    return [dict(row) for row in result.mappings()]


def next_of(rows: MappingResult) -> list[dict[str, Any]]:  # Any: values of columns
    """Return the next rows of a stream; none: it is at its end."""
    return [dict(row) for row in rows.fetchmany(BATCH)]


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """What the leases of one adapter have in common; ``begin`` is the statement that begins SQLite's transactions."""

    name: str
    session: bool
    begin: str | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a lease ends.

    ``keep``: commit; ``failed``: the body raised; ``discard``: the connection is not wanted any more.
    """

    keep: bool
    failed: bool
    discard: bool


def open_lease(engine: Engine, options: LeaseOptions) -> Session | Connection:
    """Take a connection from the pool, which connects now if it has to, and begin."""
    connection = engine.connect()
    try:
        _begin(connection, options)
        return LeasedSession(options.name, connection) if options.session else connection
    except BaseException:
        Connection.close(connection)
        raise


async def aopen_lease(engine: AsyncEngine, options: LeaseOptions) -> AsyncSession | AsyncConnection:
    """Do the same with an asynchronous driver."""
    connection = await engine.connect()
    try:
        await connection.run_sync(_begin, options)
        return LeasedAsyncSession(options.name, connection) if options.session else connection
    except BaseException:
        await asyncio.shield(connection.run_sync(Connection.close))
        raise


def _begin(connection: Connection, options: LeaseOptions) -> None:
    """Begin the transaction of a lease, and let nobody else end it."""
    traces = traced(connection)
    LeaseTransaction(connection, options.name)  # as Connection.begin() does with its own
    if options.begin is not None:
        # Past SQLAlchemy, whose event for it makes a small lease half as slow again.
        cursor = connection.connection.cursor()
        cursor.execute(options.begin)
        cursor.close()
    lease(connection, options.name, traces)


def end_lease(name: str, resource: object, ending: Ending) -> None:
    """Commit or roll back, and give the connection back in any case.

    Raises:
        LeaseReleasedError: the lease is over already.
        ResourceError: there is nothing left to commit, although the body did not fail.
    """
    session = resource if isinstance(resource, LeasedSession) else None
    connection = session.leased if session is not None else resource
    if not isinstance(connection, LeasedConnection):
        raise ResourceError(f"{resource!r} was not leased by {name!r}", name, "release")
    if connection.closed:
        raise LeaseReleasedError(name)
    touched = connection.traces.touched  # SQLAlchemy itself reaches for it to commit
    try:
        if isinstance(session, LeasedSession):
            for rows in list(session.streams):
                with suppress(DBAPIError):  # a connection that broke
                    session.close_stream(rows)
        _end_transaction(name, connection, session, ending)
    finally:
        connection.traces.touched = touched
        if session is not None:
            Session.close(session)
        if not connection.invalidated and (ending.discard or (ending.failed and _is_cut_off(connection))):
            connection.invalidate()
        Connection.close(connection)
        late = partial(_refuse_late, name)
        for verb in OVER:  # of the session, too: it asks its connection
            setattr(connection, verb, late)


def _is_cut_off(connection: Connection) -> bool:
    """Tell whether the driver has closed it: one cancelled twice does so before SQLAlchemy's pool knows."""
    driver: Any = pooled(connection).driver_connection  # Any: a driver's connection
    closed = getattr(driver, "is_closed", getattr(driver, "closed", False))
    return bool(closed() if callable(closed) else closed)


async def aend_lease(name: str, resource: AsyncSession | AsyncConnection, ending: Ending) -> None:
    """Do the same with an asynchronous driver."""
    await resource.run_sync(lambda inner: end_lease(name, inner, ending))


def _end_transaction(name: str, connection: Connection, session: Session | None, ending: Ending) -> None:
    transaction = connection.get_transaction()
    if not isinstance(transaction, LeaseTransaction):  # none, or one that somebody began after ending ours
        if transaction is not None:
            _roll_back(connection, transaction, ending)
        if not ending.failed:
            raise lost(name, "a flush failed, or something ended it by hand")
    elif not ending.keep:
        _roll_back(connection, transaction, ending)
    else:
        _keep(name, connection, transaction, session, ending)


def _roll_back(connection: Connection, transaction: RootTransaction, ending: Ending) -> None:
    """Roll back; where the connection broke the server does so, and the body's error says enough."""
    try:
        transaction.rollback()
    except DBAPIError:
        if not connection.invalidated:
            connection.invalidate()
        if not ending.failed:
            raise


def _keep(
    name: str, connection: Connection, transaction: LeaseTransaction, session: Session | None, ending: Ending
) -> None:
    why = why_lost(connection)
    if why is not None:
        transaction.rollback()
        if ending.failed:
            return
        raise lost(name, why)
    if session is not None:
        session.flush()
    _raise_if_given_up(name, connection, transaction)
    try:
        transaction.keep()
    except BaseException:
        # SQLite stays in a transaction whose commit failed, and SQLAlchemy takes it for ended.
        if not connection.invalidated:
            connection.invalidate()
        raise


def _raise_if_given_up(name: str, connection: Connection, transaction: LeaseTransaction) -> None:
    """PostgreSQL answers COMMIT after a failed statement with a silent ROLLBACK."""
    if connection.invalidated or not transaction.failed:
        return
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError as error:
        raise lost(name, "a statement failed and the server gave it up") from error


def is_usable(resource: object) -> bool:
    """Tell whether the connection of a lease is open and was not cut off."""
    inner = resource.sync_session if isinstance(resource, AsyncSession) else resource
    connection = inner.leased if isinstance(inner, LeasedSession) else inner
    return isinstance(connection, Connection | AsyncConnection) and not (connection.closed or connection.invalidated)


def is_pool_timeout(error: BaseException) -> bool:
    """Tell whether *error* is the engine's pool saying that all is in use."""
    return isinstance(error, PoolTimeout)


async def probe(engine: Engine | AsyncEngine, seconds: float) -> None:
    """Connect and ask the smallest question.

    Raises:
        TimeoutError: there was no answer in time.
    """
    late = ResourceTimeoutError(f"no answer within {seconds:g} s")
    if not isinstance(engine, AsyncEngine):
        return within(seconds, lambda: _ask(engine), lambda _: None, late)
    try:
        async with asyncio.timeout(seconds), engine.connect() as connection:
            await connection.exec_driver_sql("SELECT 1")
    except TimeoutError:
        raise late from None


def _ask(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
