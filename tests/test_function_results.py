"""How functions are called, and what each kind of result means in each role."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from dependency_injector.wiring import Provide
from pydantic import BaseModel

from tests.conftest import Side
from tests.stores import Diary, process, work_machine
from wirestate import ExecutionResult, FunctionContext, Reject, RunResult, SimpleFSM
from wirestate.errors import BuildError, FunctionFailedError, FunctionResultError, RecordRejectedError

Function = Callable[..., Any]


def run(side: Side, work: dict[str, Any], record: Any, *, arcs: Any = None, **functions: Function) -> RunResult:
    """Run *record* through ``s -> w -> e``; functions are named by keyword."""
    state = work if arcs is None else {**work, "arcs": arcs}
    with SimpleFSM(work_machine(state), functions=functions) as fsm:
        return process(side, fsm, record)


def raising(error: Exception) -> Function:
    def raises(record: Any) -> None:
        raise error

    return raises


# --- transforms ----------------------------------------------------------------------------


def test_none_leaves_the_record_as_the_function_left_it(side: Side) -> None:  # case 8
    def marks(record: dict[str, Any]) -> None:
        record["x"] = 1

    assert run(side, {"transform": "marks"}, {"a": 1}, marks=marks).data == {"a": 1, "x": 1}
    assert run(side, {"transform": "looks"}, {"a": 1}, looks=lambda record: None).data == {"a": 1}


def test_a_mapping_replaces_the_whole_record(side: Side) -> None:  # case 10
    assert run(side, {"transform": "t"}, {"a": 1}, t=lambda record: {"b": 2}).data == {"b": 2}


def test_transforms_run_in_order_each_on_what_the_one_before_left(side: Side) -> None:
    first, second = lambda record: {"n": record["n"] + 1}, lambda record: {"n": record["n"] * 10}
    assert run(side, {"transforms": ["first", "second"]}, {"n": 1}, first=first, second=second).data == {"n": 20}


WRONG: dict[str, Any] = {
    "tuple": (1, 2), "str": "t", "list": [1], "bool": False, "NoneType and text": (True, "fine"), "int": 0,
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_transform_that_gives_neither_none_nor_a_mapping_fails_and_is_not_tried_again(
    side: Side, wrong: Any
) -> None:  # case 9
    calls: list[Any] = []

    def transform(record: Any) -> Any:
        calls.append(record)
        return wrong

    result = run(side, {"transform": "t", "retry": 3}, {}, t=transform)
    assert (result.outcome, result.phase, len(calls)) == ("failed", "transform", 1)
    assert isinstance(result.error, FunctionResultError)
    assert "transform" in str(result.error)
    assert type(wrong).__name__ in str(result.error)
    assert transform.__qualname__ in str(result.error)


def test_a_generator_is_refused_and_closed(side: Side) -> None:  # case 9
    made: list[Any] = []

    def lazy(record: Any) -> Any:
        made.append(row for row in [record])
        return made[-1]

    result = run(side, {"transform": "lazy", "retry": 3}, {}, lazy=lazy)
    assert isinstance(result.error, FunctionResultError)
    assert "generator" in str(result.error)
    assert (len(made), made[0].gi_frame) == (1, None)


def test_an_asynchronous_generator_is_refused(side: Side) -> None:
    async def lazy(record: Any) -> Any:
        yield record

    result = run(side, {"transform": "lazy", "retry": 3}, {}, lazy=lazy)
    assert isinstance(result.error, FunctionResultError)
    assert "async_generator" in str(result.error)


def test_an_execution_result_gives_its_data_or_fails(side: Side) -> None:
    assert run(side, {"transform": "t"}, {"a": 1}, t=lambda record: ExecutionResult(True, {"b": 1})).data == {"b": 1}
    assert run(side, {"transform": "t"}, {"a": 1}, t=lambda record: ExecutionResult(True)).data == {"a": 1}
    result = run(side, {"transform": "t"}, {"a": 1}, t=lambda record: ExecutionResult(False, error="no room"))
    assert (result.outcome, type(result.error)) == ("failed", FunctionFailedError)
    assert "no room" in str(result.error)


@pytest.mark.parametrize("role", ["transform", "arc"])
def test_reject_refuses_the_record_from_anywhere(side: Side, role: str) -> None:
    def refuses(record: Any) -> None:
        raise Reject("too old", field="age")

    arcs = [{"target": "e", "transform": "refuses"}] if role == "arc" else None
    result = run(side, {"transform": "refuses"} if arcs is None else {}, {}, arcs=arcs, refuses=refuses)
    assert (result.outcome, result.reasons, result.phase) == ("rejected", ("age: too old",), role)


def test_a_value_error_in_a_transform_is_a_failure(side: Side) -> None:
    result = run(side, {"transform": "t"}, {"n": "x"}, t=lambda record: {"n": int(record["n"])})
    assert (result.outcome, type(result.error)) == ("failed", ValueError)


# --- validators ----------------------------------------------------------------------------


def test_all_reasons_of_a_phase_come_together_and_nothing_was_opened(side: Side) -> None:  # case 11
    called: list[str] = []
    diary = Diary()

    def no(record: Any) -> bool:
        return False

    def too_old(record: Any) -> tuple[bool, str]:
        return False, "too old"

    def raises(record: Any) -> None:
        raise ValueError("x")

    machine = work_machine({"validators": ["no", "too_old", "raises"], "transform": "t", "resources": ["db"]})
    functions = {"no": no, "too_old": too_old, "raises": raises, "t": lambda record: called.append("t")}
    with SimpleFSM(machine, functions=functions, resources=diary.per_state("db")) as fsm:
        result = process(side, fsm, {})
    assert (result.success, result.outcome, result.state, result.phase) == (False, "rejected", "w", "validate")
    assert result.reasons == (f"{__name__}.{no.__qualname__} refused the record", "too old", "x")
    assert isinstance(result.error, RecordRejectedError)
    assert called == []
    assert diary.lines == ["open db", "close db: RecordRejectedError"]  # declared: opens with the first function


def test_validators_that_are_expressions_refuse_before_anything_opens(side: Side) -> None:  # case 11
    diary = Diary()
    machine = work_machine(
        {
            "validators": ["adult", {"type": "expression", "code": "data.age >= 18"}],
            "transform": "t",
            "resources": ["db"],
        }
    )
    functions = {"adult": lambda record: True, "t": lambda record: None}
    with SimpleFSM(machine, functions=functions, resources=diary.per_state("db")) as fsm:
        result = process(side, fsm, {"age": 3})
        assert (result.outcome, result.reasons) == ("rejected", ("'data.age >= 18' refused the record",))
        assert diary.lines == []
        assert process(side, fsm, {"age": 30}).success


@pytest.mark.parametrize("passing", [None, True, (True, "ignored"), ExecutionResult(True)])
def test_a_validator_passes_by_none_and_true(side: Side, passing: Any) -> None:
    assert run(side, {"validator": "v"}, {"a": 1}, v=lambda record: passing).data == {"a": 1}


@pytest.mark.parametrize(
    ("refusing", "reason"),
    [
        (lambda record: (False, "why"), "why"),
        (lambda record: ExecutionResult(False, error="why"), "why"),
        (raising(AssertionError("why")), "why"),
        (raising(AssertionError()), "AssertionError"),
        (raising(Reject("why")), "why"),
    ],
)
def test_a_validator_refuses_with_its_reason(side: Side, refusing: Function, reason: str) -> None:
    result = run(side, {"validator": "v"}, {}, v=refusing)
    assert (result.outcome, result.reasons) == ("rejected", (reason,))


@pytest.mark.parametrize("wrong", [{}, {"a": 1}, 1, "yes", [True], (1, 2, 3)])
def test_any_other_result_of_a_validator_is_a_failure(side: Side, wrong: Any) -> None:
    result = run(side, {"validator": "v"}, {}, v=lambda record: wrong)
    assert (result.outcome, result.phase, type(result.error)) == ("failed", "validate", FunctionResultError)


def test_a_failing_validator_stops_at_once(side: Side) -> None:
    called: list[str] = []

    def fails(record: Any) -> None:
        raise KeyError("name")

    result = run(
        side, {"validators": ["no", "fails", "later"]}, {},
        no=lambda record: False, fails=fails, later=lambda record: called.append("later"),
    )  # fmt: skip
    assert (result.outcome, type(result.error), called) == ("failed", KeyError, [])


def test_what_a_pydantic_model_says_is_a_reason(side: Side) -> None:
    class Person(BaseModel):
        age: int

    def checked(record: Any) -> None:
        Person.model_validate(record)

    result = run(side, {"validator": "checked"}, {"age": "secret"}, checked=checked)
    assert result.outcome == "rejected"
    assert result.reasons[0].startswith("age: ")
    assert "secret" not in result.reasons[0]


SCHEMA = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer"}}}


def test_a_schema_refuses_with_the_validators_of_its_phase_and_converts_nothing(side: Side) -> None:
    state = {"schema": SCHEMA, "validators": [{"type": "expression", "code": "'x' in data"}]}
    result = run(side, state, {"age": "secret"})
    assert (result.outcome, result.phase) == ("rejected", "validate")
    assert result.reasons == ("record: name missing; age: breaks type 'integer'", "\"'x' in data\" refused the record")
    assert run(side, {"schema": SCHEMA}, {"name": "n", "age": 1}).success


def test_post_validators_see_what_the_transforms_did_and_refuse(side: Side) -> None:
    state = {"transform": "t", "post_validators": ["v"]}
    result = run(side, state, {"n": 1}, t=lambda record: {"n": 2}, v=lambda record: record["n"] == 1)
    assert (result.outcome, result.phase, result.data) == ("rejected", "validate", {"n": 2})


# --- conditions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (None, False), (True, True), (False, False), ((True, "r"), True), ((False, "r"), False), ({}, False),
        ({"a": 0}, True), ([], False), ("no", True), (0, False), ((), False), (ExecutionResult(True, 1), True),
        (ExecutionResult(True, 0), False), (ExecutionResult(False, 1), False),
    ],
)  # fmt: skip
def test_a_condition_decides_by_its_truth_or_its_first_item(side: Side, given: Any, taken: bool) -> None:  # case 14
    machine = {
        "states": {"w": {"arcs": [{"target": "yes", "condition": "c"}, {"target": "no"}]}, "yes": None, "no": None}
    }
    with SimpleFSM(machine, functions={"c": lambda record: given}) as fsm:
        assert process(side, fsm, {}).path == ["w", "yes" if taken else "no"]


@pytest.mark.parametrize(("given", "path"), [((False, "r"), ["a", "b"]), (True, ["a"]), (None, ["a", "b"])])
def test_an_end_test_decides_like_a_condition(side: Side, given: Any, path: list[str]) -> None:
    machine = {"states": {"a": {"end_test": "done", "arcs": ["b"]}, "b": None}}
    with SimpleFSM(machine, functions={"done": lambda record: given}) as fsm:
        assert process(side, fsm, {}).path == path


# --- coroutines that nobody announced --------------------------------------------------------


async def answer(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("state", "value", "expected"),
    [
        ({"transform": "f"}, {"b": 2}, {"b": 2}),
        ({"transforms": ["f", "keep"]}, {"b": 2}, {"b": 2}),
        ({"transform": "f", "retry": 2}, {"b": 2}, {"b": 2}),
        ({"validator": "f"}, True, {"a": 1}),
        ({"arcs": [{"target": "e", "condition": "f"}]}, True, {"a": 1}),
        ({"end_test": "f"}, True, {"a": 1}),
        ({"arcs": [{"target": "e", "transform": "f"}]}, {"b": 2}, {"b": 2}),
    ],
)
def test_a_coroutine_of_a_plain_function_is_awaited_by_tasks_and_refused_by_threads(
    side: Side, state: dict[str, Any], value: Any, expected: Any
) -> None:
    result = run(side, state, {"a": 1}, f=lambda record: answer(value), keep=lambda record: None)
    awaited_or_refused(side, result, expected)


@pytest.mark.parametrize("transforms", [["f"], ["f", "keep"], ["keep", "f"], ["keep", "f", "more"]])
def test_such_a_coroutine_of_a_function_with_injected_values_is_treated_alike(
    side: Side, transforms: list[str]
) -> None:
    diary = Diary()

    def f(record: Any, r: Any = Provide["r"]) -> Any:
        diary.lines.append("called")
        return answer({"b": 2})

    def more(record: Any, r: Any = Provide["r"]) -> Any:
        return answer({**record, "c": 3})

    functions = {"f": f, "keep": lambda record: None, "more": more}
    machine = work_machine({"transforms": transforms})
    with SimpleFSM(machine, functions=functions, resources=diary.per_state("r")) as fsm:
        result = process(side, fsm, {"a": 1}, owner_id="job")
        assert fsm.manager.owners == {}
    awaited_or_refused(side, result, {"b": 2, "c": 3} if "more" in transforms else {"b": 2})
    assert diary.lines == ["open r", "called", "close r" + ("" if side.is_async else ": FunctionResultError")]


def awaited_or_refused(side: Side, result: RunResult, expected: Any) -> None:
    if side.is_async:
        assert (result.success, result.data) == (True, expected)
    else:
        assert isinstance(result.error, FunctionResultError)
        assert "coroutine" in str(result.error)


# --- how functions are called ------------------------------------------------------------------


def test_parameters_get_the_record_the_context_and_their_params(side: Side) -> None:
    seen: dict[str, Any] = {}

    def second_without_default(record: Any, anything: Any) -> None:
        seen["second"] = anything

    def by_name(record: Any, limit: int = 3, context: Any = None) -> None:
        seen["by_name"] = (limit, context)

    def by_annotation(record: Any, limit: int = 3, where: FunctionContext | None = None) -> None:
        seen["plain_default"] = where

    def annotated(record: Any, where: FunctionContext) -> None:
        seen["annotated"] = where

    def keyword_only(record: Any, *, ctx: Any, n: int = 1) -> None:
        seen["keyword_only"] = (ctx, n)

    def with_params(record: Any, by: int, context: Any) -> None:
        seen["params"] = (by, context)

    def nothing_more(record: Any, *args: Any, **kwargs: Any) -> None:
        seen["rest"] = (args, kwargs)

    def default_stays(record: Any, limit: int = 7) -> None:
        seen["default"] = limit

    functions = {
        function.__name__: function
        for function in (second_without_default, by_name, annotated, keyword_only, with_params, nothing_more,
                         default_stays, by_annotation)
    }  # fmt: skip
    transforms = [name if name != "with_params" else {"name": name, "params": {"by": 5}} for name in functions]
    assert run(side, {"transforms": transforms}, {}, **functions).success
    assert isinstance(seen["second"], FunctionContext)
    assert seen["by_name"][0] == 3
    assert isinstance(seen["by_name"][1], FunctionContext)
    assert isinstance(seen["annotated"], FunctionContext)
    assert isinstance(seen["keyword_only"][0], FunctionContext)
    assert seen["params"][0] == 5
    assert isinstance(seen["params"][1], FunctionContext)
    assert (seen["rest"], seen["default"], seen["keyword_only"][1]) == (((), {}), 7, 1)


def test_a_parameter_called_error_gets_the_exception_in_functions_of_catch_arcs(side: Side) -> None:
    def fails(record: Any) -> None:
        raise KeyError("gone")

    def tells(record: Any, error: Exception, context: Any) -> dict[str, Any]:
        return {"error": repr(error), "same": context.error is error}

    machine = work_machine({"transform": "fails", "on_error": {"target": "dead", "transform": "tells"}}, dead=None)
    with SimpleFSM(machine, functions={"fails": fails, "tells": tells}) as fsm:
        assert process(side, fsm, {}).data == {"error": "KeyError('gone')", "same": True}


def test_a_first_parameter_called_state_gets_a_view_of_the_record(side: Side) -> None:
    seen: list[Any] = []

    def peek(state: Any) -> None:
        seen.extend([state.data, state.name, state["a"], dict(state), len(state), "b" in state])

    assert run(side, {"transform": "peek"}, {"a": 1}, peek=peek).data == {"a": 1}
    assert seen == [{"a": 1}, "w", 1, {"a": 1}, 1, False]


def test_a_parameter_that_nothing_fills_is_a_fault_that_names_it() -> None:
    def third(record: Any, context: Any, session: Any) -> None: ...

    def keyword(record: Any, *, session: Any) -> None: ...

    for function in (third, keyword):
        with pytest.raises(BuildError, match=r"I005.*\n?.*'session'"):
            SimpleFSM(work_machine({"transform": "f"}), functions={"f": function})
    with pytest.raises(BuildError, match="takes no record"):
        SimpleFSM(work_machine({"transform": "f"}), functions={"f": lambda: None})


def test_methods_partials_callables_and_classes_are_functions_too(side: Side) -> None:
    class Adder:
        def __init__(self, by: int = 10) -> None:
            self.by = by

        def add(self, record: Any) -> dict[str, Any]:
            return {"n": record["n"] + self.by}

        def __call__(self, record: Any, context: Any) -> dict[str, Any]:
            return {"n": record["n"] * self.by}

    def plus(record: Any, by: int) -> dict[str, Any]:
        return {"n": record["n"] + by}

    functions = {
        "method": Adder(1).add, "partial": functools.partial(plus, by=2), "called": Adder(3), "made": Adder,
    }  # fmt: skip
    result = run(
        side, {"transforms": ["method", "partial", "called", {"name": "made", "params": {"by": 2}}]}, {"n": 1},
        **functions,
    )  # fmt: skip
    assert (result.error, result.data) == (None, {"n": 24})
