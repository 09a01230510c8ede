"""One background thread that knows when a pool must be looked after; each then gets a thread of its own for it."""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Protocol
from weakref import WeakKeyDictionary

from wirestate.resources.inherited import forget_at_fork
from wirestate.resources.reports import log_failure, logger

INF = float("inf")
SHORTEST, LONGEST = 0.05, 30.0  # seconds between two looks


class Tended(Protocol):
    """What is looked after."""

    def reap(self) -> int: ...


def upkeep_period(*times: float | None) -> float:
    """Return how often that must be looked after to which these times matter; infinite if never."""
    limits = [time for time in times if time is not None]
    return max(SHORTEST, min(LONGEST, min(limits) / 4)) if limits else INF


def start_in_finalizer(call: Callable[[], None], name: str) -> bool:
    """Have *call* run in a thread that holds no lock; tell whether that was possible.

    A finalizer runs at any instruction, so its thread may hold any lock; ``Thread.start()`` takes one too.
    """

    def start() -> None:
        with suppress(RuntimeError):  # the interpreter ends
            threading.Thread(target=call, name=name, daemon=True).start()

    try:
        start_new_thread(start, ())
    except RuntimeError:  # the same, or there are too many threads
        return False
    return True


class Upkeep:
    """Call ``reap()`` of what is watched; the thread lives while something is."""

    def __init__(self) -> None:
        self.forget_parent()
        forget_at_fork(self)

    def forget_parent(self) -> None:
        """Begin without a thread: at first, and in a forked child."""
        self._changed = threading.Condition()
        self._watched: WeakKeyDictionary[Tended, tuple[float, float]] = WeakKeyDictionary()  # next time, period
        self._busy: WeakKeyDictionary[Tended, bool] = WeakKeyDictionary()  # True: it is due again
        self._thread: threading.Thread | None = None

    def watch(self, tended: Tended, period: float) -> None:
        """Look after *tended* at once, then every *period* seconds."""
        with self._changed:
            self._watched[tended] = (0.0, period)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="wirestate-upkeep", daemon=True)
                with suppress(RuntimeError):  # the interpreter ends and starts no threads: nothing is worth upkeep
                    thread.start()
                    self._thread = thread
            self._changed.notify()

    def hasten(self, tended: Tended, when: float) -> None:
        """Look after *tended* at *when* already."""
        with self._changed:
            following, period = self._watched.get(tended, (-INF, 0.0))
            if when < following:
                self._watched[tended] = (when, period)
                self._changed.notify()

    def forget(self, tended: Tended) -> None:
        """Look after *tended* no longer."""
        with self._changed:
            self._watched.pop(tended, None)
            self._changed.notify()

    def _run(self) -> None:
        while (due := self._due()) is not None:
            while due:
                self._tend(due.pop())  # no local keeps a pool alive while this thread sleeps

    def _due(self) -> list[Tended] | None:
        """Wait until something is due; None when nothing is watched any more."""
        with self._changed:
            while self._watched:
                now = monotonic()
                due = [tended for tended, (when, _) in self._watched.items() if when <= now]
                for index in range(len(due)):
                    period = self._watched[due[index]][1]
                    self._watched[due[index]] = (now + period, period)
                if due:
                    return due
                self._changed.wait(min((when for when, _ in self._watched.values()), default=now) - now)
            self._thread = None
            return None

    def _tend(self, tended: Tended) -> None:
        """Look after one in a thread of its own: a slow server delays the upkeep of no other pool."""
        with self._changed:
            again = tended in self._busy
            self._busy[tended] = again
        if again:
            return
        thread = threading.Thread(target=self._reap, args=(tended,), name="wirestate-reap", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter ends
            self._busy.pop(tended, None)

    def _reap(self, tended: Tended) -> None:
        wanted = True
        while wanted:
            try:
                tended.reap()
            except Exception as error:  # one pool's trouble must not end the upkeep of the others
                log_failure(logger, error, "upkeep of %r failed", tended)
            with self._changed:
                wanted = self._busy.pop(tended, False)
                if wanted:
                    self._busy[tended] = False


UPKEEP = Upkeep()
