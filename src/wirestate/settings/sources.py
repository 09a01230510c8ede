"""Where settings come from: arguments, environment, .env, secrets folder, profile; strongest first."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path as FilePath
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str, ...]  # of a setting: ("resources", "database", "url")
Tree: TypeAlias = dict[str, Any]  # Any: settings as they were written, not validated yet


@dataclass(frozen=True, slots=True)
class Layer:
    """One source: its settings as a tree, and what each was called there."""

    label: str
    tree: Tree = field(default_factory=dict, repr=False)  # it may hold secrets
    names: Mapping[Path, str] = field(default_factory=dict)
    found: bool | None = None  # None: a source that is always there
    of_variables: bool = False
    empty: tuple[Path, ...] = ()  # variables that were given, and hold nothing
    stray: tuple[Path, ...] = ()  # named as parts of a setting that has no parts
    is_profile: bool = False
    trouble: str = ""  # why it could not be read


@dataclass(frozen=True, slots=True)
class Sources:
    """All layers, strongest first; *prefix* is that of variables, None where there are none."""

    layers: tuple[Layer, ...]
    prefix: str | None = None
    others: tuple[str, ...] = ()  # variables that do not begin with the prefix: one may be a misspelling

    def merged(self) -> Tree:
        """Return one tree, in which the stronger layers win."""
        tree: Tree = {}
        for layer in reversed(self.layers):
            tree = _merged(tree, layer.tree)
        return tree

    def names(self) -> dict[str, str]:
        """Return every name that is set anywhere: the form that a variable would have -> as it was written."""
        set_here = {self.wanted(path): name for layer in self.layers for path, name in layer.names.items()}
        return {**{name: name for name in self.others}, **set_here}

    def set_by(self, path: Path) -> str:
        """Tell which source set a setting, and under which name."""
        return f"{self.written(path)} ({self.label(path)})"

    def is_empty(self, path: Path) -> bool:
        """Tell whether a variable for the setting was given that holds nothing."""
        return any(path in layer.empty for layer in self.layers)

    def troubles(self) -> list[str]:
        """Say which sources could not be read."""
        return [f"{layer.label} {layer.trouble}" for layer in self.layers if layer.trouble]

    def profiles(self) -> list[str]:
        """Return the paths of the TOML files that were read."""
        return [layer.label for layer in self.layers if layer.found and layer.is_profile]

    def stray(self) -> list[Path]:
        """Return the variables that could not be laid into any tree."""
        return [path for layer in self.layers for path in layer.stray]

    def without_values(self) -> Sources:
        """Return what is needed to tell where a setting came from, or where one that is missing may have gone."""
        others = tuple(name for name in self.others if "__" in name)
        return replace(self, layers=tuple(replace(layer, tree={}) for layer in self.layers), others=others)

    def wanted(self, path: Path) -> str:
        """Return the name by which a setting would be set."""
        return ".".join(path) if self.prefix is None else self.prefix.upper() + "__".join(path).upper()

    def written(self, path: Path) -> str:
        """Return the name by which a setting, or what holds it, was set."""
        return self._origin(path)[1]

    def label(self, path: Path) -> str:
        """Return the source that gave a setting."""
        return self._origin(path)[0]

    def looked_in(self) -> str:
        """Return the sources, and whether each was there."""
        said = {None: "", True: " (found)", False: " (not found)"}
        return ", ".join(layer.label + said[layer.found] for layer in self.layers if layer.label != "arguments")

    def _origin(self, path: Path) -> tuple[str, str]:
        for length in range(len(path), 0, -1):
            for layer in self.layers:
                if path[:length] in layer.names:
                    return layer.label, layer.names[path[:length]]
        for layer in self.layers:  # a mapping has no name of its own: one of its parts tells the source
            inside = [name for known, name in layer.names.items() if known[: len(path)] == path]
            if inside:
                return layer.label, inside[0] if layer.of_variables else ".".join(path)
        return "not set", self.wanted(path)


def from_mapping(label: str, given: Mapping[str, Any], *below: str) -> Layer:
    """Make a layer of a mapping whose settings stand *below* a path."""
    tree: Tree = dict(given)
    for part in reversed(below):
        tree = {part: tree}
    return Layer(label, tree, {path: ".".join(path) for path in _leaves(tree)})


def from_variables(label: str, variables: Mapping[str, str], prefix: str, *, found: bool | None = None) -> Layer:
    """Make a layer of variables such as ``WIRESTATE_RESOURCES__DATABASE__URL``; an empty one is not set."""
    tree: Tree = {}
    names: dict[Path, str] = {}
    empty, stray = [], []
    for name in sorted(variables, key=lambda name: (name.count("__"), name)):
        if not name.upper().startswith(prefix.upper()):
            continue
        path = tuple(name[len(prefix) :].lower().split("__"))
        if not variables[name]:
            empty.append(path)
        else:
            names[path] = name
            if not _put(tree, path, variables[name]):
                stray.append(path)
    return Layer(label, tree, names, found, of_variables=True, empty=tuple(empty), stray=tuple(stray))


def read_dotenv(file: FilePath) -> tuple[dict[str, str] | None, str]:
    """Return the variables of a ``.env`` file, None if there is no such file; and why it cannot be read."""
    if not file.is_file():
        return None, ""
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return {}, f"cannot be read: {type(error).__name__}"
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        return {}, f"cannot be read: line {number} is not UTF-8 text"
    for one in parse_stream(StringIO(text)):
        if one.error or (one.key is not None and one.value is None):  # the line is not shown: it may hold a secret
            blank = one.original.string.removesuffix(one.original.string.lstrip())
            number = one.original.line + blank.count("\n")
            return {}, f"cannot be read: line {number} has not the form NAME=value"
    return {name: value for name, value in dotenv_values(stream=StringIO(text)).items() if value is not None}, ""


def from_secrets(folder: FilePath, prefix: str) -> Layer:
    """Read a folder that holds one file per variable, as containers mount it."""
    label = f"secrets folder {folder}"
    if not folder.is_dir():
        return Layer(label, found=False)
    files = [file for file in folder.iterdir() if file.name.upper().startswith(prefix.upper()) and file.is_file()]
    try:
        return from_variables(label, {file.name: file.read_text("utf-8").strip() for file in files}, prefix, found=True)
    except (OSError, UnicodeDecodeError) as error:
        return Layer(label, found=True, trouble=f"cannot be read: {type(error).__name__}")


def from_profile(profile: FilePath) -> list[Layer]:
    """Read a TOML profile, and the ``base.toml`` beside it as the layer below."""
    base = profile.with_name("base.toml")
    files = [profile] if base == profile or not base.is_file() else [profile, base]
    return [_from_toml(file) for file in files]


def _from_toml(file: FilePath) -> Layer:
    try:
        with file.open("rb") as stream:
            tree = tomllib.load(stream)
    except FileNotFoundError:
        beside = sorted(other.name for other in file.parent.glob("*.toml")) if file.parent.is_dir() else []
        return Layer(
            str(file), found=False, trouble=f"does not exist; profiles beside it: {', '.join(beside) or 'none'}"
        )
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = str(error) if isinstance(error, tomllib.TOMLDecodeError) else type(error).__name__
        return Layer(str(file), found=True, trouble=f"cannot be read: {reason}")
    return Layer(str(file), tree, {path: ".".join(path) for path in _leaves(tree)}, found=True, is_profile=True)


def read_sources(
    arguments: Mapping[str, Any], *, prefix: str, places: Mapping[str, str | None], env_file: FilePath | None
) -> Sources:
    """Read every layer.

    *places* are the settings that only say where to look (profile, secrets folder): what an argument
    gives, else a variable of that name does.
    """
    environment = dict(os.environ)
    dotenv, trouble = read_dotenv(env_file) if env_file else (None, "")
    found: dict[str, str | None] = {}
    for place, given in places.items():
        variable = f"{prefix}{place}".upper()
        from_file = dotenv.pop(variable, None) if dotenv else None
        found[place] = given or environment.pop(variable, None) or from_file
        environment.pop(variable, None)
    layers = [from_mapping("arguments", arguments), from_variables("environment", environment, prefix)]
    if env_file:
        layer = from_variables(str(env_file), dotenv or {}, prefix, found=dotenv is not None)
        layers.append(replace(layer, trouble=trouble))
    if found["secrets_dir"]:
        layers.append(from_secrets(FilePath(found["secrets_dir"]), prefix))
    if found["profile"]:
        layers += from_profile(FilePath(found["profile"]))
    others = [name for name in {**environment, **(dotenv or {})} if not name.upper().startswith(prefix.upper())]
    return Sources(tuple(layers), prefix, tuple(others))


def _put(tree: Tree, path: Path, text: str) -> bool:
    """Lay one variable into the tree; False if a shorter one has put a text where its mapping should be.

    A text is read as a JSON object only where nothing but a mapping can stand.
    """
    last = path[-1]
    for part in path[:-1]:
        below = tree.setdefault(part, {})
        if isinstance(below, str):
            below = tree[part] = _as_object(below)
        if not isinstance(below, dict):
            return False
        tree = below
    mapping_only = path[0] == "resources" and len(path) <= 2
    tree[last] = _as_object(text) if mapping_only else text
    return True


def _as_object(text: str) -> Any:  # Any: not validated yet
    try:
        return json.loads(text) if text.lstrip().startswith("{") else text
    except ValueError:
        return text


def _merged(weak: Tree, strong: Tree) -> Tree:
    both = dict(weak)
    for name, value in strong.items():
        beneath = both.get(name)
        both[name] = _merged(beneath, value) if isinstance(beneath, dict) and isinstance(value, dict) else value
    return both


def _leaves(tree: Mapping[str, Any], *above: str) -> Iterator[Path]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, *above, name)
        else:
            yield (*above, name)
