"""Owners of one thing, who get no scope: what must be as if they had one, and the moment in which they get one."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.conftest import Side
from tests.crews import Crew, Maker, ThreadMaker
from tests.invariant import Invariant
from wirestate import BaseResourceProvider, Listener, PoolConfig, ResourceContainer, ResourceManager, lifetimes
from wirestate.errors import (
    NotHeldError,
    OwnerInUseError,
    ReleaseFailedError,
    ResourceError,
    ResourceUnavailableError,
    ScopeClosedError,
)
from wirestate.resources.endings import Ending
from wirestate.resources.loans import Loan
from wirestate.resources.owners import OwnerScope
from wirestate.waiting import BLOCKING, drive

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture
def maker(invariant: Invariant) -> Maker:
    return invariant.watch(ThreadMaker())  # type: ignore[no-any-return]  # watch() gives back what it got


@pytest.fixture
def manager(invariant: Invariant, maker: Maker) -> ResourceManager:
    made: ResourceManager = invariant.watch(ResourceManager())
    made.register_provider("db", maker)
    made.register_provider("cache", maker)
    return made


def slow_acquire(manager: ResourceManager, maker: Maker, crew: Crew, owner: str = "a") -> Any:
    """Begin an acquire that stands still in the provider."""
    maker.open.clear()

    async def acquire() -> Any:
        return manager.acquire("db", owner)

    return crew.start(acquire())


# --- as if there were a scope --------------------------------------------------------------------------


def test_an_owner_of_one_thing_costs_no_scope(side: Side, manager: ResourceManager) -> None:
    async def scenario() -> None:
        resource = await side.call(manager, "acquire", "db", "a")
        assert manager.owners == {}
        assert manager.get_resource("db", "a") is resource
        assert manager.has_resource("db", "a")
        assert not manager.has_resource("cache", "a")
        assert manager.get_resource_owners("db") == ["a"]
        assert [holder[:2] for holder in manager.holders()] == [("db", "a")]
        assert repr(manager) == "<ResourceManager 2 resources, 1 owners>"
        assert manager.owners == {}, "questions make none"
        await side.call(manager, "release", "db", "a")
        assert manager.holders() == []

    side.run(scenario())


@pytest.mark.parametrize("owner", [7, ["a"], None, ("run", 1)])
def test_an_owner_that_is_no_text_is_its_text(side: Side, manager: ResourceManager, maker: Maker, owner: Any) -> None:
    async def scenario() -> None:
        for verb, args in (("release", ("db", owner)), ("release_all", (owner,)), ("release", ("db", str(owner)))):
            resource = await side.call(manager, "acquire", "db", owner)
            assert manager.get_resource("db", str(owner)) is resource
            assert manager.has_resource("db", owner)
            assert manager.owners == {}
            await side.call(manager, verb, *args)
            assert not maker.live

    side.run(scenario())


@pytest.mark.parametrize("way", ["again", "other name", "scope", "release of another name", "unregister"])
def test_an_owner_gets_a_scope_when_it_needs_one_and_keeps_what_it_has(
    side: Side, manager: ResourceManager, maker: Maker, way: str
) -> None:
    async def scenario() -> None:
        resource = await side.call(manager, "acquire", "db", "a")
        if way == "again":
            assert await side.call(manager, "acquire", "db", "a") is resource
            await side.call(manager, "release", "db", "a")
        elif way == "other name":
            assert await side.call(manager, "acquire", "cache", "a") is not resource
            await side.call(manager, "release", "cache", "a")
        elif way == "scope":
            async with manager.scope("a"):
                assert await side.call(manager, "acquire", "db", "a") is resource
                with pytest.raises(OwnerInUseError):
                    manager.scope("a")
            assert not maker.live
            return
        elif way == "release of another name":
            with pytest.raises(NotHeldError, match="owner 'a' does not hold 'cache'"):
                await side.call(manager, "release", "cache", "a")
        else:
            await side.call(manager, "unregister_provider", "db")
            assert not maker.live
            assert manager.owners == {}
            return
        assert maker.live == {resource}
        assert manager.get_resource("db", "a") is resource
        assert [holder[:2] for holder in manager.holders()] == [("db", "a")]
        await side.call(manager, "release", "db", "a")
        assert not maker.live
        assert manager.owners == {}

    side.run(scenario())


def test_an_owner_inside_a_scope_is_lent_to_in_the_full_way(side: Side, manager: ResourceManager, maker: Maker) -> None:
    async def scenario() -> None:
        async with manager.scope("run") as owner, owner.state("load") as visit:
            resource = await side.call(manager, "acquire", "db", visit.owner_id)
            assert manager.get_resource("db", visit.owner_id) is resource
        assert not maker.live, "it ended with its visit"
        assert manager.holders() == []

    side.run(scenario())


def test_the_id_of_a_visit_means_the_visit_for_another_thread_too(manager: ResourceManager, maker: Maker) -> None:
    elsewhere = contextvars.Context()  # as another thread: no scope is current there
    with manager.scope("run") as owner, owner.state("load") as visit:
        mine = visit.resource("db")
        assert elsewhere.run(manager.acquire, "db", visit.owner_id) is mine
        assert elsewhere.run(manager.acquire, "cache", visit.owner_id) in maker.live
        elsewhere.run(manager.release, "db", visit.owner_id)
        assert mine in maker.live, "the visit uses it too"
    assert not maker.live
    assert manager.holders() == []


def test_what_a_provider_resolves_by_itself_lives_in_the_scope_of_its_owner() -> None:
    ended: list[str] = []

    def thing() -> Iterator[str]:
        yield "part"
        ended.append("part")

    class C(ResourceContainer):
        part = lifetimes.PerState(thing)

    container = C()

    class Lazy(BaseResourceProvider):
        def acquire(self, **options: Any) -> str:
            return f"made of {container.part()}"

        def release(self, resource: Any) -> None:
            ended.append("lazy")

    container.manager.register_provider("lazy", Lazy("lazy"))
    with container.manager.scope() as owner, owner.state("s"):
        assert container.part() == "part"
        assert container.manager.acquire("lazy", "a") == "made of part"
        assert ended == [], "the visit has one of its own"
    assert ended == ["part"]
    container.manager.release("lazy", "a")
    assert ended == ["part", "lazy", "part"]
    assert container.manager.acquire("lazy", "a") == "made of part"  # without a scope around it
    container.manager.release("lazy", "a")
    assert ended == ["part", "lazy", "part", "lazy", "part"]
    container.shutdown_resources()


@pytest.mark.parametrize("pool", [None, PoolConfig(max_size=2)])
def test_a_provider_that_fails_leaves_no_loan(
    side: Side, invariant: Invariant, maker: Maker, pool: PoolConfig | None
) -> None:
    manager = invariant.watch(ResourceManager())
    manager.register_provider("db", maker, pool)
    maker.failing = OSError("no route")

    async def scenario() -> None:
        for _ in range(2):
            with pytest.raises(ResourceUnavailableError, match="'db' could not be had: OSError: no route"):
                await side.call(manager, "acquire", "db", "a")
            assert manager.owners == {}
            assert manager.holders() == []
        maker.failing = None
        await side.call(manager, "acquire", "db", "a")
        await side.call(manager, "release_all", "a")

    side.run(scenario())


def test_a_release_that_fails_is_told_and_ends_the_loan(side: Side, manager: ResourceManager, maker: Maker) -> None:
    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "a")
        maker.failing_release = OSError("release")
        with pytest.raises(ReleaseFailedError, match="release failed in 'a'") as caught:
            await side.call(manager, "release", "db", "a")
        assert caught.value.exceptions == (maker.failing_release,)
        assert maker.failing_release.__notes__ == ["raised while 'db' of 'a' was released"]
        with pytest.raises(NotHeldError):
            await side.call(manager, "release", "db", "a")
        maker.failing_release = None
        assert manager.get_metrics("db")["db"].active_connections == 0

    side.run(scenario())


def test_loans_and_scopes_end_newest_first_when_the_manager_closes(side: Side) -> None:
    ended: list[str] = []

    class Ends(BaseResourceProvider):
        def acquire(self, **options: Any) -> list[str]:
            return [self.name]

        def release(self, resource: Any) -> None:
            ended.append(resource[0])
            raise OSError(resource[0])

    async def scenario() -> None:
        manager = ResourceManager()
        for name in "abcd":
            manager.register_provider(name, Ends(name))
        for name, owner in (("a", "x"), ("b", "y"), ("c", "y"), ("d", "z")):
            await side.call(manager, "acquire", name, owner)
        with pytest.raises(ReleaseFailedError) as caught:
            await side.call(manager, "close")
        assert ended == ["d", "c", "b", "a"]
        assert [str(error) for error in caught.value.exceptions] == ended
        assert manager.holders() == []

    side.run(scenario())


@pytest.mark.parametrize("way", ["loan", "acquired", "scope", "given back", "values", "closed"])
def test_a_manager_that_is_lost_before_it_is_closed_says_who_has_not_given_back(way: str) -> None:
    maker = ThreadMaker()
    manager = ResourceManager()
    manager.register_provider("db", maker)
    manager.register_provider("cache", maker, lifetime="per_owner")
    manager.register_from_dict("values", {"limit": 3})
    if way == "scope":
        manager.scope("a").resource("cache")
    elif way == "values":  # whose release does nothing
        manager.acquire("values", "a")
    else:
        manager.acquire("db", "a")
    if way == "acquired":
        manager.acquire("cache", "a")
    elif way == "given back":
        manager.release_all("a")
    elif way == "closed":
        manager.close()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del manager
        gc.collect()
    texts = [str(one.message) for one in told if one.category is ResourceWarning]
    named = {"loan": "'a' holds 'db'", "acquired": "'a' holds 'cache'; 'a' holds 'db'", "scope": "'a' holds 'cache'"}
    if way in named:
        assert texts == [f"manager was lost before it was closed: {named[way]}.  Close it, or use it with 'with'"]
    else:
        assert texts == []


# --- while it is opened --------------------------------------------------------------------------------

# Only threads: a task that lends at once has no moment in which another could come.


@pytest.fixture
def crew() -> Crew:
    return Crew(BLOCKING)


async def _began(crew: Crew, maker: Maker) -> None:
    await crew.until(lambda: maker.creating == 1)


def run(scenario: Callable[[], Any]) -> None:
    drive(scenario())


def test_another_name_is_not_delayed_and_the_first_arrives_in_the_scope(
    manager: ResourceManager, maker: Maker, crew: Crew
) -> None:
    other = ThreadMaker()
    manager.register_provider("other", other)

    async def scenario() -> None:
        slow = slow_acquire(manager, maker, crew)
        await _began(crew, maker)
        manager.acquire("other", "a")
        assert not slow.done
        maker.open.set()
        resource = await slow.result()
        assert manager.get_resource("db", "a") is resource
        assert len(manager.holders()) == 2
        manager.release("other", "a")
        assert maker.live == {resource}
        manager.release("db", "a")
        assert not maker.live
        assert not other.live

    run(scenario)


@pytest.mark.parametrize("ending", ["release_all", "release", "scope", "close", "unregister"])
def test_what_arrives_after_its_owner_was_ended_is_released_at_once(
    manager: ResourceManager, maker: Maker, crew: Crew, ending: str
) -> None:
    async def scenario() -> None:
        slow = slow_acquire(manager, maker, crew)
        await _began(crew, maker)
        if ending == "scope":
            with manager.scope("a"):
                pass
        elif ending in ("close", "unregister"):
            manager.close() if ending == "close" else manager.unregister_provider("db")
        else:
            getattr(manager, ending)(*(("db", "a") if ending == "release" else ("a",)))
        maker.open.set()
        assert isinstance(await slow.error(), ScopeClosedError)
        assert not maker.live
        assert manager.owners == {}
        assert manager.holders() == []

    run(scenario)


def test_when_it_fails_those_who_waited_for_it_try_themselves(
    manager: ResourceManager, maker: Maker, crew: Crew
) -> None:
    async def scenario() -> None:
        maker.failing = OSError("first")
        first = slow_acquire(manager, maker, crew)
        await _began(crew, maker)
        second = slow_acquire(manager, maker, crew)
        await crew.until(lambda: "a" in manager.owners)
        maker.open.set()
        errors = [await first.error(), await second.error()]
        assert [type(error) for error in errors] == [ResourceUnavailableError] * 2
        assert maker.tried == 2
        assert manager.owners == {}

    run(scenario)


def test_a_provider_that_acquires_itself_for_the_same_owner_is_refused(invariant: Invariant) -> None:
    manager = invariant.watch(ResourceManager())

    class Again(BaseResourceProvider):
        def acquire(self, **options: Any) -> Any:
            return manager.acquire("again", "a")

    manager.register_provider("again", Again("again"))
    with pytest.raises(ResourceError, match="'again' asks for itself"):
        manager.acquire("again", "a")
    assert manager.owners == {}
    assert manager.holders() == []


# --- races ---------------------------------------------------------------------------------------------


@pytest.fixture
def restless() -> Iterator[None]:
    """Switch threads as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*acts: Callable[[], object]) -> None:
    """Start *acts* in threads, together; what one raises fails here."""
    barrier = threading.Barrier(len(acts))
    errors: list[BaseException] = []

    def run_one(act: Callable[[], object]) -> None:
        barrier.wait(20)
        try:
            act()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run_one, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []


@pytest.mark.usefixtures("restless")
def test_threads_of_one_owner_share_one_resource_however_they_meet(manager: ResourceManager, maker: Maker) -> None:
    def use() -> None:
        for number in range(150):
            with manager.resource_context("db", "a") as first, manager.resource_context("db", "a") as second:
                assert first is second
                assert first in maker.live
            if number % 3 == 0:
                with manager.resource_context("cache", "a"):
                    pass

    for _ in range(4):
        at_once(use, use, use, use)
        assert manager.owners == {}
        assert manager.holders() == []
        assert not maker.live


@pytest.mark.usefixtures("restless")
def test_an_owner_that_gets_a_scope_while_it_acquires_has_one_resource(manager: ResourceManager, maker: Maker) -> None:
    for number in range(200):
        owner, had = f"owner {number}", []

        def acquire(owner: str = owner, had: list[Any] = had) -> None:
            had.append(manager.acquire("db", owner))

        def scope(owner: str = owner) -> None:
            manager.scope(owner)

        at_once(acquire, acquire, scope)
        assert len(set(had)) == 1
        assert len(maker.live) == 1
        with manager.owners[owner]:
            pass
        assert not maker.live


@pytest.mark.usefixtures("restless")
def test_of_two_threads_that_release_at_once_one_is_refused(manager: ResourceManager, maker: Maker) -> None:
    refused: list[BaseException] = []

    def release() -> None:
        try:
            manager.release("db", "a")
        except NotHeldError as error:
            refused.append(error)

    def again() -> None:
        with suppress(NotHeldError):
            manager.release("db", "a")
        with suppress(ScopeClosedError):  # another has released it before it was there
            manager.acquire("db", "a")

    for number in range(1, 200):
        manager.acquire("db", "a")
        at_once(release, release)
        assert len(refused) == number
    for _ in range(200):  # and a third has begun anew: what is held at the end is what is live
        at_once(release, again, again)
        manager.release_all("a")
        assert not maker.live
        assert manager.owners == {}


def test_what_is_given_back_is_not_lent_to_who_comes_before_it_has_ended(
    manager: ResourceManager, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.acquire("cache", "a")
    first, had = manager.acquire("db", "a"), []
    end = Ending.end_lease

    async def after_another_came(scope: Ending, *lease: Any) -> None:
        had.append(manager.acquire("db", "a"))
        await end(scope, *lease)

    monkeypatch.setattr(Ending, "end_lease", after_another_came)
    manager.release("db", "a")
    assert had[0] is not first
    assert had[0] in maker.live
    monkeypatch.undo()
    manager.release_all("a")


def test_who_releases_while_the_loan_moves_into_a_scope_waits_for_that(
    manager: ResourceManager, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[BaseException] = []

    def release() -> None:
        try:
            manager.release("db", "a")
        except BaseException as error:
            errors.append(error)

    releasing, move = threading.Thread(target=release), Loan.move

    def slowly(loan: Loan, owner: OwnerScope) -> None:
        releasing.start()
        releasing.join(0.2)
        move(loan, owner)

    monkeypatch.setattr(Loan, "move", slowly)
    manager.acquire("db", "a")
    manager.acquire("cache", "a")
    releasing.join(20)
    assert errors == []
    assert not any(held for held in manager.holders() if held.resource == "db")
    manager.release("cache", "a")
    assert not maker.live


# --- those who listen ----------------------------------------------------------------------------------


class Heard(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_open(self, resource: str, owner_id: str, seconds: float) -> None:
        self.lines.append(f"{owner_id} has {resource}")

    def on_close(self, resource: str, owner_id: str, seconds: float, error: BaseException | None) -> None:
        self.lines.append(f"{owner_id} had {resource}")


@pytest.mark.parametrize("ending", ["release", "release_all", "close"])
def test_a_listener_hears_of_owners_of_one_thing_and_of_the_end_of_those_before_it(
    side: Side, manager: ResourceManager, ending: str
) -> None:
    heard = Heard()

    async def scenario() -> None:
        await side.call(manager, "acquire", "db", "before")
        manager.listener = heard
        await side.call(manager, "acquire", "db", "after")
        for owner in ("after", "before"):
            if ending != "close":
                await side.call(manager, ending, *(("db", owner) if ending == "release" else (owner,)))
        if ending == "close":
            await side.call(manager, "close")
        assert heard.lines == ["after has db", "after had db", "before had db"]

    side.run(scenario())


def test_a_pooled_resource_that_is_reset_is_lent_again_to_owners_of_one_thing(invariant: Invariant) -> None:
    class Washed(ThreadMaker):
        washed = 0

        def reset(self, resource: object) -> None:
            self.washed += 1

    maker = invariant.watch(Washed())
    manager = invariant.watch(ResourceManager())
    manager.register_provider("db", maker, PoolConfig(max_size=2))
    for number in range(5):
        manager.acquire("db", f"owner-{number}")
        manager.release("db", f"owner-{number}")
    assert (maker.made, maker.washed) == (1, 5)
