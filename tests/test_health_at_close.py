"""Health at the end: what a close cuts off says nothing, and after a close nothing is told any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Side
from tests.crews import PATIENCE, Crew
from tests.test_health import HEALTHY, UNHEALTHY, UNKNOWN, Ears, Patient, TaskPatient, managed, until
from wirestate import HealthMonitor, Listener, ResourceContainer, ResourceHealth, ResourceManager, lifetimes, manager_of

pytestmark = pytest.mark.usefixtures("invariant")


class Mortal(Patient):
    """Its probe runs until it is closed, and then says what one who is dead says."""

    def __init__(self, name: str = "patient") -> None:
        super().__init__(name, UNHEALTHY)
        self.open.clear()

    def close(self) -> None:
        super().close()
        self.open.set()


class TaskMortal(Mortal, TaskPatient):
    """The same for event loops."""


class Hindered(Listener):
    """Holds up whoever tells it, until *go* is set; notes whether *after* has happened by then."""

    def __init__(self, after: threading.Event) -> None:
        self.entered, self.go, self.after = threading.Event(), threading.Event(), after
        self.came_after: list[bool] = []

    def on_health(self, resource: str, before: str, after: str) -> None:
        self.entered.set()
        assert self.go.wait(PATIENCE)
        self.came_after.append(self.after.wait(0.3))

    def __call__(self, name: str, before: ResourceHealth, after: ResourceHealth) -> None:
        self.on_health(name, before.value, after.value)


@pytest.fixture
def probe_threads() -> Iterator[Callable[[], None]]:
    """Waits until no probe runs in a thread."""
    before = set(threading.enumerate())

    def wait() -> None:
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("wirestate-health"):
                thread.join(PATIENCE)
                assert not thread.is_alive()

    yield wait
    wait()


@pytest.mark.parametrize("in_loop", [False, True])
@pytest.mark.parametrize("ending", ["close", "unregister_provider"])
def test_a_probe_that_the_end_cuts_off_says_nothing(
    side: Side, in_loop: bool, ending: str, probe_threads: Callable[[], None]
) -> None:
    patient, ears = (TaskMortal() if in_loop and side.is_async else Mortal()), Ears()
    manager = managed(patient, listener=ears)
    probe = manager.entry("patient").steps()[-1].probe
    assert probe is not None
    crew = Crew(side.world)

    async def scenario() -> None:
        asking = crew.start(side.call(manager, "health_check"))
        await crew.until(lambda: patient.asked == 1)
        await side.call(manager, ending, *(["patient"] if ending != "close" else []))
        assert await asking.result() == {"patient": UNKNOWN}
        probe_threads()

    side.run(scenario())
    assert (probe.answer, probe.age, ears.heard) == (UNKNOWN, None, [])
    side.run(side.call(manager, "close"))


def test_a_hanging_probe_keeps_nobody_who_closes_and_its_late_answer_is_told_to_nobody(
    side: Side, probe_threads: Callable[[], None]
) -> None:
    patient, ears = Patient(), Ears()
    patient.open.clear()
    manager = managed(patient, listener=ears)
    changes: list[ResourceHealth] = []
    HealthMonitor(manager, interval=0.01, on_change=lambda name, before, after: changes.append(after)).start()
    until(lambda: patient.asked == 1)
    side.run(side.call(manager, "close"))
    patient.open.set()
    probe_threads()
    assert (changes, ears.heard) == ([], [])


@pytest.mark.parametrize("role", ["listener", "callback"])
def test_a_close_waits_for_what_is_being_told(side: Side, role: str) -> None:
    closed = threading.Event()
    hindered = Hindered(closed)
    manager = managed(Patient(), listener=hindered if role == "listener" else None)
    HealthMonitor(manager, interval=60, on_change=hindered if role == "callback" else None).start()
    assert hindered.entered.wait(PATIENCE)

    def closing() -> None:
        side.run(side.call(manager, "close"))
        closed.set()

    closer = threading.Thread(target=closing)
    closer.start()
    until(lambda: manager.closed)
    hindered.go.set()
    closer.join(PATIENCE)
    until(lambda: hindered.came_after)
    assert hindered.came_after == [False]


def test_a_listener_that_never_ends_keeps_no_close_from_ending(
    side: Side, monkeypatch: pytest.MonkeyPatch, probe_threads: Callable[[], None]
) -> None:
    monkeypatch.setattr("wirestate.resources.voice.PATIENCE", 0.05)
    hindered = Hindered(threading.Event())
    manager = managed(Patient(), listener=hindered)
    HealthMonitor(manager, interval=60).start()
    assert hindered.entered.wait(PATIENCE)
    side.run(side.call(manager, "close"))
    hindered.go.set()
    hindered.after.set()
    probe_threads()


class Closing(Ears):
    """Closes what it hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.close: Callable[[], Any] = lambda: None  # Any: whatever it returns
        self.closed = threading.Event()

    def on_health(self, resource: str, before: str, after: str) -> None:
        super().on_health(resource, before, after)
        self.close()
        self.closed.set()


@pytest.mark.parametrize("role", ["listener", "callback"])
def test_who_is_told_may_close_the_manager(role: str, probe_threads: Callable[[], None]) -> None:
    closing = Closing()
    manager = managed(Patient(), Patient("other"), listener=closing if role == "listener" else None)
    closing.close = manager.close
    monitor = HealthMonitor(manager, interval=60)
    if role == "callback":
        monitor.call(lambda name, before, after: closing.on_health(name, before.value, after.value))
    thread = monitor.start()._thread
    assert thread is not None
    assert closing.closed.wait(PATIENCE)
    thread.join(PATIENCE)
    probe_threads()
    assert not thread.is_alive()
    assert closing.heard[0].endswith("unknown -> healthy")
    if role == "callback":
        assert len(closing.heard) == 1


def test_who_is_told_in_a_task_may_have_the_manager_closed() -> None:
    closing = Closing()

    async def scenario() -> None:
        manager = managed(TaskPatient(), listener=closing)
        works: list[asyncio.Task[None]] = []
        closing.close = lambda: works.append(asyncio.ensure_future(manager.aclose()))
        assert await manager.ahealth_check() == {"patient": HEALTHY}
        await works[0]

    asyncio.run(scenario())
    assert closing.heard == ["patient: unknown -> healthy"]


def test_a_stopped_monitor_calls_nobody_any_more() -> None:
    patient = Patient()
    patient.open.clear()
    changes: list[ResourceHealth] = []
    with managed(patient) as manager:
        monitor = HealthMonitor(manager, interval=60, on_change=lambda name, before, after: changes.append(after))
        first = monitor.start()._thread
        until(lambda: patient.asked == 1)
        monitor.stop()
        monitor.start()  # another thread asks along with the first
        patient.open.set()
        assert first is not None
        first.join(PATIENCE)
        until(lambda: changes)
    assert changes == [HEALTHY]


def test_a_container_that_is_shut_down_tells_nothing_and_opens_again_as_if_never_asked(
    probe_threads: Callable[[], None],
) -> None:
    class App(ResourceContainer):
        patient = lifetimes.PerState(Mortal)

    ears, app = Ears(), App()
    manager_of(app).listener = ears
    app.init_resources()
    asking = threading.Thread(target=manager_of(app).health_check)
    asking.start()
    until(lambda: any(thread.name == "wirestate-health-patient" for thread in threading.enumerate()))
    app.shutdown_resources()
    asking.join(PATIENCE)
    probe_threads()
    assert ears.heard == []
    assert manager_of(app).get_resource_status("patient")["health"] is UNKNOWN
    app.shutdown_resources()


def test_a_provider_has_no_listener_after_its_manager_s_end(side: Side) -> None:
    patient = Patient()
    manager: ResourceManager = managed(patient, listener=Ears())
    assert patient.listener is manager.listener
    side.run(side.call(manager, "close"))
    assert patient.listener is None
