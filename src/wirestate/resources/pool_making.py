"""How the resources of a pool are made, checked and looked after."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from time import monotonic

from wirestate.errors import CircuitOpenError, PoolTimeoutError, ResourceError, ResourceUnavailableError
from wirestate.observing import Listener
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.line import INF
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.pool_store import ALWAYS, Entry, Store
from wirestate.resources.reports import logger, owner_text, seconds_text, tell
from wirestate.resources.threaded import ThreadedCall
from wirestate.resources.upkeep import UPKEEP
from wirestate.waiting import BLOCKING, SUSPENDING, ExpiredError, World, drive, running_loop

JITTER = 0.1  # part of max_lifetime by which expiries are spread
LONGEST_BACKOFF = 60.0


class Making(Store):
    """A store that fills itself and throws out what is too old."""

    def __init__(self, calls: ProviderCalls, config: PoolConfig, name: str, listener: Listener | None) -> None:
        self._window = INF if calls.validate is None else config.validate_after
        self._created = self._failures = 0
        self._create_time = 0.0
        self._dead_before = -INF  # what rested since before then is dead, like one that was checked
        self._last_failure: ResourceError | None = None
        self._refill_at = self._refill_delay = 0.0
        self._home: asyncio.AbstractEventLoop | None = None  # where an asynchronous refill runs
        self._period = _upkeep_period(config)
        super().__init__(calls, config, name, listener)

    def _reset(self) -> None:
        super()._reset()
        self._watched = False
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

    def _is_ready(self, place: Entry) -> bool:
        return place.made and monotonic() < place.check_at

    async def _prepare(self, place: Entry, until: float, world: World) -> bool:
        if not place.made:
            await self._create(place, until, world)
            return True
        if await self._usable(place, until, world):
            return True
        await self.discard(place, world)
        return False

    def _doubt(self, dead_before: float = -INF) -> None:
        """Have what rests checked before its next use; one resource was found dead."""
        self._dead_before = max(self._dead_before, dead_before)
        with self._lock:
            for entry in list(self._idle):
                entry.check_at = ALWAYS

    # --- check and make ------------------------------------------------------------------------

    async def _usable(self, entry: Entry, until: float, world: World) -> bool:
        """Tell whether the resource of *entry* may be handed out; else say why not on it."""
        now = monotonic()
        entry.doomed = "expired" if now >= entry.expires else "suspect" if entry.since <= self._dead_before else ""
        validate = self._calls.validate
        if entry.doomed or validate is None:
            return not entry.doomed
        try:
            valid = validate(entry.resource)
            if self._calls.validate_is_async:
                valid = await world.bounded(valid, None if until == INF else max(0.0, until - now))
        except Exception as error:  # whatever it is, this resource is not handed out
            valid = False
            self._last_failure = ResourceUnavailableError(self.name, error, "validate")
        except BaseException:  # interrupted in between: nobody knows what it would answer now
            self.abandon(entry, "interrupted")
            raise
        if not valid:
            entry.doomed = "invalid"
            # What rested longer than one that died of resting is not worth a probe.
            self._doubt(entry.since if entry.check_at != ALWAYS else -INF)
        return bool(valid)

    async def _create(self, entry: Entry, until: float, world: World) -> None:
        """Make the resource of *entry*; if that fails, its place goes to the next in line."""
        started = monotonic()
        until = min(until, started + (self.config.creation_timeout or INF))
        self._watch()
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
        entry.loop = self._home = running_loop() if self._bound else None
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
        with self._lock:
            self._retire(entry)
        self._serve()

    def _made_late(self, entry: Entry, started: float, resource: object, error: BaseException | None) -> None:
        """Adopt what was made after its caller had left."""
        if error is not None:
            self._not_made(entry)
            return
        self._made(entry, resource, started)
        if self._closed:
            self.abandon(entry, "closed")
        else:
            self._put_back(entry)

    def _creation_error(self, error: Exception, limit: float) -> ResourceError:
        """Return what the caller is told, and remember it."""
        if self.breaker is not None:
            self.breaker.failure(error)
        # Not the one that is raised: its traceback would keep the caller's leases alive.
        self._last_failure = ResourceUnavailableError(self.name, error)
        if not isinstance(error, ExpiredError):
            return ResourceUnavailableError(self.name, error)
        return PoolTimeoutError(
            f"pool {self.name!r}: making a resource took longer than {limit:.2f} s; "
            "see why its provider is slow, or raise creation_timeout and acquire_timeout",
            self.name,
            "acquire",
        )

    def _timeout_error(self, limit: float | None) -> PoolTimeoutError:
        failure = self._last_failure
        if failure is None or len(self.holders()) >= self._limit:
            return super()._timeout_error(limit)
        error = PoolTimeoutError(
            f"pool {self.name!r}: no resource could be had in {limit or 0.0:.2f} s because its provider is failing "
            f"({len(self._waiting)} waiting; last: {failure}); mend what the provider connects to",
            self.name,
            "acquire",
        )
        error.__cause__ = failure
        return error

    # --- upkeep ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self._period < INF and not self._watched and not self._closed:
            self._watched = True
            UPKEEP.watch(self, self._period)

    def reap(self) -> int:
        """Destroy what rested or lived too long, fill up to ``min_size``, report what is held too long.

        Returns how many were destroyed. A background thread calls it where the configuration needs it.
        """
        with self._lock:
            self._recover()
            tired = self._tired()
        self._serve()
        for entry in tired:
            self.abandon(entry, entry.doomed)
        drive(self._sweep(BLOCKING))
        self._report_long_held()
        if not self._bound:
            drive(self._refill(BLOCKING))
        elif (home := self._home) is not None and home.is_running():
            home.call_soon_threadsafe(lambda: self._spawn(self._refill(SUSPENDING)))
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

    def _report_long_held(self) -> None:
        threshold, now = self.config.leak_threshold, monotonic()
        if threshold is None:
            return
        with self._lock:
            places = list(self._places)
        for entry in places:
            if entry.held and now - entry.since > threshold and entry.warned_at != entry.since:
                entry.warned_at = entry.since  # once for each lease
                owner, stack, held = owner_text(entry.owner), entry.borrowed_at(), seconds_text(now - entry.since)
                logger.warning("pool %r: %s holds a lease for %s; borrowed at\n%s", self.name, owner, held, stack)
                if self._listener is not None:
                    tell(self._listener.on_leak, self.name, owner, stack)

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
                self._refill_delay = min(LONGEST_BACKOFF, max(0.1, self._refill_delay * 2))
                self._refill_at = monotonic() + self._refill_delay * random.uniform(0.5, 1.0)
                logger.warning("pool %r: refill failed: %s", self.name, error)
                return
            self._refill_delay = 0.0
            self._put_back(entry)


def _upkeep_period(config: PoolConfig) -> float:
    """Return how often a pool must be looked after; infinite if never."""
    times = [time for time in (config.max_idle_time, config.max_lifetime, config.leak_threshold) if time is not None]
    if config.min_size:
        times.append(4.0)
    return max(0.05, min(30.0, min(times) / 4)) if times else INF
