"""The transaction of a database lease: only the lease ends it, and nothing runs in it after its end."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from sqlalchemy import Connection, Engine, RootTransaction, event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext

from wirestate.errors import LeaseOwnsTransactionError, ResourceError

# Going back to a savepoint ends nothing.
ENDING = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
    r"(?P<verb>BEGIN|START\s+TRANSACTION|COMMIT|END|ABORT|ROLLBACK)\b(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO\b)",
    re.IGNORECASE | re.DOTALL,
)


class LeaseTransaction(RootTransaction):
    """The transaction of one lease; ``commit()`` of anybody else is refused."""

    __slots__ = ("lease_name",)

    def __init__(self, connection: Connection, lease_name: str) -> None:
        self.lease_name = lease_name
        super().__init__(connection)

    def commit(self) -> NoReturn:
        raise LeaseOwnsTransactionError(self.lease_name, "commit")

    def keep(self) -> None:
        """Commit, as the lease ends."""
        super().commit()


def guard(engine: Engine, name: str) -> None:
    """Refuse statements that end a transaction, and on SQLite those that would run outside of one.

    SQLite rolls back by itself, for ``OR ROLLBACK`` or a full disk; each later statement would be its own
    transaction, and would stay.
    """

    def before(statement: str, context: ExecutionContext) -> None:
        ends = ENDING.match(statement)
        if ends is not None:
            raise LeaseOwnsTransactionError(name, ends["verb"].lower())
        if not is_in_transaction(context.root_connection):
            raise lost(name)

    def execute(cursor: DBAPICursor, statement: str, parameters: object, context: ExecutionContext) -> None:
        before(statement, context)

    def execute_plain(cursor: DBAPICursor, statement: str, context: ExecutionContext) -> None:
        before(statement, context)

    # Events of the dialect: those of the connection slow down all that a connection does.
    event.listen(engine, "do_execute", execute)
    event.listen(engine, "do_executemany", execute)
    event.listen(engine, "do_execute_no_params", execute_plain)


def is_in_transaction(connection: Connection) -> bool:
    """Tell whether the server has a transaction open; servers other than SQLite cannot be asked for free."""
    if connection.invalidated:
        return False
    driver: Any = connection.connection.driver_connection  # Any: a driver's connection
    return bool(getattr(driver, "in_transaction", True))


def lost(name: str, why: str = "SQLite rolled it back, or something ended it by hand") -> ResourceError:
    """Return the error for a transaction that is over although its lease is not."""
    return ResourceError(
        f"the transaction of {name!r} ended before its lease: {why}; what was written in it is not there to commit. "
        "Let the error pass, or put begin_nested() around what may fail",
        name,
        "commit",
    )
