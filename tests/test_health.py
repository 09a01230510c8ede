"""Health: probes that are shared, bounded and aged, and the monitor that asks in the background."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

from tests.conftest import Side
from tests.crews import PATIENCE, Crew
from wirestate import (
    BaseResourceProvider,
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    HealthMonitor,
    HTTPResourceAdapter,
    Listener,
    PoolConfig,
    ResourceContainer,
    ResourceHealth,
    ResourceManager,
    SimpleFSM,
    WirestateSettings,
    container_from_settings,
    lifetimes,
    manager_of,
)
from wirestate.errors import (
    AsyncResourceError,
    BlockingWaitError,
    InvalidSettingError,
    ResourceClosedError,
    ResourceError,
    SettingsError,
)
from wirestate.resources.health import Probe

pytestmark = pytest.mark.usefixtures("invariant")

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = ResourceHealth


class Patient(BaseResourceProvider):
    """Says how it is when ``open`` is set, and counts who asks."""

    def __init__(self, name: str = "patient", health: ResourceHealth = HEALTHY) -> None:
        super().__init__(name)
        self.health = health
        self.asked = 0
        self.open = threading.Event()
        self.open.set()

    def acquire(self, **options: Any) -> object:
        return object()

    def health_check(self) -> ResourceHealth:
        self.asked += 1
        assert self.open.wait(PATIENCE)
        return self.health


class TaskPatient(Patient):
    """The same for event loops; remembers in which of them it was asked."""

    is_async = True

    def __init__(self, name: str = "patient", health: ResourceHealth = HEALTHY) -> None:
        super().__init__(name, health)
        self.loops: list[asyncio.AbstractEventLoop] = []

    async def acquire(self, **options: Any) -> object:
        return object()

    async def release(self, resource: object) -> None:
        pass

    async def ahealth_check(self) -> ResourceHealth:
        self.asked += 1
        self.loops.append(asyncio.get_running_loop())
        while not self.open.is_set():
            await asyncio.sleep(0.001)
        return self.health


def until(so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)


def threads_called(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def managed(*providers: Any, **settings: Any) -> ResourceManager:
    manager = ResourceManager(**settings)
    for provider in providers:
        manager.register_provider(provider.name, provider)
    return manager


# --- asking --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Patient, TaskPatient])
def test_all_who_ask_at_once_share_one_probe_and_get_its_answer(side: Side, kind: type[Patient]) -> None:
    patient = kind()
    patient.open.clear()
    probe = Probe("patient", patient)
    crew = Crew(side.world)

    async def scenario() -> None:
        askers = [crew.start(side.call(probe, "ask")) for _ in range(8)]
        await crew.until(lambda: patient.asked and probe._asking and len(probe._asking.waiters) == 8)
        patient.open.set()
        assert [await asker.result() for asker in askers] == [HEALTHY] * 8
        assert patient.asked == 1
        assert await side.call(probe, "ask") is HEALTHY
        assert patient.asked == 2

    side.run(scenario())


def test_threads_and_tasks_share_a_probe() -> None:
    patient = TaskPatient()
    patient.open.clear()
    probe = Probe("patient", patient)
    answers: list[ResourceHealth] = []

    async def scenario() -> None:
        asking = asyncio.create_task(probe.aask())
        while not patient.asked:
            await asyncio.sleep(0)
        thread = threading.Thread(target=lambda: answers.append(probe.ask()))
        thread.start()
        while not (probe._asking and len(probe._asking.waiters) == 2):
            await asyncio.sleep(0.001)
        patient.open.set()
        assert await asking is HEALTHY
        await asyncio.to_thread(thread.join)
        assert answers == [HEALTHY]
        assert patient.loops == [asyncio.get_running_loop()]

    asyncio.run(scenario())


def test_a_probe_that_hangs_is_unhealthy_in_time_and_holds_one_thread_however_often_it_is_asked(side: Side) -> None:
    patient = Patient("hanging")
    patient.open.clear()
    probe = Probe("hanging", patient, bound=0.1)

    async def scenario() -> None:
        began = time.monotonic()
        assert await side.call(probe, "ask") is UNHEALTHY
        assert 0.1 <= time.monotonic() - began < 5
        assert probe.trouble == "no answer within 0.1 s"
        for _ in range(100):
            assert await side.call(probe, "ask") is UNHEALTHY
        assert patient.asked == len(threads_called("wirestate-health-hanging")) == 1
        assert time.monotonic() - began < 5  # the late ones did not wait once more

    side.run(scenario())
    patient.open.set()
    until(lambda: probe.answer is HEALTHY)  # what it says in the end counts
    until(lambda: not threads_called("wirestate-health-hanging"))


def test_an_asynchronous_probe_that_hangs_is_cancelled_at_its_bound(side: Side) -> None:
    patient = TaskPatient()
    patient.open.clear()
    probe = Probe("patient", patient, bound=0.1)

    async def scenario() -> None:
        for number in (1, 2):
            assert await side.call(probe, "ask") is UNHEALTHY
            await Crew(side.world).until(lambda: probe._asking is None)
            assert patient.asked == number
        assert probe.trouble == "no answer within 0.1 s"

    side.run(scenario())


def test_a_probe_neither_stops_the_loop_nor_keeps_one_who_is_cancelled() -> None:
    patient = Patient()
    patient.open.clear()
    manager = managed(patient)
    probe = manager.entry("patient").steps()[-1].probe
    assert probe is not None

    async def scenario() -> None:
        leaving, staying = (asyncio.create_task(manager.ahealth_check("patient")) for _ in range(2))
        while not (probe._asking and len(probe._asking.waiters) == 2):  # the loop runs all the while
            await asyncio.sleep(0.001)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert probe._asking is not None
        assert len(probe._asking.waiters) == 1
        patient.open.set()
        assert await staying == {"patient": HEALTHY}
        assert patient.asked == 1

    asyncio.run(scenario())
    manager.close()


def test_a_blocking_question_on_an_event_loop_is_refused_and_names_the_twin() -> None:
    patient = Patient()
    manager = managed(patient)

    async def scenario() -> None:
        for ask in (manager.health_check, lambda: manager.validate_resource("patient")):
            with pytest.raises(BlockingWaitError, match=r"await ahealth_check\(\)"):
                ask()

    asyncio.run(scenario())
    assert patient.asked == 0
    manager.close()


def test_an_asynchronous_provider_is_asked_in_the_loop_of_its_user_and_from_threads_in_one_of_its_own() -> None:
    patient = TaskPatient()
    manager = managed(patient)

    async def scenario() -> None:
        assert await manager.ahealth_check() == {"patient": HEALTHY}
        assert patient.loops == [asyncio.get_running_loop()]

    asyncio.run(scenario())
    assert manager.health_check() == {"patient": HEALTHY}
    assert patient.loops[1] is not patient.loops[0]
    manager.close()


def test_all_resources_are_asked_at_the_same_time(side: Side) -> None:
    meeting = threading.Barrier(3)

    class Meeting(Patient):
        def health_check(self) -> ResourceHealth:
            meeting.wait(PATIENCE)
            return HEALTHY

    manager = managed(Meeting("a"), Meeting("b"), Meeting("c"))

    async def scenario() -> None:
        assert await side.call(manager, "health_check") == dict.fromkeys("abc", HEALTHY)

    side.run(scenario())
    manager.close()


def test_a_young_answer_is_given_again_and_its_age_is_told(side: Side) -> None:
    patient = Patient(health=DEGRADED)
    manager = managed(patient)

    async def scenario() -> None:
        status = manager.get_resource_status("patient")
        assert (status["health"], status["health_age"], status["trouble"]) == (UNKNOWN, None, None)
        assert await side.call(manager, "health_check", "patient") == {"patient": DEGRADED}
        assert await side.call(manager, "health_check", max_age=60) == {"patient": DEGRADED}
        assert patient.asked == 1
        status = manager.get_resource_status("patient")
        assert status["health"] is DEGRADED
        assert 0 <= status["health_age"] < PATIENCE
        assert status["trouble"].startswith("it took ")
        patient.health = HEALTHY
        assert await side.call(manager, "health_check", max_age=0) == {"patient": HEALTHY}
        assert manager.get_resource_status("patient")["trouble"] is None

    side.run(scenario())
    manager.close()


@pytest.mark.parametrize("error", [OSError("no ftp://me:sesame@host/"), SystemExit(1), KeyError("x")], ids=repr)
def test_a_probe_that_raises_has_answered_and_says_why_without_a_password(side: Side, error: BaseException) -> None:
    class Raising(Patient):
        def health_check(self) -> ResourceHealth:
            raise error

    probe = Probe("raising", Raising())
    assert side.run(side.call(probe, "ask")) is UNHEALTHY
    assert probe.trouble is not None
    assert probe.trouble.startswith(type(error).__name__)
    assert "sesame" not in probe.trouble


def test_trouble_of_an_earlier_probe_is_not_told_for_a_later_one() -> None:
    patient = Patient(health=UNHEALTHY)
    patient.trouble = "the day before yesterday"
    probe = Probe("patient", patient)
    assert probe.ask() is UNHEALTHY
    assert probe.trouble is None


def test_what_is_no_health_is_unknown_and_what_cannot_be_asked_too() -> None:
    class Strange(Patient):
        def health_check(self) -> Any:
            return "fine"

    manager = managed(Strange("strange"), BaseResourceProvider("silent"))
    assert manager.health_check() == {"strange": UNKNOWN, "silent": UNKNOWN}
    manager.close()


def test_a_loop_that_ends_during_its_probe_leaves_nobody_waiting_and_nobody_without_an_answer() -> None:
    patient = TaskPatient()
    patient.open.clear()
    probe = Probe("patient", patient)
    answers: list[ResourceHealth] = []
    thread = threading.Thread(target=lambda: answers.append(probe.ask()))

    async def leaves() -> None:
        asking = asyncio.create_task(probe.aask())
        while not patient.asked:
            await asyncio.sleep(0)
        thread.start()
        while not (probe._asking and len(probe._asking.waiters) == 2):
            await asyncio.sleep(0.001)
        asking.cancel()

    asyncio.run(leaves())  # cancels the probe
    until(lambda: patient.asked == 2)  # for the thread that waited for it
    patient.open.set()
    thread.join(PATIENCE)
    assert answers == [HEALTHY]


def test_a_probe_that_was_lost_with_its_loop_is_asked_again() -> None:
    patient = TaskPatient()
    patient.open.clear()
    probe = Probe("patient", patient)
    loop = asyncio.new_event_loop()
    task = loop.create_task(probe.aask())
    while not patient.asked:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()  # without an end of what runs in it
    patient.open.set()
    lost = [task, probe._asking.worker if probe._asking else None]
    assert probe.ask() is HEALTHY
    for one in lost:
        one._log_destroy_pending = False  # type: ignore[union-attr]  # else asyncio complains when they are collected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_waits_for_no_probe_of_its_parent_and_has_no_monitor_until_it_starts_one() -> None:
    patient = Patient()
    with managed(patient) as manager, HealthMonitor(manager, interval=0.01) as monitor:
        until(lambda: patient.asked)
        patient.open.clear()
        until(lambda: manager.entry("patient").steps()[-1].probe._asking)  # type: ignore[union-attr]
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                patient.open.set()
                began = time.monotonic()
                assert not monitor.is_running
                assert manager.health_check() == {"patient": HEALTHY}
                assert time.monotonic() - began < 4  # the bound of the parent's probe is 5 s
                asked = patient.asked
                monitor.start()
                until(lambda: patient.asked > asked)
                failed = 0
            finally:
                os._exit(failed)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        patient.open.set()


# --- real resources ------------------------------------------------------------------------


class Slow(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        time.sleep(1.1)
        self.send_response(404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def slow_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_dead_host_is_unhealthy_a_slow_one_degraded_and_before_the_first_question_both_are_unknown(
    side: Side, slow_server: str, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    database = f"postgresql://{'psycopg_async' if side.is_async else 'psycopg'}"
    manager = managed(
        HTTPResourceAdapter("dead", base_url=f"http://127.0.0.1:{port}", async_client=side.is_async),
        HTTPResourceAdapter("slow", base_url=slow_server, async_client=side.is_async),
        DatabaseResourceAdapter("dead_database", url=f"{database.replace('://', '+')}://u:pw@127.0.0.1:{port}/x"),
        FileSystemResourceAdapter("gone", base_path=str(tmp_path / "gone")),
        FileSystemResourceAdapter("there", base_path=str(tmp_path)),
    )

    async def scenario() -> None:
        assert {status["health"] for status in manager.get_all_resources().values()} == {UNKNOWN}
        assert await side.call(manager, "health_check") == {
            "dead": UNHEALTHY,
            "slow": DEGRADED,
            "dead_database": UNHEALTHY,
            "gone": UNHEALTHY,
            "there": HEALTHY,
        }
        for name in ("dead", "slow", "dead_database", "gone"):
            trouble = manager.get_resource_status(name)["trouble"]
            assert trouble
            assert "pw@" not in trouble
        await side.call(manager, "close")

    side.run(scenario())


def test_a_mistake_of_the_caller_does_not_make_a_resource_unhealthy(slow_server: str, tmp_path: Path) -> None:
    manager = managed(
        DatabaseResourceAdapter("db", url=f"sqlite:///{tmp_path / 'db'}"),
        FileSystemResourceAdapter("files", base_path=str(tmp_path)),
        HTTPResourceAdapter("api", base_url=slow_server),
    )
    with pytest.raises(Exception, match="no such table"), manager.resource_context("db", "a") as db:
        db.query("SELECT * FROM nowhere")
    with pytest.raises(FileNotFoundError), manager.resource_context("files", "a") as files:
        files.read("nothing.txt")
    with manager.resource_context("api", "a") as api:
        assert api.head("/nothing").status_code == 404
    assert manager.health_check() == {"db": HEALTHY, "files": HEALTHY, "api": DEGRADED}  # slow, but well
    assert manager.get_resource_status("api")["breaker"] == "closed"
    manager.close()


# --- validation ----------------------------------------------------------------------------


def test_a_resource_is_valid_if_its_probe_and_a_lease_say_so(side: Side) -> None:
    class Checked(TaskPatient if side.is_async else Patient):  # type: ignore[misc]
        valid: Any = True

        def validate(self, resource: object) -> bool:
            if isinstance(self.valid, Exception):
                raise self.valid
            return bool(self.valid)

    class Waiting(Checked):
        async def avalidate(self, resource: object) -> bool:
            await asyncio.sleep(0)
            return self.validate(resource)

    checked = Waiting("db") if side.is_async else Checked("db")
    manager = ResourceManager()
    manager.register_provider("db", checked, PoolConfig(max_size=1))

    async def scenario() -> None:
        assert await side.call(manager, "validate_resource", "db")
        for wrong in (False, ValueError("cannot tell")):
            checked.valid = wrong
            assert not await side.call(manager, "validate_resource", "db")
        checked.valid, checked.health = True, UNHEALTHY
        assert not await side.call(manager, "validate_resource", "db")
        assert manager.holders() == []
        assert manager.owners == {}
        await side.call(manager, "close")

    side.run(scenario())


def test_what_is_asynchronous_is_validated_by_the_twin_only() -> None:
    manager = managed(TaskPatient())
    with pytest.raises(AsyncResourceError, match=r"use avalidate_resource\(\)"):
        manager.validate_resource("patient")
    manager.close()


# --- the monitor ---------------------------------------------------------------------------


class Ears(Listener):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_health(self, resource: str, before: str, after: str) -> None:
        self.heard.append(f"{resource}: {before} -> {after}")


def test_a_monitor_tells_every_change_to_all_callbacks_and_the_listener(caplog: pytest.LogCaptureFixture) -> None:
    patient, ears = Patient(), Ears()
    changes: list[tuple[str, ResourceHealth, ResourceHealth]] = []

    def failing(name: str, before: ResourceHealth, after: ResourceHealth) -> None:
        raise RuntimeError("a callback's trouble is its own")

    caplog.set_level(logging.CRITICAL, "wirestate.resources")
    with managed(patient, listener=ears) as manager:
        monitor = HealthMonitor(manager, interval=0.01, on_change=failing)
        monitor.call(lambda *change: changes.append(change))
        assert not monitor.is_running
        with monitor:
            for number, health in enumerate((HEALTHY, UNHEALTHY, DEGRADED, HEALTHY), 1):
                patient.health = health
                until(lambda number=number: len(changes) == number)
            asked = patient.asked
            until(lambda: patient.asked > asked + 3)
        assert repr(monitor) == "<HealthMonitor stopped: patient healthy>"
    assert changes == [
        ("patient", UNKNOWN, HEALTHY),
        ("patient", HEALTHY, UNHEALTHY),
        ("patient", UNHEALTHY, DEGRADED),
        ("patient", DEGRADED, HEALTHY),
    ]
    assert ears.heard == [f"patient: {before.value} -> {after.value}" for _, before, after in changes]


def test_a_monitor_ends_with_its_manager_and_leaves_no_thread(side: Side) -> None:
    patient = Patient()
    manager = managed(patient)
    monitor = HealthMonitor(manager, interval=3600).start()
    thread = monitor._thread
    assert thread is not None
    until(lambda: patient.asked == 1)
    side.run(side.call(manager, "close"))
    assert not monitor.is_running
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert patient.asked == 1
    with pytest.raises(ResourceClosedError, match="manager is closed"):
        monitor.start()


def test_a_stopped_monitor_wakes_at_once_and_can_begin_again() -> None:
    patient = Patient()
    with managed(patient) as manager:
        monitor = HealthMonitor(manager, interval=3600)
        for number in (1, 2, 3):
            thread = monitor.start()._thread
            assert monitor.is_running
            assert thread is not None
            until(lambda number=number: patient.asked == number)
            monitor.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert monitor.start().start()._thread is monitor._thread  # one thread, however often
        until(lambda: patient.asked == 4)
        late = Patient("late")
        manager.register_provider("late", late)
        monitor.start()  # looks at once for what is new
        until(lambda: late.asked == 1)


def test_a_monitor_keeps_no_manager_alive() -> None:
    manager = managed(Patient())
    monitor = HealthMonitor(manager, interval=0.01).start()
    thread = monitor._thread
    assert thread is not None
    forgotten = ref(manager)
    del manager
    until(lambda: gc.collect() >= 0 and forgotten() is None)  # not in the middle of a round, which needs it
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_probe_that_hangs_keeps_no_other_from_being_watched() -> None:
    hanging, well = Patient("hanging"), Patient("well")
    hanging.open.clear()
    with managed(hanging, well) as manager:
        probe = manager.entry("hanging").steps()[-1].probe
        assert probe is not None
        probe.bound = 0.05
        with HealthMonitor(manager, interval=0.01):
            until(lambda: well.asked > 5)
            assert hanging.asked == 1
            assert probe.answer is UNHEALTHY
        hanging.open.set()


def test_intervals_are_spread_by_a_tenth() -> None:
    with managed(*(Patient(f"p{number}") for number in range(40))) as manager:
        monitor = HealthMonitor(manager, interval=100)
        monitor._thread = threading.current_thread()
        due: dict[str, float] = {}
        began = time.monotonic()
        pause = monitor._round(due)
        ended = time.monotonic()
        assert pause is not None
        assert 90 - (ended - began) <= pause <= 110
        assert began + 90 <= min(due.values()) < max(due.values()) <= ended + 110
        assert max(due.values()) - min(due.values()) > 5


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf")])
def test_an_interval_that_makes_no_sense_is_refused(interval: float) -> None:
    with pytest.raises(InvalidSettingError, match="interval is"):
        HealthMonitor(ResourceManager(), interval=interval)
    with pytest.raises(SettingsError, match="health_check_interval"):
        WirestateSettings(
            _env_file=None, resources={"files": {"base_path": "memory://", "health_check_interval": interval}}
        )


# --- the setting ---------------------------------------------------------------------------


class Watched(BaseResourceProvider):
    """A provider by class path, as settings name it."""

    asked = 0

    def acquire(self, **options: Any) -> object:
        return object()

    def health_check(self) -> ResourceHealth:
        Watched.asked += 1
        return HEALTHY


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> WirestateSettings:
    Watched.asked = 0
    for key, value in {"CLASS": f"{__name__}:Watched", "HEALTH_CHECK_INTERVAL": "0.01"}.items():
        monkeypatch.setenv(f"WIRESTATE_RESOURCES__STORE__{key}", value)
    return WirestateSettings(_env_file=None)


def test_the_setting_probes_in_the_background_as_long_as_the_container_is_open(settings: WirestateSettings) -> None:
    container = container_from_settings(settings)
    time.sleep(0.05)
    assert Watched.asked == 0  # nothing is open yet
    container.init_resources()
    until(lambda: Watched.asked > 3)
    manager = manager_of(container)
    assert manager.get_resource_status("store")["health"] is HEALTHY
    monitor = manager._monitor
    assert monitor is not None
    thread = monitor._thread
    assert thread is not None
    container.shutdown_resources()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    asked = Watched.asked
    time.sleep(0.05)
    assert Watched.asked == asked
    with manager_of(container).resource_context("store", "again"):  # the next one is watched by its first use
        until(lambda: Watched.asked > asked + 3)
    container.shutdown_resources()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_watched_from_its_first_use_on(settings: WirestateSettings) -> None:
    with container_from_settings(settings) as container:
        container.init_resources()
        until(lambda: Watched.asked)
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                Watched.asked = 0
                assert not threads_called("wirestate-monitor")
                with manager_of(container).resource_context("store", "child"):
                    until(lambda: Watched.asked > 3)
                failed = 0
            finally:
                os._exit(failed)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_lifetime_that_moves_into_a_container_takes_its_probes_along() -> None:
    Watched.asked = 0
    lone = lifetimes.Singleton(Watched)
    lone.health_interval = 0.01
    lone()
    monitor = lone.home.manager._monitor
    assert monitor is not None
    until(lambda: Watched.asked > 3)

    class App(ResourceContainer):
        store = lone

    with App() as app:
        app.store()
        asked = Watched.asked
        until(lambda: Watched.asked > asked + 3)
    lone.home.manager.close()
    until(lambda: not threads_called("wirestate-monitor"))


def test_a_machine_watches_what_its_configuration_asks_for() -> None:
    Watched.asked = 0
    config = {
        "resources": [{"name": "store", "class": f"{__name__}:Watched", "health_check_interval": 0.01}],
        "states": {"s": {"resources": ["store"], "transform": "same"}},
    }
    with SimpleFSM(config, functions={"same": lambda record: record}) as fsm:
        assert fsm.process({}).success
        until(lambda: Watched.asked > 3)
    until(lambda: not threads_called("wirestate-monitor"))


def test_what_has_no_probe_takes_no_interval() -> None:
    lone = lifetimes.PerState(list)
    lone.health_interval = 1.0
    with pytest.raises(InvalidSettingError, match=r"health_check_interval is for resource providers"):
        lone.compiled()


def test_resources_with_a_setting_of_their_own_keep_it_under_another_monitor() -> None:
    seldom, often = Patient("seldom"), Patient("often")
    manager = managed(seldom, often)
    probe = manager.entry("seldom").steps()[-1].probe
    assert probe is not None
    probe.interval = 3600
    with HealthMonitor(manager, interval=0.01):
        until(lambda: often.asked > 5)
    assert seldom.asked == 1
    manager.close()


def test_probing_a_manager_skips_what_cannot_even_be_made() -> None:
    class Broken(Patient):
        def __init__(self) -> None:
            raise OSError("no disk")

    class App(ResourceContainer):
        broken = lifetimes.PerState(Broken)
        well = lifetimes.PerState(Patient)

    with App() as app, HealthMonitor(app.manager, interval=0.01) as monitor:
        until(lambda: "well healthy" in repr(monitor))
        with pytest.raises(ResourceError, match="broken"):
            app.manager.health_check()
