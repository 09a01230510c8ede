"""The circuit breaker: when it refuses, when it probes, and who hears of it."""

from __future__ import annotations

import os
import threading

import pytest

from wirestate.errors import CircuitOpenError
from wirestate.observing import Listener
from wirestate.resources.breaker import CircuitBreaker


class Ears(Listener):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_breaker(self, resource: str, before: str, after: str) -> None:
        self.heard.append(f"{resource}: {before} -> {after}")
        raise RuntimeError("a listener's trouble is its own")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def breaker_at(clock: Clock, failures: int = 2, ears: Ears | None = None) -> CircuitBreaker:
    return CircuitBreaker(failures, 30.0, "api", ears, clock=clock)


def test_failures_in_a_row_open_it_and_the_refusal_says_why_and_how_long(clock: Clock) -> None:
    breaker = breaker_at(clock)
    breaker.failure(OSError("no route"))
    breaker.success()
    breaker.failure(OSError("no route"))
    breaker.before()
    breaker.failure(OSError("no route"))
    assert breaker.state == "open"
    clock.now += 10
    with pytest.raises(CircuitOpenError, match=r"after 2 failures .* in 20\.0 s") as refused:
        breaker.before()
    assert refused.value.retry_after == pytest.approx(20)
    assert breaker.retry_after == pytest.approx(20)
    assert "no route" in str(refused.value.__cause__)


def test_after_the_pause_one_probe_decides(clock: Clock) -> None:
    ears = Ears()
    breaker = breaker_at(clock, 1, ears)
    breaker.failure()
    clock.now += 30
    breaker.before()
    assert breaker.state == "half-open"
    with pytest.raises(CircuitOpenError):
        breaker.before()
    breaker.failure()
    with pytest.raises(CircuitOpenError):
        breaker.before()
    clock.now += 30
    breaker.before()
    breaker.success()
    breaker.before()
    assert breaker.state == "closed"
    assert breaker.retry_after == 0
    assert ears.heard == [
        "api: closed -> open",
        "api: open -> half-open",
        "api: half-open -> open",
        "api: open -> half-open",
        "api: half-open -> closed",
    ]


def test_a_probe_that_never_reports_blocks_for_one_period_only(clock: Clock) -> None:
    breaker = breaker_at(clock, 1)
    breaker.failure()
    clock.now += 30
    breaker.before()
    clock.now += 30
    breaker.before()
    breaker.success()
    assert breaker.state == "closed"


def test_a_late_success_from_before_the_failures_does_not_close_it(clock: Clock) -> None:
    breaker = breaker_at(clock, 1)
    breaker.failure()
    breaker.success()
    assert breaker.state == "open"


def test_of_many_threads_one_gets_the_probe(clock: Clock) -> None:
    breaker = breaker_at(clock, 1)
    breaker.failure()
    clock.now += 30
    barrier, passed = threading.Barrier(8), []

    def knock() -> None:
        barrier.wait(5)
        try:
            breaker.before()
        except CircuitOpenError:
            return
        passed.append(1)

    threads = [threading.Thread(target=knock) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == [1]


def test_it_keeps_no_frame_of_who_failed() -> None:
    breaker = CircuitBreaker(1, 30.0, "api")
    try:
        raise OSError("down")
    except OSError as error:
        breaker.failure(error)
    with pytest.raises(CircuitOpenError) as refused:
        breaker.before()
    cause = refused.value.__cause__
    assert cause is not None
    assert cause.__traceback__ is None
    assert cause.__cause__ is None


def test_repr_says_its_state(clock: Clock) -> None:
    breaker = breaker_at(clock)
    assert repr(breaker) == "<CircuitBreaker 'api' closed, 0 of 2 failures>"
    breaker.failure()
    breaker.failure()
    assert repr(breaker) == "<CircuitBreaker 'api' open, 2 of 2 failures, next try in 30.0 s>"


def test_failures_of_late_tries_make_the_pause_no_longer_and_keep_the_cause(clock: Clock) -> None:
    ears = Ears()
    breaker = breaker_at(clock, 1, ears)
    breaker.failure(OSError("no route"))
    clock.now += 10
    breaker.failure()  # of a try that began before
    assert breaker.retry_after == pytest.approx(20)
    with pytest.raises(CircuitOpenError) as refused:
        breaker.before()
    assert "no route" in str(refused.value.__cause__)
    assert ears.heard == ["api: closed -> open"]


def test_a_success_forgets_the_failures_and_their_cause(clock: Clock) -> None:
    breaker = breaker_at(clock)
    breaker.failure(OSError("no route"))
    breaker.success()
    for _ in range(2):
        breaker.failure()
    with pytest.raises(CircuitOpenError) as refused:
        breaker.before()
    assert refused.value.__cause__ is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # other tests' threads: 3.12 warns of fork then
def test_a_forked_child_inherits_no_held_lock() -> None:
    breaker = CircuitBreaker(1, 30.0, "api")
    with breaker._lock:  # by another thread, say
        child = os.fork()
    if child == 0:
        free = breaker._lock.acquire(False)
        os._exit(0 if free else 1)
    assert os.waitpid(child, 0)[1] == 0
