"""How a manager and a container end: what went well is kept, what failed or was never given back is not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import containers, providers
from sqlalchemy import create_engine, text

from tests.conftest import Side
from wirestate import DatabaseResourceAdapter, ResourceContainer, ResourceManager, lifetimes, manager_of
from wirestate.errors import AsyncResourceError, ReleaseFailedError, ResourceClosedError

pytestmark = pytest.mark.usefixtures("invariant")


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
