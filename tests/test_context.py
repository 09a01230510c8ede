"""What a function may ask about its visit, and that it may not ask after it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.stores import Diary, Store, insert, process, work_machine
from wirestate import FunctionContext, SimpleFSM, lifetimes
from wirestate.errors import NoActiveScopeError, ResourceError, ScopeClosedError, UnknownResourceError


def test_a_context_tells_where_its_function_is(side: Side) -> None:
    seen: dict[str, Any] = {}

    def asks(record: Any, context: FunctionContext) -> None:
        names = (
            "state", "state_name", "network", "network_name", "function_name", "run_id", "owner_id", "visit",
            "attempt", "path", "position", "line", "metadata", "error", "arc", "deadline",
        )  # fmt: skip
        seen.update({name: getattr(context, name) for name in names})
        seen["by key"] = {name: context[name] for name in names}
        seen["default"] = context.get("nothing", 7), context.get("state")

    machine = work_machine({"transform": "asks", "metadata": {"team": "blue"}})
    with SimpleFSM(machine, functions={"asks": asks}) as fsm:
        result = process(side, fsm, {}, owner_id="job")
    assert seen.pop("by key") == {name: value for name, value in seen.items() if name != "default"}
    assert seen.pop("function_name").endswith("asks")
    assert seen == {
        "state": "w", "state_name": "w", "network": "main", "network_name": "main", "run_id": result.run_id,
        "owner_id": "job/w#1", "visit": 1, "attempt": 1, "path": ["s", "w"], "position": None, "line": None,
        "metadata": {"team": "blue"}, "error": None, "arc": None, "deadline": None, "default": (7, "w"),
    }  # fmt: skip


@pytest.mark.parametrize("with_resources", [False, True])
def test_owners_of_visits_are_named_by_run_state_and_number(side: Side, with_resources: bool) -> None:
    owners: list[str] = []
    machine = work_machine(
        {
            "transform": "asks",
            "arcs": [{"target": "w", "condition": "visit < 3", "transform": "asks"}, "e"],
        }
    )
    functions = {"asks": lambda record, context: owners.append(context.owner_id)}
    resources = Diary().per_state("r") if with_resources else {}
    with SimpleFSM(machine, functions=functions, resources=resources) as fsm:
        result = process(side, fsm, {})
    run = result.run_id
    assert owners == [f"{run}/w#1", f"{run}/w#1", f"{run}/w#2", f"{run}/w#2", f"{run}/w#3"]
    assert result.owner_id == run


def test_the_owner_of_a_visit_holds_its_resources_by_name(side: Side, tmp_path: Path) -> None:
    store = Store(tmp_path)

    @inject
    def asks(record: Any, context: Any, db: Any = Provide["db"]) -> None:
        manager = store.container.manager
        assert manager.acquire("db", context.owner_id) is db
        assert manager.get_resource("db", context.owner_id) is db
        assert manager.has_resource("db", context.owner_id)
        assert manager.get_resource_owners("db") == [context.owner_id]
        manager.release("db", context.owner_id)
        insert(db, 1)

    with SimpleFSM(work_machine({"transform": "asks"}), container=store.container, functions={"asks": asks}) as fsm:
        assert process(side, fsm, {}).error is None
    assert store.items() == [1]


def test_arcs_and_positions_are_told(side: Side) -> None:
    seen: list[Any] = []

    def asks(record: Any, context: Any) -> bool:
        seen.append((context.arc, context.position, context.line))
        return True

    arcs = [{"target": "e", "condition": "asks", "transform": "tells", "name": "onward"}]
    functions = {"asks": asks, "tells": lambda record, context: seen.append(context.arc)}
    with SimpleFSM(work_machine({"arcs": arcs}), functions=functions) as fsm:
        side.run(side.call(fsm, "process_batch", [{}, {}]))
    assert seen == [("onward", 0, None), "onward", ("onward", 1, None), "onward"]


def test_the_time_that_is_left_is_told(side: Side) -> None:
    seen: list[Any] = []

    def asks(record: Any, context: Any) -> None:
        seen.append((context.deadline, context.remaining()))

    with SimpleFSM(work_machine({"transform": "asks"}), functions={"asks": asks}) as fsm:
        process(side, fsm, {})
        process(side, fsm, {}, timeout=50)
    assert seen[0] == (None, None)
    deadline, remaining = seen[1]
    assert deadline == pytest.approx(time.monotonic() + 50, abs=5)
    assert 45 < remaining <= 50


def test_variables_are_shared_by_one_run_and_by_no_other(side: Side) -> None:
    def counts(record: Any, context: Any) -> dict[str, Any]:
        context.variables["n"] = context.variables.get("n", 0) + 1
        return {"n": context.variables["n"]}

    arcs = [{"target": "e", "when": "variables['n'] == 2"}]
    machine = work_machine({"transforms": ["counts", "counts"], "arcs": arcs})
    with SimpleFSM(machine, functions={"counts": counts}) as fsm:
        assert [process(side, fsm, {}).data for _ in range(2)] == [{"n": 2}] * 2


# --- resources ---------------------------------------------------------------------------------------------


def test_declared_resources_are_there_by_name_and_by_role_and_injected_ones_are_not(side: Side) -> None:
    diary = Diary()
    seen: dict[str, Any] = {}

    @inject
    def asks(record: Any, context: Any, other: str = Provide["injected"]) -> None:
        found = context.resources
        seen.update(found)
        assert (found["a"], found["store"], found["b"], other) == ("a", "b", "b", "injected")
        assert context["resources"]["a"] == "a"
        assert context.resource_for_role("store") == "b"
        assert "store" in found
        assert "injected" not in found
        assert found.get("gone") is None
        with pytest.raises(TypeError):
            found["x"] = 1
        with pytest.raises(ResourceError, match="not declared"):
            found["injected"]
        with pytest.raises(UnknownResourceError):
            context.resource_for_role("stor")

    resources = diary.per_state("a", "b", "injected")
    resources["gone"] = lifetimes.PerState(diary.resource("gone", fails=OSError("x")))
    uses = ["a", {"name": "b", "role": "store"}, {"name": "gone", "required": False}]
    with SimpleFSM(
        work_machine({"transform": "asks", "resources": uses}), functions={"asks": asks}, resources=resources
    ) as fsm:
        assert process(side, fsm, {}).error is None
    assert seen == {"a": "a", "b": "b", "gone": None}


def test_resources_may_be_written_as_a_mapping_of_roles(side: Side) -> None:
    machine = work_machine({"transform": "asks", "resources": {"store": "a"}})
    functions = {"asks": lambda record, context: {"got": context.resource_for_role("store")}}
    with SimpleFSM(machine, functions=functions, resources=Diary().per_state("a")) as fsm:
        assert process(side, fsm, {}).data == {"got": "a"}


def test_an_arcs_own_resources_are_beside_those_of_the_state(side: Side) -> None:
    diary = Diary()
    seen: list[Any] = []

    def asks(record: Any, context: Any) -> bool:
        seen.append((dict(context.resources), context.resource_for_role("tool")))
        return True

    arc = {"target": "e", "condition": "asks", "transform": "asked", "resources": [{"name": "b", "role": "tool"}]}
    functions = {"asks": asks, "asked": lambda record, context: seen.append(dict(context.resources))}
    for work in ({"resources": ["a"], "arcs": [arc]}, {"resources": ["a"], "transform": "asked", "arcs": [arc]}):
        diary.lines.clear()
        with SimpleFSM(work_machine(work), functions=functions, resources=diary.per_state("a", "b")) as fsm:
            assert process(side, fsm, {}).error is None
        assert sorted(diary.lines[:2]) == ["open a", "open b"]
    assert seen[:2] == [({"a": "a", "b": "b"}, "b"), {"a": "a", "b": "b"}]


def test_a_resource_may_be_asked_for_by_name_and_lasts_for_the_visit(side: Side) -> None:
    diary = Diary()

    def asks(record: Any, context: Any) -> dict[str, Any]:
        assert context.require_resource("r") is context.require_resource("r")
        with pytest.raises(UnknownResourceError, match="did you mean 'r2'"):
            context.require_resource("r22")
        return {"got": context.require_resource("r")}

    with SimpleFSM(
        work_machine({"transform": "asks"}), functions={"asks": asks}, resources=diary.per_state("r", "r2")
    ) as fsm:
        assert process(side, fsm, {}).data == {"got": "r"}
    assert diary.lines == ["open r", "close r"]


def test_without_any_resource_asking_for_one_says_so(side: Side) -> None:
    def asks(record: Any, context: Any) -> None:
        assert dict(context.resources) == {}
        context.require_resource("db")

    with SimpleFSM(work_machine({"transform": "asks"}), functions={"asks": asks}) as fsm:
        assert isinstance(process(side, fsm, {}).error, UnknownResourceError)


def test_a_name_registered_after_the_build_has_no_scope_in_a_machine_without_resources(side: Side) -> None:
    def asks(record: Any, context: Any) -> None:
        context.require_resource("late")

    with SimpleFSM(work_machine({"transform": "asks"}), functions={"asks": asks}) as fsm:
        fsm.manager.register_from_dict("late", {"a": 1})
        assert isinstance(process(side, fsm, {}).error, NoActiveScopeError)


# --- the end ---------------------------------------------------------------------------------------------------


def test_a_context_is_dead_after_its_visit(side: Side) -> None:
    kept: list[Any] = []
    with SimpleFSM(
        work_machine({"transform": "keeps", "resources": ["r"]}),
        functions={"keeps": lambda record, context: kept.append(context)}, resources=Diary().per_state("r"),
    ) as fsm:  # fmt: skip
        assert process(side, fsm, {}).success
    (context,) = kept
    for name in (
        "state", "network", "function_name", "run_id", "owner_id", "visit", "attempt", "path", "position", "line",
        "resources", "variables", "metadata", "error", "arc", "idempotency_key", "deadline", "log",
    ):  # fmt: skip
        with pytest.raises(ScopeClosedError):
            getattr(context, name)
    for ask in (
        context.remaining, lambda: context.require_resource("r"), lambda: context.resource_for_role("x"),
        lambda: context["state"], lambda: context.get("state"),
    ):  # fmt: skip
        with pytest.raises(ScopeClosedError):
            ask()


def test_the_idempotency_key_is_equal_over_attempts_and_differs_between_visits(side: Side) -> None:
    keys: list[str] = []

    def keeps(record: Any, context: Any) -> None:
        keys.append(context.idempotency_key)
        if len(keys) == 1:
            raise OSError("once more")

    retry = {"attempts": 2, "wait_initial": 0, "wait_jitter": 0}
    machine = work_machine({"transform": "keeps", "retry": retry, "arcs": [{"target": "w", "when": "visit < 2"}, "e"]})
    with SimpleFSM(machine, functions={"keeps": keeps}) as fsm:
        process(side, fsm, {})
        process(side, fsm, {})
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_the_log_knows_the_owner(side: Side, caplog: pytest.LogCaptureFixture) -> None:
    with (
        SimpleFSM(
            work_machine({"transform": "logs"}), functions={"logs": lambda record, context: context.log.warning("look")}
        ) as fsm,
        caplog.at_level(logging.WARNING, "wirestate.machine"),
    ):
        process(side, fsm, {}, owner_id="job")
    assert [(record.getMessage(), record.owner_id) for record in caplog.records] == [("look", "job/w#1")]
