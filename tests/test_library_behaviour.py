"""The library's own public behaviour: one application, plain and beside our lifetimes, an open scope and a machine."""

import asyncio
import copy
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, Provider, as_int, inject

from wirestate import SimpleFSM, lifetimes, manager_of

LINES: list[Any] = []


def opened(name: str, *needs: Any) -> Iterator[str]:
    LINES.append(f"+{name}")
    yield name
    LINES.append(f"-{name}")


async def opened_waiting(name: str) -> AsyncIterator[str]:
    LINES.append(f"+{name}")
    await asyncio.sleep(0)
    yield name
    LINES.append(f"-{name}")


class Service:
    def __init__(self, pool: Any, port: int) -> None:
        self.pool, self.port = pool, port


class Plain(containers.DeclarativeContainer):
    config = providers.Configuration()
    pool = providers.Resource(opened, "pool")
    user = providers.Resource(opened, "user", pool)
    slow = providers.Resource(opened_waiting, "slow")
    once = providers.Singleton(list)
    service = providers.Factory(Service, pool=pool, port=config.port.as_int())
    lazy = providers.Factory(dict, slow=slow)


class Mixed(Plain):
    ours = lifetimes.Singleton(opened, "ours", Plain.pool)
    run = lifetimes.PerOwner(opened, "run")
    visit = lifetimes.PerState(opened, "visit", ours, Plain.service)


OURS = {"ours", "run", "visit"}


@inject
def plainly(service: Any = Provide["service"], once: Any = Provide[Plain.once]) -> Any:
    return service.pool, service.port, once


@inject
def modified(port: int = Provide["config.port", as_int()], make: Any = Provider["service"]) -> Any:
    return port, type(make()).__name__


@inject
def annotated(pool: Annotated[str, Closing[Provide["pool"]]]) -> Any:
    return pool


@inject
async def waiting(lazy: Any = Closing[Provide["lazy"]], slow: Any = Provide["slow"]) -> Any:
    return lazy["slow"], slow


def work(record: Any, visit: Any = Provide["visit"], service: Any = Provide["service"]) -> dict[str, Any]:
    return {"visit": visit, "port": service.port}


closing: Any = annotated  # a type checker sees a parameter that is not given


def defaults_of(function: Any) -> tuple[Any, ...]:
    return inspect.unwrap(function).__defaults__  # type: ignore[no-any-return, attr-defined]


Scenario = Callable[[Any], Any]


def wired_functions(container: Any) -> None:
    container.wire(modules=[__name__])
    first = plainly()
    LINES.append((first[:2], plainly()[2] is first[2], modified(), closing(), asyncio.run(waiting())))
    LINES.append(plainly(once="given")[2])
    container.unwire()
    LINES.append(type(defaults_of(plainly)[0]).__name__)
    with pytest.raises(AttributeError, match="'Provide' object has no attribute 'pool'"):
        plainly()
    container.wire(modules=[__name__])
    LINES.append(plainly()[1])
    container.unwire()


def overrides(container: Any) -> None:
    container.wire(modules=[__name__])
    with container.once.override(providers.Object("fake")):
        LINES.append(plainly()[2])
        with container.override_providers(once=providers.Object("nested"), config=providers.Configuration()):
            LINES.append(container.once())
            LINES.append(container.config.port())
        LINES.append(container.once())
    LINES.append(container.once())
    container.once.override("first")
    container.once.override("second")
    LINES.append((container.once(), len(container.once.overridden)))
    container.once.reset_last_overriding()
    LINES.append(container.once())
    container.reset_override()
    LINES.append((container.once(), container.once.overridden))
    container.unwire()

    class Other(containers.DeclarativeContainer):
        once = providers.Object("of another")

    container.override(Other())
    LINES.append((container.once(), len(container.overridden)))
    container.reset_override()
    LINES.append(container.once())


def singletons(container: Any) -> None:
    before = container.once()
    with container.reset_singletons() as again:
        LINES.append((again is container, container.once() is before))
        inside = container.once()
    LINES.append(container.once() is inside)
    kept = container.once()
    with container.once.reset():
        LINES.append(container.once() is kept)
    with container.once.full_reset():
        LINES.append(container.once() is kept)


def resources(container: Any) -> None:
    async def scenario() -> None:
        await container.init_resources()
        LINES.append([container.pool.initialized, container.user.initialized, container.slow.initialized])
        LINES.append((await container.slow(), (await container.lazy())["slow"]))
        container.user.shutdown()
        await container.slow.shutdown()
        LINES.append([container.pool.initialized, container.user.initialized, container.slow.initialized])

    asyncio.run(scenario())


def copies(container: Any) -> None:
    container.pool.shutdown()  # the library copies no resource that is open
    twin = copy.deepcopy(container)
    twin.config.from_dict({"port": "1"})
    LINES.append((twin.service().port, container.service().port))
    LINES.append((twin.once() is container.once(), twin.once is container.once))
    twin.pool.shutdown()
    twin.once.override("twin")
    LINES.append((twin.once(), container.once()))


def shape(container: Any) -> None:
    LINES.append(sorted(set(container.providers) - OURS))
    theirs = {container.pool, container.user, container.slow}
    LINES.append(theirs <= set(container.traverse(types=[providers.Resource])))
    LINES.append(set(container.service.traverse(types=[providers.Resource])) == {container.pool})
    LINES.append(set(container.once.traverse()))
    LINES.append(container.resolve_provider_name(container.pool))
    container.check_dependencies()
    LINES.append(type(container.provider_type).__name__)


SCENARIOS = [wired_functions, overrides, singletons, resources, copies, shape]


def told(scenario: Scenario, kind: Any, around: str) -> list[Any]:
    """Run *scenario* and return what it found, and what happened to the library's own resources."""
    LINES.clear()
    container = kind()
    container.config.from_dict({"port": "8080"})
    if around == "nothing":
        scenario(container)
    else:
        manager = manager_of(container)
        with SimpleFSM({"states": {"s": {"transform": "work"}}}, container=container, functions={"work": work}) as fsm:
            if around == "a scope":
                with manager.scope() as owner, owner.state("s"):
                    container.run()
                    scenario(container)
            else:
                result = fsm.process({})
                assert (result.error, result.data) == (None, {"visit": "visit", "port": 8080})
                LINES.clear()
                scenario(container)
                container.config.from_dict({"port": "8080"})  # it is an override, which a scenario may have reset
                result = fsm.process({})
                assert (result.error, result.data) == (None, {"visit": "visit", "port": 8080})
    pending = container.shutdown_resources()
    if pending is not None:
        asyncio.run(_awaited(pending))
    return [line for line in LINES if not isinstance(line, str) or line[1:] not in OURS]


async def _awaited(pending: Any) -> None:
    await pending


@pytest.mark.parametrize("around", ["a scope", "a machine"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_library_behaves_as_it_does_without_us(scenario: Scenario, around: str) -> None:
    def calm(lines: list[Any]) -> list[Any]:
        """Leave out when its resources open and end: a machine uses some before, and after, the scenario."""
        return [line for line in lines if not (isinstance(line, str) and line[:1] in "+-")]

    plain, mixed = told(scenario, Plain, "nothing"), told(scenario, Mixed, around)
    assert calm(mixed) == calm(plain)
    if around == "a scope":
        assert sorted(map(str, mixed)) == sorted(map(str, plain)), "each opens and ends as often"


def test_a_machine_binds_and_patches_no_function() -> None:
    before = plainly, inspect.unwrap(plainly), defaults_of(plainly)
    container = Mixed()
    container.config.from_dict({"port": 1})

    def use(record: Any, service: Any = Provide["service"], visit: Any = Provide["visit"]) -> dict[str, Any]:
        return {"port": service.port}

    wired = inject(use)
    other = Plain()
    other.config.from_dict({"port": 2})
    other.wire(modules=[__name__])
    with SimpleFSM({"states": {"s": {"transform": "use"}}}, container=container, functions={"use": wired}) as fsm:
        assert fsm.process({}).data == {"port": 1}
        assert plainly()[1] == 2, "the functions that another container wired are its own still"
        assert fsm.process({}).data == {"port": 1}
    other.unwire()
    assert (plainly, inspect.unwrap(plainly), defaults_of(plainly)) == before
    other.shutdown_resources()
    container.shutdown_resources()
