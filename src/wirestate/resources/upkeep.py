"""One background thread that looks after every pool that needs it."""

from __future__ import annotations

import os
import threading
from time import monotonic
from typing import Protocol
from weakref import WeakKeyDictionary

from wirestate.resources.reports import logger


class Tended(Protocol):
    """What is looked after."""

    def reap(self) -> int: ...


class Upkeep:
    """Call ``reap()`` of what is watched; the thread lives while something is."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        """Begin without a thread: at first, and in a forked child."""
        self._changed = threading.Condition()
        self._watched: WeakKeyDictionary[Tended, tuple[float, float]] = WeakKeyDictionary()  # next time, period
        self._thread: threading.Thread | None = None

    def watch(self, tended: Tended, period: float) -> None:
        """Look after *tended* at once, then every *period* seconds."""
        with self._changed:
            self._watched[tended] = (0.0, period)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wirestate-upkeep", daemon=True)
                self._thread.start()
            self._changed.notify()

    def forget(self, tended: Tended) -> None:
        """Look after *tended* no longer."""
        with self._changed:
            self._watched.pop(tended, None)
            self._changed.notify()

    def _run(self) -> None:
        while (due := self._due()) is not None:
            while due:
                _tend(due.pop())  # no local keeps a pool alive while this thread sleeps

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


def _tend(tended: Tended) -> None:
    try:
        tended.reap()
    except Exception:  # one pool's trouble must not end the upkeep of the others
        logger.exception("upkeep of %r failed", tended)


UPKEEP = Upkeep()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=UPKEEP._reset)
