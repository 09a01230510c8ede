"""What a machine is made of: frozen data, equal whatever shape it was written in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wirestate.errors import Fault
from wirestate.resources.recipes import Lifetime

DataMode = Literal["copy", "reference", "direct"]
CatchKind = Literal["error", "reject", "timeout", "any"]
Isolation = Literal["copy", "reference", "serialize"]
RefKind = Literal["name", "import", "expression", "call"]
Role = Literal["transform", "validator", "condition", "end_test"]
Values = Mapping[str, Any]  # Any: what a configuration holds as free values (metadata, params, settings)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written; lines and columns count from one."""

    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        if self.file is None and self.line is None:
            return ""
        return ":".join(str(part) for part in (self.file or "<config>", self.line, self.column) if part is not None)


NOWHERE = Place()


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A function as the configuration names it.

    ``name`` is the registered name, ``pkg.mod:attr`` for an import, the text of an expression, or
    the qualified name of the object in ``call``. ``code`` holds the text of an expression;
    ``bound`` the names that an inline ``lambda x, y:`` gives to the record and the context;
    ``inline`` says that ``code`` is Python that ``allow_inline_code`` let in.
    """

    kind: RefKind
    name: str
    code: str | None = None
    params: Values = field(default_factory=dict)
    call: Callable[..., Any] | None = None  # Any: a user's function of any signature
    bound: tuple[str, ...] = ()
    inline: bool = False
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """A resource that a state or an arc declares."""

    name: str
    role: str | None = None
    required: bool = True
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a visit is tried; waits are seconds, ``on`` holds exception paths (empty: every Exception)."""

    attempts: int = 1
    on: tuple[str, ...] = ()
    timeout: float | None = 45.0
    wait_initial: float = 0.1
    wait_max: float = 5.0
    wait_jitter: float = 1.0
    wait_exp_base: float = 2.0


@dataclass(frozen=True, slots=True)
class Arc:
    """A way from one state to the next; ``catch`` is empty for an ordinary one."""

    source: str
    target: str | None
    condition: FunctionRef | None = None
    transforms: tuple[FunctionRef, ...] = ()
    resources: tuple[ResourceUse, ...] = ()
    priority: int = 0
    catch: frozenset[CatchKind] = frozenset()
    name: str | None = None
    metadata: Values = field(default_factory=dict)
    target_network: str | None = None
    return_state: str | None = None
    data_mapping: Mapping[str, str] = field(default_factory=dict)
    result_mapping: Mapping[str, str] = field(default_factory=dict)
    data_isolation: Isolation = "copy"
    inherit: Literal["declared", False] | tuple[str, ...] = "declared"
    place: Place = field(default=NOWHERE, compare=False, repr=False)

    @property
    def label(self) -> str:
        """What a person calls this arc."""
        return self.name or f"{self.source} -> {self.target or self.target_network}"


@dataclass(frozen=True, slots=True)
class State:
    """A state; ``arcs`` are the ordinary arcs that leave it, in the order that breaks ties."""

    name: str
    is_start: bool = False
    is_end: bool = False
    schema: Values | str | None = None
    pre_validators: tuple[FunctionRef, ...] = ()
    validators: tuple[FunctionRef, ...] = ()
    post_validators: tuple[FunctionRef, ...] = ()
    transforms: tuple[FunctionRef, ...] = ()
    end_test: FunctionRef | None = None
    arcs: tuple[Arc, ...] = ()
    catch_arcs: tuple[Arc, ...] = ()
    resources: tuple[ResourceUse, ...] = ()
    data_mode: DataMode | None = None
    retry: RetryPolicy | None = None
    timeout: float | None = None
    offload: bool | None = None  # None: where a blocking resource is injected
    emit_output: bool = True
    outcome: Literal["success", "failure"] = "success"
    metadata: Values = field(default_factory=dict)
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Network:
    """States by name, in the order in which they were declared."""

    name: str
    states: Mapping[str, State]
    start: str
    resources: tuple[str, ...] = ()
    metadata: Values = field(default_factory=dict)
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ResourceDeclaration:
    """A resource of the machine; with ``kind`` None only a name that a container must offer.

    ``config`` goes to the adapter, ``pool`` to ``PoolConfig``. A resource that cannot be made is tried
    ``creation_attempts`` times, ``creation_delay`` seconds apart; its health is probed every
    ``health_interval`` seconds.
    """

    name: str
    kind: str | None = None
    config: Values = field(default_factory=dict)
    class_path: str | None = None
    lifetime: Lifetime | None = None
    pool: Values = field(default_factory=dict)
    creation_attempts: int | None = None
    creation_delay: float | None = None
    health_interval: float | None = None
    place: Place = field(default=NOWHERE, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Machine:
    """A checked machine: every state can be reached, and from every state an end can."""

    name: str
    networks: Mapping[str, Network]
    main_network: str
    version: str | None = None
    description: str | None = None
    metadata: Values = field(default_factory=dict)
    resources: tuple[ResourceDeclaration, ...] = ()
    functions: Mapping[str, FunctionRef] = field(default_factory=dict)
    data_mode: DataMode = "copy"
    max_transitions: int = 1000
    max_depth: int = 10
    timeout: float | None = None
    commit: Literal["state", "run"] | int = "state"
    file: str | None = field(default=None, compare=False)
    notes: tuple[Fault, ...] = field(default=(), compare=False, repr=False)

    @property
    def main(self) -> Network:
        """The network that runs."""
        return self.networks[self.main_network]

    @property
    def start(self) -> str:
        """The state that a run begins in if nobody says otherwise."""
        return self.main.start
