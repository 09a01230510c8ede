"""A definition, its functions and a container become states that can be visited; all faults in one report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wirestate.errors import BuildError, Fault, WirestateError
from wirestate.injection.plans import Planner
from wirestate.machine.compiled import CompiledArc, CompiledPhase, CompiledState
from wirestate.machine.definition import Arc, FunctionRef, Machine, Role, State
from wirestate.machine.functions import import_object, resolve_exceptions, resolve_function
from wirestate.machine.plan import Call, compile_call
from wirestate.machine.results import Phase
from wirestate.machine.schemas import compile_schema
from wirestate.redaction import text_of
from wirestate.settings.imports import Prefixes


class Assembly:
    """Compiles one machine; ``faults`` collects what is wrong with it."""

    def __init__(
        self,
        machine: Machine,
        planner: Planner,
        given: Mapping[str, Callable[..., Any]],
        imports: Prefixes,
    ) -> None:
        self.machine = machine
        self.planner = planner
        self.given = given
        self.imports = imports
        self.faults: list[Fault] = []

    def states(self) -> dict[str, CompiledState]:
        """Compile every state of the main network and link their arcs."""
        compiled = {name: self._state(state) for name, state in self.machine.main.states.items()}
        for state in compiled.values():
            for arc in (*state.arcs, *state.catch_arcs):
                assert arc.arc.target is not None, "push arcs are refused when the configuration is read"
                arc.target = compiled[arc.arc.target]
        return compiled

    def _state(self, state: State) -> CompiledState:
        who = f"state {state.name!r}"
        pre = self._calls(state.pre_validators, "validator", who)
        validators = self._calls(state.validators, "validator", who)
        phases: list[tuple[Phase, list[Call], bool]] = [
            ("validate", [call for call in pre if not call.expression], True),
            ("validate", [call for call in validators if not call.expression], True),
            ("transform", self._calls(state.transforms, "transform", who), False),
            ("validate", self._calls(state.post_validators, "validator", who), True),
        ]
        return CompiledState(
            state,
            schema=self._schema(state, who),
            early=[call for call in (*pre, *validators) if call.expression],
            phases=[CompiledPhase(name, calls, refuses=refuses) for name, calls, refuses in phases if calls],
            end_test=self._call(state.end_test, "end_test", who),
            arcs=[self._arc(arc) for arc in state.arcs],
            catch_arcs=[self._arc(arc, catching=True) for arc in state.catch_arcs],
            retry_on=self._caught(lambda: resolve_exceptions(state, imports=self.imports)) or (),
        )

    def _arc(self, arc: Arc, *, catching: bool = False) -> CompiledArc:
        who = f"arc {arc.label!r}"
        return CompiledArc(
            arc,
            self._call(arc.condition, "condition", who, catching=catching),
            self._calls(arc.transforms, "transform", who, catching=catching),
        )

    def _schema(self, state: State, who: str) -> Callable[[Any], str | None] | None:
        schema = state.schema
        if schema is None:
            return None
        found: Any = schema
        if isinstance(schema, str):
            found = self._caught(lambda: import_object(schema, place=state.place, imports=self.imports))
            if found is None:
                return None
        try:
            return compile_schema(found)
        except (ValueError, WirestateError) as error:
            place = state.place
            code = "M060" if isinstance(error, ValueError) else "D001"
            kind = "BadSchema" if isinstance(error, ValueError) else "MissingDriver"
            self.faults.append(Fault(code, kind, f"{who}: {text_of(error)}", (), place.file, place.line, place.column))
            return None

    def _calls(self, refs: Sequence[FunctionRef], role: Role, who: str, *, catching: bool = False) -> list[Call]:
        found = [self._call(ref, role, who, catching=catching) for ref in refs]
        return [call for call in found if call is not None]

    def _call(self, ref: FunctionRef | None, role: Role, who: str, *, catching: bool = False) -> Call | None:
        if ref is None:
            return None
        function = self._caught(
            lambda: resolve_function(ref, given=self.given, machine=self.machine, imports=self.imports, role=role)
        )
        if function is None:
            return None
        call, faults = compile_call(ref, function, role, who=who, catching=catching, planner=self.planner)
        self.faults += faults
        return call

    def _caught(self, find: Callable[[], Any]) -> Any:
        """Collect the faults of one look-up, so that all of the machine's come in one report."""
        try:
            return find()
        except BuildError as error:
            self.faults += error.faults
            return None
