"""How long a statement, and its wait for a lock, may take: the server's own settings, and errors that name ours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext

from wirestate.errors import InvalidSettingError

UNTIL = "wirestate_until"  # in Connection.info on SQLite: a list with the moment to interrupt at
STEPS = 1000  # instructions of SQLite between two looks at the clock, well below a millisecond
CODES = {  # by SQLSTATE, number of the MariaDB or MySQL error, or name of the SQLite error
    "57014": "statement_timeout",
    "55P03": "lock_timeout",
    1969: "statement_timeout",
    3024: "statement_timeout",
    1205: "lock_timeout",
    "SQLITE_INTERRUPT": "statement_timeout",
    "SQLITE_BUSY": "lock_timeout",
}
KNOWN = ("sqlite", "postgresql", "mysql", "mariadb")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a statement may take, and that it may wait for a lock; None: what the server says."""

    statement_timeout: float | None
    lock_timeout: float | None

    def check(self, name: str, dialect: str) -> None:
        """Refuse what makes no sense, and what *dialect* does not know.

        Raises:
            InvalidSettingError: with the name of the setting.
        """
        for setting in ("statement_timeout", "lock_timeout"):
            seconds = getattr(self, setting)
            if seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
                text = f"database {name!r}: {setting} is {seconds!r}; it must be more than 0 seconds"
                raise InvalidSettingError(text, name, "build")
            if dialect not in KNOWN:
                text = f"database {name!r}: {setting} cannot be honoured for {dialect!r}; leave it out"
                raise InvalidSettingError(text, name, "build")

    def apply(self, engine: Engine, name: str) -> None:
        """Set them for each connection that is made from now on."""
        if self.statement_timeout is None and self.lock_timeout is None:
            return
        if engine.dialect.name == "sqlite":
            if self.statement_timeout is not None:
                _interrupt_after(engine, self.statement_timeout)
        else:
            event.listen(engine, "connect", lambda connection, entry: self._set(connection, engine.dialect))
        event.listen(engine, "handle_error", lambda context: self._explain(context, name))

    def _set(self, connection: Any, dialect: Any) -> None:  # Any: a driver's connection, a dialect with its own flags
        cursor = connection.cursor()
        for assignment in self.assignments(dialect):
            cursor.execute(f"SET {assignment}")
        cursor.close()
        connection.commit()  # PostgreSQL would take them back with the transaction that they were set in

    def assignments(self, dialect: Any) -> list[str]:  # Any: a dialect with its own flags
        """Return what SET sets on a connection, which a server's reset takes back; SQLite is told otherwise."""
        statement, lock = self.statement_timeout, self.lock_timeout
        if dialect.name == "postgresql":
            found = {"statement_timeout": statement, "lock_timeout": lock}
            return [
                f"{setting} = {_milliseconds(seconds)}" for setting, seconds in found.items() if seconds is not None
            ]
        if dialect.name not in ("mysql", "mariadb"):
            return []
        limits = []
        if statement is not None and dialect.is_mariadb:
            limits.append(f"SESSION max_statement_time = {max(statement, 0.001):.3f}")
        elif statement is not None:
            limits.append(f"SESSION max_execution_time = {_milliseconds(statement)}")
        return limits + ([f"SESSION innodb_lock_wait_timeout = {math.ceil(lock)}"] if lock is not None else [])

    def _explain(self, context: Any, name: str) -> None:  # Any: an ExceptionContext
        """Let the error name our setting."""
        error, setting = context.sqlalchemy_exception, _exceeded(context.original_exception)
        seconds = None if setting is None else getattr(self, setting)
        if error is not None and seconds is not None:
            error.args = (f"{error.args[0]}: {setting} of resource {name!r} is {seconds:g} s", *error.args[1:])


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))  # 0 would be no limit


def _exceeded(error: BaseException) -> str | None:
    """Return the setting that a driver's error comes from."""
    if getattr(error, "sqlstate", None) == "57014" and "timeout" not in str(error):  # cancelled by somebody
        return None
    codes = [getattr(error, attribute, None) for attribute in ("sqlstate", "sqlite_errorname")]
    return next(
        (CODES[code] for code in [*codes, *error.args[:1]] if isinstance(code, str | int) and code in CODES), None
    )


def _interrupt_after(engine: Engine, seconds: float) -> None:
    """Let SQLite look at the clock while it works on a statement, or fetches rows of it."""

    def connected(connection: Any, entry: Any) -> None:  # Any: a driver's connection, a pool's entry
        until = entry.info[UNTIL] = [math.inf]

        def look() -> bool:
            return monotonic() > until[0]

        if hasattr(connection, "run_async"):
            connection.run_async(lambda driver: driver.set_progress_handler(look, STEPS))
        else:
            connection.set_progress_handler(look, STEPS)

    def execute(cursor: DBAPICursor, statement: str, parameters: object, context: ExecutionContext) -> None:
        context.root_connection.info[UNTIL][0] = monotonic() + seconds

    def execute_plain(cursor: DBAPICursor, statement: str, context: ExecutionContext) -> None:
        context.root_connection.info[UNTIL][0] = monotonic() + seconds

    def ended(connection: Connection) -> None:
        if not connection.invalidated:
            connection.info[UNTIL][0] = math.inf

    event.listen(engine, "connect", connected)
    event.listen(engine, "do_execute", execute)
    event.listen(engine, "do_executemany", execute)
    event.listen(engine, "do_execute_no_params", execute_plain)
    event.listen(engine, "commit", ended)  # they take as long as they take
    event.listen(engine, "rollback", ended)
