"""How the resources of a pool are made, checked and looked after."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import partial
from time import monotonic

from wirestate.errors import CircuitOpenError, PoolTimeoutError, ResourceError, ResourceUnavailableError, printable
from wirestate.observing import Listener
from wirestate.redaction import text_of
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.pool_checking import Checking
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.pool_store import Entry
from wirestate.resources.reports import logger
from wirestate.resources.threaded import ThreadedCall
from wirestate.resources.upkeep import INF, UPKEEP, upkeep_period
from wirestate.waiting import BLOCKING, SUSPENDING, ExpiredError, World, drive, running_loop

JITTER = 0.1  # part of max_lifetime by which expiries are spread
SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.1, 60.0  # seconds between two refills that fail


class Making(Checking):
    """A store that fills itself and throws out what is too old."""

    def __init__(self, calls: ProviderCalls, config: PoolConfig, name: str, listener: Listener | None) -> None:
        self._home: asyncio.AbstractEventLoop | None = None  # where an asynchronous refill runs
        self._created = self._failures = 0
        self._create_time = 0.0
        self._refill_at = self._refill_delay = 0.0
        super().__init__(calls, config, name, listener)
        self._period = upkeep_period(
            config.max_idle_time, config.max_lifetime, config.leak_threshold, 4.0 if config.min_size else None
        )
        if config.min_size:
            self._home = running_loop()
            self._watch()

    def _reset(self) -> None:
        super()._reset()
        self._home = None
        config = self.config
        self.breaker = (
            CircuitBreaker(config.breaker_failures, config.breaker_reset, self.name, self._listener)
            if config.breaker_failures
            else None
        )

    def listen(self, listener: Listener | None) -> None:
        super().listen(listener)
        if self.breaker is not None:
            self.breaker.listener = listener

    async def _prepare(self, place: Entry, until: float, world: World) -> bool:
        if not place.made:
            await self._create(place, until, world)
            return True
        if await self._usable(place, until, world):
            return True
        if place.doomed == "invalid" and not place.uses:
            self._postpone_refill()  # fresh ones are dead too
        await self.discard(place, world, until=until)
        return False

    # --- make -----------------------------------------------------------------------------------

    async def _create(self, entry: Entry, until: float, world: World) -> None:
        """Make the resource of *entry*; if that fails, its place goes to the next in line."""
        started = monotonic()
        until = min(until, started + (self.config.creation_timeout or INF))
        self._watch()
        if self._bound and self._home is not (loop := running_loop()):
            self._home = loop  # now it is known where the others are to be made
            self._want_more()
        call = None
        try:
            await self._sweep(world)  # what was lost still exists, though its place is free
            if self.breaker is not None:
                self.breaker.before()
            if self._calls.acquire_is_async:
                seconds = None if until == INF else max(0.0, until - started)
                resource = await world.bounded(self._calls.acquire(), seconds)
            elif self.config.creation_timeout is None:
                resource = self._calls.acquire()
            else:
                call = ThreadedCall(self._calls.acquire, partial(self._made_late, entry, started), world)
                resource = await call.wait(until - started)
        except BaseException as error:
            if call is None or not call.left:
                self._not_made(entry)
            if not isinstance(error, Exception):
                raise
            with self._lock:
                self._failures += 1
                self._timeouts += isinstance(error, ExpiredError)
            if isinstance(error, CircuitOpenError):
                raise
            raise self._creation_error(error, until - started) from error
        self._made(entry, resource, started)
        if self._closed:
            entry.doomed = "closed"
            await self.discard(entry, world)
            raise self._refusal()

    def _made(self, entry: Entry, resource: object, started: float) -> None:
        now = monotonic()
        entry.resource = resource
        entry.made = True
        entry.loop = running_loop() if self._bound else None
        entry.since = now
        if self.config.max_lifetime is not None:
            entry.expires = now + self.config.max_lifetime * (1.0 - JITTER * random.random())
        entry.check_at = min(now + self._window, entry.expires)
        self._last_failure = None
        if self.breaker is not None:
            self.breaker.success()
        with self._lock:
            self._created += 1
            self._create_time += now - started
            self._uncount(entry)
        if self._waiting:  # one more may be made now
            self._serve()

    def _not_made(self, entry: Entry) -> None:
        try:
            with self._lock:
                self._retire(entry)
        finally:
            self._serve()
        self._want_more()

    def _drop(self, entry: Entry, *, ended: bool = True) -> None:
        super()._drop(entry, ended=ended)
        self._want_more()

    def _want_more(self) -> None:
        """Have what is missing made soon."""
        if self._limit - self._spare < self.config.min_size and not self._closed:
            UPKEEP.hasten(self, self._refill_at)

    def _made_late(self, entry: Entry, started: float, resource: object, error: BaseException | None) -> None:
        """Adopt what was made after its caller had left."""
        if error is not None:
            self._not_made(entry)
            return
        self._made(entry, resource, started)
        self._put_back(entry)

    def _creation_error(self, error: Exception, limit: float) -> ResourceError:
        """Return what the caller is told, and remember it."""
        late = isinstance(error, ExpiredError)
        if late:
            error = TimeoutError(f"it took longer than {limit:.2f} s")
        # A caller of little patience says nothing about the provider.
        if self.breaker is not None and not (late and limit < (self.config.creation_timeout or 0.0)):
            self.breaker.failure(error)
        # Not the one that is raised: its traceback would keep the caller's leases alive.
        self._last_failure = ResourceUnavailableError(self.name, error)
        if not late:
            return ResourceUnavailableError(self.name, error)
        return PoolTimeoutError(
            f"pool {self.name!r}: making a resource took longer than {limit:.2f} s; "
            "see why its provider is slow, or raise creation_timeout and acquire_timeout",
            self.name,
            "acquire",
        )

    def _timeout_error(self, limit: float) -> PoolTimeoutError:
        failure = self._last_failure
        if failure is None:
            return super()._timeout_error(limit)
        error = PoolTimeoutError(
            f"pool {self.name!r}: no resource could be had in {limit:.2f} s because its provider is failing "
            f"({len(self._waiting)} waiting; last: {text_of(failure)}); mend what the provider connects to",
            self.name,
            "acquire",
        )
        error.__cause__ = failure
        return error

    # --- upkeep ---------------------------------------------------------------------------------

    def reap(self) -> int:
        """Destroy what rested or lived too long, fill up to ``min_size``, report what is held too long.

        Returns how many were destroyed. A background thread calls it where the configuration needs it.
        """
        super().reap()
        with self._lock:
            tired = self._tired()
        self._serve()
        for entry in tired:
            self.abandon(entry, entry.doomed)
        self._bury()
        if self._limit - self._spare < self.config.min_size:
            if not self._bound:
                drive(self._refill(BLOCKING))
            elif (home := self._home) is not None and home.is_running():
                with suppress(RuntimeError):  # that loop is closed; the next one will be told
                    home.call_soon_threadsafe(self._refill_here)
        return len(tired)

    def _tired(self) -> list[Entry]:
        """Take out what rested or lived too long, the longest rested first; the lock is held."""
        now = monotonic()
        surplus = self._limit - self._spare - self._creating - self.config.min_size
        rest = INF if self.config.max_idle_time is None else self.config.max_idle_time
        tired: list[Entry] = []
        kept: list[Entry] = []
        while self._idle:
            try:
                entry = self._idle.popleft()
            except IndexError:  # another thread was faster
                break
            if now >= entry.expires:
                entry.doomed = "expired"
            elif now - entry.since >= rest and len(tired) < surplus:
                entry.doomed = "idle"
            (tired if entry.doomed else kept).append(entry)
        self._idle.extendleft(reversed(kept))
        return tired

    def _refill_here(self) -> None:
        if not self._closed:
            self._spawn(self._refill(SUSPENDING))

    async def _refill(self, world: World) -> None:
        """Make resources up to ``min_size``; after a failure pause longer and longer."""
        while not self._closed and monotonic() >= self._refill_at:
            with self._lock:
                made = self._limit - self._spare
                entry = self._blank() if made < self.config.min_size else None
            if entry is None:
                return
            try:
                await self._create(entry, INF, world)
            except Exception as error:  # there is nobody to tell; who acquires gets an error of their own
                if not self._closed:
                    self._postpone_refill()
                    logger.warning("pool %r: refill failed: %s", self.name, printable(text_of(error)))
                return
            self._refill_delay = 0.0
            self._put_back(entry)

    def _postpone_refill(self) -> None:
        """Pause longer with each failure; at random, so that many pools do not try in step."""
        self._refill_delay = min(LONGEST_BACKOFF, max(SHORTEST_BACKOFF, self._refill_delay * 2))
        self._refill_at = monotonic() + self._refill_delay * random.uniform(0.5, 1.0)
        self._want_more()
