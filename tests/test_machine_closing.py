"""A machine that is closed while it works: what is under way is rolled back, and nothing further begins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.stores import Store, insert, process
from wirestate import RunResult, SimpleFSM, lifetimes
from wirestate.errors import AsyncResourceError, MachineClosedError, ResourceClosedError

PATIENCE = 20.0
WAYS: list[dict[str, Any]] = [{}, {"timeout": 60}]  # the unrolled visit, and the full one
RETRY = {"attempts": 3, "wait_initial": 0, "wait_jitter": 0}
# How a batch or stream runs: its verb and options, and how many may have been read or begun when it is closed.
SEVERAL: dict[str, tuple[str, dict[str, Any], int]] = {
    "inline": ("process", {}, 0),
    "threads": ("process", {"workers": 4}, 8),
    "tasks": ("aprocess", {"workers": 4}, 8),
}
several = pytest.mark.parametrize("several", SEVERAL)


class Halt:
    """A function that stands still in its run until the test has closed the machine."""

    def __init__(self, side: Side) -> None:
        self._side = side
        kind: Any = asyncio.Event if side.is_async else threading.Event
        self.reached, self.go_on = kind(), kind()

    @property
    def function(self) -> Callable[..., Any]:
        def wait(record: Any) -> None:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)

        async def await_(record: Any) -> None:
            self.reached.set()
            await asyncio.wait_for(self.go_on.wait(), PATIENCE)

        return await_ if self._side.is_async else wait

    def during(self, run: Callable[[], Any], close: Callable[[], Any]) -> RunResult:
        """*close* while *run* stands still in another thread or task; return what *run* returned."""
        if self._side.is_async:
            return self._side.run(self._during(run, close))  # type: ignore[no-any-return]  # of any scenario
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(run)
            assert self.reached.wait(PATIENCE)
            try:
                close()
            finally:
                self.go_on.set()
            return first.result(PATIENCE)  # type: ignore[no-any-return]  # as above

    async def _during(self, run: Callable[[], Any], close: Callable[[], Any]) -> Any:
        first = asyncio.create_task(run())
        await asyncio.wait_for(self.reached.wait(), PATIENCE)
        try:
            await close()
        finally:
            self.go_on.set()
        return await first


def verb(side: Side, fsm: SimpleFSM, name: str) -> Callable[..., Any]:
    return getattr(fsm, f"a{name}" if side.is_async else name)  # type: ignore[no-any-return]  # a method


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@inject
def work(record: Any, db: Any = Provide["db"]) -> None:
    insert(db, record["n"])


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_under_way_is_rolled_back_and_begins_no_further_state(
    side: Side, store: Store, way: dict[str, Any]
) -> None:
    halt, begun = Halt(side), []
    states = {
        "first": {"transform": "work", "arcs": ["second"], **way},
        "second": {"transforms": ["work", "wait"], "arcs": ["third"], **way},
        "third": {"transforms": ["begin", "work"], **way},
    }
    functions = {"work": work, "wait": halt.function, "begin": begun.append}
    fsm = SimpleFSM({"states": states}, container=store.container, functions=functions)
    result = halt.during(lambda: verb(side, fsm, "process")({"n": 1}), verb(side, fsm, "close"))
    assert (result.outcome, result.path, begun) == ("failed", ["first", "second"], [])
    assert isinstance(result.error, ResourceClosedError)
    assert store.items() == [1]  # of the first state, which was left before
    assert store.held == []


def test_the_runs_of_other_machines_on_the_same_container_go_on(side: Side, store: Store) -> None:
    halt = Halt(side)
    closing = SimpleFSM({"states": {"s": {"transform": "work"}}}, container=store.container, functions={"work": work})
    states = {"s": {"transforms": ["work", "wait"], "arcs": ["e"]}, "e": {"transform": "work"}}
    other = SimpleFSM({"states": states}, container=store.container, functions={"work": work, "wait": halt.function})
    assert halt.during(lambda: verb(side, other, "process")({"n": 1}), verb(side, closing, "close")).success
    assert store.items() == [1, 1]
    with pytest.raises(MachineClosedError):
        process(side, closing, {"n": 2})


class Plain(containers.DeclarativeContainer):
    value = providers.Object("value")


@pytest.mark.parametrize("container", [None, Plain])
@pytest.mark.parametrize("way", WAYS)
def test_a_state_without_resources_does_not_begin_either(side: Side, way: dict[str, Any], container: Any) -> None:
    halt, begun = Halt(side), []
    states = {"s": {"transform": "wait", "arcs": ["e"]}, "e": {"transform": "begin", **way}}
    functions = {"wait": halt.function, "begin": begun.append}
    fsm = SimpleFSM({"states": states}, container=container and container(), functions=functions)
    result = halt.during(lambda: verb(side, fsm, "process")({}), verb(side, fsm, "close"))
    assert (result.outcome, result.path, begun) == ("failed", ["s"], [])
    with pytest.raises(MachineClosedError, match="state 'e' did not begin"):
        result.raise_error()


@pytest.mark.parametrize("more", [{"retry": RETRY}, {"on_error": "e"}])
def test_no_attempt_and_no_catch_arc_follows_a_close(side: Side, more: dict[str, Any]) -> None:
    halt, calls = Halt(side), []

    def fails(record: Any) -> None:
        calls.append("fails")
        raise ValueError("mine")

    states = {"s": {"transforms": ["wait", "fails"], "arcs": ["e"], **more}, "e": {"transform": "begin"}}
    functions = {"wait": halt.function, "fails": fails, "begin": lambda record: calls.append("begin")}
    fsm = SimpleFSM({"states": states}, functions=functions)
    result = halt.during(lambda: verb(side, fsm, "process")({}), verb(side, fsm, "close"))
    assert (str(result.error), calls) == ("mine", ["fails"])


def test_an_attempt_that_waited_while_the_machine_was_closed_does_not_begin(side: Side) -> None:
    calls = []

    class Closes:
        def __deepcopy__(self, memo: Any) -> Closes:
            if calls:  # between two attempts, when the record is brought back to what it was
                fsm.close()
            return self

    def fails(record: Any) -> None:
        calls.append("fails")
        raise ValueError("mine")

    fsm = SimpleFSM({"states": {"s": {"transform": "fails", "retry": RETRY}}}, functions={"fails": fails})
    result = process(side, fsm, {"closes": Closes()})
    assert (type(result.error), calls) == (ResourceClosedError, ["fails"])


def closing_at(place: int, begun: list[int], closers: list[Callable[[], Any]], *, is_async: bool) -> Any:
    """Return a function that closes its machine at record *place*."""

    def act(record: Any) -> None:
        begun.append(record["n"])
        if record["n"] == place:
            closers[0]()

    async def aact(record: Any) -> None:
        begun.append(record["n"])
        if record["n"] == place:
            await closers[0]()

    return aact if is_async else act


def ran(verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what *verb* or its asynchronous twin gives."""
    made = verb(*args, **options)
    return asyncio.run(made) if asyncio.iscoroutine(made) else made


@several
@pytest.mark.parametrize("container", [None, Plain])
def test_records_of_a_batch_that_have_not_begun_fail(several: str, container: Any) -> None:
    name, options, ahead = SEVERAL[several]
    is_async = name == "aprocess"
    begun: list[int] = []
    closers: list[Any] = []
    functions = {"act": closing_at(3, begun, closers, is_async=is_async)}
    fsm = SimpleFSM({"states": {"s": {"transform": "act"}}}, container=container and container(), functions=functions)
    closers.append(fsm.aclose if is_async else fsm.close)
    records = [{"n": n} for n in range(50)]
    results = ran(getattr(fsm, f"{name}_batch"), records, max_workers=options.get("workers"))
    assert [result.data["n"] for result in results] == list(range(50))
    assert set(range(4)) <= set(begun)
    assert len(begun) <= 4 + ahead
    for result in results:
        if result.data["n"] not in begun:
            assert (result.outcome, type(result.error), result.path) == ("failed", MachineClosedError, [])


@several
@pytest.mark.parametrize("by", ["function", "source"])
@pytest.mark.parametrize("container", [None, Plain])
def test_a_stream_ends_with_its_summary_and_loses_no_record(several: str, container: Any, by: str) -> None:
    name, options, ahead = SEVERAL[several]
    is_async = name == "aprocess"
    begun: list[int] = []
    read: list[int] = []
    closers: list[Any] = []
    done: list[Any] = []
    rejects: list[Any] = []
    functions = {"act": closing_at(3 if by == "function" else -1, begun, closers, is_async=is_async)}
    fsm = SimpleFSM({"states": {"s": {"transform": "act"}}}, container=container and container(), functions=functions)
    closers.append(fsm.aclose if is_async else fsm.close)

    def source() -> Iterator[Any]:
        for n in range(1000):
            if by == "source" and n == 3:
                fsm.close()
            read.append(n)
            yield {"n": n}

    with pytest.raises(MachineClosedError) as caught:
        ran(getattr(fsm, f"{name}_stream"), source(), done.append, rejects=rejects.append, **options)
    summary: Any = caught.value.summary
    assert summary.stopped
    assert len(begun) <= 4 + ahead
    assert summary.total_processed == len(read) == len(done) + len(rejects)  # nothing that was read is lost
    assert sorted([one["n"] for one in done] + [one["record"]["n"] for one in rejects]) == read


@several
def test_a_container_that_is_closed_ends_a_stream_and_a_batch_alike(several: str) -> None:
    name, options, _ = SEVERAL[several]
    begun: list[int] = []

    def made() -> SimpleFSM:
        container = containers.DynamicContainer()
        container.held = lifetimes.PerOwner(list)

        def shut_down() -> None:  # elsewhere: a run may not shut down what it is in
            with ThreadPoolExecutor(1) as pool:
                pool.submit(container.shutdown_resources).result(PATIENCE)

        functions = {"act": closing_at(3, begun, [shut_down], is_async=False)}
        return SimpleFSM({"states": {"s": {"transform": "act"}}}, container=container, functions=functions)

    records = [{"n": n} for n in range(50)]
    fsm = made()
    batch = ran(getattr(fsm, f"{name}_batch"), records, max_workers=options.get("workers"))
    assert isinstance(batch[-1].error, MachineClosedError)
    fsm = made()
    with pytest.raises(MachineClosedError) as caught:
        ran(getattr(fsm, f"{name}_stream"), records, **options)
    assert caught.value.summary is not None


def test_a_batch_whose_function_uses_another_closed_machine_is_told_so() -> None:
    other = SimpleFSM({"states": {"s": None}})
    other.close()
    with (
        SimpleFSM({"states": {"s": {"transform": "act"}}}, functions={"act": other.process}) as fsm,
        pytest.raises(MachineClosedError),
    ):
        fsm.process_batch([{}])


def test_a_close_that_is_refused_closes_nothing() -> None:
    async def opened() -> Any:
        yield "opened"

    async def scenario() -> RunResult:
        halt = asyncio.Event()
        reached = asyncio.Event()

        @inject
        async def use(record: Any, own: Any = Provide["own"]) -> None:
            reached.set()
            await halt.wait()

        container = containers.DynamicContainer()
        container.own = lifetimes.PerState(opened)
        states = {"s": {"transform": "use", "arcs": ["e"]}, "e": None}
        fsm = SimpleFSM({"states": states}, container=container, functions={"use": use})
        running = asyncio.create_task(fsm.aprocess({}))
        await reached.wait()
        with pytest.raises(AsyncResourceError, match="aclose"):
            fsm.close()
        halt.set()
        result = await running
        await fsm.aclose()
        return result

    assert asyncio.run(scenario()).success
