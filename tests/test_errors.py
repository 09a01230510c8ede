"""Errors: each keeps its text, its fields and its notes when it is copied or sent to another process."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from wirestate import BaseResourceProvider, BuildError, PoolConfig, ResourcePool, RunResult, SimpleFSM, errors
from wirestate.errors import Fault, PoolTimeoutError, ReleaseFailedError, WirestateError
from wirestate.machine.guards import ExpressionError

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, WirestateError)
]  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "faults": [Fault("M001", "Unreadable", "it is no YAML", ("Look.",), "m.yaml", 1, 2)],
    "known": ["charge", "load"],
    "cause": ValueError("no"),
    "kind": int,
    "reasons": ["too small", "too late"],
    "limit": 7,
    "waiting": 7,
    "failures": 7,
    "retry_after": 1.5,
}
AGAIN: list[Callable[[Any], Any]] = [lambda found: pickle.loads(pickle.dumps(found)), copy.copy, copy.deepcopy]


def an_error(kind: type[WirestateError]) -> WirestateError:
    if issubclass(kind, ReleaseFailedError):
        return kind("two failed", [ValueError("a"), OSError("b")])
    wanted = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = [parameter.name for parameter in wanted if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    return kind(*[ARGUMENTS.get(name, f"the {name}") for name in named or ["message"]])


def looks(error: BaseException) -> object:
    fields = {name: str(value) for name, value in vars(error).items()}
    return type(error), str(error), str(error.args), fields


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_the_same_after_a_copy(kind: type[WirestateError], again: Callable[[Any], Any]) -> None:
    error = an_error(kind)
    error.add_note("a note")
    error.more = "a field"  # type: ignore[attr-defined]
    assert looks(again(again(error))) == looks(error)
    assert again(error).__notes__ == ["a note"]


@pytest.mark.parametrize("again", AGAIN)
def test_an_expression_error_is_the_same_after_a_copy(again: Callable[[Any], Any]) -> None:
    error = ExpressionError("not allowed", 3)
    error.add_note("a note")
    assert looks(again(error)) == looks(error)


MACHINES: list[tuple[dict[str, Any], Any]] = [
    ({"states": {"a": {}}}, 7),
    ({"states": {"a": {"arcs": [{"to": "b", "when": "data.get('x')"}, "a"]}, "b": {}}, "max_transitions": 3}, {}),
    ({"states": {"a": {"validators": {"type": "expression", "code": "data.x > 1"}}}}, {"x": 0}),
    ({"states": {"a": {"arcs": [{"to": "b", "when": "data.y > 1"}]}, "b": {}}}, {}),
    ({"states": {"a": {"arcs": [{"to": "b", "when": "data.x"}]}, "b": {}}}, {"x": 0}),
]


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize(("machine", "record"), MACHINES)
def test_the_result_of_a_run_that_failed_is_the_same_after_a_copy(
    machine: dict[str, Any], record: Any, again: Callable[[Any], Any]
) -> None:
    with SimpleFSM(machine) as fsm:
        result = fsm.process(record)
    found: RunResult = again(result)
    assert result.error is not None
    assert found.error is not None
    assert looks(found.error) == looks(result.error)
    assert {**found.to_dict(), "error": None} == {**result.to_dict(), "error": None}


# --- text that is not ours ------------------------------------------------------------------------

STEERING = "[red]\x1b[2J\r\nall is well\x9b1m"
WRITTEN = r"[red]\x1b[2J\r\nall is well\x9b1m"


def test_a_report_of_faults_has_a_line_for_each_of_its_own_whatever_it_quotes() -> None:
    fault = Fault("M001", "Unreadable", f"no {STEERING}", (f"Look at {STEERING}.", "Again."), STEERING, 1, 2)
    lines = str(BuildError([fault, fault], STEERING)).split("\n")
    assert lines[0] == f"{WRITTEN}: 2 faults, nothing was run"
    assert lines[1] == f"Unreadable [M001]: no {WRITTEN} ({WRITTEN}:1:2)"
    assert lines[2:4] == [f"  Look at {WRITTEN}.", "  Again."]
    assert len(lines) == 7


def test_no_owner_and_no_error_forges_a_line_of_an_error_or_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Provider(BaseResourceProvider):
        def acquire(self, **options: Any) -> object:
            return object()

        def release(self, resource: object) -> None:
            raise ValueError(STEERING)

    pool = ResourcePool(Provider("db"), PoolConfig(max_size=1))
    lease = pool.acquire(owner=STEERING)
    with pytest.raises(PoolTimeoutError) as late:
        pool.acquire(timeout=0.01)
    for text in (str(late.value), repr(lease)):
        assert text.isprintable()
        assert WRITTEN in text
    lease.release()
    pool.close()
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage() == f"pool 'db': destroying a resource failed: ValueError: {WRITTEN}"


def test_the_picture_of_a_result_forges_no_line() -> None:
    with SimpleFSM({"states": {STEERING: {"arcs": ["end"]}, "end": {}}}) as fsm:
        assert repr(fsm.process({})) == f"<RunResult done: {WRITTEN} -> end>"
        assert repr(fsm).isprintable()
