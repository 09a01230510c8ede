"""Listening: each lease is told once when it begins and once when it ends, in both worlds, whoever ends it."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from dependency_injector import providers
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.crews import Crew, Maker, TaskMaker, maker_for
from tests.invariant import Invariant
from wirestate import (
    BaseResourceProvider,
    HTTPResourceAdapter,
    Listener,
    PoolConfig,
    ResourceContainer,
    ResourceManager,
    SimpleFSM,
    lifetimes,
    manager_of,
)
from wirestate.errors import ResourceError, ScopeClosedError
from wirestate.resources.breaker import CircuitBreaker
from wirestate.testing import override


class Ears(Listener):
    """Writes down what it hears; every lease that begins must end, once."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.open: list[tuple[str, str]] = []
        self.seconds: list[float] = []
        self.raising: BaseException | None = None
        self._lock = threading.Lock()

    def on_open(self, resource: str, owner_id: str, seconds: float) -> None:
        with self._lock:
            self.heard.append(f"open {resource} for {owner_id}")
            self.open.append((resource, owner_id))
            self.seconds.append(seconds)
        if self.raising is not None:
            raise self.raising

    def on_close(self, resource: str, owner_id: str, seconds: float, error: BaseException | None) -> None:
        with self._lock:
            self.heard.append(f"close {resource} for {owner_id}{'' if error is None else f' by {error!r}'}")
            self.open.remove((resource, owner_id))
            self.seconds.append(seconds)
        if self.raising is not None:
            raise self.raising

    def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
        self.heard.append(f"leak of {resource} by {owner_id}")

    def on_breaker(self, resource: str, before: str, after: str) -> None:
        self.heard.append(f"breaker of {resource}: {before} -> {after}")


@pytest.fixture
def ears() -> Iterator[Ears]:
    listener = Ears()
    yield listener
    assert listener.open == []
    assert all(0 <= seconds < 60 for seconds in listener.seconds)


@pytest.fixture
def maker(side: Side, invariant: Invariant) -> Maker:
    made: Maker = invariant.watch(maker_for(side.world))
    return made


@pytest.fixture
def manager(maker: Maker, ears: Ears, invariant: Invariant) -> ResourceManager:
    made: ResourceManager = invariant.watch(ResourceManager(listener=ears))
    made.register_provider("db", maker)
    return made


async def visiting(side: Side, manager: ResourceManager, error: Exception | None = None) -> None:
    async with manager.scope("run") as owner, owner.state("load") as visit:
        await visit.open("db") if side.is_async else visit.resource("db")
        if error is not None:
            raise error


# --- leases of a manager -------------------------------------------------------------------


def test_a_lease_is_told_when_it_begins_and_when_its_last_user_gives_it_back(
    side: Side, manager: ResourceManager, ears: Ears
) -> None:
    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "a")
        await side.call(manager, "acquire", "db", "a")  # the same lease again
        assert ears.heard == ["open db for a"]
        await side.call(manager, "release", "db", "a")
        assert ears.heard == ["open db for a"]
        await side.call(manager, "release", "db", "a")
        assert ears.heard == ["open db for a", "close db for a"]

    side.run(scenario())


def test_the_outcome_is_told_with_the_end(side: Side, manager: ResourceManager, ears: Ears) -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="body"):
            await visiting(side, manager, ValueError("body"))

    side.run(scenario())
    assert ears.heard == ["open db for run/load#1", "close db for run/load#1 by ValueError('body')"]


def test_what_could_not_be_had_is_not_told(side: Side, manager: ResourceManager, maker: Maker, ears: Ears) -> None:
    maker.failing = OSError("refused")

    async def scenario() -> None:
        with pytest.raises(ResourceError):
            await side.call(manager, "acquire", "db", "a")
        with pytest.raises(ResourceError):
            await side.call(manager, "acquire", "db", "a", 0.5)

    side.run(scenario())
    assert ears.heard == []


def test_a_release_that_raises_is_the_end_all_the_same_and_its_error_is_told(
    side: Side, manager: ResourceManager, maker: Maker, ears: Ears
) -> None:
    maker.failing_release = OSError("no goodbye")

    async def scenario() -> None:
        with pytest.raises(Exception, match="release failed"):
            await visiting(side, manager)
        await side.call(manager, "acquire", "db", "a")
        with pytest.raises(Exception, match="release failed"):
            await side.call(manager, "release", "db", "a")

    side.run(scenario())
    end = "by OSError('no goodbye')"
    assert [heard for heard in ears.heard if heard.startswith("close")] == [
        f"close db for run/load#1 {end}",
        f"close db for a {end}",
    ]


def test_the_body_is_told_as_outcome_where_the_release_raises_too(
    side: Side, manager: ResourceManager, maker: Maker, ears: Ears
) -> None:
    maker.failing_release = OSError("no goodbye")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="body"):
            await visiting(side, manager, ValueError("body"))

    side.run(scenario())
    assert ears.heard[1:] == ["close db for run/load#1 by ValueError('body')"]


def test_closing_the_manager_tells_the_end_of_all_that_was_open_newest_owner_first(
    side: Side, manager: ResourceManager, ears: Ears
) -> None:
    async def scenario() -> None:
        for owner in ("a", "b"):
            await side.call(manager, "acquire", "db", owner)
        await side.call(manager, "close")

    side.run(scenario())
    rolled_back = "close db for {0} by ResourceClosedError(\"manager was closed before '{0}' released"
    assert ears.heard[:2] == ["open db for a", "open db for b"]
    for heard, owner in zip(ears.heard[2:], "ba", strict=True):
        assert heard.startswith(rolled_back.format(owner))


def test_unregistering_tells_the_end_of_what_owners_held(side: Side, manager: ResourceManager, ears: Ears) -> None:
    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "a")
        async with manager.scope("run") as owner, owner.state("load") as visit:
            await visit.open("db") if side.is_async else visit.resource("db")
            await side.call(manager, "unregister_provider", "db")
            for heard, holder in zip(sorted(ears.heard[2:]), ("a", "run/load#1"), strict=True):
                assert heard.startswith(f"close db for {holder} by ResourceClosedError(\"'db' was unregistered before")

    side.run(scenario())
    assert len(ears.heard) == 4


def test_many_owners_at_once_are_told_each_exactly_once(
    side: Side, manager: ResourceManager, maker: Maker, ears: Ears
) -> None:
    crew = Crew(side.world)

    async def work(owner: str) -> None:
        for _ in range(20):
            await side.call(manager, "acquire", "db", owner)
            await side.call(manager, "release", "db", owner)

    async def scenario() -> None:
        members = [crew.start(work(f"owner {number}")) for number in range(8)]
        for member in members:
            await member.result()

    side.run(scenario())
    assert len(ears.heard) == 2 * maker.made == 2 * maker.destroyed == 320
    for number in range(8):
        mine = [heard.split()[0] for heard in ears.heard if heard.endswith(f"owner {number}")]
        assert mine == ["open", "close"] * 20


def test_threads_of_one_owner_that_open_at_once_open_one_lease(
    side: Side, manager: ResourceManager, maker: Maker, ears: Ears
) -> None:
    maker.open.clear()
    crew = Crew(side.world)

    async def scenario() -> None:
        members = [crew.start(side.call(manager, "acquire", "db", "a")) for _ in range(6)]
        await crew.until(lambda: maker.tried == 1)
        maker.open.set()
        for member in members:
            await member.result()
        assert ears.heard == ["open db for a"]
        await side.call(manager, "release_all", "a")

    side.run(scenario())
    assert ears.heard == ["open db for a", "close db for a"]


def test_a_lease_that_comes_to_a_scope_that_was_closed_meanwhile_is_told_as_over(
    side: Side, manager: ResourceManager, maker: Maker, ears: Ears
) -> None:
    maker.open.clear()
    crew = Crew(side.world)

    async def scenario() -> None:
        late = crew.start(side.call(manager, "acquire", "db", "a"))
        await crew.until(lambda: maker.tried == 1)
        closing = crew.start(side.call(manager, "close"))
        await crew.until(lambda: manager.closed)
        maker.open.set()
        await closing.result()
        assert isinstance(await late.error(), ScopeClosedError | ResourceError)

    side.run(scenario())
    assert ears.heard in ([], ["open db for a", "close db for a"])
    assert not maker.live


def test_a_cancelled_opening_is_not_told(ears: Ears) -> None:
    maker = TaskMaker()
    maker.open.clear()

    async def scenario() -> None:
        async with ResourceManager(listener=ears) as manager:
            manager.register_provider("db", maker)
            task = asyncio.create_task(manager.aacquire("db", "a"))
            while not maker.tried:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scenario())
    assert ears.heard == []


def test_what_a_listener_raises_is_logged_and_changes_nothing(
    side: Side, manager: ResourceManager, maker: Maker, ears: Ears, caplog: pytest.LogCaptureFixture
) -> None:
    ears.raising = RuntimeError("a listener's trouble is its own")

    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "a")
        await visiting(side, manager)
        await side.call(manager, "release", "db", "a")

    with caplog.at_level(logging.ERROR, "wirestate.resources"):
        side.run(scenario())
    assert not maker.live
    told = [re.search(r"failed in \w+\.(\w+): RuntimeError: a listener's trouble", one) for one in caplog.messages]
    assert [found and found[1] for found in told] == ["on_open", "on_open", "on_close", "on_close"]


def test_a_listener_can_come_and_go(side: Side, manager: ResourceManager, ears: Ears) -> None:
    async def scenario() -> None:
        manager.listener = None
        await side.call(manager, "acquire", "db", "silent")
        await side.call(manager, "release", "db", "silent")
        assert ears.heard == []
        manager.listener = ears
        assert manager.listener is ears
        await side.call(manager, "acquire", "db", "loud")
        await side.call(manager, "release", "db", "loud")
        assert ears.heard == ["open db for loud", "close db for loud"]

    side.run(scenario())


# --- pools, gates, breakers ----------------------------------------------------------------


def test_leases_of_a_pool_are_told_and_so_are_the_lost_ones_and_its_breaker(
    side: Side, manager: ResourceManager, ears: Ears, invariant: Invariant
) -> None:
    pooled = invariant.watch(maker_for(side.world))
    manager.register_provider("pool", pooled, PoolConfig(max_size=2, breaker_failures=1, breaker_reset=60))

    async def scenario() -> None:
        for _ in range(2):  # the second one rests in the pool: the fast way
            await side.call(manager, "acquire", "pool", "a")
            await side.call(manager, "release", "pool", "a")
        assert ears.heard == ["open pool for a", "close pool for a"] * 2
        ears.heard.clear()
        pool = manager.entry("pool").steps()[-1].pool  # type: ignore[attr-defined]
        lease = await side.call(pool, "acquire", owner="b")
        with pytest.warns(ResourceWarning, match="was lost"):
            del lease
        await Crew(side.world).until(lambda: bool(ears.heard))
        pooled.failing = OSError("down")
        with pytest.raises(ResourceError):
            await side.call(manager, "acquire", "pool", "c")
        assert ears.heard == ["leak of pool by b", "breaker of pool: closed -> open"]
        assert manager.get_resource_status("pool")["breaker"] == "open"

    side.run(scenario())


def test_the_breaker_of_a_service_is_told_and_its_state_can_be_asked(side: Side, ears: Ears) -> None:
    manager = ResourceManager(listener=ears)
    service = HTTPResourceAdapter("api", base_url="http://127.0.0.1:1", async_client=side.is_async)
    manager.register_provider("api", service)
    breaker = service.breaker
    assert isinstance(breaker, CircuitBreaker)
    for _ in range(5):
        breaker.failure(OSError("down"))
    assert ears.heard == ["breaker of api: closed -> open"]
    assert manager.get_resource_status("api")["breaker"] == "open"
    assert service.listener is ears
    side.run(side.call(manager, "close"))


def test_a_provider_gets_the_listener_and_loses_it_with_the_manager_s() -> None:
    class Talking(BaseResourceProvider):
        def acquire(self, **options: Any) -> object:
            return object()

    talking, ears = Talking("talking"), Ears()
    assert talking.listener is None
    with ResourceManager(listener=ears) as manager:
        manager.register_provider("talking", talking)
        assert talking.listener is ears
        manager.listener = None
        assert talking.listener is None


# --- containers and machines ---------------------------------------------------------------


def opened() -> Iterator[str]:
    yield "plain"


async def aopened() -> AsyncIterator[str]:
    yield "asynchronous"


class Things(ResourceContainer):
    shared = lifetimes.Singleton(opened)
    owned = lifetimes.PerOwner(opened)
    visited = lifetimes.PerState(opened)


class AsyncThings(ResourceContainer):
    shared = lifetimes.Singleton(opened)
    owned = lifetimes.PerOwner(aopened)
    visited = lifetimes.PerState(aopened)


@inject
def using(
    record: dict[str, Any],
    shared: str = Provide["shared"],
    owned: str = Provide["owned"],
    visited: str = Provide["visited"],
) -> None:
    record["seen"] = [shared, owned, visited]
    if record.get("fails"):
        raise ValueError("no")


MACHINE: dict[str, Any] = {"states": {"s": {"transform": "using"}}}


@pytest.mark.parametrize("fails", [False, True])
def test_a_machine_tells_each_lease_of_its_runs_in_order(side: Side, ears: Ears, fails: bool) -> None:
    container = AsyncThings() if side.is_async else Things()
    fsm = SimpleFSM(MACHINE, container=container, functions={"using": using}, listener=ears)
    result = side.run(side.call(fsm, "process", {"fails": fails}))
    assert result.success is not fails
    run, end = result.owner_id, " by ValueError('no')" if fails else ""
    assert ears.heard == [
        "open shared for container",
        f"open owned for {run}",
        f"open visited for {run}/s#1",
        f"close visited for {run}/s#1{end}",
        f"close owned for {run}{end}",
    ]
    side.run(side.call(fsm.manager, "close"))
    assert ears.heard[5:] == ["close shared for container"]


def test_a_container_keeps_its_listener_over_a_close(ears: Ears) -> None:
    container = Things()
    manager_of(container).listener = ears
    for _ in range(2):
        container.shared()
        container.shutdown_resources()
    assert ears.heard == ["open shared for container", "close shared for container"] * 2


def test_the_resources_that_a_machine_makes_are_told_too() -> None:
    ears = Ears()
    machine = {"states": {"s": {"transform": "using", "resources": ["local"]}}}
    functions = {"using": lambda record, context: {**record, "local": context.resources["local"]}}
    container = Things()
    resources = {"local": {"data": {"a": 1}, "lifetime": "singleton"}}
    with SimpleFSM(machine, container=container, resources=resources, functions=functions, listener=ears) as fsm:
        assert fsm.process({}).data["local"] == {"a": 1}
    assert ears.heard == ["open local for container", "close local for container"]
    container.shutdown_resources()


def test_a_test_double_is_told_in_place_of_what_it_stands_for(ears: Ears) -> None:
    class Double(BaseResourceProvider):
        def acquire(self, **options: Any) -> str:
            return "double"

    container = Things()
    fsm = SimpleFSM(MACHINE, container=container, functions={"using": using}, listener=ears)
    with override(container, visited=Double("any")):
        assert fsm.process({}).data["seen"] == ["plain", "plain", "double"]
    with override(container, visited=providers.Object("object")):  # is lent by nobody
        assert fsm.process({}).data["seen"] == ["plain", "plain", "object"]
    assert fsm.process({}).data["seen"] == ["plain", "plain", "plain"]
    visits = [heard.partition(" for ")[0] for heard in ears.heard if "visited" in heard]
    assert visits == ["open visited", "close visited"] * 2
    container.shutdown_resources()


def test_leases_that_were_open_before_are_over_for_the_listener_that_came_meanwhile(ears: Ears) -> None:
    """No event is lost that the listener could hear; it may hear an end whose beginning it has missed."""
    ears.open.append(("shared", "container"))
    container = Things()
    container.shared()
    manager_of(container).listener = ears
    container.shutdown_resources()
    assert ears.heard == ["close shared for container"]
