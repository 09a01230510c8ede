"""Overrides of every form, before and after the build: right values, nothing opened in vain, nothing dead."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from wirestate import ResourceContainer, ResourceError, SimpleFSM, lifetimes, manager_of
from wirestate.errors import AsyncInSyncRunError, LifetimeMismatchError, NoActiveScopeError

MACHINE = {"states": {"s": {"transform": "work"}}}


class Book:
    """Writes down what is opened and ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def opener(self, name: str) -> Callable[..., Iterator[str]]:
        def opened(*needs: Any) -> Iterator[str]:
            self.lines.append(f"+{name}")
            yield name if not needs else f"{name}({','.join(map(str, needs))})"
            self.lines.append(f"-{name}")

        return opened

    def waiting(self, name: str) -> Callable[..., AsyncIterator[str]]:
        async def opened() -> AsyncIterator[str]:
            self.lines.append(f"+{name}")
            await asyncio.sleep(0)
            yield name
            self.lines.append(f"-{name}")

        return opened

    def taken(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def container(book: Book) -> Iterator[Any]:
    class C(ResourceContainer):
        inner = lifetimes.PerState(book.opener("inner"))
        outer = lifetimes.PerState(book.opener("outer"), inner)
        run = lifetimes.PerOwner(book.opener("run"))
        once = lifetimes.Singleton(book.opener("once"))

    with C() as made:
        yield made


@inject
def work(record: Any, outer: Any = Provide["outer"]) -> dict[str, Any]:
    return {"outer": outer}


def outer_of(side: Side, fsm: SimpleFSM) -> Any:
    result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
    assert result.error is None
    return result.data["outer"]


@pytest.fixture
def fsm(container: Any) -> SimpleFSM:
    return SimpleFSM(MACHINE, container=container, functions={"work": work})


@pytest.fixture
def ask(side: Side, fsm: SimpleFSM) -> Callable[[], Any]:
    """Run the machine in either world and return what it was given."""
    return lambda: outer_of(side, fsm)


# --- after the build -------------------------------------------------------------------------------


def test_without_overrides(side: Side, fsm: SimpleFSM, book: Book) -> None:
    assert outer_of(side, fsm) == "outer(inner)"
    assert book.taken() == ["+inner", "+outer", "-outer", "-inner"]


@pytest.mark.parametrize(
    ("fake", "lines"),
    [
        (lambda book: providers.Object("fake"), []),
        (lambda book: "fake", []),
        (lambda book: providers.Factory(str, "fake"), []),
        (lambda book: providers.Singleton(str, "fake"), []),
        (lambda book: lifetimes.PerState(book.opener("fake")), ["+fake", "-fake"]),
        (lambda book: lifetimes.PerOwner(book.opener("fake")), ["+fake", "-fake"]),
    ],
)
def test_an_override_is_seen_at_the_next_visit_and_a_reset_too(
    container: Any, ask: Callable[[], Any], book: Book, fake: Any, lines: list[str]
) -> None:
    for _ in range(2):
        with container.outer.override(fake(book)):
            assert ask() == "fake"
            assert book.taken() == lines, "what only the overridden one needed is not opened"
        assert ask() == "outer(inner)"
        assert book.taken() == ["+inner", "+outer", "-outer", "-inner"]
    assert container.manager.owners == {}


def test_an_inner_dependency_is_overridden(side: Side, container: Any, fsm: SimpleFSM, book: Book) -> None:
    with container.override_providers(inner=providers.Object("fake")):
        assert outer_of(side, fsm) == "outer(fake)"
        assert book.taken() == ["+outer", "-outer"]
        with container.inner.override(lifetimes.PerState(book.opener("nested"))):
            assert outer_of(side, fsm) == "outer(nested)"
            assert book.taken() == ["+nested", "+outer", "-outer", "-nested"]
        assert outer_of(side, fsm) == "outer(fake)"
    assert outer_of(side, fsm) == "outer(inner)"


def test_a_whole_container_overrides(side: Side, container: Any, fsm: SimpleFSM, book: Book) -> None:
    class Fakes(containers.DeclarativeContainer):
        inner = lifetimes.PerState(book.opener("theirs"))
        once = lifetimes.Singleton(book.opener("their once"))

    fakes = Fakes()
    container.override(fakes)
    assert outer_of(side, fsm) == "outer(theirs)"
    assert book.taken() == ["+theirs", "+outer", "-outer", "-theirs"]
    assert container.once() == "their once"
    container.reset_override()
    assert outer_of(side, fsm) == "outer(inner)"
    manager_of(fakes).close()
    assert book.lines[-1] == "-their once"


def test_an_override_that_lives_in_the_overridden_ones_container_ends_with_it(container: Any, book: Book) -> None:
    fake = lifetimes.Singleton(book.opener("fake"))
    with container.once.override(fake):
        assert container.once() == "fake"
    assert container.once() == "once"
    container.shutdown_resources()
    assert book.taken() == ["+fake", "+once", "-once", "-fake"]


def test_a_singleton_that_was_open_before_comes_back_after_the_reset(book: Book) -> None:
    class C(ResourceContainer):
        setting = providers.Object("true")
        once = lifetimes.Singleton(list, setting)

    with C() as container:
        before = container.once()
        assert before == list("true")
        for _ in range(2):
            with container.setting.override("fake"):
                assert container.once() == list("fake")
        assert container.once() is before


def test_an_override_while_a_lease_is_out(side: Side, container: Any, book: Book) -> None:
    manager = container.manager

    async def scenario() -> None:
        before = await side.call(manager, "acquire", "outer", "a")
        with container.outer.override("fake"):
            assert await side.call(manager, "acquire", "outer", "a") is before, "it holds that already"
            assert await side.call(manager, "acquire", "outer", "b") == "fake"
            assert manager.get_resource("outer", "b") == "fake"
        await side.call(manager, "release", "outer", "b")
        for _ in range(2):
            assert manager.has_resource("outer", "a")
            await side.call(manager, "release", "outer", "a")

    side.run(scenario())
    assert manager.owners == {}
    assert book.taken() == ["+inner", "+outer", "-outer", "-inner"]


def test_a_scope_hands_out_by_name_what_is_effective(container: Any, book: Book) -> None:
    with container.manager.scope() as owner, owner.state("s") as visit:
        with container.outer.override(providers.Factory(list)):
            assert visit.resource("outer") == []
            assert visit.resource("outer") is visit.resource("outer")
        with container.outer.override(providers.Callable(str.upper, container.inner)):
            assert visit.resource("outer") == "INNER"
        assert visit.resource("outer") == "outer(inner)"
    assert book.taken() == ["+inner", "+outer", "-outer", "-inner"]


# --- rules that an override may break --------------------------------------------------------------


def test_a_shorter_life_by_override_is_refused_at_the_next_opening(side: Side, book: Book) -> None:
    class C(ResourceContainer):
        part = lifetimes.PerOwner(book.opener("part"))
        run = lifetimes.PerOwner(book.opener("run"), part)

    def use(record: Any, outer: Any = Provide["run"]) -> dict[str, Any]:
        return {"outer": outer}

    with C() as container:
        fsm = SimpleFSM(MACHINE, container=container, functions={"work": use})
        assert outer_of(side, fsm) == "run(part)"
        with container.part.override(lifetimes.PerState(book.opener("short"))), pytest.raises(LifetimeMismatchError):
            outer_of(side, fsm)
        assert outer_of(side, fsm) == "run(part)"
        assert container.manager.owners == {}


def test_an_owners_argument_cannot_be_of_a_visit_by_a_lazy_override(container: Any, book: Book) -> None:
    class C(ResourceContainer):
        visit = lifetimes.PerState(book.opener("visit"))
        part = providers.Factory(str, "part")
        run = lifetimes.PerOwner(lambda part: part, part)

    with C() as made, made.manager.scope() as owner, owner.state("s"):
        fake = providers.Callable(lambda get: get(), made.visit.provider)
        with made.part.override(fake), pytest.raises(NoActiveScopeError, match="'visit' lives per state"):
            made.run()
        assert made.run() == "part"


def test_an_asynchronous_override_is_refused_in_a_synchronous_run(
    side: Side, container: Any, fsm: SimpleFSM, book: Book
) -> None:
    with container.inner.override(lifetimes.PerState(book.waiting("slow"))):
        if side.is_async:
            assert outer_of(side, fsm) == "outer(slow)"
            assert book.taken() == ["+slow", "+outer", "-outer", "-slow"]
        else:
            with pytest.raises(AsyncInSyncRunError, match="asynchronous"):
                fsm.process({})
            assert book.taken() == []
    assert outer_of(side, fsm) == "outer(inner)"


# --- before the build ------------------------------------------------------------------------------


def test_a_class_level_override_is_copied_into_each_instance(side: Side, book: Book) -> None:
    class C(ResourceContainer):
        inner = lifetimes.PerState(book.opener("inner"))
        outer = lifetimes.PerState(book.opener("outer"), inner)
        once = lifetimes.Singleton(book.opener("once"))

    with (
        C.inner.override(lifetimes.PerState(book.opener("fake"))),
        C.once.override(lifetimes.Singleton(book.opener("fake once"))),
    ):
        with C() as one, C() as two:
            for container in (one, two):
                fsm = SimpleFSM(MACHINE, container=container, functions={"work": work})
                assert outer_of(side, fsm) == "outer(fake)"
                assert book.taken() == ["+fake", "+outer", "-outer", "-fake"]
                assert container.once() == "fake once"
                assert book.taken() == ["+fake once"]
            two.shutdown_resources()
            assert book.taken() == ["-fake once"]
        assert book.taken() == ["-fake once"]
    with C() as container:
        assert outer_of(side, SimpleFSM(MACHINE, container=container, functions={"work": work})) == "outer(inner)"


def test_an_overriding_container_class(side: Side, book: Book) -> None:
    class C(ResourceContainer):
        inner = lifetimes.PerState(book.opener("inner"))
        outer = lifetimes.PerState(book.opener("outer"), inner)

    @containers.override(C)
    class Fakes(containers.DeclarativeContainer):
        inner = lifetimes.PerState(book.opener("fake"))

    with C() as container:
        assert outer_of(side, SimpleFSM(MACHINE, container=container, functions={"work": work})) == "outer(fake)"
    C.reset_override()
    assert Fakes.providers


def test_a_constructor_given_provider(side: Side, book: Book) -> None:
    class C(ResourceContainer):
        inner = lifetimes.PerState(book.opener("inner"))
        outer = lifetimes.PerState(book.opener("outer"), inner)

    with C(inner=lifetimes.PerState(book.opener("given"))) as container:
        assert outer_of(side, SimpleFSM(MACHINE, container=container, functions={"work": work})) == "outer(given)"
    assert book.taken() == ["+given", "+outer", "-outer", "-given"]


# --- without an engine -----------------------------------------------------------------------------


def test_the_users_own_wire_follows_overrides(container: Any, book: Book) -> None:
    container.wire(modules=[__name__])
    try:
        with container.manager.scope() as owner, owner.state("s"):
            with container.inner.override("fake"):
                assert work({}) == {"outer": "outer(fake)"}
            assert work({}) == {"outer": "outer(inner)"}
        assert book.taken() == ["+outer", "+inner", "+outer", "-outer", "-inner", "-outer"]
    finally:
        container.unwire()


def test_overrides_leave_nothing_behind(container: Any, fsm: SimpleFSM, book: Book) -> None:
    def once() -> None:
        with container.inner.override(lifetimes.PerState(book.opener("fake"))), container.run.override("x"):
            assert fsm.process({}).success

    def alive() -> int:
        gc.collect()
        return sum(isinstance(one, lifetimes.LifetimeProvider) for one in gc.get_objects())

    once()
    before = alive()
    for _ in range(20):
        once()
    assert alive() <= before + 1


def test_a_mistake_in_an_override_names_itself(container: Any, fsm: SimpleFSM) -> None:
    with container.inner.override(lifetimes.PerState(5)), pytest.raises(ResourceError, match="needs a callable"):
        fsm.process({}).raise_error()
    assert fsm.process({}).success
