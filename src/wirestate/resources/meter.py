"""Counters of one resource that cost two list appends a lease."""

from __future__ import annotations

import threading

from wirestate.resources.base import ResourceMetrics

FOLD_AT = 4096


class Meter:
    """Count the leases of one resource.

    Opening appends the seconds it took to ``takes``, ending the seconds held to ``holds``. An append
    is atomic, so neither needs a lock; sums are made when somebody asks, or when a list has grown.
    """

    __slots__ = (
        "_held",
        "_lock",
        "_opened",
        "_over",
        "_taking",
        "failures",
        "holds",
        "takes",
        "timeouts",
    )

    def __init__(self) -> None:
        self.takes: list[float] = []
        self.holds: list[float] = []
        self.failures = 0
        self.timeouts = 0
        self._opened = self._over = 0
        self._taking = self._held = 0.0
        self._lock = threading.Lock()

    def opened(self, seconds: float) -> None:
        """Count a lease that took *seconds* to open."""
        takes = self.takes
        takes.append(seconds)
        if len(takes) > FOLD_AT:
            self.fold()

    def ended(self, seconds: float) -> None:
        """Count a lease that was held for *seconds*."""
        holds = self.holds
        holds.append(seconds)
        if len(holds) > FOLD_AT:
            self.fold()

    def failed(self, error: BaseException) -> None:
        """Count an opening that failed; one that was cancelled or interrupted did not."""
        if isinstance(error, Exception):
            with self._lock:
                self.failures += 1
                self.timeouts += isinstance(error, TimeoutError)

    def fold(self) -> None:
        """Move what was appended into the sums; appends that happen meanwhile stay for the next time."""
        with self._lock:
            count = len(self.takes)
            self._taking += sum(self.takes[:count])
            self._opened += count
            del self.takes[:count]
            count = len(self.holds)
            self._held += sum(self.holds[:count])
            self._over += count
            del self.holds[:count]

    def read(self) -> ResourceMetrics:
        """Return the counters as they are now."""
        self.fold()
        with self._lock:
            return ResourceMetrics(
                total_acquisitions=self._opened,
                failed_acquisitions=self.failures,
                timeouts=self.timeouts,
                active_connections=max(0, self._opened - self._over),
                total_hold_time=self._held,
                total_acquisition_time=self._taking,
            )
