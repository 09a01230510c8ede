"""The thread that looks after pools: when, one at a time each, and for no longer than there is a pool."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from tests.crews import PATIENCE, Crew
from wirestate.resources.upkeep import Upkeep
from wirestate.waiting import BLOCKING, drive


class Tended:
    """Counts how often it was looked after."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.act = act
        self.looks = self.inside = self.most_inside = 0
        self._lock = threading.Lock()

    def reap(self) -> int:
        with self._lock:
            self.looks += 1
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            self.act()
        finally:
            with self._lock:
                self.inside -= 1
        return 0


@pytest.fixture
def upkeep() -> Iterator[Upkeep]:
    """Give one of its own; at the end its thread must end."""
    made = Upkeep()
    yield made
    for tended in [*made._watched, Tended()]:  # the last one wakes the thread
        made.forget(tended)
    until(lambda: made._thread is None)


def until(so: Callable[[], bool]) -> None:
    drive(Crew(BLOCKING).until(so))


def test_what_is_watched_is_looked_after_at_once_and_again(upkeep: Upkeep) -> None:
    rare, often = Tended(), Tended()
    upkeep.watch(rare, 3600)
    until(lambda: rare.looks == 1)
    upkeep.watch(often, 0.01)  # the thread sleeps for an hour by now
    until(lambda: often.looks >= 3)
    assert rare.looks == 1


def test_it_comes_earlier_when_it_is_hastened_never_later(upkeep: Upkeep) -> None:
    tended, barrier = Tended(), Tended()
    upkeep.watch(tended, 3600)
    until(lambda: tended.looks == 1)
    upkeep.hasten(tended, 0.0)
    until(lambda: tended.looks == 2)
    following = upkeep._watched[tended]
    upkeep.hasten(tended, following[0] + 3600)
    assert upkeep._watched[tended] == following
    upkeep.hasten(barrier, 0.0)  # nobody watches it
    assert barrier not in upkeep._watched


def test_each_is_looked_after_by_one_thread_at_a_time_and_again_if_it_was_due_meanwhile(upkeep: Upkeep) -> None:
    go_on = threading.Event()
    tended, other = Tended(lambda: go_on.wait(PATIENCE)), Tended()
    upkeep.watch(tended, 3600)
    until(lambda: tended.inside == 1)
    for number in range(1, 4):
        upkeep.hasten(tended, 0.0)
        upkeep.watch(other, 3600)
        until(lambda number=number: other.looks == number)  # type: ignore[misc]
    assert tended.looks == 1
    go_on.set()
    until(lambda: tended.looks == 2 and tended not in upkeep._busy)
    assert tended.most_inside == 1


def test_trouble_with_one_is_told_and_ends_nothing(upkeep: Upkeep, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("down")

    tended = Tended(fail)
    upkeep.watch(tended, 0.01)
    until(lambda: tended.looks >= 3)
    assert "upkeep of" in caplog.text
    assert "OSError: down" in caplog.text


def test_it_keeps_nothing_alive_and_ends_with_the_last(upkeep: Upkeep) -> None:
    kept = [Tended()]
    upkeep.watch(kept[0], 0.05)
    until(lambda: kept[0].looks >= 1)
    gone = weakref.ref(kept.pop())
    until(lambda: gc.collect() >= 0 and gone() is None and upkeep._thread is None)


def test_its_thread_ends_at_once_when_nothing_is_watched_any_more(upkeep: Upkeep) -> None:
    tended = Tended()
    upkeep.watch(tended, 3600)
    until(lambda: tended.looks == 1)
    upkeep.forget(tended)
    until(lambda: upkeep._thread is None)
