"""``reset_singletons()`` and the other verbs of the library's singletons, on ours."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide

from tests.conftest import Side
from wirestate import BaseResourceProvider, PoolConfig, ResourceContainer, SimpleFSM, lifetimes, manager_of
from wirestate.errors import AsyncResourceError, InvalidSettingError, ReleaseFailedError, ResourceError

LINES: list[str] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    LINES.clear()


def opened(name: str, *needs: Any) -> Iterator[list[str]]:
    LINES.append(f"+{name}")
    yield [name]
    LINES.append(f"-{name}")


async def opened_waiting(name: str, *needs: Any) -> AsyncIterator[list[str]]:
    LINES.append(f"+{name}")
    await asyncio.sleep(0)
    yield [name]
    await asyncio.sleep(0)
    LINES.append(f"-{name}")


class Adapter(BaseResourceProvider):
    """Writes down when it is made and closed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        LINES.append(f"+{name}")

    def acquire(self, **options: Any) -> list[str]:
        return [self.name]

    def close(self) -> None:
        LINES.append(f"-{self.name}")


class AsyncAdapter(Adapter):
    is_async = True

    async def aacquire(self, **options: Any) -> list[str]:
        return self.acquire()

    async def arelease(self, resource: Any) -> None: ...

    async def aclose(self) -> None:
        self.close()


WAYS: dict[str, Callable[..., Any]] = {
    "generator": lambda: lifetimes.Singleton(opened, "it"),
    "callable": lambda: lifetimes.Singleton(lambda: [*next(opened("it"))], close=lambda it: LINES.append("-it")),
    "provider": lambda: lifetimes.Singleton(Adapter, "it"),
    "pool": lambda: lifetimes.Singleton(Adapter, "it", pool=PoolConfig(max_size=1)),
}
ASYNC_WAYS: dict[str, Callable[..., Any]] = {
    "generator": lambda: lifetimes.Singleton(opened_waiting, "it"),
    "provider": lambda: lifetimes.Singleton(AsyncAdapter, "it"),
}


# --- they are singletons of the library -----------------------------------------------------------------


def test_our_singletons_are_found_as_singletons_of_the_library_and_no_other_lifetime() -> None:
    class C(containers.DeclarativeContainer):
        theirs = providers.Singleton(list)
        once = lifetimes.Singleton(opened, "once")
        run = lifetimes.PerOwner(opened, "run")
        visit = lifetimes.PerState(opened, "visit", once)

    for container in (C, C()):
        assert set(container.traverse(types=[providers.BaseSingleton])) == {container.theirs, container.once}
    assert C.once.cls is C.once.provides is opened
    assert C.visit.cls is opened
    assert str(C.once).startswith("<wirestate.injection.lifetimes.Singleton(opened) at 0x")


@pytest.mark.parametrize("kind", [lifetimes.Singleton, lifetimes.PerOwner, lifetimes.PerState])
def test_a_lifetime_is_declared_anew_as_a_factory_is(kind: Any) -> None:
    class C(ResourceContainer):
        it = kind(dict, a=1)

    with C() as container:
        it = container.it
        assert it.set_provides(list).clear_kwargs().add_args([1]).add_args() is it
        assert (it.cls, it.args, it.kwargs) == (list, ([1],), {})
        assert it.set_provides(dict).clear_args().set_kwargs(a=2).add_kwargs(b=3).kwargs == {"a": 2, "b": 3}
        with container.manager.scope() as owner, owner.state("s"):
            assert it() == {"a": 2, "b": 3}
        with pytest.raises(ResourceError, match="lifetime 'it' is in use: it cannot be declared anew; override it"):
            it.add_kwargs(c=4)
        assert C.it.kwargs == {"a": 1}


def test_attributes_are_refused() -> None:
    with pytest.raises(InvalidSettingError, match="sets no attributes; give them as arguments"):
        lifetimes.Singleton(dict).add_attributes(a=1)


# --- resets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("verb", ["reset_singletons", "reset", "full_reset"])
def test_a_reset_ends_what_is_open_and_the_next_use_makes_it_anew(way: str, verb: str) -> None:
    class C(ResourceContainer):
        it = WAYS[way]()
        other = lifetimes.Singleton(opened, "other")

    with C() as container:
        before, other = container.it(), container.other()
        if verb == "reset_singletons":
            container.reset_singletons()
        else:
            getattr(container.it, verb)()
        assert LINES.count("-it") == 1
        after = container.it()
        assert (after, after is before) == (["it"], False)
        assert container.it() is after
        assert (container.other() is other) is (verb != "reset_singletons")
        metrics = container.manager.get_metrics("it")["it"]
        assert metrics.active_connections == 1
        assert [one.resource for one in container.manager.holders()].count("it") == 1
    assert LINES.count("+it") == LINES.count("-it") == 2


def test_what_was_never_used_is_reset_without_being_made() -> None:
    class C(ResourceContainer):
        it = lifetimes.Singleton(Adapter, "it")

    with C() as container:
        container.reset_singletons()
        container.it.reset()
    assert LINES == []


def test_what_was_made_from_it_ends_before_it() -> None:
    class C(ResourceContainer):
        base = lifetimes.Singleton(opened, "base")
        factory = providers.Factory(list, base)
        middle = lifetimes.Singleton(opened, "middle", factory)
        top = lifetimes.Singleton(opened, "top", middle)
        other = lifetimes.Singleton(opened, "other")

    with C() as container:
        container.init_resources()
        LINES.clear()
        container.base.reset()
        assert LINES == ["-top", "-middle", "-base"]
        container.top()
        assert LINES[3:] == ["+base", "+middle", "+top"]
        LINES.clear()
        container.middle.reset()
        assert LINES == ["-top", "-middle"]
        LINES.clear()
        container.reset_singletons()
        assert sorted(LINES) == ["-base", "-other"]


def test_resets_are_contexts_that_reset_again_as_the_librarys_own() -> None:
    class C(ResourceContainer):
        it = lifetimes.Singleton(opened, "it")

    with C() as container:
        for reset in (container.reset_singletons, container.it.reset, container.it.full_reset):
            before = container.it()
            with reset() as context:
                assert context in (container, container.it)
                inside = container.it()
                assert inside is not before
            assert container.it() is not inside


def test_a_machine_that_was_built_before_is_given_the_new_one(side: Side) -> None:
    class C(ResourceContainer):
        it = lifetimes.Singleton(Adapter, "it")
        dao = lifetimes.PerState(lambda it: [it], it)

    def work(record: Any, it: Any = Provide["it"], dao: Any = Provide["dao"]) -> dict[str, Any]:
        return {"it": id(it), "same": dao[0] is it}

    with C() as container:
        fsm = SimpleFSM({"states": {"s": {"transform": "work"}}}, container=container, functions={"work": work})
        kept = []
        for _ in range(3):
            result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
            kept.append(container.it())
            assert result.data == {"it": id(kept[-1]), "same": True}
            container.reset_singletons()
        assert len({id(one) for one in kept}) == 3
    assert LINES == ["+it", "-it"] * 3


def test_a_plain_container_resets_ours_and_its_own() -> None:
    class C(containers.DeclarativeContainer):
        theirs = providers.Singleton(list)
        ours = lifetimes.Singleton(opened, "ours")
        over = providers.Factory(str)

    container = C()
    container.over.override(lifetimes.Singleton(opened, "over"))
    before = container.theirs(), container.ours(), container.over()
    container.reset_singletons()
    assert sorted(LINES) == ["+ours", "+over", "-ours", "-over"]
    after = container.theirs(), container.ours(), container.over()
    assert not any(a is b for a, b in zip(before, after, strict=True))
    container.shutdown_resources()


def test_a_clean_up_that_fails_in_a_reset_is_raised_and_the_next_use_makes_it_anew() -> None:
    def failing() -> Iterator[list[int]]:
        yield []
        raise ValueError("no")

    class C(ResourceContainer):
        it = lifetimes.Singleton(failing)

    container = C()
    before = container.it()
    with pytest.raises(ReleaseFailedError) as told:
        container.it.reset()
    assert repr(told.value.exceptions[0]) == "ValueError('no')"
    assert container.it() is not before
    with pytest.raises(ReleaseFailedError):
        container.shutdown_resources()


def test_threads_that_ask_during_a_reset_are_given_the_new_one() -> None:
    ending, ended = threading.Event(), threading.Event()

    def slow() -> Iterator[list[int]]:
        yield []
        ending.set()
        assert ended.wait(10)

    class C(ResourceContainer):
        it = lifetimes.Singleton(slow)

    with C() as container:
        before = container.it()
        found: list[Any] = []
        resetting = threading.Thread(target=container.it.reset)
        resetting.start()
        assert ending.wait(10)
        asking = [threading.Thread(target=lambda: found.append(container.it())) for _ in range(3)]
        for thread in asking:
            thread.start()
        ended.set()
        for thread in (resetting, *asking):
            thread.join(10)
        assert [one is found[0] and one is not before for one in found] == [True] * 3


# --- what must be awaited ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ASYNC_WAYS)
def test_an_asynchronous_singleton_is_reset_by_its_loop_and_its_end_can_be_awaited(way: str) -> None:
    class C(ResourceContainer):
        it = ASYNC_WAYS[way]()

    async def scenario() -> None:
        async with C() as container:
            before = await container.it()
            await container.it.reset()
            assert LINES == ["+it", "-it"]
            after = await container.it()
            assert after is not before
            container.reset_singletons()
            assert await container.it() is not after, "nothing is handed out that is about to end"
            assert LINES == ["+it", "-it"] * 2 + ["+it"], "the new one begins when the old one is over"
            container.reset_singletons()
        assert LINES == ["+it", "-it"] * 3, "the end of the container waits for it"

    asyncio.run(scenario())


def test_an_asynchronous_reset_that_fails_is_told_to_who_awaits_it() -> None:
    async def failing() -> AsyncIterator[list[int]]:
        yield []
        raise ValueError("no")

    class C(ResourceContainer):
        it = lifetimes.Singleton(failing)

    async def scenario() -> None:
        container = C()
        await container.it()
        with pytest.raises(ReleaseFailedError) as told:
            await container.it.reset()
        assert repr(told.value.exceptions[0]) == "ValueError('no')"
        assert container.shutdown_resources() is None, "nothing is open"

    asyncio.run(scenario())


def test_a_synchronous_reset_may_be_awaited_too() -> None:
    class C(ResourceContainer):
        it = lifetimes.Singleton(opened, "it")

    async def scenario() -> None:
        with C() as container:
            container.it()
            await container.it.reset()
            assert LINES == ["+it", "-it"]

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ASYNC_WAYS)
def test_outside_of_a_loop_what_is_open_and_asynchronous_is_refused(way: str) -> None:
    class C(ResourceContainer):
        it = ASYNC_WAYS[way]()

    container = C()
    container.it.reset()  # nothing is open
    with asyncio.Runner() as runner:

        async def open_it() -> Any:
            return await container.it()

        before = runner.run(open_it())
        with pytest.raises(
            AsyncResourceError, match=r"'it' is asynchronous; use 'await container.it.reset\(\)' in its"
        ):
            container.it.reset()
        assert runner.run(open_it()) is before
        runner.run(_shut_down(container))


async def _shut_down(container: Any) -> None:
    await container.shutdown_resources()


def test_a_reset_of_a_manager_that_is_known_tells_its_listener(caplog: pytest.LogCaptureFixture) -> None:
    from wirestate import Listener

    class Ears(Listener):
        def on_close(self, name: str, owner_id: str, seconds: float, error: BaseException | None) -> None:
            LINES.append(f"told {name} {owner_id} {error}")

    class C(ResourceContainer):
        it = lifetimes.Singleton(opened, "it")

    with caplog.at_level(logging.WARNING), C() as container:
        manager_of(container).listener = Ears()
        container.it()
        container.reset_singletons()
        assert LINES == ["+it", "-it", "told it container None"]
    assert caplog.records == []
