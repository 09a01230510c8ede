"""One record from its start to an end: states entered, arcs chosen, resources opened when they are needed."""

from __future__ import annotations

import asyncio
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.crews import forbid_threads_made_here
from tests.stores import Diary, Store, count, insert, process, work_machine
from wirestate import DatabaseResourceAdapter, FileSystemResourceAdapter, RunResult, SimpleFSM, lifetimes
from wirestate.errors import (
    DeadEndError,
    MachineClosedError,
    NotAMappingError,
    OwnerInUseError,
    RunTimeoutError,
    StepLimitExceededError,
    UnknownStateError,
)

GUIDE = """
networks:
- name: main
  resources:
  - database
  - filesystem
  states:
  - name: process_data
    resources:
    - database # This state needs database
    functions:
      transform:
        type: custom
        name: process_with_db
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


class CountingDatabase(DatabaseResourceAdapter):
    acquired = 0

    def acquire(self, **options: Any) -> Any:
        self.acquired += 1
        return super().acquire(**options)


class CountingFiles(FileSystemResourceAdapter):
    acquired = 0

    def acquire(self, **options: Any) -> Any:
        self.acquired += 1
        return super().acquire(**options)


def test_the_guides_machine_opens_its_database_once_and_what_it_does_not_use_never(
    side: Side, tmp_path: Path
) -> None:  # case 1
    path = tmp_path / "guide.yaml"
    path.write_text(GUIDE)
    database = CountingDatabase("database", url=f"sqlite:///{tmp_path}/guide.db")
    files = CountingFiles("filesystem", base_path=str(tmp_path))

    def process_with_db(data: dict[str, Any], context: Any) -> dict[str, Any]:
        rows = context.resources["database"].query("SELECT 1 + :n AS answer", n=data["n"])
        return {**data, **rows[0]}

    with SimpleFSM(
        path, resources={"database": database, "filesystem": files}, functions={"process_with_db": process_with_db}
    ) as fsm:
        result = process(side, fsm, {"n": 41})
    assert (result.success, result.path, result.data) == (True, ["process_data"], {"n": 41, "answer": 42})
    assert (database.acquired, files.acquired) == (1, 0)


def test_a_cycle_without_flags_starts_at_the_first_state_and_ends_by_its_end_test(side: Side) -> None:  # case 6
    machine = {
        "states": {
            "red": {"arcs": ["green"]},
            "green": {"arcs": ["red"], "end_test": "enough", "transform": "count"},
        }
    }
    functions = {"enough": lambda record: record["n"] == 3, "count": lambda record: {"n": record["n"] + 1}}
    with SimpleFSM(machine, functions=functions) as fsm:
        result = process(side, fsm, {"n": 0})
    assert (result.success, result.final_state) == (True, "green")
    assert result.path == ["red", "green"] * 3


@pytest.mark.parametrize("with_resource", [False, True])
def test_a_loop_without_exit_fails_at_the_step_limit_and_opens_nothing_more(
    side: Side, with_resource: bool
) -> None:  # case 7
    diary = Diary()
    machine = {
        "states": {
            "loop": {
                "transform": "work",
                "resources": ["r"] if with_resource else [],
                "arcs": [{"target": "end", "condition": "never"}, {"target": "loop"}],
            },
            "end": None,
        },
        "max_transitions": 3,
    }
    functions = {"work": lambda record: {"n": record.get("n", 0) + 1}, "never": lambda record: False}
    resources = diary.per_state("r") if with_resource else {}
    with SimpleFSM(machine, functions=functions, resources=resources) as fsm:
        result = process(side, fsm, {})
    assert (result.outcome, result.phase, type(result.error)) == ("failed", "limit", StepLimitExceededError)
    assert (result.path, result.data) == (["loop"] * 4, {"n": 4})
    assert diary.lines == ["open r", "close r"] * (4 if with_resource else 0)


def test_a_limit_counts_arcs_of_states_without_functions_too(side: Side) -> None:
    machine = {"states": {"a": {"arcs": ["b"]}, "b": {"arcs": ["c"]}, "c": None}, "max_transitions": 1}
    with SimpleFSM(machine) as fsm:
        result = process(side, fsm, {})
    assert (result.path, type(result.error)) == (["a", "b"], StepLimitExceededError)
    with SimpleFSM({**machine, "max_transitions": 2}) as fsm:
        assert process(side, fsm, {}).path == ["a", "b", "c"]


# --- arcs ------------------------------------------------------------------------------------


def test_the_first_true_arc_wins_and_later_conditions_are_never_called(side: Side) -> None:  # case 13
    called: list[str] = []

    def condition(name: str, answer: bool) -> Any:
        return lambda record: called.append(name) or answer

    arcs = [
        {"target": "b", "condition": "b"},
        {"target": "a", "condition": "a", "priority": 5},
        {"target": "x", "condition": "x", "priority": 9},
    ]
    functions = {"a": condition("a", True), "b": condition("b", True), "x": condition("x", False)}
    with SimpleFSM({"states": {"w": {"arcs": arcs}, "a": None, "b": None, "x": None}}, functions=functions) as fsm:
        assert process(side, fsm, {}).path == ["w", "a"]
    assert called == ["x", "a"]


def test_arcs_of_one_priority_are_tried_in_order_own_list_first(side: Side) -> None:
    machine = {
        "states": {"w": {"arcs": ["own"]}, "own": None, "outer": None},
        "arcs": [{"from": "w", "to": "outer"}],
    }
    with SimpleFSM(machine) as fsm:
        assert process(side, fsm, {}).path == ["w", "own"]


def test_a_dead_end_names_each_condition(side: Side) -> None:
    arcs = [{"target": "e", "condition": "data.n > 3", "name": "big"}, {"target": "e", "condition": "odd"}]
    with SimpleFSM({"states": {"w": {"arcs": arcs}, "e": None}}, functions={"odd": lambda r: r["n"] % 2}) as fsm:
        result = process(side, fsm, {"n": 2})
    assert (result.outcome, result.state, result.phase, type(result.error)) == ("failed", "w", "route", DeadEndError)
    assert "big: 'data.n > 3' was false" in str(result.error)
    assert "<lambda> was false" in str(result.error)
    assert result.error.__notes__ == ["in state 'w', attempt 1, phase route"]


def test_a_condition_sees_what_the_state_did_in_the_same_session(side: Side, store: Store) -> None:  # case 16
    sessions: list[Any] = []

    @inject
    def adds(record: Any, db: Any = Provide["db"]) -> None:
        insert(db, 1)
        sessions.append(db)

    @inject
    def one_is_there(record: Any, db: Any = Provide["db"]) -> bool:
        sessions.append(db)
        return count(db) == 1

    @inject
    def adds_on_the_way(record: Any, db: Any = Provide["db"]) -> None:
        sessions.append(db)
        insert(db, 2)

    arc = {"target": "e", "condition": "one_is_there", "transform": "adds_on_the_way"}
    functions = {"adds": adds, "one_is_there": one_is_there, "adds_on_the_way": adds_on_the_way}
    with SimpleFSM(
        work_machine({"transform": "adds", "arcs": [arc]}), container=store.container, functions=functions
    ) as fsm:
        assert process(side, fsm, {}).path == ["s", "w", "e"]
    assert sessions[0] is sessions[1] is sessions[2]
    assert store.items() == [1, 2]
    assert store.held == []


# --- what opens when ---------------------------------------------------------------------------


def test_each_phase_opens_what_it_needs_just_before_its_first_function(side: Side) -> None:
    diary = Diary()

    def noting(name: str, marker: Any = None) -> Any:
        def function(record: Any, r: Any = marker) -> bool | None:
            diary.lines.append(name)
            return True if name.startswith("is") else None

        return function if marker is None else inject(function)

    functions = {
        "pre": noting("pre"), "is_valid": noting("is valid", Provide["a"]), "first": noting("first"),
        "second": noting("second", Provide["b"]), "post": noting("post", Provide["c"]),
        "is_on": noting("is on", Provide["d"]), "on_arc": noting("on arc", Provide["f"]),
    }  # fmt: skip
    work = {
        "pre_validators": ["pre"], "validators": ["is_valid"], "transforms": ["first", "second"],
        "post_validators": ["post"], "resources": ["declared"],
        "arcs": [{"target": "e", "condition": "is_on", "transform": "on_arc", "resources": ["on_arc"]}],
    }  # fmt: skip
    resources = diary.per_state("declared", "a", "b", "c", "d", "on_arc", "f", "unused")
    with SimpleFSM(work_machine(work), functions=functions, resources=resources) as fsm:
        assert process(side, fsm, {}).success
    opened = [
        "open declared", "pre", "open a", "is valid", "open b", "first", "second", "open c", "post",
        "open on_arc", "open d", "is on", "open f", "on arc",
    ]  # fmt: skip
    closed = [f"close {name}" for name in ("f", "d", "on_arc", "c", "b", "a", "declared")]
    assert diary.lines == opened + closed


def test_a_state_is_left_and_committed_before_the_next_one_is_entered(side: Side) -> None:
    diary = Diary()
    machine = work_machine({"transform": "t", "resources": ["r"]})
    machine["states"]["e"] = {"transform": "t", "resources": ["r"]}
    with SimpleFSM(machine, functions={"t": lambda record: None}, resources=diary.per_state("r")) as fsm:
        assert process(side, fsm, {}).success
    assert diary.lines == ["open r", "close r", "open r", "close r"]


def test_per_owner_resources_last_for_the_run_and_see_how_it_ended(side: Side) -> None:
    diary = Diary()
    resources = {"o": lifetimes.PerOwner(diary.resource("o"))}
    work = {"transform": "t", "resources": ["o"], "on_error": "dead"}
    machine = work_machine(work, dead={"outcome": "failure"})
    machine["states"]["s"] = {"arcs": ["w"], "transform": "look", "resources": ["o"]}

    def t(record: dict[str, Any]) -> None:
        if record.get("fail"):
            raise KeyError("fail")

    functions = {"t": t, "look": lambda record, context: diary.lines.append(context.resources["o"])}
    with SimpleFSM(machine, functions=functions, resources=resources) as fsm:
        assert process(side, fsm, {}).success
        assert diary.lines == ["open o", "o", "close o"]
        diary.lines.clear()
        assert not process(side, fsm, {"fail": True}).success
        assert diary.lines == ["open o", "o", "close o: KeyError"]


# --- beginnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [None, 3, [("a", 1)], "text"])
def test_a_record_that_is_no_mapping_fails_and_opens_nothing(side: Side, record: Any, store: Store) -> None:
    with SimpleFSM(work_machine({}), container=store.container) as fsm:
        result = process(side, fsm, record)
    assert (result.outcome, result.phase, result.state, result.path) == ("failed", "limit", None, [])
    assert isinstance(result.error, NotAMappingError)
    assert result.final_state is None


def test_a_run_may_begin_at_another_state(side: Side) -> None:
    with SimpleFSM(work_machine({})) as fsm:
        assert process(side, fsm, {}, initial_state="w").path == ["w", "e"]
        with pytest.raises(UnknownStateError, match="did you mean 'w'"):
            process(side, fsm, {}, initial_state="ww")


def test_an_owner_id_names_the_run_and_two_runs_never_share_it(side: Side, store: Store) -> None:
    seen: list[Any] = []

    def nested(record: Any, context: Any) -> None:
        seen.append(context.owner_id)
        if record.get("again"):
            with pytest.raises(OwnerInUseError):
                fsm.process({}, owner_id="job-7")

    with SimpleFSM(work_machine({"transform": "t"}), container=store.container, functions={"t": nested}) as fsm:
        result = process(side, fsm, {"again": True}, owner_id="job-7")
        assert (result.success, result.owner_id) == (True, "job-7")
        assert seen == ["job-7/w#1"]
        assert process(side, fsm, {}, owner_id="job-7").success
        assert fsm.manager.owners == {}


def test_a_closed_machine_or_container_runs_nothing(side: Side, store: Store) -> None:
    fsm = SimpleFSM(work_machine({}), container=store.container)
    store.container.shutdown_resources()
    with pytest.raises(MachineClosedError):
        process(side, fsm, {})
    other = SimpleFSM(work_machine({}))
    other.close()
    with pytest.raises(MachineClosedError):
        process(side, other, {})


def test_a_deadline_of_the_run_is_seen_between_steps(side: Side) -> None:
    machine = work_machine({"transform": "slow"}, timeout=0.02)
    with SimpleFSM(machine, functions={"slow": lambda record: time.sleep(0.04)}) as fsm:
        result = process(side, fsm, {})
        assert (result.outcome, result.phase, type(result.error)) == ("failed", "limit", RunTimeoutError)
        assert (result.state, result.path) == ("w", ["s", "w"])
        assert process(side, fsm, {}, timeout=5).success


def test_a_function_may_run_another_record(side: Side) -> None:
    diary = Diary()
    seen: list[Any] = []

    @inject
    def nests(record: dict[str, Any], context: Any, r: Any = Provide["r"]) -> None:
        if record["depth"]:
            assert fsm.process({"depth": record["depth"] - 1}).success
        seen.append(context.owner_id)
        assert context.require_resource("other") == "other"  # in its own visit again

    with SimpleFSM(
        work_machine({"transform": "nests"}), functions={"nests": nests}, resources=diary.per_state("r", "other")
    ) as fsm:
        assert process(side, fsm, {"depth": 2}).success
        assert fsm.manager.owners == {}
    assert len(set(seen)) == 3
    assert diary.lines == ["open r"] * 3 + ["open other", "close other", "close r"] * 3


# --- results ----------------------------------------------------------------------------------------


def test_a_result_tells_everything_and_is_frozen(side: Side) -> None:
    with SimpleFSM(work_machine({"transform": "t"}), functions={"t": lambda record: {"b": 1}}) as fsm:
        result = process(side, fsm, {"a": 1})
    facts = {
        "success": True, "outcome": "done", "final_state": "e", "data": {"b": 1}, "path": ["s", "w", "e"],
        "error": None, "state": None, "phase": None, "reasons": (), "caught": (), "position": None, "line": None,
    }  # fmt: skip
    for name, value in facts.items():
        assert getattr(result, name) == result[name] == value
    assert result.to_dict() == {name: result[name] for name in result} | {"caught": []}
    assert result.duration > 0
    assert result.run_id == result.owner_id
    assert result.run_id.startswith("run-")
    with pytest.raises(AttributeError):
        result.data = {}  # type: ignore[misc]
    with pytest.raises(KeyError):
        result["nothing"]
    copied = pickle.loads(pickle.dumps(result))
    assert (copied.run_id, copied.path, copied.data) == (result.run_id, result.path, result.data)


def test_a_failed_result_names_the_state_and_raises_on_demand(side: Side) -> None:
    def fails(record: Any) -> None:
        raise KeyError("gone")

    with SimpleFSM(work_machine({"transform": "fails"}), functions={"fails": fails}) as fsm:
        result = process(side, fsm, {})
        assert (result.success, result.state, result.final_state, result.phase) == (False, "w", "w", "transform")
        assert result.to_dict()["error"] == "KeyError: 'gone'"
        assert repr(result) == "<RunResult failed: s -> w, KeyError in w (transform)>"
        with pytest.raises(KeyError, match="gone"):
            process(side, fsm, {}, raise_on_error=True)
        with pytest.raises(KeyError, match="gone"):
            result.raise_error()


# --- many at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["batch", "threads", "tasks", "stream", "gather"])
def test_runs_of_different_length_have_owners_and_sessions_of_their_own(store: Store, way: str) -> None:  # case 34
    sessions: dict[int, Any] = {}
    owners: set[str] = set()

    @inject
    def step(record: dict[str, Any], context: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        assert store.container.manager.get_resource("db", context.owner_id) is db
        assert id(db) not in sessions, "a session was lent twice"
        sessions[id(db)] = db
        owners.add(context.run_id)
        assert db.query("SELECT :n AS n", n=record["left"]) == [{"n": record["left"]}]
        return {**record, "left": record["left"] - 1}

    machine = {
        "states": {
            "loop": {
                "transform": "step",
                "arcs": [{"target": "loop", "condition": "data.left > 0"}, {"target": "end"}],
            },
            "end": None,
        }
    }
    records = [{"id": n, "left": n % 5} for n in range(30)]
    with SimpleFSM(machine, container=store.container, functions={"step": step}) as fsm:
        results = run_all(fsm, records, way)
        assert [result.data["id"] for result in results] == list(range(30))
        assert all(result.success for result in results)
        assert [len(result.path) - 1 for result in results] == [max(record["left"], 1) for record in records]
        assert len({result.owner_id for result in results}) == len(owners) == 30
        assert fsm.manager.owners == {}
    assert store.held == []
    assert len(sessions) == sum(max(record["left"], 1) for record in records)
    assert all(session.leased.closed for session in sessions.values())


def run_all(fsm: SimpleFSM, records: list[dict[str, Any]], way: str) -> list[RunResult]:
    async def gathered() -> list[RunResult]:
        return list(await asyncio.gather(*(fsm.aprocess(record) for record in records)))

    if way == "batch":
        return fsm.process_batch(records)
    if way == "threads":
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(fsm.process, records))
    if way == "tasks":
        return asyncio.run(fsm.aprocess_batch(records, max_workers=5))
    if way == "gather":
        return asyncio.run(gathered())
    results: list[RunResult] = []
    fsm.process_stream(records, lambda record, result: results.append(result))
    return results


def test_process_makes_no_event_loop_and_no_thread(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    @inject
    def adds(record: Any, db: Any = Provide["db"]) -> None:
        if record["n"] == 1:
            raise OSError("once more")
        insert(db, record["n"])

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("process() made an event loop")

    retry = {"attempts": 2, "wait_initial": 0.001, "wait_jitter": 0, "on": ["OSError"]}
    work = {"transform": "adds", "retry": retry, "timeout": 5, "on_error": "e", "offload": True}
    with SimpleFSM(work_machine(work, timeout=5), container=store.container, functions={"adds": adds}) as fsm:
        forbid_threads_made_here(monkeypatch)
        monkeypatch.setattr(asyncio, "new_event_loop", forbidden)
        monkeypatch.setattr(asyncio.events, "new_event_loop", forbidden)
        assert [fsm.process({"n": n}).path[-1] for n in range(3)] == ["e"] * 3
        assert all(result.success for result in fsm.process_batch([{"n": n} for n in range(3)]))
    assert store.items() == [0, 2, 0, 2]
