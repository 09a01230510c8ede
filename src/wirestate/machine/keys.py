"""The one table of keys and their other spellings, and the typed reading of one mapping by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar  # Any: free values that a configuration holds, such as metadata

from wirestate.errors import listed, nearest
from wirestate.machine.definition import Place
from wirestate.machine.faults import (
    MISSING_KEY,
    NOT_AVAILABLE,
    REFUSED,
    TWO_SPELLINGS,
    UNKNOWN_KEY,
    WRONG_VALUE,
    Report,
    did_you_mean,
)
from wirestate.machine.reading import Node
from wirestate.machine.refusals import HARMLESS, LATER, LATER_HELP, REFUSED_KEYS

# Key -> its other spellings; one with a dot stands inside that mapping.
Keys = Mapping[str, tuple[str, ...]]
Choice = TypeVar("Choice", bound=str)

NETWORK_KEYS: Final[Keys] = {
    "name": (),
    "states": (),
    "arcs": (),
    "initial_state": (),
    "metadata": (),
    "resources": (),
}
MACHINE_KEYS: Final[Keys] = {
    "name": (),
    "version": (),
    "description": (),
    "metadata": (),
    "networks": (),
    "main_network": (),
    "states": (),
    "arcs": (),
    "initial_state": (),
    "resources": (),
    "functions": (),
    "data_mode": (),
    "max_transitions": (),
    "max_depth": (),
    "timeout": ("timeout_seconds",),
    "commit": (),
}
STATE_KEYS: Final[Keys] = {
    "name": (),
    "is_start": ("start", "initial"),
    "is_end": ("end", "final"),
    "schema": ("data_schema",),
    "pre_validators": ("pre_validator",),
    "validators": ("validator", "functions.validate"),
    "post_validators": ("post_validator",),
    "transforms": ("transform", "functions.transform"),
    "end_test": ("functions.end_test",),
    "arcs": (),
    "on_complete": (),
    "on_error": (),
    "on_reject": (),
    "on_timeout": (),
    "resources": (),
    "data_mode": (),
    "retry": (),
    "timeout": ("timeout_seconds",),
    "offload": (),
    "emit_output": (),
    "outcome": (),
    "metadata": (),
}
ARC_KEYS: Final[Keys] = {
    "from": (),
    "target": ("to",),
    "name": (),
    "metadata": (),
    "condition": ("pre_test", "when"),
    "transforms": ("transform",),
    "resources": (),
    "priority": (),
    "catch": ("on", "type"),
    "target_network": (),
    "return_state": (),
    "data_mapping": (),
    "result_mapping": (),
    "data_isolation": (),
    "inherit": (),
}
RETRY_KEYS: Final[Keys] = {
    "attempts": (),
    "on": (),
    "timeout": (),
    "wait_initial": (),
    "wait_max": (),
    "wait_jitter": (),
    "wait_exp_base": (),
}
USE_KEYS: Final[Keys] = {"name": (), "role": (), "required": ()}
DATA_MODE_KEYS: Final[Keys] = {"default": (), "state_overrides": ()}
FUNCTION_KEYS: Final[Keys] = {"type": (), "name": (), "module": (), "code": (), "params": ()}


class Fields:
    """The fields of one mapping under their table names; every getter reports what is wrong and goes on.

    Args:
        what: how a message calls this mapping, such as ``state 'load'``.
    """

    def __init__(self, node: Node, keys: Keys, what: str, report: Report) -> None:
        self.place = node.place
        self.what = what
        self.report = report
        self._nodes: dict[str, Node] = {}
        self._spelled: dict[str, str] = {}
        names = {spelling: key for key, others in keys.items() for spelling in (key, *others)}
        groups = {spelling.partition(".")[0] for spelling in names if "." in spelling}
        for spelling, found in _spelled(node, groups):
            self._take(spelling, found, names)

    def _take(self, spelling: str, node: Node, names: Mapping[str, str]) -> None:
        key = names.get(spelling)
        if key is None:
            self._unknown(spelling, node, names)
        elif key in self._nodes:
            first = self._nodes[key].key_place
            lines = f" (lines {first.line} and {node.key_place.line})" if first.line else ""
            message = f"{self.what}: {self._spelled[key]!r} and {spelling!r} say the same{lines}"
            self.report.fault(TWO_SPELLINGS, message, node.key_place, "Keep one of them.")
        elif node.value is not None:
            self._nodes[key] = node
            self._spelled[key] = spelling

    def _unknown(self, spelling: str, node: Node, names: Mapping[str, str]) -> None:
        if spelling in LATER:
            message = f"{self.what}: {spelling!r} is not available; {LATER[spelling]}"
            self.report.fault(NOT_AVAILABLE, message, node.key_place, LATER_HELP)
        elif spelling not in REFUSED_KEYS:
            near = nearest(spelling, names)
            known = None if near else f"Known: {listed(names)}"
            message = f"{self.what}: unknown key {spelling!r}"
            self.report.fault(UNKNOWN_KEY, message, node.key_place, did_you_mean(near), known)
        elif spelling not in HARMLESS or HARMLESS[spelling] != node.value:
            message = f"{self.what}: {spelling!r} is not supported: {REFUSED_KEYS[spelling]}"
            self.report.fault(REFUSED, message, node.key_place)

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def node(self, key: str) -> Node | None:
        """Return the field as it was read."""
        return self._nodes.get(key)

    def place_of(self, key: str) -> Place:
        """Return where the field stands, or where its mapping begins."""
        return self._nodes[key].place if key in self._nodes else self.place

    def wrong(self, key: str, wanted: str, *help_lines: str | None) -> None:
        """Report that a field is not what it should be."""
        node = self._nodes[key]
        message = f"{self.what}: {self._spelled[key]!r} must be {wanted}, not {node.kind}"
        self.report.fault(WRONG_VALUE, message, node.place, *help_lines)

    def _too_small(self, key: str, how: str) -> None:
        node = self._nodes[key]
        self.report.fault(WRONG_VALUE, f"{self.what}: {self._spelled[key]!r} {how}: {node.shown}", node.place)

    def need(self, key: str) -> bool:
        """Report it if the field is missing."""
        if key not in self._nodes:
            self.report.fault(MISSING_KEY, f"{self.what}: {key!r} is missing", self.place)
        return key in self._nodes

    def text(self, key: str) -> str | None:
        """Return a text, or None if nothing is said."""
        node = self._nodes.get(key)
        if node is None:
            return None
        if not isinstance(node.value, str):
            self.wrong(key, "text", "Put it in quotes." if isinstance(node.value, (int, float)) else None)
            return None
        return node.value

    def flag(self, key: str) -> bool | None:
        """Return true or false, or None if nothing is said."""
        node = self._nodes.get(key)
        if node is None:
            return None
        value = {"true": True, "false": False}.get(str(node.value).lower()) if node.written else node.value
        if not isinstance(value, bool):
            self.wrong(key, "true or false", "Write it without quotes." if isinstance(value, str) else None)
            return None
        return value

    def number(self, key: str, *, zero: bool = False) -> float | None:
        """Return a number above zero, or also zero."""
        node = self._nodes.get(key)
        if node is None:
            return None
        value = _number(node)
        if value is None:
            self.wrong(key, "a number, zero or more" if zero else "a number above zero")
            return None
        if not (value > 0 or (zero and value == 0)):
            self._too_small(key, "is below zero" if zero else "is not above zero")
            return None
        return float(value)

    def integer(self, key: str, *, least: int | None = 1) -> int | None:
        """Return a whole number, at least *least*."""
        node = self._nodes.get(key)
        if node is None:
            return None
        value = _number(node)
        if not isinstance(value, int):
            wanted = "a whole number" + ("" if least is None else f", at least {least}")
            self.wrong(key, wanted, None if value is None else "It has a fraction.")
            return None
        if least is not None and value < least:
            self._too_small(key, f"is less than {least}")
            return None
        return value

    def choice(self, key: str, choices: Sequence[Choice], *, any_case: bool = False) -> Choice | None:
        """Return one of *choices*."""
        node = self._nodes.get(key)
        if node is None:
            return None
        value = node.value.lower() if any_case and isinstance(node.value, str) else node.value
        for choice in choices:
            if choice == value:
                return choice
        near = nearest(value, choices) if isinstance(value, str) else None
        message = f"{self.what}: {self._spelled[key]!r} must be one of {listed(choices)}"
        self.report.fault(WRONG_VALUE, message, node.place, did_you_mean(near))
        return None

    def mapping(self, key: str) -> dict[str, Node]:
        """Return a mapping of nodes, empty if nothing is said."""
        node = self._nodes.get(key)
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            self.wrong(key, "a mapping")
            return {}
        return node.value

    def free(self, key: str) -> dict[str, Any]:
        """Return a mapping that nobody here looks into."""
        return {name: node.plain() for name, node in self.mapping(key).items()}

    def items(self, key: str) -> list[Node]:
        """Return a list; one value counts as a list of one."""
        node = self._nodes.get(key)
        if node is None:
            return []
        return node.value if isinstance(node.value, list) else [node]

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; one text counts as a list of one."""
        found = self.items(key)
        if all(isinstance(item.value, str) for item in found):
            return tuple(item.value for item in found)
        self.wrong(key, "a list of texts")
        return ()


def _spelled(node: Node, groups: set[str]) -> Iterator[tuple[str, Node]]:
    for key, found in node.value.items():
        if key in groups and isinstance(found.value, dict):
            yield from ((f"{key}.{inner}", item) for inner, item in found.value.items())
        else:
            yield key, found


def _number(node: Node) -> int | float | None:
    value = node.value
    if node.written is not None:  # a variable is text, whatever it stands for
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
