"""What looks after the resting connections of one engine: which are handed out, checked, ended and replaced."""

from __future__ import annotations

import asyncio
import random
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from wirestate.redaction import quoted, without_secrets
from wirestate.resources.database.connecting import INF, Care, Connector
from wirestate.resources.database.deadlines import hang_up
from wirestate.resources.database.pool import EnginePool
from wirestate.resources.native_pools import tell_cut_off
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.reports import logger, note_resource
from wirestate.resources.upkeep import UPKEEP
from wirestate.waiting import running_loop

JITTER = 0.1  # part of max_lifetime by which expiries are spread
LONGEST_BACKOFF = 60.0
KEPT = "wirestate_kept"  # in the info of a pool's entry


@dataclass(slots=True)
class Kept:
    """What is known of one connection; ``since`` is when it was made, or last came back.

    ``fresh``: it was made for the one who is about to get it.
    """

    since: float
    expires: float
    fresh: bool = True


class Keeper:
    """Look after the pool of *engine*; its listeners keep this object alive for as long as the pool."""

    def __init__(self, engine: Engine, care: Care, *, is_async: bool, is_shared: bool) -> None:
        self.engine = engine
        self._care = care
        self._loop: AbstractEventLoop | None = running_loop() if is_async else None
        self._roams = is_async and is_shared  # from loop to loop; it works in the last one that made a connection
        self._connector = Connector(care, is_async=is_async)
        self._dead_before = -INF  # what rested since before then is dead, like one that was checked
        self._doubted = -INF  # what rested since before then is checked: another one broke in use
        self._working = threading.Lock()
        self._task: asyncio.Task[None] | None = None  # a loop refers to its tasks only weakly
        self._refill_at = self._refill_delay = 0.0
        event.listen(engine, "do_connect", self._connector.connect)
        event.listen(engine, "handle_error", self._note_error)
        if self._roams:
            event.listen(engine.pool, "connect", self._settle)
        if care.is_remote or care.pool.max_idle_time is not None or care.pool.max_lifetime is not None:
            event.listen(engine.pool, "connect", self._made)
            event.listen(engine.pool, "checkin", self._returned)
            event.listen(engine.pool, "checkout", self._taken)
        if (period := _period(care.pool)) < INF:
            UPKEEP.watch(self, period)

    @property
    def _pool(self) -> EnginePool:
        pool = self.engine.pool  # not kept: disposing of an engine gives it another
        assert isinstance(pool, EnginePool)
        return pool

    def close(self) -> None:
        """Look after it no longer."""
        self._refill_at = INF
        UPKEEP.forget(self)

    def abandon(self) -> None:
        """Let go of an engine that another loop made, from outside of that loop."""
        self.close()
        loop = self._loop
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(greenlet_spawn(self.engine.dispose), loop)
            return
        resting = list(self._pool.resting)
        left = len(resting) + self._pool.checkedout()
        for entry in resting:
            hang_up(entry.driver_connection)
        self.engine.dispose(close=False)
        tell_cut_off(self._care.name, left)

    def _settle(self, connection: object, entry: ConnectionPoolEntry) -> None:
        self._loop = running_loop()

    # --- at hand-out -----------------------------------------------------------------------

    def _made(self, connection: object, entry: ConnectionPoolEntry) -> None:
        now, lifetime = monotonic(), self._care.pool.max_lifetime
        expires = INF if lifetime is None else now + lifetime * (1.0 - JITTER * random.random())
        entry.info[KEPT] = Kept(now, expires)

    def _returned(self, connection: object, entry: ConnectionPoolEntry) -> None:
        kept: Kept | None = entry.info.get(KEPT)
        if kept is not None:
            kept.since, kept.fresh = monotonic(), False

    def _taken(self, connection: Any, entry: ConnectionPoolEntry, proxy: object) -> None:  # Any: a driver's
        """Replace what is not fit: SQLAlchemy connects anew on a DisconnectionError."""
        kept: Kept = entry.info[KEPT]
        if kept.fresh:
            kept.fresh = False
            return
        now = monotonic()
        why = self._tiredness(kept, now)
        if why is None and self._care.is_remote and self._is_doubtful(kept, now):
            if kept.since <= self._dead_before:
                why = "it rested since before another one that was found dead"
            elif not self._connector.is_alive(self.engine.dialect, connection):
                # A server that restarted costs one failed check, not one for each connection.
                self._dead_before = max(self._dead_before, kept.since)
                why = "it is dead"
        if why is not None:
            raise DisconnectionError(why)

    def _is_doubtful(self, kept: Kept, now: float) -> bool:
        doubted = max(self._doubted, self._dead_before)
        return kept.since <= doubted or now - kept.since >= self._care.pool.validate_after

    def _tiredness(self, kept: Kept, now: float) -> str | None:
        longest = self._care.pool.max_idle_time
        if now >= kept.expires:
            return "it lived longer than max_lifetime"
        if longest is not None and now - kept.since > longest:
            return "it rested longer than max_idle_time"
        return None

    def _note_error(self, context: Any) -> None:  # Any: an ExceptionContext
        """Name the resource; doubt what rests if a connection broke in use: SQLAlchemy would end it all unasked."""
        if context.sqlalchemy_exception is not None:
            url = self.engine.url.render_as_string(hide_password=True)
            note_resource(context.sqlalchemy_exception, self._care.name, without_secrets(url))
        if context.is_disconnect:
            context.invalidate_pool_on_disconnect = False
            self._doubted = monotonic()

    # --- in the background -----------------------------------------------------------------

    def reap(self) -> int:
        """Have closed what rested or lived too long, and connections made up to ``min_size``.

        Called by a background thread, which others need, too: the work itself is done by another, or in the loop.
        """
        loop = self._loop
        if self._roams and (loop is None or loop.is_closed()):
            return 0
        if loop is None:
            if self._has_work() and self._working.acquire(blocking=False):
                threading.Thread(target=self._work, name=f"wirestate-{self._care.name}", daemon=True).start()
        elif loop.is_closed():
            self.close()
        else:
            loop.call_soon_threadsafe(self._work_in_loop)
        return 0

    def _has_work(self) -> bool:
        pool, least = self._pool, self._care.pool.min_size
        missing = pool.total < least and monotonic() >= self._refill_at
        return missing or any(map(self._ending_of(pool.total - least), list(pool.resting)))

    def _work(self) -> None:
        try:
            pool = self._pool
            pool.thin_out(self._ending_of(pool.total - self._care.pool.min_size))
            self._fill_up()
        finally:
            self._working.release()

    def _work_in_loop(self) -> None:
        if self._has_work() and self._working.acquire(blocking=False):
            self._task = asyncio.ensure_future(greenlet_spawn(self._work))

    def work_here(self) -> asyncio.Task[None] | None:
        """Return the work that goes on in the running loop, if some does."""
        working = self._task is not None and not self._task.done() and self._loop is running_loop()
        return self._task if working else None

    def _ending_of(self, surplus: int) -> Callable[[ConnectionPoolEntry], bool]:
        """Return what tells whether an entry is to be ended: all that are too old, and so many that are tired."""
        now = monotonic()

        def is_ending(entry: ConnectionPoolEntry) -> bool:
            nonlocal surplus
            kept: Kept | None = entry.info.get(KEPT)
            if kept is None or self._tiredness(kept, now) is None or (now < kept.expires and surplus <= 0):
                return False
            surplus -= 1
            return True

        return is_ending

    def _fill_up(self) -> None:
        if monotonic() < self._refill_at:
            return
        pool = self._pool
        try:
            pool.fill_up(self._care.pool.min_size)
            self._refill_delay = 0.0
        except Exception as error:  # there is nobody to tell; who acquires gets an error of their own
            self._refill_delay = min(LONGEST_BACKOFF, max(0.1, self._refill_delay * 2))
            self._refill_at = max(self._refill_at, monotonic() + self._refill_delay * random.uniform(0.5, 1.0))
            told = quoted(error).partition("\n")[0]
            logger.warning("pool %r: refill failed: %s", self._care.name, told)
        finally:
            for entry in list(pool.resting):
                if (kept := entry.info.get(KEPT)) is not None:
                    kept.fresh = False  # whoever gets it did not make it


def _period(config: PoolConfig) -> float:
    """Return how often a pool must be looked after; infinite if never."""
    times = [time for time in (config.max_idle_time, config.max_lifetime) if time is not None]
    if config.min_size:
        times.append(4.0)
    return max(0.05, min(30.0, min(times) / 4)) if times else INF
