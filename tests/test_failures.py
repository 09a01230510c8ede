"""What goes wrong with a record: rolled back, named, caught where an arc says so, and nothing stays open."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.crews import forbid_threads_made_here
from tests.stores import Diary, Store, insert, process, work_machine
from wirestate import (
    BaseResourceProvider,
    DatabaseResourceAdapter,
    PoolConfig,
    Reject,
    ResourceContainer,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import (
    DeadEndError,
    FailureEndError,
    FunctionResultError,
    MissingFieldError,
    PoolTimeoutError,
    RecordRejectedError,
    ReleaseFailedError,
    ResourceError,
    RunTimeoutError,
    StateTimeoutError,
    StepLimitExceededError,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    assert made.held == []


@inject
def adds(record: dict[str, Any], db: Any = Provide["db"]) -> None:
    """Insert, then raise what the record says."""
    insert(db, record["n"])
    if "raises" in record:
        raise record["raises"]


def boom(record: Any) -> None:
    raise KeyError("boom")


# --- where it was, and what becomes of the work ------------------------------------------------------


def test_a_raising_validator_is_a_failure_and_no_refusal(side: Side) -> None:  # case 12
    with SimpleFSM(work_machine({"validators": ["boom"]}), functions={"boom": boom}) as fsm:
        result = process(side, fsm, {})
    assert (result.outcome, result.phase, result.state, type(result.error)) == ("failed", "validate", "w", KeyError)


def test_a_raising_transform_rolls_back_and_keeps_its_own_error(side: Side, store: Store) -> None:
    error = KeyError("own")
    with SimpleFSM(work_machine({"transform": "adds"}), container=store.container, functions={"adds": adds}) as fsm:
        result = process(side, fsm, {"n": 1, "raises": error}, owner_id="job")
    assert (result.outcome, result.phase) == ("failed", "transform")
    assert result.error is error or str(result.error) == str(error)  # mode copy: the record's error was copied
    assert result.error.__notes__ == ["in state 'w', attempt 1, phase transform"]
    assert store.items() == []


def test_an_error_that_is_a_frozen_dataclass_is_the_error_of_its_run(side: Side) -> None:
    @dataclass(frozen=True)
    class FrozenError(Exception):
        code: int

    error = FrozenError(1)

    def raises(record: Any) -> None:
        raise error

    with SimpleFSM(work_machine({"transform": "raises"}), functions={"raises": raises}) as fsm:
        result = process(side, fsm, {})
    assert result.error is error
    assert (result.phase, error.__notes__) == ("transform", ["in state 'w', attempt 1, phase transform"])


def test_a_raising_condition_fails_the_visit_and_the_next_arc_is_not_tried(side: Side, store: Store) -> None:  # case 15
    arcs = [{"target": "e", "condition": "boom"}, {"target": "e"}]
    functions = {"adds": adds, "boom": boom}
    machine = work_machine({"transform": "adds", "arcs": arcs})
    with SimpleFSM(machine, container=store.container, functions=functions) as fsm:
        result = process(side, fsm, {"n": 1})
    assert (result.path, result.state, result.phase) == (["s", "w"], "w", "condition")
    assert isinstance(result.error, KeyError)
    assert result.error.__notes__ == ["in state 'w', arc 'w -> e', attempt 1, phase condition"]
    assert store.items() == []


def test_a_raising_arc_transform_undoes_the_state_and_the_target_is_not_entered(
    side: Side, store: Store
) -> None:  # case 17
    arcs = [{"target": "e", "transform": "boom", "name": "onward"}]
    machine = work_machine({"transform": "adds", "arcs": arcs})
    with SimpleFSM(machine, container=store.container, functions={"adds": adds, "boom": boom}) as fsm:
        result = process(side, fsm, {"n": 1})
    assert (result.path, result.phase, type(result.error)) == (["s", "w"], "arc", KeyError)
    assert "arc 'onward'" in result.error.__notes__[0]
    assert store.items() == []


def test_earlier_visits_stay_committed(side: Side, store: Store) -> None:
    machine = work_machine({"transform": "adds"})
    machine["states"]["e"] = {"transform": "boom"}
    with SimpleFSM(machine, container=store.container, functions={"adds": adds, "boom": boom}) as fsm:
        assert process(side, fsm, {"n": 1}).state == "e"
    assert store.items() == [1]


def test_a_database_that_cannot_be_reached_fails_the_visit_before_its_function(
    side: Side, tmp_path: Path
) -> None:  # case 18
    called: list[Any] = []

    class Container(ResourceContainer):
        db = lifetimes.PerState(DatabaseResourceAdapter, url=f"sqlite:///{tmp_path}/missing/x.db")

    @inject
    def uses(record: Any, db: Any = Provide["db"]) -> None:
        called.append(db)

    functions = {"uses": uses, "before": lambda record: called.append("s ran")}
    machine = work_machine({"transform": "uses"})
    machine["states"]["s"]["transform"] = "before"
    with Container() as container, SimpleFSM(machine, container=container, functions=functions) as fsm:
        result = process(side, fsm, {})
        assert container.manager.holders() == []
    assert called == ["s ran"]
    assert (result.outcome, result.state, result.phase) == ("failed", "w", "open")
    assert isinstance(result.error, ResourceError)
    assert result.error.resource_name == "db"
    assert "'db'" in str(result.error)


def test_what_was_opened_before_the_one_that_cannot_be_had_is_released_with_the_error(side: Side) -> None:  # case 19
    diary, called = Diary(), []
    resources = {
        "first": lifetimes.PerState(diary.resource("first")),
        "second": lifetimes.PerState(diary.resource("second", fails=OSError("down"))),
    }

    @inject
    def uses(record: Any, a: Any = Provide["first"], b: Any = Provide["second"]) -> None:
        called.append((a, b))

    with SimpleFSM(work_machine({"transform": "uses"}), functions={"uses": uses}, resources=resources) as fsm:
        result = process(side, fsm, {})
        assert fsm.manager.holders() == []
    assert (result.phase, called) == ("open", [])
    assert diary.lines == ["open first", "close first: ResourceUnavailableError"]
    assert isinstance(result.error.__cause__, OSError)


def test_a_commit_that_fails_is_a_failed_release_and_not_tried_again(side: Side, tmp_path: Path) -> None:  # case 20
    store, calls = Store(tmp_path), []
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("CREATE TABLE parent (id PRIMARY KEY)")
        db.execute("CREATE TABLE child (p REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)")

    @inject
    def orphan(record: Any, db: Any = Provide["db"]) -> None:
        calls.append(1)
        insert(db, 1)
        db.query("INSERT INTO child VALUES (7)")

    machine = work_machine({"transform": "orphan", "retry": 3})
    with SimpleFSM(machine, container=store.container, functions={"orphan": orphan}) as fsm:
        result = process(side, fsm, {})
        assert (result.outcome, result.phase, result.path) == ("failed", "release", ["s", "w"])
        assert isinstance(result.error, ReleaseFailedError)
        assert "FOREIGN KEY" in str(result.error.exceptions[0])
        caught = work_machine({"transform": "orphan", "on_error": "e"})
        with SimpleFSM(caught, container=store.container, functions={"orphan": orphan}) as other:
            assert process(side, other, {}).success
    assert (len(calls), store.items(), store.held) == (2, [], [])


def test_a_release_that_fails_after_the_body_is_attached_to_the_bodys_error(side: Side) -> None:
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise OSError("cannot close")

    machine = work_machine({"transform": "boom", "resources": ["r"]})
    for lifetime in (lifetimes.PerState, lifetimes.PerOwner):
        with SimpleFSM(machine, functions={"boom": boom}, resources={"r": lifetime(stubborn)}) as fsm:
            result = process(side, fsm, {})
        assert (type(result.error), result.phase) == (KeyError, "transform")
        assert [type(failure) for failure in result.error.release_errors] == [OSError]


def test_a_per_owner_release_that_fails_fails_the_run_at_its_end(side: Side) -> None:
    def stubborn() -> Iterator[int]:
        yield 1
        raise OSError("cannot close")

    machine = work_machine({"transform": "t", "resources": ["r"]})
    with SimpleFSM(machine, functions={"t": lambda record: None}, resources={"r": lifetimes.PerOwner(stubborn)}) as fsm:
        result = process(side, fsm, {})
    assert (result.outcome, result.phase, result.path) == ("failed", "release", ["s", "w", "e"])
    assert isinstance(result.error, ReleaseFailedError)


# --- catch arcs ---------------------------------------------------------------------------------------


def test_a_caught_error_is_handled_and_its_end_decides(side: Side, store: Store) -> None:  # case 22
    seen: list[Any] = []

    def dead(record: Any, context: Any) -> None:
        seen.append(context.error)

    functions = {"adds": adds, "dead": dead}
    work = {"transform": "adds", "on_error": "dead"}
    with SimpleFSM(
        work_machine(work, dead={"transform": "dead"}), container=store.container, functions=functions
    ) as fsm:
        result = process(side, fsm, {"n": 1, "raises": KeyError("x")})
    assert (result.success, result.final_state, result.error) == (True, "dead", None)
    (caught,) = result.caught
    assert (caught.state, caught.kind, caught.target) == ("w", "error", "dead")
    assert seen == [caught.error]
    assert isinstance(caught.error, KeyError)
    failing = work_machine(work, dead={"transform": "dead", "outcome": "failure"})
    with SimpleFSM(failing, container=store.container, functions=functions) as fsm:
        result = process(side, fsm, {"n": 1, "raises": KeyError("x")})
    assert (result.success, result.outcome, result.final_state, result.state) == (False, "failed", "dead", None)
    assert result.error is result.caught[0].error
    assert store.items() == []


def test_an_end_for_failures_without_an_error_has_one_of_its_own(side: Side) -> None:
    machine = {"states": {"a": {"arcs": ["dead"]}, "dead": {"outcome": "failure", "emit_output": False}}}
    with SimpleFSM(machine) as fsm:
        result = process(side, fsm, {})
        with pytest.raises(FailureEndError):
            process(side, fsm, {}, raise_on_error=True)
    assert (result.outcome, type(result.error), result.emit, result.phase) == ("failed", FailureEndError, False, None)


def test_an_error_arc_lets_rejects_pass_and_a_reject_arc_takes_them(side: Side) -> None:  # case 23
    work = {"validator": "no", "on_error": "dead"}
    machine = work_machine(work, dead=None)
    with SimpleFSM(machine, functions={"no": lambda record: False}) as fsm:
        assert process(side, fsm, {}).outcome == "rejected"
    with SimpleFSM(
        work_machine({**work, "on_reject": "refused"}, dead=None, refused=None),
        functions={"no": lambda record: False},
    ) as fsm:
        result = process(side, fsm, {})
    assert (result.success, result.final_state, result.caught[0].kind) == (True, "refused", "reject")


@pytest.mark.parametrize("where", ["condition", "transform", "resources"])
def test_a_catch_arc_that_fails_leaves_the_first_error_and_attaches_its_own(side: Side, where: str) -> None:  # case 24
    def worse(record: Any) -> None:
        raise OSError("worse")

    diary = Diary()
    resources = {"r": lifetimes.PerState(diary.resource("r", fails=OSError("down")))}
    arc = {"target": "dead", where: ["r"] if where == "resources" else "worse"}
    if where == "resources":
        arc["transform"] = "fine"
    functions = {"boom": boom, "worse": worse, "fine": lambda record: None}
    machine = work_machine({"transform": "boom", "on_error": arc}, dead=None)
    with SimpleFSM(machine, functions=functions, resources=resources) as fsm:
        result = process(side, fsm, {})
        assert fsm.manager.holders() == []
    assert (type(result.error), result.phase, result.path) == (KeyError, "transform", ["s", "w"])
    second = result.error.catch_error
    assert isinstance(second, ResourceError if where == "resources" else OSError)
    assert any("its catch arc failed" in note for note in result.error.__notes__)


def test_a_catch_arc_works_in_a_scope_of_its_own_after_the_failed_one_is_closed(side: Side, store: Store) -> None:
    owners: list[str] = []

    @inject
    def notes(record: Any, error: Exception, context: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        owners.append(context.owner_id)
        insert(db, f"{type(error).__name__}")
        return {"handled": context.arc}

    machine = work_machine(
        {"transform": "adds", "on_error": {"target": "dead", "transform": "notes", "name": "out"}}, dead=None
    )
    with SimpleFSM(machine, container=store.container, functions={"adds": adds, "notes": notes}) as fsm:
        result = process(side, fsm, {"n": 1, "raises": KeyError("x")}, owner_id="job")
    assert (result.path, result.data) == (["s", "w", "dead"], {"handled": "out"})
    assert owners == ["job/w#1!"]
    assert store.items() == ["KeyError"]


def test_a_catch_arc_opens_only_what_is_its_own(side: Side) -> None:
    diary = Diary()
    resources = {
        "broken": lifetimes.PerState(diary.resource("broken", fails=OSError("down"))),
        "fine": lifetimes.PerState(diary.resource("fine")),
    }
    arc = {"target": "dead", "resources": ["fine"], "transform": "tells"}
    machine = work_machine({"transform": "t", "resources": ["broken"], "on_error": arc}, dead=None)
    functions = {"t": lambda record: None, "tells": lambda record, context: dict(context.resources)}
    with SimpleFSM(machine, functions=functions, resources=resources) as fsm:
        result = process(side, fsm, {})
    assert (result.success, result.data) == (True, {"fine": "fine"})
    assert diary.lines == ["open fine", "close fine"]


def test_the_most_specific_catch_arc_wins_then_priority_then_order(side: Side) -> None:
    arcs = [
        {"target": "any", "catch": "any", "priority": 9},
        {"target": "low", "catch": "error", "priority": 1},
        {"target": "skipped", "catch": "error", "priority": 7, "condition": "error.type == 'OSError'"},
        {"target": "high", "catch": ["error", "reject"], "priority": 5},
        "e",
    ]
    states = dict.fromkeys(("any", "low", "skipped", "high"))
    with SimpleFSM(work_machine({"transform": "boom", "arcs": arcs}, **states), functions={"boom": boom}) as fsm:
        assert process(side, fsm, {}).path == ["s", "w", "high"]


def test_expressions_of_catch_arcs_read_the_error(side: Side) -> None:
    condition = "error.type == 'KeyError' and error.kind == 'error' and error.state == 'w' and 'boom' in error.message"
    machine = work_machine({"transform": "boom", "on_error": {"target": "dead", "condition": condition}}, dead=None)
    with SimpleFSM(machine, functions={"boom": boom}) as fsm:
        assert process(side, fsm, {}).path == ["s", "w", "dead"]


def test_a_catch_arc_whose_condition_is_false_is_not_taken(side: Side) -> None:
    machine = work_machine({"transform": "boom", "on_error": {"target": "dead", "condition": "false"}}, dead=None)
    with SimpleFSM(machine, functions={"boom": boom, "false": lambda record: False}) as fsm:
        result = process(side, fsm, {})
    assert (result.path, type(result.error), result.caught) == (["s", "w"], KeyError, ())


def test_a_state_that_caught_may_be_entered_again(side: Side) -> None:
    def third_time(record: dict[str, Any]) -> None:
        if record["n"] < 3:
            raise KeyError(record["n"])

    def more(record: dict[str, Any]) -> dict[str, Any]:
        return {"n": record["n"] + 1}

    machine = work_machine({"transform": "third_time", "on_error": {"target": "w", "transform": "more"}})
    with SimpleFSM(machine, functions={"third_time": third_time, "more": more}) as fsm:
        result = process(side, fsm, {"n": 1})
    assert (result.success, result.path, len(result.caught)) == (True, ["s", "w", "w", "w", "e"], 2)


# --- the table of section 4 -----------------------------------------------------------------------------

Spoil = Callable[[], dict[str, Any]]


def late(record: Any) -> None:
    time.sleep(0.03)


def refuses(record: Any) -> None:
    raise Reject("no")


KINDS: dict[str, tuple[dict[str, Any], str, str, type[BaseException], set[str]]] = {
    "validator": ({"validator": "no"}, "rejected", "validate", RecordRejectedError, {"reject", "any"}),
    "schema": ({"schema": {"required": ["x"]}}, "rejected", "validate", RecordRejectedError, {"reject", "any"}),
    "reject": ({"transform": "refuses"}, "rejected", "transform", Reject, {"reject", "any"}),
    "raises": ({"transform": "boom"}, "failed", "transform", KeyError, {"error", "any"}),
    "wrong": ({"transform": "wrong"}, "failed", "transform", FunctionResultError, {"error", "any"}),
    "missing": ({"validator": "adult"}, "failed", "validate", MissingFieldError, {"error", "any"}),
    "open": ({"transform": "fine", "resources": ["broken"]}, "failed", "open", ResourceError, {"error", "any"}),
    "condition": (
        {"arcs": [{"target": "e", "condition": "boom"}]}, "failed", "condition", KeyError, {"error", "any"},
    ),
    "arc": ({"arcs": [{"target": "e", "transform": "boom"}]}, "failed", "arc", KeyError, {"error", "any"}),
    "dead end": ({"arcs": [{"target": "e", "condition": "no"}]}, "failed", "route", DeadEndError, {"error", "any"}),
    "release": (
        {"transform": "fine", "resources": ["stubborn"]}, "failed", "release", ReleaseFailedError, {"error", "any"},
    ),
    "state timeout": (
        {"transform": "late", "timeout": 0.01}, "failed", "transform", StateTimeoutError, {"timeout", "error", "any"},
    ),
    "limit": ({"arcs": ["w", "e"]}, "failed", "limit", StepLimitExceededError, set()),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_failure_has_its_outcome_its_phase_and_its_catch_arcs(side: Side, kind: str) -> None:
    work, outcome, phase, error, catching = KINDS[kind]

    def stubborn() -> Iterator[int]:
        yield 1
        raise OSError("cannot close")

    diary = Diary()
    resources = {
        "broken": lifetimes.PerState(diary.resource("broken", fails=OSError("down"))),
        "stubborn": lifetimes.PerState(stubborn),
    }
    functions: dict[str, Any] = {
        "no": lambda record: False, "boom": boom, "refuses": refuses, "late": late,
        "wrong": lambda record: 3, "fine": lambda record: None, "adult": lambda record: True,
    }  # fmt: skip
    if kind == "missing":
        work = {"validator": {"type": "expression", "code": "data.age > 18"}}
    with SimpleFSM(work_machine(work, max_transitions=9), functions=functions, resources=resources) as fsm:
        result = process(side, fsm, {})
        assert (result.success, result.outcome, result.phase, result.state) == (False, outcome, phase, "w")
        assert isinstance(result.error, error)
        assert any("in state 'w'" in note for note in result.error.__notes__)
    for catch in ("error", "reject", "timeout", "any"):
        arcs = [{"target": "caught", "catch": catch}, *work.get("arcs", ["e"])]
        machine = work_machine({**work, "arcs": arcs}, caught=None, max_transitions=9)
        with SimpleFSM(machine, functions=functions, resources=resources) as fsm:
            result = process(side, fsm, {})
            assert (result.final_state == "caught") == (catch in catching), catch
            assert fsm.manager.holders() == []


# --- time ------------------------------------------------------------------------------------------------

LIMIT = 0.05


@pytest.mark.parametrize("offload", [False, True])
def test_a_plain_function_that_takes_too_long_is_waited_for_and_rolled_back(
    side: Side, store: Store, offload: bool
) -> None:  # case 25
    alive: list[Any] = []

    @inject
    def sleeps(record: Any, db: Any = Provide["db"]) -> None:
        insert(db, 1)
        time.sleep(1)
        alive.append(db.query("SELECT 1 AS one"))  # what it works with was not taken from under it

    work = {"transform": "sleeps", "timeout": 0.7, "offload": offload}
    with SimpleFSM(work_machine(work), container=store.container, functions={"sleeps": sleeps}) as fsm:
        began = time.monotonic()
        result = process(side, fsm, {})
        assert time.monotonic() - began >= 1
        assert store.held == []
    assert (result.outcome, result.phase, type(result.error)) == ("failed", "transform", StateTimeoutError)
    assert (len(alive), store.items()) == (1, [])


def test_an_asynchronous_function_that_takes_too_long_is_interrupted_at_once(tmp_path: Path) -> None:  # case 25
    store = Store(tmp_path, driver="sqlite+aiosqlite")

    @inject
    async def sleeps(record: Any, db: Any = Provide["db"]) -> None:
        await db.query("INSERT INTO item VALUES (1)")
        await asyncio.sleep(30)

    async def scenario() -> Any:  # a second: the first connection to a file takes a while on a busy machine
        async with store.container as container:
            machine = work_machine({"transform": "sleeps", "timeout": 1})
            fsm = SimpleFSM(machine, container=container, functions={"sleeps": sleeps})
            began = time.monotonic()
            result = await fsm.aprocess({})
            assert 1 <= time.monotonic() - began < 15  # half of what the function takes
            assert store.held == []
            return result

    result = asyncio.run(scenario())
    assert (result.outcome, result.phase, type(result.error)) == ("failed", "transform", StateTimeoutError)
    assert store.items() == []


class Tool(BaseResourceProvider):
    def acquire(self, **options: Any) -> object:
        return object()

    def release(self, resource: Any) -> None:
        pass


def pooled(provider: str, folder: Path, pool: PoolConfig) -> lifetimes.PerState:
    """Return a resource behind a pool of ours, or behind a gate before the pool of its library."""
    if provider == "pool":
        return lifetimes.PerState(Tool, pool=pool)
    return lifetimes.PerState(DatabaseResourceAdapter, url=f"sqlite:///{folder}/x.db", pool=pool)


@pytest.mark.parametrize("limit", ["run", "state"])
@pytest.mark.parametrize("provider", ["pool", "database"])
def test_a_wait_for_a_pool_ends_with_the_time_that_is_left(
    side: Side, tmp_path: Path, provider: str, limit: str
) -> None:  # case 26
    class Container(ResourceContainer):
        tool = pooled(provider, tmp_path, PoolConfig(max_size=1))

    @inject
    def uses(record: Any, tool: Any = Provide["tool"]) -> None: ...

    work = {"transform": "uses", "on_timeout": "e"} if limit == "run" else {"transform": "uses", "timeout": LIMIT}
    with Container() as container, SimpleFSM(work_machine(work), container=container, functions={"uses": uses}) as fsm:
        manager = container.manager
        manager.acquire("tool", "somebody else")
        began = time.monotonic()
        result = process(side, fsm, {}, timeout=LIMIT if limit == "run" else None)
        assert LIMIT <= time.monotonic() - began < 10  # the pool itself waits for 30 s
        assert type(result.error) is (RunTimeoutError if limit == "run" else StateTimeoutError)
        assert (result.outcome, result.phase) == ("failed", "limit" if limit == "run" else "open")
        assert result.path == ["s", "w"]
        assert manager.get_metrics("tool")["tool_pool"].waiting == 0
        manager.release("tool", "somebody else")
        assert process(side, fsm, {}).success


@pytest.mark.parametrize("provider", ["pool", "database"])
def test_a_pool_keeps_its_own_time_where_the_run_has_more(side: Side, tmp_path: Path, provider: str) -> None:
    class Container(ResourceContainer):
        tool = pooled(provider, tmp_path, PoolConfig(max_size=1, acquire_timeout=LIMIT))

    machine = work_machine({"transform": "t", "resources": ["tool"]}, timeout=40)
    with Container() as container, SimpleFSM(machine, container=container, functions={"t": lambda r: None}) as fsm:
        container.manager.acquire("tool", "somebody else")
        began = time.monotonic()
        result = process(side, fsm, {})
        assert LIMIT <= time.monotonic() - began < 20  # half of what the run has
        assert (result.phase, type(result.error)) == ("open", PoolTimeoutError)


def test_a_blocking_wait_under_a_deadline_makes_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, pool=PoolConfig(max_size=1))
    manager = store.container.manager
    manager.acquire("db", "somebody else")

    def give_back_when_somebody_waits() -> None:
        while not manager.get_metrics("db")["db_pool"].waiting:
            time.sleep(0.001)
        manager.release("db", "somebody else")

    helper = threading.Thread(target=give_back_when_somebody_waits)
    helper.start()
    forbid_threads_made_here(monkeypatch)
    with SimpleFSM(work_machine({"transform": "adds"}), container=store.container, functions={"adds": adds}) as fsm:
        assert fsm.process({"n": 1}, timeout=10).success
    helper.join(10)
    assert store.items() == [1]


def test_clean_ups_see_that_the_time_was_over(side: Side) -> None:
    diary = Diary()

    async def waits(record: Any) -> None:
        await asyncio.sleep(30)

    machine = work_machine({"transform": "t", "timeout": 0.01, "resources": ["r"]})
    functions = {"t": waits if side.is_async else late}
    with SimpleFSM(machine, functions=functions, resources=diary.per_state("r")) as fsm:
        assert not process(side, fsm, {}).success
    assert diary.lines == ["open r", "close r: StateTimeoutError"]


# --- interruptions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_goes_on_rolls_back_and_is_neither_caught_nor_tried_again(
    store: Store, interrupt: type[BaseException]
) -> None:  # case 27
    calls: list[int] = []

    @inject
    def interrupted(record: Any, db: Any = Provide["db"]) -> None:
        calls.append(1)
        insert(db, 1)
        record["changed"] = True
        raise interrupt

    work = {"transform": "interrupted", "retry": 3, "on_error": "dead"}
    record: dict[str, Any] = {}
    for machine in (work_machine(work, dead=None), work_machine({"transform": "interrupted"})):
        with SimpleFSM(
            machine, container=store.container, functions={"interrupted": interrupted}, data_mode="direct"
        ) as fsm:
            with pytest.raises(interrupt):
                fsm.process(record)
            assert fsm.manager.owners == {}
    assert (len(calls), store.items(), store.held) == (2, [], [])


def test_a_cancelled_task_rolls_back_and_is_neither_caught_nor_tried_again(tmp_path: Path) -> None:  # case 27
    store = Store(tmp_path, driver="sqlite+aiosqlite")
    calls: list[int] = []

    async def scenario() -> None:
        begun = asyncio.Event()

        @inject
        async def waits(record: Any, db: Any = Provide["db"]) -> None:
            calls.append(1)
            await db.query("INSERT INTO item VALUES (1)")
            begun.set()
            await asyncio.sleep(30)

        machine = work_machine({"transform": "waits", "retry": 3, "on_error": "dead", "timeout": 20}, dead=None)
        async with store.container as container:
            fsm = SimpleFSM(machine, container=container, functions={"waits": waits})
            task = asyncio.create_task(fsm.aprocess({}, timeout=20))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert fsm.manager.owners == {}

    asyncio.run(scenario())
    assert (calls, store.items(), store.held) == ([1], [], [])


def test_an_interrupt_in_a_clean_up_goes_on(side: Side) -> None:
    class Stop(BaseException):
        pass

    def stubborn() -> Iterator[int]:
        yield 1
        raise Stop

    for lifetime in (lifetimes.PerState, lifetimes.PerOwner):
        machine = work_machine({"transform": "t", "resources": ["r"]})
        with SimpleFSM(machine, functions={"t": lambda record: None}, resources={"r": lifetime(stubborn)}) as fsm:
            with pytest.raises(Stop):
                process(side, fsm, {})
            assert fsm.manager.owners == {}
            assert fsm.manager.holders() == []


def test_one_error_object_raised_again_and_again_gets_its_note_once(side: Side) -> None:
    error = KeyError("shared")

    def raises(record: Any) -> None:
        raise error

    with SimpleFSM(work_machine({"transform": "raises"}), functions={"raises": raises}) as fsm:
        for _ in range(3):
            assert process(side, fsm, {}).error is error
    assert error.__notes__ == ["in state 'w', attempt 1, phase transform"]
