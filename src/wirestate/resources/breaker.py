"""A circuit breaker: after failures in a row nobody tries for a while, then one does."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from time import monotonic
from typing import Literal

from wirestate.errors import CircuitOpenError, ResourceUnavailableError
from wirestate.observing import Listener
from wirestate.redaction import half_made_too
from wirestate.resources.inherited import forget_at_fork
from wirestate.resources.reports import tell

State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Stop tries after *failures* in a row; after *reset_after* seconds let one through as a probe.

    Example:
        >>> breaker = CircuitBreaker(1, 30.0, "api")
        >>> breaker.failure()
        >>> breaker.state
        'open'
    """

    def __init__(
        self,
        failures: int,
        reset_after: float,
        name: str,
        listener: Listener | None = None,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.name = name
        self._limit = failures
        self._reset_after = reset_after
        self.listener = listener
        self._clock = clock
        self.forget_parent()
        self._state: State = "closed"
        self._failures = 0
        self._retry_at = 0.0
        self._cause: BaseException | None = None
        forget_at_fork(self)

    def forget_parent(self) -> None:
        """Take a lock that nobody holds: at first, and in a forked child."""
        self._lock = allocate_lock()

    @property
    def state(self) -> State:
        """``closed`` (tries pass), ``open`` (they are refused) or ``half-open`` (a probe is out)."""
        return self._state

    @property
    def retry_after(self) -> float:
        """Seconds until the next try is allowed."""
        return 0.0 if self._state == "closed" else max(0.0, self._retry_at - self._clock())

    def before(self) -> None:
        """Ask before a try.

        Raises:
            CircuitOpenError: it is too early; the cause is the last failure.
        """
        if self._state == "closed":
            return
        with self._lock:
            before, now = self.state, self._clock()
            if before != "closed":
                if now < self._retry_at:
                    raise CircuitOpenError(self.name, self._retry_at - now, self._failures) from self._cause
                # A probe that never reports (cancelled, lost) blocks the next one for one period only.
                self._state, self._retry_at = "half-open", now + self._reset_after
        self._changed(before)

    def success(self) -> None:
        """Report that a try worked."""
        if not self._failures:
            return
        with self._lock:
            before = self._state
            if before == "open":  # from a try that began before the failures: it says nothing about now
                return
            self._state, self._failures, self._cause = "closed", 0, None
        self._changed(before)

    def failure(self, error: BaseException | None = None) -> None:
        """Report that a try failed."""
        # Not the error itself: its traceback would keep the caller's frames, hence their leases, alive.
        cause = None if error is None else ResourceUnavailableError(self.name, error)
        with self._lock:
            before = self._state
            self._failures += 1
            self._cause = cause or self._cause
            if before == "half-open" or (before == "closed" and self._failures >= self._limit):
                self._state, self._retry_at = "open", self._clock() + self._reset_after
        self._changed(before)

    def _changed(self, before: State) -> None:
        after = self._state
        if after != before and self.listener is not None:
            tell(self.listener.on_breaker, self.name, before, after)

    @half_made_too
    def __repr__(self) -> str:
        wait = f", next try in {self.retry_after:.1f} s" if self._state != "closed" else ""
        return f"<CircuitBreaker {self.name!r} {self._state}, {self._failures} of {self._limit} failures{wait}>"
