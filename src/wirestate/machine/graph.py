"""Pictures of a machine: Mermaid and DOT text, in the order of declaration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from wirestate.errors import printable
from wirestate.machine.definition import Arc, FunctionRef, Machine, Network, State

Stroke = Literal["plain", "catch", "push", "return"]
Format = Literal["mermaid", "dot"]


@dataclass(frozen=True, slots=True)
class _Box:
    key: str
    lines: tuple[str, ...]
    is_end: bool
    taken: bool


@dataclass(frozen=True, slots=True)
class _Line:
    source: str
    target: str
    label: str
    stroke: Stroke
    taken: bool


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    start: str
    boxes: tuple[_Box, ...]


@dataclass(frozen=True, slots=True)
class _Picture:
    groups: tuple[_Group, ...]
    lines: tuple[_Line, ...]


def render(
    machine: Machine,
    format: Format = "mermaid",
    *,
    resources: bool = True,
    lifetimes: Mapping[str, str] | None = None,
    injected: Mapping[str, Sequence[str]] | None = None,
    path: Sequence[str] | None = None,
) -> str:
    """Return the picture as text.

    Args:
        resources: write what a state uses below its name.
        lifetimes: the lifetime of each resource, such as ``per_state``, to be written behind it.
        injected: the resources that the functions of each state of the main network inject.
        path: the states of a run (``result.path``); the way taken is marked.
    """
    writers: Mapping[str, Callable[[_Picture], Iterator[str]]] = {"mermaid": _mermaid, "dot": _dot}
    if format not in writers:
        raise ValueError(f"format must be 'mermaid' or 'dot', not {format!r}")
    picture = _Drawing(machine, resources, lifetimes or {}, injected or {}, path or ()).picture()
    return "\n".join(writers[format](picture)) + "\n"


class _Drawing:
    """Decides what is in a picture, whatever it is written in."""

    def __init__(
        self,
        machine: Machine,
        resources: bool,
        lifetimes: Mapping[str, str],
        injected: Mapping[str, Sequence[str]],
        path: Sequence[str],
    ) -> None:
        self.machine = machine
        self.injected = injected
        self.resources = resources
        declared = {made.name: made.lifetime for made in machine.resources if made.lifetime}
        self.lifetimes = {**declared, **lifetimes}
        full = [
            step if ":" in step and step not in machine.main.states else f"{machine.main_network}:{step}"
            for step in path
        ]
        self.visited = set(full)
        self.taken = set(pairwise(full))
        names = [(network.name, state) for network in machine.networks.values() for state in network.states]
        self.keys = {name: f"s{number}" for number, name in enumerate(names)}

    def picture(self) -> _Picture:
        networks = self.machine.networks.values()
        lines = [
            line for network in networks for state in network.states.values() for line in self.lines(network, state)
        ]
        return _Picture(tuple(self.group(network) for network in networks), tuple(lines))

    def group(self, network: Network) -> _Group:
        boxes = (
            _Box(
                self.keys[network.name, state.name],
                (state.name, *self.used(network, state)),
                state.is_end,
                f"{network.name}:{state.name}" in self.visited,
            )
            for state in network.states.values()
        )
        return _Group(network.name, self.keys[network.name, network.start], tuple(boxes))

    def used(self, network: Network, state: State) -> Iterator[str]:
        injected = self.injected.get(state.name, ()) if network is self.machine.main else ()
        names = dict.fromkeys((*(use.name for use in state.resources), *injected))
        if self.resources and names:
            yield ", ".join(map(self.resource, names))

    def resource(self, name: str) -> str:
        lifetime = self.lifetimes.get(name)
        return f"{name} ({lifetime.replace('_', ' ')})" if lifetime else name

    def lines(self, network: Network, state: State) -> Iterator[_Line]:
        source = self.keys[network.name, state.name]
        for arc in (*state.arcs, *state.catch_arcs):
            if arc.target_network is not None:
                yield from self.push(network, arc, source)
            elif arc.target is not None:
                way = (f"{network.name}:{state.name}", f"{network.name}:{arc.target}")
                stroke: Stroke = "catch" if arc.catch else "plain"
                target = self.keys[network.name, arc.target]
                yield _Line(source, target, _label(arc), stroke, way in self.taken)

    def push(self, network: Network, arc: Arc, source: str) -> Iterator[_Line]:
        name, _, named = (arc.target_network or "").partition(":")
        child = self.machine.networks[name]
        entry = named or (arc.target if arc.target in child.states else None) or child.start
        way = (f"{network.name}:{arc.source}", f"{name}:{entry}")
        yield _Line(source, self.keys[name, entry], _label(arc), "push", way in self.taken)
        back = arc.return_state or arc.target
        if back is None or back not in network.states:
            return
        for state in child.states.values():
            if state.is_end:
                way = (f"{name}:{state.name}", f"{network.name}:{back}")
                yield _Line(self.keys[name, state.name], self.keys[network.name, back], "", "return", way in self.taken)


def _label(arc: Arc) -> str:
    """Return ``priority: condition [transform]``, for a catch arc with its kinds in front."""
    parts = [", ".join(sorted(arc.catch))] if arc.catch else []
    parts += [_called(arc.condition)] if arc.condition else []
    parts += [f"[{', '.join(_called(ref) for ref in arc.transforms)}]"] if arc.transforms else []
    label = " ".join(parts)
    return ": ".join(part for part in (str(arc.priority or ""), label) if part)


def _called(ref: FunctionRef) -> str:
    return ref.code or ref.name.rpartition(":")[2]


# --- Mermaid -----------------------------------------------------------------------------

_ARROWS: Mapping[Stroke, str] = {"plain": "-->", "catch": "-.->", "push": "==>", "return": "-.->"}
_MARK = "stroke:#2a7d4f,stroke-width:3px"


def _mermaid(picture: _Picture) -> Iterator[str]:
    yield "flowchart TD"
    grouped = len(picture.groups) > 1
    starts = [(f"begin{number}", group.start) for number, group in enumerate(picture.groups)]
    for number, group in enumerate(picture.groups):
        if grouped:
            yield f'  subgraph g{number}["{_mermaid_text(group.name)}"]'
        yield f'  begin{number}((" ")):::begin'
        for box in group.boxes:
            text = "<br/>".join(_mermaid_text(line) for line in box.lines)
            shape = f'((("{text}")))' if box.is_end else f'["{text}"]'
            yield f"  {box.key}{shape}" + (":::taken" if box.taken else "")
        if grouped:
            yield "  end"
    for begin, start in starts:
        yield f"  {begin} --> {start}"
    for line in picture.lines:
        label = f'|"{_mermaid_text(line.label)}"|' if line.label else ""
        yield f"  {line.source} {_ARROWS[line.stroke]}{label} {line.target}"
    yield "  classDef begin fill:#333,stroke:#333"
    if any(box.taken for group in picture.groups for box in group.boxes):
        yield f"  classDef taken {_MARK}"
    marked = [str(number) for number, line in enumerate(picture.lines, len(starts)) if line.taken]
    if marked:
        yield f"  linkStyle {','.join(marked)} {_MARK}"


def _mermaid_text(text: str) -> str:
    """Write all that could mean something to Mermaid, HTML or Markdown as a character code."""
    return re.sub(r"[^\w .,:()'/=+-]", lambda match: f"#{ord(match[0])};", " ".join(text.split()))


# --- DOT ---------------------------------------------------------------------------------

_STYLES: Mapping[Stroke, str] = {"plain": "", "catch": "style=dashed", "push": "penwidth=3", "return": "style=dashed"}
_TAKEN = 'color="#2a7d4f" penwidth=3'


def _dot(picture: _Picture) -> Iterator[str]:
    yield "digraph machine {"
    yield '  node [shape=box style=rounded fontname="sans-serif"]'
    yield '  edge [fontname="sans-serif" fontsize=10]'
    grouped = len(picture.groups) > 1
    for number, group in enumerate(picture.groups):
        if grouped:
            yield f"  subgraph cluster_{number} {{"
            yield f"    label={_dot_text(group.name)}"
        yield f'  begin{number} [shape=circle style=filled fillcolor=black label="" width=0.15]'
        for box in group.boxes:
            yield f"  {box.key} [{_joined(f'label={_dot_text(*box.lines)}', _end(box), _TAKEN if box.taken else '')}]"
        yield f"  begin{number} -> {group.start}"
        if grouped:
            yield "  }"
    for line in picture.lines:
        label = f"label={_dot_text(line.label)}" if line.label else ""
        looks = _joined(label, _STYLES[line.stroke], _TAKEN if line.taken else "")
        yield f"  {line.source} -> {line.target}" + (f" [{looks}]" if looks else "")
    yield "}"


def _end(box: _Box) -> str:
    return "peripheries=2" if box.is_end else ""


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _dot_text(*lines: str) -> str:
    spoken = (printable(" ".join(line.split())) for line in lines)
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in spoken)
    return '"' + "\\n".join(escaped) + '"'
