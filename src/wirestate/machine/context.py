"""What a state function may ask about its visit."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from time import monotonic
from typing import Any, Protocol

from wirestate.errors import ResourceError, ScopeClosedError, UnknownResourceError

log = logging.getLogger("wirestate.machine")


class VisitFacts(Protocol):
    """What the context reads; the engine's visit is one."""

    number: int
    attempt: int
    error: BaseException | None

    @property
    def state_name(self) -> str: ...
    @property
    def network_name(self) -> str: ...
    @property
    def arc_label(self) -> str | None: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def run_id(self) -> str: ...
    @property
    def owner_id(self) -> str: ...
    @property
    def last_error(self) -> BaseException | None: ...
    @property
    def path(self) -> list[str]: ...
    @property
    def variables(self) -> dict[str, Any]: ...
    @property
    def deadline(self) -> float | None: ...
    @property
    def source(self) -> tuple[int | None, int | None]: ...
    def declared(self, on_loop: str | None, /) -> Mapping[str, Any]: ...
    def roles(self) -> Mapping[str, str]: ...
    def require(self, name: str, on_loop: str | None, /) -> Any: ...


class FunctionContext:
    """The visit that a function belongs to; made only for functions that take it, and dead after the visit.

    Example:
        >>> from wirestate import SimpleFSM
        >>> def work(record, context):
        ...     context.variables["seen"] = context.state
        ...     return {"state": context.variables["seen"]}
        >>> machine = {"states": {"work": {"transform": "work"}}}
        >>> with SimpleFSM(machine, functions={"work": work}) as fsm:
        ...     fsm.process({}).data
        {'state': 'work'}
    """

    __slots__ = ("_function", "_on_loop", "_visit")

    def __init__(self, visit: VisitFacts, function_name: str, *, on_loop: bool = False) -> None:
        self._visit: VisitFacts | None = visit
        self._function = function_name
        self._on_loop = function_name if on_loop else None  # of an asynchronous function

    def expire(self) -> None:
        """End this context; every use after it raises ScopeClosedError."""
        self._visit = None

    @property
    def _facts(self) -> VisitFacts:
        if self._visit is None:
            raise ScopeClosedError(f"context of {self._function}")
        return self._visit

    @property
    def state(self) -> str:
        """Name of the state."""
        return self._facts.state_name

    state_name = state

    @property
    def network(self) -> str:
        """Name of the network that the state belongs to."""
        return self._facts.network_name

    network_name = network

    @property
    def function_name(self) -> str:
        """Name of the function that this context was made for."""
        if self._visit is None:
            raise ScopeClosedError(f"context of {self._function}")
        return self._function

    @property
    def run_id(self) -> str:
        return self._facts.run_id

    @property
    def owner_id(self) -> str:
        """Owner of this visit's leases: ``run-<id>/<state>#<visit>``."""
        return self._facts.owner_id

    @property
    def visit(self) -> int:
        """How many times this run has entered the state, from 1."""
        return self._facts.number

    @property
    def attempt(self) -> int:
        """Which attempt at this visit it is, from 1."""
        return self._facts.attempt

    @property
    def path(self) -> list[str]:
        return list(self._facts.path)

    @property
    def position(self) -> int | None:
        """Position of the record in its source, from 0."""
        return self._facts.source[0]

    @property
    def line(self) -> int | None:
        """Physical line of the record in its source."""
        return self._facts.source[1]

    @property
    def resources(self) -> Mapping[str, Any]:
        """The declared resources, by name and by role; an optional one that is missing is None."""
        return self._facts.declared(self._on_loop)

    @property
    def variables(self) -> dict[str, Any]:
        """A dict that all functions of one run share; the only writable part."""
        return self._facts.variables

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The ``metadata`` of the state."""
        return self._facts.metadata

    @property
    def error(self) -> BaseException | None:
        """The last error that a catch arc handled in this run."""
        return self._facts.last_error

    @property
    def arc(self) -> str | None:
        """Label of the arc whose function this is, None in functions of states."""
        return self._facts.arc_label

    @property
    def idempotency_key(self) -> str:
        """32 hex digits, equal over the attempts at one visit."""
        facts = self._facts
        text = f"{facts.run_id}\0{facts.source[0]}\0{facts.network_name}:{facts.state_name}\0{facts.number}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def deadline(self) -> float | None:
        """``time.monotonic()`` at which the run's time is over, None without a limit."""
        return self._facts.deadline

    def remaining(self) -> float | None:
        """Seconds until the deadline, None without one."""
        deadline = self._facts.deadline
        return None if deadline is None else max(0.0, deadline - monotonic())

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that knows the owner."""
        return logging.LoggerAdapter(log, {"owner_id": self._facts.owner_id})

    def require_resource(self, name: str) -> Any:
        """Return a resource by its name, opening it in this visit if it is not open yet.

        Raises:
            ResourceError: there is none of that name, or it cannot be had.
        """
        return self._facts.require(name, self._on_loop)

    def resource_for_role(self, role: str) -> Any:
        """Return the declared resource that plays *role*."""
        roles = self._facts.roles()
        if role not in roles:
            raise UnknownResourceError(role, roles, "resource_for_role")
        return self._facts.declared(self._on_loop)[roles[role]]

    def __getitem__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(type(self), name):
            raise KeyError(name)
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute by name, or *default*."""
        try:
            return self[name]
        except KeyError:
            return default


class StateView(Mapping[str, Any]):
    """The record, for functions whose first parameter is called ``state``: a mapping with ``.data`` and ``.name``."""

    __slots__ = ("data", "name")

    def __init__(self, data: Mapping[str, Any], name: str) -> None:
        self.data = data
        self.name = name

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


class DeclaredResources(Mapping[str, Any]):
    """The declared resources of a visit: read-only, by name and by role."""

    __slots__ = ("_check", "_found", "_roles")

    def __init__(
        self, found: Mapping[str, Any], roles: Mapping[str, str], check: Callable[[str], None] | None = None
    ) -> None:
        self._found = found
        self._roles = roles
        self._check = check  # raises for what the function that reads must not use

    def __getitem__(self, name: str) -> Any:
        name = self._roles.get(name, name)
        if name not in self._found:
            raise ResourceError(
                f"resource {name!r} is not declared by this state; declared: {', '.join(self._found) or 'none'}; "
                "add it under 'resources:'",
                name,
                "context",
            )
        if self._check is not None:
            self._check(name)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found or name in self._roles

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
