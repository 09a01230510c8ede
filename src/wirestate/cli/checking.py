"""``wirestate check`` and ``wirestate resources``: everything that can be known before a record runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from wirestate.cli.inspection import Origin, ResourceReport, driver_behind, resource_reports, unused_notes, users
from wirestate.cli.loading import Named, built_from, close_all, load, refuse_missing_profile
from wirestate.cli.terminal import counted, fault_lines, fault_report, fits, table
from wirestate.errors import BuildError, Fault
from wirestate.fsm import functions_of
from wirestate.injection.container import container_from_settings, manager_of
from wirestate.injection.making import making_only_ours
from wirestate.machine.config import load_machine
from wirestate.machine.definition import Machine
from wirestate.resources.scopes import Entry
from wirestate.settings import WirestateSettings

HEALTH_STYLES = {"healthy": "green", "degraded": "yellow", "unhealthy": "bold red", "unknown": "dim"}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` found out; ``machine`` is None if its configuration cannot be read."""

    file: str
    machine: Machine | None
    resources: list[ResourceReport]
    faults: list[Fault]
    notes: list[Fault]

    @property
    def unhealthy(self) -> list[str]:
        return [resource.name for resource in self.resources if resource.health == "unhealthy"]

    @property
    def ok(self) -> bool:
        return not self.faults and not self.unhealthy

    def as_json(self) -> dict[str, object]:
        machine = self.machine
        return {
            "report": "check",
            "version": 1,
            "ok": self.ok,
            "file": self.file,
            "machine": None if machine is None else machine.name,
            "start": None if machine is None else machine.start,
            "ends": [] if machine is None else _ends(machine),
            "resources": [asdict(resource) for resource in self.resources],
            "faults": [fault_report(fault) for fault in self.faults],
            "notes": [fault_report(note) for note in self.notes],
        }

    def lines(self) -> Iterator[str | Text | Table]:
        if self.machine is None:
            yield Text(self.file, "bold")
        else:
            states = counted(len(self.machine.main.states), "state")
            way = f"{self.machine.start} → {', '.join(_ends(self.machine))}"
            yield Text.assemble((self.machine.name, "bold"), (f"  {states}, {way}", "dim"))
        if self.resources:
            rows = self._table()
            if fits(rows):
                yield from ("", rows)
            else:
                yield from ("", self._table(with_origins=False), "", self._origins())
        if troubles := [(one.name, one.trouble) for one in self.resources if one.trouble]:
            yield ""
            yield from (Text(f"{name}: {trouble}", "red") for name, trouble in troubles)
        yield from fault_lines(self.faults, "bold red")
        yield from fault_lines(self.notes, "yellow")
        yield from ("", self._verdict())

    def _table(self, *, with_origins: bool = True) -> Table:
        origins = ["set by"] if with_origins else []
        rows = table("resource", "kind", "lifetime", *origins, "driver", "health", "used by")
        for one in self.resources:
            health = Text(one.health or "–", HEALTH_STYLES.get(one.health or "unknown", ""))
            if one.health_ms is not None:
                health.append(f" {one.health_ms:.1f} ms", "dim")
            used_by = "–" if one.used_by is None else ", ".join(one.used_by) or Text("no state", "dim")
            origins = [one.set_by] if with_origins else []
            rows.add_row(one.name, one.kind, one.lifetime, *origins, one.driver or "–", health, used_by)
        return rows

    def _origins(self) -> Table:
        rows = table("resource", "set by")
        for one in self.resources:
            rows.add_row(one.name, one.set_by)
        return rows

    def _verdict(self) -> Text:
        faults = [counted(len(self.faults), "fault")] if self.faults else []
        faults += [f"{name} is unhealthy" for name in self.unhealthy]
        notes = f", {counted(len(self.notes), 'note')}" if self.notes else ""
        text = ", ".join(faults) or "no faults"
        return Text(f"{text}{notes}", "green" if self.ok else "bold red")


def check_machine(named: Named, *, strict: bool, asking: bool, probing: bool) -> CheckReport:
    """Read and build a machine and ask its resources for their health; run no function and no record.

    Args:
        strict: notes are faults.
        asking: ask for health: our own adapters, when *probing* all.
        probing: make the providers of users and the objects of their functions, too.
    """
    with nullcontext() if probing else making_only_ours():
        return _check(named, strict=strict, asking=asking, probing=probing)


def _check(named: Named, *, strict: bool, asking: bool, probing: bool) -> CheckReport:
    faults: list[Fault] = []
    loaded, machine, built = None, None, None
    try:
        loaded = load(named)
        machine = load_machine(str(named.machine), given=functions_of(loaded.functions))
        built = built_from(machine, loaded)
    except BuildError as error:
        faults += error.faults
    origin = Origin(named.container, loaded.settings if loaded else None, machine)
    container = loaded.container if loaded else None
    try:
        entries = built.entries if built is not None else manager_of(container).entries if container else {}
        used = users(built) if built is not None else None
        resources = resource_reports(entries, origin, used, asking=asking, probing=probing)
        notes = [*(machine.notes if machine else ()), *(unused_notes(entries, used) if used is not None else ())]
    finally:
        close_all(container, built)
    report = CheckReport(str(named.machine), machine, resources, faults, notes)
    return _strictly(report) if strict else report


def _strictly(report: CheckReport) -> CheckReport:
    """Return the same report with its notes as faults."""
    return CheckReport(report.file, report.machine, report.resources, [*report.faults, *report.notes], [])


def _ends(machine: Machine) -> list[str]:
    return [name for name, state in machine.main.states.items() if state.is_end or state.end_test is not None]


# --- the environment -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declared:
    """A resource that the environment declares; ``settings`` tells what set each of them, never a value."""

    name: str
    kind: str
    lifetime: str
    driver: str | None
    settings: dict[str, str]


@dataclass(frozen=True, slots=True)
class ResourcesReport:
    """What ``resources`` found."""

    resources: list[Declared]

    def as_json(self) -> dict[str, object]:
        return {"report": "resources", "version": 1, "ok": True, "resources": [asdict(one) for one in self.resources]}

    def lines(self) -> Iterator[str | Text | Table]:
        if not self.resources:
            yield "no resource is declared"
            yield Text("Set for example WIRESTATE_RESOURCES__DATABASE__URL, or name a profile with --profile.", "dim")
            return
        for number, one in enumerate(self.resources):
            if number:
                yield ""
            what = ", ".join(part for part in (one.kind, one.lifetime, one.driver) if part)
            yield Text.assemble((one.name, "bold"), (f"  {what}", "dim"))
            rows = table()
            for setting, origin in one.settings.items():
                rows.add_row(f"  {setting}", origin)
            yield rows


def declared_resources(profile: Path | None) -> ResourcesReport:
    """Read the settings and make their container; open nothing."""
    refuse_missing_profile(profile)
    with making_only_ours():
        settings = WirestateSettings(_profile=profile)
        container = container_from_settings(settings)
        entries = manager_of(container).entries
        try:
            return ResourcesReport([_declared(name, entries[name], settings) for name in settings.resources])
        finally:
            container.shutdown_resources()


def _declared(name: str, entry: Entry, settings: WirestateSettings) -> Declared:
    resource = settings.resources[name]
    given = {"class" if key == "class_path" else key for key in resource.model_fields_set}
    origins = {key: settings.set_by("resources", name, key) for key in sorted(given)}
    # A kind may be inferred: then nobody set it.
    said = {key: origin for key, origin in origins.items() if not origin.endswith("(not set)")}
    lifetime = resource.effective_lifetime.replace("_", " ")
    return Declared(name, resource.kind, lifetime, driver_behind(entry, resource.kind), said)
