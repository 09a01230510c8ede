"""One machine is one definition, whatever shape it was written in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from wirestate.machine.builders import arc, machine, state
from wirestate.machine.config import load_machine
from wirestate.machine.definition import Machine, RetryPolicy

NESTED = """
name: orders
timeout: 5
resources: [db]
networks:
  - name: main
    initial_state: take
    states:
      - name: take
        is_start: true
        resources: [db]
        functions: {transform: strip, validate: {type: builtin, name: required, params: {fields: [id]}}}
        arcs:
          - {target: big, condition: data.amount > 100, priority: 2}
          - {to: done}
      - name: big
        retry: {attempts: 3, on: [ValueError]}
        transform: [pkg.steps:check]
        on_error: dead
        on_complete: done
      - name: done
        end: true
      - {name: dead, final: true, outcome: failure}
"""
FLAT_LIST = """
name: orders
timeout_seconds: 5
resources: [{name: db}]
states:
  - name: take
    start: true
    resources: [{name: db, required: true}]
    transforms: [strip]
    validators: {name: required, params: {fields: [id]}}
  - name: big
    retry: {attempts: 3, on: ValueError}
    transforms: pkg.steps:check
  - {name: done, is_end: true}
  - {name: dead, is_end: true, outcome: failure}
arcs:
  - {from: take, to: big, when: data.amount > 100, priority: 2}
  - {from: take, target: done}
  - {from: big, to: done}
  - {from: big, to: dead, catch: error}
"""
FLAT_MAPPING: dict[str, Any] = {
    "name": "orders",
    "timeout": 5.0,
    "resources": {"db": None},
    "initial_state": "take",
    "states": {
        "take": {
            "initial": True,
            "resources": ["db"],
            "transform": {"type": "builtin", "name": "strip"},
            "validator": [{"type": "builtin", "name": "required", "params": {"fields": ["id"]}}],
            "arcs": [
                {"target": "big", "pre_test": {"test": "data.amount > 100"}, "priority": 2},
                "done",
            ],
        },
        "big": {
            "retry": {"attempts": 3, "on": ["ValueError"]},
            "transform": {"type": "custom", "module": "pkg.steps", "name": "check"},
            "arcs": ["done"],
            "on_error": [{"target": "dead"}],
        },
        "done": {"is_end": True},
        "dead": {"is_end": True, "outcome": "failure"},
    },
}  # fmt: skip


def built() -> Machine:
    required = {"name": "required", "params": {"fields": ["id"]}}
    return machine(
        state(
            "take",
            start=True,
            resources=["db"],
            transforms="strip",
            validators=required,
            arcs=[arc("big", when="data.amount > 100", priority=2), "done"],
        ),
        state(
            "big",
            retry={"attempts": 3, "on": "ValueError"},
            transforms="pkg.steps:check",
            arcs=[arc("done")],
            on_error=arc("dead"),
        ),
        state("done", end=True),
        state("dead", end=True, outcome="failure"),
        name="orders",
        timeout=5,
        resources=["db"],
    )


def test_four_shapes_are_one_definition(tmp_path: Path) -> None:
    (tmp_path / "nested.yaml").write_text(NESTED)
    (tmp_path / "flat.yml").write_text(FLAT_LIST)
    (tmp_path / "flat.json").write_text(json.dumps(FLAT_MAPPING, indent="\t"))
    nested, flat, by_json = (load_machine(tmp_path / name) for name in ("nested.yaml", "flat.yml", "flat.json"))
    assert nested == flat == by_json == load_machine(FLAT_MAPPING) == built()
    assert nested.main.states["big"].retry == RetryPolicy(3, on=("ValueError",))


def test_a_machine_passes_through_as_it_is_and_travels_to_another_process() -> None:
    made = built()
    assert load_machine(made) is made
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_definition_is_frozen() -> None:
    with pytest.raises(AttributeError):
        built().main.states["take"].is_end = True  # type: ignore[misc]


def test_builders_take_functions_and_exceptions_as_objects() -> None:
    def work(record: dict[str, Any]) -> None: ...

    made = machine(state("a", transforms=[work], retry={"attempts": 2, "on": [KeyError]}))
    only = made.main.states["a"]
    assert [ref.call for ref in only.transforms] == [work]
    assert only.retry is not None
    assert only.retry.on == ("builtins:KeyError",)


def test_own_arcs_come_before_outer_ones() -> None:
    made = machine(
        state("a", arcs=[arc("b", when="data.x", name="own")]),
        state("b"),
        arcs=[arc("b", source="a", name="outer")],
    )
    assert [arc.name for arc in made.main.states["a"].arcs] == ["own", "outer"]


def test_the_guides_configuration_is_start_and_end_at_once() -> None:
    made = load_machine(
        {
            "networks": [
                {
                    "name": "main",
                    "resources": ["database", "filesystem"],
                    "states": [
                        {
                            "name": "process_data",
                            "resources": ["database"],
                            "functions": {"transform": {"type": "custom", "name": "process_with_db"}},
                        }
                    ],
                }
            ]
        }
    )
    only = made.main.states["process_data"]
    assert (only.is_start, only.is_end, made.start) == (True, True, "process_data")
    assert [note.kind for note in made.notes] == ["UnusedResource"]


@pytest.mark.parametrize(
    ("states", "start", "noted"),
    [
        ({"a": {"arcs": ["b"]}, "b": {"is_start": True, "arcs": ["a", "c"]}, "c": None}, "b", False),
        ({"a": {"arcs": ["b", "a"]}, "b": None}, "a", False),
        ({"red": {"arcs": ["green"]}, "green": {"arcs": ["red"], "end_test": "matches"}}, "red", True),
        ({"x": {"arcs": ["start", "e"]}, "start": {"arcs": ["x"]}, "e": None}, "start", True),
        ({"a": {"is_start": True, "arcs": ["c"]}, "b": {"is_start": True, "arcs": ["c"]}, "c": None}, "a", False),
    ],
)
def test_the_start_is_flagged_or_inferred(states: dict[str, Any], start: str, noted: bool) -> None:
    made = load_machine({"states": states})
    assert made.start == start
    assert ("InferredStart" in [note.kind for note in made.notes]) is noted


def test_initial_state_of_the_machine_starts_the_main_network() -> None:
    back = {"target": "a", "when": "data.again"}
    networks = {
        "one": {"states": ["s"]},
        "main": {"states": {"a": {"arcs": ["b"]}, "b": {"arcs": [back, "c"]}, "c": {}}},
    }
    made = load_machine({"networks": networks, "initial_state": "b"})
    assert (made.main_network, made.start) == ("main", "b")
    assert [note.kind for note in made.notes] == ["UnusedNetwork"]


def test_an_arc_behind_an_unconditional_one_is_noted() -> None:
    made = machine(
        state(
            "a", arcs=[arc("b", when="data.x"), arc("b"), arc("c", when="data.y"), arc("c", priority=1, when="data.z")]
        ),
        "b",
        "c",
    )
    assert [(note.kind, "a -> c" in note.message) for note in made.notes] == [("NeverTaken", True)]


def test_reading_grows_with_the_number_of_states_only() -> None:
    many = {f"s{n}": {"arcs": [f"s{n + 1}"]} for n in range(1_000)}
    assert len(load_machine({"states": {**many, "s1000": None}}).main.states) == 1_001
