"""Blocking resources in asynchronous runs: no event loop waits for them, and no run for a thread that it cannot get."""

from __future__ import annotations

import asyncio
import csv
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
from dependency_injector import providers
from dependency_injector.wiring import Provide, Provider, inject

from tests.asking import (
    FUNCTIONS,
    LOOP,
    PATIENCE,
    WAYS,
    Asking,
    Pooled,
    ask_the_loop,
    asking_call,
    container_with,
    served,
    steps,
)
from tests.databases import Database, Driver, look, opened
from tests.stores import Store, insert
from wirestate import (
    BuildError,
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    FunctionContext,
    HTTPResourceAdapter,
    PoolConfig,
    ResourceContainer,
    ResourceManager,
    ResourcePool,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import (
    BlockingWaitError,
    InvalidSettingError,
)

pytestmark = pytest.mark.usefixtures("invariant")


# --- the loop stays free ---------------------------------------------------------------------


@pytest.mark.parametrize("lifetime", [lifetimes.PerState, lifetimes.PerOwner, lifetimes.Singleton])
@pytest.mark.parametrize("way", WAYS)
def test_opening_using_and_ending_leave_the_loop_free(way: str, lifetime: Any) -> None:
    async def scenario() -> None:
        async with container_with(WAYS[way](lifetime)) as container:
            fsm = SimpleFSM(steps(transform="uses", end_test="is_ready"), container=container, functions=FUNCTIONS)
            result = await fsm.aprocess({})
            assert result.success, result.error
            assert result.data["thread"] != threading.get_ident()

    served(scenario)


@pytest.mark.parametrize(
    "work", [{"validators": ["is_ready"]}, {"timeout": 60}, {"retry": 2}, {"on_error": "e"}, {"resources": ["r"]}]
)
def test_the_loop_stays_free_whatever_else_a_state_has(work: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking)) as container:
            fsm = SimpleFSM(steps(transform="uses", **work), container=container, functions=FUNCTIONS)
            result = await fsm.aprocess({})
            assert result.path == ["s", "w", "e"]

    served(scenario)


def test_what_only_a_condition_needs_is_opened_in_a_thread() -> None:
    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking)) as container:
            fsm = SimpleFSM(steps(), container=container, functions=FUNCTIONS)
            assert (await fsm.aprocess({})).path == ["s", "w", "e"]

    served(scenario)


def test_a_catch_arc_opens_and_uses_what_blocks_in_a_thread() -> None:
    def fails(record: dict[str, Any]) -> None:
        raise ValueError("no")

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking)) as container:
            work = steps(transform="fails", on_error={"target": "e", "transform": "uses"})
            fsm = SimpleFSM(work, container=container, functions={**FUNCTIONS, "fails": fails})
            result = await fsm.aprocess({})
            assert result.path == ["s", "w", "e"]
            assert result.data["thread"] != threading.get_ident()

    served(scenario)


def test_an_asynchronous_function_stays_on_the_loop_and_plain_ones_beside_it_go_to_threads() -> None:
    @inject
    async def awaits(record: dict[str, Any], r: Any = Provide["r"]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {**record, "loop": threading.get_ident()}

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking)) as container:
            fsm = SimpleFSM(
                steps(transforms=["uses", "awaits"]), container=container, functions={**FUNCTIONS, "awaits": awaits}
            )
            result = await fsm.aprocess({})
            assert result.success, result.error
            assert result.data["loop"] == threading.get_ident() != result.data["thread"]

    served(scenario)


def test_what_must_be_awaited_beside_a_blocking_resource_is_awaited_on_the_loop() -> None:
    async def awaited() -> Any:
        yield asyncio.get_running_loop()

    @inject
    def both(record: dict[str, Any], r: Any = Provide["r"], other: Any = Provide["other"]) -> None:
        ask_the_loop()
        assert other is LOOP.get()

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(Asking), other=lifetimes.PerState(awaited)) as container:
            fsm = SimpleFSM(steps(transform="both"), container=container, functions={**FUNCTIONS, "both": both})
            result = await fsm.aprocess({})
            assert result.success, result.error

    served(scenario)


@pytest.mark.parametrize("lifetime", [lifetimes.PerState, lifetimes.PerOwner])
def test_what_is_built_on_a_blocking_resource_begins_and_ends_in_a_thread(lifetime: Any) -> None:
    def built_on(inner: Any) -> Iterator[Any]:
        ask_the_loop()
        yield inner
        ask_the_loop()

    async def awaits(record: dict[str, Any]) -> None:
        await asyncio.sleep(0)

    async def scenario() -> None:
        inner = lifetimes.Singleton(Asking)
        async with container_with(lifetime(built_on, inner), inner=inner) as container:
            for first in ("uses", "awaits"):
                work = steps(transforms=[first, "uses"])
                functions = {**FUNCTIONS, "awaits": awaits}
                result = await SimpleFSM(work, container=container, functions=functions).aprocess({})
                assert result.success, result.error

    served(scenario)


def test_an_override_by_what_blocks_is_opened_in_a_thread() -> None:
    async def scenario() -> None:
        async with container_with(lifetimes.PerState(list)) as container:

            @inject
            async def awaits(record: dict[str, Any], r: Any = Provide["r"]) -> None:
                await asyncio.sleep(0)

            functions = {**FUNCTIONS, "awaits": awaits}
            plain = SimpleFSM(steps(transform="uses"), container=container, functions=functions)
            mixed = SimpleFSM(steps(transform="awaits"), container=container, functions=functions)
            with container.r.override(lifetimes.PerState(Asking)):
                for fsm in (plain, mixed):
                    assert (await fsm.aprocess({})).success

    served(scenario)


@pytest.mark.parametrize("pool", [None, PoolConfig(max_size=1, validate_after=0)])
def test_owners_of_a_manager_leave_the_loop_free(pool: PoolConfig | None) -> None:
    async def scenario() -> None:
        async with ResourceManager() as manager:
            manager.register_provider("r", Asking() if pool is None else Pooled(), pool)
            await manager.aacquire("r", "job-1")
            await manager.arelease("r", "job-1")
            async with manager.resource_context("r", "job-2"):
                pass
            await manager.aacquire("r", "job-3")
            await manager.arelease_all("job-3")
            async with manager.scope("job-4") as scope, scope.state("s"):
                await scope.open("r")
            assert await manager.avalidate_resource("r")

    served(scenario)


def test_what_was_acquired_by_a_thread_is_released_by_a_task_without_stopping_the_loop() -> None:
    async def scenario() -> None:
        provider = Asking()
        async with ResourceManager() as manager:
            manager.register_provider("r", provider)
            await asyncio.to_thread(manager.acquire, "r", "job-1")
            await manager.arelease("r", "job-1")
            await asyncio.to_thread(manager.acquire, "r", "job-2")  # left to the close
        assert provider.verbs[:3] == ["acquire", "release", "acquire"]
        assert provider.verbs[3].startswith("release ResourceClosedError")

    served(scenario)


def test_a_pool_of_its_own_makes_checks_resets_and_destroys_in_threads() -> None:
    async def scenario() -> None:
        provider = Pooled()
        pool = ResourcePool(provider, PoolConfig(max_size=1, validate_after=0))
        async with await pool.aacquire():
            pass
        async with await pool.aacquire():
            pass
        await pool.aclose()
        assert provider.verbs == ["acquire", "reset", "validate", "reset", "release"]

    served(scenario)


# --- runs that wait for each other -----------------------------------------------------------


@inject
def adds_one(record: dict[str, Any], db: Any = Provide["db"]) -> None:
    db.query(record["sql"])
    ask_the_loop()  # until then the row is locked


def database_machine(**state: Any) -> dict[str, Any]:
    return {"states": {"w": {"transform": "adds_one", **state}}}


POSTGRESQL = Driver("postgresql+psycopg", "postgresql", False)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Database]:
    with opened(POSTGRESQL, tmp_path) as database:
        yield database


@pytest.mark.parametrize("lifetime", [lifetimes.PerState, lifetimes.PerOwner])
@pytest.mark.parametrize("max_size", [2, 8])
def test_runs_that_update_one_row_end_one_after_the_other(rows: Database, lifetime: Any, max_size: int) -> None:
    look(rows.url, f"INSERT INTO {rows.table} VALUES (0)")

    async def scenario() -> None:
        class App(ResourceContainer):
            db = lifetime(DatabaseResourceAdapter, url=rows.url, pool=PoolConfig(max_size=max_size))

        states = {"w": {"transform": "adds_one", "arcs": [{"target": "v"}]}, "v": {"transform": "adds_one"}}
        async with App() as app:
            fsm = SimpleFSM({"states": states}, container=app, functions={"adds_one": adds_one})
            record = {"sql": f"UPDATE {rows.table} SET n = n + 1"}
            results = await asyncio.gather(*(fsm.aprocess(record, timeout=PATIENCE) for _ in range(20)))
            assert [result.error for result in results] == [None] * 20

    served(scenario)
    assert rows.look("SELECT n FROM rows") == [(40,)]


def test_a_stream_into_sqlite_that_locks_at_once_loses_no_record(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["n"], *([n] for n in range(6))])
    store = Store(tmp_path)
    url = f"sqlite:///{store.path}"

    async def scenario() -> None:
        class App(ResourceContainer):
            db = lifetimes.PerState(DatabaseResourceAdapter, url=url, begin="IMMEDIATE")

        @inject
        def adds(record: dict[str, Any], db: Any = Provide["db"]) -> None:
            insert(db, record["n"])
            ask_the_loop()

        async with App() as app:
            machine = {"states": {"w": {"transform": "adds", "arcs": [{"target": "e"}]}, "e": {}}}
            summary = await SimpleFSM(machine, container=app, functions={"adds": adds}).aprocess_stream(str(source))
            assert (summary.successful, summary.failed) == (6, 0)

    served(scenario)
    assert sorted(store.items()) == list("012345")


def test_runs_in_line_for_a_pool_hold_no_thread_of_it() -> None:
    """Each run keeps its slot from its first state to its end, and needs a thread in the second."""

    async def scenario() -> None:
        async with container_with(lifetimes.PerOwner(Pooled, pool=PoolConfig(max_size=1))) as container:
            states = {
                "s": {"transform": "uses", "arcs": [{"target": "w"}]},
                "w": {"transform": "uses", "arcs": [{"target": "e"}]},
                "e": {},
            }
            fsm = SimpleFSM({"states": states}, container=container, functions=FUNCTIONS)
            results = await fsm.aprocess_batch([{} for _ in range(40)], max_workers=40)
            assert all(result.success for result in results)

    served(scenario)


def test_visits_that_need_two_pools_never_wait_for_each_other() -> None:
    """Each takes them in its own order, and has an asynchronous function besides."""

    @inject
    def first(record: dict[str, Any], a: Any = Provide["a"], b: Any = Provide["b"]) -> None:
        ask_the_loop()

    @inject
    def second(record: dict[str, Any], b: Any = Provide["b"], a: Any = Provide["a"]) -> None:
        ask_the_loop()

    async def awaits(record: dict[str, Any]) -> None:
        await asyncio.sleep(0)

    class Both(ResourceContainer):
        a = lifetimes.PerState(Pooled, pool=PoolConfig(max_size=1))
        b = lifetimes.PerState(Pooled, pool=PoolConfig(max_size=1))

    async def scenario() -> None:
        functions = {"first": first, "second": second, "awaits": awaits}
        async with Both() as both:
            machines = [
                SimpleFSM({"states": {"w": {"transforms": transforms}}}, container=both, functions=functions)
                for transforms in (["first", "awaits"], ["second", "awaits"], ["first"], ["second"])
            ]
            results = await asyncio.gather(*(fsm.aprocess({}) for fsm in machines for _ in range(5)))
            assert [result.error for result in results] == [None] * 20

    served(scenario)


def test_a_silent_server_leaves_the_loop_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        url = f"postgresql://u:p@127.0.0.1:{server.getsockname()[1]}/d"

        async def scenario() -> None:
            class App(ResourceContainer):
                db = lifetimes.PerState(DatabaseResourceAdapter, url=url, connect_timeout=2.0)

            async with App() as app:
                fsm = SimpleFSM(database_machine(), container=app, functions={"adds_one": adds_one})
                run = asyncio.create_task(fsm.aprocess({"sql": "SELECT 1"}))
                connection, _ = await asyncio.to_thread(server.accept)
                with connection:
                    await asyncio.sleep(0)
                    assert not run.done()
                    result = await run
                assert not result.success
                assert result.phase == "open"

        served(scenario)


# --- faults ----------------------------------------------------------------------------------


class Shop(ResourceContainer):
    db = lifetimes.PerState(DatabaseResourceAdapter, url="memory")
    repo = providers.Factory(dict, db=db)


@inject
async def takes_default(record: dict[str, Any], db: Any = Provide[Shop.db]) -> None: ...


async def takes_annotated(record: dict[str, Any], db: Annotated[Any, Provide["db"]]) -> None: ...


@inject
async def takes_behind(record: dict[str, Any], repo: Any = Provide["repo"]) -> None: ...


@pytest.mark.parametrize("function", [takes_default, takes_annotated, takes_behind, partial(takes_default)])
@pytest.mark.parametrize("role", ["transform", "validators", "condition"])
def test_an_asynchronous_function_with_a_synchronous_session_is_a_fault(function: Any, role: str) -> None:
    work = steps(transform="f") if role != "condition" else steps(arcs=[{"target": "e", "condition": "f"}, "e"])
    with pytest.raises(BuildError) as caught:
        SimpleFSM(work, container=Shop(), functions={"f": function, "is_ready": lambda record: True})
    fault = next(fault for fault in caught.value.faults if fault.code == "R006")
    assert "injects 'db', whose synchronous sessions stop the event loop" in fault.message
    assert "kind 'async_database'" in str(caught.value)
    assert "'sqlite+aiosqlite://'" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "driver"),
    [("postgresql://h/d", "postgresql+psycopg_async://"), ("mysql://h/d", "mysql+aiomysql://")],
)
def test_the_fault_names_the_url_with_the_asynchronous_driver(url: str, driver: str) -> None:
    functions = {"f": takes_annotated}
    with pytest.raises(BuildError, match=f"url that begins with '{driver.replace('+', '.')}'"):
        SimpleFSM({"states": {"w": {"transform": "f"}}}, resources={"db": {"url": url}}, functions=functions)


def test_an_asynchronous_function_that_is_handed_a_session_later_is_a_fault() -> None:
    @inject
    async def opens(record: dict[str, Any], db: Any = Provider["db"]) -> None: ...

    with pytest.raises(BuildError, match="injects 'db', whose synchronous sessions stop the event loop"):
        SimpleFSM({"states": {"w": {"transform": "f"}}}, container=Shop(), functions={"f": opens})


@pytest.mark.parametrize("way", ["resources", "role", "require"])
def test_an_asynchronous_function_gets_no_synchronous_session_from_its_context(way: str) -> None:
    async def takes(record: dict[str, Any], context: FunctionContext) -> None:
        await asyncio.sleep(0)
        if way == "require":
            context.require_resource("db")
        elif way == "role":
            context.resource_for_role("store")
        else:
            context.resources["db"]

    async def scenario() -> None:
        async with Shop() as shop:
            machine = {"states": {"w": {"transform": "takes", "resources": [{"name": "db", "role": "store"}]}}}
            fsm = SimpleFSM(machine, container=shop, functions={"takes": takes})
            with pytest.raises(BlockingWaitError, match=r"takes from its context 'db'.*kind 'async_database'"):
                await fsm.aprocess({})
            assert shop.manager.holders() == []

    served(scenario)


def test_an_override_by_a_synchronous_session_is_refused_to_an_asynchronous_function() -> None:
    class Plain(ResourceContainer):
        db = lifetimes.PerState(list)
        other = lifetimes.PerState(DatabaseResourceAdapter, url="memory")

    async def scenario() -> None:
        async with Plain() as container:
            machine = {"states": {"w": {"transform": "f"}}}
            fsm = SimpleFSM(machine, container=container, functions={"f": takes_annotated})
            assert (await fsm.aprocess({})).success
            with container.db.override(container.other):
                for _ in range(2):
                    with pytest.raises(BlockingWaitError, match=r"takes_annotated is asynchronous and injects '\w+'"):
                        await fsm.aprocess({})
            assert (await fsm.aprocess({})).success

    served(scenario)


def test_what_a_function_with_a_synchronous_session_gives_is_not_awaited() -> None:
    @inject
    def gives(record: dict[str, Any], db: Any = Provide["db"]) -> Any:
        return takes_annotated(record, db)

    async def scenario() -> None:
        async with Shop() as shop:
            fsm = SimpleFSM({"states": {"w": {"transform": "f"}}}, container=shop, functions={"f": gives})
            with pytest.raises(BlockingWaitError, match="gives gave something to be awaited and injects 'db'"):
                await fsm.aprocess({})

    served(scenario)


def test_an_asynchronous_function_may_have_an_engine_and_a_plain_one_a_session() -> None:
    class Engines(ResourceContainer):
        db = lifetimes.Singleton(DatabaseResourceAdapter, url="memory", resource="engine")

    with Engines() as container:
        SimpleFSM({"states": {"w": {"transform": "f"}}}, container=container, functions={"f": takes_annotated})


@pytest.mark.parametrize("declare", [lifetimes.Singleton, lifetimes.PerOwner, lifetimes.PerState])
def test_blocking_is_refused_where_it_says_nothing(declare: Any) -> None:
    async def awaits() -> Any:
        yield 1

    with pytest.raises(InvalidSettingError, match="True or False, not str"):
        declare(list, blocking="yes")
    container = container_with(declare(awaits, blocking=True))
    with pytest.raises(BuildError, match="'r': blocking= is for what waits in its thread, and awaits is async"):
        SimpleFSM({"states": {"w": {"transform": "uses"}}}, container=container, functions=FUNCTIONS)


def test_require_resource_does_not_stop_the_loop() -> None:
    def requires(record: dict[str, Any], context: FunctionContext) -> dict[str, Any]:
        return {"found": context.require_resource("r")}

    async def scenario() -> None:
        async with container_with(lifetimes.PerState(asking_call, blocking=True)) as container:
            functions = {**FUNCTIONS, "requires": requires}
            bare = SimpleFSM(steps(transform="requires", arcs=["e"]), container=container, functions=functions)
            with pytest.raises(BlockingWaitError, match=r"resources: \[r\].*offload: true"):
                await bare.aprocess({})
            for more in ({"resources": ["r"]}, {"offload": True}):
                work = steps(transform="requires", arcs=["e"], **more)
                fsm = SimpleFSM(work, container=container, functions=functions)
                assert (await fsm.aprocess({})).data == {"found": "resource"}

    served(scenario)


def test_adapters_say_whether_they_block(tmp_path: Path) -> None:
    files = partial(FileSystemResourceAdapter, "files")
    said = {
        DatabaseResourceAdapter("db", url="memory"): True,
        DatabaseResourceAdapter("db", url="sqlite+aiosqlite:///x.db"): False,
        HTTPResourceAdapter("api", base_url="http://127.0.0.1:1"): True,
        HTTPResourceAdapter("api", base_url="http://127.0.0.1:1", async_client=True): False,
        files(base_path=tmp_path): True,
        files(base_path=f"file://{tmp_path}"): True,
        files(base_path="memory://blocking"): False,
    }
    assert {adapter: adapter.blocking for adapter in said} == said


def test_a_copied_container_keeps_what_was_said_of_its_resources() -> None:
    class Parent(ResourceContainer):
        r = lifetimes.PerState(asking_call, blocking=True)

    assert Parent().r.blocking
