"""What must be true of a machine's resources before the first record."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from pydantic import ValidationError

from wirestate.errors import BuildError, Fault, MissingSettingError, ResourceError
from wirestate.injection.plans import Planner, code_of
from wirestate.machine.compiled import CompiledState, CompiledStates
from wirestate.machine.definition import Machine, ResourceUse
from wirestate.resources.recipes import Recipe
from wirestate.resources.scopes import Entry
from wirestate.settings.foreign import faults_of


def resource_faults(machine: Machine, known: Collection[str], planner: Planner) -> list[Fault]:
    """Every resource that the configuration names exists and can be opened.

    Args:
        machine: its definition.
        known: the names that can be asked for.
        planner: says what there is.
    """
    faults = []
    for who, use in _uses(machine):
        place = use.place
        if use.name not in known:
            where = f" ({place})" if str(place) else ""
            faults.append(
                Fault(
                    "R001",
                    "UnknownResource",
                    f"{who}{where} needs resource {use.name!r}, which is not declared.",
                    planner.help_for(use.name, known),
                    place.file,
                    place.line,
                    place.column,
                )
            )
    return faults


def unusable(entries: Mapping[str, Entry], planner: Planner) -> dict[str, Fault]:
    """Return a fault for each resource whose provider cannot even be made, by what its error says.

    It is wrong settings, or a missing driver; what stands behind several names is said once.
    """
    faults: dict[str, Fault] = {}
    for name, entry in entries.items():
        try:
            entry.steps()
        except ValidationError as error:  # of settings that the resource reads
            faults.update({fault.message: fault for fault in faults_of(error, planner.settings_models())})
        except BuildError as error:  # as above, and of our own settings
            faults.update({fault.message: fault for fault in error.faults})
        except ResourceError as error:
            text = _of_resource(error.resource_name or name, str(error))
            faults.setdefault(str(error), Fault(*code_of(error), text, planner.blame(error)))
    return faults


def asked_for(machine: Machine, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Leave out what lacks its settings and *machine* does not name: who injects it finds its own fault."""
    named = named_by(machine)
    return {name: entry for name, entry in entries.items() if name in named or not _lacks_settings(entry)}


def named_by(machine: Machine) -> list[str]:
    """Return the names of the resources that the configuration asks for."""
    return list(dict.fromkeys(use.name for _, use in _uses(machine)))


def _lacks_settings(entry: Entry) -> bool:
    try:
        entry.steps()
    except (BuildError, MissingSettingError, ValidationError):
        return True
    except ResourceError:  # wrong, and told so
        pass
    return False


def _of_resource(name: str, text: str) -> str:
    """Begin *text* with the name of the resource, in whatever way an adapter has named it."""
    bare = re.sub(rf"^[\w ]+ {re.escape(repr(name))}: ", "", text)
    return bare if repr(name) in bare else f"resource {name!r}: {bare}"


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


# --- who uses what -----------------------------------------------------------------------


def used_resources(states: CompiledStates, entries: Mapping[str, Entry]) -> dict[str, list[str]]:
    """Return for each state the names of the resources that it needs, those first that others depend on."""
    names = {steps[-1]: name for name, entry in entries.items() if (steps := entry.steps())}
    return {
        state.name: list(dict.fromkeys(names.get(step, step.name) for step in _needs(state, entries)))
        for state in states.values()
    }


def _needs(state: CompiledState, entries: Mapping[str, Entry]) -> Iterable[Recipe]:
    for use in _all_declared(state):
        if use.name in entries:  # an optional one may be missing
            yield from entries[use.name].steps()
    for call in state.calls():
        yield from call.fresh_plan().steps
