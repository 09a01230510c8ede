"""How the connections of an engine are made and checked: in time, so many at once, and not where it is hopeless."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from sqlalchemy import Dialect
from sqlalchemy.util import await_only, greenlet_spawn

from wirestate.errors import ResourceTimeoutError
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.database.deadlines import cut_off, left_of, within
from wirestate.resources.meter import Meter
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.secrets import Hidden, Revealed

INF = float("inf")
MOMENT = 1.0  # seconds in which a connection that was cut off has to be let go of
Making = Callable[[], Any]  # Any: a driver's connection


@dataclass(frozen=True, slots=True)
class Care:
    """How the connections of an adapter are looked after; ``is_remote``: there is a server, which may be gone."""

    name: str
    pool: PoolConfig
    connect_timeout: float
    is_remote: bool
    breaker: CircuitBreaker | None
    made: Meter = field(default_factory=Meter)  # the connections that were made, and the seconds that each took

    def too_late(self, what: str, seconds: float) -> ResourceTimeoutError:
        """Return the error for *what* took longer than *seconds*."""
        return ResourceTimeoutError(
            f"resource {self.name!r}: {what} took longer than {seconds:.2f} s; see why its server does not answer, "
            "or raise connect_timeout, creation_timeout or the time to acquire it, whichever is shortest",
            self.name,
            "acquire",
        )


class Connector:
    """Make and check the connections of one engine, in threads or in one event loop."""

    def __init__(self, care: Care, *, is_async: bool) -> None:
        self._care = care
        self._is_async = is_async
        limit = care.pool.max_creating or care.pool.max_size
        self._turns = threading.Semaphore(limit)
        self._async_turns = asyncio.Semaphore(limit)
        self._longest = min(care.connect_timeout, care.pool.creation_timeout or INF)

    def connect(self, dialect: Dialect, entry: object, args: Any, options: Any) -> Any:  # Any: the driver's
        """Make a connection; what SQLAlchemy calls instead of the driver."""
        args, options = Hidden(args), Revealed(options)  # a traceback with locals shows them
        breaker = self._care.breaker
        if breaker is not None:
            breaker.before()
        seconds, began = left_of(self._longest), monotonic()

        def make() -> Any:  # Any: a driver's connection
            return dialect.connect(*args, **options)

        try:
            made = self._make(make, dialect, seconds) if self._care.is_remote else make()
        except Exception as error:
            hurried = isinstance(error, ResourceTimeoutError) and seconds < self._longest
            if breaker is not None and not hurried:  # who was in a hurry says nothing about the server
                breaker.failure(error)
            raise
        if breaker is not None:
            breaker.success()
        self._care.made.opened(monotonic() - began)
        return made

    def is_alive(self, dialect: Dialect, connection: Any) -> bool:  # Any: a driver's connection
        """Ask the server whether it still knows *connection*; no answer in time is an answer."""
        seconds, ping = left_of(self._longest), partial(dialect.do_ping, connection)
        driver = dialect.get_driver_connection(connection)
        if self._is_async:
            return bool(await_only(_answers(ping, driver, seconds)))
        asked = threading.Event()

        def asking() -> bool:
            try:
                return ping()
            finally:
                asked.set()

        try:
            return within(seconds, asking, lambda _: None, self._care.too_late("a check", seconds))
        except ResourceTimeoutError:
            cut_off(driver)
            asked.wait(MOMENT)
            if seconds < self._longest:  # who acquires was in a hurry, which says nothing about the server
                raise
            return False
        except Exception:  # whatever a driver raises: it is not handed out
            return False

    def _make(self, make: Making, dialect: Dialect, seconds: float) -> Any:  # Any: a driver's connection
        too_late = self._care.too_late("connecting", seconds)
        if self._is_async:
            return await_only(_bounded(make, seconds, too_late, self._async_turns))

        def making() -> Any:  # Any: a driver's connection
            # In here: what nobody waits for any more is still being made, and takes its turn.
            if not self._turns.acquire(timeout=seconds):
                raise too_late
            try:
                return make()
            finally:
                self._turns.release()

        return within(seconds, making, dialect.do_terminate, too_late)


async def _bounded(
    make: Making, seconds: float, too_late: ResourceTimeoutError, turns: asyncio.Semaphore
) -> Any:  # Any: a driver's connection
    limit = asyncio.timeout(seconds)
    try:
        async with limit, turns:
            return await greenlet_spawn(make)
    except TimeoutError:
        if limit.expired():
            raise too_late from None
        raise


async def _answers(ping: Callable[[], bool], driver: Any, seconds: float) -> bool:  # Any: a driver's connection
    """Ask; then cut the connection off before cancelling, which would talk to the silent server for seconds."""
    asking = asyncio.ensure_future(greenlet_spawn(ping))
    try:
        await asyncio.wait([asking], timeout=seconds)
    finally:
        if not asking.done():
            cut_off(driver)
            await asyncio.wait([asking], timeout=MOMENT / 10)
            asking.cancel()
            await asyncio.wait([asking], timeout=MOMENT)
    return asking.done() and not asking.cancelled() and asking.exception() is None and asking.result()
