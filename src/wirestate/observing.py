"""What can be listened to: leaks, and circuit breakers."""

from __future__ import annotations


class Listener:
    """Override what you want to hear; every method does nothing by default.

    Methods are called in the thread or task where the event happens, so they should be short; an
    exception in one is logged and goes no further.
    """

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        """A lease was lost, or is held longer than its threshold; *stack* is the borrower's."""

    def on_breaker(self, resource: str, before: str, after: str) -> None:
        """The circuit breaker of *resource* changed its state."""
