"""Visits that work in a thread: their time, their slots, and what they have in common with visits on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from tests.asking import FUNCTIONS, NOTE, PATIENCE, WAYS, Asking, Pooled, container_with, served, steps
from tests.stores import Store, insert
from wirestate import (
    FunctionContext,
    PoolConfig,
    ResourceManager,
    ResourcePool,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import (
    PoolTimeoutError,
    RecordRejectedError,
    RunTimeoutError,
    StateTimeoutError,
)

pytestmark = pytest.mark.usefixtures("invariant")


# --- time and cancellation -------------------------------------------------------------------


class Held:
    """A function that waits in its thread until the test lets it go."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.let_go = threading.Event()

    def function(self) -> Callable[..., Any]:
        @inject
        def holds(record: dict[str, Any], db: Any = Provide["db"]) -> None:
            insert(db, 1)
            self.inside.set()
            assert self.let_go.wait(PATIENCE)

        return holds


def test_a_cancelled_run_waits_for_its_thread_and_rolls_back(tmp_path: Path) -> None:
    store, held = Store(tmp_path), Held()

    async def scenario() -> None:
        functions = {"holds": held.function(), "uses": lambda record: pytest.fail("the visit goes on")}
        machine = {"states": {"w": {"transforms": ["holds", "uses"]}}}
        fsm = SimpleFSM(machine, container=store.container, functions=functions)
        run = asyncio.create_task(fsm.aprocess({}))
        await asyncio.to_thread(held.inside.wait, PATIENCE)
        run.cancel()
        await asyncio.sleep(0)
        run.cancel()
        await asyncio.sleep(0)
        assert not run.done()
        held.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert store.held == []

    served(scenario)
    assert store.items() == []


@pytest.mark.parametrize("state", [{}, {"timeout": 0.05}])
def test_a_visit_in_a_thread_that_is_late_is_rolled_back(tmp_path: Path, state: dict[str, Any]) -> None:
    store, held = Store(tmp_path), Held()

    async def scenario() -> None:
        machine = {"states": {"w": {"transform": "holds", **state}}}
        fsm = SimpleFSM(machine, container=store.container, functions={"holds": held.function()})
        run = asyncio.create_task(fsm.aprocess({}, timeout=None if state else 0.05))
        await asyncio.to_thread(held.inside.wait, PATIENCE)
        await asyncio.sleep(0.1)
        held.let_go.set()
        result = await run
        assert isinstance(result.error, StateTimeoutError if state else RunTimeoutError)
        assert store.held == []

    served(scenario)
    assert store.items() == []


@pytest.mark.parametrize("cancelled", [True, False])
def test_who_is_cancelled_or_late_in_line_has_opened_nothing(cancelled: bool) -> None:
    async def scenario() -> None:
        pool = PoolConfig(max_size=1)
        async with container_with(lifetimes.PerState(Pooled, pool=pool)) as container:
            fsm = SimpleFSM(steps(transform="uses"), container=container, functions=FUNCTIONS)
            await container.manager.aacquire("r", "other")
            run = asyncio.create_task(fsm.aprocess({}, timeout=None if cancelled else 0.05))
            while not container.manager.get_metrics("r")["r_pool"].waiting:
                await asyncio.sleep(0)
            if cancelled:
                run.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await run
            else:
                assert isinstance((await run).error, RunTimeoutError)
            assert not container.manager.get_metrics("r")["r_pool"].waiting
            await container.manager.arelease("r", "other")
            assert (await fsm.aprocess({})).success

    served(scenario)


def test_a_resource_that_was_made_for_a_cancelled_task_is_given_back() -> None:
    inside, let_go = threading.Event(), threading.Event()

    class Slow(Asking):
        def acquire(self, **kwargs: Any) -> Any:
            inside.set()
            assert let_go.wait(PATIENCE)
            return super().acquire()

    async def scenario() -> None:
        provider = Slow()
        async with ResourceManager() as manager:
            manager.register_provider("r", provider)
            task = asyncio.create_task(manager.aacquire("r", "job"))
            await asyncio.to_thread(inside.wait, PATIENCE)
            task.cancel()
            let_go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert provider.verbs == ["acquire", "release CancelledError"]
            assert manager.holders() == []

    served(scenario)


@pytest.mark.parametrize("verb", ["acquire", "release"])
def test_a_task_cancelled_before_its_thread_begins_keeps_no_place(verb: str) -> None:
    async def scenario() -> None:
        provider = Pooled()
        pool = ResourcePool(provider, PoolConfig(max_size=1, validate_after=0, acquire_timeout=PATIENCE / 4))
        for _ in range(5):
            lease = await pool.aacquire()
            if verb == "acquire":  # the next one checks it in a thread
                await lease.arelease()
                task = asyncio.create_task(pool.aacquire())
            else:  # which resets it in a thread
                task = asyncio.create_task(lease.arelease())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with await pool.aacquire():
                pass
        await pool.aclose()
        assert provider.verbs.count("acquire") == provider.verbs.count("release")

    served(scenario)


# --- slots -----------------------------------------------------------------------------------


def refuses(record: dict[str, Any]) -> bool:
    return False


def test_a_slot_that_a_visit_does_not_use_is_given_back() -> None:
    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Pooled, pool=PoolConfig(max_size=1))) as container:
            work = steps(validators=["refuses"], transform="uses")
            fsm = SimpleFSM(work, container=container, functions={**FUNCTIONS, "refuses": refuses})
            for _ in range(3):
                assert isinstance((await fsm.aprocess({})).error, RecordRejectedError)
            snapshot = container.manager.get_metrics("r")["r_pool"]
            assert (snapshot.size, snapshot.available) == (0, 0)
            await container.manager.aacquire("r", "other", timeout=0)
            await container.manager.arelease("r", "other")

    served(scenario)


def test_a_record_that_is_refused_before_it_needs_a_pool_does_not_fail_for_it() -> None:
    async def scenario() -> None:
        pool = PoolConfig(max_size=1, acquire_timeout=0.01)
        async with container_with(lifetimes.PerState(Pooled, pool=pool)) as container:
            fsm = SimpleFSM(
                steps(validators=["refuses"], transform="uses"),
                container=container,
                functions={**FUNCTIONS, "refuses": refuses},
            )
            eager = SimpleFSM(steps(transform="uses"), container=container, functions=FUNCTIONS)
            await container.manager.aacquire("r", "other")
            assert (await fsm.aprocess({})).outcome == "rejected"
            failed = await eager.aprocess({})
            assert isinstance(failed.error, PoolTimeoutError)
            assert failed.phase == "open"
            await container.manager.arelease("r", "other")

    served(scenario)


def test_an_optional_resource_that_cannot_be_had_is_none() -> None:
    def looks(record: dict[str, Any], context: FunctionContext) -> dict[str, Any]:
        return {"found": context.resources["r"]}

    async def scenario() -> None:
        pool = PoolConfig(max_size=1, acquire_timeout=0.01)
        async with container_with(lifetimes.PerState(Pooled, pool=pool)) as container:
            work = steps(transform="looks", resources=[{"name": "r", "required": False}], arcs=["e"])
            fsm = SimpleFSM(work, container=container, functions={**FUNCTIONS, "looks": looks})
            await container.manager.aacquire("r", "other")
            assert (await fsm.aprocess({})).data == {"found": None}
            await container.manager.arelease("r", "other")

    served(scenario)


# --- as if it were inline --------------------------------------------------------------------


def test_a_plain_function_that_gives_an_awaitable_is_awaited_on_the_loop() -> None:
    async def later(record: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {**record, "loop": threading.get_ident()}

    @inject
    def gives(record: dict[str, Any], r: Any = Provide["r"]) -> Any:
        return later(record)

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking)) as container:
            fsm = SimpleFSM(
                steps(transforms=["gives", "uses"]), container=container, functions={**FUNCTIONS, "gives": gives}
            )
            result = await fsm.aprocess({})
            assert result.success, result.error
            assert result.data["loop"] == threading.get_ident()

    served(scenario)


@pytest.mark.parametrize("work", [{}, {"offload": True}])
def test_context_variables_that_a_function_sets_reach_the_next_state(work: dict[str, Any]) -> None:
    @inject
    def sets(record: dict[str, Any], r: Any = Provide["r"]) -> None:
        NOTE.set("set in a thread")

    def gets(record: dict[str, Any]) -> dict[str, Any]:
        return {"note": NOTE.get()}

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking)) as container:
            states = {"w": {"transform": "sets", "arcs": [{"target": "e"}], **work}, "e": {"transform": "gets"}}
            fsm = SimpleFSM({"states": states}, container=container, functions={"sets": sets, "gets": gets})
            assert (await fsm.aprocess({})).data == {"note": "set in a thread"}

    served(scenario)


def test_functions_of_one_visit_share_its_session_and_its_transaction(tmp_path: Path) -> None:
    store = Store(tmp_path)
    seen: list[tuple[int, Any]] = []

    @inject
    def adds(record: dict[str, Any], db: Any = Provide["db"]) -> None:
        seen.append((threading.get_ident(), db))
        insert(db, 1)

    @inject
    def counts(record: dict[str, Any], db: Any = Provide["db"]) -> bool:
        seen.append((threading.get_ident(), db))
        return bool(db.query("SELECT count(*) AS n FROM item")[0]["n"] == 1)

    async def scenario() -> None:
        machine = steps(transform="adds", arcs=[{"target": "e", "condition": "counts"}])
        fsm = SimpleFSM(machine, container=store.container, functions={"adds": adds, "counts": counts})
        result = await fsm.aprocess({})
        assert result.success, result.error

    served(scenario)
    assert len(set(seen)) == 1
    assert seen[0][0] != threading.get_ident()
    assert store.items() == [1]


def test_offload_false_keeps_the_functions_of_a_state_on_the_loop() -> None:
    @inject
    def stays(record: dict[str, Any], r: Any = Provide["r"]) -> dict[str, Any]:
        return {"thread": threading.get_ident()}

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking)) as container:
            work = steps(transform="stays", arcs=["e"], offload=False)
            fsm = SimpleFSM(work, container=container, functions={"stays": stays})
            assert (await fsm.aprocess({})).data == {"thread": threading.get_ident()}

    served(scenario)


def test_what_does_not_block_stays_on_the_loop() -> None:
    @inject
    def stays(record: dict[str, Any], r: Any = Provide["r"]) -> dict[str, Any]:
        return {"thread": threading.get_ident()}

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(list)) as container:
            fsm = SimpleFSM(steps(transform="stays", arcs=["e"]), container=container, functions={"stays": stays})
            assert (await fsm.aprocess({})).data == {"thread": threading.get_ident()}

    served(scenario)


def test_a_synchronous_run_makes_no_thread(tmp_path: Path) -> None:
    store = Store(tmp_path)

    @inject
    def stays(record: dict[str, Any], db: Any = Provide["db"]) -> dict[str, Any]:
        insert(db, 1)
        return {"thread": threading.get_ident()}

    machine = {"states": {"w": {"transform": "stays"}}}
    with SimpleFSM(machine, container=store.container, functions={"stays": stays}) as fsm:
        assert fsm.process({}).data == {"thread": threading.get_ident()}
    assert not wirestate_threads()


def wirestate_threads() -> list[str]:
    begins = ("wirestate-r_", "wirestate-calls", "wirestate-visits")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(begins)]


@pytest.mark.parametrize("way", WAYS)
def test_the_threads_end_with_the_container(way: str) -> None:
    async def scenario() -> None:
        async with container_with(WAYS[way](lifetimes.PerState)) as container:
            fsm = SimpleFSM(steps(transform="uses"), container=container, functions=FUNCTIONS)
            await fsm.aprocess({})
            assert wirestate_threads()
        assert not wirestate_threads()

    served(scenario)


def test_what_a_function_raises_in_a_thread_is_raised_as_it_is() -> None:
    errors = {"plain": ValueError("as it is"), "stop": StopIteration(), "interrupt": KeyboardInterrupt()}

    @inject
    def raises(record: dict[str, Any], r: Any = Provide["r"]) -> None:
        raise errors[record["error"]]

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking)) as container:
            fsm = SimpleFSM(steps(transform="raises"), container=container, functions={**FUNCTIONS, "raises": raises})
            for kind in ("plain", "stop"):
                assert (await fsm.aprocess({"error": kind})).error is errors[kind]
            with pytest.raises(KeyboardInterrupt):
                await fsm.aprocess({"error": "interrupt"})
            assert container.manager.holders() == []

    served(scenario)
