"""Attempts: each one starts anew, with a scope of its own and the record as it entered the state."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from tests.stores import Diary, Store, insert, process, work_machine
from wirestate import ExecutionResult, Reject, SimpleFSM, lifetimes
from wirestate.errors import DeadEndError, MissingFieldError, RunTimeoutError, StateTimeoutError

AT_ONCE = {"attempts": 3, "wait_initial": 0, "wait_jitter": 0}


class Trouble:
    """A function that fails so many times before it works."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = error or OSError("not yet")
        self.calls = 0

    def __call__(self, record: Any) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return None


@pytest.mark.parametrize("state", [{}, {"retry": AT_ONCE}, {"on_error": "e"}, {"offload": True}, {"timeout": 5}])
@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_a_stop_iteration_of_a_function_stays_the_error(side: Side, kind: type[Exception], state: Any) -> None:
    error = kind("stop")
    trouble = Trouble(9, error)
    with SimpleFSM(work_machine({"transform": "f", **state}), functions={"f": trouble}) as fsm:
        result = process(side, fsm, {})
        assert (result.error or result.caught[0].error) is error
        assert trouble.calls == (3 if "retry" in state else 1)
        if not side.is_async:
            batch = fsm.process_batch([{}, {}], max_workers=2)
            assert [found.error or found.caught[0].error for found in batch] == [error, error]


@pytest.mark.parametrize("mode", ["copy", "reference", "direct"])
def test_each_attempt_has_a_scope_of_its_own_and_the_record_as_it_came(
    side: Side, tmp_path: Path, mode: Any
) -> None:  # case 21
    store = Store(tmp_path)
    owners: list[str] = []
    sessions: list[Any] = []

    @inject
    def adds(record: dict[str, Any], context: Any, db: Any = Provide["db"]) -> None:
        owners.append(context.owner_id)
        sessions.append(db)
        insert(db, context.attempt)
        record["nested"]["list"].append(context.attempt)
        record["new"] = True
        if context.attempt < 3:
            raise OSError("not yet")

    machine = work_machine({"transform": "adds", "retry": AT_ONCE})
    record = {"nested": {"list": [0]}}
    with SimpleFSM(machine, container=store.container, functions={"adds": adds}, data_mode=mode) as fsm:
        result = process(side, fsm, record, owner_id="job")
        assert fsm.manager.owners == {}
    assert (result.success, result.path, result.caught) == (True, ["s", "w", "e"], ())
    assert result.data == {"nested": {"list": [0, 3]}, "new": True}
    assert (result.data is record) == (mode == "direct")
    assert owners == ["job/w#1", "job/w#1.2", "job/w#1.3"]
    assert len({id(session) for session in sessions}) == 3
    assert store.items() == [3]
    assert store.held == []


def test_no_wait_is_longer_than_wait_max_whatever_the_jitter(side: Side) -> None:
    trouble = Trouble(2)
    retry = {"attempts": 3, "wait_initial": 0, "wait_max": 0.001, "wait_jitter": 1e9}  # a wait without end, nearly
    with SimpleFSM(work_machine({"transform": "f", "retry": retry}), functions={"f": trouble}) as fsm:
        result = process(side, fsm, {}, timeout=60)  # no attempt begins that would come after it
    assert (result.success, trouble.calls) == (True, 3)


def test_when_no_attempt_works_the_last_error_ends_the_run_and_the_record_is_as_it_came(side: Side) -> None:
    calls: list[int] = []

    def fails(record: dict[str, Any], context: Any) -> None:
        calls.append(context.attempt)
        record["x"] = context.attempt
        raise KeyError(context.attempt)

    with SimpleFSM(work_machine({"transform": "fails", "retry": AT_ONCE}), functions={"fails": fails}) as fsm:
        result = process(side, fsm, {"a": 1})
    assert (calls, result.data, result.phase) == ([1, 2, 3], {"a": 1}, "transform")
    assert isinstance(result.error, KeyError)
    assert result.error.args == (3,)
    assert result.error.__notes__ == ["in state 'w', attempt 3, phase transform"]


def test_a_catch_arc_is_taken_after_the_last_attempt(side: Side) -> None:
    trouble = Trouble(9)
    machine = work_machine({"transform": "t", "retry": AT_ONCE, "on_error": "dead"}, dead=None)
    with SimpleFSM(machine, functions={"t": trouble}) as fsm:
        result = process(side, fsm, {})
    assert (result.path, trouble.calls, len(result.caught)) == (["s", "w", "dead"], 3, 1)


def test_a_caught_state_gets_all_its_attempts_again_when_it_is_entered_again(side: Side) -> None:
    trouble = Trouble(4)
    machine = work_machine({"transform": "t", "retry": AT_ONCE, "on_error": "s"})
    with SimpleFSM(machine, functions={"t": trouble}) as fsm:
        result = process(side, fsm, {})
    assert (result.path, trouble.calls) == (["s", "w", "s", "w", "e"], 5)


@pytest.mark.parametrize(
    ("work", "calls"),
    [
        ({"transform": "counted", "arcs": [{"target": "e", "condition": "boom"}]}, 3),
        ({"transform": "counted", "arcs": [{"target": "e", "transform": "boom"}]}, 3),
        ({"validators": ["counted", "boom"]}, 3),
        ({"transforms": ["counted", "failed"]}, 3),
        ({"transforms": ["counted", "late"], "timeout": 0.01}, 3),
        ({"pre_validators": ["counted"], "transform": "fine", "resources": ["broken"]}, 0),
        ({"pre_validators": ["counted"], "validators": ["no"]}, 1),
        ({"transforms": ["counted", "refuses"]}, 1),
        ({"transforms": ["counted", "wrong"]}, 1),
        ({"transform": "counted", "arcs": [{"target": "e", "condition": "no"}]}, 1),
        ({"transform": "counted", "resources": ["stubborn"]}, 1),
    ],
)
def test_what_can_go_better_is_tried_again_and_nothing_else(side: Side, work: dict[str, Any], calls: int) -> None:
    opened: list[int] = []

    def broken() -> Any:
        opened.append(1)
        raise OSError("down")

    def stubborn() -> Any:
        yield 1
        raise OSError("cannot close")

    def refuses(record: Any) -> None:
        raise Reject("no")

    def boom(record: Any) -> None:
        raise KeyError("boom")

    def failed(record: Any) -> Any:
        return ExecutionResult(False, error="busy")

    counted = Trouble(0)
    functions: dict[str, Any] = {
        "counted": counted, "boom": boom, "refuses": refuses, "failed": failed, "late": lambda record: time.sleep(0.02),
        "no": lambda record: False, "wrong": lambda record: 3, "fine": lambda record: None,
    }  # fmt: skip
    resources = {"broken": lifetimes.PerState(broken), "stubborn": lifetimes.PerState(stubborn)}
    with SimpleFSM(work_machine({**work, "retry": AT_ONCE}), functions=functions, resources=resources) as fsm:
        assert not process(side, fsm, {}).success
    assert counted.calls == calls
    assert len(opened) == (3 if "broken" in work.get("resources", ()) else 0)


@pytest.mark.parametrize(
    ("error", "on", "calls"),
    [
        (OSError("x"), ["OSError"], 3),
        (ConnectionError("x"), ["OSError"], 3),
        (KeyError("x"), ["OSError"], 1),
        (KeyError("x"), ["builtins:LookupError", "OSError"], 3),
        (DeadEndError("x"), ["wirestate.errors:DeadEndError"], 3),
        (StateTimeoutError("x"), ["TimeoutError"], 3),
        (MissingFieldError("x"), [], 3),
    ],
)
def test_on_chooses_the_exceptions(side: Side, error: Exception, on: list[str], calls: int) -> None:
    trouble = Trouble(9, error)
    with SimpleFSM(work_machine({"transform": "t", "retry": {**AT_ONCE, "on": on}}), functions={"t": trouble}) as fsm:
        assert process(side, fsm, {}).error is error
    assert trouble.calls == calls


def test_per_owner_resources_stay_over_attempts_and_per_state_ones_start_anew(side: Side) -> None:
    diary = Diary()
    resources = {
        "owned": lifetimes.PerOwner(diary.resource("owned")),
        "visit": lifetimes.PerState(diary.resource("visit")),
    }
    machine = work_machine({"transform": "t", "retry": AT_ONCE, "resources": ["owned", "visit"]})
    with SimpleFSM(machine, functions={"t": Trouble(1)}, resources=resources) as fsm:
        assert process(side, fsm, {}).success
    visits = ["open visit", "close visit: OSError", "open visit", "close visit"]
    assert diary.lines == ["open owned", *visits, "close owned"]


def test_a_wait_happens_with_no_scope_open(side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    held: list[Any] = []

    @inject
    def fails_once(record: Any, context: Any, db: Any = Provide["db"]) -> None:
        if context.attempt == 1:
            raise OSError("not yet")

    class Watching:
        """The world of the side, noting what is held while somebody waits."""

        is_async = side.world.is_async
        new_waiter = side.world.new_waiter
        offload = side.world.offload
        bounded = side.world.bounded

        async def sleep(self, seconds: float) -> None:
            held.append((seconds, store.held))
            await side.world.sleep(seconds)

    retry = {"attempts": 3, "wait_initial": 0.01, "wait_jitter": 0}
    machine = work_machine({"transform": "t", "retry": retry})
    with SimpleFSM(machine, container=store.container, functions={"t": fails_once}) as fsm:
        result = side.run(fsm._engine.run({}, Watching()))
    assert result.success
    assert held == [(0.01, [])]


def test_waits_grow_as_they_were_asked_to(side: Side) -> None:
    slept: list[float] = []

    class NoWait:
        is_async = side.world.is_async
        new_waiter = side.world.new_waiter
        offload = side.world.offload
        bounded = side.world.bounded

        async def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    retry = {"attempts": 6, "wait_initial": 1, "wait_jitter": 0, "wait_exp_base": 3, "wait_max": 20}
    with SimpleFSM(work_machine({"transform": "t", "retry": retry}), functions={"t": Trouble(5)}) as fsm:
        assert side.run(fsm._engine.run({}, NoWait())).success
    assert slept == [1, 3, 9, 20, 20]
    slept.clear()
    jitter = {"attempts": 3, "wait_initial": 1, "wait_jitter": 2, "wait_exp_base": 1}
    with SimpleFSM(work_machine({"transform": "t", "retry": jitter}), functions={"t": Trouble(2)}) as fsm:
        assert side.run(fsm._engine.run({}, NoWait())).success
    assert all(1 <= seconds <= 3 for seconds in slept)


@pytest.mark.parametrize("where", ["run", "retry"])
def test_no_wait_goes_past_the_deadline(side: Side, where: str) -> None:
    retry: dict[str, Any] = {"attempts": 3, "wait_initial": 30, "wait_max": 30, "wait_jitter": 0}
    if where == "retry":
        retry["timeout"] = 10
    trouble = Trouble(9)
    with SimpleFSM(work_machine({"transform": "t", "retry": retry}), functions={"t": trouble}) as fsm:
        began = time.monotonic()
        result = process(side, fsm, {}, timeout=10 if where == "run" else None)
    assert time.monotonic() - began < 10
    assert (trouble.calls, type(result.error)) == (1, OSError)


def test_attempts_end_when_the_run_is_out_of_time(side: Side) -> None:
    def slow(record: Any) -> None:
        time.sleep(0.03)
        raise OSError("not yet")

    retry = {"attempts": 9, "wait_initial": 0, "wait_jitter": 0}
    with SimpleFSM(work_machine({"transform": "t", "retry": retry, "on_error": "e"}), functions={"t": slow}) as fsm:
        result = process(side, fsm, {}, timeout=0.05)
    assert (result.outcome, result.path) == ("failed", ["s", "w"])
    assert isinstance(result.error, OSError | RunTimeoutError)
