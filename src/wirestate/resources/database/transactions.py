"""The transaction of a database lease: only the lease ends it, and nothing runs in it after its end."""

from __future__ import annotations

import re
from typing import Any, NoReturn, cast

from sqlalchemy import Connection, Engine, PoolProxiedConnection, RootTransaction, event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext

from wirestate.errors import LeaseOwnsTransactionError, ResourceError
from wirestate.resources.database.reset import LEADING, MARIADB, TRACES, Traces

# Going back to a savepoint ends nothing.
ENDING = re.compile(
    LEADING + r"(?P<verb>BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|ROLLBACK)\b(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b)",
    re.IGNORECASE | re.DOTALL,
)

DEADLOCK = 1213
STREAMING = (
    "rows of {name!r} are still streamed, and its driver would drop them for another statement; "
    "read them to their end, or take another lease"
)


class LeaseTransaction(RootTransaction):
    """The transaction of one lease; ``commit()`` of anybody else is refused.

    ``begun`` is whether the server must have a transaction open by now, ``failed`` whether a statement failed,
    ``gone`` why the server has given it up, ``stream`` whether rows of it are still on their way.
    """

    __slots__ = ("begun", "failed", "gone", "lease_name", "stream")

    def __init__(self, connection: Connection, lease_name: str) -> None:
        self.lease_name = lease_name
        self.begun = self.failed = self.stream = False
        self.gone: str | None = None
        super().__init__(connection)

    def commit(self) -> NoReturn:
        raise LeaseOwnsTransactionError(self.lease_name, "commit")

    def keep(self) -> None:
        """Commit, as the lease ends."""
        super().commit()


class LeasedConnection(Connection):
    """The connection of one lease, which alone commits, rolls back and closes it."""

    lease_name: str
    traces: Traces

    @property
    def connection(self) -> PoolProxiedConnection:
        """The pool's side of the connection, by which the driver's own can be reached."""
        self.traces.touched = True
        return super().connection

    @property
    def info(self) -> dict[Any, Any]:  # Any: as in Connection.info
        return pooled(self).info

    def commit(self) -> NoReturn:
        raise LeaseOwnsTransactionError(self.lease_name, "commit")

    def rollback(self) -> NoReturn:
        raise LeaseOwnsTransactionError(self.lease_name, "rollback")

    def close(self) -> NoReturn:
        raise LeaseOwnsTransactionError(self.lease_name, "close")


def traced(connection: Connection) -> Traces:
    """Return what notes the traces of a lease on *connection*, from now until that comes back."""
    info = connection.info
    info.pop(TRACES, None)  # of the lease before, which stays where nothing is reset
    traces = info[TRACES] = Traces(info.copy())
    return traces


def lease(connection: Connection, name: str, traces: Traces) -> None:
    """Let only the lease end the transaction of *connection*, and note what it does there."""
    connection.__class__ = LeasedConnection  # the engine makes them, and has no public way to be told of another class
    leased = cast("LeasedConnection", connection)
    leased.lease_name, leased.traces = name, traces


def pooled(connection: Connection) -> PoolProxiedConnection:
    """Return the pool's side of *connection*, by the way that leaves no trace."""
    if isinstance(connection, LeasedConnection):
        return super(LeasedConnection, connection).connection
    return connection.connection


def guard(engine: Engine, name: str) -> None:
    """Refuse statements that end a transaction, and those that would run outside of one.

    SQLite rolls back by itself, for ``OR ROLLBACK`` or a full disk, and MariaDB for a deadlock; each later
    statement would be its own transaction, and would stay.
    """

    dialect = engine.dialect.name
    may_cut_streams = dialect in MARIADB

    def before(statement: str, context: ExecutionContext) -> None:
        if isinstance(context.root_connection, LeasedConnection):
            context.root_connection.traces.note(statement, dialect)
        ends = ENDING.match(statement)
        if ends is not None:
            raise LeaseOwnsTransactionError(name, ends["verb"].lower())
        why = why_lost(context.root_connection)
        if why is not None:
            raise lost(name, why)
        if may_cut_streams and _is_streaming(context.root_connection):
            raise ResourceError(STREAMING.format(name=name), name, "execute")

    def execute(cursor: DBAPICursor, statement: str, parameters: object, context: ExecutionContext) -> None:
        before(statement, context)

    def execute_plain(cursor: DBAPICursor, statement: str, context: ExecutionContext) -> None:
        before(statement, context)

    # Events of the dialect: those of the connection slow down all that a connection does.
    event.listen(engine, "do_execute", execute)
    event.listen(engine, "do_executemany", execute)
    event.listen(engine, "do_execute_no_params", execute_plain)
    if dialect != "sqlite":  # which always knows
        event.listen(engine, "after_cursor_execute", _note_begin)
        event.listen(engine, "handle_error", _note_failure)


def _note_begin(connection: Connection, cursor: DBAPICursor, *_: object) -> None:
    transaction = connection.get_transaction()
    if isinstance(connection, LeasedConnection):
        connection.traces.sent = True  # a sequence is asked past do_execute
    if isinstance(transaction, LeaseTransaction) and not transaction.begun:
        # DDL after reading ends a transaction of MariaDB, too, but nothing is lost by that.
        wrote = cursor.description is None and cursor.rowcount > 0
        transaction.begun = wrote or connection.dialect.name not in MARIADB


def _note_failure(context: Any) -> None:  # Any: an ExceptionContext
    transaction = None if context.connection is None else context.connection.get_transaction()
    if isinstance(transaction, LeaseTransaction):
        transaction.failed = True
        arguments = getattr(context.original_exception, "args", ())
        if context.dialect.name in MARIADB and arguments[:1] == (DEADLOCK,):
            transaction.gone = "the server rolled it back to break a deadlock"


def why_lost(connection: Connection) -> str | None:
    """Return why the server has no transaction for a lease any more; None where it has, or cannot be asked for free."""
    if connection.invalidated:
        return "its connection broke"
    driver: Any = pooled(connection).driver_connection  # Any: a driver's connection
    inside = getattr(driver, "in_transaction", None)  # SQLite
    if inside is None:
        transaction = connection.get_transaction()
        if not isinstance(transaction, LeaseTransaction):
            return None
        if transaction.gone is not None:
            return transaction.gone
        inside = _is_inside(driver) if transaction.begun else None
    if inside is not False:
        return None
    itself = (
        "as MariaDB and MySQL do for CREATE TABLE and the like" if connection.dialect.name in MARIADB else "by itself"
    )
    return f"the server ended it {itself}, or something did so by hand"


def _is_inside(driver: Any) -> bool | None:  # Any: a driver's connection
    if hasattr(driver, "pgconn"):  # psycopg
        return bool(driver.pgconn.transaction_status)
    if hasattr(driver, "is_in_transaction"):  # asyncpg
        return bool(driver.is_in_transaction())
    status = getattr(driver, "server_status", None)  # PyMySQL, aiomysql, asyncmy
    return None if status is None else bool(status & 1)


def _is_streaming(connection: Connection) -> bool:
    """Tell whether rows are on their way, which the driver would drop for another statement."""
    transaction = connection.get_transaction()
    return isinstance(transaction, LeaseTransaction) and transaction.stream


def lost(name: str, why: str) -> ResourceError:
    """Return the error for a transaction that is over although its lease is not."""
    return ResourceError(
        f"the transaction of {name!r} ended before its lease: {why}; what was written in it can be neither kept nor "
        "taken back any more. Let the error pass, or put begin_nested() around what may fail",
        name,
        "commit",
    )
