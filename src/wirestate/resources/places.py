"""A limited number of places: which exist, which rest, who holds one, and which were lost."""

from __future__ import annotations

import copy
import sys
import warnings
from _thread import allocate_lock
from asyncio import AbstractEventLoop
from collections import deque
from time import monotonic
from typing import Any, Generic, NoReturn, TypeVar
from weakref import WeakSet

from wirestate.errors import LeaseReleasedError, ResourceClosedError, ResourceError, printable
from wirestate.observing import Listener
from wirestate.resources.inherited import forget_at_fork, keep
from wirestate.resources.reports import (
    NO_STACK,
    Stack,
    call_stack,
    formatted,
    logger,
    owner_text,
    seconds_text,
    stacks_wanted,
    tell,
)
from wirestate.resources.upkeep import INF, UPKEEP, start_in_finalizer, upkeep_period

NOBODY: object = type("Nobody", (), {"__repr__": lambda self: "nobody"})()  # None is an owner that gave no name
STACK_DEPTH = 8


class Place:
    """One unit of capacity, owned by whoever holds this object.

    The line refers to a place only while it is idle. One that is lost in any way (a lease dropped,
    an interrupt between two instructions) is collected, and its collection gives the capacity back.
    """

    __slots__ = (
        "__weakref__",
        "alive",
        "check_at",
        "held_time",
        "line",
        "loop",
        "owner",
        "since",
        "stack",
        "uses",
        "waited",
        "warned_at",
    )

    def __init__(self, line: Places[Any]) -> None:  # Any: the line of this very kind of place
        self.line = line
        self.owner: object = NOBODY
        self.since = 0.0  # when its owner took it, or when it came back
        self.stack: tuple[float, Stack] | None = None  # where it was taken, and its ``since`` then
        self.warned_at = 0.0  # the ``since`` of the lease that was reported as held too long
        self.alive = False  # it counts against the limit
        self.check_at = INF  # from when on it is not handed out without a look at it
        self.loop: AbstractEventLoop | None = None  # the only one that may use it
        self.uses = 0
        self.held_time = 0.0
        self.waited = 0.0  # by those who got it

    @property
    def held(self) -> bool:
        """Whether an owner has it."""
        return self.owner is not NOBODY

    @property
    def is_reported(self) -> bool:
        """Whether the lease was reported as held too long, and counted as a leak."""
        return self.warned_at == self.since

    def borrowed_at(self) -> str:
        """Return where it was taken, as far as that was kept."""
        taken = self.stack
        return formatted(taken[1]) if taken is not None and taken[0] == self.since else NO_STACK

    def __del__(self) -> None:
        # An interrupt may have left it without any attribute.
        if getattr(self, "alive", False) and not sys.is_finalizing():
            self.line.note_loss(self)


P = TypeVar("P", bound=Place)


class Places(Generic[P]):
    """Count places, recover those that are lost, and report those that are held too long.

    Taking and putting back an idle place needs no lock: ``deque.pop`` and ``append`` are atomic.
    All else happens under one lock that is never held across I/O, an await or foreign code.
    """

    # What each borrowing looks at, also that of the classes below: a dictionary of more than 30 names is slower.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_alarms",
        "_bound",
        "_closed",
        "_depth",
        "_idle",
        "_lost",
        "_max_waiting",
        "_quick",
        "_resets",
        "_spare",
        "_waiting",
        "_window",
        "longest_wait",
    )

    def __init__(self, name: str, limit: int, leak_threshold: float | None, listener: Listener | None) -> None:
        self.name = name
        self._limit = limit
        self._leak_threshold = leak_threshold
        self._listener = listener
        self._depth = STACK_DEPTH if leak_threshold is not None or stacks_wanted() else 0
        self._period = upkeep_period(leak_threshold)
        self._leaks = 0
        self._past_uses = 0  # of places that are gone
        self._past_time = self._past_waits = 0.0
        self._closed = False
        self._reset()
        forget_at_fork(self)

    @property
    def limit(self) -> int:
        """How many places there may be."""
        return self._limit

    def _reset(self) -> None:
        """Begin without places: at first, and in a forked child."""
        self._lock = allocate_lock()
        self._idle: deque[P] = deque()
        self._lost: deque[P] = deque()
        self._unreported: deque[tuple[str, str]] = deque()
        self._places: WeakSet[P] = WeakSet()
        self._spare = self._limit  # places that have not been made
        self._watched = self._attending = False

    def forget_parent(self) -> None:
        """Begin anew in a forked child: what the parent made is neither used nor closed here."""
        places = list(self._places)
        for place in places:
            place.alive, place.owner = False, NOBODY
        keep(places, self._lost)
        self._reset()

    # --- decisions: the lock is held -----------------------------------------------------------

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
        self._past_waits += place.waited

    def _salvage(self, place: P) -> None:
        """Keep what else a lost place had."""

    def _recover(self) -> None:
        """Take the capacity of lost places back."""
        while self._lost:
            place = self._lost.popleft()
            self._leaks += place.held and not place.is_reported
            place.uses += place.held  # a counter never falls
            self._fold(place)
            self._salvage(place)
        self._recount()

    def _recount(self) -> None:
        """Count the places that exist: an interrupt can end a finalizer before it takes note of its loss."""
        self._spare = self._limit - sum(place.alive for place in self._places)

    # --- what is lost, or held too long -----------------------------------------------------------

    def _serve(self) -> None:
        """Take back what was lost, and give what is free to those who wait."""
        raise NotImplementedError

    def note_loss(self, place: P) -> None:
        """Take note of a place that is being collected: in any thread, at any instruction."""
        place.alive = False
        remains = copy.copy(place)  # the place itself must not live on
        place.owner = NOBODY
        self._lost.append(remains)
        if remains.held and not remains.is_reported and self._listener is not None:
            self._unreported.append((owner_text(remains.owner), remains.borrowed_at()))
        # This thread may hold any lock: this one, which it then cannot take, or one that a listener wants.
        free = self._lock.acquire(False)
        if free:
            self._lock.release()
            self._serve()
        if (self._unreported or self._closed or not free) and not self._attending:
            self._attending = True
            if not start_in_finalizer(self._attend, "wirestate-loss"):
                self._attending = False
        if remains.held:
            held, owner = seconds_text(monotonic() - remains.since), owner_text(remains.owner)
            text = (
                f"pool {self.name!r}: a lease of {printable(owner)} was lost after {held}, never released; borrowed at"
            )
            warnings.warn(f"{text}\n{remains.borrowed_at()}", ResourceWarning, stacklevel=2)

    def _attend(self) -> None:
        """Do, in a thread that holds no lock, what a collection could not."""
        self._attending = False
        self._serve()
        while self._unreported:
            try:
                owner, stack = self._unreported.popleft()
            except IndexError:  # another thread was faster
                return
            if self._listener is not None:
                tell(self._listener.on_leak, self.name, owner, stack)

    def _not_held(self, place: P) -> None:
        """Refuse a place that comes back twice; take no notice of one that a fork inherited."""
        if place.alive:
            raise LeaseReleasedError(self.name)

    def _keep_stack(self, place: P) -> None:
        place.stack = (place.since, call_stack(self._depth))

    def _watch(self) -> None:
        """Have :meth:`reap` called from now on, where the configuration needs it."""
        if self._period < INF and not self._watched and not self._closed:
            self._watched = True
            UPKEEP.watch(self, self._period)

    def reap(self) -> int:
        """Take back what was lost, and report once each lease that is held too long; return 0."""
        with self._lock:
            self._recover()
        self._attend()
        threshold, now = self._leak_threshold, monotonic()
        if threshold is None:
            return 0
        with self._lock:
            places = list(self._places)
        for place in places:
            if place.held and now - place.since > threshold and not place.is_reported:
                with self._lock:  # a loss looks at both
                    place.warned_at = place.since
                    self._leaks += 1
                owner, stack, held = owner_text(place.owner), place.borrowed_at(), seconds_text(now - place.since)
                logger.warning(
                    "pool %r: %s holds a lease for %s; borrowed at\n%s", self.name, printable(owner), held, stack
                )
                if self._listener is not None:
                    tell(self._listener.on_leak, self.name, owner, stack)
        return 0

    # --- what can be asked -------------------------------------------------------------------

    def listen(self, listener: Listener | None) -> None:
        """Let *listener* hear of leaks from now on."""
        self._listener = listener

    def holders(self) -> list[tuple[str, float]]:
        """Return who holds a place and for how many seconds, the longest first."""
        with self._lock:
            held = [(place.owner, place.since) for place in self._places if place.held]
        now = monotonic()
        return [(owner_text(owner), now - since) for owner, since in sorted(held, key=lambda holder: holder[1])]

    def _uses(self) -> tuple[int, float, float]:
        """Return how often places were taken, how long they were held and waited for; the lock is held."""
        places = list(self._places)
        uses = self._past_uses + sum(place.uses + place.held for place in places)
        held = self._past_time + sum(place.held_time for place in places)
        return uses, held, self._past_waits + sum(place.waited for place in places)

    def _longest(self) -> str:
        held = self.holders()
        return f"; longest held {seconds_text(held[0][1])} by {printable(held[0][0])}" if held else ""

    def __reduce__(self) -> NoReturn:
        what = f"{type(self).__name__} {self.name!r} belongs to its process: it cannot be copied or pickled"
        raise TypeError(f"{what}; make it where it is used")

    def _refusal(self) -> ResourceError:
        return ResourceClosedError(f"{self.name!r} is closed; it hands out nothing any more", self.name, "acquire")
