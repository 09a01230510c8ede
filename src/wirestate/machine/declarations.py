"""Resources in a configuration: what the machine declares, and what states and arcs use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args  # Any: settings that only an adapter understands

from wirestate.errors import listed, nearest
from wirestate.machine.definition import ResourceDeclaration, ResourceUse
from wirestate.machine.faults import (
    DUPLICATE_NAME,
    MISSING_KEY,
    REFUSED,
    TWO_SPELLINGS,
    WRONG_VALUE,
    Report,
    did_you_mean,
)
from wirestate.machine.keys import USE_KEYS, Fields, Keys
from wirestate.machine.reading import Node
from wirestate.machine.refusals import VECTOR_STORE
from wirestate.resources.recipes import Lifetime
from wirestate.settings.kinds import inferred_kind, kind_of, known_kinds
from wirestate.settings.resource import kind_of_nearest

LIFETIMES: tuple[Lifetime, ...] = get_args(Lifetime)
RESOURCE_KEYS: Final[Keys] = {
    "name": (),
    "type": ("kind", "config.kind"),
    "config": (),
    "class": ("config.class",),
    "lifetime": (),
    "pool": (),
    "retry_attempts": ("creation_attempts",),
    "retry_delay_seconds": ("creation_delay",),
    "health_check_interval": (),
    "connection_pool_size": (),
    "timeout_seconds": (),
}
OURS: Final = {spelling for key, others in RESOURCE_KEYS.items() for spelling in (key, *others)}
OURS_IN_CONFIG: Final = {key.removeprefix("config.") for key in OURS if key.startswith("config.")}


def declarations(fields: Fields, report: Report) -> tuple[ResourceDeclaration, ...]:
    """Return the machine's resources from a list or a mapping by name."""
    node = fields.node("resources")
    found: dict[str, ResourceDeclaration] = {}
    pairs: list[tuple[str | None, Node]] = []
    if node is not None and isinstance(node.value, dict):
        pairs = list(node.value.items())
    elif node is not None:
        pairs = [(None, item) for item in fields.items("resources")]
    for name, item in pairs:
        made = _declaration(name, item, report)
        if made is None:
            continue
        if made.name in found:
            first = found[made.name].place.line
            where = f" in line {first}" if first else ""
            report.fault(DUPLICATE_NAME, f"resource {made.name!r} was declared{where} already", made.place)
        found.setdefault(made.name, made)
    return tuple(found.values())


def _declaration(name: str | None, node: Node, report: Report) -> ResourceDeclaration | None:
    place = node.key_place if name is not None and node.key_place.line else node.place
    if isinstance(node.value, str) and name is None:
        return ResourceDeclaration(node.value, place=place)
    if node.value is None and name is not None:
        return ResourceDeclaration(name, place=place)
    if not isinstance(node.value, dict):
        report.fault(WRONG_VALUE, f"a resource is a name or a mapping, not {node.kind}", node.place)
        return None
    what = f"resource {name!r}" if name is not None else "a resource"
    own, config = _split(node, what, report)
    fields = Fields(own, RESOURCE_KEYS, what, report)
    said = fields.text("name")
    name = name if name is not None else said
    if name is None:
        fields.need("name")
        return None
    if said not in {None, name}:
        report.fault(TWO_SPELLINGS, f"{what} also says it is called {said!r}", fields.place_of("name"))
    class_path = fields.text("class")
    kind = _kind(fields, {**config, "class": class_path} if class_path else config, report)
    return ResourceDeclaration(
        name,
        kind=kind,
        config=config,
        class_path=class_path,
        lifetime=fields.choice("lifetime", LIFETIMES),
        pool=_pool(fields),
        creation_attempts=fields.integer("retry_attempts"),
        creation_delay=fields.number("retry_delay_seconds", zero=True),
        health_interval=fields.number("health_check_interval"),
        place=place,
    )


def _split(node: Node, what: str, report: Report) -> tuple[Node, dict[str, Any]]:
    """Part the keys that are ours from those of the adapter, which may stand under ``config`` or beside it."""
    own = {key: item for key, item in node.value.items() if key in OURS and key != "config"}
    beside = {key: item for key, item in node.value.items() if key not in OURS}
    under = node.value.get("config", Node({}))
    if not isinstance(under.value, dict):
        report.fault(WRONG_VALUE, f"{what}: 'config' must be a mapping, not {under.kind}", under.place)
        under = Node({})
    for key in [key for key in under.value if key in beside]:
        place = under.value[key].key_place
        report.fault(TWO_SPELLINGS, f"{what}: {key!r} stands here and beside 'config'", place, "Keep one of them.")
    inside = dict(under.value)
    if moved := {key: inside.pop(key) for key in OURS_IN_CONFIG & inside.keys()}:
        own["config"] = Node(moved, under.place)
    settings = {**beside, **inside}
    return Node(own, node.place), {key: item.plain() for key, item in settings.items()}


def _kind(fields: Fields, config: Mapping[str, Any], report: Report) -> str | None:
    kind = fields.text("type")
    if kind is not None and kind_of(kind) is not None:
        return kind
    if kind is None:
        kind = inferred_kind(config) or kind_of_nearest(config)
        if kind is None and (config or any(key in fields for key in RESOURCE_KEYS.keys() - {"name"})):
            message = f"{fields.what} has settings, but they do not tell its 'type'"
            report.fault(MISSING_KEY, message, fields.place, f"Known: {listed(known_kinds())}")
        return kind
    place = fields.place_of("type")
    if kind == "vector_store":
        report.fault(REFUSED, f"{fields.what}: {VECTOR_STORE}", place)
    else:
        known = known_kinds()  # it looks through all that is installed, which takes 16 ms
        near = did_you_mean(nearest(kind, known))
        report.fault(WRONG_VALUE, f"{fields.what}: unknown 'type'", place, near, f"Known: {listed(known)}")
    return None


def _pool(fields: Fields) -> dict[str, Any]:
    pool = fields.free("pool")
    for key, ours, value in (
        ("connection_pool_size", "max_size", fields.integer("connection_pool_size")),
        ("timeout_seconds", "acquire_timeout", fields.number("timeout_seconds", zero=True)),
    ):
        if value is None:
            continue
        if ours in pool:
            message = f"{fields.what}: {key!r} and 'pool.{ours}' say the same"
            fields.report.fault(TWO_SPELLINGS, message, fields.place_of(key), "Keep one of them.")
        pool[ours] = value
    return pool


def uses(fields: Fields, report: Report) -> tuple[ResourceUse, ...]:
    """Return what a state or an arc uses: a list of names or mappings, or a mapping role -> name."""
    node = fields.node("resources")
    if node is None:
        return ()
    found: list[ResourceUse] = []
    if isinstance(node.value, dict) and "name" not in node.value:
        for role, item in node.value.items():
            if isinstance(item.value, str):
                found.append(ResourceUse(item.value, role, place=item.place))
            else:
                report.fault(WRONG_VALUE, f"{fields.what}: role {role!r} must name a resource", item.place)
    else:
        found = [use for item in fields.items("resources") if (use := _use(item, fields, report)) is not None]
    names: set[str] = set()
    for use in found:
        if (use.role or use.name) in names:
            report.fault(DUPLICATE_NAME, f"{fields.what}: {use.role or use.name!r} stands here twice", use.place)
        names.add(use.role or use.name)
    return tuple(found)


def _use(node: Node, owner: Fields, report: Report) -> ResourceUse | None:
    if isinstance(node.value, str):
        return ResourceUse(node.value, place=node.place)
    if not isinstance(node.value, dict):
        report.fault(WRONG_VALUE, f"{owner.what}: a resource is a name or a mapping, not {node.kind}", node.place)
        return None
    fields = Fields(node, USE_KEYS, f"{owner.what}: a resource", report)
    name = fields.text("name")
    if name is None:
        fields.need("name")
        return None
    return ResourceUse(name, fields.text("role"), fields.flag("required") is not False, node.place)
