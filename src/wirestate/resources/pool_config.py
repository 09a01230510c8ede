"""How a pool is sized and timed, and what it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from wirestate.errors import InvalidSettingError, listed, nearest

WHOLE = frozenset({"min_size", "max_size", "max_creating", "max_waiting", "breaker_failures"})
MAY_BE_NONE = frozenset(
    {
        "max_idle_time",
        "max_lifetime",
        "acquire_timeout",
        "creation_timeout",
        "validation_timeout",
        "destroy_timeout",
        "max_creating",
        "max_waiting",
        "leak_threshold",
        "breaker_failures",
    }
)
MAY_BE_ZERO = frozenset({"min_size", "acquire_timeout", "max_waiting", "validate_after"})


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Size and timing of a pool; all times are float seconds.

    Args:
        min_size: resources that are kept ready.
        max_size: resources that may exist at once.
        max_idle_time: rest after which a resource above ``min_size`` is destroyed (None: never).
        max_lifetime: age at which a resource is replaced, less up to a tenth so that those made
            together do not end together (None: never).
        acquire_timeout: longest wait for a resource (0: do not wait, None: no limit).
        creation_timeout: longest time one creation may take; a plain provider then works in a thread of
            its own (None: a coroutine has until the caller's deadline, a plain call as long as it needs).
        validation_timeout: longest time one check or reset may take, after which the resource is
            destroyed; a plain provider then works in a thread of its own (None: as ``creation_timeout``).
        destroy_timeout: longest time one destruction is waited for, after which it goes on alone and its
            place is free; a plain provider works in a thread of its own (None: where it is called, as long
            as it needs).
        max_creating: creations that may run at once (None: ``max_size``).
        max_waiting: callers that may wait at once; the next one is refused (None: no limit).
        validate_after: a resource used more recently than this is handed out unchecked.
        leak_threshold: a lease held longer is reported once (None: never).
        breaker_failures: failed creations in a row that stop further tries (None: never).
        breaker_reset: how long tries are stopped.

    Raises:
        InvalidSettingError: a value makes no sense.

    Example:
        >>> PoolConfig(max_size=4).min_size
        0
    """

    min_size: int = 0
    max_size: int = 10
    max_idle_time: float | None = None
    max_lifetime: float | None = None
    acquire_timeout: float | None = 30.0
    creation_timeout: float | None = None
    validation_timeout: float | None = None
    destroy_timeout: float | None = 5.0
    max_creating: int | None = None
    max_waiting: int | None = None
    validate_after: float = 0.5
    leak_threshold: float | None = None
    breaker_failures: int | None = None
    breaker_reset: float = 30.0

    def __post_init__(self) -> None:
        faults = {
            field.name: fault for field in fields(self) if (fault := _fault(field.name, getattr(self, field.name)))
        }
        if not faults and self.min_size > self.max_size:
            sizes = f"min_size is {self.min_size} and max_size is {self.max_size}"
            faults["min_size"] = f"{sizes}; min_size must not be larger"
        if faults:
            raise InvalidSettingError("pool: " + "; ".join(faults.values()), None, "configure", pool_faults=faults)

    @classmethod
    def of(cls, given: object, name: str) -> PoolConfig:
        """Return *given*, made from a mapping if it is one.

        Raises:
            InvalidSettingError: it is neither, or a value makes no sense.
        """
        if isinstance(given, PoolConfig):
            return given
        if isinstance(given, Mapping):
            return cls.from_mapping(given)
        kind = type(given).__name__
        raise InvalidSettingError(
            f"resource {name!r}: pool is a {kind}; give a PoolConfig, or its fields", name, "build"
        )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> PoolConfig:  # Any: values come from a configuration
        """Make a configuration from *mapping*.

        Raises:
            InvalidSettingError: a key is unknown, or a value makes no sense.
        """
        for key in mapping:
            if key not in POOL_FIELDS:
                near = nearest(key, POOL_FIELDS)
                hint = f"did you mean {near!r}?" if near else f"settings: {listed(POOL_FIELDS)}"
                raise InvalidSettingError(f"pool: no setting is called {key!r}; {hint}", None, "configure")
        return cls(**mapping)


POOL_FIELDS = tuple(field.name for field in fields(PoolConfig))


def _fault(name: str, value: object) -> str | None:
    """Say what is wrong with one value."""
    if value is None and name in MAY_BE_NONE:
        return None
    kind = "a whole number" if name in WHOLE else "a number"
    numeric = isinstance(value, int) if name in WHOLE else isinstance(value, int | float)
    if not numeric or isinstance(value, bool) or math.isnan(value):  # type: ignore[arg-type]  # a number by now
        return f"{name} is {value!r}; it must be {kind}"
    if value < 0 or (value == 0 and name not in MAY_BE_ZERO):  # type: ignore[operator]  # a number by now
        return f"{name} is {value!r}; it must be {'0 or more' if name in MAY_BE_ZERO else 'more than 0'}"
    return None


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """What a pool holds and has counted at one moment; times are total float seconds."""

    idle: int
    used: int
    creating: int
    max_size: int
    waiting: int
    acquisitions: int
    failures: int
    timeouts: int
    refused: int
    created: int
    destroyed: int
    leaks: int
    discards: Mapping[str, int]
    hold_time: float
    wait_time: float
    create_time: float

    @property
    def size(self) -> int:
        """Resources that exist: idle and used."""
        return self.idle + self.used

    @property
    def available(self) -> int:
        """Resources that rest."""
        return self.idle
