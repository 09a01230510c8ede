"""What must be true of a machine's resources before the first record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wirestate.errors import Fault, ResourceError, nearest
from wirestate.machine.compiled import CompiledState, CompiledStates
from wirestate.machine.definition import Machine, ResourceUse
from wirestate.resources.scopes import Entry


def resource_faults(machine: Machine, entries: Mapping[str, Entry], declared: str) -> list[Fault]:
    """Every resource that the configuration names exists and can be opened.

    Args:
        machine: its definition.
        entries: what can be asked for by name.
        declared: the names that exist, for messages.
    """
    faults = []
    for who, use in _uses(machine):
        entry = entries.get(use.name)
        place = use.place
        if entry is None:
            near = nearest(use.name, entries)
            where = f" ({place})" if str(place) else ""
            faults.append(
                Fault(
                    "R001",
                    "UnknownResource",
                    f"{who}{where} needs resource {use.name!r}, which is not declared.",
                    ((f"Did you mean {near!r}?  " if near else "") + f"Declared: {declared}",),
                    place.file,
                    place.line,
                    place.column,
                )
            )
    return faults


def unusable(entries: Mapping[str, Entry]) -> list[Fault]:
    """Return a fault for each resource whose provider cannot even be made: a wrong setting, a missing driver."""
    faults = []
    for name, entry in entries.items():
        try:
            entry.steps()
        except ResourceError as error:
            kind = type(error).__name__.removesuffix("Error")
            code = {"MissingDriver": "D001", "LifetimeMismatch": "R004"}.get(kind, "R003")
            faults.append(Fault(code, kind, f"resource {name!r}: {error}"))
    return faults


def _uses(machine: Machine) -> Iterable[tuple[str, ResourceUse]]:
    for declaration in machine.resources:
        if declaration.kind is None and declaration.class_path is None:
            yield "the machine", ResourceUse(declaration.name, place=declaration.place)
    for network in machine.networks.values():
        for name in network.resources:
            yield f"network {network.name!r}", ResourceUse(name, place=network.place)
    for state in machine.main.states.values():
        for use in state.resources:
            yield f"state {state.name!r}", use
        for arc in (*state.arcs, *state.catch_arcs):
            for use in arc.resources:
                yield f"arc {arc.label!r}", use


def asynchronous_parts(states: CompiledStates, entries: Mapping[str, Entry]) -> list[str]:
    """Name what only an event loop can run: ``state 'x' (function f)``, ``resource 'db'``."""
    found: dict[str, None] = {}
    for state in states.values():
        for call in state.calls():
            if call.is_async:
                found[f"state {state.name!r} (function {call.name})"] = None
            plan = call.fresh_plan()
            for step in plan.steps:
                if step.is_async:
                    found[f"resource {step.name!r}"] = None
            if plan.suspends:
                found[f"what {call.name} injects"] = None
        for use in _all_declared(state):
            for step in entries[use.name].steps():
                if step.is_async:
                    found[f"resource {step.name!r}"] = None
    return list(found)


def _all_declared(state: CompiledState) -> Iterable[ResourceUse]:
    yield from state.declared
    for arc in (*state.arcs, *state.catch_arcs):
        yield from arc.declared
