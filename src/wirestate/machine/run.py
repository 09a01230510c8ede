"""One record on its way: its data, its path, its time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from wirestate.machine.compiled import CompiledState
from wirestate.machine.definition import DataMode, Machine
from wirestate.machine.plan import Call
from wirestate.machine.results import Caught, Kind, Phase, run_name
from wirestate.resources.manager import ResourceManager
from wirestate.resources.owners import OwnerScope, StateScope
from wirestate.resources.scopes import Entry
from wirestate.waiting import World


class RunningEngine(Protocol):
    """What a run's parts may ask of the engine."""

    machine: Machine
    data_mode: DataMode
    states: Mapping[str, CompiledState]
    closed: bool  # no further state may begin
    manager: ResourceManager

    def entry(self, name: str, /) -> Entry: ...


class RunScope(OwnerScope):
    """The owner scope of one run; its name is made only when somebody asks."""

    @property
    def owner_id(self) -> str:
        return run_name(self._id)


class Run:
    """The changing part of one run.

    What most runs never set stays a default of the class: making a run costs five assignments.
    """

    end: CompiledState | None = None  # the end that was reached
    phase: Phase | None = None
    state: str | None = None  # the failing one
    error: BaseException | None = None
    kind: Kind | None = None
    owner_id: str | None = None
    scope: OwnerScope | None = None
    timeout: float | None = None
    deadline: float | None = None  # of the run
    limit: float | None = None  # the nearest of the run's and the attempt's
    position: int | None = None
    line: int | None = None
    caught: tuple[Caught, ...] = ()
    begun: StateScope | None = None  # a visit that was begun plainly and has to wait
    counts: dict[str, int] | None = None
    variables_made: dict[str, Any] | None = None
    failing: tuple[int, str | None] = (1, None)  # attempt and arc of the visit that failed last
    slot: int | Run | None = None  # where it is listed as the one that works on the caller's object
    outer: Run | None = None  # whose function began this one
    # Calls that are left in a state, and what the first of them gave: an awaitable (Any: of the record's type).
    pending: tuple[Sequence[Call], Any] | None = None

    def __init__(self, engine: RunningEngine, number: int, data: Any, world: World) -> None:
        self.engine = engine
        self.number = number
        self.data = data  # Any: the record, of the caller's own type
        self.world = world
        self.path: list[str] = []

    @property
    def name(self) -> str:
        """``run-<id>``"""
        return run_name(self.number)

    @property
    def owner_name(self) -> str:
        return self.name if self.owner_id is None else self.owner_id

    @property
    def variables(self) -> dict[str, Any]:
        if self.variables_made is None:
            self.variables_made = {}
        return self.variables_made

    def outers(self) -> Iterator[Run]:
        """Yield the runs that wait for this one."""
        outer = self.outer
        while outer is not None:
            yield outer
            outer = outer.outer

    def count(self, state: str) -> int:
        """Count one more visit to *state* and return its number."""
        if self.scope is not None:
            return self.scope.count(state)
        if self.counts is None:
            self.counts = {}
        number = self.counts[state] = self.counts.get(state, 0) + 1
        return number
