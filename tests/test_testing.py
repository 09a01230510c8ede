"""What the library offers for tests of one's own: fakes, functions with their resources, no leaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, inject

from tests.conftest import Side
from tests.stores import Store, insert
from wirestate import (
    BaseResourceProvider,
    BuildError,
    ResourceContainer,
    ResourceManager,
    SimpleFSM,
    lifetimes,
    manager_of,
)
from wirestate.errors import AsyncResourceError, NoActiveScopeError, UnknownResourceError
from wirestate.testing import assert_no_leaks, injected, override


class Inner(containers.DeclarativeContainer):
    token = providers.Object("real token")


class App(ResourceContainer):
    """One name of each sort that may be overridden."""

    database = lifetimes.PerState(list)
    cache = lifetimes.Singleton(dict)
    clock = providers.Factory(lambda: "real time")
    inner = providers.Container(Inner)


@inject
def load(record: dict[str, Any], database: list[Any] = Provide[App.database]) -> dict[str, Any]:
    database.append(record["id"])
    return {**record, "seen": list(database)}


def machine(app: Any) -> SimpleFSM:
    return SimpleFSM({"states": {"load": {"transform": "load"}}}, container=app, functions={"load": load})


# --- override ----------------------------------------------------------------------------


def test_a_machine_runs_with_a_fake_and_then_with_the_real_thing_again(side: Side) -> None:
    app, fake = App(), [0]
    with machine(app) as fsm:
        with override(app, database=fake):
            assert side.run(side.call(fsm, "process", {"id": 1})).data["seen"] == [0, 1]
        assert side.run(side.call(fsm, "process", {"id": 2})).data["seen"] == [2]
    assert fake == [0, 1]


def test_several_names_are_replaced_and_all_come_back_when_the_block_fails() -> None:
    app = App()

    def fail() -> None:
        with override(app, cache={"a": 1}, clock="noon", **{"inner.token": "fake"}):
            assert (app.cache(), app.clock(), app.inner.token()) == ({"a": 1}, "noon", "fake")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (app.cache(), app.clock(), app.inner.token()) == ({}, "real time", "real token")


def test_overrides_nest() -> None:
    app = App()
    with override(app, clock="noon"):
        with override(app, clock="night"):
            assert app.clock() == "night"
        assert app.clock() == "noon"


def test_a_name_that_does_not_exist_is_refused_before_anything_is_replaced() -> None:
    app = App()
    with (
        pytest.raises(UnknownResourceError, match="did you mean 'database'"),
        override(app, clock="noon", databse=[]),
    ):
        pass
    assert app.clock() == "real time"


class FakeProvider(BaseResourceProvider):
    """Lends a list, and counts."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.acquired = self.released = 0

    def acquire(self, **kwargs: Any) -> list[str]:
        self.acquired += 1
        return ["fake"]

    def release(self, resource: Any) -> None:
        self.released += 1


def test_a_fake_provider_lends_with_the_lifetime_of_the_real_one() -> None:
    app, fake = App(), FakeProvider("fake")
    with override(app, database=fake), machine(app) as fsm:
        assert [result.data["seen"] for result in fsm.process_batch([{"id": 1}, {"id": 2}])] == [
            ["fake", 1],
            ["fake", 2],
        ]
        assert (fake.acquired, fake.released) == (2, 2)
        with pytest.raises(NoActiveScopeError, match="'database' lives per state"):
            app.database()


def test_a_mock_is_the_resource_itself_though_it_has_every_verb() -> None:
    app, fake = App(), Mock()
    with override(app, database=fake, clock=fake):
        assert app.clock() is fake
        assert app.database() is fake


def test_a_lifetime_opens_and_ends_as_a_fake() -> None:
    app, lines = App(), []

    def opened() -> Iterator[list[Any]]:
        lines.append("open")
        yield []
        lines.append("close")

    with override(app, database=lifetimes.PerState(opened)), machine(app) as fsm:
        assert fsm.process({"id": 1}).data["seen"] == [1]
    assert lines == ["open", "close"]


def test_a_class_is_overridden_for_the_instances_made_meanwhile() -> None:
    with override(App, clock="noon"):
        assert App().clock() == "noon"
    assert App().clock() == "real time"


# --- injected ----------------------------------------------------------------------------


def test_calls_within_a_block_belong_to_one_visit_and_the_next_block_begins_anew() -> None:
    app = App()
    with injected(app, load) as call:
        call({"id": 1})
        assert call({"id": 2})["seen"] == [1, 2]
    with injected(app, load) as call:
        assert call({"id": 3})["seen"] == [3]
    assert_no_leaks(app)


def test_an_argument_that_is_given_wins() -> None:
    with injected(App(), load) as call:
        assert call({"id": 1}, database=[0])["seen"] == [0, 1]


def test_the_work_is_committed_unless_the_block_fails(tmp_path: Path) -> None:
    store = Store(tmp_path)

    @inject
    def save(record: dict[str, Any], db: Any = Provide[store.container.db]) -> None:
        insert(db, 1 / record["id"])

    with injected(store.container, save) as call:
        call({"id": 1})

    def fail() -> None:
        with injected(store.container, save) as call:
            call({"id": 2})
            call({"id": 0})

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.items() == [1]
    store.container.shutdown_resources()


class Repository:
    """Has a method with an injection."""

    @inject
    def count(self, record: dict[str, Any], database: list[Any] = Provide["database"]) -> int:
        return len(database)


def test_methods_and_string_names_are_injected() -> None:
    app = App()
    counting = injected(app, Repository().count)
    with override(app, database=[1, 2]), counting as count:  # the override counts that is there when the block begins
        assert count({}) == 2
    with counting as count:
        assert count({}) == 0


def test_an_injection_that_cannot_be_resolved_is_refused_by_name() -> None:
    @inject
    def wrong(record: Any, database: Any = Provide["databse"]) -> None: ...

    with pytest.raises(BuildError, match=r"function wrong needs resource 'databse'.*\n.*Did you mean 'database'"):
        injected(App(), wrong)

    @inject
    def closing(record: Any, database: Any = Closing[Provide[App.database]]) -> None: ...

    with pytest.raises(BuildError, match="I004"):
        injected(App(), closing)


class AsyncApp(ResourceContainer):
    """Its database can only be had with an event loop."""

    lines = providers.Singleton(list)

    @staticmethod
    async def _opened(lines: list[str]) -> AsyncIterator[str]:
        lines.append("open")
        yield "session"
        lines.append("close")

    database = lifetimes.PerState(_opened.__func__, lines)


@inject
async def aload(record: dict[str, Any], database: str = Provide[AsyncApp.database]) -> str:
    return f"{record['id']} by {database}"


def test_an_asynchronous_function_gets_its_resources_with_async_with() -> None:
    app = AsyncApp()

    async def scenario() -> None:
        async with injected(app, aload) as call:
            assert asyncio.iscoroutinefunction(call)
            assert await call({"id": 1}) == "1 by session"
        assert app.lines() == ["open", "close"]

    asyncio.run(scenario())


def test_what_is_asynchronous_is_refused_in_a_plain_with() -> None:
    app = AsyncApp()
    with pytest.raises(AsyncResourceError, match=r"aload .* write 'async with injected"), injected(app, aload):
        pass
    assert app.lines() == []


# --- leaks -------------------------------------------------------------------------------


def test_an_open_lease_is_a_leak_and_its_holder_is_named() -> None:
    app = App()
    app.cache()  # a singleton may stay open
    assert_no_leaks(app)
    with manager_of(app).scope("job-7") as owner, owner.state("load"):
        app.database()
        with pytest.raises(AssertionError, match=r"not given back: 'job-7/load#1' holds 'database' since 0\.\d\d s"):
            assert_no_leaks(app)
    assert_no_leaks(app)


def test_a_manager_is_looked_at_too() -> None:
    with ResourceManager() as manager:
        manager.register_from_dict("settings", {"a": 1})
        manager.acquire("settings", "state_123")
        with pytest.raises(AssertionError, match="'state_123' holds 'settings'"):
            assert_no_leaks(manager)
        manager.release("settings", "state_123")
        assert_no_leaks(manager)
