"""A line of those who wait for places: fair, cancellation-safe, for threads and event loops at once."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from _thread import allocate_lock
from asyncio import AbstractEventLoop
from collections import deque
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakSet

from wirestate.errors import (
    LeaseReleasedError,
    PoolTimeoutError,
    ResourceClosedError,
    ResourceError,
    TooManyWaitingError,
)
from wirestate.observing import Listener
from wirestate.resources.reports import NO_STACK, Stack, formatted, owner_text, seconds_text, tell
from wirestate.waiting import Waiter, World, running_loop

INF = float("inf")
LATE: object = object()  # handed over in place of a place: too late
CLOSED: object = object()  # the same: nothing comes any more
NOBODY: object = type("Nobody", (), {"__repr__": lambda self: "nobody"})()  # None is an owner that gave no name


class Place:
    """One unit of capacity, owned by whoever holds this object.

    The line refers to a place only while it is idle. One that is lost in any way (a lease dropped,
    an interrupt between two instructions) is collected, and its collection gives the capacity back.
    """

    __slots__ = ("__weakref__", "alive", "held_time", "line", "owner", "since", "stack", "uses")

    def __init__(self, line: Line[Any]) -> None:  # Any: the line of this very kind of place
        self.line = line
        self.owner: object = NOBODY
        self.since = 0.0  # when its owner took it, or when it came back
        self.stack: tuple[float, Stack] | None = None  # where it was taken, and its ``since`` then
        self.alive = False  # it counts against the limit
        self.uses = 0
        self.held_time = 0.0

    @property
    def held(self) -> bool:
        """Whether an owner has it."""
        return self.owner is not NOBODY

    def borrowed_at(self) -> str:
        """Return where it was taken, as far as that was kept."""
        taken = self.stack
        return formatted(taken[1]) if taken is not None and taken[0] == self.since else NO_STACK

    def __del__(self) -> None:
        # An interrupt may have left it without any attribute.
        if getattr(self, "alive", False) and not sys.is_finalizing():
            self.line._note_loss(self)


P = TypeVar("P", bound=Place)

# Somebody who waits: waiter, loop, since when, until when. A plain tuple: a named one costs 0.2 us more.
_Turn: TypeAlias = tuple[Waiter, AbstractEventLoop | None, float, float]


class Line(Generic[P]):
    """A limited number of places and the queue in front of them: the waiting half of gate and pool.

    Taking and putting back an idle place needs no lock: ``deque.pop`` and ``append`` are atomic.
    All else happens under one lock that is never held across I/O, an await or foreign code.
    """

    def __init__(
        self, name: str, limit: int, timeout: float | None, max_waiting: int | None, listener: Listener | None
    ) -> None:
        self.name = name
        self._limit = limit
        self._timeout = timeout
        self.longest_wait = INF if timeout is None else timeout
        self._max_waiting = INF if max_waiting is None else max_waiting
        self._listener = listener
        self._timeouts = self._refused = self._leaks = 0
        self._past_uses = 0  # of places that are gone
        self._past_time = self._wait_time = 0.0
        self._closed = False
        self._bound = False  # places belong to event loops
        self._reset()
        _LINES.add(self)

    def _reset(self) -> None:
        """Begin without places: at first, and in a forked child."""
        self._lock = allocate_lock()
        self._idle: deque[P] = deque()
        self._waiting: deque[_Turn] = deque()
        self._lost: deque[P] = deque()
        self._unreported: deque[tuple[str, str]] = deque()
        self._places: WeakSet[P] = WeakSet()
        self._spare = self._limit  # places that have not been made
        self._alarms: dict[AbstractEventLoop, float] = {}  # when the waiting tasks of a loop are looked at

    # --- decisions: plain, the lock is held, nothing waits ---------------------------------

    def _pick(self, loop: AbstractEventLoop | None) -> P | None:
        """Return a place that a caller on *loop* may have now."""
        raise NotImplementedError

    def _unpick(self, place: P) -> None:
        """Undo :meth:`_pick`: its caller is gone."""
        self._idle.append(place)

    def _retire(self, place: P) -> None:
        """Let *place* count no longer."""
        if place.alive:
            self._spare += 1
            place.alive = False  # no call in between: an interrupt cannot split the two
        self._fold(place)
        self._places.discard(place)

    def _fold(self, place: P) -> None:
        """Keep the counts of a place that is gone."""
        self._past_uses += place.uses
        self._past_time += place.held_time

    def _salvage(self, place: P) -> None:
        """Keep what else a lost place had."""

    def _recover(self) -> None:
        """Take the capacity of lost places back."""
        while self._lost:
            place = self._lost.popleft()
            self._leaks += place.held
            self._fold(place)
            self._salvage(place)
        self._recount()

    def _recount(self) -> None:
        """Count the places that exist: an interrupt can end a finalizer before it takes note of its loss."""
        self._spare = self._limit - sum(place.alive for place in self._places)

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
            while isinstance(place, tuple):
                try:
                    if self._idle or self._lost:  # put back before this turn was in line: nobody else looks
                        self._serve()
                    # Tasks are told when they are late; see _ring().
                    seconds = None if world.is_async or deadline == INF else deadline - place[2]
                    await place[0].wait(seconds)
                except BaseException:
                    self._withdraw(place)
                    raise
                place = self._collect(place) or self._claim(deadline, world, first=True)
            if place is None:
                raise self._timeout_error(limit)
            # timeout=0 forbids waiting in line, not the work itself.
            if self._is_ready(place) or await self._prepare(place, deadline if limit else INF, world):
                break
            served = True
        place.since = monotonic()
        place.owner = owner
        return place

    def _is_ready(self, place: P) -> bool:
        """Tell whether *place* can be handed out as it is."""
        return True

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
        while self._unreported:
            owner, stack = self._unreported.popleft()
            if self._listener is not None:
                tell(self._listener.on_leak, self.name, owner, stack)

    def _not_held(self, place: P) -> None:
        """Refuse a place that comes back twice; take no notice of one that a fork inherited."""
        if place.alive:
            raise LeaseReleasedError(self.name)

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

    # --- what is lost ------------------------------------------------------------------------

    def _note_loss(self, place: P) -> None:
        """Take note of a place that is being collected: in any thread, at any instruction."""
        place.alive = False
        remains = copy.copy(place)  # the place itself must not live on
        place.owner = NOBODY
        self._lost.append(remains)
        if remains.held:
            self._unreported.append((owner_text(remains.owner), remains.borrowed_at()))
        # This thread may hold the lock; then whoever releases it looks at what was lost.
        if self._lock.acquire(False):
            self._lock.release()
            self._serve()
        if remains.held:
            held, owner = seconds_text(monotonic() - remains.since), owner_text(remains.owner)
            text = f"pool {self.name!r}: a lease of {owner} was lost after {held}, never released; borrowed at"
            warnings.warn(f"{text}\n{remains.borrowed_at()}", ResourceWarning, stacklevel=2)

    def _forget(self) -> None:
        """Begin anew in a forked child: what the parent made is neither used nor closed here."""
        for place in self._places:
            place.alive, place.owner = False, NOBODY
        _INHERITED.append((self._idle, self._waiting))  # a finalizer could say goodbye on the parent's socket
        self._reset()

    def listen(self, listener: Listener | None) -> None:
        """Let *listener* hear of leaks from now on."""
        self._listener = listener

    # --- what can be asked -------------------------------------------------------------------

    def holders(self) -> list[tuple[str, float]]:
        """Return who holds a place and for how many seconds, the longest first."""
        with self._lock:
            held = [(place.owner, place.since) for place in self._places if place.held]
        now = monotonic()
        return [(owner_text(owner), now - since) for owner, since in sorted(held, key=lambda holder: holder[1])]

    def _uses(self) -> tuple[int, float]:
        """Return how often places were taken and how long they were held; the lock is held."""
        places = list(self._places)
        uses = self._past_uses + sum(place.uses + place.held for place in places)
        return uses, self._past_time + sum(place.held_time for place in places)

    def _longest(self) -> str:
        held = self.holders()
        return f"; longest held {seconds_text(held[0][1])} by {held[0][0]}" if held else ""

    def _timeout_error(self, limit: float | None) -> PoolTimeoutError:
        return PoolTimeoutError(
            f"pool {self.name!r}: none of its {self._limit} resources came free in {limit or 0.0:.2f} s "
            f"({len(self._waiting)} waiting{self._longest()}); raise max_size or hold them for less time",
            self.name,
            "acquire",
        )

    def _refusal(self) -> ResourceError:
        return ResourceClosedError(f"{self.name!r} is closed; it hands out nothing any more", self.name, "acquire")


# A set for all, and one hook: a hook for each line could never be taken out again.
_LINES: WeakSet[Line[Any]] = WeakSet()  # Any: lines of every kind
_INHERITED: list[object] = []


def _forget_all() -> None:
    for line in list(_LINES):
        line._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
