"""A configuration in any of its shapes -> a checked ``Machine``, or all its faults in one report."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args  # Any: a configuration that was not checked yet

from wirestate.errors import nearest
from wirestate.machine.arcs import Arcs
from wirestate.machine.declarations import declarations, uses
from wirestate.machine.definition import Arc, DataMode, FunctionRef, Machine, Place, RetryPolicy, State
from wirestate.machine.faults import (
    DUPLICATE_NAME,
    MISSING_KEY,
    NOT_AVAILABLE,
    SHADOWED_FUNCTION,
    TWO_SPELLINGS,
    UNKNOWN_NETWORK,
    UNKNOWN_STATE,
    WRONG_VALUE,
    Report,
    did_you_mean,
)
from wirestate.machine.graph_rules import Draft, settled
from wirestate.machine.keys import DATA_MODE_KEYS, MACHINE_KEYS, NETWORK_KEYS, RETRY_KEYS, STATE_KEYS, Fields
from wirestate.machine.reading import Node, Reader
from wirestate.machine.references import References
from wirestate.machine.refusals import LATER_HELP

DATA_MODES: tuple[DataMode, ...] = get_args(DataMode)


def load_machine(
    source: str | Path | Mapping[str, Any] | Machine,
    *,
    allow_inline_code: bool = False,
    config_root: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    given: Collection[str] = (),
) -> Machine:
    """Read and check a machine.

    Args:
        source: a ``.yaml``, ``.yml`` or ``.json`` file, a mapping, or a machine, which comes back as it is.
        allow_inline_code: let the configuration hold Python expressions.
        config_root: a folder from which files may be included, besides the one that includes them.
        environ: where ``${VAR}`` is looked up; by default the process's environment.
        given: names of the functions that the caller brings.

    Raises:
        BuildError: with every fault, each with its file, line and column.
    """
    if isinstance(source, Machine):
        return source
    report = Report()
    file = None if isinstance(source, Mapping) else str(source)
    root = None if config_root is None else Path(config_root)
    node = Reader(report, os.environ if environ is None else environ, root).read(source)
    machine = None
    if node is not None:
        machine = _Loader(report, References(report, set(given), allow_inline_code), file, given).machine(node)
    report.raise_faults(file or "machine")
    assert machine is not None  # without one there are faults
    return machine


class _Loader:
    """Reads the parts of one machine, from the outside in."""

    def __init__(self, report: Report, references: References, file: str | None, given: Collection[str]) -> None:
        self.report = report
        self.references = references
        self.file = file
        self.given = given
        self.modes: dict[str, DataMode] = {}

    def machine(self, node: Node) -> Machine | None:
        fields = Fields(node, MACHINE_KEYS, "the machine", self.report)
        functions = self.functions(fields)
        mode = self.data_mode(fields)
        networks = self.networks(fields, node)
        main = self.main_network(fields, networks)
        self.check_overrides(fields, networks)
        self.check_commit(fields)
        declared = declarations(fields, self.report)
        name = fields.text("name") or (Path(self.file).stem if self.file else "machine")
        made = {draft.name: settled(draft, self.report) for draft in networks.values()}
        if main is None:
            return None
        return Machine(
            name=name,
            networks=made,
            main_network=main,
            version=fields.text("version"),
            description=fields.text("description"),
            metadata=fields.free("metadata"),
            resources=declared,
            functions=functions,
            data_mode=mode,
            max_transitions=fields.integer("max_transitions") or 1000,
            max_depth=fields.integer("max_depth") or 10,
            timeout=fields.number("timeout"),
            file=self.file,
            notes=tuple(self.report.notes),
        )

    def functions(self, fields: Fields) -> dict[str, FunctionRef]:
        found: dict[str, FunctionRef] = {}
        nodes = fields.mapping("functions")
        self.references.known = {*self.given, *nodes}
        for name, node in nodes.items():
            if name in self.given:
                message = f"function {name!r} was given by the caller too"
                self.report.fault(SHADOWED_FUNCTION, message, node.key_place, "Rename one of them.")
            ref = self.references.read(node, "validator", f"function {name!r}")
            if ref is not None:
                found[name] = ref
        return found

    def data_mode(self, fields: Fields) -> DataMode:
        node = fields.node("data_mode")
        if node is not None and isinstance(node.value, dict):
            fields = Fields(node, DATA_MODE_KEYS, "'data_mode'", self.report)
            for state, mode in fields.mapping("state_overrides").items():
                said = Fields(Node({"data_mode": mode}), STATE_KEYS, f"state {state!r}", self.report)
                found = said.choice("data_mode", DATA_MODES, any_case=True)
                if found is not None:
                    self.modes[state] = found
            return fields.choice("default", DATA_MODES, any_case=True) or "copy"
        return fields.choice("data_mode", DATA_MODES, any_case=True) or "copy"

    def check_overrides(self, fields: Fields, networks: Mapping[str, Draft]) -> None:
        known = {state for draft in networks.values() for state in draft.states}
        for state in self.modes.keys() - known:
            message = f"'data_mode': there is no state {state!r}"
            near = did_you_mean(nearest(state, known))
            self.report.fault(UNKNOWN_STATE, message, fields.place_of("data_mode"), near)

    def check_commit(self, fields: Fields) -> None:
        node = fields.node("commit")
        if node is None or node.value == "state":
            return
        whole = isinstance(node.value, int) and not isinstance(node.value, bool) and node.value > 0
        if node.value == "run" or whole:
            message = f"'commit: {node.shown}' is not available; only 'state' is"
            self.report.fault(NOT_AVAILABLE, message, node.place, LATER_HELP)
        else:
            fields.wrong("commit", "'state', 'run' or a number of records")

    # --- networks ------------------------------------------------------------

    def networks(self, fields: Fields, node: Node) -> dict[str, Draft]:
        found: dict[str, Draft] = {}
        if "networks" not in fields:
            if not fields.need("states"):
                return found
            # Resources of the flat shape are the machine's.
            inside = {key: node.value[key] for key in ("states", "arcs", "initial_state") if key in node.value}
            draft = self.network("main", Node(inside, node.place))
            return {draft.name: draft}
        for key in ("states", "arcs"):
            if key in fields:
                message = f"{key!r} stands beside 'networks'; put it into one of them"
                self.report.fault(TWO_SPELLINGS, message, fields.place_of(key))
        for name, item in self.named(fields, "networks", "network"):
            draft = self.network(name, item)
            if name in found:
                message = f"network {name!r} stands {_where(found[name].place)}"
                self.report.fault(DUPLICATE_NAME, message, item.place)
            found.setdefault(name, draft)
        return found

    def main_network(self, fields: Fields, networks: dict[str, Draft]) -> str | None:
        said = fields.text("main_network")
        name = said
        if name is None:
            name = next(iter(networks)) if len(networks) == 1 else "main"
        if name not in networks:
            if networks:
                message = f"there is no network {name!r}" if said else "which network begins? say 'main_network'"
                near = did_you_mean(nearest(name, networks))
                self.report.fault(UNKNOWN_NETWORK, message, fields.place_of("main_network"), near)
            return None
        start = fields.text("initial_state")
        if start is not None and "networks" in fields:
            other = networks[name].initial
            if other not in {None, start}:
                message = f"'initial_state' is {start!r} here and {other!r} in network {name!r}"
                self.report.fault(TWO_SPELLINGS, message, fields.place_of("initial_state"))
            networks[name] = replace(networks[name], initial=start, initial_place=fields.place_of("initial_state"))
        networks[name] = replace(networks[name], is_main=True)
        return name

    def network(self, name: str, node: Node) -> Draft:
        what = f"network {name!r}"
        fields = Fields(node, NETWORK_KEYS, what, self.report)
        fields.need("states")
        arcs = Arcs(self.report, self.references)
        states: dict[str, State] = {}
        never_ends: set[str] = set()
        for state_name, item in self.named(fields, "states", "state"):
            state, ends = self.state(state_name, item, arcs)
            if state_name in states:
                message = f"{what}: state {state_name!r} stands {_where(states[state_name].place)}"
                self.report.fault(DUPLICATE_NAME, message, item.place)
            states.setdefault(state_name, state)
            if ends is False:
                never_ends.add(state_name)
        outer = arcs.outer(fields)
        for arc in outer:
            if arc.source in states:
                states[arc.source] = _with_arcs(states[arc.source], [arc])
        return Draft(
            name,
            states,
            initial=fields.text("initial_state"),
            initial_place=fields.place_of("initial_state"),
            never_ends=frozenset(never_ends),
            stray=tuple(arc for arc in outer if arc.source not in states),
            resources=fields.texts("resources"),
            resources_place=fields.place_of("resources"),
            metadata=fields.free("metadata"),
            place=node.place,
        )

    def named(self, fields: Fields, key: str, what: str) -> Iterator[tuple[str, Node]]:
        """Yield names and mappings from a list of mappings or names, or from a mapping by name."""
        node = fields.node(key)
        if node is None:
            return
        if not node.value:
            self.report.fault(MISSING_KEY, f"{fields.what} has no {what}", node.place)
        by_name = isinstance(node.value, dict)
        for name, item in node.value.items() if by_name else ((None, item) for item in fields.items(key)):
            place = item.key_place if name is not None else item.place
            if isinstance(item.value, str) and name is None:
                yield item.value, Node({}, place)
            elif item.value is None and name is not None:
                yield name, Node({}, place)
            elif not isinstance(item.value, dict):
                self.report.fault(WRONG_VALUE, f"a {what} is a mapping, not {item.kind}", item.place)
            else:
                said = item.value.get("name")
                called = name if said is None else said.value
                if not isinstance(called, str) or not called:
                    self.report.fault(MISSING_KEY, f"a {what} needs a 'name' that is text", item.place)
                    continue
                if name not in {None, called}:
                    message = f"{what} {name!r} also says it is called {called!r}"
                    self.report.fault(TWO_SPELLINGS, message, item.place)
                yield name or called, replace(item, place=place)

    # --- states --------------------------------------------------------------

    def state(self, name: str, node: Node, arcs: Arcs) -> tuple[State, bool | None]:
        fields = Fields(node, STATE_KEYS, f"state {name!r}", self.report)
        refs = self.references
        ends = fields.flag("is_end")
        outcome = fields.choice("outcome", ("success", "failure"))
        state = State(
            name=name,
            is_start=fields.flag("is_start") or False,
            is_end=ends or False,
            schema=self.schema(fields),
            pre_validators=refs.several(fields, "pre_validators", "validator"),
            validators=refs.several(fields, "validators", "validator"),
            post_validators=refs.several(fields, "post_validators", "validator"),
            transforms=refs.several(fields, "transforms", "transform"),
            end_test=refs.one(fields, "end_test", "end_test"),
            resources=uses(fields, self.report),
            data_mode=self.state_mode(fields, name),
            retry=self.retry(fields),
            timeout=fields.number("timeout"),
            offload=fields.flag("offload"),
            emit_output=fields.flag("emit_output") is not False,
            outcome="failure" if outcome == "failure" else "success",
            metadata=fields.free("metadata"),
            place=node.place,
        )
        return _with_arcs(state, arcs.of_state(name, fields)), ends

    def schema(self, fields: Fields) -> dict[str, Any] | str | None:
        node = fields.node("schema")
        if node is None or isinstance(node.value, str):
            return None if node is None else node.value
        return fields.free("schema")

    def state_mode(self, fields: Fields, name: str) -> DataMode | None:
        said = fields.choice("data_mode", DATA_MODES, any_case=True)
        if "data_mode" in fields and name in self.modes:
            message = f"{fields.what}: 'data_mode' stands here and in 'state_overrides'"
            self.report.fault(TWO_SPELLINGS, message, fields.place_of("data_mode"), "Keep one of them.")
        return said or self.modes.get(name)

    def retry(self, fields: Fields) -> RetryPolicy | None:
        node = fields.node("retry")
        if node is None:
            return None
        if not isinstance(node.value, dict):
            attempts = fields.integer("retry")
            return None if attempts is None else RetryPolicy(attempts)
        fields = Fields(node, RETRY_KEYS, f"{fields.what}: 'retry'", self.report)
        waits = {key: fields.number(key, zero=True) for key in ("wait_initial", "wait_max", "wait_jitter")}
        waits |= {key: fields.number(key) for key in ("timeout", "wait_exp_base")}
        return RetryPolicy(
            attempts=fields.integer("attempts") or 10,
            on=fields.texts("on"),
            **{key: value for key, value in waits.items() if value is not None},
        )


def _where(first: Place) -> str:
    return f"here and in line {first.line}" if first.line else "twice"


def _with_arcs(state: State, arcs: Collection[Arc]) -> State:
    ordinary = tuple(arc for arc in arcs if not arc.catch)
    catching = tuple(arc for arc in arcs if arc.catch)
    return replace(state, arcs=state.arcs + ordinary, catch_arcs=state.catch_arcs + catching)
