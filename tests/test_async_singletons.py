"""Asynchronous singletons, wherever the library has an asynchronous resource: in a loop awaited, outside of one had."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject

from wirestate import (
    BaseResourceProvider,
    ResourceContainer,
    ResourceError,
    SimpleFSM,
    lifetimes,
    manager_of,
)
from wirestate.errors import AsyncResourceError

LINES: list[str] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    LINES.clear()


async def generator(name: str = "database") -> AsyncIterator[list[str]]:
    LINES.append(f"+{name}")
    await asyncio.sleep(0)
    yield [name]
    await asyncio.sleep(0)
    LINES.append(f"-{name}")


@asynccontextmanager
async def context(name: str = "database") -> AsyncIterator[list[str]]:
    LINES.append(f"+{name}")
    await asyncio.sleep(0)
    yield [name]
    LINES.append(f"-{name}")


async def coroutine(name: str = "database") -> list[str]:
    LINES.append(f"+{name}")
    await asyncio.sleep(0)
    return [name]


async def forget(made: list[str]) -> None:
    LINES.append(f"-{made[0]}")


class Provider(BaseResourceProvider):
    """A resource provider of which both verbs wait."""

    async def acquire(self, **options: Any) -> list[str]:  # type: ignore[override]
        return await coroutine()

    async def release(self, resource: Any) -> None:
        await forget(resource)


WAYS: dict[str, Callable[[], Any]] = {
    "generator": lambda: lifetimes.Singleton(generator),
    "context": lambda: lifetimes.Singleton(context),
    "coroutine": lambda: lifetimes.Singleton(coroutine, close=forget),
    "provider": lambda: lifetimes.Singleton(Provider, "database"),
    "dependency": lambda: lifetimes.Singleton(list, lifetimes.Singleton(generator)),
}
ways = pytest.mark.parametrize("way", WAYS)


class App(containers.DeclarativeContainer):
    database = providers.Resource(generator, "real")
    dao = providers.Factory(dict, database=database)
    first = database.provided[0]


@inject
async def use(database: Any = Provide["database"], dao: Any = Provide["dao"], first: Any = Provide["first"]) -> Any:
    return database, dao["database"], first


def app_with(way: str, how: str) -> Any:
    """Return the application with one of ours in place of the library's resource."""
    if how == "declared":

        class Declared(containers.DeclarativeContainer):
            database = WAYS[way]()
            dao = providers.Factory(dict, database=database)
            first = database.provided[0]

        return Declared()
    if how == "class":

        class Overridden(App):
            pass

        with Overridden.database.override(WAYS[way]()):
            return Overridden()
    app = App()
    if how == "known":
        manager_of(app)
    app.database.override(WAYS[way]())
    return app


@pytest.mark.parametrize("how", ["declared", "class", "instance", "known"])
@ways
def test_it_stands_in_for_an_asynchronous_resource_of_the_library(way: str, how: str) -> None:
    app = app_with(way, how)
    app.wire(modules=[__name__])

    async def scenario() -> None:
        await app.init_resources()
        assert LINES == ["+database"]
        database = await app.database()
        assert database == ["database"]
        assert await app.database() is database
        assert (await app.dao())["database"] is database
        assert await app.first() == "database"
        assert await use() == (database, database, "database")
        await app.init_resources()
        assert LINES == ["+database"]
        await app.shutdown_resources()

    asyncio.run(scenario())
    app.unwire()
    assert LINES == ["+database", "-database"]


@ways
def test_in_a_loop_it_always_gives_an_awaitable_which_opens_it_at_need(way: str) -> None:
    class C(ResourceContainer):
        database = WAYS[way]()

    async def scenario() -> None:
        async with C() as container:
            asked: list[Awaitable[Any]] = [container.database() for _ in range(3)]
            found = await asyncio.gather(*asked)
            assert LINES == ["+database"], "who asks at once gets one"
            again = container.database()
            assert asyncio.isfuture(again)
            assert again.done()
            assert all(one is found[0] for one in [*found, await again, await again])
            assert container.manager.get_metrics("database")["database"].active_connections == 1
            assert container.manager.root.resource("database") is found[0], "a scope hands out the object"

    asyncio.run(scenario())
    assert LINES == ["+database", "-database"]


def test_outside_of_a_loop_it_gives_the_object_or_says_how_to_open_it() -> None:
    class C(ResourceContainer):
        database = lifetimes.Singleton(coroutine)

    container = C()
    with pytest.raises(AsyncResourceError, match=r"'database' is asynchronous; open it first"):
        container.database()

    async def scenario() -> None:
        await container.init_resources()  # type: ignore[misc]
        there = await asyncio.to_thread(container.database)
        assert there is await container.database()

    asyncio.run(scenario())
    assert container.database() == ["database"]
    asyncio.run(container.shutdown_resources())  # type: ignore[arg-type]


def test_an_opening_that_fails_is_told_to_who_awaits_it_and_tried_again() -> None:
    tries: list[int] = []

    async def failing() -> AsyncIterator[str]:
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) == 1:
            raise ConnectionError("not yet")
        yield "database"

    class C(ResourceContainer):
        database = lifetimes.Singleton(failing)

    async def scenario() -> None:
        async with C() as container:
            with pytest.raises(ResourceError, match=r"'database'.*not yet"):
                await container.database()
            assert await container.database() == "database"

    asyncio.run(scenario())


@ways
def test_functions_of_a_machine_are_given_the_object_itself(way: str) -> None:
    class C(ResourceContainer):
        database = WAYS[way]()
        dao = providers.Factory(dict, database=database)
        first = database.provided[0]
        book = lifetimes.PerState(lambda dao, first: [dao["database"], first], dao, first)

    def plain(record: Any, database: Any = Provide["database"], book: Any = Provide["book"]) -> dict[str, Any]:
        return {**record, "plain": database, "book": book}

    async def waiting(record: Any, dao: Any = Provide["dao"], first: Any = Provide["first"]) -> dict[str, Any]:
        return {**record, "waiting": dao["database"], "first": first}

    machine = {"states": {"s": {"transform": ["plain", "waiting"]}}}

    async def scenario() -> None:
        async with C() as container:
            functions = {"plain": plain, "waiting": waiting}
            async with SimpleFSM(machine, container=container, functions=functions) as fsm:
                for _ in range(2):
                    result = await fsm.aprocess({})
                    assert result.error is None
                    assert result.data == {
                        "plain": ["database"],
                        "book": [["database"], "database"],
                        "waiting": ["database"],
                        "first": "database",
                    }

    asyncio.run(scenario())
    assert LINES == ["+database", "-database"]


def test_the_provider_of_a_resource_may_take_a_part_of_it() -> None:
    class Adapter(BaseResourceProvider):
        def __init__(self, name: str, token: str) -> None:
            super().__init__(name)
            self.token = token

        def acquire(self, **options: Any) -> str:
            return self.token

    class C(ResourceContainer):
        secrets = lifetimes.Singleton(generator, "token")
        api = lifetimes.PerState(Adapter, token=secrets.provided[0])

    async def scenario() -> None:
        async with C() as container:
            for _ in range(2):
                async with container.manager.scope() as owner, owner.state("s") as visit:
                    await visit.open("api")
                    assert container.api() == "token"

    asyncio.run(scenario())
    assert LINES == ["+token", "-token"]
