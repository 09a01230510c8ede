"""The other spellings in which a resource may be described, brought to the one that the models know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wirestate.settings.kinds import inferred_kind
from wirestate.settings.report import Problem
from wirestate.settings.sources import Path

# Keys of the guide's package, and of machine configurations.
OTHER_SPELLINGS: Mapping[str, Path] = {
    "type": ("kind",),
    "connection_pool_size": ("pool", "max_size"),
    "timeout_seconds": ("pool", "acquire_timeout"),
    "retry_attempts": ("creation_attempts",),
    "retry_delay_seconds": ("creation_delay",),
}
# What a later release brings, unless a provider takes a setting of that name.
LATER = {"commit": "this release commits after each visit to a state; leave it out"}


def respelled(
    name: str,
    given: Mapping[str, Any],  # Any, here and below: not validated yet
) -> tuple[dict[str, Any], dict[Path, Path], list[Problem]]:
    """Bring one resource to the models' spelling.

    Returns:
        the settings; for each that was moved, where it was written; what is wrong.
    """
    settings: dict[str, Any] = {}
    written: dict[Path, Path] = {}
    problems: list[Problem] = []

    def put(target: Path, value: Any, source: Path) -> None:
        holder = settings
        for part in target[:-1]:
            holder = holder.setdefault(part, {})
            if not isinstance(holder, dict):
                problems.append(Problem("S003", source, f"is given twice; {'.'.join(target[:-1])} says it too"))
                return
        if target[-1] in holder:
            earlier = ".".join(written.get(target, target))
            problems.append(Problem("S003", source, f"is given twice; {earlier} says it too"))
            return
        holder[target[-1]] = dict(value) if isinstance(value, Mapping) else value
        if source != target:
            written[target] = source

    for source, value in _flattened(given):
        key = source[-1]
        if source == ("name",) and value == name:
            continue
        put(OTHER_SPELLINGS.get(key, (key,)), value, source)
    if "kind" not in settings and (kind := inferred_kind(settings)):
        settings["kind"] = kind
        written["kind",] = ()  # nobody wrote it: what is wrong with it is said of the resource
    return settings, written, problems


def _flattened(given: Mapping[str, Any]) -> list[tuple[Path, Any]]:
    """Return the settings, those under ``config`` too; a pool first, so that its other spellings can join it."""
    flat: list[tuple[Path, Any]] = []
    for key, value in given.items():
        if key == "config" and isinstance(value, Mapping):
            flat += [(("config", inner), below) for inner, below in value.items()]
        else:
            flat.append(((key,), value))
    return sorted(flat, key=lambda item: item[0][-1] != "pool")
