"""The reset of a connection between two leases: nothing that one set on its session is seen by the next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry, PoolResetState

from wirestate.redaction import quoted
from wirestate.resources.reports import logger

TRACES = "wirestate_traces"  # in the info of a pool's entry, while a lease has its connection
# What may stand before the first word of a statement. Atomic: else each comment more doubles the time of a search.
LEADING = r"(?>[\s;\ufeff]+|--[^\n]*|#[^\n]*|/\*(?!M?!).*?\*/)*+"
MARIADB = ("mysql", "mariadb")
# Never DISCARD ALL: drivers keep prepared statements, and would use them on. Authorization comes first, since a
# lesser role may be refused what follows, and pg_catalog is named, since a search_path may put others before it.
POSTGRESQL = (
    "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; SELECT pg_catalog.pg_advisory_unlock_all(); UNLISTEN *; "
    "CLOSE ALL; DISCARD TEMP; DISCARD SEQUENCES"
)
# Drivers use on what they prepared, which these take away; wherever they stand, since a block may hide them.
POSTGRESQL_STAYS = re.compile(r"\b(?:DEALLOCATE|DISCARD)\b", re.IGNORECASE)
# SQLite has no reset. A PRAGMA is carried out while it is compiled, hence behind EXPLAIN, too.
SQLITE_STAYS = re.compile(
    LEADING + r"(?:PRAGMA|EXPLAIN|ATTACH|DETACH|CREATE\b(?=.*\btemp(?:orary)?\b))", re.IGNORECASE | re.DOTALL
)
# The protocol's reset keeps these. A function or procedure may change each, and no statement shows it.
# MySQL has roles since 8.0, and MariaDB runs no comments for it. In HEX, since a collation may call unlike names equal.
MARIADB_KEPT = (
    "SELECT HEX(CURRENT_USER()), HEX(DATABASE()) /*M!100005 , HEX(CURRENT_ROLE()) */ /*!80000 , HEX(CURRENT_ROLE()) */"
)
KEPT = "wirestate_kept"  # the answer of a new connection, in the record_info of a pool's entry
MARIADB_MOVES = re.compile(LEADING + r"USE\b", re.IGNORECASE | re.DOTALL)
COM_INIT_DB, COM_RESET_CONNECTION = 0x02, 0x1F
WIRES = ("pymysql", "aiomysql")  # drivers by which commands of the protocol can be sent: by no public call of theirs
BEGINNING = ("psycopg", "asyncpg")  # drivers that say the isolation level in each BEGIN


@dataclass(slots=True)
class Traces:
    """What a lease did to its connection.

    ``sent``: it sent a statement; ``moved``: to go to another database; ``stays``: one that no reset takes back.
    ``touched``: it reached for the driver's own connection, and no statement shows what it did there.
    ``info``: what was noted of the connection before (``Connection.info``); None: nothing is known.
    """

    info: dict[Any, Any] | None = None  # Any: the user's, as in SQLAlchemy
    sent: bool = False
    moved: bool = False
    stays: bool = False
    touched: bool = False

    def note(self, statement: str, dialect: str) -> None:
        """Add what *statement* leaves."""
        self.sent = True
        if dialect == "sqlite":
            self.stays = self.stays or SQLITE_STAYS.match(statement) is not None
        elif dialect == "postgresql":
            self.stays = self.stays or POSTGRESQL_STAYS.search(statement) is not None
        elif dialect in MARIADB:
            for part in statement.split(";") if ";" in statement else (statement,):
                self.moved = self.moved or MARIADB_MOVES.match(part) is not None


UNKNOWN = Traces(touched=True)  # a connection that was taken past the leases


class SessionReset:
    """Reset each connection that comes back to the pool of *engine*, and close what cannot be reset.

    Made when all listeners of our own are there: those that come later, or were set for all engines, are the user's.

    Args:
        engine: one whose pool does not roll back by itself.
        name: the name of the resource.
        assignments: what our own timeouts set, as in ``SET <assignment>``.
        isolation_level: of every transaction; None: the server's.
    """

    def __init__(self, engine: Engine, name: str, assignments: list[str], isolation_level: str | None) -> None:
        self._engine = engine
        self._name = name
        self._assignments = assignments
        # Any: one of the words that the dialect knows, which was checked.
        self._isolation_level: Any = None if isolation_level is None else isolation_level.upper().replace("_", " ")
        if engine.dialect.name in MARIADB and engine.dialect.driver in WIRES:
            event.listen(engine, "connect", _note_kept)
        self._ours = frozenset(engine.pool.dispatch.connect.listeners)
        event.listen(engine, "reset", self._returned)

    def _returned(self, connection: Any, entry: ConnectionPoolEntry | None, state: PoolResetState) -> None:
        """Roll back as SQLAlchemy's pool would, then take away what the lease left."""
        traces: Traces = UNKNOWN if entry is None else entry.info.pop(TRACES, UNKNOWN)
        if entry is not None and traces.info is not None:
            entry.info.clear()
            entry.info.update(traces.info)
        if not state.asyncio_safe:  # nothing can be awaited: SQLAlchemy closes it
            return
        if not state.transaction_was_reset:
            self._engine.dialect.do_rollback(connection)
        if entry is None or state.terminate_only or not (traces.sent or traces.touched):
            return
        if traces.stays or traces.touched:
            entry.invalidate()
            return
        try:
            self._reset(connection, entry, traces)
        except Exception as error:  # whatever a driver or a hook raises: the next lease gets another one
            told = quoted(error).partition("\n")[0]
            text = "pool %r: a connection could not be reset, and is closed: %s; see reset= of the adapter"
            logger.warning(text, self._name, told)
            entry.invalidate(error)

    def _reset(self, connection: Any, entry: ConnectionPoolEntry, traces: Traces) -> None:  # Any: a driver's
        dialect = self._engine.dialect
        if dialect.name == "postgresql":
            self._reset_postgresql(connection, dialect)
        elif dialect.name in MARIADB:
            if dialect.driver not in WIRES:
                entry.invalidate()
                return
            self._reset_mariadb(connection, dialect, traces)
        else:
            return
        if hooks := [hook for hook in self._engine.pool.dispatch.connect if hook not in self._ours]:
            for hook in hooks:
                hook(connection, entry)
            connection.commit()  # PostgreSQL would take back with the transaction what they set
        if dialect.name in MARIADB and _kept(connection) != (entry.record_info or {}).get(KEPT):
            entry.invalidate()

    def _reset_postgresql(self, connection: Any, dialect: Dialect) -> None:  # Any: a driver's connection
        statement = "; ".join([POSTGRESQL, *(f"SET {assignment}" for assignment in self._assignments)])
        if dialect.driver == "asyncpg":
            connection.run_async(lambda driver: driver.execute(statement))
        elif dialect.is_async:
            connection.run_async(lambda driver: _execute_alone(driver, statement))
        else:
            # One round trip: in a transaction of the driver there would be three.
            before, connection.autocommit = connection.autocommit, True
            cursor = connection.cursor()
            cursor.execute(statement, **({"prepare": False} if dialect.driver == "psycopg" else {}))
            cursor.close()
            connection.autocommit = before
        if self._isolation_level is not None and dialect.driver not in BEGINNING:
            dialect.set_isolation_level(connection, self._isolation_level)

    def _reset_mariadb(self, connection: Any, dialect: Dialect, traces: Traces) -> None:  # Any: a driver's connection
        driver = dialect.get_driver_connection(connection)
        back = [(COM_INIT_DB, driver.db)] if traces.moved and driver.db else []
        commands = [(COM_RESET_CONNECTION, b""), *back]
        if dialect.is_async:
            connection.run_async(lambda driver: _send_each(driver, commands))
        else:
            for command, argument in commands:
                driver._execute_command(command, argument)
                driver._read_ok_packet()
        cursor = connection.cursor()
        # Without a word about it, autocommit would be on now, and no lease could roll back.
        if assignments := [*_connected_with(driver, dialect), *self._assignments]:
            cursor.execute(f"SET {', '.join(assignments)}")
        if self._isolation_level is not None:
            dialect.set_isolation_level(connection, self._isolation_level)
        if driver.init_command is not None:
            cursor.execute(driver.init_command)
            connection.commit()
        cursor.close()


def _kept(connection: Any) -> Any:  # Any: a driver's connection, and the row that it answers
    cursor = connection.cursor()
    cursor.execute(MARIADB_KEPT)
    row = cursor.fetchone()
    cursor.close()
    return row


def _note_kept(connection: Any, entry: ConnectionPoolEntry) -> None:  # Any: a driver's connection
    if entry.record_info is not None:
        entry.record_info[KEPT] = _kept(connection)


def _connected_with(driver: Any, dialect: Dialect) -> list[str]:  # Any: a driver's connection
    """Return what PyMySQL and aiomysql set for a new connection; aiomysql's character set came with the password."""
    found = []
    if dialect.driver == "pymysql":
        collation = getattr(driver, "collation", None)
        found.append(f"NAMES {driver.charset}" + (f" COLLATE {collation}" if collation else ""))
    if driver.sql_mode is not None:
        found.append(f"sql_mode = {driver.escape(driver.sql_mode) if dialect.driver == 'pymysql' else driver.sql_mode}")
    if driver.autocommit_mode is not None:
        found.append(f"autocommit = {driver.autocommit_mode:d}")
    return found


async def _execute_alone(driver: Any, statement: str) -> None:  # Any: psycopg's asynchronous connection
    before = driver.autocommit
    await driver.set_autocommit(True)
    await driver.execute(statement, prepare=False)
    await driver.set_autocommit(before)


async def _send_each(driver: Any, commands: list[tuple[int, bytes]]) -> None:  # Any: aiomysql's connection
    for command, argument in commands:
        await driver._execute_command(command, argument)
        await driver._read_ok_packet()
