"""A fair pool of resources that serves threads and event loops at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any, NoReturn

from wirestate.errors import AsyncResourceError, InvalidSettingError, LeaseReleasedError, ResourceError, printable
from wirestate.observing import Listener
from wirestate.redaction import half_made_too
from wirestate.resources.calls import ProviderCalls, can_block, takes_one
from wirestate.resources.line import Turn
from wirestate.resources.places import NOBODY
from wirestate.resources.pool_config import PoolConfig, PoolSnapshot
from wirestate.resources.pool_making import Making
from wirestate.resources.pool_store import ALWAYS, Entry
from wirestate.resources.reports import owner_text, seconds_text
from wirestate.resources.threads import Threads
from wirestate.resources.upkeep import INF, UPKEEP
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive, running_loop

__all__ = ["Lease", "PoolConfig", "PoolSnapshot", "ResourcePool"]

POLL = 0.005  # seconds between two looks at what is still out


class Lease:
    """One borrowing of one resource by one owner; release it exactly once.

    ``with lease as resource`` (or ``async with``) releases it at the end.
    """

    __slots__ = ("_entry", "_pool")

    # No __init__: who makes one sets both, which takes half the time.
    _entry: Entry
    _pool: ResourcePool

    @property
    def resource(self) -> Any:  # Any: whatever the provider makes
        """The resource, as long as the lease lasts."""
        try:
            return self._entry.resource
        except AttributeError:
            raise LeaseReleasedError(self._pool.name) from None

    def release(self, error: BaseException | None = None, *, broken: bool = False) -> None:
        """Give the resource back.

        Args:
            error: what ended its use; the resource is then checked before it is handed out again.
            broken: the resource must not be used again.

        Raises:
            LeaseReleasedError: the lease was released before.
        """
        try:
            entry = self._entry
            del self._entry  # of two threads that release at once, one fails here
        except AttributeError:
            raise LeaseReleasedError(self._pool.name) from None
        pool = self._pool
        if error is None and not broken and pool._quick:  # give_back() written out, as acquire()
            now = monotonic()
            entry.owner = NOBODY
            entry.uses += 1
            entry.held_time += now - entry.since
            entry.since = now
            check_at = now + pool._window
            entry.check_at = check_at if check_at < entry.expires else entry.expires
            pool._pass_on(entry) if pool._waiting else pool._idle.append(entry)
            if pool._waiting and pool._idle:
                pool._serve()
            if pool._closed and pool._came_late(entry):
                pool.finish(entry, error)
        elif not pool.give_back(entry, error, broken=broken):
            pool.finish(entry, error)

    async def arelease(self, error: BaseException | None = None, *, broken: bool = False) -> None:
        """Give the resource back; see :meth:`release`."""
        try:
            entry = self._entry
            del self._entry
        except AttributeError:
            raise LeaseReleasedError(self._pool.name) from None
        pool = self._pool
        if not (pool.give_back(entry) if error is None and not broken else pool.give_back(entry, error, broken=broken)):
            await pool.give_back_later(entry, SUSPENDING, error)

    def __enter__(self) -> Any:  # Any: see resource
        return self.resource

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.release(error)

    async def __aenter__(self) -> Any:  # Any: see resource
        try:
            return self._entry.resource
        except AttributeError:
            raise LeaseReleasedError(self._pool.name) from None

    def __aexit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> Coroutine[Any, Any, None]:  # Any: what a coroutine yields is its loop's
        return self.arelease(error)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a lease of {self._pool.name!r} is one borrowing: it cannot be copied or pickled")

    @half_made_too
    def __repr__(self) -> str:
        try:
            entry = self._entry
        except AttributeError:
            return f"<Lease of {self._pool.name!r}, released>"
        held = seconds_text(monotonic() - entry.since)
        return f"<Lease of {self._pool.name!r}, held {held} by {printable(owner_text(entry.owner))}>"


class ResourcePool(Making):
    """A bounded store of resources: ``provider.acquire`` makes one, ``provider.release`` destroys it.

    Waiting is first come, first served. One pool serves threads and several event loops; the
    resource of an asynchronous provider goes only to the loop it was made on. ``min_size`` is made in
    the background: at once, or for an asynchronous provider on the running loop, or if none runs when
    the pool is made, on the loop that uses it first.

    Args:
        provider: makes, checks and destroys resources; its verbs may be coroutine functions. One more,
            ``reset(resource)``, is called when a resource comes back, if the provider has it.
        config: size and timing.
        name: for messages; the provider's if not given.
        listener: hears of leaks and of the circuit breaker.
        blocking: whether the provider's verbs can wait in the thread: tasks then call them in one of its own;
            a provider says it itself by ``blocking = True``.

    Example:
        >>> from wirestate.resources.base import BaseResourceProvider
        >>> class Clock(BaseResourceProvider):
        ...     def acquire(self, **kwargs):
        ...         return "tick"
        >>> pool = ResourcePool(Clock("clock"), PoolConfig(max_size=2))
        >>> with pool.acquire(owner="run-1") as resource:
        ...     resource
        'tick'
        >>> pool.close()
        []
    """

    def __init__(
        self,
        provider: Any,  # Any: what ProviderCalls.of() reads
        config: PoolConfig | None = None,
        *,
        name: str | None = None,
        listener: Listener | None = None,
        blocking: bool = False,
    ) -> None:
        config = config or PoolConfig()
        label: str = name or getattr(provider, "name", None) or type(provider).__name__
        calls = ProviderCalls.of(provider, pooled=True)
        if calls.reset is not None and not takes_one(calls.reset):
            what = f"pool {label!r}: {type(provider).__name__}.reset() must take the resource that it resets"
            raise InvalidSettingError(what, label, "configure")
        self.blocking = (blocking or can_block(provider)) and not calls.is_async
        self.threads = Threads(label, config.max_size)
        super().__init__(calls, config, label, listener)
        # Nothing is to be done with a lease but to lend it and take it back.
        self._quick = not (self._bound or self._resets or self._depth)

    def forget_parent(self) -> None:
        super().forget_parent()
        self._quick = False  # inherited leases come back, of which no notice is taken

    # --- acquire -------------------------------------------------------------------------------

    def acquire(self, timeout: float | None = None, *, owner: object = None) -> Lease:
        """Borrow a resource, waiting for it at most *timeout* seconds.

        Args:
            timeout: 0 means now, None the pool's ``acquire_timeout``.
            owner: who borrows, for messages; its ``str()`` is taken only when one is needed.

        Raises:
            PoolTimeoutError: none came free in time.
            ResourceUnavailableError: the provider failed to make one.
            TooManyWaitingError, CircuitOpenError, ResourceClosedError: it was refused at once.
        """
        # take_now() and give_back() are written out here and in release(): 0.70 of the unit of S2 became 0.44.
        if self._quick and not self._waiting:
            try:
                entry = self._idle.pop()
            except IndexError:
                pass
            else:
                now = monotonic()
                if now < entry.check_at:
                    entry.since = now
                    entry.owner = owner
                    lease = Lease()
                    lease._pool = self
                    lease._entry = entry
                    return lease
                self._put_back(entry)
        lease = Lease()
        lease._pool = self
        lease._entry = self._take_blocking(owner, timeout)
        return lease

    def _take_blocking(self, owner: object, timeout: float | None) -> Entry:
        """Do what :meth:`take` does, without its coroutines where the caller has only to wait: 2 % of S3."""
        entry = None if self._bound else self.take_now(owner)
        if entry is None:
            limit = self.longest_wait if timeout is None else timeout
            now = monotonic()
            deadline = now + limit
            got: object = self._claim(now, deadline, BLOCKING)
            if isinstance(got, tuple):
                got = self._block(got)
            entry = self._ready(got, owner)
            if entry is None:
                entry = drive(self._go_on(got, owner, limit, deadline, BLOCKING))
        return entry

    async def aacquire(self, timeout: float | None = None, *, owner: object = None) -> Lease:
        """Borrow a resource; see :meth:`acquire`."""
        waiting = self._waiting
        entry = None if waiting else self.take_now(owner)
        if entry is None:
            # take() is written out for one who only has to wait: 0.66 of the rate of S4's unit became 0.86.
            limit = self.longest_wait if timeout is None else timeout
            loop, now = asyncio.get_running_loop(), monotonic()
            deadline = now + limit
            got: Entry | Turn | object | None
            # Others wait, and are told before if they are late: only append() is left, which needs no lock (0.25 us).
            if waiting and now < deadline and self._max_waiting == INF and self._alarms.get(loop, INF) <= deadline:
                got = loop.create_future(), loop, now, deadline
                waiting.append(got)
            else:
                got = self._claim(now, deadline, SUSPENDING)
            if isinstance(got, tuple):
                turn = got
                try:
                    if self._idle or self._spare or self._lost or self._closed:
                        self._look_again()
                    got = await turn[0]
                except BaseException:
                    self._withdraw(turn)
                    raise
            entry = self._ready(got, owner)
            if entry is None:
                entry = await self._go_on(got, owner, limit, deadline, SUSPENDING)
        lease = Lease()
        lease._pool = self
        lease._entry = entry
        return lease

    def _ready(self, got: object, owner: object) -> Entry | None:
        """Return *got* as lent to *owner*, if it is an entry that needs no more work."""
        if isinstance(got, Entry) and (now := monotonic()) < got.check_at and not self._depth:
            got.since = now
            got.owner = owner
            return got
        return None

    def take_now(self, owner: object = None) -> Entry | None:
        """Return an entry if one rests that needs no check and that nobody waits for."""
        if self._idle and not self._waiting:
            try:
                entry = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            now = monotonic()
            if now < entry.check_at and (not self._bound or entry.loop is running_loop()):
                entry.since = now
                entry.owner = owner
                if self._depth:
                    self._keep_stack(entry)
                return entry
            self._put_back(entry)
        return None

    def _refusal(self) -> ResourceError:
        if self._closed:
            return super()._refusal()
        what = f"pool {self.name!r}: its resources are asynchronous; use aacquire()"
        return AsyncResourceError(what, self.name, "acquire")

    # --- give back -----------------------------------------------------------------------------

    def give_back(self, entry: Entry, error: BaseException | None = None, *, broken: bool = False) -> bool:
        """Put *entry* back; False: :meth:`give_back_later` has to do the rest."""
        if entry.owner is NOBODY or entry.line is not self:
            self._not_held(entry)
            return True
        now = monotonic()
        entry.owner = NOBODY
        entry.uses += 1
        entry.held_time += now - entry.since
        entry.since = now
        if broken:
            self._doubt()
            entry.doomed = "broken"
            return False
        if error is None:
            check_at = now + self._window
            entry.check_at = check_at if check_at < entry.expires else entry.expires
        else:
            entry.check_at = ALWAYS
        if self._resets:
            return False
        self._pass_on(entry)
        return not self._closed or not self._came_late(entry)

    # --- close -----------------------------------------------------------------------------------

    def close(self, drain: float = 0.0) -> list[tuple[str, float]]:
        """Refuse new borrowers, tell those who wait, destroy what rests; return who still holds.

        Args:
            drain: seconds to wait for borrowed resources; later ones are destroyed when released.

        Raises:
            AsyncResourceError: something here can only be destroyed on an event loop: use ``aclose()``.
        """
        if self._calls.release_is_async and self.size:
            what = f"pool {self.name!r}: its {self.size} resources are asynchronous; use await aclose()"
            raise AsyncResourceError(what, self.name, "close")
        return drive(self._shut(drain, BLOCKING))

    async def aclose(self, drain: float = 0.0) -> list[tuple[str, float]]:
        """Close the pool; see :meth:`close`."""
        return await self._shut(drain, SUSPENDING)

    async def _shut(self, drain: float, world: World) -> list[tuple[str, float]]:
        UPKEEP.forget(self)
        self._stop()
        if self._needs_thread(world):
            await self.threads.run(lambda: drive(self._empty(BLOCKING)), required=True)
        else:
            await self._empty(world)
        end = monotonic() + drain
        while self._spare < self._limit and monotonic() < end:
            await world.sleep(POLL)
        self.threads.close()
        return self.holders()

    # --- what may block --------------------------------------------------------------------------

    def _needs_thread(self, world: World) -> bool:
        return self.blocking and world.is_async

    async def _prepare(self, place: Entry, until: float, world: World) -> bool:
        if not self._needs_thread(world):
            return await super()._prepare(place, until, world)
        prepare = super()._prepare

        def put_back(usable: bool) -> None:
            if usable:
                self._put_back(place)

        # Required, since the place has been taken: who begins to check it or to make it also gives it back.
        return await self.threads.run(lambda: drive(prepare(place, until, BLOCKING)), undo=put_back, required=True)

    async def give_back_later(self, entry: Entry, world: World, error: BaseException | None = None) -> None:
        if not self._needs_thread(world):
            return await super().give_back_later(entry, world, error)
        later = super().give_back_later
        return await self.threads.run(lambda: drive(later(entry, BLOCKING, error)), required=True)

    # --- what can be asked -----------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Resources that exist: idle and used."""
        return self._limit - self._spare - self._creating

    @property
    def available(self) -> int:
        """Resources that rest."""
        return len(self._idle)

    def snapshot(self) -> PoolSnapshot:
        """Return what is held and counted now."""
        with self._lock:
            self._recover()
            uses, held, waited = self._uses()
            idle = len(self._idle)
            return PoolSnapshot(
                idle=idle,
                used=self.size - idle,
                creating=self._creating,
                max_size=self._limit,
                waiting=self._waiters(),
                acquisitions=uses,
                failures=self._failures,
                timeouts=self._timeouts,
                refused=self._refused,
                created=self._created,
                destroyed=self._destroyed,
                leaks=self._leaks,
                discards=dict(self._discards),
                hold_time=held,
                wait_time=waited,
                create_time=self._create_time,
            )

    @half_made_too
    def __repr__(self) -> str:
        state = self.snapshot()
        closed = " closed" if self._closed else ""
        breaker = f", breaker {self.breaker.state}" if self.breaker is not None else ""
        return (
            f"<ResourcePool {self.name!r}{closed}: {state.used} of {state.max_size} used, {state.idle} idle, "
            f"{state.creating} creating, {state.waiting} waiting{breaker}{self._longest()}>"
        )
