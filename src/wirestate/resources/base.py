"""The vocabulary of resources: the provider protocol, its base class, health, metrics, requirements."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from wirestate.errors import InvalidSettingError
from wirestate.observing import Listener
from wirestate.redaction import half_made_too


class ResourceStatus(Enum):
    """What a provider is doing."""

    UNINITIALIZED = "uninitialized"
    IDLE = "idle"
    ACTIVE = "active"
    ERROR = "error"
    CLOSED = "closed"


class ResourceHealth(Enum):
    """What a probe found out."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class ResourceMetrics:
    """Counters of one resource; all times are float seconds.

    ``counters`` holds what its provider counts beside leases, such as tokens, by the names of OpenTelemetry.
    """

    total_acquisitions: int = 0
    failed_acquisitions: int = 0
    timeouts: int = 0
    active_connections: int = 0
    total_hold_time: float = 0.0
    total_acquisition_time: float = 0.0
    leaks: int = 0
    refused: int = 0  # for the line in front of it was too long
    created: int = 0
    total_creation_time: float = 0.0
    discards: Mapping[str, int] = field(default_factory=dict[str, int])  # what was destroyed, by reason
    counters: Mapping[str, float] = field(default_factory=dict[str, float])  # what the provider counts by itself

    @property
    def average_hold_time(self) -> float:
        """Seconds between acquire and release, over all leases that ended."""
        ended = self.total_acquisitions - self.active_connections
        return self.total_hold_time / ended if ended > 0 else 0.0

    @property
    def average_acquisition_time(self) -> float:
        """Seconds until a resource was handed out."""
        return self.total_acquisition_time / self.total_acquisitions if self.total_acquisitions else 0.0

    @property
    def average_creation_time(self) -> float:
        """Seconds until a resource was made, over all that a pool made."""
        return self.total_creation_time / self.created if self.created else 0.0


@dataclass(frozen=True, slots=True)
class ResourceConfig:
    """A requirement: the resource *name* is wanted within *timeout* seconds.

    Example:
        >>> ResourceConfig("cache", required=False).required
        False
    """

    name: str
    required: bool = True
    timeout: float | None = None


@runtime_checkable
class IResourceProvider(Protocol):
    """What makes, checks and takes back a resource.

    ``acquire`` and ``release`` may be coroutine functions; ``release`` may have a parameter
    ``error`` and then gets the outcome (None or the exception). ``close`` is called once, at the end.
    One that is pooled may also have ``reset(resource)``: it is called when a resource comes back,
    before the next owner gets it; if it raises, the resource is destroyed.
    One that may be a singleton may have ``freeze_shared(resource)``: it returns what all users get at once.
    One with ``blocking = True`` can wait in the thread that opens, uses or ends its resource;
    asynchronous runs do that in threads.
    """

    def acquire(self, **kwargs: Any) -> Any: ...  # Any: the resource is whatever the provider makes

    def release(self, resource: Any) -> Any: ...

    def validate(self, resource: Any) -> bool: ...

    def health_check(self) -> ResourceHealth: ...

    def get_metrics(self) -> ResourceMetrics: ...


class BaseResourceProvider:
    """A provider that remembers its name, configuration and status; override what differs.

    Example:
        >>> class Clock(BaseResourceProvider):
        ...     def acquire(self, **kwargs):
        ...         return "tick"
        >>> Clock("clock").acquire()
        'tick'
    """

    name: str
    trouble: str | None = None  # why the last probe was not answered well; holds no secret
    blocking: bool = (
        False  # opening, using or ending its resource can wait in the thread: asynchronous runs use another
    )
    asynchronous_twin: str | None = None  # what asynchronous functions need instead, if they must not have this
    listener: Listener | None = None  # the manager's, set when the provider is registered
    measured_as = "wirestate.resource"  # what its measurements are called; see ResourceManager.snapshot()

    def __init__(self, name: str, config: Mapping[str, Any] | None = None) -> None:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise InvalidSettingError(
                f"the first argument of {type(self).__name__} is a {kind}; give the resource's name"
            )
        if "://" in name:  # never shown: it may hold a password
            raise InvalidSettingError(
                f"the first argument of {type(self).__name__} is the resource's name, and this is a URL; "
                "give that by keyword: url=… or base_url=…"
            )
        self.name = name
        self.config: dict[str, Any] = dict(config or {})  # Any: free settings of a subclass
        self.status = ResourceStatus.IDLE
        self.metrics = ResourceMetrics()
        self._metrics_lock = threading.Lock()

    def acquire(self, **kwargs: Any) -> Any:
        """Make a resource, or hand out the one there is."""
        raise NotImplementedError(f"{type(self).__name__} must define acquire()")

    def release(self, resource: Any) -> Any:
        """Take a resource back."""

    def validate(self, resource: Any) -> bool:
        """Tell whether *resource* can still be used."""
        return resource is not None

    def health_check(self) -> ResourceHealth:
        """Probe what is behind the resource."""
        return ResourceHealth.UNKNOWN

    def get_metrics(self) -> ResourceMetrics:
        """Return the provider's own counters; the manager keeps the true ones."""
        return self.metrics

    def counters(self) -> Mapping[str, float]:
        """Return what else the provider counts, by name: OpenTelemetry's, where it has one (``gen_ai.…``)."""
        return {}

    def close(self) -> None:
        """Close what the provider itself holds."""
        self.status = ResourceStatus.CLOSED

    @half_made_too
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.status.value}>"  # never the config: it may hold secrets
