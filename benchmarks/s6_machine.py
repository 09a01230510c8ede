"""S6: one record through five states, each with a function that leaves a mark; no resources.

The unit is a plain loop over the same functions, so the ratio is what a machine costs. In the mode ``copy`` the unit
also makes its own deep copy of the record, as the machine does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from benchmarks.peers.steps import (
    ASTEPS,
    FLIGHT,
    NAMES,
    STEPS,
    Record,
    aplain_loop,
    aprocessing,
    plain_loop,
    processing,
)
from benchmarks.timing import Contender, Group
from wirestate import ResourceContainer, RunResult, SimpleFSM

PEERS = ("transitions", "apache-burr", "dataknobs-fsm", "python-statemachine", "langgraph")


def groups() -> list[Group]:
    return [*direct_groups(), *copy_groups()]


def direct_groups() -> list[Group]:
    from benchmarks.peers import machines as peers  # here: they are imported once all are known to be there

    process, aprocess = machine(STEPS, "direct").process, machine(ASTEPS, "direct").aprocess
    return [
        Group(
            "S6 sync, direct",
            plain_loop(),
            (
                Contender("wirestate", processing(process, data_of), "wirestate", 6),
                peers.transitions_sync(),
                peers.burr_sync(),
                peers.dataknobs_sync(),
                peers.statemachine_sync(),
                peers.langgraph_sync(),
            ),
        ),
        Group(
            "S6 async, direct",
            aplain_loop(),
            (
                Contender("wirestate", aprocessing(aprocess, data_of), "wirestate", 5),
                peers.transitions_async(),
                peers.burr_async(),
                peers.dataknobs_async(),
                peers.statemachine_async(),
                peers.langgraph_async(),
            ),
        ),
    ]


def copy_groups() -> list[Group]:
    copied, name = partial(copy.deepcopy, FLIGHT), "deepcopy and plain loop"
    process, aprocess = machine(STEPS, "copy").process, machine(ASTEPS, "copy").aprocess
    return [
        Group(
            "S6 sync, copy",
            plain_loop(copied, name),
            (Contender("wirestate", processing(process, data_of, lambda: FLIGHT), "wirestate", 1.5),),
        ),
        Group(
            "S6 async, copy",
            aplain_loop(copied, name),
            (Contender("wirestate", aprocessing(aprocess, data_of, lambda: FLIGHT), "wirestate", 1.5),),
        ),
    ]


def machine(
    steps: Mapping[str, Callable[..., Any]], mode: Literal["copy", "direct"], container: ResourceContainer | None = None
) -> SimpleFSM:
    """Return the machine of five states in a row."""
    states: dict[str, Any] = {name: {"transform": name} for name in NAMES}
    for before, after in pairwise(NAMES):
        states[before]["arcs"] = [{"target": after}]
    return SimpleFSM({"states": states}, container=container, functions=dict(steps), data_mode=mode)


def data_of(result: RunResult) -> Record:
    return dict(result.data)
