"""A line of those who wait for places: fair, cancellation-safe, for threads and event loops at once."""

from __future__ import annotations

from asyncio import AbstractEventLoop, InvalidStateError, TimerHandle
from collections import deque
from time import monotonic
from typing import Any, TypeAlias, cast

from wirestate.errors import PoolTimeoutError, TooManyWaitingError
from wirestate.observing import Listener
from wirestate.resources.inherited import keep
from wirestate.resources.places import NOBODY, P, Place, Places
from wirestate.resources.upkeep import INF, start_in_finalizer
from wirestate.waiting import ThreadWaiter, World, hand_to_task, running_loop

LATE: object = object()  # handed over in place of a place: too late
CLOSED: object = object()  # the same: nothing comes any more
GRACE = 0.5  # seconds after which a turn that somebody took is lost: an interrupt came between two instructions

# Somebody who waits: on what, the loop, since when, until when. A plain tuple: a named one costs 0.2 us more.
Turn: TypeAlias = tuple[Any, AbstractEventLoop | None, float, float]  # Any: a ThreadWaiter, or the future of a task


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
        self.longest_wait = INF if timeout is None else timeout
        self._max_waiting = INF if max_waiting is None else max_waiting
        self._timeouts = self._refused = 0
        self._bound = False  # places belong to event loops
        super().__init__(name, limit, leak_threshold, listener)

    def _reset(self) -> None:
        super()._reset()
        self._waiting: deque[Turn] = deque()
        self._alarms: dict[AbstractEventLoop, float] = {}  # when the waiting tasks of a loop are looked at
        self._timers: dict[AbstractEventLoop, TimerHandle] = {}  # which do that

    def forget_parent(self) -> None:
        keep(self._waiting)
        super().forget_parent()

    # --- decisions: plain, the lock is held, nothing waits ---------------------------------

    def _make_room(self) -> None:
        """Free what the first in line cannot use, if that lets it in."""

    def _hand_over(self) -> None:
        """Give what is free to those who wait, in order."""
        waiting, turn = self._waiting, None
        try:
            while waiting and (self._idle or self._spare):
                try:
                    for turn in iter(waiting.popleft, None):  # noqa: B007  # no interrupt comes between the two
                        break
                except IndexError:  # _pass_on() was faster
                    return
                assert turn is not None
                if turn[1] is not None and turn[1].is_closed():
                    continue  # nobody is there any more
                place = self._pick(turn[1])
                if place is None:
                    waiting.appendleft(turn)
                    self._make_room()
                    return
                waited = monotonic() - turn[2]
                place.waited += waited
                if not self._tell(turn, place):
                    place.waited -= waited
                    self._unpick(place)
        except BaseException:
            self._return_turn(turn)
            raise

    def _return_turn(self, turn: Turn | None) -> None:
        """Put back into line who an interrupted hand-over did not reach; its place is collected, or comes back."""
        if turn is not None and turn not in self._waiting:
            waiter, loop, _, _ = turn
            if waiter.value is None if loop is None else not waiter.done():
                self._waiting.appendleft(turn)

    def _tell(self, turn: Turn, what: object) -> bool:
        """Hand *what* over: a place, or LATE, or CLOSED."""
        waiter, loop, _, _ = turn
        if loop is None:
            return cast("ThreadWaiter", waiter).fill(what)
        return hand_to_task(waiter, loop, what, self._came_back)

    def _claim(self, now: float, deadline: float, world: World, *, first: bool = False) -> P | Turn | None:
        """Return a place, or a turn in line, or None where it is too late to wait."""
        loop = running_loop() if world.is_async else None
        waiting = self._waiting
        with self._lock:
            if self._closed or (loop is None and self._bound):
                raise self._refusal()
            if self._lost:
                self._recover()
            if (first or not waiting) and (self._idle or self._spare):
                place = self._pick(loop)
                if place is not None:
                    return place
            if not now < deadline:  # also where it is no number
                self._recover()
                place = None if waiting and not first else self._pick(loop)
                self._timeouts += place is None
                return place
            if not first and len(waiting) >= self._max_waiting and self._waiters() >= self._max_waiting:
                self._refused += 1
                raise TooManyWaitingError(self.name, len(waiting))
            turn = (ThreadWaiter() if loop is None else loop.create_future(), loop, now, deadline)
            waiting.appendleft(turn) if first else waiting.append(turn)
            if loop is not None and deadline < self._alarms.get(loop, INF):
                self._set_alarm(loop, deadline, now)
            return turn

    def _set_alarm(self, loop: AbstractEventLoop, deadline: float, now: float) -> None:
        """Look at the waiting tasks of *loop* at *deadline*: a timer for each costs more than its wait."""
        for other in [known for known in self._timers if known.is_closed()]:
            self._alarms.pop(other, None)
            del self._timers[other]
        before, self._timers[loop] = self._timers.get(loop), loop.call_later(deadline - now, self._ring, loop)
        self._alarms[loop] = deadline
        if before is not None:
            before.cancel()  # each that rings sets the next: two would go on as two

    def _leave_line(self, turn: Turn) -> bool:
        """Give a turn up; False if it was served already."""
        with self._lock:
            return self._leave(turn)

    def _waiters(self) -> int:
        """Return how many wait; those whose loop is closed do so no more."""
        for turn in [turn for turn in self._waiting if turn[1] is not None and turn[1].is_closed()]:
            self._leave(turn)
        return len(self._waiting)

    def _leave(self, turn: Turn) -> bool:
        try:
            self._waiting.remove(turn)
        except ValueError:
            return False
        return True

    # --- what may wait ------------------------------------------------------------------------

    async def take(self, owner: object, timeout: float | None, world: World, slot: P | None = None) -> P:
        """Return a place for *owner*: wait in line for it, and make it fit for use.

        Args:
            owner: who holds it, for messages; its ``str()`` is taken only when one is needed.
            timeout: seconds to wait; 0 means now, None the line's own.
            world: which side waits.
            slot: the place that was reserved.
        """
        limit = self.longest_wait if timeout is None else timeout
        now = monotonic()
        deadline = now + limit
        got = self._claim(now, deadline, world) if slot is None else slot
        return await self._go_on(got, owner, limit, deadline, world)

    async def _place(self, got: P | Turn | object | None, limit: float, deadline: float, world: World) -> P:
        """Make of what :meth:`_claim` gave, or of what came of it, a place."""
        while not isinstance(got, Place):
            if isinstance(got, tuple):
                got = await self._outcome(got)
            elif got is LATE:
                got = self._claim(monotonic(), deadline, world, first=True)
            elif got is CLOSED:
                raise self._refusal()
            else:
                raise self._timeout_error(limit)
        return got  # type: ignore[return-value]  # what a waiter carries has no type

    async def reserve(self, owner: object, timeout: float | None, world: World) -> P:
        """Wait for a place as :meth:`take` does, and make it fit for use only when it is taken with ``slot=``."""
        limit = self.longest_wait if timeout is None else timeout
        now = monotonic()
        deadline = now + limit
        place = await self._place(self._claim(now, deadline, world), limit, deadline, world)
        place.since = monotonic()
        place.owner = owner
        return place

    def give_up(self, place: P) -> None:
        """Take back a place that was reserved and not used."""
        place.owner = NOBODY
        self._put_back(place)

    async def _go_on(
        self, got: P | Turn | object | None, owner: object, limit: float, deadline: float, world: World
    ) -> P:
        """Make of what :meth:`_claim` gave, or of what came of it, a place that *owner* has."""
        while True:
            place = await self._place(got, limit, deadline, world)
            now = monotonic()
            if now < place.check_at:
                break
            # timeout=0 forbids waiting in line, not the work itself.
            if await self._prepare(place, deadline if limit else INF, world):
                now = monotonic()
                break
            if limit and monotonic() >= deadline:  # there may be more to check, but no time
                with self._lock:
                    self._timeouts += 1
                raise self._timeout_error(limit)
            got = self._claim(monotonic(), deadline, world, first=True)
        place.since = now
        place.owner = owner
        if self._depth:
            self._keep_stack(place)
        return place

    async def _outcome(self, turn: Turn) -> object:
        """Return what comes of a turn."""
        if turn[1] is None:
            return self._block(turn)
        try:
            if self._idle or self._spare or self._lost or self._closed:
                self._look_again()
            return await turn[0]  # tasks are told when they are late; see _ring()
        except BaseException:
            self._withdraw(turn)
            raise

    def _block(self, turn: Turn) -> object:
        """Return what comes of a thread's turn."""
        waiter: ThreadWaiter = turn[0]
        try:
            if self._idle or self._spare or self._lost or self._closed:
                self._look_again()
            in_time = waiter.block(None if turn[3] == INF else turn[3] - turn[2])
            grace = INF if in_time else monotonic() + GRACE
            while not in_time and monotonic() < grace and not self._leave_line(turn):
                in_time = waiter.block(0.001)  # somebody has the turn in hand, to fill it or to put it back
        except BaseException:
            self._withdraw(turn)
            raise
        got, waiter.value = waiter.value, None  # the traceback of a later error would keep it alive
        return LATE if got is None else got

    async def _prepare(self, place: P, until: float, world: World) -> bool:
        """Make *place* fit for use; False: it is gone, take another."""
        raise NotImplementedError

    def _withdraw(self, turn: Turn) -> None:
        """Give a turn up; what was handed over in the same instant goes to the next."""
        if self._leave_line(turn):
            return
        waiter, loop, _, _ = turn
        if loop is None:
            self._came_back(waiter.value)
        elif waiter.done() and not waiter.cancelled():
            self._came_back(waiter.result())

    def _came_back(self, place: object) -> None:
        """Take back what nobody is there to take any more."""
        if isinstance(place, Place):
            self._put_back(place)  # type: ignore[arg-type]  # what a waiter carries has no type

    def _ring(self, loop: AbstractEventLoop) -> None:
        """Tell those tasks of *loop* that are late, and come again for the next."""
        with self._lock:
            now = monotonic()
            following = INF
            for turn in list(self._waiting):
                _, its_loop, _, deadline = turn
                if its_loop is loop and deadline > now:
                    following = min(following, deadline)
                elif its_loop is loop and self._leave(turn):
                    self._tell(turn, LATE)
            self._alarms.pop(loop, None)
            self._timers.pop(loop, None)
            if following < INF:
                # A look at ten thousand takes 1 ms: it may take a fifth of the time, not all of it.
                self._set_alarm(loop, max(following, now + 5 * (monotonic() - now)), now)

    def _serve(self) -> None:
        """Give what is free to those who wait."""
        try:
            with self._lock:
                if self._lost:
                    self._recover()
                self._hand_over()
        except BaseException:  # an interrupt: those who wait know nothing of it
            start_in_finalizer(self._attend, "wirestate-loss")
            raise

    def _pass_on(self, place: P) -> None:
        """Give *place*, which comes back, to the first in line, or let it rest."""
        waiting, turn = self._waiting, None
        loop = place.loop
        try:
            while waiting and not self._idle:
                # No lock (0.25 us): popleft() gives each turn to one thread; see _block() for what may come between.
                try:
                    turn = waiting.popleft()
                except IndexError:  # another thread was faster
                    break
                if loop is not turn[1] and self._bound:
                    waiting.appendleft(turn)
                    break
                place.waited += place.since - turn[2]
                if loop is not None and running_loop() is loop:
                    try:
                        turn[0].set_result(place)
                        return
                    except InvalidStateError:  # cancelled
                        pass
                elif self._tell(turn, place):
                    return
                place.waited -= place.since - turn[2]
        except BaseException:
            self._return_turn(turn)
            raise
        self._idle.append(place)
        if waiting:
            self._serve()

    def _look_again(self) -> None:
        """Serve who has just come into line: what came back before that is seen by nobody else."""
        self._serve()
        if self._closed:
            self._stop()

    def _put_back(self, place: P) -> None:
        try:
            with self._lock:
                self._unpick(place)
        finally:
            self._serve()

    def _stop(self) -> None:
        """Refuse from now on, and tell those who wait."""
        with self._lock:
            self._closed = True
            while self._waiting:
                self._tell(self._waiting.popleft(), CLOSED)

    # --- what it says ---------------------------------------------------------------------------

    def _timeout_error(self, limit: float) -> PoolTimeoutError:
        return PoolTimeoutError(
            f"pool {self.name!r}: none of its {self._limit} resources came free in {limit:.2f} s "
            f"({len(self._waiting)} waiting{self._longest()}); raise max_size or hold them for less time",
            self.name,
            "acquire",
        )
