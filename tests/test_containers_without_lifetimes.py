"""Machines over containers that hold no lifetime of ours, or none that the container itself declares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, inject

from tests.conftest import Side
from wirestate import SimpleFSM, lifetimes
from wirestate.errors import BuildError

TRANSFORM: dict[str, Any] = {"states": {"s": {"transform": "work"}}}
ROLES: dict[str, dict[str, Any]] = {
    "transform": TRANSFORM,
    "two transforms": {"states": {"s": {"transform": ["work", "work"]}}},
    "pre validator": {"states": {"s": {"pre_validators": "work"}}},
    "validator": {"states": {"s": {"validators": "work"}}},
    "condition": {"states": {"s": {}, "t": {}}, "arcs": [{"from": "s", "to": "t", "condition": "work"}]},
    "arc transform": {"states": {"s": {}, "t": {}}, "arcs": [{"from": "s", "to": "t", "transform": "work"}]},
    "retry": {"states": {"s": {"transform": "work", "retry": 2}}},
}
seen: list[Any] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    seen.clear()


def run(side: Side, fsm: SimpleFSM, record: Any = None) -> Any:
    record = {} if record is None else record
    return side.run(fsm.aprocess(record)) if side.is_async else fsm.process(record)


def work(record: Any, service: Any = Provide["service"]) -> Any:
    seen.append(service)
    return True if record.get("decides") else None


def opened(name: str) -> Iterator[str]:
    seen.append(f"+{name}")
    yield name
    seen.append(f"-{name}")


class Plain(containers.DeclarativeContainer):
    factory = providers.Factory(list)
    service = providers.Factory(dict, parts=factory)


@pytest.mark.parametrize("role", ROLES)
def test_functions_of_every_role_get_plain_providers(side: Side, role: str) -> None:
    decides = role in ("pre validator", "validator", "condition")
    result = run(side, SimpleFSM(ROLES[role], container=Plain(), functions={"work": work}), {"decides": decides})
    assert result.success, result.error
    assert seen[0] == {"parts": []}


@pytest.mark.parametrize(
    "service",
    [
        providers.Singleton(dict),
        providers.Callable(dict),
        providers.Object({}),
        providers.List(),
        providers.Dict(),
        providers.Configuration(),
        providers.Resource(opened, "theirs"),
        providers.ThreadLocalSingleton(dict),
        providers.ContextLocalSingleton(dict),
        providers.Dependency(default=providers.Object({})),
        providers.Selector(providers.Object("a"), a=providers.Object({})),
    ],
    ids=lambda provider: type(provider).__name__,
)
def test_one_plain_provider_of_any_kind_is_enough(side: Side, service: Any) -> None:
    container = containers.DynamicContainer()
    container.service = service
    assert run(side, SimpleFSM(TRANSFORM, container=container, functions={"work": work})).success
    container.shutdown_resources()


@pytest.mark.parametrize("fault", [ValueError, AssertionError, TypeError])
@pytest.mark.parametrize("role", ["pre validator", "validator"])
def test_what_a_provider_raises_is_no_refusal_of_the_validator(side: Side, role: str, fault: type[Exception]) -> None:
    def broken() -> None:
        raise fault("no connection")

    class C(containers.DeclarativeContainer):
        service = providers.Factory(broken)

    result = run(side, SimpleFSM(ROLES[role], container=C(), functions={"work": work}))
    assert isinstance(result.error, fault)
    assert result.outcome == "failed"


def test_a_validator_that_asserts_refuses_still(side: Side) -> None:
    def check(record: Any, service: Any = Provide["service"]) -> None:
        assert service is record, "not mine"

    fsm = SimpleFSM({"states": {"s": {"validators": "check"}}}, container=Plain(), functions={"check": check})
    result = run(side, fsm)
    assert result.outcome == "rejected"
    assert "not mine" in str(result.error)


class Gateways(containers.DeclarativeContainer):
    database = lifetimes.PerState(opened, "database")


class App(containers.DeclarativeContainer):
    gateways = providers.DependenciesContainer()
    service = providers.Factory(str, gateways.database)


@pytest.mark.parametrize("way", ["name", "dotted name", "provider", "provider of the dependencies"])
def test_a_lifetime_behind_a_dependencies_container(side: Side, way: str) -> None:
    marked = {
        "name": Provide["service"],
        "dotted name": Provide["gateways.database"],
        "provider": Provide[App.service],
        "provider of the dependencies": Provide[App.gateways.database],
    }[way]

    @inject
    def use(record: Any, it: Any = marked) -> dict[str, Any]:
        seen.append(it)
        return {"it": it}

    container = App(gateways=Gateways())
    fsm = SimpleFSM(TRANSFORM, container=container, functions={"work": use})
    assert run(side, fsm).data == {"it": "database"}
    assert seen == ["+database", "database", "-database"]
    container.shutdown_resources()


def test_a_function_that_calls_a_container_by_itself_has_a_scope(side: Side) -> None:
    container = App(gateways=Gateways())

    def use(record: Any) -> dict[str, Any]:
        return {"it": container.service()}

    assert run(side, SimpleFSM(TRANSFORM, container=container, functions={"work": use})).data == {"it": "database"}
    assert seen == ["+database", "-database"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("lifetime", [lifetimes.PerState, lifetimes.PerOwner, lifetimes.Singleton])
def test_a_lifetime_that_comes_by_override_only(side: Side, before: bool, lifetime: Any) -> None:
    container = Plain()
    if before:
        with container.factory.override(lifetime(opened, "fake")):
            fsm = SimpleFSM(TRANSFORM, container=container, functions={"work": work})
            assert run(side, fsm).success
    else:
        fsm = SimpleFSM(TRANSFORM, container=container, functions={"work": work})
        with container.factory.override(lifetime(opened, "fake")):
            assert run(side, fsm).success
    assert seen[:2] == ["+fake", {"parts": "fake"}]
    seen.clear()
    assert run(side, fsm).success
    assert seen == [{"parts": []}]
    container.shutdown_resources()


def test_the_container_itself_is_injected_where_it_holds_nothing(side: Side) -> None:
    def use(record: Any, container: Any = Provide["<container>"]) -> dict[str, Any]:
        return {"names": sorted(container.providers)}

    empty = containers.DynamicContainer()
    for container in (empty, None):
        fsm = SimpleFSM(TRANSFORM, container=container, functions={"work": use})
        assert run(side, fsm).success


def test_closing_a_resource_of_the_library_beside_plain_providers(side: Side) -> None:
    class C(containers.DeclarativeContainer):
        theirs = providers.Resource(opened, "theirs")
        service = providers.Factory(dict, theirs=theirs)

    def use(record: Any, service: Any = Closing[Provide["service"]]) -> None:
        seen.append(service)

    container = C()
    assert run(side, SimpleFSM(TRANSFORM, container=container, functions={"work": use})).success
    assert seen[:2] == ["+theirs", {"theirs": "theirs"}]
    container.shutdown_resources()


@pytest.mark.parametrize("given", ["container", "resources"])
@pytest.mark.parametrize("name", ["service", "factory", "settings.limit"])
def test_a_configuration_may_name_what_has_no_lifetime(side: Side, name: str, given: str) -> None:
    class C(Plain):
        settings = providers.Configuration()

    container: Any = C()
    container.settings.from_dict({"limit": 3})
    expected: Any = {"service": {"parts": []}, "factory": [], "settings.limit": 3}[name]
    more: dict[str, Any] = {"container": container}
    if given == "resources":
        name, expected, more = "mine", 5, {"resources": {"mine": 5}}

    def use(record: Any, context: Any) -> dict[str, Any]:
        seen.append(context.resources[name])
        return {"asked": context.require_resource(name)}

    machine = {"states": {"s": {"transform": "work", "resources": [name]}}}
    with SimpleFSM(machine, **more, functions={"work": use}) as fsm:
        assert run(side, fsm).data == {"asked": expected}
        assert seen == [expected]


def test_a_name_that_a_configuration_asks_for_and_nobody_has_is_a_fault_still() -> None:
    machine = {"states": {"s": {"transform": "work", "resources": ["servce"]}}}
    with pytest.raises(BuildError, match="needs resource 'servce', which is not declared") as caught:
        SimpleFSM(machine, container=Plain(), functions={"work": work})
    assert "Did you mean 'service'?" in str(caught.value)
