"""S1: open a, b(a) and c(b), call a function with the three, close them again.

The unit is an exit stack of the standard library. Ours in three rows: (e) the engine's own steps for one visit,
(r) a whole run of a machine that has that one state, (p) the public state scope around a function that the container
wired. Owners, leases and metrics are on in all three.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import Any

from dependency_injector.wiring import Provide, inject

from benchmarks.peers.visit import A, B, C, Record, aopen_a, aopen_b, aopen_c, open_a, open_b, open_c, outcome
from benchmarks.timing import Contender, Group, awaited
from wirestate import ResourceContainer, SimpleFSM, lifetimes, manager_of
from wirestate.machine.run import Run
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

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
                engine_steps(goal=0.75),
                whole_run(goal=1.1),
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
                aengine_steps(goal=0.8),
                awhole_run(goal=1.2),
                apublic_scope(goal=1.3),
                peers.dishka_async(),
                peers.wireup_async(),
                peers.svcs_async(),
                peers.closing_async(),
                peers.that_depends_async(),
            ),
        ),
    ]


# --- (e) the engine's own steps: what one run does for each of its visits --------------------


def engine_steps(goal: float) -> Contender:
    visits = visiting(Resources(), visit)
    return Contender("wirestate, engine's steps", lambda n: drive(visits(n, BLOCKING)), "wirestate", goal)


def aengine_steps(goal: float) -> Contender:
    visits = visiting(AResources(), avisit)
    return Contender("wirestate, engine's steps", awaited(lambda n: visits(n, SUSPENDING)), "wirestate", goal)


def visiting(container: ResourceContainer, function: Any) -> Callable[[int, World], Coroutine[Any, Any, object]]:
    """Return a run that visits its one state again and again, instead of ending after the first visit."""
    engine = machine(container, function)._engine

    async def visits(n: int, world: World) -> object:
        record: Record = {}
        run = Run(engine, 0, record, world)
        with engine.manager.scope() as run.scope:
            for _ in range(n):
                await engine._visit(run, engine.start)
        assert run.error is None, run.error
        return outcome(record)

    return visits


# --- (r) a whole run ------------------------------------------------------------------------


def machine(container: ResourceContainer, function: Any) -> SimpleFSM:
    states = [{"name": "s", "transform": "visit"}]
    return SimpleFSM({"states": states}, container=container, functions={"visit": function}, data_mode="direct")


def whole_run(goal: float) -> Contender:
    process = machine(Resources(), visit).process

    def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            process(record)
        return outcome(record)

    return Contender("wirestate, whole run", run, "wirestate", goal)


def awhole_run(goal: float) -> Contender:
    process = machine(AResources(), avisit).aprocess

    async def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            await process(record)
        return outcome(record)

    return Contender("wirestate, whole run", awaited(run), "wirestate", goal)


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
