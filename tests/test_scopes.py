"""Scopes: what is open in them, how it ends, and that nothing is lost on the way."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Side
from tests.crews import Crew
from tests.stores import Diary
from wirestate import ResourceContainer, ResourceError, lifetimes, run_in_thread
from wirestate.errors import (
    AsyncResourceError,
    NoActiveScopeError,
    ReleaseFailedError,
    ResourceUnavailableError,
    ScopeClosedError,
)
from wirestate.injection.container import OpenContainer
from wirestate.resources.scopes import current

KINDS = ["generator", "context", "close", "provider"]


class Noted:
    """Makes resources of every kind in either world, and notes how they end."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.lines: list[str] = []
        self.raising: dict[str, BaseException] = {}  # what the clean-up of a resource raises
        self.swallowing = False

    def end(self, name: str, error: BaseException | None) -> None:
        self.lines.append(f"{name}: {type(error).__name__ if error else 'ok'}")
        if name in self.raising:
            raise self.raising[name]

    def lifetime(self, kind: str, name: str, level: type[lifetimes.LifetimeProvider] = lifetimes.PerState) -> Any:
        return getattr(self, f"_{kind}")(name, level)

    def _generator(self, name: str, level: Any) -> Any:
        def plain() -> Iterator[str]:
            error: BaseException | None = None
            try:
                yield name
            except BaseException as raised:
                error = raised
                if not self.swallowing:
                    raise
            finally:
                self.end(name, error)

        async def waiting() -> AsyncIterator[str]:
            await asyncio.sleep(0)
            error: BaseException | None = None
            try:
                yield name
            except BaseException as raised:
                error = raised
                if not self.swallowing:
                    raise
            finally:
                await asyncio.sleep(0)
                self.end(name, error)

        return level(waiting if self.side.is_async else plain)

    def _context(self, name: str, level: Any) -> Any:
        noted = self

        class Plain:
            def __enter__(self) -> str:
                return name

            def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
                noted.end(name, error)
                return noted.swallowing

        class Waiting:
            async def __aenter__(self) -> str:
                await asyncio.sleep(0)
                return name

            async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
                noted.end(name, error)
                return noted.swallowing

        @contextmanager
        def plain() -> Iterator[str]:
            with Plain() as value:
                yield value

        @asynccontextmanager
        async def waiting() -> AsyncIterator[str]:
            async with Waiting() as value:
                yield value

        return level(waiting if self.side.is_async else plain)

    def _close(self, name: str, level: Any) -> Any:
        def close(value: str, error: BaseException | None = None) -> None:
            self.end(value, error)

        async def aclose(value: str, error: BaseException | None = None) -> None:
            await asyncio.sleep(0)
            self.end(value, error)

        async def acall() -> str:
            return name

        return level(acall, close=aclose) if self.side.is_async else level(lambda: name, close=close)

    def _provider(self, name: str, level: Any) -> Any:
        noted = self

        class Plain:
            def acquire(self) -> str:
                return name

            def release(self, resource: str, error: BaseException | None = None) -> None:
                noted.end(resource, error)

        class Waiting:
            async def acquire(self) -> str:
                await asyncio.sleep(0)
                return name

            async def release(self, resource: str, error: BaseException | None = None) -> None:
                noted.end(resource, error)

        return level(Waiting() if self.side.is_async else Plain())


@pytest.fixture
def noted(side: Side) -> Noted:
    return Noted(side)


def container_with(**members: Any) -> OpenContainer:
    return type("Container", (ResourceContainer,), members)()  # type: ignore[no-any-return]


async def leave_with(container: OpenContainer, error: BaseException | None, *names: str) -> None:
    async with container.manager.scope("run") as owner, owner.state("s") as visit:
        await visit.open(*names)
        assert [visit.resource(name) for name in names] == list(names)
        if error is not None:
            raise error


# --- exit rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [None, ValueError("body"), KeyboardInterrupt(), SystemExit(1)])
def test_every_kind_ends_newest_first_with_the_outcome(
    side: Side, noted: Noted, kind: str, error: BaseException | None
) -> None:
    container = container_with(a=noted.lifetime(kind, "a"), b=noted.lifetime(kind, "b"))

    async def scenario() -> BaseException | None:
        try:
            await leave_with(container, error, "a", "b")
        except BaseException as raised:
            return raised
        return None

    outcome = type(error).__name__ if error else "ok"
    raised = None
    if isinstance(error, KeyboardInterrupt | SystemExit) and side.is_async:
        with pytest.raises(type(error)):
            side.run(leave_with(container, error, "a", "b"))
        raised = error
    else:
        raised = side.run(scenario())
    assert raised is error
    assert noted.lines == [f"b: {outcome}", f"a: {outcome}"]
    assert container.manager.holders() == []
    assert container.manager.owners == {}


@pytest.mark.parametrize("kind", KINDS)
def test_the_body_error_stays_the_error_and_failing_releases_are_attached(side: Side, noted: Noted, kind: str) -> None:
    container = container_with(**{name: noted.lifetime(kind, name) for name in "abc"})
    noted.raising = {"a": OSError("a"), "c": KeyError("c")}
    error = ValueError("body")
    with pytest.raises(ValueError, match="body") as caught:
        side.run(leave_with(container, error, "a", "b", "c"))
    assert caught.value is error
    assert error.release_errors == (noted.raising["c"], noted.raising["a"])  # type: ignore[attr-defined]
    assert error.__notes__ == ["and a release failed: KeyError: 'c'", "and a release failed: OSError: a"]
    assert [line[0] for line in noted.lines] == ["c", "b", "a"]


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error that lets nobody set anything."""

    code: int


@pytest.mark.parametrize("kind", ["generator", "close", "provider"])  # contextlib itself cannot pass such an error on
def test_an_error_that_is_a_frozen_dataclass_stays_the_error_too(side: Side, noted: Noted, kind: str) -> None:
    container = container_with(**{name: noted.lifetime(kind, name) for name in "ab"})
    noted.raising = {"b": FrozenError(2)}
    error = FrozenError(1)
    with pytest.raises(FrozenError) as caught:
        side.run(leave_with(container, error, "a", "b"))
    assert caught.value is error
    assert error.release_errors == (noted.raising["b"],)  # type: ignore[attr-defined]
    assert [line[0] for line in noted.lines] == ["b", "a"]


@pytest.mark.parametrize("kind", KINDS)
def test_failing_releases_come_as_a_group_when_the_body_went_well(side: Side, noted: Noted, kind: str) -> None:
    container = container_with(**{name: noted.lifetime(kind, name) for name in "abc"})
    noted.raising = {"a": OSError("a"), "c": KeyError("c")}
    with pytest.raises(ReleaseFailedError, match="release failed in 'run/s#1'") as caught:
        side.run(leave_with(container, None, "a", "b", "c"))
    assert caught.value.exceptions == (noted.raising["c"], noted.raising["a"])
    assert noted.lines == ["c: ok", "b: KeyError", "a: KeyError"]  # nothing is committed after a failure
    assert container.manager.owners == {}


@pytest.mark.parametrize("kind", ["generator", "context"])
def test_a_clean_up_cannot_swallow_the_error_of_the_body(side: Side, noted: Noted, kind: str) -> None:
    container = container_with(a=noted.lifetime(kind, "a"), b=noted.lifetime(kind, "b"))
    noted.swallowing = True
    with pytest.raises(ValueError, match="body"):
        side.run(leave_with(container, ValueError("body"), "a", "b"))
    assert noted.lines == ["b: ValueError", "a: ValueError"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [None, ValueError("body")])
def test_an_interrupt_in_a_clean_up_goes_on_after_the_others_were_released(
    side: Side, noted: Noted, kind: str, error: BaseException | None
) -> None:
    container = container_with(a=noted.lifetime(kind, "a"), b=noted.lifetime(kind, "b"))
    noted.raising = {"b": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt) as caught:
        side.run(leave_with(container, error, "a", "b"))
    if not side.is_async:  # asyncio's runner raises one of its own
        assert caught.value.__cause__ is error
    assert [line[0] for line in noted.lines] == ["b", "a"]
    assert container.manager.holders() == []


def test_a_release_that_raises_its_outcome_again_adds_nothing(side: Side, noted: Noted) -> None:
    container = container_with(a=noted.lifetime("close", "a"))
    error = ValueError("body")
    noted.raising = {"a": error}
    with pytest.raises(ValueError, match="body"):
        side.run(leave_with(container, error, "a"))
    assert not hasattr(error, "release_errors")


@pytest.mark.parametrize("yields", [0, 2])
def test_a_generator_must_yield_once(side: Side, yields: int) -> None:
    def plain() -> Iterator[int]:
        yield from range(yields)

    async def waiting() -> AsyncIterator[int]:
        for number in range(yields):
            yield number

    container = container_with(a=lifetimes.PerState(waiting if side.is_async else plain))

    async def scenario() -> None:
        async with container.manager.scope() as owner, owner.state("s") as visit:
            await visit.open("a")

    with pytest.raises((ResourceError, ReleaseFailedError)) as caught:
        side.run(scenario())
    told = caught.value.exceptions[0] if isinstance(caught.value, ReleaseFailedError) else caught.value
    assert ("without a yield" if yields == 0 else "yielded twice") in str(told)


def test_a_generator_that_ignores_its_end_is_told_to_have_yielded_twice(side: Side) -> None:
    def plain() -> Iterator[int]:
        yield 1
        try:
            yield 2
        except GeneratorExit:
            yield 3

    async def waiting() -> AsyncIterator[int]:
        yield 1
        try:
            yield 2
        except GeneratorExit:
            yield 3

    container = container_with(a=lifetimes.PerState(waiting if side.is_async else plain))

    async def scenario() -> None:
        async with container.manager.scope() as owner, owner.state("s") as visit:
            await visit.open("a")

    with pytest.raises(ReleaseFailedError) as caught:
        side.run(scenario())
    (told,) = caught.value.exceptions
    assert "'a' yielded twice" in str(told)
    assert "ignored GeneratorExit" in str(told.__cause__)


def test_a_second_opening_that_fails_ends_the_first_with_its_error(side: Side, noted: Noted) -> None:
    def fails() -> Iterator[None]:
        raise OSError("no route")
        yield

    container = container_with(a=noted.lifetime("generator", "a"), bad=lifetimes.PerState(fails))
    with pytest.raises(ResourceUnavailableError, match="'bad' could not be had: OSError: no route"):
        side.run(leave_with(container, None, "a", "bad"))
    assert noted.lines == ["a: ResourceUnavailableError"]
    assert container.manager.owners == {}


# --- where a resource lives --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_lifetime_ends_with_its_own_bracket(side: Side, noted: Noted, kind: str) -> None:
    levels = {"once": lifetimes.Singleton, "run": lifetimes.PerOwner, "visit": lifetimes.PerState}
    container = container_with(**{name: noted.lifetime(kind, name, level) for name, level in levels.items()})

    async def scenario() -> None:
        async with container.manager.scope() as owner:
            for _ in range(2):
                async with owner.state("s") as visit:
                    await visit.open("visit", "run", "once")
                assert noted.lines == ["visit: ok"]
                noted.lines.clear()
        assert noted.lines == ["run: ok"]
        await side.call(container.manager, "close")
        assert noted.lines == ["run: ok", "once: ok"]

    side.run(scenario())


def test_outside_a_scope_the_error_names_the_resource_and_the_way() -> None:
    container = container_with(a=lifetimes.PerState(list), b=lifetimes.PerOwner(list), c=lifetimes.Singleton(list))
    with pytest.raises(NoActiveScopeError, match=r"'a' lives per state .* scope\.state\(") as caught:
        container.a()
    assert caught.value.resource_name == "a"
    with pytest.raises(NoActiveScopeError, match=r"'b' lives per owner"):
        container.b()
    with container.manager.scope() as owner:
        assert owner.resource("b") == []
        with pytest.raises(NoActiveScopeError, match="'a' lives per state"):
            owner.resource("a")
    assert container.c() is container.c()
    container.shutdown_resources()


def test_an_owners_object_cannot_hold_one_of_a_visit() -> None:
    def lazy() -> Any:
        return container.visit()

    container = container_with(visit=lifetimes.PerState(list), run=lifetimes.PerOwner(lazy))
    with container.manager.scope() as owner, owner.state("s"):
        assert container.visit() == []
        with pytest.raises(NoActiveScopeError, match="'visit' lives per state"):
            container.run()
    container.shutdown_resources()


def test_a_closed_scope_that_a_task_inherited_hands_out_nothing() -> None:
    container = container_with(a=lifetimes.PerState(list), b=lifetimes.PerOwner(list))

    async def scenario() -> None:
        ended = asyncio.Event()

        async def late() -> list[Any]:
            await ended.wait()
            return [error_of(container.a), error_of(container.b)]

        async with container.manager.scope() as owner, owner.state("s"):
            container.a()
            task = asyncio.create_task(late())
        ended.set()
        assert [type(error) for error in await task] == [ScopeClosedError, ScopeClosedError]

    asyncio.run(scenario())
    assert current.get() is None
    container.shutdown_resources()


def error_of(call: Callable[[], Any]) -> BaseException | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def test_a_thread_sees_the_scope_only_if_it_is_carried() -> None:
    container = container_with(a=lifetimes.PerState(list))
    found: list[Any] = []
    with container.manager.scope() as owner, owner.state("s"):
        mine = container.a()
        for call in (lambda: found.append(error_of(container.a)), run_in_thread(lambda: found.append(container.a()))):
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
    assert isinstance(found[0], NoActiveScopeError)
    assert found[1] is mine
    container.shutdown_resources()


def test_leaving_in_another_context_restores_by_value() -> None:
    container = container_with(a=lifetimes.PerState(list))
    scope = container.manager.scope()
    contextvars.copy_context().run(scope.__enter__)
    scope.__exit__(None, None, None)
    assert current.get() is None
    container.shutdown_resources()


# --- single flight -----------------------------------------------------------------------------------


def test_one_scope_used_at_once_opens_each_resource_once(side: Side) -> None:
    made: list[int] = []
    may_open = threading.Event()

    def plain() -> Iterator[int]:
        made.append(1)
        assert may_open.wait(20)
        yield len(made)

    async def waiting() -> AsyncIterator[int]:
        made.append(1)
        while not may_open.is_set():
            await asyncio.sleep(0.001)
        yield len(made)

    container = container_with(a=lifetimes.PerState(waiting if side.is_async else plain))

    async def scenario() -> None:
        crew = Crew(side.world)
        async with container.manager.scope() as owner, owner.state("s") as visit:

            async def use() -> Any:
                if side.is_async:
                    await visit.open("a")
                return visit.resource("a")

            members = [crew.start(use()) for _ in range(8)]
            await crew.until(lambda: bool(made))
            may_open.set()
            assert [await member.result() for member in members] == [1] * 8
        assert made == [1]

    side.run(scenario())


def test_when_the_first_to_open_fails_the_next_one_tries(side: Side) -> None:
    tried: list[int] = []
    may_open = threading.Event()

    def plain() -> int:
        tried.append(1)
        assert may_open.wait(20)
        if len(tried) == 1:
            raise OSError("first")
        return len(tried)

    async def waiting() -> int:
        tried.append(1)
        while not may_open.is_set():
            await asyncio.sleep(0.001)
        if len(tried) == 1:
            raise OSError("first")
        return len(tried)

    container = container_with(a=lifetimes.PerOwner(waiting if side.is_async else plain))

    async def scenario() -> None:
        crew = Crew(side.world)
        async with container.manager.scope() as owner:

            async def use() -> Any:
                if side.is_async:
                    await owner.open("a")
                return owner.resource("a")

            first = crew.start(use())
            await crew.until(lambda: bool(tried))
            second = crew.start(use())
            may_open.set()
            assert {type(await first.error()), await second.result()} == {ResourceUnavailableError, 2}

    side.run(scenario())


def test_a_resource_that_asks_for_itself_is_refused() -> None:
    def again() -> Any:
        return container.a()

    container = container_with(a=lifetimes.PerOwner(again))
    with container.manager.scope(), pytest.raises(ResourceError, match="'a' asks for itself"):
        container.a()
    container.shutdown_resources()


# --- asynchronous resources --------------------------------------------------------------------------


def test_an_asynchronous_resource_must_be_opened_first_and_left_with_async_with() -> None:
    noted = Noted(Side.__new__(Side))
    noted.side.is_async = True
    container = container_with(a=noted.lifetime("generator", "a"))

    async def scenario() -> None:
        owner = container.manager.scope()
        visit = owner.state("s")
        with pytest.raises(AsyncResourceError, match=r"await scope\.open"):
            visit.resource("a")
        with pytest.raises(AsyncResourceError, match="leave the scope with 'async with'"), owner:
            await visit.open("a")
        assert visit.resource("a") == "a"
        assert current.get() is None
        with pytest.raises(ValueError, match="body"), owner:
            raise ValueError("body")
        assert noted.lines == []
        await container.manager.aclose()
        assert noted.lines == ["a: ResourceClosedError"]  # its scope was never left as it should

    asyncio.run(scenario())


def test_an_owner_opens_in_its_visit_that_is_open_here(side: Side, noted: Noted) -> None:
    container = container_with(ledger=noted.lifetime("generator", "ledger"))

    async def scenario() -> None:
        async with container.manager.scope("o") as owner:
            with pytest.raises(NoActiveScopeError):
                await owner.open("ledger")
            async with owner.state("x") as visit:
                await owner.open("ledger")
                assert owner.resource("ledger") == visit.resource("ledger") == "ledger"
                async with container.manager.scope("other") as other:
                    assert owner.resource("ledger") == "ledger"
                    with pytest.raises(NoActiveScopeError):
                        other.resource("ledger")
            assert noted.lines == ["ledger: ok"]
            with pytest.raises(NoActiveScopeError):
                owner.resource("ledger")

    asyncio.run(scenario())


@pytest.mark.parametrize("failing", [False, True])
def test_a_refused_exit_gives_the_id_of_its_owner_free(failing: bool) -> None:
    noted = Noted(Side.__new__(Side))
    noted.side.is_async = True
    container = container_with(a=noted.lifetime("generator", "a"))
    manager = container.manager
    left = []

    async def enter_plainly() -> None:
        with manager.scope("o") as owner, owner.state("x"):
            left.append(owner)
            await owner.open("a")
            if failing:
                raise ValueError("body")

    async def scenario() -> None:
        expected = ValueError if failing else AsyncResourceError
        for _ in range(2):
            with pytest.raises(expected):
                await enter_plainly()
        owner = left[-1]
        async with manager.scope("o"):
            assert manager.find("o") is not owner
        assert noted.lines == []
        async with owner:  # left after all
            pass
        assert noted.lines == ["a: ok"]
        await manager.aclose()
        assert len(noted.lines) == 2
        assert list(manager.scopes()) == [manager.root]

    asyncio.run(scenario())


def test_open_takes_functions_and_opens_what_they_inject(side: Side, noted: Noted) -> None:
    from dependency_injector.wiring import Provide, inject

    container = container_with(
        a=noted.lifetime("generator", "a"), b=noted.lifetime("generator", "b"), c=noted.lifetime("generator", "c")
    )

    @inject
    def needs(x: int, a: Any = Provide["a"], b: Any = Provide["b"]) -> None: ...

    async def scenario() -> None:
        async with container.manager.scope() as owner, owner.state("s") as visit:
            await visit.open(needs)
            assert [holder.resource for holder in container.manager.holders()] == ["a", "b"]
            with pytest.raises(ResourceError, match="takes names, or functions"):
                await visit.open(5)

    side.run(scenario())
    assert noted.lines == ["b: ok", "a: ok"]


# --- cancellation and interrupts ---------------------------------------------------------------------


def test_a_cancelled_opening_leaves_nothing_behind() -> None:
    ended: list[str] = []

    async def first() -> AsyncIterator[str]:
        try:
            yield "first"
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    async def never() -> AsyncIterator[str]:
        try:
            await asyncio.sleep(3600)
            yield "never"
        finally:
            ended.append("half-made")

    container = container_with(
        first=lifetimes.PerState(first),
        never=lifetimes.PerState(
            never,
        ),
    )

    async def scenario() -> None:
        task = asyncio.create_task(leave_with(container, None, "first", "never"))
        while not container.manager.holders():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["half-made", "CancelledError"]
        assert container.manager.owners == {}
        await container.manager.aclose()

    asyncio.run(scenario())


def test_a_clean_up_that_is_cancelled_lets_the_others_end_and_the_cancellation_go_on() -> None:
    ended: list[str] = []
    reached = asyncio.Event()

    async def other() -> AsyncIterator[str]:
        try:
            yield "other"
        except asyncio.CancelledError:
            ended.append("other: cancelled")
            raise

    async def slow() -> AsyncIterator[str]:
        yield "slow"
        reached.set()
        await asyncio.sleep(3600)

    container = container_with(other=lifetimes.PerState(other), slow=lifetimes.PerState(slow))

    async def scenario() -> None:
        task = asyncio.create_task(leave_with(container, None, "other", "slow"))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["other: cancelled"]
        assert container.manager.holders() == []
        await container.manager.aclose()

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["scope", "acquire", "keep"])
def test_an_interrupt_at_any_place_loses_no_capacity(way: str) -> None:
    # In a process of its own: pytest keeps what a finalizer raised, and with it the resource.
    root = Path(__file__).parent.parent
    storm = [sys.executable, "-W", "ignore", "-m", "tests.interrupts", way]
    subprocess.run(storm, cwd=root, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=50, check=True)


# --- names -------------------------------------------------------------------------------------------


def test_visits_are_numbered_and_named() -> None:
    diary = Diary()
    container = container_with(a=lifetimes.PerState(diary.resource("a")))
    with container.manager.scope("job") as owner:
        for number in (1, 2):
            with owner.state("load") as visit:
                container.a()
                assert visit.owner_id == str(visit) == f"job/load#{number}"
                assert repr(visit) == f"<StateScope 'job/load#{number}', 1 open>"
        assert repr(visit) == "<StateScope 'job/load#2', closed>"
        with owner.state("save") as visit:
            assert visit.owner_id == "job/save#1"
    container.shutdown_resources()
