"""The library's own containers and resources: with lifetimes in them, beside them, below them."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide

from tests.conftest import Side
from wirestate import ResourceContainer, SimpleFSM, lifetimes, manager_of
from wirestate.injection.container import planner_of

LINES: list[str] = []
MACHINE = {"states": {"s": {"transform": "work"}}}


@pytest.fixture(autouse=True)
def _clean() -> None:
    LINES.clear()


def thing(name: str, *needs: Any) -> Iterator[str]:
    LINES.append(f"+{name}")
    yield name
    LINES.append(f"-{name}")


async def waiting(name: str, *needs: Any) -> AsyncIterator[str]:
    LINES.append(f"+{name}")
    await asyncio.sleep(0)
    yield name
    LINES.append(f"-{name}")


def work(record: Any, once: Any = Provide["once"], visit: Any = Provide["visit"]) -> dict[str, Any]:
    return {"once": once, "visit": visit}


def declarative() -> Any:
    class C(containers.DeclarativeContainer):
        once = lifetimes.Singleton(thing, "once")
        visit = lifetimes.PerState(thing, "visit", once)

    return C()


def dynamic() -> Any:
    container = containers.DynamicContainer()
    container.once = lifetimes.Singleton(thing, "once")
    container.visit = lifetimes.PerState(thing, "visit", container.once)
    return container


def resource_container() -> Any:
    class C(ResourceContainer):
        once = lifetimes.Singleton(thing, "once")
        visit = lifetimes.PerState(thing, "visit", once)

    return C()


@pytest.mark.parametrize("made", [declarative, dynamic, resource_container])
def test_any_container_has_a_manager_and_serves_a_machine(side: Side, made: Any) -> None:
    container = made()
    manager = manager_of(container)
    assert manager.names == ["once", "visit"]
    assert manager_of(container) is manager
    fsm = SimpleFSM(MACHINE, container=container, functions={"work": work})
    for _ in range(2):
        result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
        assert result.data == {"once": "once", "visit": "visit"}
    assert LINES == ["+once", "+visit", "-visit", "+visit", "-visit"]
    assert container.shutdown_resources() is None
    assert LINES[-1] == "-once"
    assert manager.closed
    assert not manager_of(container).closed


@pytest.mark.parametrize("made", [declarative, dynamic, resource_container])
@pytest.mark.parametrize("known", [True, False])
def test_init_opens_the_singletons_and_shutdown_ends_them(made: Any, known: bool) -> None:
    container = made()
    if known:
        manager_of(container)
    for _ in range(2):
        assert container.init_resources() is None
        container.init_resources()
        assert LINES == ["+once"]
        assert container.once() == "once"
        container.shutdown_resources()
        container.shutdown_resources()
        assert LINES == ["+once", "-once"]
        LINES.clear()


def test_asynchronous_singletons_are_opened_and_ended_by_the_library() -> None:
    class C(ResourceContainer):
        once = lifetimes.Singleton(waiting, "once")
        plain = lifetimes.Singleton(thing, "plain", once)

    async def scenario() -> None:
        container = C()
        opening = container.init_resources()
        assert inspect.isawaitable(opening)
        await opening
        assert LINES == ["+once", "+plain"]
        assert (await container.once(), await container.plain()) == ("once", "plain")
        ending = container.shutdown_resources()
        assert inspect.isawaitable(ending)
        await ending
        assert LINES[2:] == ["-plain", "-once"]
        async with C() as again:
            await again.manager.root.open("once")
        assert LINES[4:] == ["+once", "-once"]

    asyncio.run(scenario())


def test_the_librarys_own_resources_end_after_what_uses_them() -> None:
    class C(containers.DeclarativeContainer):
        theirs = providers.Resource(thing, "theirs")
        once = lifetimes.Singleton(thing, "once", theirs)
        late = providers.Resource(thing, "late")
        visit = lifetimes.PerState(thing, "visit", late)

    container = C()
    container.init_resources()
    assert set(LINES) == {"+theirs", "+once", "+late"}
    assert LINES.index("+theirs") < LINES.index("+once")
    with manager_of(container).scope() as owner, owner.state("s"):
        assert container.visit() == "visit"
    LINES.clear()
    container.shutdown_resources()
    assert LINES[0] == "-once"
    assert set(LINES) == {"-once", "-theirs", "-late"}


def test_a_lifetime_used_before_its_container_is_known_stays_what_it_was() -> None:
    container = dynamic()
    before = container.once()
    manager = manager_of(container)
    assert container.once() is before
    with manager.scope() as owner, owner.state("s"):
        assert container.visit() == "visit"
    assert LINES == ["+once", "+visit", "-visit"]
    manager.close()
    assert LINES[-1] == "-once"


def test_what_was_opened_together_before_stays_together() -> None:
    container = containers.DynamicContainer()
    container.part = lifetimes.Singleton(list)
    container.whole = lifetimes.Singleton(lambda part: [part], container.part)
    whole = container.whole()
    with manager_of(container):
        assert container.whole() is whole
        assert container.part() is whole[0]


def test_providers_may_be_added_later() -> None:
    container = dynamic()
    manager = manager_of(container)
    container.later = lifetimes.PerOwner(thing, "later")
    assert manager_of(container) is manager
    assert manager.names == ["once", "visit", "later"]
    with manager.scope() as owner:
        assert owner.resource("later") == container.later() == "later"
    container.shutdown_resources()


def test_a_class_that_nobody_instantiated_serves_a_machine(side: Side) -> None:
    class C(containers.DeclarativeContainer):
        once = lifetimes.Singleton(thing, "once")
        visit = lifetimes.PerState(thing, "visit", once)

    with SimpleFSM(MACHINE, container=C, functions={"work": work}) as fsm:
        result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
        assert result.data == {"once": "once", "visit": "visit"}
    assert fsm.manager is manager_of(C)
    instance = C()
    assert manager_of(instance) is not fsm.manager
    with manager_of(instance).scope() as owner, owner.state("s"):
        assert instance.visit() == "visit"
    LINES.clear()
    manager_of(C).close()
    assert LINES == ["-once"]
    manager_of(instance).close()
    assert LINES == ["-once", "-once"]


@pytest.mark.parametrize("first", ["parent", "child"])
def test_a_sub_container_shares_the_home_of_its_parent(side: Side, first: str) -> None:
    class Child(containers.DeclarativeContainer):
        visit = lifetimes.PerState(thing, "visit")

    class Parent(containers.DeclarativeContainer):
        once = lifetimes.Singleton(thing, "once")
        child = providers.Container(Child)
        top = lifetimes.PerState(thing, "top", child.visit)

    def use(record: Any, a: Any = Provide["child.visit"], b: Any = Provide[Parent.top]) -> dict[str, Any]:
        return {"a": a, "b": b}

    parent = Parent()
    if first == "child":
        manager_of(parent.child())
    fsm = SimpleFSM(MACHINE, container=parent, functions={"work": use})
    result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
    assert result.data == {"a": "visit", "b": "top"}
    assert LINES == ["+visit", "+top", "-top", "-visit"]
    assert manager_of(parent) is manager_of(parent.child())
    assert planner_of(parent).container is parent
    assert planner_of(parent.child()).container is parent.child()
    assert {"child.visit", "once", "top"} <= set(manager_of(parent).names)

    async def opened() -> None:
        async with manager_of(parent).scope() as owner, owner.state("s") as visit:
            await visit.open(use)
            assert visit.resource("child.visit") == "visit"

    asyncio.run(opened())
    parent.shutdown_resources()


def test_a_container_that_was_handed_in_as_a_dependency_keeps_its_own_manager() -> None:
    class Infra(ResourceContainer):
        visit = lifetimes.PerState(thing, "visit")

    class App(ResourceContainer):
        infra = providers.DependenciesContainer()
        service = lifetimes.PerState(thing, "service", infra.visit)

    infra = Infra()
    with App(infra=infra) as app, app.manager.scope() as owner, owner.state("s"):
        assert app.service() == "service"
    assert LINES == ["+visit", "+service", "-service", "-visit"]
    assert infra.manager.owners == {}
    infra.shutdown_resources()


def test_a_selector_and_a_list_hold_lifetimes() -> None:
    class C(ResourceContainer):
        which = providers.Object("a")
        a = lifetimes.PerState(thing, "a")
        b = lifetimes.PerState(thing, "b")
        chosen = providers.Selector(which, a=a, b=b)
        both = providers.List(a, b)

    def use(record: Any, chosen: Any = Provide["chosen"]) -> dict[str, Any]:
        return {"chosen": chosen}

    with C() as container:
        with container.manager.scope() as owner, owner.state("s"):
            assert container.chosen() == "a"
            assert LINES == ["+a"]
            assert container.both() == ["a", "b"]
        with SimpleFSM(MACHINE, container=container, functions={"work": use}) as fsm:
            assert fsm.process({}).data == {"chosen": "a"}
            with container.which.override("b"):
                assert fsm.process({}).data == {"chosen": "b"}


def test_a_name_that_is_assigned_anew_means_the_new_provider() -> None:
    container = dynamic()
    manager = manager_of(container)
    container.visit = lifetimes.PerState(thing, "new")
    assert manager_of(container) is manager
    with manager.scope() as owner, owner.state("s") as visit:
        assert visit.resource("visit") == container.visit() == "new"
    with SimpleFSM(MACHINE, container=container, functions={"work": work}) as fsm:
        assert fsm.process({}).data == {"once": "once", "visit": "new"}
    container.shutdown_resources()


def test_the_first_question_by_eight_threads_finds_one_manager() -> None:
    for _ in range(30):
        container = dynamic()
        barrier = threading.Barrier(8)
        found: list[Any] = []

        def ask(container: Any = container, barrier: Any = barrier, found: list[Any] = found) -> None:
            barrier.wait()
            found.append((manager_of(container), planner_of(container)))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == 1
        assert found[0][0].names == ["once", "visit"]
