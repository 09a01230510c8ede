"""A line of those who wait for places: fair, cancellation-safe, for threads and event loops at once."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from time import monotonic
from typing import TypeAlias

from wirestate.errors import PoolTimeoutError, TooManyWaitingError
from wirestate.observing import Listener
from wirestate.resources.inherited import keep
from wirestate.resources.places import P, Place, Places
from wirestate.resources.upkeep import INF
from wirestate.waiting import Waiter, World, running_loop

LATE: object = object()  # handed over in place of a place: too late
CLOSED: object = object()  # the same: nothing comes any more

# Somebody who waits: waiter, loop, since when, until when. A plain tuple: a named one costs 0.2 us more.
_Turn: TypeAlias = tuple[Waiter, AbstractEventLoop | None, float, float]


class Line(Places[P]):
    """A limited number of places and the queue in front of them: the waiting half of gate and pool."""

    def __init__(
        self,
        name: str,
        limit: int,
        *,
        timeout: float | None,
        max_waiting: int | None,
        leak_threshold: float | None,
        listener: Listener | None,
    ) -> None:
        self._timeout = timeout
        self.longest_wait = INF if timeout is None else timeout
        self._max_waiting = INF if max_waiting is None else max_waiting
        self._timeouts = self._refused = 0
        self._wait_time = 0.0
        self._bound = False  # places belong to event loops
        super().__init__(name, limit, leak_threshold, listener)

    def _reset(self) -> None:
        super()._reset()
        self._waiting: deque[_Turn] = deque()
        self._alarms: dict[AbstractEventLoop, float] = {}  # when the waiting tasks of a loop are looked at

    def forget_parent(self) -> None:
        keep(self._waiting)
        super().forget_parent()

    # --- decisions: plain, the lock is held, nothing waits ---------------------------------

    def _make_room(self) -> None:
        """Free what the first in line cannot use, if that lets it in."""

    def _hand_over(self) -> None:
        """Give what is free to those who wait, in order."""
        waiting = self._waiting
        while waiting and (self._idle or self._spare):
            waiter, loop, since, _ = waiting[0]
            place = self._pick(loop)
            if place is None:
                self._make_room()
                return
            waiting.popleft()
            if waiter.fill(place):
                self._wait_time += monotonic() - since
            else:
                waiter.value = None  # a cancelled task still looks here, and must not find it
                self._unpick(place)

    def _claim(self, deadline: float, world: World, *, first: bool) -> P | _Turn | None:
        """Return a place, or a turn in line, or None where it is too late to wait."""
        loop = running_loop() if world.is_async else None
        with self._lock:
            if self._closed or (self._bound and loop is None):
                raise self._refusal()
            if self._lost:
                self._recover()
            if (self._idle or self._spare) and (first or not self._waiting):
                place = self._pick(loop)
                if place is not None:
                    return place
            now = monotonic()
            if now >= deadline:
                self._recover()
                place = None if self._waiting and not first else self._pick(loop)
                self._timeouts += place is None
                return place
            if len(self._waiting) >= self._max_waiting and not first:
                self._refused += 1
                raise TooManyWaitingError(self.name, len(self._waiting))
            turn = (world.new_waiter(), loop, now, deadline)
            self._waiting.appendleft(turn) if first else self._waiting.append(turn)
            if loop is not None and deadline < self._alarms.get(loop, INF):
                self._set_alarm(loop, deadline, now)
            return turn

    def _set_alarm(self, loop: AbstractEventLoop, deadline: float, now: float) -> None:
        """Look at the waiting tasks of *loop* at *deadline*: a timer for each costs more than its wait."""
        for other in [known for known in self._alarms if known.is_closed()]:
            del self._alarms[other]
        self._alarms[loop] = deadline
        loop.call_later(deadline - now, self._ring, loop)

    def _leave_line(self, turn: _Turn) -> bool:
        """Give a turn up; False if it was served already."""
        with self._lock:
            if turn not in self._waiting:
                return False
            self._waiting.remove(turn)
            return True

    # --- what may wait ------------------------------------------------------------------------

    async def take(self, owner: object, timeout: float | None, world: World) -> P:
        """Return a place for *owner*: wait in line for it, and make it fit for use.

        Args:
            owner: who holds it, for messages; its ``str()`` is taken only when one is needed.
            timeout: seconds to wait; 0 means now, None the line's own.
            world: which side waits.
        """
        limit = self._timeout if timeout is None else timeout
        deadline = INF if limit is None else monotonic() + limit
        served = False
        while True:
            place = self._claim(deadline, world, first=served)
            while type(place) is tuple:
                waiter = place[0]
                try:
                    if self._idle or self._lost:  # put back before this turn was in line: nobody else looks
                        self._serve()
                    if (filled := waiter.filled) is not None:
                        await filled  # tasks are told when they are late; see _ring()
                    else:
                        await waiter.wait(None if deadline == INF else deadline - place[2])
                except BaseException:
                    self._withdraw(place)
                    raise
                place = self._collect(place) or self._claim(deadline, world, first=True)
            if place is None:
                raise self._timeout_error(limit)
            now = monotonic()
            # timeout=0 forbids waiting in line, not the work itself.
            if now < place.check_at:
                break
            if await self._prepare(place, deadline if limit else INF, world):
                now = monotonic()
                break
            served = True
            if limit and monotonic() >= deadline:  # there may be more to check, but no time
                with self._lock:
                    self._timeouts += 1
                raise self._timeout_error(limit)
        place.since = now
        place.owner = owner
        if self._depth:
            self._keep_stack(place)
        return place

    async def _prepare(self, place: P, until: float, world: World) -> bool:
        """Make *place* fit for use; False: it is gone, take another."""
        raise NotImplementedError

    def _collect(self, turn: _Turn) -> P | None:
        """Return what came of a turn; None: it is too late."""
        waiter = turn[0]
        if waiter.value is None and self._leave_line(turn):
            return None
        place, waiter.value = waiter.value, None  # the traceback of a later error would keep it alive
        if place is CLOSED:
            raise self._refusal()
        return None if place is LATE else place

    def _withdraw(self, turn: _Turn) -> None:
        """Give a turn up; what was handed over in the same instant goes to the next."""
        value = None if self._leave_line(turn) else turn[0].value
        if isinstance(value, Place):
            self._put_back(value)  # type: ignore[arg-type]  # what a waiter carries has no type

    def _ring(self, loop: AbstractEventLoop) -> None:
        """Tell those tasks of *loop* that are late, and come again for the next."""
        with self._lock:
            now = monotonic()
            following = INF
            for turn in list(self._waiting):
                waiter, its_loop, _, deadline = turn
                if its_loop is loop and deadline > now:
                    following = min(following, deadline)
                elif its_loop is loop:
                    self._waiting.remove(turn)
                    waiter.fill(LATE)
            self._alarms.pop(loop, None)
            if following < INF:
                self._set_alarm(loop, following, now)

    def _serve(self) -> None:
        """Give what is free to those who wait; then report what was lost."""
        while True:
            with self._lock:
                if self._lost:
                    self._recover()
                self._hand_over()
            if not self._lost:  # a collection while the lock was held could not take it
                break
        self._report_losses()

    def _pass_on(self, place: P) -> None:
        """Give *place*, which comes back, straight to the first in line, or let it rest."""
        waiting = self._waiting
        if waiting:
            with self._lock:
                # Others in front of it, or work to be done first: the long way round.
                if waiting and not (self._idle or self._lost) and (not self._bound or waiting[0][1] is place.loop):
                    waiter, _, since, _ = waiting.popleft()
                    if waiter.fill(place):
                        self._wait_time += place.since - since
                        return
                    waiter.value = None  # a cancelled task still looks here, and must not find it
        self._idle.append(place)
        if waiting:
            self._serve()

    def _put_back(self, place: P) -> None:
        with self._lock:
            self._unpick(place)
        self._serve()

    def _stop(self) -> None:
        """Refuse from now on, and tell those who wait."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._waiting.popleft()[0].fill(CLOSED)

    # --- what it says ---------------------------------------------------------------------------

    def _timeout_error(self, limit: float | None) -> PoolTimeoutError:
        return PoolTimeoutError(
            f"pool {self.name!r}: none of its {self._limit} resources came free in {limit or 0.0:.2f} s "
            f"({len(self._waiting)} waiting{self._longest()}); raise max_size or hold them for less time",
            self.name,
            "acquire",
        )
