"""The real ``@inject`` and every marker, in functions of every kind, with and without an engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, Provider, inject

from tests.conftest import Side
from wirestate import BuildError, ResourceContainer, ResourceError, SimpleFSM, lifetimes, manager_of

ENDED: list[str] = []


def thing(name: str) -> Iterator[list[str]]:
    yield [name]
    ENDED.append(name)


class Sub(containers.DeclarativeContainer):
    inner = lifetimes.PerState(thing, "inner")


class C(ResourceContainer):
    config = providers.Configuration()
    once = lifetimes.Singleton(thing, "once")
    run = lifetimes.PerOwner(thing, "run")
    visit = lifetimes.PerState(thing, "visit")
    dao = providers.Factory(dict, visit=visit, run=run)
    sub = providers.Container(Sub)


@inject
def by_default(once: Any = Provide[C.once], run: Any = Provide["run"], visit: Any = Provide[C.visit]) -> Any:
    return once, run, visit


@inject
def by_annotation(
    once: Annotated[Any, Provide[C.once]], run: Annotated[Any, Provide["run"]], visit: Annotated[Any, Provide[C.visit]]
) -> Any:
    return once, run, visit


@inject
async def waiting(once: Any = Provide[C.once], run: Any = Provide["run"], visit: Any = Provide[C.visit]) -> Any:
    await asyncio.sleep(0)
    return once, run, visit


@inject
def generating(once: Any = Provide[C.once], run: Any = Provide["run"], visit: Any = Provide[C.visit]) -> Any:
    yield once, run, visit


@inject
async def generating_waiting(
    once: Any = Provide[C.once], run: Any = Provide["run"], visit: Any = Provide["visit"]
) -> Any:
    yield once, run, visit


class Service:
    @inject
    def method(self, once: Any = Provide[C.once], run: Any = Provide["run"], visit: Any = Provide[C.visit]) -> Any:
        return once, run, visit

    @classmethod
    @inject
    def of_class(cls, once: Any = Provide[C.once], run: Any = Provide["run"], visit: Any = Provide[C.visit]) -> Any:
        return once, run, visit

    @staticmethod
    @inject
    def static(once: Any = Provide[C.once], run: Any = Provide["run"], visit: Any = Provide[C.visit]) -> Any:
        return once, run, visit


@inject
def lazily(visit: Any = Provider[C.visit], dao: Any = Provide[C.dao], inner: Any = Provide["sub.inner"]) -> Any:
    return visit, dao, inner


WAYS = {
    "default": by_default,
    "annotation": by_annotation,
    "async": waiting,
    "generator": generating,
    "async generator": generating_waiting,
    "method": Service().method,
    "class method": Service.of_class,
    "static method": Service.static,
}


@pytest.fixture
def container() -> Iterator[Any]:
    ENDED.clear()
    made = C()
    manager_of(made)
    made.wire(modules=[__name__])
    yield made
    made.unwire()
    made.shutdown_resources()


@pytest.mark.parametrize("way", WAYS)
def test_the_users_own_wire_resolves_in_the_scope_of_the_caller(container: Any, way: str) -> None:
    async def call() -> Any:
        given = WAYS[way]()  # type: ignore[operator]
        if isinstance(given, AsyncIterator):
            return await anext(given)
        if isinstance(given, Iterator):
            return next(given)
        return await given if asyncio.iscoroutine(given) else given

    async def scenario() -> None:
        found = []
        async with manager_of(container).scope() as owner:
            for _ in range(2):
                async with owner.state("s"):
                    found += [await call(), await call()]
        assert ENDED == ["visit", "visit", "run"]
        assert found[0] == (["once"], ["run"], ["visit"])
        assert all(a is b for a, b in zip(found[0], found[1], strict=True))
        assert [a is b for a, b in zip(found[0], found[2], strict=True)] == [True, True, False]

    asyncio.run(scenario())


def test_provider_markers_factories_and_sub_containers(container: Any) -> None:
    with manager_of(container).scope() as owner, owner.state("s"):
        visit, dao, inner = lazily()
        assert visit() is dao["visit"] is container.visit()
        assert dao["run"] is container.run()
        assert inner is container.sub.inner()
    assert sorted(ENDED) == ["inner", "run", "visit"]


def test_a_container_is_not_shut_down_inside_its_own_scope(container: Any) -> None:
    with manager_of(container).scope("job-1") as owner, owner.state("s"):
        visit = container.visit()
        with pytest.raises(ResourceError, match="shut down inside its own scope 'job-1/s#1'; leave the scope first"):
            container.shutdown_resources()
        assert container.visit() is visit


@pytest.mark.parametrize("way", ["default", "annotation", "async", "method", "class method", "static method"])
def test_the_engine_needs_no_wire(side: Side, way: str) -> None:
    ENDED.clear()
    found: list[Any] = []

    class State:
        @inject
        def method(self, record: Any, once: Any = Provide[C.once], visit: Any = Provide["visit"]) -> None:
            found.append((once, visit))

        @classmethod
        @inject
        def of_class(cls, record: Any, once: Any = Provide[C.once], visit: Any = Provide["visit"]) -> None:
            found.append((once, visit))

        @staticmethod
        @inject
        def static(record: Any, once: Any = Provide[C.once], visit: Any = Provide["visit"]) -> None:
            found.append((once, visit))

    @inject
    def plain(record: Any, once: Any = Provide[C.once], visit: Any = Provide["visit"]) -> None:
        found.append((once, visit))

    @inject
    async def acting(record: Any, once: Any = Provide[C.once], visit: Any = Provide["visit"]) -> None:
        found.append((once, visit))

    function = {
        "default": plain,
        "annotation": annotated(found),
        "async": acting,
        "method": State().method,
        "class method": State.of_class,
        "static method": State.static,
    }[way]
    if way == "async" and not side.is_async:
        pytest.skip("threads run no asynchronous function")
    machine = {"states": {"s": {"transform": "work"}}}
    with C() as container, SimpleFSM(machine, container=container, functions={"work": function}) as fsm:
        for _ in range(2):
            result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
            assert result.error is None
        assert found[0] == (["once"], ["visit"])
        assert found[0][0] is found[1][0]
        assert found[0][1] is not found[1][1]
    assert ENDED == ["visit", "visit", "once"]


def annotated(found: list[Any]) -> Any:
    @inject
    def work(record: Any, once: Annotated[Any, Provide[C.once]], visit: Annotated[Any, Provide["visit"]]) -> None:
        found.append((once, visit))

    return work


def test_one_function_serves_two_containers_at_once() -> None:
    def work(record: Any, name: Any = Provide["name"], visit: Any = Provide[C.visit]) -> dict[str, Any]:
        return {"name": name, "visit": visit}

    class D(C):
        name = providers.Object("d")

    class E(C):
        name = lifetimes.PerState(lambda: "e")
        visit = lifetimes.PerState(lambda: "own")

    class F(C):
        name = providers.Object("f")

    machine = {"states": {"s": {"transform": "work"}}}
    with D() as d, E() as e, F() as f:
        one = SimpleFSM(machine, container=d, functions={"work": work})
        with pytest.raises(BuildError, match="R002"):  # the marker means C's, which E replaced
            SimpleFSM(machine, container=e, functions={"work": work})
        two = SimpleFSM(machine, container=f, functions={"work": work})
        for _ in range(2):
            assert one.process({}).data == {"name": "d", "visit": ["visit"]}
            assert two.process({}).data == {"name": "f", "visit": ["visit"]}


def test_closing_a_scoped_provider_is_a_fault_of_the_machine() -> None:
    def work(record: Any, visit: Any = Closing[Provide[C.visit]]) -> None: ...

    with pytest.raises(BuildError, match=r"I004.*Closing\[\.\.\.\], but it is scoped"):
        SimpleFSM({"states": {"s": {"transform": "work"}}}, container=C(), functions={"work": work})


def test_an_asynchronous_dependency_makes_what_needs_it_asynchronous() -> None:
    async def connect() -> AsyncIterator[str]:
        await asyncio.sleep(0)
        yield "connection"
        ENDED.append("connection")

    class D(ResourceContainer):
        connection = lifetimes.PerState(connect)
        dao = lifetimes.PerState(lambda connection: [connection], connection)
        slow = lifetimes.PerState(lambda value: [value], providers.Callable(connect_plainly))

    def work(record: Any, dao: Any = Provide["dao"], slow: Any = Provide["slow"]) -> dict[str, Any]:
        return {"dao": dao, "slow": slow}

    ENDED.clear()
    container = D()
    fsm = SimpleFSM({"states": {"s": {"transform": "work"}}}, container=container, functions={"work": work})
    assert fsm.is_async
    result = asyncio.run(fsm.aprocess({}))
    assert result.data == {"dao": ["connection"], "slow": ["plain"]}
    assert ENDED == ["connection"]
    container.shutdown_resources()


async def connect_plainly() -> str:
    return "plain"
