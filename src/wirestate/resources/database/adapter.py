"""Databases as a resource: SQLAlchemy sessions or connections, in one transaction per lease."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pydantic import SecretStr

from wirestate.errors import (
    AsyncResourceError,
    InvalidSettingError,
    PoolTimeoutError,
    ResourceError,
    ResourceUnavailableError,
    listed,
)
from wirestate.redaction import half_made_too
from wirestate.resources.base import BaseResourceProvider, ResourceHealth, ResourceStatus
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.native_pools import blocking_probe, refuse_options
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.secrets import NoFrames, Revealed, concealed, title_of, trouble_of

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from wirestate.resources.database.sessions import Ending

log = logging.getLogger("wirestate.database")

ASYNC_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+psycopg_async",
    "mysql": "mysql+aiomysql",
    "mariadb": "mariadb+aiomysql",
}
Handed = Literal["session", "connection", "engine"]
Reset = Literal["session", "transaction"]
SLOW = 1.0  # seconds after which a healthy answer counts as degraded
GRACE = 5.0  # seconds that a cancelled release gets to end its transaction, and the upkeep to end its work


class DatabaseResourceAdapter(BaseResourceProvider):
    """Lease SQLAlchemy sessions: committed when the lease ends well, rolled back when it fails.

    Say where the database is by ``url`` (also called ``connection_string``), or by ``backend``,
    ``host``, ``port``, ``database``, ``user`` and ``password``. ``memory`` and ``sqlite://`` are a
    private temporary file that is deleted at close. A URL of an asynchronous driver
    (``sqlite+aiosqlite://``, ``postgresql+asyncpg://``) makes the resources asynchronous.

    Args:
        name: the name of the resource.
        resource: what a lease hands out: a ``session``, a ``connection`` or the shared ``engine``.
        pool: size and timing of the engine's pool. In the background, ``min_size`` connections are made and
            those that rested longer than ``max_idle_time`` are ended, or replaced when they would be leased next.
        keep_on_failure: commit what a failed body did, too (audit trails).
        connect_timeout: seconds that connecting to a server may take, and checking a connection that rested.
        statement_timeout: seconds that a statement may take; on MySQL a SELECT, on SQLite with the reading of its rows.
        lock_timeout: seconds that it may wait for a lock, whole ones on MariaDB and MySQL; on SQLite the same as
            ``busy_timeout``, which it takes the place of.
        isolation_level: of every transaction, as SQLAlchemy names it; not for SQLite.
        reset: what is taken back when a lease ends: all that it set on its ``session``, so that the next one sees
            nothing of it, or what it did in its ``transaction`` only. An engine is handed out as it is.
        connect_args: further arguments for the driver.
        journal_mode: SQLite only, as are all below.
        synchronous: ``NORMAL`` survives a crash of the process; a power cut may lose the last commits.
        busy_timeout: seconds to wait for another writer.
        foreign_keys: whether foreign keys are enforced.
        begin: how transactions begin. ``IMMEDIATE`` is for leases that read first and write then, which
            could otherwise meet a busy database at their first write; but each lease waits for the one before.

    Raises:
        InvalidSettingError: the address is missing, contradicts itself or cannot be read.
        MissingDriverError: the driver is not installed.

    Example:
        >>> database = DatabaseResourceAdapter("users", url="memory")
        >>> db = database.acquire()
        >>> db.query("SELECT :a + 1 AS b", a=1)
        [{'b': 2}]
        >>> database.release(db)
        >>> database.close()
    """

    native_pool = True
    measured_as = "db.client.connection"
    takes_timeout = True  # acquire() does: a driver that waits without a deadline is not waited for

    def __init__(
        self,
        name: str = "database",
        *,
        url: str | SecretStr | URL | None = None,
        connection_string: str | SecretStr | None = None,
        backend: str | None = None,
        host: str | None = None,
        port: int | None = None,
        database: str | None = None,
        user: str | None = None,
        password: str | SecretStr | None = None,
        resource: Handed = "session",
        pool: PoolConfig | Mapping[str, Any] | None = None,  # Any: its fields
        keep_on_failure: bool = False,
        connect_timeout: float = 10.0,
        statement_timeout: float | None = None,
        lock_timeout: float | None = None,
        isolation_level: str | None = None,
        reset: Reset = "session",
        connect_args: Mapping[str, Any] | None = None,  # Any: the driver's own
        journal_mode: Literal["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] = "WAL",
        synchronous: Literal["OFF", "NORMAL", "FULL", "EXTRA"] = "NORMAL",
        busy_timeout: float = 5.0,
        foreign_keys: bool = True,
        begin: Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE"] = "DEFERRED",
    ) -> None:
        # Here and in the methods below: these modules import sqlalchemy, which `import wirestate` must not.
        from wirestate.resources.database import sessions
        from wirestate.resources.database.engines import EngineOptions, Engines, SqliteOptions
        from wirestate.resources.database.timeouts import Timeouts
        from wirestate.resources.database.urls import Address, target_of

        where = concealed(connection_string if url is None else url)
        word, arguments = concealed(password), concealed(connect_args)
        is_twice = url is not None and connection_string is not None
        del url, connection_string, password, connect_args  # a traceback with locals shows this frame
        super().__init__(name)
        if is_twice:
            raise self._wrong("url and connection_string are one setting")
        with NoFrames():
            target = target_of(name, Address(where, backend, host, port, database, user, word))
        if resource not in get_args(Handed):
            raise self._wrong(f"resource is {resource!r}; it must be one of {listed(get_args(Handed))}")
        if reset not in get_args(Reset):
            raise self._wrong(f"reset is {reset!r}; it must be one of {listed(get_args(Reset))}")
        if target.is_sqlite and isolation_level is not None:
            raise self._wrong("isolation_level is nothing that SQLite knows; see begin=")
        if isolation_level is not None and isolation_level.upper() == "AUTOCOMMIT" and resource != "engine":
            raise self._wrong('isolation_level AUTOCOMMIT makes no transaction of a lease; see resource="engine"')
        if isolation_level is not None:
            target.check_isolation(name, isolation_level)
        if arguments is not None and not isinstance(arguments, Mapping):
            raise self._wrong(f"connect_args is a {title_of(arguments)}; it must be a mapping")
        self._refuse_seconds("connect_timeout", connect_timeout, "more than 0")
        self._refuse_seconds("busy_timeout", busy_timeout, "0 or more")
        timeouts = Timeouts(statement_timeout, lock_timeout)
        timeouts.check(name, target.dialect)
        self.resource: Handed = resource
        self.keep_on_failure = keep_on_failure
        # An engine itself waits for nothing: it is handed out at once, whatever its driver, in a loop and outside.
        self.is_async = target.is_async and resource != "engine"
        self.blocking = not target.is_async
        self.asynchronous_twin = _asynchronous_twin(target.dialect) if self.blocking and resource != "engine" else None
        sqlite = SqliteOptions(journal_mode, synchronous, busy_timeout, foreign_keys, begin)
        if not target.is_sqlite and (lost := sqlite.changed()):
            raise self._wrong(f"{lost[0]} is for SQLite only; leave it out for {target.dialect!r}")
        sqlite = sqlite if lock_timeout is None else replace(sqlite, busy_timeout=lock_timeout)
        is_shared = resource == "engine"
        self.gate_per_lease = not is_shared  # nobody waits for what all have
        resets = reset == "session" and not is_shared
        options = EngineOptions(
            sqlite, connect_timeout, isolation_level, timeouts, is_shared, resets, Revealed(arguments or {})
        )
        self._connect_timeout = connect_timeout
        self._engines = Engines(name, target, options)
        self._sessions = sessions
        self._lease = sessions.LeaseOptions(name, resource == "session", self._engines.begin)
        if pool is not None:
            self.configure_pool(pool)

    @property
    def driver(self) -> str:
        """The package that speaks to the database, such as ``psycopg``."""
        return self._engines.target.driver

    @property
    def pool_config(self) -> PoolConfig:
        """Size and timing of the engine's pool."""
        return self._engines.pool

    def accepts_pool(self, config: PoolConfig) -> None:
        """Refuse what the engine's pool cannot honour.

        Raises:
            InvalidSettingError: with the names of those settings.
        """
        self._engines.accept(config)

    def configure_pool(self, config: PoolConfig | Mapping[str, Any]) -> None:  # Any: its fields
        """Size the engine's pool, before its first use.

        Raises:
            InvalidSettingError: a setting cannot be honoured, or the engine is in use.
        """
        config = PoolConfig.of(config, self.name)
        self._engines.configure(config)

    def idle_connections(self) -> int:
        """Return how many connections rest in the engine's pool."""
        return self._engines.idle()

    def creations(self) -> tuple[int, float]:
        """Return how many connections were made for leases, and the seconds that took in all."""
        made = self._engines.made.read()
        return made.total_acquisitions, made.total_acquisition_time

    @property
    def breaker(self) -> CircuitBreaker | None:
        """What stops connecting after ``breaker_failures`` failures in a row."""
        return self._engines.breaker

    def _refuse_seconds(self, setting: str, seconds: object, wanted: Literal["more than 0", "0 or more"]) -> None:
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not (seconds > 0 or (seconds == 0 and wanted == "0 or more")):  # type: ignore[operator]  # a number by now
            raise self._wrong(f"{setting} is {seconds!r}; it must be {wanted} seconds")

    def _wrong(self, what: str) -> InvalidSettingError:
        return InvalidSettingError(f"database {self.name!r}: {what}", self.name, "build")

    # --- leases ----------------------------------------------------------------------------

    def acquire(
        self, *, timeout: float | None = None, **options: Any
    ) -> Any:  # Any: a session, a connection, an engine
        """Connect if need be, begin the transaction of a lease, and return what works in it.

        *timeout* is in seconds: of connecting and checking; None means the pool's ``acquire_timeout``.

        Raises:
            ResourceUnavailableError: the database cannot be reached.
            ResourceTimeoutError: it did not answer in time.
            CircuitOpenError: it could not be reached lately, and it is too early to try again.
        """
        refuse_options(self.name, options)
        if self.is_async:
            raise AsyncResourceError(f"database {self.name!r} is asynchronous; await aacquire()", self.name, "acquire")
        engine = cast("Engine", self._engines.get())
        if self.resource == "engine":
            return engine
        try:
            if self._engines.target.is_sqlite:  # which nobody waits for without its busy_timeout
                return self._sessions.open_lease(engine, self._lease)
            with self._sessions.until(self.pool_config.acquire_timeout if timeout is None else timeout):
                return self._sessions.open_lease(engine, self._lease)
        except ResourceError:
            raise
        except Exception as error:
            raise self._unavailable(error) from error

    async def aacquire(self, **options: Any) -> Any:  # Any: a session, a connection or an engine
        """Do the same with an asynchronous driver; a caller that waits no longer cancels it."""
        refuse_options(self.name, options)
        engine = cast("AsyncEngine", self._engines.get())
        if self.resource == "engine":
            return engine
        try:
            return await self._sessions.aopen_lease(engine, self._lease)
        except ResourceError:
            raise
        except Exception as error:
            raise self._unavailable(error) from error

    def release(self, resource: Any, error: BaseException | None = None) -> None:  # Any: what acquire() gave
        """End the lease: commit if *error* is None, else roll back.

        Raises:
            LeaseReleasedError: it was released already.
        """
        if self.resource != "engine":
            self._sessions.end_lease(self.name, resource, self._ending(error))

    async def arelease(self, resource: Any, error: BaseException | None = None) -> None:  # Any: what aacquire() gave
        """Do the same with an asynchronous driver; a cancelled task ends its transaction, too."""
        if self.resource == "engine":
            return
        work = asyncio.ensure_future(self._sessions.aend_lease(self.name, resource, self._ending(error)))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            _unfinished.add(work)  # the loop itself would not keep it alive
            work.add_done_callback(_finished)
            await asyncio.wait([work], timeout=GRACE)
            raise

    def validate(self, resource: Any) -> bool:  # Any: what acquire() gave
        """Tell whether a leased session or connection is open and was not cut off."""
        return self.resource == "engine" or self._sessions.is_usable(resource)

    def _ending(self, error: BaseException | None) -> Ending:
        return self._sessions.Ending(
            failed=error is not None,
            keep=error is None or self.keep_on_failure,
            discard=self.status is ResourceStatus.CLOSED,
        )

    def _unavailable(self, error: Exception) -> ResourceError:
        if self._sessions.is_pool_timeout(error):
            size, limit = self.pool_config.max_size, self.pool_config.acquire_timeout
            text = f"pool {self.name!r}: none of its {size} connections came free in {limit} s; raise max_size"
            return PoolTimeoutError(text, self.name, "acquire")
        cause = getattr(error, "orig", None) or error
        unavailable = ResourceUnavailableError(self.name, cause)
        unavailable.add_note(f"the database is {self._engines.target.shown}")
        return unavailable

    # --- health and end --------------------------------------------------------------------

    def health_check(self) -> ResourceHealth:
        """Connect anew and ask for ``SELECT 1``; an SQLite file that is not there and could be made is UNKNOWN."""
        return blocking_probe(self.ahealth_check, is_async=self._engines.target.is_async)

    async def ahealth_check(self) -> ResourceHealth:
        """Do the same in an event loop; a synchronous driver blocks it."""
        if self.status is ResourceStatus.CLOSED:
            return ResourceHealth.UNHEALTHY
        file = self._engines.target.file
        if file is not None and file.parent.is_dir() and not file.exists():
            if not os.access(file.parent, os.W_OK | os.X_OK):
                self.trouble = f"the folder {str(file.parent)!r} of its SQLite file cannot be written"
                return ResourceHealth.UNHEALTHY
            return ResourceHealth.UNKNOWN  # connecting would make it
        began = monotonic()
        try:
            await self._sessions.probe(self._engines.single_use(), self._connect_timeout)
        except Exception as error:  # whatever a driver raises is an answer
            log.debug("probe of %r: %s", self.name, type(error).__name__)
            cause = getattr(error, "orig", None) or error
            self.trouble = trouble_of(cause, self._engines.target.url.password or "")
            return ResourceHealth.UNHEALTHY
        return ResourceHealth.DEGRADED if monotonic() - began > SLOW else ResourceHealth.HEALTHY

    @property
    def needs_loop(self) -> bool:
        """Whether an engine that was handed out has connections that can be closed in their event loop only."""
        return self._engines.needs_loop

    def close(self) -> None:
        """Close the idle connections; a leased one is closed when it comes back."""
        if self.is_async or self.needs_loop:
            raise AsyncResourceError(f"database {self.name!r} is asynchronous; await aclose()", self.name, "close")
        super().close()
        engine = self._engines.close()
        if engine is not None:
            getattr(engine, "sync_engine", engine).dispose()

    async def aclose(self) -> None:
        """Do the same with an asynchronous driver, in the loop that used it."""
        super().close()
        engine = self._engines.close()
        await self._engines.settle(GRACE)
        if engine is not None:
            await cast("AsyncEngine", engine).dispose()

    @half_made_too
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._engines.target.shown} {self.status.value}>"


_unfinished: set[asyncio.Future[None]] = set()


def _finished(work: asyncio.Future[None]) -> None:
    """Look at the result, which nobody waits for: asyncio would report an error in it as lost."""
    _unfinished.discard(work)
    if not work.cancelled():
        work.exception()


def _asynchronous_twin(dialect: str) -> str:
    """Return what to declare for functions that await their statements."""
    driver = ASYNC_DRIVERS.get(dialect)
    return "kind 'async_database'" + (f", or a url that begins with '{driver}://'" if driver else "")
