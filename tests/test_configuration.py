"""Whatever is wrong in a configuration stops the build, with its place and the nearest right word."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from wirestate import SimpleFSM
from wirestate.errors import BuildError, Fault
from wirestate.machine.config import load_machine
from wirestate.machine.refusals import REFUSED_KEYS

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str, name: str = "machine.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return written


def faults(source: Any, **options: Any) -> tuple[Fault, ...]:
    with pytest.raises(BuildError) as caught:
        load_machine(source, **options)
    return caught.value.faults


def kinds(source: Any, **options: Any) -> list[str]:
    return [fault.kind for fault in faults(source, **options)]


def one(state: Mapping[str, Any], **machine: Any) -> dict[str, Any]:
    """Return a machine of one state."""
    return {"states": {"s": dict(state)}, **machine}


def test_one_report_holds_every_fault_with_its_place(write: Write) -> None:
    path = write(
        "states:\n"
        "  - name: s\n"
        "    transfroms: [strip]\n"
        "    arcs:\n"
        "      - {target: loda}\n"
        "  - {name: load, arcs: [e]}\n"
        "  - name: lost\n"
        "    arcs: [e]\n"
        "  - name: e\n"
    )
    found = faults(path)
    assert [(fault.kind, fault.line, fault.column) for fault in found] == [
        ("UnknownKey", 3, 5),
        ("UnknownState", 5, 18),
        ("Unreachable", 7, 5),
    ]
    assert "Did you mean 'transforms'?" in found[0].help
    assert "Did you mean 'load'?" in found[1].help
    assert found[0].file == str(path)


def test_two_spellings_of_one_value_name_both_lines(write: Write) -> None:
    (fault,) = faults(write("states:\n  s:\n    transform: strip\n    functions:\n      transform: lower\n"))
    assert fault.kind == "TwoSpellings"
    assert "lines 3 and 5" in fault.message


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        ("states: {a: {}}\nstates: {b: {}}\n", "DuplicateKey", (2, 1)),
        ("states: [a]\n---\nstates: [b]\n", "Unreadable", (3, 1)),
        ("states: [a\n", "Unreadable", (2, 1)),
        ("states:\n  - name: a\n  - name: a\n", "DuplicateName", (3, 5)),
        ("states: [a]\nname: !!python/name:os.system ''\n", "WrongValue", (2, 7)),
        ("states: [a]\n1: b\n", "WrongValue", (2, 1)),
        ("states: [a]\ntimeout: !!int abc\n", "WrongValue", (2, 10)),
        ("states: [a]\nversion: 1.10\n", "WrongValue", (2, 10)),
        ("- a\n", "Unreadable", (1, 1)),
        ("states:\n  a: {is_end: 'yes'}\n", "WrongValue", (2, 15)),
        ("states: [a]\nmax_transitions: 0\n", "WrongValue", (2, 18)),
        ("states: [a]\ntimeout: -1\n", "WrongValue", (2, 10)),
        ("states: [a]\ndata_mode: refrence\n", "WrongValue", (2, 12)),
        ("states: [a]\ndata_mode: {default: copy, state_overrides: {b: direct}}\n", "UnknownState", (2, 12)),
        ("states:\n  a: {retry: {attemps: 3}}\n", "UnknownKey", (2, 15)),
        ("states:\n  a: !!python/object:os.system {}\n", "WrongValue", (2, 6)),
        ("states:\n  a: {transforms: !mine [strip]}\n", "WrongValue", (2, 19)),
        ("states:\n  a: {metadata: !!set {x}}\n", "WrongValue", (2, 17)),
    ],
)
def test_a_wrong_text_is_one_fault_at_its_place(write: Write, text: str, kind: str, place: tuple[int, int]) -> None:
    assert [(fault.kind, fault.line, fault.column) for fault in faults(write(text))] == [(kind, *place)]


def test_json_faults_have_places_too(write: Write) -> None:
    (fault,) = faults(write('{\n\t"states": {"a": {"is_ned": true, "metadata": {"x": "\\ud83d\\ude00"}}}\n}', "m.json"))
    assert (fault.kind, fault.line, fault.column) == ("UnknownKey", 2, 19)
    assert kinds(write('{"states": [1,]}', "n.json")) == ["Unreadable"]


def test_core_tags_may_be_written(write: Write) -> None:
    load_machine(
        write("states: !!map\n  a: !!map {transforms: !!seq [strip], timeout: !!int 3, metadata: {x: !!str 1}}\n")
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("timeout", -1, "'timeout' is not above zero: -1"),
        ("timeout", "x", "'timeout' must be a number above zero, not text"),
        ("max_transitions", 0, "'max_transitions' is less than 1: 0"),
        ("max_transitions", 1.5, "'max_transitions' must be a whole number, at least 1, not a number"),
    ],
)
def test_a_wrong_number_says_what_is_wrong_with_it(key: str, value: Any, message: str) -> None:
    (fault,) = faults(one({}, **{key: value}))
    assert fault.message == f"the machine: {message}"


def test_a_file_that_is_no_text_is_not_taken_for_a_misspelt_name(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_bytes(b"states: [\xff]")
    (fault,) = faults(tmp_path / "m.yaml")
    assert (fault.message.rpartition(": ")[2], fault.help) == ("it is not UTF-8 text", ())


@pytest.mark.parametrize("name", ["none.yaml", "machine.toml"])
def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path, name: str) -> None:
    assert kinds(tmp_path / name) == ["Unreadable"]


@pytest.mark.parametrize(
    ("machine", "kind"),
    [
        ({"states": {"a": {"arcs": ["b"]}, "b": {"arcs": ["a"]}}}, "NoWayOut NoWayOut"),
        ({"states": {"a": {"is_end": False}}}, "DeadEndState"),
        ({"states": {"a": {"is_end": True, "arcs": ["b"]}, "b": {"is_end": True}}}, "EndGoesOn"),
        ({"states": {"a": {"is_end": True, "end_test": "required"}}}, "EndGoesOn"),
        ({"states": ["a"], "initial_state": "b"}, "UnknownState"),
        (
            {"states": {"a": {"is_start": True, "arcs": ["b"]}, "b": None}, "initial_state": "b"},
            "StartContradicted",
        ),
        ({"states": ["a"], "arcs": [{"from": "x", "to": "a"}]}, "UnknownState"),
        ({"states": {}}, "MissingKey"),
        ({"name": "x"}, "MissingKey"),
        ({"networks": []}, "MissingKey"),
        ({"networks": {"x": {"states": ["a"]}, "y": {"states": ["a"]}}}, "UnknownNetwork"),
        ({"networks": {"x": {"states": ["a"]}}, "main_network": "y"}, "UnknownNetwork"),
        ({"networks": [{"states": ["a"]}]}, "MissingKey"),
        ({"states": {"a": {"outcome": "failure", "arcs": ["b"]}, "b": None}}, "WrongValue"),
        ({"states": {"a": {"arcs": [{"target": "b", "catch": "eror"}]}, "b": None}}, "WrongValue"),
        ({"states": ["a"], "resources": ["db", "db"]}, "DuplicateName"),
        ({"states": ["a"], "resources": {"db": {"type": "databse"}}}, "WrongValue"),
        ({"states": ["a"], "resources": {"db": {"host": "h"}}}, "MissingKey"),
    ],
)
def test_a_graph_that_cannot_work_is_refused(machine: dict[str, Any], kind: str) -> None:
    assert " ".join(kinds(machine)) == kind


def test_a_state_with_an_end_test_counts_as_an_end() -> None:
    made = load_machine({"states": {"a": {"arcs": ["b"]}, "b": {"arcs": ["a"], "end_test": "required"}}})
    assert made.start == "a"


# --- what is refused ---------------------------------------------------------------------

ROWS: list[tuple[dict[str, Any], str]] = [
    (one({"transform": {"type": "inline", "code": "data"}}), "allow_inline_code=True"),
    (one({"transform": {"code": "lambda d: d"}}), "allow_inline_code=True"),
    (one({"transform": "dict(data, x=1)"}), "allow_inline_code=True"),
    (one({"validator": {"type": "inline", "code": "import os"}}), "allow_inline_code=True"),
    (one({"validator": "data.x > 1"}), "allow_inline_code=True"),
    (one({}, transaction={"strategy": "batch"}), "use 'commit: run' or 'commit: 500'"),
    (one({"run_on_failure": True}), "give the failing state an 'on_error' arc"),
    (one({}, streaming={"chunk_size": 10}), "process_stream()"),
    (one({}, execution={"batch_size": 10}), "process_batch()"),
    (one({}, template="etl"), "nothing reads it"),
    (one({}, templates=["etl"]), "nothing reads them"),
    (one({"copy_config": {}}), "'data_mode' chooses"),
    (one({"reference_config": {}}), "'data_mode' chooses"),
    (one({"direct_config": {}}), "'data_mode' chooses"),
    (one({}, execution_strategy="breadth_first"), "only 'depth_first' is built"),
    (one({}, resources=[{"name": "v", "type": "vector_store"}]), "declare a 'custom' resource"),
    (
        {"states": {"a": {"arcs": [{"target": "b", "condition": "success"}]}, "b": None}},
        "write \"data.get('valid', True)\"",
    ),
    (
        {"states": {"a": {"arcs": [{"target": "b", "condition": "failure"}]}, "b": None}},
        "write \"not data.get('valid', True)\"",
    ),
    (one({"validator": {"type": "builtin", "name": "validators.required_fields"}}), "nearest of ours is 'required'"),
    (one({"transform": "transformers.map_fields"}), "nearest of ours is 'rename'"),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "message"), ROWS)
def test_what_others_would_ignore_or_run_is_refused(machine: dict[str, Any], message: str) -> None:
    (fault,) = faults(machine)
    assert (fault.kind, fault.code) == ("Refused", "M050")
    assert message in fault.message


def test_every_refused_key_has_a_test() -> None:
    said = {key for machine, _ in ROWS for part in (machine, *machine["states"].values()) for key in part or {}}
    assert REFUSED_KEYS.keys() <= said


def test_what_happens_anyway_may_be_said() -> None:
    load_machine(one({"run_on_failure": False}, execution_strategy="depth_first"))


@pytest.mark.parametrize(
    "machine",
    [
        one({}, commit="run"),
        one({}, commit=500),
        one({"commit": "run"}),
        {"states": {"a": {"arcs": [{"target_network": "sub", "return_state": "b"}, "b"]}, "b": None}},
        {"states": {"a": {"arcs": ["b"]}, "b": None}, "arcs": [{"from": "a", "to": "b", "target_network": "sub"}]},
    ],
)
def test_what_a_later_version_brings_is_said_clearly(machine: dict[str, Any]) -> None:
    (fault,) = faults(machine)
    assert (fault.kind, fault.code) == ("NotAvailable", "M090")
    assert "later version" in fault.help[0]


# --- variables and includes --------------------------------------------------------------


def test_variables_are_filled_into_texts_and_numbers() -> None:
    text = "${A} ${B:-b} ${C:c} $${D} ${EMPTY:-full} $5"
    made = load_machine(
        one({"metadata": {"x": text}, "offload": "${YES}"}, max_transitions="${N}", timeout="${T:-0.5}"),
        environ={"A": "a", "EMPTY": "", "N": "7", "YES": "true"},
    )
    state = made.main.states["s"]
    assert state.metadata == {"x": "a b c ${D} full $5"}
    assert (made.max_transitions, made.timeout, state.offload) == (7, 0.5, True)


def test_missing_variables_are_named_together_and_no_value_is_printed() -> None:
    machine = one({"metadata": {"x": "${ABSENT} ${KEY:?the key of the shop}"}}, data_mode="${MODE}")
    found = faults(machine, environ={"MODE": "hunter2", "ABSENTE": "hunter3"})
    assert [fault.code for fault in found] == ["S001", "S001", "M005"]
    report = "\n".join(map(str, found))
    assert "ABSENT " in report
    assert "the key of the shop" in report
    assert "Did you mean 'ABSENTE'?" in report
    assert "hunter" not in report


@pytest.mark.parametrize(
    "machine",
    [
        {"states": {"a": {"resources": ["${SECRET}"]}}},
        {"states": {"a": None}, "initial_state": "${SECRET}"},
        {"states": {"a": None}, "main_network": "${SECRET}"},
        {"states": {"a": {"arcs": [{"target": "${SECRET}"}]}}},
        {"states": ["${SECRET}", "${SECRET}"]},
        {"states": {"a": {"arcs": [{"from": "${SECRET}", "to": "a"}]}}},
        {"states": {"a": {"transform": "${SECRET}"}}},
        {"states": {"a": {"transform": "${SECRET}:x"}}},
        {"states": {"a": {"transform": "os:${SECRET}"}}},
        {"states": {"a": {"transform": {"module": "${SECRET}", "name": "x"}}}},
        {"states": {"a": {"retry": {"on": ["a.${SECRET}"]}}}},
        {"states": {"a": {"schema": "${SECRET}:Model"}}},
        {"states": {"a": None}, "resources": {"r": {"class": "${SECRET}:x"}}},
        {"states": {"a": None}, "resources": [{"name": "${SECRET}"}, {"name": "${SECRET}"}]},
    ],
)
def test_a_name_from_a_variable_is_shown_as_it_was_written(
    machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "sesame")
    with pytest.raises(BuildError) as caught:
        SimpleFSM(machine)
    assert "${SECRET}" in str(caught.value)
    assert "sesame" not in "".join(traceback.format_exception(caught.value))


def test_an_included_file_from_a_variable_is_shown_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "sesame.yaml").write_text("states: {a: {tmeout: 1}}")
    for text in ("$include: '${FILE}.yaml'", "$include: '../${FILE}.yaml'", "$include: 'no/${FILE}.yaml'"):
        (tmp_path / "m.yaml").write_text(text)
        with pytest.raises(BuildError) as caught:
            load_machine(tmp_path / "m.yaml", environ={"FILE": "sesame"})
        assert "${FILE}" in str(caught.value)
        assert "sesame" not in str(caught.value)


def test_what_a_variable_gives_to_a_function_is_plain_text() -> None:
    machine = load_machine(one({"metadata": {"x": "${A}"}}), environ={"A": "a"})
    assert repr(machine.networks["main"].states["s"].metadata) == "{'x': 'a'}"


@pytest.mark.parametrize("text", ["${A:-" * 40_000, "${B}" * 40_000, "${" * 40_000, "${A" + "a" * 400_000])
def test_a_text_full_of_variables_is_read_in_time(text: str) -> None:
    began = time.thread_time()  # of this thread alone, however busy the machine is
    found = faults(one({"metadata": {"x": text}}), environ={})
    assert len(found) == 1
    assert time.thread_time() - began < 2


@pytest.mark.parametrize("text", ["states: " + "[" * 5_000, "- " * 5_000 + "a", "states: " + "{a: " * 5_000])
def test_a_file_that_is_nested_deep_is_refused_in_time(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    began = time.thread_time()  # of this thread alone, however busy the machine is
    with pytest.raises(BuildError, match="nested deeper than 100"):
        load_machine(tmp_path / "m.yaml")
    assert time.thread_time() - began < 5


def test_a_file_may_not_be_longer_than_anybody_writes(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("#" * 2_000_001)
    with pytest.raises(BuildError, match="longer than 2000000 characters"):
        load_machine(tmp_path / "m.yaml")


def test_a_bad_expression_shows_the_variable_and_not_its_value() -> None:
    machine = {"states": {"a": {"arcs": [{"target": "b", "when": "data.x == ${SECRET}"}]}, "b": None}}
    (fault,) = faults(machine, environ={"SECRET": "x = 'hunter2'"})
    assert "${SECRET}" in str(fault)
    assert "hunter2" not in str(fault)


def test_local_keys_win_over_included_ones_and_lists_are_replaced(write: Write) -> None:
    write("metadata: {a: 1, b: {c: 2, d: [1, 2]}}\nstates: [s]\n", "shared.yaml")
    write("deep: {meta: {e: 5}}\n", "parts/more.json".replace(".json", ".yml"))
    made = load_machine(
        write("$include: shared.yaml\nmetadata:\n  $import: {file: parts/more.yml, path: deep.meta}\n  b: {d: [3]}\n")
    )
    assert made.metadata == {"a": 1, "b": {"c": 2, "d": [3]}, "e": 5}


def test_an_import_may_stand_for_a_whole_list(write: Write) -> None:
    write("common: {states: [a]}\n", "parts.yaml")
    made = load_machine(write("states:\n  $import: {file: parts.yaml, path: common.states}\n"))
    assert list(made.main.states) == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$include: ../outside.yaml\nstates: [a]\n", "leaves the folder"),
        ("$include: link.yaml\nstates: [a]\n", "leaves the folder"),
        ("$include: loop.yaml\nstates: [a]\n", "includes itself"),
        ("$import: {file: ok.yaml, path: a.c}\nstates: [a]\n", "there is no 'c'"),
        ("$import: ok.yaml\nstates: [a]\n", "takes a file and a path"),
    ],
)
def test_an_include_that_may_not_be_is_refused(write: Write, text: str, message: str) -> None:
    outside = write("states: [a]\n", "outside.yaml")
    path = write(text, "inside/machine.yaml")
    write("$include: machine.yaml\n", "inside/loop.yaml")
    write("a: {b: 1}\n", "inside/ok.yaml")
    (path.parent / "link.yaml").symlink_to(outside)
    found = [fault for fault in faults(path) if fault.kind == "IncludeRefused"]
    assert message in found[0].message


def test_a_cycle_prints_its_chain_and_config_root_widens_the_folder(write: Write) -> None:
    a = write("$include: b.yaml\nstates: [s]\n", "in/a.yaml")
    write("$include: a.yaml\n", "in/b.yaml")
    assert "Chain: a.yaml -> b.yaml -> a.yaml" in faults(a)[0].help
    write("metadata: {x: 1}\n", "shared.yaml")
    wide = write("$include: ../shared.yaml\nstates: [s]\n", "in/c.yaml")
    assert load_machine(wide, config_root=a.parent.parent).metadata == {"x": 1}


def test_aliases_that_explode_are_refused(write: Write) -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))]
    assert kinds(write("\n".join(lines))) == ["Unreadable"]


def test_merge_keys_work_and_own_keys_win(write: Write) -> None:
    made = load_machine(
        write(
            "states:\n  a: &a {metadata: {x: 1}, timeout: 3, arcs: [b]}\n"
            "  b:\n    <<: *a\n    timeout: 4\n    arcs: []\n"
        )
    )
    assert (made.main.states["b"].metadata, made.main.states["b"].timeout) == ({"x": 1}, 4.0)


# --- resources ---------------------------------------------------------------------------


def test_resources_in_all_their_forms() -> None:
    made = load_machine(
        one(
            {"resources": {"store": "db"}},
            resources=[
                "plain",
                {"name": "db", "url": "sqlite:///x", "connection_pool_size": 4, "timeout_seconds": 2},
                {"name": "more", "kind": "http", "base_url": "http://y", "creation_attempts": 2, "creation_delay": 3},
                {"name": "inner", "config": {"kind": "http", "base_url": "http://z"}},
                {"name": "api", "type": "http", "config": {"base_url": "http://x"}, "retry_attempts": 3,
                 "retry_delay_seconds": 0.5, "health_check_interval": 30, "lifetime": "per_owner"},
                {"name": "mine", "config": {"class": "pkg.mod:Mine", "host": "h"}},
                {"name": "files", "base_path": "."},
                {"name": "consts", "data": {"a": 1}},
            ],
        )
    )  # fmt: skip
    by_name = {made.name: made for made in made.resources}
    assert {name: found.kind for name, found in by_name.items()} == {
        "plain": None, "db": "database", "more": "http", "inner": "http",
        "api": "http", "mine": "custom", "files": "filesystem", "consts": "values",
    }  # fmt: skip
    assert by_name["db"].pool == {"max_size": 4, "acquire_timeout": 2.0}
    assert by_name["db"].config == {"url": "sqlite:///x"}
    assert (by_name["api"].creation_attempts, by_name["api"].creation_delay) == (3, 0.5)
    assert (by_name["api"].health_interval, by_name["api"].lifetime) == (30.0, "per_owner")
    assert (by_name["mine"].class_path, by_name["mine"].config) == ("pkg.mod:Mine", {"host": "h"})
    assert (by_name["more"].creation_attempts, by_name["more"].creation_delay) == (2, 3.0)
    assert (by_name["more"].config, by_name["inner"].config) == ({"base_url": "http://y"}, {"base_url": "http://z"})
    (use,) = made.main.states["s"].resources
    assert (use.name, use.role, use.required) == ("db", "store", True)


def test_one_setting_in_two_places_is_a_fault() -> None:
    resource = {"name": "db", "type": "database", "connection_pool_size": 4, "pool": {"max_size": 3}}
    assert kinds(one({}, resources=[resource])) == ["TwoSpellings"]
    assert kinds(one({}, resources=[{"name": "db", "url": "a", "config": {"url": "b"}}])) == ["TwoSpellings"]
    assert kinds(one({}, resources=[{"name": "db", "kind": "database", "type": "database"}])) == ["TwoSpellings"]


def test_state_overrides_set_the_mode_of_their_states() -> None:
    machine = {
        "states": {"a": {"arcs": ["b"]}, "b": None},
        "data_mode": {"default": "DIRECT", "state_overrides": {"b": "copy"}},
    }
    made = load_machine(machine)
    assert (made.data_mode, made.main.states["a"].data_mode, made.main.states["b"].data_mode) == (
        "direct",
        None,
        "copy",
    )


def test_catch_arcs_come_from_keys_and_from_catch() -> None:
    made = load_machine(
        {
            "states": {
                "a": {"on_timeout": "e", "on_reject": {"target": "e", "when": "error.kind == 'reject'"}, "arcs": ["e"]},
                "e": None,
            },
            "arcs": [
                {"from": "a", "to": "e", "on": ["error", "timeout"]},
                {"from": "a", "to": "e", "type": "complete"},
            ],
        }
    )
    state = made.main.states["a"]
    assert [sorted(arc.catch) for arc in state.catch_arcs] == [["reject"], ["timeout"], ["error", "timeout"]]
    assert len(state.arcs) == 2


def test_error_is_a_name_in_catch_arcs_only() -> None:
    machine = {"states": {"a": {"arcs": [{"target": "e", "when": "error.kind == 'x'"}]}, "e": None}}
    assert kinds(machine) == ["BadExpression"]
