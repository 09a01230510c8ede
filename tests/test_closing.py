"""``Closing[...]`` in an application's own wired code: it ends what is the library's, and nothing of ours."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, inject

from wirestate import SimpleFSM, lifetimes, manager_of

LINES: list[str] = []


def opened(name: str, *needs: Any) -> Iterator[str]:
    LINES.append(f"+{name}")
    try:
        yield name
    except BaseException:
        LINES.append(f"!{name}")
        raise
    LINES.append(f"-{name}")


async def opened_waiting(name: str, *needs: Any) -> AsyncIterator[str]:
    LINES.append(f"+{name}")
    await asyncio.sleep(0)
    yield name
    LINES.append(f"-{name}")


class Sub(containers.DeclarativeContainer):
    inner = lifetimes.PerState(opened, "inner")


class App(containers.DeclarativeContainer):
    pool = providers.Resource(opened, "pool")
    once = lifetimes.Singleton(opened, "once")
    run = lifetimes.PerOwner(opened, "run")
    visit = lifetimes.PerState(opened, "visit", pool)
    dao = providers.Factory(dict, visit=visit, once=once, run=run)
    sub = providers.Container(Sub)
    theirs = providers.Resource(opened, "theirs")
    user = lifetimes.Singleton(opened, "user", theirs)


@inject
def plainly(dao: Any = Closing[Provide[App.dao]]) -> Any:
    return dao["visit"]


@inject
def directly(visit: Any = Closing[Provide[App.visit]]) -> Any:
    return visit


@inject
def by_annotation(visit: Annotated[Any, Closing[Provide["visit"]]]) -> Any:
    return visit


@inject
def a_singleton(once: Any = Closing[Provide[App.once]], visit: Any = Provide[App.visit]) -> Any:
    return visit


@inject
def of_a_sub_container(sub: Any = Closing[Provide["sub.inner"]], visit: Any = Closing[Provide["visit"]]) -> Any:
    return visit


@inject
async def waiting(dao: Any = Closing[Provide[App.dao]]) -> Any:
    await asyncio.sleep(0)
    return dao["visit"]


@inject
async def generating(dao: Any = Closing[Provide[App.dao]]) -> AsyncIterator[Any]:
    yield dao["visit"]


class Service:
    @inject
    def method(self, dao: Any = Closing[Provide[App.dao]]) -> Any:
        return dao["visit"]

    @classmethod
    @inject
    def of_class(cls, dao: Any = Closing[Provide[App.dao]]) -> Any:
        return dao["visit"]


WAYS: dict[str, Callable[..., Any]] = {
    "factory": plainly,
    "direct": directly,
    "annotation": by_annotation,
    "singleton": a_singleton,
    "sub-container": of_a_sub_container,
    "coroutine": waiting,
    "async generator": generating,
    "method": Service().method,
    "class method": Service.of_class,
}


@pytest.fixture
def app() -> Iterator[Any]:
    LINES.clear()
    made = App()
    made.wire(modules=[__name__])
    yield made
    made.unwire()
    made.shutdown_resources()


async def result_of(way: str) -> Any:
    given = WAYS[way]()
    if isinstance(given, AsyncIterator):
        [found] = [one async for one in given]  # to its end
        return found
    return await given if asyncio.iscoroutine(given) else given


@pytest.mark.parametrize("way", WAYS)
def test_closing_in_wired_code_ends_nothing_of_ours(app: Any, way: str) -> None:
    manager = manager_of(app)
    once, user = app.once(), app.user()
    entered, left = threading.Event(), threading.Event()
    elsewhere = threading.Thread(target=in_a_scope, args=(app, entered, left))
    elsewhere.start()
    assert entered.wait(10)

    async def scenario() -> None:
        with manager.scope() as owner, owner.state("s"):
            first = await result_of(way)
            assert (await result_of(way)) is first is app.visit(), "the visit holds one object until its end"
            assert app.run() == "run"
            assert not {"-visit", "!visit", "-run", "-once", "-user"} & set(LINES)

    asyncio.run(scenario())
    assert manager_of(app) is manager
    assert (app.once(), app.user()) == (once, user)
    assert not {"-once", "!once", "-user", "!user"} & set(LINES)
    left.set()
    elsewhere.join()
    assert LINES.count("-elsewhere") == 1, "a scope in another thread ends well"


def in_a_scope(app: Any, entered: threading.Event, left: threading.Event) -> None:
    with manager_of(app).scope("elsewhere"):
        with app.run.override(lifetimes.PerOwner(opened, "elsewhere")):
            app.run()
        entered.set()
        assert left.wait(10)


def test_closing_outside_of_any_scope_leaves_the_singletons_open(app: Any) -> None:
    @inject
    def use(user: Any = Closing[Provide[App.user]], theirs: Any = Provide[App.theirs]) -> Any:
        return user

    app.wire(modules=[__name__])
    once = app.once()
    health = [resource.initialized for resource in app.traverse(types=[providers.Resource])]
    assert any(health), "somebody asked the resources whether they are open"
    assert use() == "user"
    assert "-theirs" in LINES, "the library's own was shut down"
    assert app.once() is once
    assert not {"-once", "-user"} & set(LINES)
    app.shutdown_resources()
    assert LINES.count("-once") == 1


def container_of(ours: bool) -> Any:
    """Make one application twice: plain, and with lifetimes of ours beside the library's own resources."""

    class Plain(containers.DeclarativeContainer):
        pool = providers.Resource(opened, "pool")
        lazy = providers.Resource(opened_waiting, "lazy")
        other = providers.Resource(opened, "other")
        dao = providers.Factory(dict, pool=pool)
        slow = providers.Factory(list)

    class Mixed(Plain):
        once = lifetimes.Singleton(opened, "once", Plain.other)
        visit = lifetimes.PerState(opened, "visit", Plain.pool, once)

    return Mixed() if ours else Plain()


@inject
def closes_pool(dao: Any = Closing[Provide["dao"]], other: Any = Provide["other"]) -> None:
    LINES.append("body")


@inject
def fails(dao: Any = Closing[Provide["dao"]]) -> None:
    LINES.append("body")
    raise ValueError("no")


@inject
async def closes_lazy(lazy: Any = Closing[Provide["lazy"]], other: Any = Provide["other"]) -> None:
    LINES.append(f"body {lazy}")


def in_both(scenario: Callable[[Any], None]) -> tuple[list[str], list[str]]:
    """Return what happened to the library's own in the plain application, and in the one with an open scope."""
    found = []
    for ours in (False, True):
        LINES.clear()
        container = container_of(ours)
        container.wire(modules=[__name__])
        try:
            if not ours:
                scenario(container)
            else:
                with manager_of(container).scope() as owner, owner.state("s"):
                    scenario(container)
        finally:
            container.unwire()
        ended = container.shutdown_resources()
        if ended is not None:
            asyncio.run(_awaited(ended))
        found.append([line for line in LINES if line[1:] not in {"once", "visit"}])
    return found[0], found[1]


async def _awaited(pending: Any) -> None:
    await pending


@pytest.mark.parametrize("function", [closes_pool, fails, closes_lazy])
def test_closing_shuts_down_the_librarys_own_as_it_does_without_us(function: Callable[[], Any]) -> None:
    def scenario(container: Any) -> None:
        for _ in range(2):
            try:
                given = function()
                if asyncio.iscoroutine(given):
                    asyncio.run(given)
            except ValueError:
                LINES.append("raised")

    plain, mixed = in_both(scenario)
    assert plain == mixed
    assert plain.count("-pool") == 2 or plain.count("-lazy") == 2


def test_closing_a_lifetime_shuts_down_the_resources_that_it_uses_and_no_others(app: Any) -> None:
    app.init_resources()
    LINES.clear()
    with manager_of(app).scope() as owner, owner.state("s"):
        directly()
        assert LINES == ["+visit", "-pool"]
    assert LINES == ["+visit", "-pool", "-visit"], "what an unrelated lifetime uses stays open"


def test_a_full_reset_of_a_singleton_of_the_library_reaches_no_singleton_of_an_unrelated_lifetime() -> None:
    class C(containers.DeclarativeContainer):
        settings = providers.Singleton(dict)
        pool = providers.Resource(opened, "pool", settings)
        unrelated = lifetimes.PerState(opened, "unrelated", pool)
        visit = lifetimes.PerState(opened, "visit")
        service = providers.Singleton(dict, make=visit.provider)

    container = C()
    manager_of(container)
    settings, service = container.settings(), container.service()
    container.service.full_reset()
    assert container.service() is not service
    assert container.settings() is settings
    assert container.pool not in list(container.service.traverse())


def test_a_machine_runs_beside_closing_in_wired_code(app: Any) -> None:
    def work(record: Any, visit: Any = Provide["visit"], once: Any = Provide["once"]) -> dict[str, Any]:
        return {"ours": visit, "theirs": directly(), "same": directly() is visit}

    with SimpleFSM({"states": {"s": {"transform": "work"}}}, container=app, functions={"work": work}) as fsm:
        for _ in range(2):
            assert fsm.process({}).data == {"ours": "visit", "theirs": "visit", "same": True}
    assert LINES.count("-visit") == 2
    assert LINES.count("+once") == 1
    assert "-once" not in LINES
