"""Threads that share one owner: what one gives back another never gets, wherever the two meet."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import FrameType
from typing import Any

import pytest

from tests.conftest import Side
from tests.crews import PATIENCE, Crew, Maker, ThreadMaker
from tests.invariant import Invariant
from wirestate import BaseResourceProvider, ResourceManager
from wirestate.errors import NotHeldError, OwnerInUseError, UnknownResourceError
from wirestate.waiting import BLOCKING, drive

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture
def maker(invariant: Invariant) -> Maker:
    return invariant.watch(ThreadMaker())  # type: ignore[no-any-return]  # watch() gives back what it got


@pytest.fixture
def manager(invariant: Invariant, maker: Maker) -> ResourceManager:
    made: ResourceManager = invariant.watch(ResourceManager())
    made.register_provider("db", maker, lifetime="per_owner")
    made.register_provider("cache", maker)
    return made


class Stop:
    """Runs an act in a thread, and holds it at the n-th line of the library."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self._left = at
        self._act = act
        self._there, self._on = threading.Event(), threading.Event()
        self.reached = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._there.wait(PATIENCE)

    def _run(self) -> None:
        sys.settrace(self._trace)
        try:
            self._act()
        except BaseException as error:
            self.error = error
        finally:
            sys.settrace(None)
            self._there.set()

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if "wirestate/resources/" not in frame.f_code.co_filename.replace("\\", "/"):
            return None
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self.reached = True
                self._there.set()
                assert self._on.wait(PATIENCE)
        return self._trace

    def end(self) -> None:
        self._on.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "stuck"


def put(had: list[Any], taking: Callable[[], object]) -> None:
    had.append(taking())


def meet(manager: ResourceManager, giving: Callable[[], object], taking: Callable[[], object]) -> Iterator[Any]:
    """Take while another gives back, at each line of that in turn; yield what was had once both are done."""
    for at in range(1, 1000):
        manager.acquire("db", "a")
        stop = Stop(at, giving)
        had: list[Any] = []
        taker = threading.Thread(target=put, args=(had, taking), daemon=True)
        taker.start()
        taker.join(0.02)  # it may need the lock that the other holds: then it comes after
        stop.end()
        taker.join(PATIENCE)
        assert stop.error is None
        yield had[0]
        if not stop.reached:
            assert at > 10, "there was nowhere to meet"
            return
    raise AssertionError("it had no end")


def test_what_an_owner_gives_back_another_thread_of_it_never_gets(manager: ResourceManager, maker: Maker) -> None:
    manager.acquire("cache", "a")  # so that the owner stays
    for had in meet(manager, lambda: manager.release("db", "a"), lambda: manager.acquire("db", "a")):
        assert had in maker.live
        manager.release("db", "a")
        assert had not in maker.live
    manager.release_all("a")


def test_all_that_is_given_back_at_once_is_got_by_no_other_thread(manager: ResourceManager, maker: Maker) -> None:
    with manager.scope("a"):
        for had in meet(manager, lambda: manager.release_all("a"), lambda: manager.acquire("db", "a")):
            with nullcontext() if had in maker.live else pytest.raises(NotHeldError):  # given back with the rest
                manager.release("db", "a")
            manager.release_all("a")
            assert not maker.live


def test_what_a_scope_uses_is_not_given_back_by_a_release(manager: ResourceManager, maker: Maker) -> None:
    owner: Any = None

    def scopes() -> Iterator[None]:
        nonlocal owner
        while True:
            with manager.scope("a") as owner:
                yield
                assert len(maker.live) == 1
            assert not maker.live

    rounds = scopes()
    next(rounds)

    for had in meet(manager, lambda: manager.release("db", "a"), lambda: owner.resource("db")):
        assert had in maker.live
        next(rounds)
    rounds.close()


class Meddler(BaseResourceProvider):
    """Does something else while it takes a resource back."""

    def __init__(self) -> None:
        super().__init__("meddler")
        self.meddle: Callable[[], object] = list

    def acquire(self, **options: Any) -> object:
        return object()

    def release(self, resource: object) -> None:
        self.meddle()


def test_giving_all_back_does_not_mind_that_another_was_faster(
    side: Side, manager: ResourceManager, maker: Maker
) -> None:
    meddler = Meddler()
    meddler.meddle = lambda: manager.release("cache", "a")
    manager.register_provider("meddler", meddler)

    async def scenario() -> None:
        with manager.scope("a"):
            for name in ("db", "cache", "meddler"):
                await side.call(manager, "acquire", name, "a")
            await side.call(manager, "release_all", "a")
            assert not maker.live
            assert manager.holders() == []

    side.run(scenario())


def test_what_is_still_opened_is_not_given_back_with_the_rest(manager: ResourceManager, maker: Maker) -> None:
    crew = Crew(BLOCKING)
    maker.open.clear()

    async def use() -> Any:
        with manager.resource_context("db", "a") as resource:
            return resource in maker.live

    async def scenario() -> None:
        with manager.scope("a"):
            user = crew.start(use())
            await crew.until(lambda: maker.creating == 1)
            manager.release_all("a")
            maker.open.set()
            assert await user.result()
            assert not maker.live

    drive(scenario())


class Hooked(str):
    """A name that does something when a release compares it."""

    hook: Callable[[], object] = list

    __eq__ = str.__eq__
    __hash__ = str.__hash__

    def __ne__(self, other: object) -> bool:
        hook, self.hook = self.hook, list
        hook()
        return str.__ne__(self, other)


def test_a_scope_that_opens_while_others_release_and_begin_anew_stays_listed(
    manager: ResourceManager, maker: Maker
) -> None:
    inside, on = threading.Event(), threading.Event()
    opened: list[Any] = []

    def stand_still(owner_id: str) -> None:  # while the manager looks for the owner
        if threading.current_thread() is opener:
            inside.set()
            assert on.wait(PATIENCE)

    def begin_anew() -> None:
        manager.release("cache", "a")
        manager.acquire("cache", "a")
        opener.start()
        assert inside.wait(PATIENCE)

    opener = threading.Thread(target=lambda: opened.append(manager.scope("a")), daemon=True)
    manager.key_of = stand_still
    manager.acquire("cache", "a")
    name = Hooked("cache")
    name.hook = begin_anew
    releaser = threading.Thread(target=manager.release, args=(name, "a"), daemon=True)
    releaser.start()
    drive(Crew(BLOCKING).until(lambda: inside.is_set() and "a" not in manager._loans))
    on.set()
    for thread in (releaser, opener):
        thread.join(PATIENCE)
    with opened[0]:
        assert manager.owners == {"a": opened[0]}
        with pytest.raises(OwnerInUseError):
            manager.scope("a")
    assert not maker.live


def test_of_two_that_unregister_one_name_one_is_refused(invariant: Invariant) -> None:
    for at in range(1, 1000):
        manager = invariant.watch(ResourceManager())
        manager.register_provider("db", ThreadMaker())
        refused: list[BaseException] = []

        def unregister(manager: ResourceManager = manager, refused: list[BaseException] = refused) -> None:
            try:
                manager.unregister_provider("db")
            except UnknownResourceError as error:
                refused.append(error)

        stop = Stop(at, unregister)
        other = threading.Thread(target=unregister, daemon=True)
        other.start()
        other.join(0.02)
        stop.end()
        other.join(PATIENCE)
        assert stop.error is None
        assert len(refused) == 1
        assert manager.names == []
        manager.close()
        if not stop.reached:
            return
