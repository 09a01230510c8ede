"""Files and mappings -> one tree in which every value knows where it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any  # Any: what a configuration holds before it is checked, and ruamel's untyped nodes

from wirestate.errors import PathOutsideBaseError, listed, nearest
from wirestate.machine.definition import NOWHERE, Place
from wirestate.machine.faults import DUPLICATE_KEY, INCLUDE_REFUSED, UNREADABLE, WRONG_VALUE, Report, did_you_mean
from wirestate.machine.variables import Filled, fill
from wirestate.resources.filesystem.folders import folder_of_disk

MAX_VALUES = 100_000  # aliases of aliases grow without end
MAX_DEPTH = 100
MAX_CHARACTERS = 2_000_000  # of one file
SUFFIXES = (".yaml", ".yml", ".json")
_TAG = "tag:yaml.org,2002:"
_TAGS: Mapping[str, Sequence[str]] = {
    "mapping": ("map",),
    "sequence": ("seq",),
    "scalar": ("int", "float", "bool", "null", "str", "timestamp", "merge", "value"),
}


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place: ``dict[str, Node]``, ``list[Node]`` or a scalar.

    ``key_place`` is where the key before it stands, ``written`` the text with its variables still in
    it, ``quoted`` how many characters stand before the text itself, None if that cannot be said.
    """

    value: Any
    place: Place = NOWHERE
    key_place: Place = NOWHERE
    written: str | None = None
    quoted: int | None = 0

    @property
    def shown(self) -> str:
        """The value as a message may show it: without what came from the environment."""
        return repr(self.value if self.written is None else self.written)

    @property
    def kind(self) -> str:
        """What a person calls this kind of value."""
        for kind, word in _KINDS:
            if isinstance(self.value, kind):
                return word
        return type(self.value).__name__

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return str(self.value) if isinstance(self.value, Filled) else self.value


_KINDS: Sequence[tuple[type, str]] = (
    (dict, "a mapping"),
    (list, "a list"),
    (bool, "true or false"),
    (int, "a number"),
    (float, "a number"),
    (str, "text"),
    (type(None), "nothing"),
)


class _UnreadableError(Exception):
    """What could not be read has been reported."""


@dataclass(slots=True)
class Reader:
    """Reads one source and all that it includes."""

    report: Report
    environ: Mapping[str, str]
    root: Path | None = None
    _count: int = field(default=0, init=False)
    _yaml: Any = field(default=None, init=False)  # Any: ruamel has no types

    def read(self, source: str | Path | Mapping[str, Any]) -> Node | None:
        """Return the tree, or None if there is nothing to look at; the report says why."""
        try:
            if isinstance(source, Mapping):
                node = self._from_plain(source, (), 0)
            else:
                node = self._from_file(Path(source), str(source), (), NOWHERE)
        except _UnreadableError:
            return None
        if not isinstance(node.value, dict):
            self.report.fault(UNREADABLE, f"a machine is a mapping, not {node.kind}", node.place)
            return None
        return node

    def _fail(self, message: str, place: Place, *help_lines: str | None) -> _UnreadableError:
        self.report.fault(UNREADABLE, message, place, *help_lines)
        return _UnreadableError()

    # --- files ---------------------------------------------------------------

    def _from_file(
        self, path: Path, shown: str, chain: tuple[Path, ...], place: Place, base: Path | None = None
    ) -> Node:
        if path.suffix.lower() not in SUFFIXES:
            raise self._fail(f"{shown!r} is none of {listed(SUFFIXES)}", place)
        try:
            text = path.read_text(encoding="utf-8-sig") if base is None else _read_below(base, path)
        except (OSError, ValueError, PathOutsideBaseError) as error:
            why = (
                "a link leads out of its folder" if isinstance(error, PathOutsideBaseError) else "it is not UTF-8 text"
            )
            why = getattr(error, "strerror", None) or why
            others = _beside(path)
            near = None if path.name in others else nearest(path.name, others)
            raise self._fail(f"{shown!r} cannot be read: {why}", place, did_you_mean(near)) from None
        if len(text) > MAX_CHARACTERS:
            raise self._fail(f"{shown!r} is longer than {MAX_CHARACTERS} characters", place)
        if path.suffix.lower() == ".json":
            text = self._checked_json(text, shown)
        yaml_node = self._compose(text, shown)
        return self._from_yaml(yaml_node, shown, (*chain, path.resolve() if base is None else path), 0)

    def _checked_json(self, text: str, shown: str) -> str:
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            place = Place(shown, getattr(error, "lineno", None), getattr(error, "colno", None))
            raise self._fail(f"this is no JSON: {getattr(error, 'msg', error)}", place) from None
        # JSON is YAML but for tabs; in correct JSON they stand between values only.
        return text.replace("\t", " ")

    def _compose(self, text: str, shown: str) -> Any:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        try:
            self._yaml = YAML(typ="safe", pure=True)
            self._bound_depth(self._yaml.composer, shown)
            documents = list(self._yaml.compose_all(text))
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Place(shown, mark.line + 1, mark.column + 1) if mark else Place(shown)
            raise self._fail(f"this is no YAML: {error.problem or error.context}", place) from None
        except (YAMLError, RecursionError) as error:
            raise self._fail(f"this is no YAML: {type(error).__name__}", Place(shown)) from None
        if not documents or documents[0] is None:
            raise self._fail(f"{shown!r} is empty", Place(shown))
        if len(documents) > 1:
            place = _place(documents[1], shown) if documents[1] is not None else Place(shown)
            raise self._fail("a file holds one YAML document; a second one begins here", place)
        return documents[0]

    def _bound_depth(self, composer: Any, shown: str) -> None:
        """Stop early at what is nested too deep: the time that reading it takes grows with the square of its depth."""
        compose, depth = composer.compose_node, 0

        def compose_node(parent: Any, index: Any) -> Any:
            nonlocal depth
            depth += 1
            if depth > MAX_DEPTH:
                mark = composer.parser.peek_event().start_mark
                place = Place(shown, mark.line + 1, mark.column + 1)
                raise self._fail(f"this is nested deeper than {MAX_DEPTH}", place)
            try:
                return compose(parent, index)
            finally:
                depth -= 1

        composer.compose_node = compose_node

    def _from_yaml(self, node: Any, file: str, chain: tuple[Path, ...], depth: int) -> Node:
        place = _place(node, file)
        self._count_value(place, depth)
        tag = str(node.tag).removeprefix(_TAG)
        if tag not in _TAGS[node.id]:
            self.report.fault(WRONG_VALUE, f"tag {node.tag} is not allowed", place)
            return Node(None, place)
        if node.id == "mapping":
            return self._expanded(self._yaml_mapping(node, file, chain, depth), place, chain)
        if node.id == "sequence":
            return Node([self._from_yaml(item, file, chain, depth + 1) for item in node.value], place)
        if tag in {"int", "float", "bool", "null"}:
            try:
                return Node(self._yaml.constructor.construct_object(node), place)
            except (ValueError, KeyError):  # a tag such as !!int stands before something else
                self.report.fault(WRONG_VALUE, f"this is no {tag}", place)
                return Node(None, place)
        text = node.value
        if file.lower().endswith(".json"):  # JSON writes one character beyond the first plane as two escapes
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        quoted = {None: 0, "": 0, "'": 1, '"': 1}.get(node.style)
        return self._text(text, place, quoted)

    def _yaml_mapping(self, node: Any, file: str, chain: tuple[Path, ...], depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            key_place = _place(key_node, file)
            value = self._from_yaml(value_node, file, chain, depth + 1)
            if str(key_node.tag) == _TAG + "merge":
                merged += value.value if isinstance(value.value, list) else [value]
                continue
            if str(key_node.tag) != _TAG + "str":
                self.report.fault(WRONG_VALUE, "a key must be text; put it in quotes", key_place)
                continue
            key = key_node.value
            if key in found:
                first = found[key].key_place
                message = f"key {key!r} stands here and in line {first.line}"
                self.report.fault(DUPLICATE_KEY, message, key_place, "Keep one of them.")
                continue
            found[key] = replace(value, key_place=key_place)
        for other in merged:
            if isinstance(other.value, dict):
                found = {**other.value, **found}
        return found

    # --- mappings ------------------------------------------------------------

    def _from_plain(self, value: Any, chain: tuple[Path, ...], depth: int) -> Node:
        self._count_value(NOWHERE, depth)
        if isinstance(value, Mapping):
            found: dict[str, Node] = {}
            for key, item in value.items():
                if isinstance(key, str):
                    found[key] = self._from_plain(item, chain, depth + 1)
                else:
                    self.report.fault(WRONG_VALUE, f"a key must be text, not {type(key).__name__}", NOWHERE)
            return self._expanded(found, NOWHERE, chain)
        if isinstance(value, (list, tuple)):
            return Node([self._from_plain(item, chain, depth + 1) for item in value])
        return self._text(value, NOWHERE, None) if isinstance(value, str) else Node(value)

    def _text(self, text: str, place: Place, quoted: int | None) -> Node:
        filled = fill(text, place, self.environ, self.report)
        return Node(filled, place, written=text if "${" in text else None, quoted=quoted)

    def _count_value(self, place: Place, depth: int) -> None:
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            raise self._fail(f"more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH}", place)

    # --- includes ------------------------------------------------------------

    def _expanded(self, found: dict[str, Node], place: Place, chain: tuple[Path, ...]) -> Node:
        include, importing = found.pop("$include", None), found.pop("$import", None)
        local = Node(found, place)
        if include is not None:
            local = self._laid_over(local, self._included(include, chain))
        if importing is not None:
            local = self._laid_over(local, self._imported(importing, chain))
        return local

    def _laid_over(self, local: Node, other: Node | None) -> Node:
        if other is None:
            return local
        if not local.value:
            return replace(other, key_place=local.key_place)
        if not isinstance(other.value, dict):
            message = f"{other.kind} cannot be included beside other keys"
            self.report.fault(INCLUDE_REFUSED, message, local.place)
            return local
        return _merged(local, other)

    def _imported(self, node: Node, chain: tuple[Path, ...]) -> Node | None:
        keys = node.value if isinstance(node.value, dict) else {}
        if set(keys) != {"file", "path"} or not isinstance(keys["path"].value, str):
            self.report.fault(INCLUDE_REFUSED, "'$import' takes a file and a path: {file: …, path: a.b}", node.place)
            return None
        found = self._included(keys["file"], chain)
        for part in keys["path"].value.split("."):
            if found is None:
                return None
            inside = found.value if isinstance(found.value, dict) else {}
            if part not in inside:
                message = f"'$import': there is no {part!r} in {keys['file'].shown}"
                self.report.fault(INCLUDE_REFUSED, message, keys["path"].place, did_you_mean(nearest(part, inside)))
            found = inside.get(part)
        return found

    def _included(self, node: Node, chain: tuple[Path, ...]) -> Node | None:
        if not isinstance(node.value, str):
            self.report.fault(INCLUDE_REFUSED, f"'$include' takes the name of a file, not {node.kind}", node.place)
            return None
        folder = chain[-1].parent if chain else self.root
        if folder is None:
            message = "a mapping that was not read from a file has no folder; pass config_root="
            self.report.fault(INCLUDE_REFUSED, message, node.place)
            return None
        try:
            path = (folder / node.value).resolve()
        except (OSError, RuntimeError, ValueError):  # links in a circle, or a character that no path has
            self.report.fault(INCLUDE_REFUSED, f"{node.shown} is no path", node.place)
            return None
        allowed = [folder.resolve(), *([self.root.resolve()] if self.root else [])]
        way = " -> ".join([*(step.name for step in chain), node.written or path.name])
        base = next((one for one in allowed if path.is_relative_to(one)), None)
        if base is None:
            message = f"{node.shown} leaves the folder of the file that names it"
            self.report.fault(INCLUDE_REFUSED, message, node.place, f"Chain: {way}", "config_root= allows more.")
            return None
        if path in chain:
            self.report.fault(INCLUDE_REFUSED, f"{node.shown} includes itself", node.place, f"Chain: {way}")
            return None
        said = node.written or node.value
        shown = str(Path(node.place.file).parent / said) if node.place.file else said
        return self._from_file(path, shown, chain, node.place, base)


def _beside(path: Path) -> list[str]:
    """Return the names of files in the folder of *path* that could be meant."""
    try:
        return [other.name for other in path.parent.glob("*") if other.suffix in SUFFIXES]
    except OSError:  # the folder is gone, too
        return []


def _read_below(base: Path, path: Path) -> str:
    """Read a file that is named by another: no link that came since it was looked at leads out of *base*."""
    return folder_of_disk("$include", str(base)).read(path.relative_to(base).as_posix()).decode("utf-8-sig")


def _place(node: Any, file: str) -> Place:
    return Place(file, node.start_mark.line + 1, node.start_mark.column + 1)


def _merged(local: Node, other: Node) -> Node:
    """Lay *local* over *other*: local keys win, mappings are merged, all else is replaced."""
    found = dict(other.value)
    for key, node in local.value.items():
        both = key in found and isinstance(found[key].value, dict) and isinstance(node.value, dict)
        found[key] = _merged(node, found[key]) if both else node
    return replace(local, value=found)
