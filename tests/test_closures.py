"""What a call needs, found at build: each provider is looked at once, however many ways lead to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide

from tests.conftest import Side
from wirestate import SimpleFSM, lifetimes, manager_of
from wirestate.errors import BuildError, LifetimeMismatchError, ResourceError

MACHINE = {"states": {"s": {"transform": "work"}}}
looked_at: list[str] = []


class Counting(providers.Factory):  # type: ignore[type-arg]
    """A factory that counts how often it is asked for what it needs."""

    @property
    def related(self) -> Any:
        looked_at.append("once")
        return super().related


def thing(*needs: Any) -> int:
    return 1 + max(needs, default=0)


def work(record: Any, last: Any = Provide["last"]) -> dict[str, Any]:
    return {"last": last}


def resources(count: int, needs: Callable[[int], Iterable[int]], lifetime: Any, between: Any) -> Any:
    """Make a container of *count* lifetimes, each of which needs some made before it, through another provider."""
    made: list[Any] = []
    members: dict[str, Any] = {}
    for number in range(count):
        below = [between(lambda value: value, made[other]) if between else made[other] for other in needs(number)]
        members |= {f"between_{number}_{place}": one for place, one in enumerate(below)} if between else {}
        made.append(lifetime(thing, *below))
    members |= {f"r{number}": provider for number, provider in enumerate(made)}
    return type("C", (containers.DeclarativeContainer,), {**members, "last": made[-1]})()


def the_two_before(number: int) -> Iterable[int]:
    return range(max(0, number - 2), number)


def the_layer_before(number: int) -> Iterable[int]:
    layer = number // 4
    return range((layer - 1) * 4, layer * 4) if layer else ()


def the_one_before(number: int) -> Iterable[int]:
    return range(max(0, number - 1), number)


@pytest.mark.parametrize("lifetime", [lifetimes.PerState, lifetimes.Singleton, providers.Singleton])
@pytest.mark.parametrize(
    ("count", "needs", "depth"),
    [(24, the_two_before, 24), (40, the_layer_before, 10), (200, the_one_before, 200)],
    ids=["two before", "layers of four", "chain"],
)
def test_a_build_looks_at_a_shared_dependency_a_few_times(
    side: Side, lifetime: Any, count: int, needs: Callable[[int], Iterable[int]], depth: int
) -> None:
    container = resources(count, needs, lifetime, Counting)
    edges = sum(len(list(needs(number))) for number in range(count))
    looked_at.clear()
    fsm = SimpleFSM(MACHINE, container=container, functions={"work": work})
    assert len(looked_at) <= 20 * edges  # by ways instead of providers: 75,024 for the two before, 4 ** 10 for layers
    result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
    assert result.data == {"last": depth}
    container.shutdown_resources()


def deepest(needs: dict[str, list[int]]) -> int:
    return thing(*needs["a"])


def mixed(count: int, lifetime: Any) -> Any:
    """Make a container of factories, each third a *lifetime* instead, that need the three before in a collection."""
    made: list[Any] = []
    for number in range(count):
        made.append((Counting if number % 3 else lifetime)(deepest, providers.Dict(a=providers.List(*made[-3:]))))
    members = {f"r{number}": provider for number, provider in enumerate(made)}
    return type("C", (containers.DeclarativeContainer,), {**members, "last": made[-1]})()


@pytest.mark.parametrize("count", [31, 121])
@pytest.mark.parametrize("lifetime", [lifetimes.PerState, lifetimes.PerOwner, lifetimes.Singleton])
def test_a_build_looks_at_a_factory_between_lifetimes_a_few_times_however_many_lie_above_it(
    lifetime: Any, count: int
) -> None:
    container = mixed(count, lifetime)
    looked_at.clear()
    SimpleFSM(MACHINE, container=container, functions={"work": work})
    assert len(looked_at) <= 4 * count  # by lifetimes: each of them looked again at all factories below it


def test_an_override_after_the_build_is_seen_behind_many_factories_and_lifetimes(side: Side) -> None:
    container = mixed(31, lifetimes.PerState)
    fsm = SimpleFSM(MACHINE, container=container, functions={"work": work})

    def done() -> Any:
        return (side.run(fsm.aprocess({})) if side.is_async else fsm.process({})).data["last"]

    assert done() == 31
    for number, high in ((0, 100), (1, 200)):  # a lifetime, a factory
        with getattr(container, f"r{number}").override(lifetimes.PerState(lambda high=high: high)):
            assert done() == high + 30 - number
    assert done() == 31


def test_an_override_that_is_made_while_the_machine_is_built_is_seen_by_what_is_compiled_after_it() -> None:
    class Provider:
        def __init__(self, found: Any) -> None:
            container.base.override(lifetimes.Singleton(lambda: 100))

        def acquire(self) -> int:
            return 0

        def release(self, resource: int) -> None:
            pass

    container = containers.DynamicContainer()
    container.base = providers.Factory(thing)
    container.first = lifetimes.PerState(thing, container.base)
    container.overriding = lifetimes.PerState(Provider, providers.Object(0))
    container.last = lifetimes.PerState(thing, container.first, container.base)
    assert list(manager_of(container).entries) == ["first", "overriding", "last"]
    fsm = SimpleFSM(MACHINE, container=container, functions={"work": work})
    assert fsm.process({}).data == {"last": 102}
    container.shutdown_resources()


@pytest.mark.parametrize("lifetime", [lifetimes.PerState, lifetimes.PerOwner, lifetimes.Singleton])
def test_a_chain_of_a_thousand_resources_needs_no_deep_recursion(lifetime: Any) -> None:
    container = resources(1000, the_one_before, lifetime, None)
    fsm = SimpleFSM(MACHINE, container=container, functions={"work": work})
    assert fsm.process({}).data == {"last": 1000}
    container.shutdown_resources()


def test_the_end_of_a_long_chain_that_is_called_by_hand_needs_no_deep_recursion() -> None:
    container = resources(1000, the_one_before, lifetimes.Singleton, None)
    assert container.last() == 1000
    container.shutdown_resources()


def test_a_shared_dependency_is_opened_once_and_before_all_that_need_it() -> None:
    lines: list[str] = []

    def noted(name: str, *needs: Any) -> str:
        lines.append(name)
        return name

    class C(containers.DeclarativeContainer):
        a = lifetimes.PerState(noted, "a")
        b = lifetimes.PerState(noted, "b", a)
        c = lifetimes.PerState(noted, "c", a, b)
        last = lifetimes.PerState(noted, "last", providers.List(c, b), a)

    fsm = SimpleFSM(MACHINE, container=C(), functions={"work": work})
    assert fsm.process({}).data == {"last": "last"}
    assert lines == ["a", "b", "c", "last"]


@pytest.mark.parametrize("long", [lifetimes.Singleton, providers.Singleton, providers.ThreadSafeSingleton])
def test_a_shorter_life_behind_shared_dependencies_is_told_by_one_way(long: Any) -> None:
    class C(containers.DeclarativeContainer):
        database = lifetimes.PerState(thing)
        one = providers.Factory(thing, database)
        other = providers.Factory(thing, database, one)
        dao = providers.Factory(thing, other, one)
        last = long(thing, dao, other)

    with pytest.raises(BuildError) as caught:
        SimpleFSM(MACHINE, container=C(), functions={"work": work})
    assert [fault.code for fault in caught.value.faults] == ["R004"]
    assert "singleton 'last' depends on per state 'database':  last ─> dao ─> other ─> database." in str(caught.value)


def test_a_librarys_singleton_that_gets_a_shorter_life_by_an_override_is_refused_at_the_next_opening(
    side: Side,
) -> None:
    class C(containers.DeclarativeContainer):
        database = providers.Factory(thing)
        last = providers.Singleton(thing, database)

    container = C()
    fsm = SimpleFSM(MACHINE, container=container, functions={"work": work})
    short, refused = lifetimes.PerState(thing), pytest.raises(LifetimeMismatchError, match="singleton 'last' depends")
    with container.database.override(short), refused:
        side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
    result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
    assert result.data == {"last": 2}


def test_a_circle_is_told_by_its_whole_way() -> None:
    container = containers.DynamicContainer()
    container.a = lifetimes.PerState(thing)
    container.b = providers.Factory(thing, container.a)
    container.c = lifetimes.PerState(thing, container.b)
    container.last = lifetimes.PerState(thing, container.c)
    container.a.args = (container.c,)
    with pytest.raises(ResourceError, match=r"in a circle: .*a ─> .*c ─> .*b.* ─> .*a"):
        manager_of(container).entries["a"].steps()
