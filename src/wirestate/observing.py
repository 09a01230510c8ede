"""What can be listened to: leases, leaks, circuit breakers, health."""

from __future__ import annotations


class Listener:
    """Override what you want to hear; every method does nothing by default.

    Give it to ``ResourceManager(listener=…)`` or ``SimpleFSM(listener=…)``, or set
    ``manager_of(container).listener``. Methods are called in the thread or task where the event
    happens, so they should be short; an exception in one is logged and goes no further. A lost lease
    is found at any instruction, so ``on_leak`` is called in a thread that holds no lock.

    Example:
        >>> from wirestate import Listener, ResourceManager
        >>> class Printing(Listener):
        ...     def on_open(self, resource, owner_id, seconds):
        ...         print(f"{owner_id} has {resource}")
        >>> with ResourceManager(listener=Printing()) as manager:
        ...     manager.register_from_dict("rates", {"data": {"EUR": 1.1}})
        ...     with manager.resource_context("rates", "job-1"):
        ...         pass
        job-1 has rates
    """

    def on_open(self, resource: str, owner_id: str, seconds: float) -> None:
        """A lease of *resource* begins; it took *seconds* to get. What could not be had is not told."""

    def on_close(self, resource: str, owner_id: str, seconds: float, error: BaseException | None) -> None:
        """A lease is over, after *seconds*; *error* is what ended it, or what its release raised."""

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        """A lease was lost, or is held longer than its threshold, told once for each; *stack* is the borrower's."""

    def on_breaker(self, resource: str, before: str, after: str) -> None:
        """The circuit breaker of *resource* changed: ``closed``, ``open`` or ``half-open``."""

    def on_health(self, resource: str, before: str, after: str) -> None:
        """A probe found *resource* otherwise than before: ``healthy degraded unhealthy unknown``."""
