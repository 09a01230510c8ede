"""The manager: names, owners that acquire and release, requirements, questions, the end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.conftest import Side
from tests.crews import Crew, Maker, TaskMaker, maker_for
from wirestate import (
    BaseResourceProvider,
    PoolConfig,
    ResourceConfig,
    ResourceError,
    ResourceHealth,
    ResourceManager,
)
from wirestate.errors import (
    AsyncResourceError,
    DuplicateResourceError,
    NotHeldError,
    OwnerInUseError,
    ReleaseFailedError,
    ResourceClosedError,
    ResourceTimeoutError,
    ResourceUnavailableError,
    ScopeClosedError,
    UnknownResourceError,
)

Scenario = Callable[[], Coroutine[Any, Any, None]]


class Outcomes(BaseResourceProvider):
    """Notes with which outcome each of its resources came back."""

    def __init__(self, name: str = "noted") -> None:
        super().__init__(name)
        self.made = 0
        self.outcomes: list[BaseException | None] = []
        self.failing: BaseException | None = None

    def acquire(self, **options: Any) -> list[Any]:
        self.made += 1
        return [self.made, options]

    def release(self, resource: Any, error: BaseException | None = None) -> None:
        self.outcomes.append(error)
        if self.failing is not None:
            raise self.failing


@pytest.fixture
def maker(side: Side) -> Maker:
    return maker_for(side.world)


@pytest.fixture
def manager(maker: Maker) -> ResourceManager:
    made = ResourceManager()
    made.register_provider("db", maker)
    return made


# --- names -----------------------------------------------------------------------------------------


def test_a_name_is_registered_once_and_found_by_its_name() -> None:
    manager = ResourceManager()
    manager.register_from_dict("settings", {"data": {"limit": 3}})
    with pytest.raises(DuplicateResourceError, match="'settings' is registered already"):
        manager.register_provider("settings", Outcomes())
    with pytest.raises(UnknownResourceError, match="did you mean 'settings'"):
        manager.acquire("setings", "a")
    with pytest.raises(ResourceError, match=r"has no acquire\(\)"):
        manager.register_provider("nothing", object())
    assert manager.names == ["settings"]


def test_a_simple_provider_is_made_and_not_registered() -> None:
    manager = ResourceManager()
    provider = manager.create_simple_provider("limits", {"rows": 5})
    assert manager.names == []
    manager.register_provider("limits", provider)
    with manager.resource_context("limits", "a") as mine, manager.resource_context("limits", "b") as other:
        mine["rows"] = 6
        assert other == {"rows": 5}


def test_unregistering_takes_the_resource_back_and_frees_the_name(
    side: Side, manager: ResourceManager, maker: Maker
) -> None:
    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "a")
        async with manager.scope("run") as owner, owner.state("load") as visit:
            await visit.open("db") if side.is_async else visit.resource("db")
            await side.call(manager, "unregister_provider", "db")
            assert not maker.live
        assert manager.holders() == []
        assert manager.names == []
        assert manager.owners == {}
        manager.register_provider("db", maker)

    side.run(scenario())


# --- acquire and release ---------------------------------------------------------------------------


def test_a_second_acquire_gives_the_same_and_the_last_release_counts(
    side: Side, manager: ResourceManager, maker: Maker
) -> None:
    async def scenario() -> None:
        first = await side.call(manager, "acquire", "db", "a")
        other = await side.call(manager, "acquire", "db", "b")
        assert await side.call(manager, "acquire", "db", "a") is first is not other
        await side.call(manager, "release", "db", "a")
        assert manager.has_resource("db", "a")
        assert first in maker.live
        await side.call(manager, "release", "db", "a")
        assert not manager.has_resource("db", "a")
        assert maker.live == {other}
        with pytest.raises(NotHeldError, match="owner 'a' does not hold 'db'"):
            await side.call(manager, "release", "db", "a")
        await side.call(manager, "release_all", "b")
        assert not maker.live
        assert manager.owners == {}

    side.run(scenario())


def test_one_of_two_resources_leaves_with_its_last_release(side: Side, manager: ResourceManager, maker: Maker) -> None:
    manager.register_provider("second", Outcomes())

    async def scenario() -> None:
        for name in ("db", "db", "second"):
            await side.call(manager, "acquire", name, "a")
        for _ in range(2):
            await side.call(manager, "release", "db", "a")
        assert not maker.live
        assert manager.has_resource("second", "a")
        await side.call(manager, "release_all", "a")

    side.run(scenario())


@pytest.mark.parametrize("owner", ["a", "a:b", "a/b#1", "a\0b", "container", "run-1", "", "ü/é ☃", "db"])
def test_an_owner_id_may_be_any_text(side: Side, manager: ResourceManager, maker: Maker, owner: str) -> None:
    async def scenario() -> None:
        kept = await side.call(manager, "acquire", "db", "a:db")
        resource = await side.call(manager, "acquire", "db", owner)
        assert resource is not kept
        assert manager.get_resource("db", owner) is resource
        assert set(manager.get_resource_owners("db")) == {"a:db", owner}
        await side.call(manager, "release_all", "a")
        assert (resource in maker.live) == (owner != "a")
        assert kept in maker.live
        await side.call(manager, "release_all", owner)
        assert maker.live == {kept}
        await side.call(manager, "close")

    side.run(scenario())


def test_an_owner_id_that_is_a_number_is_its_text(manager: ResourceManager, side: Side) -> None:
    async def scenario() -> None:
        resource = await side.call(manager, "acquire", "db", 7)
        assert manager.get_resource("db", "7") is resource
        await side.call(manager, "release", "db", 7)
        assert manager.owners == {}

    side.run(scenario())


def test_release_all_of_nothing_is_no_error(side: Side, manager: ResourceManager) -> None:
    side.run(side.call(manager, "release_all", "nobody"))


def test_options_and_a_timeout_go_to_the_provider(side: Side) -> None:
    manager = ResourceManager()
    manager.register_provider("noted", Outcomes())

    async def scenario() -> None:
        assert await side.call(manager, "acquire", "noted", "a", timeout=5.0, tenant="x") == [1, {"tenant": "x"}]
        assert await side.call(manager, "acquire", "noted", "a") == [1, {"tenant": "x"}]
        await side.call(manager, "release_all", "a")

    side.run(scenario())


def test_a_late_resource_is_refused_and_given_back_when_it_comes(
    side: Side, manager: ResourceManager, maker: Maker
) -> None:
    maker.open.clear()

    async def scenario() -> None:
        with pytest.raises(ResourceTimeoutError, match=r"'db' was not ready in 0\.01 s"):
            await side.call(manager, "acquire", "db", "a", timeout=0.01)
        assert manager.owners == {}
        maker.open.set()
        await Crew(side.world).until(lambda: maker.creating == 0 and not maker.live)

    side.run(scenario())


def test_a_pooled_name_has_as_many_resources_as_its_pool(side: Side, maker: Maker) -> None:
    manager = ResourceManager()
    manager.register_provider("db", maker, PoolConfig(max_size=1, acquire_timeout=0.0))

    async def scenario() -> None:
        first = await side.call(manager, "acquire", "db", "a")
        with pytest.raises(ResourceTimeoutError, match=r"longest held .* by a"):
            await side.call(manager, "acquire", "db", "b")
        await side.call(manager, "release", "db", "a")
        assert await side.call(manager, "acquire", "db", "b") is first
        await side.call(manager, "close")
        assert not maker.live

    side.run(scenario())


def test_eight_at_once_of_one_owner_get_one_resource(side: Side, manager: ResourceManager, maker: Maker) -> None:
    async def scenario() -> None:
        crew = Crew(side.world)
        maker.open.clear()
        members = [crew.start(side.call(manager, "acquire", "db", "a")) for _ in range(8)]
        await crew.until(lambda: maker.creating == 1)
        maker.open.set()
        resources = {await member.result() for member in members}
        assert len(resources) == maker.made == 1
        for _ in range(7):
            await side.call(manager, "release", "db", "a")
        assert maker.live == resources
        await side.call(manager, "release", "db", "a")
        assert not maker.live
        assert manager.owners == {}

    side.run(scenario())


def test_a_slow_resource_delays_no_other(side: Side, manager: ResourceManager, maker: Maker) -> None:
    manager.register_provider("other", Outcomes())

    async def scenario() -> None:
        crew = Crew(side.world)
        maker.open.clear()
        slow = crew.start(side.call(manager, "acquire", "db", "a"))
        await crew.until(lambda: maker.creating == 1)
        await side.call(manager, "acquire", "other", "a")
        await side.call(manager, "release", "other", "a")
        manager.get_all_resources()
        manager.get_metrics()
        assert not slow.done
        maker.open.set()
        await slow.result()
        await side.call(manager, "close")

    side.run(scenario())


def test_a_provider_that_fails_leaves_nothing_behind(side: Side, manager: ResourceManager, maker: Maker) -> None:
    maker.failing = OSError("no route")

    async def scenario() -> None:
        with pytest.raises(ResourceUnavailableError, match="'db' could not be had: OSError: no route") as caught:
            await side.call(manager, "acquire", "db", "a")
        assert caught.value.__cause__ is maker.failing
        assert (caught.value.resource_name, caught.value.operation) == ("db", "acquire")
        assert manager.owners == {}
        assert manager.get_metrics("db")["db"].failed_acquisitions == 1
        maker.failing = None
        await side.call(manager, "acquire", "db", "a")
        await side.call(manager, "release", "db", "a")

    side.run(scenario())


# --- contexts and outcomes -------------------------------------------------------------------------


def test_an_inner_context_of_the_same_owner_keeps_the_outer_resource(
    side: Side, manager: ResourceManager, maker: Maker
) -> None:
    async def scenario() -> None:
        if side.is_async:
            async with manager.resource_context("db", "a") as outer:
                async with manager.resource_context("db", "a") as inner:
                    assert inner is outer
                assert outer in maker.live
        else:
            with manager.resource_context("db", "a") as outer:
                with manager.resource_context("db", "a") as inner:
                    assert inner is outer
                assert outer in maker.live
        assert not maker.live

    side.run(scenario())


@pytest.mark.parametrize("verb", ["release", "release_all"])
def test_a_release_while_an_error_is_handled_rolls_back(side: Side, verb: str) -> None:
    provider = Outcomes()
    manager = ResourceManager()
    manager.register_provider("noted", provider)
    args = ("noted", "a") if verb == "release" else ("a",)

    async def scenario() -> None:
        await side.call(manager, "acquire", "noted", "a")
        await side.call(manager, verb, *args)
        await side.call(manager, "acquire", "noted", "a")
        error = ValueError("body")
        try:
            raise error
        except ValueError:
            await side.call(manager, verb, *args)
        assert provider.outcomes == [None, error]

    side.run(scenario())


def test_the_body_error_stays_the_error_of_a_context(side: Side) -> None:
    provider = Outcomes()
    provider.failing = OSError("release")
    manager = ResourceManager()
    manager.register_provider("noted", provider)
    error = ValueError("body")

    async def fails() -> None:
        if side.is_async:
            async with manager.resource_context("noted", "a"):
                raise error
        with manager.resource_context("noted", "a"):
            raise error

    with pytest.raises(ValueError, match="body") as caught:
        side.run(fails())
    assert caught.value.release_errors == (provider.failing,)  # type: ignore[attr-defined]
    assert provider.outcomes == [error]
    assert manager.owners == {}


def test_one_failing_release_leaves_the_others_released(side: Side, manager: ResourceManager, maker: Maker) -> None:
    bad = Outcomes()
    bad.failing = OSError("release")
    manager.register_provider("bad", bad)

    async def scenario() -> None:
        for name in ("db", "bad"):
            await side.call(manager, "acquire", name, "a")
        with pytest.raises(ReleaseFailedError) as caught:
            await side.call(manager, "release_all", "a")
        assert caught.value.exceptions == (bad.failing,)
        assert not maker.live
        assert manager.owners == {}
        assert manager.holders() == []

    side.run(scenario())


# --- requirements ----------------------------------------------------------------------------------


def test_requirements_are_had_together(side: Side, manager: ResourceManager, maker: Maker) -> None:
    wanted = [ResourceConfig("db", timeout=5.0), ResourceConfig("cache", required=False)]

    async def scenario() -> None:
        had = await side.call(manager, "configure_from_requirements", wanted, "a")
        assert set(had) == {"db", "cache"}
        assert had["db"] in maker.live
        assert had["cache"] is None
        await side.call(manager, "release_all", "a")
        assert not maker.live

    side.run(scenario())


def test_a_required_one_that_is_missing_gives_the_others_back(
    side: Side, manager: ResourceManager, maker: Maker
) -> None:
    async def scenario() -> None:
        held = await side.call(manager, "acquire", "db", "a")
        with pytest.raises(UnknownResourceError, match="'cache'"):
            await side.call(
                manager, "configure_from_requirements", [ResourceConfig("db"), ResourceConfig("cache")], "a"
            )
        assert manager.get_resource("db", "a") is held
        await side.call(manager, "release", "db", "a")
        assert not maker.live

    side.run(scenario())


# --- owners and their scopes -----------------------------------------------------------------------


def test_an_owner_id_that_is_open_is_refused(side: Side, manager: ResourceManager) -> None:
    async def scenario() -> None:
        async with manager.scope("a") as first:
            with pytest.raises(OwnerInUseError, match="'a' has an open scope"):
                manager.scope("a")
            assert manager.scope().owner_id != manager.scope().owner_id
        with pytest.raises(ScopeClosedError):
            first.state("x")
        with pytest.raises(ScopeClosedError), first:
            pass
        async with manager.scope("a"):
            pass

    side.run(scenario())


def test_leaving_a_scope_releases_what_was_acquired_for_its_owner(
    side: Side, manager: ResourceManager, maker: Maker
) -> None:
    async def scenario() -> None:
        before = await side.call(manager, "acquire", "db", "a")
        async with manager.scope("a"):
            assert await side.call(manager, "acquire", "db", "a") is before
            await side.call(manager, "release", "db", "a")
            await side.call(manager, "release", "db", "a")
            assert not maker.live
            await side.call(manager, "acquire", "db", "a")
        assert not maker.live
        assert manager.owners == {}

    side.run(scenario())


def test_the_id_of_a_visit_names_what_the_visit_holds(side: Side, manager: ResourceManager, maker: Maker) -> None:
    async def scenario() -> None:
        async with manager.scope("job/1") as owner, owner.state("load/x") as visit:
            assert visit.owner_id == "job/1/load/x#1"
            await visit.open("db") if side.is_async else visit.resource("db")
            mine = manager.get_resource("db", visit.owner_id)
            assert await side.call(manager, "acquire", "db", visit.owner_id) is mine
            await side.call(manager, "release", "db", visit.owner_id)
            assert mine in maker.live, "the visit uses it too"
            assert await side.call(manager, "acquire", "db", "job/1") is not mine
        assert not maker.live

    side.run(scenario())


def test_an_owner_that_ends_slowly_is_not_taken_for(side: Side) -> None:
    going, may_go = threading.Event(), threading.Event()

    class Slow(Outcomes):
        def release(self, resource: Any, error: BaseException | None = None) -> None:
            going.set()
            assert may_go.wait(20)

    manager = ResourceManager()
    manager.register_provider("slow", Slow(), lifetime="per_owner")
    manager.register_provider("fast", Outcomes())

    def leave() -> None:
        with manager.scope("a") as owner:
            owner.resource("slow")

    thread = threading.Thread(target=leave)
    thread.start()
    assert going.wait(20)
    with pytest.raises(ScopeClosedError):
        side.run(side.call(manager, "acquire", "fast", "a"))
    may_go.set()
    thread.join()
    assert manager.owners == {}


# --- questions -------------------------------------------------------------------------------------


def test_who_holds_what_and_since_when(side: Side, manager: ResourceManager) -> None:
    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "a")
        async with manager.scope("run") as owner, owner.state("load") as visit:
            await visit.open("db") if side.is_async else visit.resource("db")
            assert [holder[:2] for holder in manager.holders()] == [("db", "a"), ("db", "run/load#1")]
            assert all(0 <= holder.seconds < 20 for holder in manager.holders())
            assert manager.get_resource_owners("db") == ["a", "run/load#1"]
            status = manager.get_resource_status("db")
            assert (status["active_count"], status["owners"]) == (2, ["a", "run/load#1"])
            assert (status["provider_exists"], status["has_pool"], status["lifetime"]) == (True, False, "per state")
            assert manager.get_all_resources() == {"db": status}
        assert manager.get_resource_status("nothing")["provider_exists"] is False
        assert manager.get_resource("db", "nobody") is None
        assert not manager.has_resource("nothing", "a")
        await side.call(manager, "close")

    side.run(scenario())


def test_metrics_are_true(side: Side, manager: ResourceManager, maker: Maker) -> None:
    pooled = maker_for(side.world)
    manager.register_provider("pooled", pooled, PoolConfig(max_size=3))

    async def scenario() -> None:
        for owner in "abc":
            for name in ("db", "pooled"):
                await side.call(manager, "acquire", name, owner)
        for name in ("db", "pooled"):
            await side.call(manager, "release", name, "a")
            metrics = manager.get_metrics(name)[name]
            assert (metrics.total_acquisitions, metrics.active_connections) == (3, 2)
            assert metrics.failed_acquisitions == metrics.timeouts == 0
            assert metrics.total_hold_time > 0
        pool = manager.get_metrics()["pooled_pool"]
        assert (pool.size, pool.available) == (3, 1)
        assert list(manager.get_metrics("pooled_pool")) == ["pooled_pool"]
        with pytest.raises(UnknownResourceError, match="'pool'"):
            manager.get_metrics("pool")
        await side.call(manager, "close")

    side.run(scenario())


def test_counters_stay_small_however_many_leases_there_were() -> None:
    manager = ResourceManager()
    manager.register_provider("noted", Outcomes())
    entry = manager.entry("noted")
    meter = entry.steps()[0].meter
    for _ in range(5000):
        with manager.resource_context("noted", "a"):
            pass
    for number in range(5000):
        manager.acquire("noted", f"owner {number}")
    assert max(len(meter.takes), len(meter.holds)) < 5000
    metrics = manager.get_metrics("noted")["noted"]
    assert (metrics.total_acquisitions, metrics.active_connections) == (10_000, 5000)
    assert meter.takes == meter.holds == []
    manager.close()


def test_health_is_asked_for_and_bounded() -> None:
    class Sick(Outcomes):
        def health_check(self) -> ResourceHealth:
            raise OSError("down")

    class Well(Outcomes):
        def health_check(self) -> ResourceHealth:
            return ResourceHealth.HEALTHY

        def validate(self, resource: Any) -> bool:
            return isinstance(resource, list)

    well = Well()
    with ResourceManager() as manager:
        manager.register_provider("sick", Sick())
        manager.register_provider("well", well)
        assert manager.health_check("well") == {"well": ResourceHealth.HEALTHY}
        assert manager.health_check() == {"sick": ResourceHealth.UNHEALTHY, "well": ResourceHealth.HEALTHY}
        assert manager.get_resource_status("sick")["health"] is ResourceHealth.UNHEALTHY
        assert manager.validate_resource("well")
        assert not manager.validate_resource("sick")
        assert well.made == len(well.outcomes) == 1
        assert manager.owners == {}


# --- the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["close", "cleanup"])
def test_the_end_releases_everything_and_refuses_from_then_on(
    side: Side, manager: ResourceManager, maker: Maker, verb: str
) -> None:
    async def scenario() -> None:
        owner = manager.scope("run")
        await side.call(manager, "acquire", "db", "a")
        await side.call(manager, "acquire", "db", "run")
        if verb == "cleanup":
            await manager.cleanup()
        else:
            await side.call(manager, "close")
        assert not maker.live
        assert manager.owners == {}
        await side.call(manager, "close")
        for refused in (
            manager.scope,
            lambda: manager.register_provider("x", Outcomes()),
            lambda: manager.acquire("db", "a"),
            lambda: manager.release("db", "a"),
        ):
            with pytest.raises(ResourceClosedError, match="manager is closed"):
                refused()
        with pytest.raises(ScopeClosedError):
            owner.state("x")

    side.run(scenario())


def test_closing_ends_newest_first_and_one_failure_stops_nothing() -> None:
    ended: list[str] = []

    class Ends(Outcomes):
        def release(self, resource: Any, error: BaseException | None = None) -> None:
            ended.append(f"lease {self.name}")
            raise OSError(self.name)

        def close(self) -> None:
            ended.append(f"close {self.name}")
            raise KeyError(self.name)

    manager = ResourceManager()
    for name in "ab":
        manager.register_provider(name, Ends(name))
        manager.acquire(name, "x")
    with pytest.raises(ReleaseFailedError) as caught:
        manager.close()
    assert ended == ["lease b", "lease a", "close b", "close a"]
    assert [type(error) for error in caught.value.exceptions] == [OSError, OSError, KeyError, KeyError]


def test_closing_what_is_asynchronous_is_refused_before_anything_is_released() -> None:
    maker = TaskMaker()
    plain = Outcomes()
    manager = ResourceManager()
    manager.register_provider("plain", plain)
    manager.register_provider("db", maker)

    async def scenario() -> None:
        await manager.aacquire("plain", "a")
        await manager.aacquire("db", "a")
        for refused in (manager.close, lambda: manager.release_all("a"), lambda: manager.release("db", "a")):
            with pytest.raises(AsyncResourceError, match="'db' is asynchronous; use"):
                refused()
        with pytest.raises(AsyncResourceError, match="aacquire"):
            manager.acquire("db", "b")
        with pytest.raises(ValueError, match="body") as caught, manager:
            raise ValueError("body")
        assert isinstance(caught.value.release_errors[0], AsyncResourceError)  # type: ignore[attr-defined]
        assert plain.outcomes == []
        assert maker.live
        await manager.aclose()
        assert not maker.live

    asyncio.run(scenario())


@pytest.mark.parametrize("told", [True, False])
def test_a_provider_that_works_in_tasks_is_closed_in_one(told: bool) -> None:
    class Tasks(BaseResourceProvider):
        is_async = told
        ends: tuple[str, ...] = ()

        async def acquire(self, **options: Any) -> object:
            return object()

        async def aclose(self) -> None:
            await asyncio.sleep(0)
            self.ends += ("aclose",)

        def close(self) -> None:
            self.ends += ("close",)

    async def scenario() -> None:
        provider = Tasks("db")
        async with ResourceManager() as manager:
            manager.register_provider("db", provider)
            await manager.aacquire("db", "a")
            await manager.arelease("db", "a")
        assert provider.ends == ("aclose",)

    asyncio.run(scenario())


def test_a_close_that_is_cancelled_still_releases_all_the_rest() -> None:
    class Slow(BaseResourceProvider):
        is_async = True

        def __init__(self, name: str) -> None:
            super().__init__(name)
            self.releasing = asyncio.Event()
            self.ends: list[str] = []

        async def acquire(self, **options: Any) -> object:
            return object()

        async def release(self, resource: object) -> None:
            self.releasing.set()
            await asyncio.sleep(0.01)
            self.ends.append("released")

        async def aclose(self) -> None:
            self.ends.append("closed")

    async def scenario() -> None:
        manager = ResourceManager()
        first, last = Slow("first"), Slow("last")
        for provider in (first, last):
            manager.register_provider(provider.name, provider)
            await manager.aacquire(provider.name, "a")
        closing = asyncio.create_task(manager.aclose())
        await last.releasing.wait()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert first.ends == ["released", "closed"]
        assert last.ends[-1] == "closed"
        assert manager.holders() == []

    asyncio.run(scenario())


def test_an_acquire_that_races_the_close_gets_an_error_or_is_released() -> None:
    for _ in range(60):
        provider = Outcomes()
        manager = ResourceManager()
        manager.register_provider("noted", provider)
        barrier = threading.Barrier(5)

        def work(number: int, manager: ResourceManager = manager, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            with contextlib.suppress(ResourceClosedError, ScopeClosedError, NotHeldError):
                for _ in range(5):
                    manager.acquire("noted", f"o{number % 2}")
                    manager.release("noted", f"o{number % 2}")
                manager.acquire("noted", f"o{number}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        barrier.wait()
        manager.close()
        for thread in threads:
            thread.join()
        assert provider.made == len(provider.outcomes)
        assert manager.owners == {}
        assert manager.holders() == []


def test_release_is_flat_and_close_linear_in_the_number_of_owners() -> None:
    def measured(owners: int) -> tuple[float, float]:
        manager = ResourceManager()
        manager.register_provider("noted", Outcomes())
        for number in range(owners):
            manager.acquire("noted", f"owner {number}")
        best = 9.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(20):
                manager.acquire("noted", "one more")
                manager.release("noted", "one more")
                manager.acquire("noted", "one more")
                manager.release_all("one more")
            best = min(best, time.perf_counter() - began)
        began = time.perf_counter()
        manager.close()
        return best, (time.perf_counter() - began) / owners

    few, _ = measured(10)
    _, each_of_some = measured(1000)
    many, each = measured(10_000)
    assert many < 5 * few
    assert each < 5 * each_of_some


def test_its_repr_answers_an_operator(manager: ResourceManager) -> None:
    assert repr(manager) == "<ResourceManager 1 resources, 0 owners>"
    manager.close()
    assert repr(manager) == "<ResourceManager closed>"
