"""What can be listened to: runs, visits, arcs, resources."""

from __future__ import annotations


class Listener:
    """Override what you want to hear; every method does nothing by default.

    Methods are called in the thread or task where the event happens, so they should be short; an
    exception in one is logged and goes no further.
    """

    def on_open(self, resource: str, owner_id: str, seconds: float) -> None:
        """A lease of *resource* was opened for *owner_id*; it took *seconds*."""

    def on_close(self, resource: str, owner_id: str, seconds: float, error: BaseException | None) -> None:
        """A lease was released after *seconds*."""

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        """A lease was lost, or is held longer than its threshold; *stack* is the borrower's."""

    def on_health(self, resource: str, before: str, after: str) -> None:
        """The health of *resource* changed."""

    def on_breaker(self, resource: str, before: str, after: str) -> None:
        """The circuit breaker of *resource* changed its state."""

    def on_run(self, owner_id: str, outcome: str, seconds: float) -> None:
        """A run ended."""

    def on_visit(self, owner_id: str, state: str, seconds: float, error: BaseException | None) -> None:
        """A visit ended."""

    def on_arc(self, owner_id: str, source: str, target: str) -> None:
        """An arc was taken."""
