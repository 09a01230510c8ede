"""Where a network starts and ends, and what its graph must not do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from wirestate.errors import listed, nearest
from wirestate.machine.definition import NOWHERE, Arc, Network, Place, State, Values
from wirestate.machine.faults import (
    DEAD_END,
    END_GOES_ON,
    INFERRED_START,
    NEVER_TAKEN,
    NO_WAY_OUT,
    START_CONTRADICTED,
    UNKNOWN_STATE,
    UNREACHABLE,
    UNUSED_NETWORK,
    UNUSED_RESOURCE,
    WRONG_VALUE,
    Report,
    did_you_mean,
)

Edges = Mapping[str, set[str]]


@dataclass(frozen=True, slots=True)
class Draft:
    """A network as it was written, before its start and ends are settled.

    ``stray`` are arcs that leave a state which does not exist; ``never_ends`` are states that say
    ``is_end: false``.
    """

    name: str
    states: Mapping[str, State]
    initial: str | None = None
    initial_place: Place = NOWHERE
    never_ends: frozenset[str] = frozenset()
    stray: tuple[Arc, ...] = ()
    resources: tuple[str, ...] = ()
    resources_place: Place = NOWHERE
    metadata: Values = field(default_factory=dict)
    place: Place = NOWHERE
    is_main: bool = False

    @property
    def what(self) -> str:
        """How a message calls this network."""
        return f"network {self.name!r}"

    @property
    def arcs(self) -> Iterator[Arc]:
        """All arcs, stray ones last."""
        for state in self.states.values():
            yield from (*state.arcs, *state.catch_arcs)
        yield from self.stray


def settled(draft: Draft, report: Report) -> Network:
    """Infer start and ends, check the graph, and return the network."""
    states = _with_ends(draft)
    start = _start(draft, states, report)
    if start in states and not any(state.is_start for state in states.values()):
        states[start] = replace(states[start], is_start=True)
    edges = _edges(draft, report)
    for state in states.values():
        _check_state(draft, state, report)
        _check_end_keys(state, report)
        _note_never_taken(draft, state, report)
    if edges is not None and start in states:
        _check_ways(draft, states, edges, report)
    _note_unused(draft, report)
    return Network(draft.name, states, start, draft.resources, draft.metadata, draft.place)


def _with_ends(draft: Draft) -> dict[str, State]:
    if any(state.is_end for state in draft.states.values()):
        return dict(draft.states)
    return {
        name: replace(state, is_end=not state.arcs and state.end_test is None and name not in draft.never_ends)
        for name, state in draft.states.items()
    }


def _start(draft: Draft, states: Mapping[str, State], report: Report) -> str:
    flagged = [name for name, state in states.items() if state.is_start]
    if draft.initial is not None:
        if draft.initial not in states:
            message = f"{draft.what}: 'initial_state' {draft.initial!r} is no state"
            report.fault(UNKNOWN_STATE, message, draft.initial_place, did_you_mean(nearest(draft.initial, states)))
            return flagged[0] if flagged else ""
        if flagged and draft.initial not in flagged:
            message = f"{draft.what}: 'initial_state' is {draft.initial!r}, but 'is_start' is {listed(flagged)}"
            report.fault(START_CONTRADICTED, message, draft.initial_place, "Keep one of them.")
        return draft.initial
    if flagged or not states:
        return flagged[0] if flagged else ""
    entered = {arc.target for arc in draft.arcs if arc.target != arc.source}
    sources = [name for name in states if name not in entered]
    if len(sources) == 1:
        return sources[0]
    chosen = "start" if "start" in states else next(iter(states))
    if len(states) > 1:
        candidates = listed(sources or states)
        message = f"{draft.what}: no state says 'is_start', and {candidates} could be it; {chosen!r} was taken"
        report.note(INFERRED_START, message, states[chosen].place, "Say 'initial_state' or 'is_start: true'.")
    return chosen


def _edges(draft: Draft, report: Report) -> Edges | None:
    """Return where each state leads to, or None if an unknown name leaves that open.

    A misspelt name leads to what was probably meant, so that one slip is one fault.
    """
    known, open_ends = draft.states, False
    found: dict[str, set[str]] = {name: set() for name in known}
    for arc in draft.arcs:
        ends: list[str] = []
        for end, what in (
            (arc.source, f"{draft.what}: an arc leaves {arc.source!r}"),
            (arc.target, f"state {arc.source!r}: an arc leads to {arc.target!r}"),
        ):
            if end is None or end in known:
                ends.append(end or arc.source)
                continue
            near = nearest(end, known)
            message = f"{what}, which is no state"
            report.fault(UNKNOWN_STATE, message, arc.place, did_you_mean(near), f"States: {listed(known)}")
            open_ends = open_ends or near is None
            ends.append(near or arc.source)
        found.setdefault(ends[0], set()).add(ends[1])
    return None if open_ends else found


def _check_state(draft: Draft, state: State, report: Report) -> None:
    what = f"state {state.name!r}"
    if state.is_end and state.arcs:
        message = f"{what} is an end, but an arc leads on to {state.arcs[0].target!r}"
        report.fault(END_GOES_ON, message, state.place, "Take 'is_end' or the arc away; catch arcs may stay.")
    if state.is_end and state.end_test is not None:
        report.fault(END_GOES_ON, f"{what} is an end always, so its 'end_test' says nothing", state.place)
    # An arc that leaves a misspelt state may be the missing one, and has its own fault.
    if not (state.is_end or state.arcs or state.end_test is not None or draft.stray):
        message = f"{what} is no end, and no arc leaves it"
        report.fault(DEAD_END, message, state.place, "Give it an arc, an 'end_test' or 'is_end: true'.")


def _check_end_keys(state: State, report: Report) -> None:
    if state.is_end or state.end_test is not None:
        return
    for key, said in (("outcome", state.outcome != "success"), ("emit_output", not state.emit_output)):
        if said:
            message = f"state {state.name!r}: {key!r} belongs to ends, and this state is none"
            report.fault(WRONG_VALUE, message, state.place)


def _check_ways(draft: Draft, states: Mapping[str, State], edges: Edges, report: Report) -> None:
    starts = [name for name, state in states.items() if state.is_start]
    reached = _reached(starts, edges)
    backwards: dict[str, set[str]] = {name: set() for name in states}
    for source, targets in edges.items():
        for target in targets:
            backwards[target].add(source)
    ends = [name for name, state in states.items() if state.is_end or state.end_test is not None]
    finishing = _reached(ends, backwards)
    for name, state in states.items():
        if name not in reached:
            report.fault(UNREACHABLE, f"state {name!r} is never reached from {listed(starts)}", state.place)
        # A state that no arc leaves has its own fault.
        elif name not in finishing and state.arcs:
            message = f"from state {name!r} no end can be reached"
            report.fault(NO_WAY_OUT, message, state.place, f"Ends: {listed(ends)}")


def _reached(begin: Collection[str], edges: Edges) -> set[str]:
    found, waiting = set(begin), list(begin)
    while waiting:
        new = edges[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _note_never_taken(draft: Draft, state: State, report: Report) -> None:
    ordered = sorted(state.arcs, key=lambda arc: -arc.priority)
    always = next((index for index, arc in enumerate(ordered) if arc.condition is None), len(ordered))
    for arc in ordered[always + 1 :]:
        message = f"{draft.what}: arc {arc.label!r} is never taken: {ordered[always].label!r} before it always is"
        report.note(NEVER_TAKEN, message, arc.place, "Give the first one a condition or a lower priority.")


def _note_unused(draft: Draft, report: Report) -> None:
    if not draft.is_main:
        report.note(UNUSED_NETWORK, f"{draft.what} is never run", draft.place)
    used = {use.name for state in draft.states.values() for use in state.resources}
    used |= {use.name for arc in draft.arcs for use in arc.resources}
    for name in draft.resources:
        if name not in used:
            message = f"{draft.what}: no state uses resource {name!r}"
            report.note(UNUSED_RESOURCE, message, draft.resources_place)
