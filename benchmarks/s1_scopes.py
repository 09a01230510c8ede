"""S1: open a, b(a) and c(b), call a function with the three, close them again.

The unit is an exit stack of the standard library.
Ours in three rows: (e) a visit as one of a hundred in a run, which leaves the engine's own steps for it; (r) a whole
run of a machine that has that one state; (p) the public state scope around a function that the container wired.
Owners, leases and metrics are on in all three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from dependency_injector.wiring import Provide, inject

from benchmarks.peers.visit import A, B, C, Record, aopen_a, aopen_b, aopen_c, open_a, open_b, open_c, outcome
from benchmarks.timing import Contender, Group, awaited
from wirestate import ResourceContainer, SimpleFSM, lifetimes, manager_of

PEERS = ("dishka", "wireup", "svcs", "dependency-injector", "that-depends")


class Resources(ResourceContainer):
    a = lifetimes.PerState(open_a)
    b = lifetimes.PerState(open_b, a)
    c = lifetimes.PerState(open_c, b)


class AResources(ResourceContainer):
    a = lifetimes.PerState(aopen_a)
    b = lifetimes.PerState(aopen_b, a)
    c = lifetimes.PerState(aopen_c, b)


@inject
def visit(
    record: Record, a: A = Provide[Resources.a], b: B = Provide[Resources.b], c: C = Provide[Resources.c]
) -> None:
    record["seen"] = a, b, c


@inject
async def avisit(
    record: Record, a: A = Provide[AResources.a], b: B = Provide[AResources.b], c: C = Provide[AResources.c]
) -> None:
    record["seen"] = a, b, c


def groups() -> list[Group]:
    from benchmarks.peers import scopes as peers  # here: they are imported once all are known to be there

    return [
        Group(
            "S1 sync",
            peers.exit_stack(),
            (
                run_of(100, "wirestate, visit", goal=0.75),
                run_of(1, "wirestate, whole run", goal=1.1),
                public_scope(goal=1.3),
                peers.dishka_sync(),
                peers.wireup_sync(),
                peers.svcs_sync(),
                peers.closing_sync(),
                peers.that_depends_sync(),
            ),
        ),
        Group(
            "S1 async",
            peers.async_exit_stack(),
            (
                arun_of(100, "wirestate, visit", goal=0.8),
                arun_of(1, "wirestate, whole run", goal=1.2),
                apublic_scope(goal=1.3),
                peers.dishka_async(),
                peers.wireup_async(),
                peers.svcs_async(),
                peers.closing_async(),
                peers.that_depends_async(),
            ),
        ),
    ]


# --- (e) a visit of many, (r) a whole run ---------------------------------------------------


def machine(container: ResourceContainer, function: Callable[..., Any], visits: int = 1) -> SimpleFSM:
    """Return the machine of so many states in a row that all do the same."""
    states: dict[str, Any] = {f"s{number}": {"transform": "visit"} for number in range(visits)}
    for before, after in pairwise(states):
        states[before]["arcs"] = [{"target": after}]
    return SimpleFSM({"states": states}, container=container, functions={"visit": function}, data_mode="direct")


def run_of(visits: int, name: str, goal: float) -> Contender:
    process = machine(Resources(), visit, visits).process

    def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            process(record)
        return outcome(record)

    return Contender(name, run, "wirestate", goal, visits)


def arun_of(visits: int, name: str, goal: float) -> Contender:
    process = machine(AResources(), avisit, visits).aprocess

    async def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            await process(record)
        return outcome(record)

    return Contender(name, awaited(run), "wirestate", goal, visits)


# --- (p) the public scope -------------------------------------------------------------------


def public_scope(goal: float) -> Contender:
    container = Resources()
    container.wire(modules=[sys.modules[__name__]])
    manager = manager_of(container)

    def run(n: int) -> object:
        record: Record = {}
        with manager.scope() as scope:
            for _ in range(n):
                with scope.state("s"):
                    visit(record)
        return outcome(record)

    return Contender("wirestate, public scope", run, "wirestate", goal)


def apublic_scope(goal: float) -> Contender:
    container = AResources()
    container.wire(modules=[sys.modules[__name__]])
    manager = manager_of(container)

    async def run(n: int) -> object:
        record: Record = {}
        async with manager.scope() as scope:
            for _ in range(n):
                async with scope.state("s") as state:
                    await state.open(avisit)
                    await avisit(record)
        return outcome(record)

    return Contender("wirestate, public scope", awaited(run), "wirestate", goal)
