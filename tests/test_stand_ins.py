"""Lifetimes that stand in for other providers: their name, where they are told, and when they end."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide

from tests.conftest import Side
from wirestate import BaseResourceProvider, PoolConfig, ResourceContainer, SimpleFSM, lifetimes, manager_of

LINES: list[str] = []
KINDS = {
    "Resource": lambda: providers.Resource(opened, "real"),
    "Factory": lambda: providers.Factory(str, "real"),
    "Singleton": lambda: providers.Singleton(str, "real"),
    "Callable": lambda: providers.Callable(str, "real"),
    "Object": lambda: providers.Object("real"),
    "Dependency": providers.Dependency,
    "lifetimes.Singleton": lambda: lifetimes.Singleton(opened, "real"),
    "lifetimes.PerState": lambda: lifetimes.PerState(opened, "real"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _clean() -> None:
    LINES.clear()


def opened(name: str) -> Iterator[str]:
    LINES.append(f"+{name}")
    yield name
    LINES.append(f"-{name}")


async def opened_waiting(name: str) -> AsyncIterator[str]:
    LINES.append(f"+{name}")
    await asyncio.sleep(0)
    yield name
    LINES.append(f"-{name}")


class Sub(containers.DeclarativeContainer):
    database = providers.Resource(opened, "inner")


def class_with(kind: str) -> Any:
    class C(containers.DeclarativeContainer):
        database = KINDS[kind]()
        own = lifetimes.PerState(opened, "own")
        sub = providers.Container(Sub)

    return C


def dynamic_with(kind: str) -> Any:
    container = containers.DynamicContainer()
    container.database = KINDS[kind]()
    return container


def told(manager: Any) -> tuple[set[str], dict[str, int], set[str]]:
    """Return who is a holder of what, how often what was acquired, and what the snapshot tells of."""
    metrics = {
        name: found.total_acquisitions for name, found in manager.get_metrics().items() if hasattr(found, "leaks")
    }
    return (
        {holder.resource for holder in manager.holders()},
        {name: count for name, count in metrics.items() if count},
        {one["attributes"]["wirestate.resource.pool.name"] for one in manager.snapshot()},
    )


# --- its name, and its end ---------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("of_class", [False, True], ids=["instance", "class"])
@pytest.mark.parametrize("make", [class_with, dynamic_with], ids=["declarative", "dynamic"])
@pytest.mark.parametrize("known", [False, True], ids=["before", "after"])
def test_an_overriding_singleton_has_the_name_of_what_it_overrides(
    make: Callable[[str], Any], kind: str, of_class: bool, known: bool
) -> None:
    container = make(kind)
    if make is class_with and not of_class:
        container = container()
    if known and not (make is class_with and of_class):
        manager_of(container)
    container.database.override(lifetimes.Singleton(opened, "fake"))
    if make is class_with and of_class:
        container = container()
    manager = manager_of(container)
    assert container.database() == "fake"
    assert "database" in manager.names
    holders, metrics, snapshot = told(manager)
    assert (holders, metrics) == ({"database"}, {"database": 1})
    assert "database" in snapshot
    assert manager.get_resource_status("database")["lifetime"] == "singleton"
    manager.close()
    assert LINES == ["+fake", "-fake"], "it ends with its container"
    container.shutdown_resources()


@kinds
@pytest.mark.parametrize("lifetime", [lifetimes.PerOwner, lifetimes.PerState])
def test_what_overrides_for_an_owner_or_a_visit_is_told_by_the_same_name(kind: str, lifetime: Any) -> None:
    container = class_with(kind)()
    manager = manager_of(container)
    overriding = container.override_providers(database=lifetime(opened, "fake"))
    with overriding, manager.scope("me") as owner, owner.state("s"):
        assert container.database() == "fake"
        assert {(one.resource, one.owner_id.partition("/")[0]) for one in manager.holders()} == {("database", "me")}
        assert told(manager)[1] == {"database": 1}
        assert manager.acquire("database", "me/s#1") == "fake"
        manager.release("database", "me/s#1")
    assert LINES == ["+fake", "-fake"]
    container.shutdown_resources()


def test_an_override_of_an_override_has_the_name_too() -> None:
    container = class_with("Resource")()
    manager = manager_of(container)
    plain = providers.Factory(str, "plain")
    with container.database.override(plain), plain.override(lifetimes.Singleton(opened, "first")):
        assert container.database() == "first"
        assert told(manager)[0] == {"database"}
        with container.database.override(lifetimes.Singleton(opened, "second")):
            assert container.database() == "second"
            assert [one.resource for one in manager.holders()] == ["database", "database"]
        top = lifetimes.Singleton(opened, "third")
        second = lifetimes.Singleton(opened, "never")
        with container.database.override(second), second.override(top):
            assert container.database() == "third"
            assert top.label == second.label == "database"
    assert LINES == ["+first", "+second", "+third"]
    manager.close()
    assert LINES[3:] == ["-third", "-second", "-first"]


def test_an_override_in_a_sub_container_has_its_dotted_name() -> None:
    container = class_with("Object")()
    manager = manager_of(container)
    container.sub.database.override(lifetimes.Singleton(opened, "fake"))
    assert container.sub.database() == "fake"
    assert told(manager)[0] == {"sub.database"}
    manager.close()
    assert LINES == ["+fake", "-fake"]


def test_a_deep_copy_of_a_container_has_overriding_lifetimes_of_its_own() -> None:
    container = class_with("Factory")()
    container.database.override(lifetimes.Singleton(opened, "fake"))
    manager_of(container)
    assert container.database() == "fake"
    twin = copy.deepcopy(container)
    assert twin.database() == "fake"
    assert manager_of(twin) is not manager_of(container)
    assert told(manager_of(twin))[0] == {"database"}
    manager_of(twin).close()
    assert LINES == ["+fake", "+fake", "-fake"]
    container.shutdown_resources()
    assert LINES[-1] == "-fake"


def test_what_was_open_before_it_became_an_override_is_taken_over_with_its_name() -> None:
    container = class_with("Resource")()
    manager = manager_of(container)
    fake = lifetimes.Singleton(opened, "fake")
    assert fake() == "fake"
    assert fake.label == "opened"
    with container.database.override(fake):
        assert container.database() == "fake"
        assert told(manager)[0] == {"database"}
    manager.close()
    assert LINES == ["+fake", "-fake"]


def test_an_override_that_is_over_stays_open_until_the_container_ends() -> None:
    class C(ResourceContainer):
        database = providers.Resource(opened, "real")

    container = C()
    fake = lifetimes.Singleton(opened, "fake")
    manager = container.manager
    with container.database.override(fake):
        before = container.database()
    assert container.database() == "real"
    assert told(manager)[0] == {"database"}
    container.init_resources()
    with container.database.override(fake):
        assert container.database() is before
    container.reset_override()
    assert LINES == ["+fake", "+real"]
    container.shutdown_resources()
    assert sorted(LINES[2:]) == ["-fake", "-real"]
    assert manager.closed


def test_what_is_overridden_is_not_opened_by_init_resources_nor_an_override_of_the_past() -> None:
    class C(ResourceContainer):
        real = lifetimes.Singleton(opened, "real")
        other = lifetimes.Singleton(opened, "other")

    with C() as container:
        past = lifetimes.Singleton(opened, "past")
        with container.real.override(past):
            pass
        with container.real.override(lifetimes.Singleton(opened, "fake")):
            container.init_resources()
            assert sorted(LINES) == ["+fake", "+other"]
        container.init_resources()
        assert sorted(LINES) == ["+fake", "+other", "+real"]


class Adapter(BaseResourceProvider):
    """Knows its name, and whether it was closed."""

    closed = False
    made: list[Adapter]

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.made.append(self)

    def acquire(self, **options: Any) -> str:
        return self.name

    def release(self, resource: Any) -> None: ...

    def close(self) -> None:
        self.closed = True


@kinds
@pytest.mark.parametrize("pool", [None, PoolConfig(max_size=1)], ids=["plain", "pool"])
def test_a_resource_provider_that_overrides_is_called_and_closed_as_what_it_overrides(kind: str, pool: Any) -> None:
    Adapter.made = []
    container = class_with(kind)()
    manager = manager_of(container)
    with container.database.override(lifetimes.PerState(Adapter, pool=pool)):
        with manager.scope() as owner, owner.state("s"):
            assert container.database() == "database"
            assert manager.holders()[0].resource == "database"
        assert ("database_pool" in manager.get_metrics()) is (pool is not None)
    manager.close()
    assert [one.closed for one in Adapter.made] == [True]
    container.shutdown_resources()


@kinds
@pytest.mark.parametrize("built", [True, False], ids=["after the build", "before the build"])
def test_a_machine_is_given_what_overrides_and_tells_it_by_its_name(side: Side, kind: str, built: bool) -> None:
    seen: list[Any] = []

    def work(record: Any, database: Any = Provide["database"], own: Any = Provide["own"]) -> dict[str, Any]:
        seen.extend((one.resource, one.owner_id.partition("-")[0]) for one in manager.holders())
        return {"database": database}

    container = class_with(kind)()
    if kind == "Dependency":
        container.database.override(providers.Object("real"))
    manager = manager_of(container)
    with ExitStack() as stack:
        overriding: list[AbstractContextManager[Any]] = []
        if not built:
            overriding.append(container.database.override(lifetimes.PerState(opened, "fake")))
        machine = {"states": {"s": {"transform": "work"}}}
        fsm = stack.enter_context(SimpleFSM(machine, container=container, functions={"work": work}))
        if built:
            overriding.append(container.database.override(lifetimes.PerState(opened, "fake")))
        with overriding[0]:
            result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
    assert result.error is None
    assert result.data == {"database": "fake"}
    assert sorted(seen) == [("database", "run"), ("own", "run")]
    assert told(manager)[0] == set()
    container.shutdown_resources()


def test_overrides_by_eight_threads_while_others_resolve_end_with_the_container() -> None:
    for _ in range(20):
        container = class_with("Resource")()
        manager = manager_of(container)
        barrier = threading.Barrier(8)
        fakes = [lifetimes.Singleton(opened, f"fake {n}") for n in range(4)]

        def override(n: int, fakes: Any = fakes, container: Any = container, barrier: Any = barrier) -> None:
            barrier.wait(10)
            container.database.override(fakes[n])
            container.database()

        def resolve(n: int, fakes: Any = fakes, barrier: Any = barrier) -> None:
            barrier.wait(10)
            assert fakes[n]() == f"fake {n}"

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4) for work in (override, resolve)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert {holder.resource for holder in manager.holders()} == {"database"}
        assert len(manager.holders()) == 4
        manager.close()
        assert sorted(LINES) == sorted(f"{sign}fake {n}" for sign in "+-" for n in range(4))
        LINES.clear()
        container.shutdown_resources()
