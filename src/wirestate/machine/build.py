"""From a configuration, functions and a container to an engine that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from wirestate.errors import BuildError, Fault, UnknownResourceError
from wirestate.injection.closures import one_round
from wirestate.injection.container import container_of, manager_of, may_open, planner_of, planner_with
from wirestate.injection.plans import Planner
from wirestate.machine.assembly import Assembly
from wirestate.machine.checks import asked_for, asynchronous_parts, named_by, resource_faults, unusable, used_resources
from wirestate.machine.definition import DataMode, Machine, ResourceDeclaration
from wirestate.machine.engine import Engine
from wirestate.observing import Listener
from wirestate.resources.manager import ResourceManager
from wirestate.resources.scopes import Entry
from wirestate.settings import resource_from_mapping
from wirestate.settings.imports import Prefixes, checked_prefixes

MISDECLARED = object()  # stands for a resource with faults of its own, so that its users find it


class Built(NamedTuple):
    """A machine that may run: the engine, and what stands behind it."""

    engine: Engine
    manager: ResourceManager
    own: ResourceManager | None  # of the resources that this machine made; it closes them
    planner: Planner
    entries: Mapping[str, Entry]
    asynchronous: list[str]  # what a synchronous run would meet and cannot run

    def used(self) -> dict[str, list[str]]:
        """Return for each state the resources that it needs: what it declares, what it injects, and what that needs."""
        return used_resources(self.engine.states, self.entries)

    def listen(self, listener: Listener) -> None:
        """Let *listener* hear of all resources, a container's that was handed in and the machine's own."""
        for manager in (self.manager, self.own):
            if manager is not None:
                manager.listener = listener

    def asynchronous_now(self) -> list[str]:
        """Return the same under the overrides of now."""
        return asynchronous_parts(self.engine.states, self.entries)


def build(
    machine: Machine,
    *,
    container: Any,  # Any: any container of dependency-injector, or None
    resources: Mapping[str, Any],  # Any: providers, settings, lifetimes or plain objects
    functions: Mapping[str, Callable[..., Any]],
    imports: Prefixes,
    data_mode: DataMode | None,
) -> Built:
    """Compile *machine*; nothing is opened.

    Raises:
        BuildError: everything that is wrong, in one report.
    """
    faults: list[Fault] = []
    local = _local_resources(machine, resources, container, checked_prefixes(imports), faults)
    misdeclared = [name for name, value in local.items() if value is MISDECLARED]
    own = container_of(local, container) if local or container is None else None
    if container is None:
        container, shadow = own, None
    else:
        shadow = own
    planner = planner_of(container) if shadow is None else planner_with(container, shadow)
    manager = manager_of(container)
    own_manager = manager_of(own) if own is not None else None
    entries = {**manager.entries, **(own_manager.entries if own_manager is not None else {})}
    plain = {name: planner.entry(name) for name in named_by(machine) if name not in entries}
    entries |= {name: found for name, found in plain.items() if found is not None}
    try:
        with one_round():
            entries = asked_for(machine, entries)
            broken = unusable(entries, planner)
        faults += broken.values()
        assembly = Assembly(machine, planner, functions, imports)
        states = assembly.states()
        faults += assembly.faults
        faults += resource_faults(machine, {*entries, *misdeclared}, planner)
        if faults:
            raise BuildError(_unique(faults, broken), machine.file or machine.name)
        scoped = bool(entries) or may_open(container) or any(state.injects for state in states.values())
        for state in states.values():
            state.settle(scoped=scoped)
    except BaseException:
        if own_manager is not None:
            own_manager.close()
        raise

    def entry(name: str) -> Entry:
        if own_manager is not None and name in own_manager.names:
            return own_manager.entry(name)
        try:
            return manager.entry(name)
        except UnknownResourceError:
            found = plain.get(name) or planner.entry(name)  # a provider without a lifetime
            if found is None:
                raise
            return found

    engine = Engine(machine, states, manager, entry, scoped=scoped, data_mode=data_mode or machine.data_mode)
    return Built(engine, manager, own_manager, planner, entries, asynchronous_parts(states, entries))


def _local_resources(
    machine: Machine, given: Mapping[str, Any], container: Any, imports: Prefixes, faults: list[Fault]
) -> dict[str, Any]:
    """Return what the machine itself declares; what the caller gave wins over the configuration."""
    found: dict[str, Any] = {}

    def collect(name: str, mapping: Mapping[str, Any], where: str) -> None:
        try:
            found[name] = resource_from_mapping(name, mapping, where=where, imports=imports)
        except BuildError as error:
            found[name] = MISDECLARED
            faults.extend(error.faults)

    offered = set(container.providers) if container is not None else set()
    for declaration in machine.resources:
        if declaration.name in given or (declaration.kind is None and declaration.class_path is None):
            continue
        if declaration.name in offered:
            place = declaration.place
            faults.append(
                Fault(
                    "R005",
                    "DeclaredTwice",
                    f"resource {declaration.name!r} has settings in the configuration and in the container",
                    ("Keep one of them, or give the one that shall win with resources=.",),
                    place.file,
                    place.line,
                    place.column,
                )
            )
            continue
        where = str(declaration.place) or "the configuration"
        collect(declaration.name, _as_mapping(declaration), where)
    for name, value in given.items():
        if isinstance(value, Mapping):
            collect(name, value, "resources=")
        else:
            found[name] = value
    return found


def _as_mapping(declaration: ResourceDeclaration) -> dict[str, Any]:
    mapping: dict[str, Any] = {**declaration.config}
    for key, value in (
        ("type", declaration.kind),
        ("class", declaration.class_path),
        ("lifetime", declaration.lifetime),
        ("pool", dict(declaration.pool) or None),
        ("creation_attempts", declaration.creation_attempts),
        ("creation_delay", declaration.creation_delay),
        ("health_check_interval", declaration.health_interval),
    ):
        if value is not None:
            mapping[key] = value
    return mapping


def _unique(faults: Sequence[Fault], broken: Iterable[str]) -> list[Fault]:
    """Leave out what two checks found alike, and what is said of a *broken* resource again of those who use it."""
    endings = tuple(f") {text}" for text in broken)
    found = {(fault.code, fault.message): fault for fault in faults}.values()
    return [fault for fault in found if not fault.message.endswith(endings)]
