"""What ``check`` and ``resources`` tell about resources: what is behind each, who set it, who uses it.

``Any`` here: containers and resource providers are of any type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from wirestate.cli.models import variable_behind
from wirestate.errors import Fault
from wirestate.injection.edges import is_provider, provides_of
from wirestate.injection.making import is_ours
from wirestate.machine.build import Built
from wirestate.machine.definition import Machine
from wirestate.machine.faults import UNUSED_RESOURCE
from wirestate.resources.base import ResourceHealth
from wirestate.resources.health import Probe
from wirestate.resources.managed import ManagedRecipe
from wirestate.resources.recipes import LIFETIME_WORDS, Recipe
from wirestate.resources.scopes import Entry
from wirestate.settings import WirestateSettings
from wirestate.settings.kinds import KINDS, TELLING, imported

LIBRARIES = {"filesystem": "fsspec", "http": "httpx", "llm": "openai"}


@dataclass(frozen=True, slots=True)
class ResourceReport:
    """One line of ``check``.

    ``health`` is None where nothing can be asked, or nobody did; ``trouble`` says why it is not healthy;
    ``used_by`` is None where the machine was not built.
    """

    name: str
    kind: str
    lifetime: str
    set_by: str
    driver: str | None
    health: str | None
    health_ms: float | None
    trouble: str | None
    used_by: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Origin:
    """Who declares resources: the option that named their container, its settings, the machine."""

    container: str | None
    settings: WirestateSettings | None
    machine: Machine | None

    def kind(self, name: str) -> str | None:
        """Return the kind that was said; None if the provider tells it."""
        if self.settings is not None and name in self.settings.resources:
            return self.settings.resources[name].kind
        return next((made.kind for made in self.machine.resources if made.name == name), None) if self.machine else None

    def set_by(self, name: str, entry: Entry) -> str:
        if self.settings is not None and name in self.settings.resources:
            return telling_setting(self.settings, name)
        declared = next((made for made in self.machine.resources if made.name == name), None) if self.machine else None
        if declared is not None and (declared.kind or declared.class_path):
            return str(declared.place)
        return variable_behind(getattr(entry, "lifetime", None)) or self.container or ""


def telling_setting(settings: WirestateSettings, name: str) -> str:
    """Return what set the setting that a resource cannot be without, and where."""
    given = settings.resources[name].model_fields_set
    telling = next((key for key in TELLING if (key if key != "class" else "class_path") in given), "kind")
    return settings.set_by("resources", name, telling)


def resource_reports(
    entries: Mapping[str, Entry],
    origin: Origin,
    used: Mapping[str, Sequence[str]] | None,
    *,
    asking: bool,
    probing: bool,
) -> list[ResourceReport]:
    """Tell about every resource that can be asked for by name.

    Args:
        asking: ask our own adapters for their health.
        probing: ask the providers of users, too.
    """
    return [
        _report(
            name,
            entry,
            origin,
            None if used is None else tuple(used.get(name, ())),
            lambda provider: asking and (probing or is_ours(type(provider))),
        )
        for name, entry in entries.items()
    ]


def _report(
    name: str, entry: Entry, origin: Origin, used_by: tuple[str, ...] | None, is_asked: Callable[[Any], bool]
) -> ResourceReport:
    recipe = _recipe(entry)
    kind = origin.kind(name) or kind_behind(entry, recipe)
    health, took, trouble = _health(recipe, is_asked)
    return ResourceReport(
        name,
        kind,
        LIFETIME_WORDS[entry.level],
        origin.set_by(name, entry),
        driver_behind(entry, kind),
        health,
        took,
        trouble,
        used_by,
    )


def _recipe(entry: Entry) -> Recipe | None:
    try:
        steps = entry.steps()
    except Exception:  # a person's code runs here, and what it raises is a fault of the build
        return None
    return steps[-1].source if steps else None


def kind_behind(entry: Entry, recipe: Recipe | None) -> str:
    """Return the kind of a resource where nobody says it: one of ours, else the name of its class or function."""
    made = type(recipe.provider) if isinstance(recipe, ManagedRecipe) else _provides(entry)
    ours = next((kind.name for kind in KINDS.values() if kind.path is not None and imported(kind.path) is made), None)
    return ours or str(getattr(made, "__name__", "custom"))


def _provides(entry: Entry) -> Any:
    lifetime = getattr(entry, "lifetime", None)
    provides = provides_of(getattr(entry, "provider", None)) if lifetime is None else lifetime.provides
    return None if is_provider(provides) else provides


def driver_behind(entry: Entry, kind: str) -> str | None:
    """Return the library behind a resource with its version; None where we know of none."""
    recipe = _recipe(entry)
    library = getattr(getattr(recipe, "provider", None), "driver", None) or LIBRARIES.get(kind)
    if library is None:
        return None
    try:
        return f"{library} {metadata.version(library)}"
    except metadata.PackageNotFoundError:  # part of Python, or installed under another name
        return str(library)


def _health(recipe: Recipe | None, is_asked: Callable[[Any], bool]) -> tuple[str | None, float | None, str | None]:
    """Return the answer of a resource, the milliseconds that it took, and why it is not healthy."""
    if not isinstance(recipe, ManagedRecipe) or not is_asked(recipe.provider):
        return None, None, None
    if not hasattr(recipe.provider, "health_check"):
        return None, None, None
    probe = Probe(recipe.name, recipe.provider)
    answer = probe.ask()
    took = None if answer is ResourceHealth.UNKNOWN else round(probe.took * 1000, 1)
    return answer.value, took, probe.trouble


# --- who uses what -----------------------------------------------------------------------


def users(built: Built) -> dict[str, list[str]]:
    """Return the states that need each resource."""
    used: dict[str, list[str]] = {}
    for state, names in built.used().items():
        for name in names:
            used.setdefault(name, []).append(state)
    return used


def unused_notes(entries: Mapping[str, Entry], used: Mapping[str, Sequence[str]]) -> list[Fault]:
    """Return a note for each resource that no state needs."""
    number, kind = UNUSED_RESOURCE
    return [Fault(number, kind, f"no state uses resource {name!r}") for name in entries if name not in used]
