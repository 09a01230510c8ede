"""How a manager and a container end: what went well is kept, what failed or was never given back is not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, inject
from sqlalchemy import create_engine, text

from tests.conftest import Side
from tests.crews import PATIENCE, Crew
from wirestate import DatabaseResourceAdapter, ResourceContainer, ResourceManager, lifetimes, manager_of
from wirestate.errors import AsyncResourceError, ReleaseFailedError, ResourceClosedError
from wirestate.observing import Listener
from wirestate.resources.scopes import current
from wirestate.testing import injected

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture(autouse=True)
def _no_scope_stays_current() -> Iterator[None]:
    """Restore the current scope: some tests enter one that they never leave, and the next test would find it."""
    before = current.get()
    yield
    current.set(before)


class Noted:
    """Notes with which outcome its lease and its singleton end."""

    def __init__(self) -> None:
        self.outcomes: dict[str, BaseException | None] = {}
        self.failing: BaseException | None = None

    def lease(self, name: str) -> Iterator[str]:
        outcome: BaseException | None = None
        try:
            yield name
        except BaseException as error:
            outcome = error
            raise
        finally:
            self.outcomes[name] = outcome
            if self.failing is not None:
                raise self.failing

    def container(self) -> Any:
        class App(ResourceContainer):
            lent = lifetimes.PerState(self.lease, "lent")
            shared = lifetimes.Singleton(self.lease, "shared")

        app = App()
        app.init_resources()
        return app


@pytest.fixture
def noted() -> Noted:
    return Noted()


async def within(side: Side, block: Any, body: Callable[[], Any]) -> None:
    if side.is_async:
        async with block:
            body()
    else:
        with block:
            body()


@pytest.mark.parametrize("of", ["container", "manager"])
def test_a_block_that_raises_rolls_back_what_was_acquired_in_it(side: Side, of: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/people.db"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE people (name TEXT)"))

    class App(ResourceContainer):
        database = lifetimes.PerState(DatabaseResourceAdapter, url=url)

    app = App()

    def body() -> None:
        app.manager.acquire("database", "job").execute(text("INSERT INTO people VALUES ('Ada')"))
        raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        side.run(within(side, app if of == "container" else app.manager, body))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM people")).scalar() == 0
    engine.dispose()


@pytest.mark.parametrize("of", ["container", "manager"])
def test_the_outcome_of_a_block_reaches_what_lives_as_long_as_its_container(side: Side, of: str, noted: Noted) -> None:
    error = ValueError("body")
    for outcome in (error, None):
        app = noted.container()

        def body(outcome: Exception | None = outcome) -> None:
            if outcome is not None:
                raise outcome

        try:
            raise LookupError("handled while the block runs")
        except LookupError:
            with contextlib.suppress(ValueError):
                side.run(within(side, app if of == "container" else manager_of(app), body))
        assert noted.outcomes == {"shared": outcome}


ENDS = {
    "close": lambda app: manager_of(app).close(),
    "aclose": lambda app: asyncio.run(manager_of(app).aclose()),
    "cleanup": lambda app: asyncio.run(manager_of(app).cleanup()),
    "shutdown": lambda app: app.shutdown_resources(),
    "with manager": lambda app: manager_of(app).__exit__(None, None, None),
    "with container": lambda app: app.__exit__(None, None, None),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("many", [False, True])
def test_what_nobody_gave_back_is_rolled_back_and_told(
    end: str, many: bool, noted: Noted, caplog: pytest.LogCaptureFixture
) -> None:
    app = noted.container()
    manager = manager_of(app)
    manager.acquire("lent", "job")
    if many:
        manager.acquire("shared", "job")  # more than one thing: no longer a loan, but a scope
    with caplog.at_level(logging.WARNING, "wirestate"):
        ENDS[end](app)
    told = "the container's manager was closed before everything was released, and rolled back: 'job' holds 'lent'"
    assert [record.getMessage() for record in caplog.records] == [told]
    assert isinstance(noted.outcomes["lent"], ResourceClosedError)
    assert "'job'" in str(noted.outcomes["lent"])
    assert noted.outcomes["shared"] is None


def test_a_close_tells_no_more_owners_than_one_can_read(caplog: pytest.LogCaptureFixture) -> None:
    manager = ResourceManager()
    manager.register_provider("noted", _Releasing())
    for number in range(25):
        manager.acquire("noted", f"job-{number:02}")
    with caplog.at_level(logging.WARNING, "wirestate"):
        manager.close()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.count("holds") == 10
    assert told.endswith("'job-09' holds 'noted'; and 15 more")


class _Releasing:
    name = "noted"

    def acquire(self) -> list[int]:
        return []

    def release(self, resource: list[int]) -> None:
        resource.clear()


@pytest.mark.parametrize("end", ["close", "aclose", "cleanup", "shutdown"])
def test_an_end_while_an_error_is_handled_has_it_as_outcome(end: str, noted: Noted) -> None:
    app = noted.container()
    manager_of(app).acquire("lent", "job")
    error = ValueError("body")
    with pytest.raises(ValueError, match="body"):
        _ended_finally(app, ENDS[end] if end in ("close", "shutdown") else _awaited(end), error)
    assert noted.outcomes == {"lent": error, "shared": error}


def _awaited(verb: str) -> Callable[[Any], None]:
    def end(app: Any) -> None:
        coroutine = getattr(manager_of(app), verb)()
        with pytest.raises(StopIteration):
            coroutine.send(None)

    return end


def _ended_finally(app: Any, end: Callable[[Any], None], error: Exception) -> None:
    try:
        raise error
    finally:
        end(app)


def test_a_block_whose_manager_was_closed_inside_does_not_end_well(side: Side, noted: Noted) -> None:
    app = noted.container()
    manager = manager_of(app)
    with pytest.raises(ResourceClosedError, match="'job' released what it had acquired, which was rolled back"):
        side.run(within(side, manager.resource_context("lent", "job"), manager.close))
    assert isinstance(noted.outcomes["lent"], ResourceClosedError)


def test_what_the_end_of_a_container_raises_is_attached_to_the_error_of_its_block(side: Side, noted: Noted) -> None:
    app = noted.container()
    noted.failing = OSError("release")

    def body() -> None:
        raise ValueError("body")

    with pytest.raises(ValueError, match="body") as caught:
        side.run(within(side, app, body))
    assert any("OSError: release" in note or "release failed" in note for note in caught.value.__notes__)
    app = noted.container()
    with pytest.raises(ReleaseFailedError):
        side.run(within(side, app, lambda: None))


ENDED: list[str] = []


async def waiting() -> AsyncIterator[str]:
    yield "it"
    ENDED.append("ended")


@pytest.mark.parametrize("own", [True, False])
def test_a_plain_block_refuses_what_only_an_event_loop_can_end(own: bool) -> None:
    ENDED.clear()

    class App(ResourceContainer):
        thing = lifetimes.Singleton(waiting) if own else providers.Resource(waiting)

    async def scenario() -> None:
        app: Any = App()
        with pytest.raises(AsyncResourceError, match="use 'async with container'"), app:
            await app.init_resources()
        assert ENDED == []
        async with app:
            assert isinstance(app, containers.DynamicContainer)
        assert ENDED == ["ended"]

    asyncio.run(scenario())


# --- in which order, and with which outcome -------------------------------------------------------


class Ends:
    """Resources of either world that note which of them ended, in order and with which outcome."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.ended: list[tuple[str, str | None]] = []
        self.halts: set[str] = set()  # those whose end takes until ``go_on``
        self.halted, self.go_on = threading.Event(), threading.Event()

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Run it where scopes that it enters and never leaves are current for nobody else."""
        copy_context().run(self.side.run, scenario)

    def resource(self, name: str) -> Callable[[], Any]:
        def plain() -> Iterator[str]:
            outcome = None
            try:
                yield name
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                self.ended.append((name, outcome))
                if name in self.halts:
                    self.halted.set()
                    assert self.go_on.wait(PATIENCE)

        async def waiting() -> AsyncIterator[str]:
            outcome = None
            try:
                yield name
            except BaseException as error:
                outcome = type(error).__name__
                raise
            finally:
                self.ended.append((name, outcome))
                if name in self.halts:
                    self.halted.set()
                    await Crew(self.side.world).until(self.go_on.is_set)

        return waiting if self.side.is_async else plain

    def container(self, **members: Any) -> Any:
        made = type("App", (ResourceContainer,), {name: kind(self.resource(name)) for name, kind in members.items()})()
        made.manager  # before threads meet at it
        return made


@pytest.fixture
def ends(side: Side) -> Ends:
    return Ends(side)


async def opened(side: Side, scope: Any, name: str) -> None:
    if side.is_async:
        await scope.open(name)
    else:
        scope.resource(name)


async def left(side: Side, scope: Any) -> None:
    """Leave what was entered by hand."""
    if side.is_async:
        await scope.__aexit__(None, None, None)
    else:
        scope.__exit__(None, None, None)


async def left_in_vain(side: Side, scope: Any) -> None:
    """Leave a scope whose manager was closed: who is inside must not take for kept what was rolled back."""
    with pytest.raises(ReleaseFailedError) as caught:
        await left(side, scope)
    (told,) = caught.value.exceptions
    assert isinstance(told, ResourceClosedError)
    assert "was open when its container or machine was closed" in str(told)


def test_visits_that_are_open_when_their_owner_leaves_end_newest_first(side: Side, ends: Ends) -> None:
    app = ends.container(first=lifetimes.PerState, second=lifetimes.PerState, own=lifetimes.PerOwner)

    async def scenario() -> None:
        owner = app.manager.scope("job").__enter__()
        await opened(side, owner, "own")
        for name in ("first", "second"):
            await opened(side, owner.state(name).__enter__(), name)
        await left(side, owner)
        assert ends.ended == [("second", None), ("first", None), ("own", None)]
        assert app.manager.holders() == []

    ends.run(scenario())


def test_owners_that_are_inside_when_their_manager_closes_end_newest_first(side: Side, ends: Ends) -> None:
    app = ends.container(first=lifetimes.PerOwner, second=lifetimes.PerOwner, shared=lifetimes.Singleton)

    async def scenario() -> None:
        for name in ("first", "second"):
            await opened(side, app.manager.scope(name).__enter__(), name)
            await opened(side, app.manager.root, "shared")
        await side.call(app.manager, "close")
        assert [name for name, _ in ends.ended] == ["second", "first", "shared"]

    ends.run(scenario())


@pytest.mark.parametrize("in_a_visit", [False, True])
def test_what_an_owner_itself_holds_is_rolled_back_by_a_close(side: Side, ends: Ends, in_a_visit: bool) -> None:
    app = ends.container(own=lifetimes.PerOwner, visited=lifetimes.PerState)

    async def scenario() -> None:
        owner = app.manager.scope("job").__enter__()
        await opened(side, owner, "own")
        if in_a_visit:
            await opened(side, owner.state("s").__enter__(), "visited")
        await side.call(app.manager, "close")
        names = ["visited", "own"] if in_a_visit else ["own"]
        assert ends.ended == [(name, "ResourceClosedError") for name in names]
        await left_in_vain(side, owner)

    ends.run(scenario())


@pytest.mark.parametrize("part", ["visit", "owner"])
def test_what_is_left_while_a_close_is_at_work_keeps_nothing(side: Side, ends: Ends, part: str) -> None:
    """The close ends the newest visit first, which takes its time: what is older ends before the close gets there."""
    app = ends.container(own=lifetimes.PerOwner, old=lifetimes.PerState, slow=lifetimes.PerState)
    ends.halts.add("slow")
    crew = Crew(side.world)

    async def scenario() -> None:
        owner = app.manager.scope("job").__enter__()
        await opened(side, owner, "own")
        old = owner.state("s").__enter__()
        await opened(side, old, "old")
        await opened(side, owner.state("s").__enter__(), "slow")
        closing = crew.start(side.call(app.manager, "close"))
        await crew.until(ends.halted.is_set)
        try:
            await left_in_vain(side, old if part == "visit" else owner)
        finally:
            ends.go_on.set()
        await closing.result()
        assert ends.ended == [(name, "ResourceClosedError") for name in ("slow", "old", "own")]

    ends.run(scenario())


class Interrupting(Listener):
    """Interrupts in the moment in which a lease is open, and its scope does not know of it."""

    def on_open(self, resource: str, owner_id: str, seconds: float) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [lifetimes.Singleton, lifetimes.PerOwner, lifetimes.PerState])
def test_what_an_interrupt_met_between_its_opening_and_its_place_is_rolled_back(
    side: Side, ends: Ends, kind: Any
) -> None:
    app = ends.container(it=kind)

    async def scenario() -> None:
        owner = app.manager.scope("job").__enter__()
        visit = owner.state("s").__enter__()
        app.manager.listener = Interrupting()
        with pytest.raises(KeyboardInterrupt):
            await opened(side, visit, "it")
        app.manager.listener = None
        assert (ends.ended, app.manager.holders()) == ([("it", "KeyboardInterrupt")], [])
        await opened(side, visit, "it")  # its place is free
        await left(side, visit)
        await left(side, owner)
        await side.call(app.manager, "close")
        assert ends.ended == [("it", "KeyboardInterrupt"), ("it", None)]

    ends.run(scenario())


@pytest.mark.parametrize("kind", [lifetimes.Singleton, lifetimes.PerOwner, lifetimes.PerState])
def test_a_function_gets_what_is_made_anew_after_its_container_was_closed(kind: Any) -> None:
    made: list[str] = []

    def resource() -> Iterator[int]:
        made.append("open")
        yield len(made)
        made.append("close")

    class App(ResourceContainer):
        it = kind(resource)

    @inject
    def look(it: int = Provide["it"]) -> int:
        return it

    app = App()
    for turn in range(2):
        with injected(app, look) as call:
            assert call() == 2 * turn + 1
        app.shutdown_resources()
        assert made == ["open", "close"] * (turn + 1)


def test_who_holds_what_is_told_the_longest_first(side: Side, ends: Ends) -> None:
    app = ends.container(shared=lifetimes.Singleton, own=lifetimes.PerOwner, visited=lifetimes.PerState)

    async def scenario() -> None:
        manager = app.manager
        owners = [manager.scope(name).__enter__() for name in ("b", "a")]
        visits = [owner.state("s").__enter__() for owner in owners]
        for visit in reversed(visits):
            await opened(side, visit, "visited")
        for owner in owners:
            await opened(side, owner, "own")
        await opened(side, owners[0], "shared")
        await side.call(manager, "acquire", "visited", "c")
        found = [(holder.resource, holder.owner_id) for holder in manager.holders()]
        assert found == [
            ("visited", "a/s#1"),
            ("visited", "b/s#1"),
            ("own", "b"),
            ("own", "a"),
            ("shared", "container"),
            ("visited", "c"),
        ]
        held = [holder.seconds for holder in manager.holders()]
        assert held == sorted(held, reverse=True)
        assert manager.get_resource_owners("visited") == ["a/s#1", "b/s#1", "c"]
        await side.call(manager, "release", "visited", "c")
        for scope in (*visits, *owners):
            await left(side, scope)
        await side.call(manager, "close")

    ends.run(scenario())
