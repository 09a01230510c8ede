"""What comes from outside while a run is inside: a close, an override, a fork, an interrupt, somebody else's wait."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from dependency_injector import providers
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.crews import ThreadMaker
from tests.invariant import Invariant
from tests.stores import Store, insert
from wirestate import (
    BaseResourceProvider,
    PoolConfig,
    ResourceContainer,
    ResourceManager,
    RunResult,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import (
    AsyncInSyncRunError,
    OwnerInUseError,
    ReleaseFailedError,
    ResourceClosedError,
    ResourceTimeoutError,
    RunTimeoutError,
)
from wirestate.resources.scopes import current

PATIENCE = 20.0
WAYS: list[dict[str, Any]] = [{}, {"timeout": 60}]  # the unrolled visit, and the full one


class Halt:
    """Lets a run stand still in a function until the test goes on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def here(self) -> None:
        self.reached.set()
        assert self.go_on.wait(PATIENCE)

    def during(self, fsm: SimpleFSM, act: Callable[[], Any]) -> RunResult:
        """Run one record in a thread, and *act* while it stands still."""
        results: list[RunResult] = []
        thread = threading.Thread(target=lambda: results.append(fsm.process({"n": 1})))
        thread.start()
        assert self.reached.wait(PATIENCE)
        try:
            act()
        finally:
            self.go_on.set()
            thread.join(PATIENCE)
        return results[0]


@pytest.fixture
def halt() -> Halt:
    return Halt()


# --- a commit never follows a failure ------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("raised", [ValueError("clean-up"), KeyboardInterrupt()])
def test_a_commit_never_follows_a_clean_up_that_failed(tmp_path: Path, way: Any, raised: BaseException) -> None:
    store = Store(tmp_path)

    def unit(db: Any) -> Iterator[Any]:
        yield db
        raise raised

    container: Any = store.container
    container.unit = lifetimes.PerState(unit, container.db)

    @inject
    def work(record: Any, unit: Any = Provide["unit"]) -> None:
        insert(unit, 1)

    fsm = SimpleFSM({"states": {"s": {"transform": "work", **way}}}, container=container, functions={"work": work})
    if isinstance(raised, Exception):
        assert isinstance(fsm.process({}).error, ReleaseFailedError)
    else:
        with pytest.raises(KeyboardInterrupt):
            fsm.process({})
    assert store.items() == []
    assert store.held == []


def test_what_the_owner_holds_is_not_committed_after_a_failed_release_of_its_visit(side: Side) -> None:
    ended: list[str] = []

    def held() -> Iterator[str]:
        try:
            yield "held"
        except ValueError:
            ended.append("rolled back")
            raise
        ended.append("committed")

    def failing() -> Iterator[str]:
        yield "failing"
        raise ValueError

    class C(ResourceContainer):
        inner = lifetimes.PerState(failing)
        outer = lifetimes.PerOwner(held)

    container = C()
    owner = container.manager.scope("o")
    owner.resource("outer")
    owner.state("s").resource("inner")  # left with its owner
    leave: Callable[..., Any] = owner.__exit__
    if side.is_async:
        leave = lambda *outcome: side.run(owner.__aexit__(*outcome))  # noqa: E731
    with pytest.raises(ReleaseFailedError):
        leave(None, None, None)
    assert ended == ["rolled back"]


# --- a close while somebody is inside --------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [None, ValueError("body")])
def test_a_close_rolls_back_what_a_run_is_in_the_middle_of(
    tmp_path: Path, halt: Halt, way: Any, error: Exception | None
) -> None:
    store = Store(tmp_path)

    @inject
    def work(record: Any, db: Any = Provide["db"]) -> None:
        insert(db, 1)
        halt.here()
        if error is not None:
            raise error

    fsm = SimpleFSM(
        {"states": {"s": {"transform": "work", **way}}}, container=store.container, functions={"work": work}
    )
    result = halt.during(fsm, store.container.shutdown_resources)
    assert not result.success
    assert result.error is error or isinstance(result.error, ResourceClosedError)
    assert store.items() == []


@pytest.mark.parametrize("way", WAYS)
def test_a_run_opens_nothing_after_the_close(halt: Halt, way: Any) -> None:
    live: list[str] = []

    def thing(name: str) -> Iterator[str]:
        live.append(name)
        yield name
        live.remove(name)

    class C(ResourceContainer):
        once = lifetimes.Singleton(thing, "once")
        mine = lifetimes.PerState(thing, "mine")

    container = C()

    def wait(record: Any) -> None:
        halt.here()

    @inject
    def use(record: Any, mine: Any = Provide["mine"], once: Any = Provide["once"]) -> None:
        raise AssertionError("called")

    states = {"w": {"transform": "wait", "arcs": [{"target": "e"}]}, "e": {"transform": "use", **way}}
    fsm = SimpleFSM({"states": states}, container=container, functions={"wait": wait, "use": use})
    result = halt.during(fsm, container.shutdown_resources)
    assert isinstance(result.error, ResourceClosedError)
    assert live == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("inside", [True, False])
def test_closing_a_machine_ends_its_runs_in_a_container_that_stays_open(
    tmp_path: Path, halt: Halt, invariant: Invariant, way: Any, inside: bool
) -> None:
    store = Store(tmp_path)
    maker = invariant.watch(ThreadMaker())

    @inject
    def wait(record: Any, db: Any = Provide["db"]) -> None:
        insert(db, 1)
        halt.here()

    @inject
    def use(record: Any, own: Any = Provide["own"], db: Any = Provide["db"]) -> None:
        insert(db, 2)
        if inside:
            halt.here()

    states = {"w": {"arcs": [{"target": "e"}]}, "e": {"transform": "use", **way}}
    if not inside:
        states["w"]["transform"] = "wait"
    functions = {"wait": wait, "use": use}
    fsm = SimpleFSM({"states": states}, container=store.container, resources={"own": maker}, functions=functions)
    other = SimpleFSM(
        {"states": {"w": {"transform": "wait"}}}, container=store.container, functions={"wait": lambda record: None}
    )
    result = halt.during(fsm, fsm.close)
    assert isinstance(result.error, ResourceClosedError)
    assert store.items() == []
    assert store.held == []
    assert not maker.live
    assert other.process({}).success
    assert maker.made == inside


def test_a_function_that_calls_a_singleton_after_the_close_opens_no_new_one(halt: Halt) -> None:
    live: list[str] = []

    def thing() -> Iterator[str]:
        live.append("once")
        yield "once"
        live.remove("once")

    class C(ResourceContainer):
        once = lifetimes.Singleton(thing)
        mine = lifetimes.PerState(list)

    container = C()

    @inject
    def use(record: Any, mine: Any = Provide["mine"]) -> None:
        halt.here()
        container.once()

    fsm = SimpleFSM({"states": {"e": {"transform": "use"}}}, container=container, functions={"use": use})
    result = halt.during(fsm, container.shutdown_resources)
    assert isinstance(result.error, ResourceClosedError)
    assert live == []
    assert container.once() == "once"  # outside of what was closed, the container is open again
    container.shutdown_resources()


# --- an override while a run is inside -------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_an_override_by_another_thread_changes_no_call_that_is_opened_already(halt: Halt, way: Any) -> None:
    class C(ResourceContainer):
        db = lifetimes.PerState(lambda: "real")

    container = C()

    def wait(record: Any) -> None:
        if "n" in record:
            halt.here()

    @inject
    def use(record: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        return {"db": db}

    fsm = SimpleFSM(
        {"states": {"s": {"transforms": ["wait", "use"], **way}}},
        container=container,
        functions={"wait": wait, "use": use},
    )

    def act() -> None:
        container.db.override(lifetimes.PerState(lambda: "fake"))
        assert fsm.process({}).data == {"db": "fake"}

    result = halt.during(fsm, act)
    assert result.error is None
    assert result.data == {"db": "real"}


def test_runs_that_race_with_overrides_get_the_one_or_the_other() -> None:
    class C(ResourceContainer):
        inner = lifetimes.PerState(lambda: "real")
        db = lifetimes.PerState(lambda inner: inner, inner)

    container = C()

    @inject
    def use(record: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        return {"db": db}

    fsm = SimpleFSM({"states": {"s": {"transform": "use"}}}, container=container, functions={"use": use})
    results: list[RunResult] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        runner = threading.Thread(target=lambda: results.extend(fsm.process({}) for _ in range(4000)))
        runner.start()
        while runner.is_alive():
            with container.inner.override(lifetimes.PerState(lambda: "fake")):
                threading.Event().wait(0.0002)
            with container.db.override(lifetimes.PerState(lambda: "fake")):
                threading.Event().wait(0.0002)
    finally:
        sys.setswitchinterval(before)
    assert {repr(result.error or result.data["db"]) for result in results} <= {"'real'", "'fake'"}
    assert fsm.process({}).data == {"db": "real"}


@pytest.mark.parametrize("way", WAYS)
def test_an_override_that_became_asynchronous_is_named_before_anything_opens(way: Any) -> None:
    opened: list[str] = []

    async def coro() -> str:
        return "co"

    def spare() -> str:
        opened.append("other")
        return "other"

    class C(ResourceContainer):
        db = lifetimes.PerState(lambda: "real")
        made = providers.Factory(lambda db: db, db)
        other = lifetimes.PerState(spare)

    container = C()

    @inject
    def use(record: Any, other: Any = Provide["other"], made: Any = Provide["made"]) -> None: ...

    fsm = SimpleFSM({"states": {"s": {"transform": "use", **way}}}, container=container, functions={"use": use})
    for override in (providers.Coroutine(coro), lifetimes.PerState(coro)):
        with container.db.override(override), pytest.raises(AsyncInSyncRunError, match=r"state 's'.*use aprocess"):
            fsm.process({})
    assert opened == []
    assert container.manager.owners == {}
    assert fsm.process({}).success


# --- waiting for another who opens -------------------------------------------------------------


class Slow(BaseResourceProvider):
    """Takes its time."""

    def __init__(self, halt: Halt) -> None:
        super().__init__("slow")
        self.halt = halt

    def acquire(self, **kwargs: Any) -> str:
        self.halt.here()
        return "slow"

    def release(self, resource: Any) -> None: ...


def test_a_timeout_counts_while_another_opens_the_same(halt: Halt) -> None:
    with ResourceManager() as manager:
        manager.register_provider("x", Slow(halt))
        other = threading.Thread(target=manager.acquire, args=("x", "o"))
        other.start()
        assert halt.reached.wait(PATIENCE)
        for timeout in (0, 0.02):
            with pytest.raises(ResourceTimeoutError, match="'x' was not ready in time; another opens it still"):
                manager.acquire("x", "o", timeout=timeout)
        halt.go_on.set()
        other.join(PATIENCE)
        assert manager.acquire("x", "o", timeout=0) == "slow"


def test_a_deadline_counts_while_another_run_opens_the_same(halt: Halt) -> None:
    class C(ResourceContainer):
        slow = lifetimes.Singleton(Slow, halt)

    container = C()

    @inject
    def use(record: Any, slow: Any = Provide["slow"]) -> None: ...

    fsm = SimpleFSM({"states": {"s": {"transform": "use", "timeout": 60}}}, container=container, functions={"use": use})
    results: list[RunResult] = []
    first = halt.during(fsm, lambda: results.append(fsm.process({}, timeout=0.05)))
    assert first.success
    assert isinstance(results[0].error, RunTimeoutError)
    container.shutdown_resources()


# --- owners ------------------------------------------------------------------------------------


def test_the_id_of_a_run_or_a_visit_names_no_second_owner() -> None:
    class C(ResourceContainer):
        mine = lifetimes.PerState(list)

    container = C()
    refused: list[str] = []

    @inject
    def work(record: Any, context: Any, mine: Any = Provide["mine"]) -> None:
        for owner_id in (context.run_id, context.owner_id):
            with pytest.raises(OwnerInUseError):
                container.manager.scope(owner_id)
            with pytest.raises(OwnerInUseError):
                fsm.process({}, owner_id=owner_id)
            refused.append(owner_id)

    fsm = SimpleFSM({"states": {"s": {"transform": "work"}}}, container=container, functions={"work": work})
    result = fsm.process({})
    assert result.error is None
    assert len(refused) == 2
    assert container.manager.owners == {}


def test_an_empty_owner_id_is_an_owner_id() -> None:
    class C(ResourceContainer):
        mine = lifetimes.PerState(list)

    @inject
    def work(record: Any, context: Any, mine: Any = Provide["mine"]) -> dict[str, str]:
        return {"visit": context.owner_id}

    fsm = SimpleFSM({"states": {"s": {"transform": "work"}}}, container=C(), functions={"work": work})
    result = fsm.process({}, owner_id="")
    assert (result.owner_id, result.data["visit"]) == ("", "/s#1")


# --- interrupts --------------------------------------------------------------------------------


def interrupt_at(names: tuple[str, ...], nth: int) -> Callable[[FrameType, str, Any], Any]:
    """Return a profile function that raises at the *nth* entry of one of the functions called *names*."""
    seen = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal seen
        if event == "call" and frame.f_code.co_name in names and "wirestate" in frame.f_code.co_filename:
            seen += 1
            if seen == nth:
                sys.setprofile(None)
                raise KeyboardInterrupt

    return profile


LEAVING = ("failure_of", "_leave", "end", "end_now", "_run_owned", "drive", "forget", "_abandon")


@pytest.mark.parametrize("mode", ["copy", "reference"])
def test_an_interrupt_as_an_owner_leaves_keeps_nothing_listed(mode: str) -> None:
    live: list[int] = []

    def thing() -> Iterator[int]:
        live.append(1)
        try:
            yield 1
        finally:
            live.pop()

    class C(ResourceContainer):
        mine = lifetimes.PerState(thing)
        run = lifetimes.PerOwner(thing)

    container = C()

    @inject
    def work(record: Any, mine: Any = Provide["mine"], run: Any = Provide["run"]) -> None: ...

    fsm = SimpleFSM(
        {"data_mode": mode, "states": {"s": {"transform": "work"}}}, container=container, functions={"work": work}
    )
    record = {"n": 1}
    assert fsm.process(record).success
    for nth in range(1, 30):
        sys.setprofile(interrupt_at(LEAVING, nth))
        try:
            fsm.process(record)
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.setprofile(None)
        assert container.manager.owners == {}, nth
        assert current.get() is None, nth
        assert live == [], nth
    assert nth > 3, "the interrupts came"
    assert fsm.process(record).success


# --- forks -------------------------------------------------------------------------------------


def in_child(check: Callable[[], None]) -> None:
    """Run *check* in a forked child; an error there fails here."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_ends_nothing_of_a_run_of_its_parent(tmp_path: Path, halt: Halt) -> None:
    store = Store(tmp_path)
    finished = tmp_path / "finished"

    def noted() -> Iterator[str]:
        try:
            yield "noted"
        finally:
            with finished.open("a") as file:
                file.write(f"{os.getpid()}\n")

    container: Any = store.container
    container.noted = lifetimes.PerState(noted)

    @inject
    def work(record: Any, db: Any = Provide["db"], noted: Any = Provide["noted"]) -> None:
        insert(db, 1)
        halt.here()
        raise ValueError

    @inject
    def light(record: Any, noted: Any = Provide["noted"]) -> None: ...

    fsm = SimpleFSM({"states": {"s": {"transform": "work"}}}, container=container, functions={"work": work})
    easy = SimpleFSM({"states": {"s": {"transform": "light"}}}, container=container, functions={"light": light})

    def check() -> None:
        assert container.manager.owners == {}
        assert container.manager.holders() == []
        assert easy.process({}).success  # the child's own
        container.shutdown_resources()

    result = halt.during(fsm, lambda: in_child(check))
    assert isinstance(result.error, ValueError)
    assert store.items() == []
    assert len(finished.read_text().splitlines()) == 2
    assert finished.read_text().splitlines()[-1] == str(os.getpid())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_makes_singletons_of_its_own_and_closes_only_these(tmp_path: Path) -> None:
    log = tmp_path / "log"

    class Noting(BaseResourceProvider):
        def acquire(self, **kwargs: Any) -> int:
            return os.getpid()

        def release(self, resource: Any) -> None:
            with log.open("a") as file:
                file.write(f"{os.getpid()} releases {resource}\n")

        def close(self) -> None:
            with log.open("a") as file:
                file.write(f"{os.getpid()} closes\n")

    class C(ResourceContainer):
        once = lifetimes.Singleton(Noting, "once")

    container = C()

    @inject
    def work(record: Any, once: int = Provide["once"]) -> dict[str, int]:
        return {"pid": once}

    fsm = SimpleFSM({"states": {"s": {"transform": "work"}}}, container=container, functions={"work": work})
    parent = os.getpid()
    assert fsm.process({}).data == {"pid": parent}

    def check() -> None:
        assert fsm.process({}).data == {"pid": os.getpid()}
        assert container.once() == os.getpid()
        assert container.manager.get_resource("once", "container") in (None, os.getpid())
        container.shutdown_resources()
        lines = log.read_text().splitlines()
        assert lines == [f"{os.getpid()} releases {os.getpid()}", f"{os.getpid()} closes"]

    in_child(check)
    assert container.once() == parent
    with container.manager.scope("inside") as scope:
        in_child(lambda: scope.__exit__(None, None, None))
    log.write_text("")
    container.shutdown_resources()
    assert log.read_text().splitlines() == [f"{parent} releases {parent}", f"{parent} closes"]


class Wire(BaseResourceProvider):
    """Writes down in a file, which a child can too, who releases what and who closes."""

    def __init__(self, log: Path) -> None:
        super().__init__("cable")
        self.log = log

    def acquire(self, **kwargs: Any) -> int:
        return os.getpid()

    def release(self, resource: Any) -> None:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} releases {resource}\n")

    def close(self) -> None:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()} closes\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("pool", [None, PoolConfig(max_size=2)])
@pytest.mark.parametrize("way", ["registered", "declared"])
def test_a_forked_child_shares_a_provider_but_no_resource_of_it(
    tmp_path: Path, invariant: Invariant, pool: PoolConfig | None, way: str
) -> None:
    log = tmp_path / "log"

    class C(ResourceContainer):
        cable = lifetimes.PerState(Wire(log), pool=pool)

    container = C()
    manager = container.manager if way == "declared" else ResourceManager()
    if way == "registered":
        manager.register_provider("cable", Wire(log), pool)
    invariant.watch(manager)
    parent = os.getpid()
    assert manager.acquire("cable", "held") == parent
    with manager.resource_context("cable", "given back"):
        pass
    log.write_text("")

    def check() -> None:
        assert manager.holders() == []
        assert not manager.has_resource("cable", "held")
        assert manager.acquire("cable", "held") == os.getpid()
        manager.acquire("cable", "mine")
        manager.release("cable", "mine")
        manager.close()
        lines = log.read_text().splitlines()
        assert set(lines) == {f"{os.getpid()} releases {os.getpid()}"}, "the provider itself is the parent's"
        assert len(lines) == 2

    in_child(check)
    assert manager.get_resource("cable", "held") == parent
    log.write_text("")
    manager.release("cable", "held")
    manager.close()
    lines = log.read_text().splitlines()
    assert set(lines) == {f"{parent} releases {parent}", f"{parent} closes"}
    assert len(lines) == 2 + (pool is not None)
