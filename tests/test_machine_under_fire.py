"""Machines under fire: many runs at once, resources that cannot be had, time that is over, fakes, clean-ups."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.crews import Maker, Resource, maker_for
from tests.invariant import Invariant
from tests.stores import Store, insert
from wirestate import (
    BaseResourceProvider,
    PoolConfig,
    ResourceContainer,
    ResourceManager,
    RunResult,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import (
    PoolTimeoutError,
    RecordRejectedError,
    ResourceUnavailableError,
    RunTimeoutError,
    UnknownResourceError,
)
from wirestate.testing import override


@pytest.fixture
def maker(side: Side, invariant: Invariant) -> Maker:
    return invariant.watch(maker_for(side.world))  # type: ignore[no-any-return]  # watch() gives back what it got


def process(side: Side, fsm: SimpleFSM, record: Mapping[str, Any], **options: Any) -> RunResult:
    return side.run(side.call(fsm, "process", record, **options))  # type: ignore[no-any-return]


def shut(side: Side, thing: SimpleFSM | ResourceManager) -> None:
    """Close in the loop that the resources belong to."""
    side.run(side.call(thing, "close"))


# --- many runs at once -------------------------------------------------------------------------------------

RUNS = 30


def all_at_once(side: Side, fsm: SimpleFSM, records: list[dict[str, Any]], way: str) -> list[RunResult]:
    """Run *records* at once in one world: by ``process``, by batch or by stream."""

    async def gathered() -> list[RunResult]:
        return list(await asyncio.gather(*map(fsm.aprocess, records)))

    if way == "process" and not side.is_async:
        with ThreadPoolExecutor(RUNS) as pool:
            return list(pool.map(fsm.process, records))
    if way == "process":
        return side.run(gathered())  # type: ignore[no-any-return]
    if way == "batch":
        return side.run(side.call(fsm, "process_batch", records, max_workers=8))  # type: ignore[no-any-return]
    results: list[RunResult] = []
    side.run(
        side.call(
            fsm, "process_stream", records, lambda record, result: results.append(result), workers=8, ordered=False
        )
    )
    return sorted(results, key=lambda result: result.data["id"])


@pytest.mark.parametrize("way", ["process", "batch", "stream"])
@pytest.mark.parametrize("pool", [None, PoolConfig(max_size=3)])
def test_thirty_runs_at_once_have_thirty_owners_and_see_no_resource_after_its_release(
    side: Side, invariant: Invariant, maker: Maker, way: str, pool: PoolConfig | None
) -> None:
    class C(ResourceContainer):
        tool = lifetimes.PerState(maker, pool=pool)
        desk = lifetimes.PerOwner(maker)

    desks: dict[str, set[Resource]] = {}
    lock = threading.Lock()

    def check(context: Any, tool: Resource, desk: Resource) -> None:
        assert tool in maker.live
        assert desk in maker.live
        assert fsm.manager.get_resource("tool", context.owner_id) is tool
        with lock:
            desks.setdefault(context.run_id, set()).add(desk)

    def begin(tool: Resource) -> None:
        with lock:
            tool.users += 1
            assert tool.users == 1, "one resource has two owners"

    def end(record: dict[str, Any], tool: Resource) -> dict[str, Any]:
        with lock:
            tool.users -= 1
        return {**record, "left": record["left"] - 1}

    @inject
    def work(
        record: dict[str, Any], context: Any, tool: Any = Provide["tool"], desk: Any = Provide["desk"]
    ) -> dict[str, Any]:
        check(context, tool, desk)
        begin(tool)
        time.sleep(0.0002)
        check(context, tool, desk)
        return end(record, tool)

    @inject
    async def awork(
        record: dict[str, Any], context: Any, tool: Any = Provide["tool"], desk: Any = Provide["desk"]
    ) -> dict[str, Any]:
        check(context, tool, desk)
        begin(tool)
        await asyncio.sleep(0)
        check(context, tool, desk)
        return end(record, tool)

    arcs = [{"target": "loop", "condition": "data.left > 0"}, {"target": "done"}]
    machine = {"states": {"loop": {"transform": "work", "arcs": arcs}, "done": None}}
    container = C()
    fsm = SimpleFSM(machine, container=container, functions={"work": awork if side.is_async else work})
    invariant.watch(fsm.manager)
    records = [{"id": number, "left": 1 + number % 7} for number in range(RUNS)]
    results = all_at_once(side, fsm, records, way)
    assert [result.error for result in results] == [None] * RUNS
    assert [len(result.path) - 1 for result in results] == [record["left"] for record in records]
    assert len({result.owner_id for result in results}) == len(desks) == RUNS
    assert all(len(had) == 1 for had in desks.values()), "one desk for a run"
    assert len(set.union(*desks.values())) == RUNS, "and for no other"
    shut(side, container.manager)


# --- what cannot be had ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [lifetimes.Singleton, lifetimes.PerOwner, lifetimes.PerState])
@pytest.mark.parametrize("case", list(itertools.product(["injected", "declared", "by both"], ["fails", "exhausted"])))
def test_a_function_whose_resource_cannot_be_had_never_runs_and_the_result_says_why(
    side: Side, invariant: Invariant, maker: Maker, level: type[lifetimes.LifetimeProvider], case: tuple[str, str]
) -> None:
    way, reason = case
    before = invariant.watch(maker_for(side.world))
    pool = None if reason == "fails" else PoolConfig(max_size=1, acquire_timeout=0.02)

    class C(ResourceContainer):
        before_it = lifetimes.PerState(before)
        tool = level(maker, pool=pool)

    called: list[str] = []

    @inject
    def work(record: Any, before_it: Any = Provide["before_it"], tool: Any = Provide["tool"]) -> None:
        called.append("work")

    def plain(record: Any) -> None:
        called.append("work")

    state: dict[str, Any] = {"transform": "work"}
    if way != "injected":
        state["resources"] = ["before_it", "tool"]
    container = C()
    function = plain if way == "declared" else work
    fsm = SimpleFSM({"states": {"s": state}}, container=container, functions={"work": function})
    invariant.watch(fsm.manager)
    if reason == "fails":
        maker.failing = OSError("no route to host")
    else:
        pool_of_it = container.tool.compiled().recipe.lender
        taken = side.run(side.call(pool_of_it, "acquire", owner="somebody else"))
    result = process(side, fsm, {"id": 1})
    assert called == []
    assert (result.success, result.state, result.phase) == (False, "s", "open")
    error = result.error
    assert isinstance(error, ResourceUnavailableError if reason == "fails" else PoolTimeoutError)
    assert error.resource_name == "tool"
    assert "'tool'" in str(error)
    words = "no route to host" if reason == "fails" else "somebody else"
    assert words in str(error)
    assert not before.live, "what was open already is released"
    maker.failing = None
    if reason == "exhausted":
        side.run(side.call(taken, "release"))
    assert process(side, fsm, {"id": 2}).success
    assert called == ["work"]
    shut(side, container.manager)


# --- time that is over -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [lifetimes.PerOwner, lifetimes.PerState])
@pytest.mark.parametrize("way", ["working", "waiting", "between"])
def test_resources_are_free_when_a_call_returns_whose_time_is_over(
    side: Side, maker: Maker, invariant: Invariant, level: type[lifetimes.LifetimeProvider], way: str
) -> None:
    class C(ResourceContainer):
        tool = level(maker, pool=PoolConfig(max_size=1))
        other = lifetimes.PerState(maker, pool=PoolConfig(max_size=1))

    container = C()

    @inject
    def work(record: Any, context: Any, tool: Any = Provide["tool"]) -> None:
        fsm.manager.acquire("tool", context.owner_id) if not side.is_async else None
        if way != "waiting":
            time.sleep(0.06)

    @inject
    async def awork(record: Any, context: Any, tool: Any = Provide["tool"]) -> None:
        await fsm.manager.aacquire("tool", context.owner_id)
        if way != "waiting":
            await asyncio.sleep(0.06 if way == "between" else 30)

    @inject
    def never(record: Any, other: Any = Provide["other"]) -> None:
        raise AssertionError("called")

    functions = {"work": awork if side.is_async else work, "never": never}
    states = {"s": {"transform": "work", "arcs": [{"target": "e"}]}, "e": {"transform": "never"}}
    fsm = SimpleFSM({"states": states}, container=container, functions=functions)
    manager = invariant.watch(fsm.manager)
    side.run(side.call(manager, "acquire", "other", "somebody else"))
    result = process(side, fsm, {}, timeout=0.05)
    assert isinstance(result.error, RunTimeoutError)
    assert [holder.owner_id for holder in manager.holders()] == ["somebody else"]
    assert list(manager.owners) + list(manager._loans) == ["somebody else"]
    pool = manager.get_metrics("tool_pool")["tool_pool"]
    assert (pool.used, pool.waiting) == (0, 0)
    assert manager.get_metrics("other_pool")["other_pool"].waiting == 0
    shut(side, manager)


# --- fakes -------------------------------------------------------------------------------------------------


class Tool(BaseResourceProvider):
    """Lends what says which one it is."""

    def __init__(self, name: str = "tool", *, text: str = "real") -> None:
        super().__init__(name)
        self.text = text
        self.lent: list[list[str]] = []

    def acquire(self, **options: Any) -> list[str]:
        self.lent.append([self.text])
        return self.lent[-1]

    def release(self, resource: Any) -> None:
        self.lent.remove(resource)


@inject
def use(record: Any, tool: Any = Provide["tool"]) -> dict[str, Any]:
    return {"tool": tool[0]}


def machine_of(kind: str, folder: Path, functions: Mapping[str, Callable[..., Any]]) -> SimpleFSM:
    """Build a machine whose resource comes from a configuration, a container or the constructor."""
    states = "states:\n  s: {transform: use}\n"
    if kind == "configuration":
        path = folder / "machine.yaml"
        path.write_text(f"{states}resources:\n  tool: {{class: '{__name__}:Tool', lifetime: per_state}}\n")
        return SimpleFSM(path, functions=functions)
    if kind == "constructor":
        return SimpleFSM({"states": {"s": {"transform": "use"}}}, resources={"tool": Tool()}, functions=functions)

    class C(ResourceContainer):
        tool = lifetimes.PerState(Tool)

    return SimpleFSM({"states": {"s": {"transform": "use"}}}, container=C(), functions=functions)


KINDS = ["configuration", "constructor", "container"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", ["object", "provider", "lifetime"])
def test_a_double_stands_in_for_a_resource_of_any_machine_and_the_real_one_comes_back(
    side: Side, tmp_path: Path, invariant: Invariant, kind: str, double: str
) -> None:
    provider = Tool(text="double")
    doubles: dict[str, Any] = {
        "object": ["double"],
        "provider": provider,
        "lifetime": lifetimes.PerState(Tool, text="double"),
    }
    fsm = machine_of(kind, tmp_path, {"use": use})
    invariant.watch(fsm.manager)
    for _ in range(2):
        assert process(side, fsm, {}).data == {"tool": "real"}
        with override(fsm, tool=doubles[double]):
            assert process(side, fsm, {}).data == {"tool": "double"}
        with pytest.raises(ZeroDivisionError), override(fsm, tool=doubles[double]):
            raise ZeroDivisionError
    assert process(side, fsm, {}).data == {"tool": "real"}
    assert provider.lent == []
    with pytest.raises(UnknownResourceError, match="did you mean 'tool'"), override(fsm, tol=[]):
        pass
    fsm.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_double_that_comes_while_a_lease_is_out_changes_nothing_of_it(
    tmp_path: Path, invariant: Invariant, kind: str
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    @inject
    def use(record: Any, tool: Any = Provide["tool"]) -> dict[str, Any]:
        before = tool[0]
        if record.get("slow"):
            reached.set()
            assert go_on.wait(20)
        return {"tool": tool[0], "before": before}

    fsm = machine_of(kind, tmp_path, {"use": use})
    invariant.watch(fsm.manager)
    double = Tool(text="double")
    results: list[RunResult] = []
    slow = threading.Thread(target=lambda: results.append(fsm.process({"slow": True})))
    with override(fsm, tool=["first double"]):
        assert fsm.process({}).data["tool"] == "first double"
    slow.start()
    assert reached.wait(20)
    with override(fsm, tool=double):
        assert fsm.process({}).data["tool"] == "double"
        assert double.lent == []
        holders = fsm.manager.holders()
        assert [holder.resource for holder in holders] == ["tool"], "the real one is out still"
        go_on.set()
        slow.join(20)
        assert fsm.manager.holders() == [], "and was released as what it is"
    assert results[0].data == {"tool": "real", "before": "real"}
    assert fsm.process({}).data["tool"] == "real"
    fsm.close()


# --- clean-ups ---------------------------------------------------------------------------------------------


class Stop(BaseException):
    """An interrupt that asyncio lets pass as it is."""


class Ledger:
    """Generator resources of either world that commit or roll back, one inside the other."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def resource(self, name: str, raising: BaseException | None = None) -> Callable[..., Iterator[str]]:
        def made(*needs: Any) -> Iterator[str]:
            try:
                yield name
            except BaseException as error:
                self.lines.append(f"{name}: {type(error).__name__}")
                raise
            self.lines.append(f"{name}: commit")
            if raising is not None:
                raise raising

        return made

    def waiting(self, name: str, raising: BaseException | None = None) -> Callable[..., AsyncIterator[str]]:
        async def made(*needs: Any) -> AsyncIterator[str]:
            try:
                yield name
            except BaseException as error:
                await asyncio.sleep(0)
                self.lines.append(f"{name}: {type(error).__name__}")
                raise
            await asyncio.sleep(0)
            self.lines.append(f"{name}: commit")
            if raising is not None:
                raise raising

        return made


FAILURES: dict[str, tuple[str, type[BaseException]]] = {
    "function": ("ValueError", ValueError),
    "condition": ("ValueError", ValueError),
    "arc": ("ValueError", ValueError),
    "reject": ("RecordRejectedError", RecordRejectedError),
    "interrupt": ("Stop", Stop),
    "late": ("RunTimeoutError", RunTimeoutError),
    "clean-up": ("OSError", OSError),
}


@pytest.mark.parametrize("where", FAILURES)
def test_clean_ups_see_what_failed_and_nothing_is_committed_after_it(
    side: Side, invariant: Invariant, where: str
) -> None:
    ledger = Ledger()
    made: Any = ledger.waiting if side.is_async else ledger.resource
    clean_up = OSError("disk full") if where == "clean-up" else None

    class C(ResourceContainer):
        run = lifetimes.PerOwner(made("run"))
        outer = lifetimes.PerState(made("outer"), run)
        inner = lifetimes.PerState(made("inner", clean_up), outer)

    def fail(record: Any) -> Any:
        raise ValueError("body")

    @inject
    def work(record: Any, inner: Any = Provide["inner"], outer: Any = Provide["outer"]) -> None:
        if where == "function":
            fail(record)
        if where == "reject":
            raise RecordRejectedError("no")
        if where == "interrupt":
            raise Stop
        if where == "late":
            time.sleep(0.06)

    @inject
    async def awork(record: Any, inner: Any = Provide["inner"], outer: Any = Provide["outer"]) -> None:
        if where == "late":
            await asyncio.sleep(30)
        work(record, inner=inner, outer=outer)

    arc: dict[str, Any] = {"target": "e"}
    if where == "condition":
        arc["condition"] = {"type": "registered", "name": "fail"}
    if where == "arc":
        arc["transform"] = "fail"
    machine = {"states": {"s": {"transform": "work", "arcs": [arc]}, "e": None}}
    container = C()
    functions = {"work": awork if side.is_async else work, "fail": fail}
    fsm = SimpleFSM(machine, container=container, functions=functions)
    manager = invariant.watch(fsm.manager)
    timeout = 0.05 if where == "late" else None
    name, kind = FAILURES[where]
    if where == "interrupt":
        with pytest.raises(Stop):
            process(side, fsm, {}, timeout=timeout)
    else:
        result = process(side, fsm, {}, timeout=timeout)
        assert not result.success
        if where != "clean-up":
            assert isinstance(result.error, kind)
    if where == "clean-up":
        assert ledger.lines[0] == "inner: commit", "it failed after that"
        assert ledger.lines[1] == "outer: OSError"
        assert "commit" not in ledger.lines[2]
    elif where == "late" and side.is_async:
        assert [line.split(":")[0] for line in ledger.lines] == ["inner", "outer", "run"]
        assert not any("commit" in line for line in ledger.lines)
    else:
        assert ledger.lines == [f"inner: {name}", f"outer: {name}", f"run: {name}"]
    shut(side, manager)


def test_a_commit_never_follows_a_failure_in_a_real_database(side: Side, tmp_path: Path, invariant: Invariant) -> None:
    store = Store(tmp_path, driver="sqlite+aiosqlite" if side.is_async else "sqlite")

    @inject
    def work(record: dict[str, Any], db: Any = Provide["db"]) -> None:
        insert(db, record["id"])
        if record["id"] % 3 == 0:
            raise ValueError("body")

    @inject
    async def awork(record: dict[str, Any], db: Any = Provide["db"]) -> None:
        await db.query("INSERT INTO item VALUES (:x)", x=record["id"])
        if record["id"] % 3 == 0:
            raise ValueError("body")

    functions = {"work": awork if side.is_async else work}
    fsm = SimpleFSM({"states": {"s": {"transform": "work"}}}, container=store.container, functions=functions)
    invariant.watch(fsm.manager)
    results = [process(side, fsm, {"id": number}) for number in range(9)]
    assert [result.success for result in results] == [number % 3 != 0 for number in range(9)]
    assert store.items() == [number for number in range(9) if number % 3]
    shut(side, fsm.manager)
