"""Engines as leases need them: SQLite that can roll everything back, and a pool that honours PoolConfig."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from tenacity import Retrying, retry_if_exception_message, stop_after_delay, wait_random

from wirestate.errors import InvalidSettingError, listed
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.database.connecting import Care
from wirestate.resources.database.loops import LoopWatch
from wirestate.resources.database.pool import AsyncEnginePool, EnginePool
from wirestate.resources.database.reset import SessionReset
from wirestate.resources.database.timeouts import Timeouts
from wirestate.resources.database.transactions import guard
from wirestate.resources.database.upkeep import Keeper
from wirestate.resources.database.urls import Target
from wirestate.resources.inherited import forget_at_fork
from wirestate.resources.meter import Meter
from wirestate.resources.native_pools import PerLoop, refuse_unhonoured
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.private_folders import PrivateFolder

SETTINGS = frozenset(setting.name for setting in fields(PoolConfig))
OF_THE_GATE = {"leak_threshold", "max_waiting"}  # there is none in front of an engine that all share
CHOICES = {
    "journal_mode": ("WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"),
    "synchronous": ("OFF", "NORMAL", "FULL", "EXTRA"),
    "begin": ("DEFERRED", "IMMEDIATE", "EXCLUSIVE"),
}
# How drivers call it. They stop trying some time after our own deadline, so that no thread of theirs stays.
CONNECT_TIMEOUTS = {
    **dict.fromkeys(("psycopg", "psycopg2", "pymysql", "aiomysql", "asyncmy", "MySQLdb"), "connect_timeout"),
    **dict.fromkeys(("asyncpg", "pg8000"), "timeout"),
}
LOCKED = (
    "SQLite refuses at once what reads before it writes, if another transaction writes meanwhile; "
    'declare the resource with begin="IMMEDIATE", or let the transaction write first'
)


@dataclass(frozen=True, slots=True)
class SqliteOptions:
    """How SQLite connections are set up."""

    journal_mode: str = "WAL"
    synchronous: str = "NORMAL"
    busy_timeout: float = 5.0
    foreign_keys: bool = True
    begin: str = "DEFERRED"

    def __post_init__(self) -> None:
        for setting, choices in CHOICES.items():  # they become part of statements
            if getattr(self, setting) not in choices:
                text = f"SQLite's {setting} is {getattr(self, setting)!r}; it must be one of {listed(choices)}"
                raise InvalidSettingError(text, None, "build")

    def changed(self) -> list[str]:
        """Return the names of the options that are not as usual."""
        return [option.name for option in fields(self) if getattr(self, option.name) != option.default]

    @property
    def begin_statement(self) -> str:
        return f"BEGIN {self.begin}"

    @property
    def pragmas(self) -> tuple[str, ...]:
        return (
            f"PRAGMA journal_mode={self.journal_mode}",
            f"PRAGMA synchronous={self.synchronous}",
            f"PRAGMA foreign_keys={'ON' if self.foreign_keys else 'OFF'}",
        )


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is made with besides its address."""

    sqlite: SqliteOptions
    connect_timeout: float
    isolation_level: str | None
    timeouts: Timeouts
    is_shared: bool  # the engine itself is handed out
    resets: bool  # what a lease set on its connection
    connect_args: Mapping[str, Any] = field(repr=False)  # Any: the driver's own


class Engines:
    """The engines of one adapter: one for all threads, or one for each event loop."""

    def __init__(self, name: str, target: Target, options: EngineOptions) -> None:
        self.name = name
        self.target = target
        self.pool = PoolConfig()
        self.begin = options.sqlite.begin_statement if target.is_sqlite else None
        self._options = options
        self.breaker: CircuitBreaker | None = None
        self.made = Meter()
        # An engine that is handed out goes from loop to loop with its user; it knows where its connections belong.
        per_loop = target.is_async and not options.is_shared
        self._made: PerLoop[Engine | AsyncEngine] = PerLoop(name, self._pooled, self._abandon, per_loop=per_loop)
        self._watch: LoopWatch | None = None
        self._keepers: WeakSet[Keeper] = WeakSet()
        self._folder: PrivateFolder | None = None
        self._folder_lock = threading.Lock()
        forget_at_fork(self)

    def forget_parent(self) -> None:
        """Begin anew in a forked child."""
        self._keepers, self.made, self._watch = WeakSet(), Meter(), None
        self._new_breaker()

    def accept(self, config: PoolConfig) -> None:
        """Refuse what nobody here honours."""
        if self._options.is_shared:
            honoured = sorted(SETTINGS - OF_THE_GATE)
            refuse_unhonoured(self.name, config, honoured, why="all share the engine, and no lease of it waits")

    def configure(self, config: PoolConfig) -> None:
        """Size the pools that are made from now on."""
        self.accept(config)
        if self._made.is_used:
            raise InvalidSettingError(f"database {self.name!r} is in use; size its pool before", self.name, "configure")
        self.pool = config
        self._new_breaker()

    def _new_breaker(self) -> None:
        failures, before = self.pool.breaker_failures, self.breaker
        listener = before.listener if before is not None else None
        self.breaker = (
            None if failures is None else CircuitBreaker(failures, self.pool.breaker_reset, self.name, listener)
        )

    def get(self) -> Engine | AsyncEngine:
        """Return the engine of this thread or event loop."""
        return self._made.get()

    def idle(self) -> int:
        """Return how many connections rest in the pools."""
        pools = [engine.pool for engine in self._made.all()]
        return sum(len(pool.resting) for pool in pools if isinstance(pool, EnginePool))

    def single_use(self) -> Engine | AsyncEngine:
        """Make an engine without a pool, for a probe: a full pool says nothing about the database."""
        return self._make(None)

    @property
    def needs_loop(self) -> bool:
        """Whether the engine that is handed out has connections that can be closed in their event loop only."""
        return self._watch is not None and self._watch.needs_loop

    def close(self) -> Engine | AsyncEngine | None:
        """Make no engine any more, remove a private file, and return the engine to dispose of."""
        if self._watch is not None:
            self._watch.cut_off()
        mine = self._made.close()
        for keeper in list(self._keepers):
            keeper.close()
        if self._folder is not None:
            self._folder.remove()
        return mine

    async def settle(self, longest: float) -> None:
        """Wait until what goes on in the background of this loop is over: its connections end in the loop only."""
        if works := [work for keeper in list(self._keepers) if (work := keeper.work_here()) is not None]:
            await asyncio.wait(works, timeout=longest)

    def _pooled(self) -> Engine | AsyncEngine:
        engine = self._make(self.pool)
        inner = _inner(engine)
        if not self._options.is_shared:
            guard(inner, self.name)
        elif self.target.is_async:
            self._watch = LoopWatch(inner, self.name)  # before others look at connections that are handed out
        is_remote = not self.target.is_sqlite
        care = Care(self.name, self.pool, self._options.connect_timeout, is_remote, self.breaker, self.made)
        self._keepers.add(Keeper(inner, care, is_async=self.target.is_async, is_shared=self._options.is_shared))
        if self._options.resets:
            timeouts = self._options.timeouts.assignments(inner.dialect)
            SessionReset(inner, self.name, timeouts, self._options.isolation_level)
        return engine

    def _abandon(self, engine: Engine | AsyncEngine) -> None:
        for keeper in list(self._keepers):
            if keeper.engine is _inner(engine):
                keeper.abandon()

    def _make(self, pool: PoolConfig | None) -> Engine | AsyncEngine:
        url = self.target.url.set(database=self._private_file()) if self.target.is_memory else self.target.url
        return _engine(self.name, self.target, url, self._options, pool)

    def _private_file(self) -> str:
        with self._folder_lock:
            if self._folder is None:
                self._folder = PrivateFolder()
            return str(self._folder.path / "memory.db")


def _inner(engine: Engine | AsyncEngine) -> Engine:
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


def _engine(
    name: str, target: Target, url: URL, options: EngineOptions, pool: PoolConfig | None
) -> Engine | AsyncEngine:
    """Make an engine; nothing is connected to."""
    if target.file is not None and not target.file.parent.is_dir():
        folder = str(target.file.parent)
        text = f"database {name!r}: the folder {folder!r} of its SQLite file does not exist; create it first"
        raise InvalidSettingError(text, name, "open")
    settings: dict[str, Any] = {  # Any: create_engine's keywords
        "hide_parameters": True,  # they may be personal, or secret
        "connect_args": _connect_args(target, options),
        **({"poolclass": NullPool} if pool is None else _pool_settings(target, options, pool)),
    }
    if options.isolation_level is not None:
        settings["isolation_level"] = options.isolation_level
    engine = create_async_engine(url, **settings) if target.is_async else create_engine(url, **settings)
    inner = _inner(engine)
    if target.is_sqlite:
        _own_transactions(inner, options.sqlite, is_shared=options.is_shared)
    elif target.driver == "pymysql" and pool is not None:
        _wait_for_answers(inner, options.connect_args.get("read_timeout"))
    if pool is not None:
        options.timeouts.apply(inner, name)
    return engine


def _pool_settings(
    target: Target, options: EngineOptions, config: PoolConfig
) -> dict[str, Any]:  # Any: create_engine's keywords
    return {
        "poolclass": AsyncEnginePool if target.is_async else EnginePool,
        "pool_size": config.max_size,
        "max_overflow": 0,
        "pool_recycle": -1 if config.max_lifetime is None else config.max_lifetime,
        "pool_timeout": config.acquire_timeout,
        "pool_reset_on_return": None if options.resets else "rollback",
        "pool_use_lifo": True,  # what is not needed stays idle, and can end
    }


def _connect_args(target: Target, options: EngineOptions) -> dict[str, Any]:  # Any: the driver's own
    arguments = dict(options.connect_args)
    if target.is_sqlite:
        arguments.setdefault("timeout", options.sqlite.busy_timeout)
        return arguments
    keyword = CONNECT_TIMEOUTS.get(target.driver)
    seconds = max(1, round(options.connect_timeout))
    if keyword is not None and keyword not in target.url.query:
        arguments.setdefault(keyword, seconds)
    if target.driver == "pymysql":
        arguments.setdefault("read_timeout", seconds)  # see _wait_for_answers
    return arguments


def _wait_for_answers(engine: Engine, longest: float | None) -> None:
    """Let statements take their time: PyMySQL's connect_timeout ends before the handshake, its read_timeout never."""

    def connected(connection: Any, record: object) -> None:  # Any: a driver's connection
        connection._read_timeout = longest

    event.listen(engine, "connect", connected)


def _own_transactions(engine: Engine, options: SqliteOptions, *, is_shared: bool) -> None:
    """Take BEGIN away from the driver.

    Python's sqlite3 begins before the first INSERT, UPDATE or DELETE only: DDL and SAVEPOINT before
    it would run outside of the transaction, and could not be rolled back. Leases begin by themselves.
    """

    # Of several that turn a new file to WAL at once, all but one are refused without waiting for busy_timeout.
    patient = Retrying(
        retry=retry_if_exception_message(match=".*locked"),
        wait=wait_random(0.001, 0.02),
        stop=stop_after_delay(options.busy_timeout),
        reraise=True,
    )

    def connected(connection: Any, record: object) -> None:  # Any: a driver's connection
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in options.pragmas:
            patient(cursor.execute, pragma)
        cursor.close()

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(options.begin_statement)

    event.listen(engine, "connect", connected)
    if options.begin == "DEFERRED":
        event.listen(engine, "handle_error", _explain_lock)
    if is_shared:
        event.listen(engine, "begin", begun)


def _explain_lock(context: Any) -> None:  # Any: an ExceptionContext
    error = context.sqlalchemy_exception
    if error is not None and getattr(context.original_exception, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
        error.args = (f"{error.args[0]}: {LOCKED}", *error.args[1:])
