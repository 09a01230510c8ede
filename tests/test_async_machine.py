"""Machines with asynchronous functions and resources, beside the plain ones that run in both worlds."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.stores import Diary, Store, process, work_machine
from wirestate import PoolConfig, ResourceContainer, SimpleFSM, lifetimes
from wirestate.errors import (
    AsyncInSyncRunError,
    BlockingWaitError,
    RecordRejectedError,
    ReleaseFailedError,
    ResourceError,
    RunTimeoutError,
    StateTimeoutError,
)

Scenario = Callable[..., Coroutine[Any, Any, Any]]
AT_ONCE = {"attempts": 3, "wait_initial": 0, "wait_jitter": 0}


async def ainsert(db: Any, x: Any) -> None:
    await db.query("INSERT INTO item VALUES (:x)", x=x)


@inject
async def adds(record: dict[str, Any], db: Any = Provide["db"]) -> None:
    """Insert, then raise what the record says."""
    await ainsert(db, record["n"])
    if "raises" in record:
        raise record["raises"]


async def boom(record: Any) -> None:
    await asyncio.sleep(0)
    raise KeyError("boom")


def run(store: Store | None, work: dict[str, Any], record: Any, *, functions: dict[str, Any], **keys: Any) -> Any:
    """Run one record in an event loop, and close what it used there."""

    async def scenario() -> Any:
        container = None if store is None else store.container
        async with SimpleFSM(work_machine(work, **keys), container=container, functions=functions) as fsm:
            result = await fsm.aprocess(record)
            assert fsm.manager.owners == {}
            assert fsm.manager.holders() == []
        if store is not None:
            await store.container.manager.aclose()
        return result

    return asyncio.run(scenario())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, driver="sqlite+aiosqlite")


# --- functions -----------------------------------------------------------------------------------------------


def test_asynchronous_functions_may_stand_in_every_role() -> None:
    async def passes(record: Any) -> bool:
        await asyncio.sleep(0)
        return True

    async def more(record: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"n": record.get("n", 0) + 1}

    async def enough(record: dict[str, Any]) -> bool:
        await asyncio.sleep(0)
        return record["n"] >= 5

    work = {
        "pre_validators": ["passes"], "validators": ["passes"], "transforms": ["more", "plain"],
        "post_validators": ["passes"], "end_test": "enough",
        "arcs": [{"target": "w", "condition": "passes", "transform": "more"}, "e"],
    }  # fmt: skip
    functions = {"passes": passes, "more": more, "enough": enough, "plain": lambda record: None}
    result = run(None, work, {}, functions=functions)
    assert (result.success, result.data, result.path) == (True, {"n": 5}, ["s", "w", "w", "w"])


@pytest.mark.parametrize("mode", ["copy", "reference", "direct"])
def test_a_chain_of_asynchronous_states_treats_the_record_like_a_plain_one(mode: Any) -> None:
    async def changes(record: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        record["list"].append(1)

    async def replaces(record: dict[str, Any]) -> dict[str, Any]:
        return {"list": record["list"], "new": True}

    async def scenario() -> Any:
        functions = {"changes": changes, "replaces": replaces}
        with SimpleFSM(
            work_machine({"transforms": ["changes", "replaces"]}), functions=functions, data_mode=mode
        ) as fsm:
            return await fsm.aprocess(record)

    record: dict[str, Any] = {"list": []}
    result = asyncio.run(scenario())
    assert result.data == {"list": [1], "new": True}
    assert record == {"copy": {"list": []}, "reference": {"list": [1]}, "direct": result.data}[mode]


def test_plain_machines_run_in_both_worlds_with_equal_results(side: Side, tmp_path: Path) -> None:
    """Plain functions, plain resources, retries, catch arcs: what threads give, tasks give."""
    plain = Store(tmp_path)
    seen: list[str] = []

    @inject
    def plain_adds(record: Any, context: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        seen.append(context.owner_id)
        db.query("INSERT INTO item VALUES (:x)", x=context.attempt)
        if context.attempt < 2:
            raise OSError("not yet")
        return {"n": 1}

    machine = work_machine({"transform": "t", "retry": AT_ONCE, "timeout": 5, "on_error": "e"})
    with SimpleFSM(machine, container=plain.container, functions={"t": plain_adds}) as fsm:
        result = process(side, fsm, {}, owner_id="job", timeout=5)
    assert (result.path, result.data, result.outcome) == (["s", "w", "e"], {"n": 1}, "done")
    assert seen == ["job/w#1", "job/w#1.2"]
    assert plain.items() == [2]


# --- resources -------------------------------------------------------------------------------------------------


def test_the_work_of_a_visit_is_committed_when_it_is_left(store: Store) -> None:
    @inject
    async def sees(record: Any, db: Any = Provide["db"]) -> bool:
        return (await db.query("SELECT count(*) AS n FROM item"))[0]["n"] == 1

    work = {"transform": "adds", "arcs": [{"target": "e", "condition": "sees"}]}
    assert run(store, work, {"n": 1}, functions={"adds": adds, "sees": sees}).path == ["s", "w", "e"]
    assert store.items() == [1]


@pytest.mark.parametrize("where", ["transform", "condition", "arc", "post"])
def test_the_work_of_a_visit_that_fails_is_rolled_back(store: Store, where: str) -> None:
    work: dict[str, Any] = {"transform": "adds"}
    if where == "transform":
        work = {"transforms": ["adds", "boom"]}
    elif where == "post":
        work["post_validators"] = ["boom"]
    else:
        work["arcs"] = [{"target": "e", "condition" if where == "condition" else "transform": "boom"}]
    result = run(store, work, {"n": 1}, functions={"adds": adds, "boom": boom})
    assert (result.phase, type(result.error)) == ("validate" if where == "post" else where, KeyError)
    assert store.items() == []


def test_each_attempt_has_a_session_of_its_own(store: Store) -> None:
    @inject
    async def third_time(record: Any, context: Any, db: Any = Provide["db"]) -> None:
        await ainsert(db, context.owner_id.rpartition("/")[2])
        if context.attempt < 3:
            raise OSError("not yet")

    result = run(store, {"transform": "t", "retry": AT_ONCE}, {}, functions={"t": third_time})
    assert result.success
    assert store.items() == ["w#1.3"]


def test_a_catch_arc_may_work_with_an_asynchronous_resource(store: Store) -> None:
    @inject
    async def notes(record: Any, error: Exception, db: Any = Provide["db"]) -> None:
        await ainsert(db, type(error).__name__)

    work = {"transform": "adds", "on_error": {"target": "dead", "transform": "notes"}}
    record = {"n": 1, "raises": KeyError("x")}
    result = run(store, work, record, functions={"adds": adds, "notes": notes}, dead=None)
    assert (result.final_state, result.caught[0].kind) == ("dead", "error")
    assert store.items() == ["KeyError"]


def asynchronous(diary: Diary, name: str) -> Callable[[], AsyncIterator[str]]:
    async def made() -> AsyncIterator[str]:
        await asyncio.sleep(0)
        diary.lines.append(f"open {name}")
        try:
            yield name
        except BaseException as error:
            diary.lines.append(f"close {name}: {type(error).__name__}")
            raise
        await asyncio.sleep(0)
        diary.lines.append(f"close {name}")

    return made


def test_asynchronous_and_plain_resources_mix_and_close_in_reverse() -> None:
    diary = Diary()

    async def joined(a: str, b: str) -> str:
        return f"{a}+{b}"

    class Container(ResourceContainer):
        plain = lifetimes.PerState(diary.resource("plain"))
        late = lifetimes.PerState(asynchronous(diary, "late"))
        both = lifetimes.PerState(joined, plain, late)
        owned = lifetimes.PerOwner(asynchronous(diary, "owned"))
        context = lifetimes.PerState(asynccontextmanager(asynchronous(diary, "context")))

    @inject
    async def uses(record: Any, both: str = Provide["both"], owned: str = Provide["owned"]) -> dict[str, Any]:
        return {"got": (both, owned)}

    @inject
    def plainly(record: Any, context: Any, both: str = Provide["both"]) -> dict[str, Any]:
        return {**record, "also": both, "context": context.resources["context"]}

    async def scenario(record: Any, functions: dict[str, Any]) -> Any:
        async with Container() as container:
            machine = work_machine({"transforms": list(functions), "resources": ["context"]})
            with SimpleFSM(machine, container=container, functions=functions) as fsm:
                return await fsm.aprocess(record)

    result = asyncio.run(scenario({}, {"uses": uses, "plainly": plainly}))
    assert result.error is None
    assert result.data == {"got": ("plain+late", "owned"), "also": "plain+late", "context": "context"}
    assert diary.lines == [
        "open context", "open plain", "open late", "open owned", "close late", "close plain", "close context",
        "close owned",
    ]  # fmt: skip
    diary.lines.clear()
    result = asyncio.run(scenario({}, {"uses": uses, "boom": boom}))
    assert diary.lines[4:] == [f"close {name}: KeyError" for name in ("late", "plain", "context", "owned")]


def test_a_resource_that_cannot_be_had_fails_the_visit_before_its_function() -> None:
    called: list[int] = []
    diary = Diary()

    async def broken() -> AsyncIterator[int]:
        raise OSError("down")
        yield 1

    class Container(ResourceContainer):
        first = lifetimes.PerState(asynchronous(diary, "first"))
        second = lifetimes.PerState(broken)

    @inject
    async def uses(record: Any, a: Any = Provide["first"], b: Any = Provide["second"]) -> None:
        called.append(1)

    async def scenario() -> Any:
        async with Container() as container:
            with SimpleFSM(work_machine({"transform": "uses"}), container=container, functions={"uses": uses}) as fsm:
                return await fsm.aprocess({})

    result = asyncio.run(scenario())
    assert (result.phase, called) == ("open", [])
    assert isinstance(result.error, ResourceError)
    assert result.error.resource_name == "second"
    assert diary.lines == ["open first", "close first: ResourceUnavailableError"]


def test_a_release_that_fails_is_a_failure_of_the_visit() -> None:
    async def stubborn() -> AsyncIterator[int]:
        yield 1
        raise OSError("cannot close")

    class Container(ResourceContainer):
        r = lifetimes.PerState(stubborn)

    async def scenario() -> Any:
        async with Container() as container:
            machine = work_machine({"transform": "t", "resources": ["r"]})
            with SimpleFSM(machine, container=container, functions={"t": lambda record: None}) as fsm:
                return await fsm.aprocess({})

    result = asyncio.run(scenario())
    assert (result.phase, type(result.error), result.path) == ("release", ReleaseFailedError, ["s", "w"])


def test_an_asynchronous_resource_is_refused_by_threads_and_by_blocking_asks(store: Store) -> None:
    def asks(record: Any, context: Any) -> None:
        context.require_resource("db")

    async def scenario() -> Any:
        with (
            SimpleFSM(work_machine({"transform": "adds"}), container=store.container, functions={"adds": adds}) as fsm,
            pytest.raises(AsyncInSyncRunError, match=r"state 'w' \(function .*adds\), resource 'db'"),
        ):
            fsm.process({"n": 1})
        with SimpleFSM(work_machine({"transform": "asks"}), container=store.container, functions={"asks": asks}) as fsm:
            return await fsm.aprocess({})

    result = asyncio.run(scenario())
    assert (result.outcome, type(result.error).__name__) == ("failed", "AsyncResourceError")
    assert store.items() == []


def test_an_override_that_waits_is_refused_by_threads_at_its_opening(side: Side) -> None:
    diary = Diary()

    class Container(ResourceContainer):
        r = lifetimes.PerState(diary.resource("r"))

    @inject
    def uses(record: Any, r: Any = Provide["r"]) -> dict[str, Any]:
        return {"got": r}

    container = Container()
    with SimpleFSM(work_machine({"transform": "uses"}), container=container, functions={"uses": uses}) as fsm:
        with container.r.override(lifetimes.PerState(asynchronous(diary, "late"))):
            if side.is_async:
                assert process(side, fsm, {}).data == {"got": "late"}
            else:
                with pytest.raises(AsyncInSyncRunError, match="asynchronous"):
                    process(side, fsm, {})
            assert fsm.manager.owners == {}
        assert process(side, fsm, {}).data == {"got": "r"}


# --- time, cancellation, threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["run", "state"])
def test_time_that_is_over_interrupts_a_waiting_function(store: Store, limit: str) -> None:
    ended: list[str] = []

    @inject
    async def waits(record: Any, db: Any = Provide["db"]) -> None:
        await ainsert(db, 1)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("interrupted")
            raise

    keys = {"timeout": 0.5} if limit == "run" else {}
    work = {"transform": "waits", "on_timeout": "dead", **({"timeout": 0.5} if limit == "state" else {})}
    result = run(store, work, {}, functions={"waits": waits}, dead=None, **keys)
    assert ended == ["interrupted"]
    if limit == "run":
        assert (result.outcome, result.phase, type(result.error)) == ("failed", "limit", RunTimeoutError)
        assert result.path == ["s", "w"]
    else:
        assert (result.final_state, type(result.caught[0].error)) == ("dead", StateTimeoutError)
    assert store.items() == []


def test_leaving_a_state_is_not_part_of_its_time() -> None:
    async def slow_to_close() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0.1)

    async def scenario() -> Any:
        machine = work_machine({"transform": "t", "timeout": 0.03, "resources": ["r"]})
        async with SimpleFSM(
            machine, functions={"t": lambda record: None}, resources={"r": lifetimes.PerState(slow_to_close)}
        ) as fsm:
            return await fsm.aprocess({})

    assert asyncio.run(scenario()).success


def test_a_timeout_of_the_function_itself_is_its_own_error(store: Store) -> None:
    async def gives_up(record: Any) -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(30)

    result = run(None, {"transform": "gives_up", "timeout": 20}, {}, functions={"gives_up": gives_up}, timeout=20)
    assert type(result.error) is TimeoutError
    assert result.phase == "transform"


def test_a_restored_record_is_what_a_run_leaves_whose_time_is_over() -> None:
    async def waits(record: dict[str, Any]) -> None:
        record["changed"] = True
        await asyncio.sleep(30)

    async def scenario() -> Any:
        record = {"a": 1}
        machine = work_machine({"transform": "waits", "on_error": "e"})
        with SimpleFSM(machine, functions={"waits": waits}, data_mode="direct") as fsm:
            result = await fsm.aprocess(record, timeout=0.02)
        return record, result

    record, result = asyncio.run(scenario())
    assert type(result.error) is RunTimeoutError
    assert record == {"a": 1}
    assert result.data is record


@pytest.mark.parametrize("moment", ["opening", "calling", "closing"])
def test_a_task_cancelled_at_any_moment_leaves_nothing_open(moment: str) -> None:
    diary = Diary()

    async def scenario() -> None:
        begun = asyncio.Event()

        async def stop_here(here: str) -> None:
            if here == moment:
                begun.set()
                await asyncio.sleep(30)

        async def made() -> AsyncIterator[int]:
            await stop_here("opening")
            diary.lines.append("open")
            try:
                yield 1
                await stop_here("closing")
            finally:
                diary.lines.append("close")

        class Container(ResourceContainer):
            first = lifetimes.PerState(asynchronous(diary, "first"))
            second = lifetimes.PerState(made)

        @inject
        async def calls(record: Any, a: Any = Provide["first"], b: Any = Provide["second"]) -> None:
            await stop_here("calling")

        async with Container() as container:
            machine = work_machine({"transform": "calls", "retry": AT_ONCE, "on_error": "e"})
            with SimpleFSM(machine, container=container, functions={"calls": calls}) as fsm:
                task = asyncio.create_task(fsm.aprocess({}))
                await begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert fsm.manager.owners == {}
                assert fsm.manager.holders() == []

    asyncio.run(scenario())
    assert diary.lines[0] == "open first"
    assert diary.lines[-1].startswith("close first")
    assert diary.lines.count("open") == diary.lines.count("close")


def test_offloaded_functions_run_in_a_thread_with_the_context_of_the_run(side: Side) -> None:
    inherited: contextvars.ContextVar[str] = contextvars.ContextVar("inherited", default="nothing")
    here = threading.get_ident()
    threads: list[bool] = []

    @inject
    def works(record: Any, context: Any, r: Any = Provide["r"]) -> dict[str, Any]:
        threads.append(threading.get_ident() == here)
        return {"got": (r, inherited.get(), context.require_resource("other"))}

    inherited.set("something")
    machine = work_machine({"transforms": ["works", "plainly"], "offload": True})
    functions = {"works": works, "plainly": lambda record: threads.append(threading.get_ident() == here)}
    with SimpleFSM(machine, functions=functions, resources=Diary().per_state("r", "other")) as fsm:
        coroutine = side.call(fsm, "process", {})
        # A runner has a context of its own; this one is the caller's.
        result = asyncio.run(coroutine) if side.is_async else side.run(coroutine)
    assert result.data == {"got": ("r", "something", "other")}
    assert threads == [not side.is_async] * 2


def test_a_cancelled_task_waits_for_the_thread_that_works_with_its_resources() -> None:
    diary = Diary()
    may_end = threading.Event()

    async def scenario() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        @inject
        def works(record: Any, r: Any = Provide["r"]) -> None:
            loop.call_soon_threadsafe(begun.set)
            may_end.wait(5)
            diary.lines.append("work ends")

        machine = work_machine({"transform": "works", "offload": True})
        with SimpleFSM(machine, functions={"works": works}, resources=diary.per_state("r")) as fsm:
            task = asyncio.create_task(fsm.aprocess({}))
            await begun.wait()
            for _ in range(2):  # the second cancellation changes nothing
                task.cancel()
                await asyncio.sleep(0)
            assert not task.done()
            may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())
    assert diary.lines == ["open r", "work ends", "close r: CancelledError"]


def test_a_blocking_run_inside_an_event_loop_may_not_wait() -> None:
    class Container(ResourceContainer):
        r = lifetimes.PerState(_Tool, pool=PoolConfig(max_size=1))

    @inject
    def uses(record: Any, r: Any = Provide["r"]) -> None: ...

    async def scenario() -> None:
        machine = work_machine({"transform": "uses"})
        with Container() as container, SimpleFSM(machine, container=container, functions={"uses": uses}) as fsm:
            assert fsm.process({}).success  # nothing to wait for
            container.manager.acquire("r", "somebody else")
            with pytest.raises(BlockingWaitError, match="process -> aprocess"):
                fsm.process({})
            assert list(fsm.manager.owners) == ["somebody else"]
            container.manager.release("r", "somebody else")

    asyncio.run(scenario())


class _Tool:
    def acquire(self, **options: Any) -> object:
        return object()

    def release(self, resource: Any) -> None: ...


# --- many tasks -----------------------------------------------------------------------------------------------------


def test_tasks_that_run_at_once_have_sessions_of_their_own(store: Store) -> None:
    sessions: list[Any] = []

    @inject
    async def remembers(record: Any, db: Any = Provide["db"]) -> None:
        sessions.append(db)
        await asyncio.sleep(0.001)
        await db.query("SELECT 1 AS one")

    async def scenario() -> Any:
        machine = work_machine({"transform": "remembers", "arcs": [{"target": "w", "when": "visit < data.n"}, "e"]})
        async with SimpleFSM(machine, container=store.container, functions={"remembers": remembers}) as fsm:
            results = await fsm.aprocess_batch([{"n": n % 4} for n in range(30)], max_workers=8)
        await store.container.manager.aclose()
        return results

    results = asyncio.run(scenario())
    assert all(result.success for result in results)
    assert len({id(session) for session in sessions}) == len(sessions) == sum(max(1, n % 4) for n in range(30))
    assert len({result.owner_id for result in results}) == 30


def test_a_refused_record_opens_nothing(store: Store) -> None:
    async def no(record: Any) -> bool:
        return False

    work = {"validators": ["no"], "transform": "adds"}
    result = run(store, work, {"n": 1}, functions={"no": no, "adds": adds})
    assert (result.outcome, type(result.error)) == ("rejected", RecordRejectedError)
    assert store.items() == []
