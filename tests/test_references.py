"""A configuration names functions; each name becomes one callable, or a fault that says what is near."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wirestate.errors import BuildError, Fault
from wirestate.machine.builders import machine, state
from wirestate.machine.builtins import BUILTINS
from wirestate.machine.config import load_machine
from wirestate.machine.definition import FunctionRef, Machine
from wirestate.machine.functions import resolve_exceptions, resolve_function
from wirestate.machine.guards import Expression

EMPTY = machine("only")
MODULE = """
class Adder:
    def __init__(self, by): self.by = by
    def transform(self, data): return {**data, "x": data["x"] + self.by}
    def test(self, data): return data["x"] > self.by
    @staticmethod
    def twice(data): return {**data, "x": 2 * data["x"]}

def add(data, *, by, db="marker"): return {**data, "x": data["x"] + by}

class Boom(Exception): pass
number = 3
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "steps_under_test.py").write_text(MODULE)
    (tmp_path / "broken_under_test.py").write_text("raise RuntimeError('at import')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "steps_under_test"
    sys.modules.pop("steps_under_test", None)


def resolved(ref: FunctionRef, given: dict[str, Any] | None = None, made: Machine = EMPTY, **options: Any) -> Any:
    return resolve_function(ref, given=given or {}, machine=made, **options)


def fault_of(ref: FunctionRef, *args: Any, **options: Any) -> Fault:
    with pytest.raises(BuildError) as caught:
        resolved(ref, *args, **options)
    (fault,) = caught.value.faults
    return fault


def transform_of(written: Any, **keys: Any) -> FunctionRef:
    made = load_machine({"states": {"s": {"transform": written}}, **keys})
    return made.main.states["s"].transforms[0]


def condition_of(written: Any, **options: Any) -> FunctionRef:
    made = load_machine({"states": {"a": {"arcs": [{"target": "b", "condition": written}]}, "b": None}}, **options)
    ref = made.main.states["a"].arcs[0].condition
    assert ref is not None
    return ref


def test_given_functions_come_before_the_machines_and_those_before_built_ins() -> None:
    made = load_machine({"states": ["s"], "functions": {"strip": "lower", "mine": "upper"}})
    ref = FunctionRef("name", "strip")
    given = {"strip": lambda record: record}
    assert resolved(ref, given, made) is given["strip"]
    assert resolved(ref, {}, made) is BUILTINS["lower"]
    assert resolved(ref) is BUILTINS["strip"]
    assert resolved(FunctionRef("name", "mine"), {}, made) is BUILTINS["upper"]


def test_a_machines_function_may_not_shadow_a_given_one() -> None:
    with pytest.raises(BuildError, match="ShadowedFunction"):
        load_machine({"states": ["s"], "functions": {"f": "lower"}}, given=["f"])


def test_an_unknown_function_names_the_nearest_and_its_place() -> None:
    fault = fault_of(transform_of("clena"), {"clean": print})
    assert (fault.kind, fault.code) == ("UnknownFunction", "M030")
    assert "Did you mean 'clean'?" in fault.help


def test_a_name_that_leads_to_itself_is_unknown() -> None:
    made = load_machine({"states": ["s"], "functions": {"aa": "bb", "bb": "aa"}})
    assert "names itself" in fault_of(FunctionRef("name", "aa"), {}, made).message


def test_imports_find_functions_methods_and_classes(steps: str) -> None:
    assert resolved(transform_of(f"{steps}:Adder.twice"))({"x": 2}) == {"x": 4}
    ref = transform_of({"type": "custom", "module": steps, "name": "add", "params": {"by": 3}})
    add = resolved(ref)
    assert add({"x": 1}) == {"x": 4}
    assert inspect.signature(add).parameters["db"].default == "marker"
    adder = transform_of({"name": f"{steps}:Adder", "params": {"by": 5}})
    assert resolved(adder)({"x": 1}) == {"x": 6}
    assert resolved(adder, role="condition")({"x": 6}) is True


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("steps_under_test:ad", "ImportFailed", "has no 'ad'"),
        ("steps_under_test:Adder.twise", "ImportFailed", "has no 'twise'"),
        ("no_such_module_here:f", "ImportFailed", "ModuleNotFoundError"),
        ("broken_under_test:f", "ImportFailed", "RuntimeError: at import"),
        ("steps_under_test:number", "UnknownFunction", "is int"),
        ("steps_under_test:Adder", "WrongParams", "cannot be made"),
    ],
)
@pytest.mark.usefixtures("steps")
def test_what_cannot_be_imported_is_named(name: str, kind: str, message: str) -> None:
    fault = fault_of(transform_of(name))
    assert fault.kind == kind
    assert message in fault.message


def test_imports_can_be_limited(steps: str) -> None:
    ref = transform_of(f"{steps}:Adder.twice")
    assert fault_of(ref, imports=["other."]).kind == "ImportRefused"
    assert fault_of(ref, imports=[steps[:-1]]).kind == "ImportRefused"
    assert resolved(ref, imports=[f"{steps}."])({"x": 1}) == {"x": 2}


def test_a_wrong_parameter_names_the_nearest(steps: str) -> None:
    fault = fault_of(transform_of({"name": f"{steps}:add", "params": {"bye": 1}}))
    assert fault.kind == "WrongParams"
    assert "Did you mean 'by'?" in fault.help


def test_a_condition_is_a_name_an_import_or_an_expression() -> None:
    assert condition_of("is_ready") == FunctionRef("name", "is_ready")
    assert condition_of("pkg.mod:ready").kind == "import"
    assert condition_of(True).code == "True"
    ref = condition_of("data.x > 1")
    ready = resolved(ref, role="condition")
    assert isinstance(ready, Expression)
    assert ready({"x": 2}) is True
    assert condition_of("is-ready", given=["is-ready"]).kind == "name"
    assert condition_of(print).call is print


@pytest.mark.parametrize(
    ("code", "truth"),
    [
        ("lambda x: x['a'] > 1", True),
        ("lambda x, c: x.a + c.visit == 3", True),
        ("lambda state: state.data['a'] == 2", True),
        ("data.a == 1", False),
    ],
)
def test_inline_conditions_are_taken_as_safe_expressions(code: str, truth: bool) -> None:
    ready = resolved(condition_of({"type": "inline", "code": code}), role="condition")
    assert isinstance(ready, Expression)
    assert ready({"a": 2}) is truth


def test_inline_code_runs_only_if_it_is_allowed() -> None:
    written = {"type": "inline", "code": "lambda data: {**data, 'x': 1}"}
    with pytest.raises(BuildError, match="allow_inline_code=True"):
        transform_of(written)
    made = load_machine({"states": {"s": {"transform": [written, "dict(data, y=2)"]}}}, allow_inline_code=True)
    first, second = (resolved(ref) for ref in made.main.states["s"].transforms)
    assert first({}) == {"x": 1}
    assert second({"z": 3}, None) == {"z": 3, "y": 2}
    with pytest.raises(BuildError, match="one expression or one lambda"):
        load_machine({"states": {"s": {"transform": "import os; os.abort()"}}}, allow_inline_code=True)


def test_a_bad_expression_points_at_its_column(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("states:\n  a:\n    arcs:\n      - {target: b, when: \"data.pop('x')\"}\n  b:\n")
    with pytest.raises(BuildError) as caught:
        load_machine(path)
    (fault,) = caught.value.faults
    assert (fault.kind, fault.line, fault.column) == ("BadExpression", 4, 33)
    assert fault.help == ("data.pop('x')", "     ^")


def test_exceptions_of_a_retry_are_found(steps: str) -> None:
    def of(*paths: str) -> tuple[type[Exception], ...]:
        made = machine(state("s", retry={"attempts": 2, "on": list(paths)}))
        return resolve_exceptions(made.main.states["s"])

    boom = of(f"{steps}.Boom", "ValueError", f"{steps}:Boom")
    assert [kind.__name__ for kind in boom] == ["Boom", "ValueError", "Boom"]
    with pytest.raises(BuildError, match="no Exception class"):
        of(f"{steps}:add")
    with pytest.raises(BuildError, match="no Exception class"):
        of("KeyboardInterrupt")


@pytest.mark.parametrize(
    ("name", "params", "record", "result"),
    [
        ("required", {"fields": ["a", "b"]}, {"a": ""}, (False, "missing: a, b")),
        ("required", {"fields": ["a"]}, {"a": 0}, (True, "")),
        ("in_range", {"field": "a", "minimum": 1, "maximum": 3}, {"a": 4}, (False, "a is above 3")),
        ("in_range", {"field": "a", "minimum": 1}, {"a": 0}, (False, "a is below 1")),
        ("one_of", {"field": "a", "values": ["x"]}, {"a": "y"}, (False, "a is none of 'x'")),
        ("matches", {"field": "a", "pattern": "[0-9]+"}, {"a": "12x"}, (False, "a does not match '[0-9]+'")),
        ("has_type", {"field": "a", "type": "integer"}, {"a": True}, (False, "a is no integer")),
        ("has_type", {"field": "a", "type": "mapping"}, {"a": {}}, (True, "")),
        ("has_length", {"field": "a", "minimum": 2}, {"a": "x"}, (False, "a has length 1")),
        ("keep", {"fields": ["a", "z"]}, {"a": 1, "b": 2}, {"a": 1}),
        ("drop", {"fields": ["a"]}, {"a": 1, "b": 2}, {"b": 2}),
        ("rename", {"fields": {"a": "z"}}, {"a": 1, "b": 2}, {"z": 1, "b": 2}),
        ("set_fields", {"values": {"a": 2}}, {"a": 1}, {"a": 2}),
        ("defaults", {"values": {"a": 2, "b": 3}}, {"a": 1, "b": None}, {"a": 1, "b": 3}),
        ("replace", {"field": "a", "values": {"y": True}}, {"a": "y"}, {"a": True}),
        ("strip", {}, {"a": " x ", "b": 1}, {"a": "x", "b": 1}),
        ("lower", {"fields": ["a"]}, {"a": "X", "b": "X"}, {"a": "x", "b": "X"}),
        ("upper", {"fields": ["a"]}, {"a": "x"}, {"a": "X"}),
        (
            "convert",
            {"types": {"a": "integer", "b": "number", "c": "boolean", "d": "text", "e": "integer"}},
            {"a": "1", "b": "1.5", "c": "Yes", "d": 4, "e": ""},
            {"a": 1, "b": 1.5, "c": True, "d": "4", "e": None},
        ),
    ],
)
def test_a_built_in_does_what_its_name_says(name: str, params: Any, record: Any, result: Any) -> None:
    before = dict(record)
    ref = transform_of({"type": "builtin", "name": name, "params": params})
    assert resolved(ref)(record) == result
    assert record == before


@pytest.mark.parametrize(("types", "message"), [({"a": "integer"}, "a is no integer"), ({"a": "date"}, "is no type")])
def test_a_conversion_that_fails_names_the_field_and_not_the_value(types: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BUILTINS["convert"]({"a": "secret"}, types=types)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("in_range", {"field": "a", "minimum": "low"}, "'in_range': parameter 'minimum': should be a valid number"),
        ("in_range", {"field": "a", "maximum": True}, "'in_range': parameter 'maximum': should be a valid number"),
        ("required", {"fields": "a"}, "'required': parameter 'fields': 'str' instances are not allowed"),
        ("has_type", {"field": "a", "type": "nummer"}, "'has_type': parameter 'type': should be 'text', 'number'"),
        ("convert", {"types": {"a": "date"}}, "'convert': parameter 'types.a': should be 'text', 'integer'"),
    ],
)
def test_a_parameter_of_a_built_in_has_its_type(name: str, params: dict[str, Any], message: str) -> None:
    made = load_machine({"states": ["s"], "functions": {"mine": name}})
    for ref in (FunctionRef("name", name, params=params), FunctionRef("name", "mine", params=params)):
        fault = fault_of(ref, {}, made)
        assert (fault.kind, fault.code) == ("WrongParams", "M035")
        assert message.partition(":")[2] in fault.message


def test_a_variable_may_stand_for_a_number_in_the_parameters_of_a_built_in() -> None:
    ref = FunctionRef("name", "in_range", params={"field": "a", "minimum": "3", "maximum": 5})
    assert resolved(ref)({"a": 2}) == (False, "a is below 3.0")
    assert resolved(ref)({"a": 6}) == (False, "a is above 5")
