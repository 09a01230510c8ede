"""Fixtures for all tests: both worlds, and an environment without the settings of the one who runs them."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.invariant import Invariant
from tests.secrets_net import spread
from tests.stores import MADE
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive


class Side:
    """One of the two worlds; a scenario is written once as a coroutine and run in either.

    ``await side.call(pool, "acquire", 1.0)`` calls ``pool.acquire(1.0)``, or awaits ``pool.aacquire(1.0)``.
    """

    def __init__(self, world: World, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self.world = world
        self.is_async = world.is_async
        self.run = run

    async def call(self, thing: object, verb: str, *args: Any, **kwargs: Any) -> Any:
        """Call *verb* of *thing*, or its asynchronous twin."""
        if not self.is_async:
            return getattr(thing, verb)(*args, **kwargs)
        answer: Awaitable[Any] | Any = getattr(thing, f"a{verb}")(*args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    def __repr__(self) -> str:
        return "tasks" if self.is_async else "threads"


@pytest.fixture(params=["threads", "tasks"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    """Give each world in turn; tasks share one event loop within a test."""
    if request.param == "threads":
        yield Side(BLOCKING, drive)
        return
    with asyncio.Runner() as runner:
        yield Side(SUSPENDING, runner.run)


_modules_seen = 0


@pytest.fixture(autouse=True)
def _collections_are_cheap() -> None:
    """Keep what modules made out of the collector's way: many tests collect, and a walk over it takes up to 0.1 s."""
    global _modules_seen  # noqa: PLW0603  # of the session
    if len(sys.modules) != _modules_seen:
        gc.collect()
        gc.freeze()
        _modules_seen = len(sys.modules)


@pytest.fixture
def invariant(request: pytest.FixtureRequest) -> Iterator[Invariant]:
    """Watch pools, gates, managers and makers; at the end of the test nothing may be lost."""
    side = request.getfixturevalue("side") if "side" in request.fixturenames else None
    watching = Invariant(side.run if side is not None and side.is_async else asyncio.run)
    yield watching
    watching.check()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("WIRESTATE_"):
            monkeypatch.delenv(name)


def pytest_configure(config: pytest.Config) -> None:
    """Look for secrets in all that is shown. And let signals work that a shell's background jobs and nohup ignore."""
    spread(config)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _stores_are_closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()
