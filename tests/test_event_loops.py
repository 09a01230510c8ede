"""What is bound to an event loop: an engine without waiting, and the word that is said for a loop that is gone."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.crews import Crew
from tests.databases import ASYNC, Driver, named, opened
from tests.http_services import running
from wirestate import (
    BaseResourceProvider,
    DatabaseResourceAdapter,
    HTTPResourceAdapter,
    PoolConfig,
    ResourceContainer,
    ResourceManager,
    ResourcePool,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import AsyncResourceError
from wirestate.waiting import BLOCKING, drive

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # Python's word for sockets of a closed loop
    pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=ASYNC, ids=named)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    driver: Driver = request.param
    with opened(driver, tmp_path) as database:
        yield database.url
    gc.collect()


def container_of(url: str, **settings: Any) -> Any:
    class C(ResourceContainer):
        engine = lifetimes.Singleton(DatabaseResourceAdapter, url=url, resource="engine", **settings)

    return C()


async def ask(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        return (await connection.execute(text("SELECT 1"))).scalar()


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """Return which resources were said to be cut off from their loop, and how many connections each had."""
    pattern = re.compile(r"resource '(\w+)': (\d+) of its \w+ belong to an event loop that is closed")
    found = (pattern.match(record.message) for record in caplog.records if record.levelno == logging.WARNING)
    return [(match[1], int(match[2])) for match in found if match is not None]


# --- an engine is handed out at once -------------------------------------------------------------------


def test_an_asynchronous_engine_is_handed_out_at_once_in_a_loop_and_outside(url: str) -> None:
    container = container_of(url)
    assert container.init_resources() is None, "nothing has to be awaited"
    engine = container.engine()
    assert isinstance(engine, AsyncEngine)

    async def scenario() -> None:
        assert container.engine() is engine
        assert container.manager.acquire("engine", "me") is engine
        container.manager.release("engine", "me")
        assert await ask(engine) == 1
        assert container.manager.get_metrics("engine")["engine"].active_connections == 1
        await container.shutdown_resources()

    asyncio.run(scenario())


def test_an_asynchronous_engine_serves_functions_of_both_kinds(url: str) -> None:
    def plain(record: Any, engine: Any = Provide["engine"]) -> dict[str, Any]:
        return {"plain": type(engine).__name__}

    async def waiting(record: Any, engine: Any = Provide["engine"]) -> dict[str, Any]:
        return {**record, "waiting": await ask(engine)}

    with container_of(url) as container:
        machine = {"states": {"s": {"transform": "work"}}}
        with SimpleFSM(machine, container=container, functions={"work": plain}) as fsm:
            assert fsm.process({}).data == {"plain": "AsyncEngine"}

    async def scenario() -> Any:
        async with container_of(url) as container:
            machine = {"states": {"s": {"transform": ["plain", "waiting"]}}}
            functions = {"plain": plain, "waiting": waiting}
            async with SimpleFSM(machine, container=container, functions=functions) as fsm:
                return (await fsm.aprocess({})).data

    assert asyncio.run(scenario()) == {"plain": "AsyncEngine", "waiting": 1}


def test_an_engine_that_was_never_used_is_closed_without_a_loop_and_a_word(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with container_of(url) as container:
        assert isinstance(container.engine(), AsyncEngine)
    assert told(caplog) == []


def test_an_engine_that_an_open_loop_uses_is_closed_there(url: str, caplog: pytest.LogCaptureFixture) -> None:
    container = container_of(url, pool=PoolConfig(max_size=2))
    with asyncio.Runner() as runner:
        runner.run(ask(container.engine()))
        with pytest.raises(AsyncResourceError, match="'engine' is asynchronous"):
            container.manager.close()
        runner.run(container.shutdown_resources())
    assert told(caplog) == []


# --- a loop that is gone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["another loop", "no loop"])
def test_an_engine_closed_elsewhere_says_which_connections_were_not_closed(
    url: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    threads = threading.active_count()
    container = container_of(url)
    engine = container.engine()

    async def twice() -> None:
        await asyncio.gather(ask(engine), ask(engine))

    asyncio.run(twice())
    assert told(caplog) == []
    if end == "no loop":
        container.shutdown_resources()
    else:
        asyncio.run(shut_down(container))
    assert told(caplog) == [("engine", 2)]
    drive(Crew(BLOCKING).until(lambda: threading.active_count() <= threads))  # none keeps the program from ending


async def shut_down(container: Any) -> None:
    pending = container.shutdown_resources()
    if pending is not None:
        await pending


def test_an_engine_goes_from_loop_to_loop_with_new_connections(url: str, caplog: pytest.LogCaptureFixture) -> None:
    container = container_of(url, pool=PoolConfig(max_size=1))
    for count in range(3):
        assert asyncio.run(ask(container.engine())) == 1
        assert len(told(caplog)) == count

    async def last() -> None:
        assert await ask(container.engine()) == 1
        await container.shutdown_resources()

    asyncio.run(last())
    assert told(caplog) == [("engine", 1)] * 3


def test_sessions_of_a_loop_that_is_gone_are_told_of(url: str, caplog: pytest.LogCaptureFixture) -> None:
    adapter = DatabaseResourceAdapter("db", url=url)

    async def lease() -> None:
        await adapter.arelease(await adapter.aacquire())

    asyncio.run(lease())
    asyncio.run(adapter.aclose())
    assert told(caplog) == [("db", 1)]


def test_an_asynchronous_http_client_of_a_loop_that_is_gone_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with running() as server:

        class C(ResourceContainer):
            api = lifetimes.Singleton(HTTPResourceAdapter, base_url=server, async_client=True)

        container = C()

        async def get() -> None:
            assert (await (await container.api()).get("/ok")).status_code == 200

        asyncio.run(get())
        assert told(caplog) == []
        asyncio.run(shut_down(container))
        assert told(caplog) == [("api", 1)]
        gc.collect()


def test_an_http_client_of_another_loop_that_runs_is_closed_there(caplog: pytest.LogCaptureFixture) -> None:
    with running() as server, asyncio.Runner() as runner:
        adapter = HTTPResourceAdapter("api", base_url=server, async_client=True)
        started, ended = threading.Event(), threading.Event()

        async def get() -> None:
            assert (await (await adapter.aacquire()).get("/ok")).status_code == 200
            started.set()
            while not ended.is_set():
                await asyncio.sleep(0.01)

        other = threading.Thread(target=runner.run, args=(get(),))
        other.start()
        assert started.wait(10)
        asyncio.run(adapter.aclose())
        ended.set()
        other.join(10)
        assert told(caplog) == []


def test_pooled_resources_of_a_loop_that_is_gone_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    class Provider(BaseResourceProvider):
        async def acquire(self, **options: Any) -> object:  # type: ignore[override]
            return object()

        async def release(self, resource: Any) -> None: ...

    pool: ResourcePool[Any] = ResourcePool(Provider("cache"), PoolConfig(max_size=3), name="cache")

    async def lend() -> None:
        leases = [await pool.aacquire() for _ in range(3)]
        for lease in leases:
            await lease.arelease()

    asyncio.run(lend())
    asyncio.run(pool.aclose())
    assert told(caplog) == [("cache", 3)]


def test_a_manager_of_one_loop_is_closed_there_without_a_word(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with ResourceManager() as manager:
            manager.register_provider("db", DatabaseResourceAdapter("db", url=url))
            await manager.aacquire("db", "me")
            await manager.arelease("db", "me")

    asyncio.run(scenario())
    assert told(caplog) == []
