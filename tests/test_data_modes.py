"""Whose record it is: a copy, the caller's object, or the caller's object kept up to date."""

from __future__ import annotations

import asyncio
import collections
import copy
import datetime as dt
import decimal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest

from tests.conftest import Side
from tests.stores import process, work_machine
from wirestate import SimpleFSM, lifetimes
from wirestate.errors import BuildError, RecordInUseError
from wirestate.machine.copying import deep_copy


def changes(record: dict[str, Any]) -> None:
    record["nested"]["n"] += 1
    record["nested"]["list"].append("x")


def replaces(record: dict[str, Any]) -> dict[str, Any]:
    return {"nested": record["nested"], "new": True}


def raises(record: dict[str, Any]) -> None:
    raise KeyError("raises")


RETRY = {"attempts": 2, "wait_initial": 0, "wait_jitter": 0}
FUNCTIONS = {"changes": changes, "replaces": replaces, "raises": raises}


def fresh() -> dict[str, Any]:
    return {"nested": {"n": 1, "list": []}, "old": True}


CHANGED = {"n": 2, "list": ["x"]}


def run(side: Side, record: Any, mode: Any, work: dict[str, Any], **keys: Any) -> Any:
    with SimpleFSM(work_machine(work, **keys), functions=FUNCTIONS, data_mode=mode) as fsm:
        return process(side, fsm, record)


# --- the table of section 5 ------------------------------------------------------------------------------


def test_what_becomes_of_the_callers_object(side: Side) -> None:  # case 32
    work = {"transforms": ["changes", "replaces"]}
    record = fresh()
    result = run(side, record, "copy", work)
    assert (record, result.data) == (fresh(), {"nested": CHANGED, "new": True})
    assert result.data["nested"] is not record["nested"]

    result = run(side, record, "reference", work)
    assert record == {"nested": CHANGED, "old": True}  # changed in place; what was returned was not written back
    assert (result.data, result.data is record) == ({"nested": CHANGED, "new": True}, False)
    assert result.data["nested"] is record["nested"]

    record = fresh()
    result = run(side, record, "direct", work)
    assert result.data is record
    assert record == {"nested": CHANGED, "new": True}


@pytest.mark.parametrize("way", ["trivial", "full", "arc"])
@pytest.mark.parametrize("mode", ["copy", "reference", "direct"])
def test_every_way_through_a_state_treats_the_record_alike(side: Side, mode: str, way: str) -> None:
    work: dict[str, Any] = {"transforms": ["changes", "replaces"]}
    if way == "full":
        work["timeout"] = 5
    if way == "arc":
        work = {"arcs": [{"target": "e", "transforms": ["changes", "replaces"]}]}
    record = fresh()
    result = run(side, record, mode, work)
    assert result.data == {"nested": CHANGED, "new": True}
    assert record == {"copy": fresh(), "reference": {"nested": CHANGED, "old": True}, "direct": result.data}[mode]
    assert (result.data is record) == (mode == "direct")


def test_a_function_may_return_a_view_of_the_record_that_is_written_into(side: Side) -> None:
    record = fresh()

    def view(data: dict[str, Any]) -> Any:
        return MappingProxyType(data)

    functions = {"view": view, "chain": lambda data: collections.ChainMap({"y": 2}, data)}
    with SimpleFSM(work_machine({"transforms": ["view", "chain"]}), functions=functions, data_mode="direct") as fsm:
        assert process(side, fsm, record).data is record
    assert record == {**fresh(), "y": 2}


def test_direct_needs_a_record_that_can_be_written(side: Side) -> None:
    with SimpleFSM(work_machine({}), data_mode="direct") as fsm, pytest.raises(TypeError, match="read-only"):
        process(side, fsm, MappingProxyType({}))
    with SimpleFSM(work_machine({}), data_mode="reference") as fsm:
        frozen = MappingProxyType({"a": 1})
        assert process(side, fsm, frozen).data is frozen


def test_the_mode_is_the_arguments_else_the_configurations(side: Side) -> None:
    record = fresh()
    assert run(side, record, None, {"transform": "changes"}, data_mode="direct").data is record
    record = fresh()
    assert run(side, record, "copy", {"transform": "changes"}, data_mode="DIRECT").data is not record
    with pytest.raises(BuildError, match="data_mode"):
        SimpleFSM(work_machine({}, data_mode="deep"))


# --- one state's own mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["reference", "direct"])
def test_a_state_of_mode_copy_leaves_the_record_as_it_came_if_it_fails(side: Side, mode: str) -> None:
    record = fresh()
    result = run(side, record, mode, {"transforms": ["changes", "raises"], "data_mode": "copy"})
    assert (result.success, result.data is record, record) == (False, True, fresh())
    result = run(side, record, mode, {"transforms": ["changes", "replaces"], "data_mode": "copy"})
    assert result.data == {"nested": CHANGED, "new": True}
    assert record == (result.data if mode == "direct" else fresh())
    assert (result.data is record) == (mode == "direct")


def test_a_state_of_mode_copy_leaves_the_record_as_it_came_if_its_release_fails(side: Side) -> None:
    def stubborn() -> Any:
        yield 1
        raise OSError("cannot close")

    record = fresh()
    machine = work_machine({"transform": "changes", "data_mode": "copy", "resources": ["r"]})
    resources = {"r": lifetimes.PerState(stubborn)}
    with SimpleFSM(machine, functions=FUNCTIONS, resources=resources, data_mode="direct") as fsm:
        result = process(side, fsm, record)
    assert (result.phase, record, result.data is record) == ("release", fresh(), True)


def test_in_other_modes_a_failure_leaves_the_record_as_it_was_at_that_moment(side: Side) -> None:
    for mode in ("copy", "reference", "direct"):
        record = fresh()
        assert run(side, record, mode, {"transforms": ["changes", "raises"]}).data == {"nested": CHANGED, "old": True}
        assert record == (fresh() if mode == "copy" else {"nested": CHANGED, "old": True})


@pytest.mark.parametrize("keep", [{"on_error": "dead"}, {"retry": RETRY}])
@pytest.mark.parametrize("mode", ["copy", "reference", "direct"])
def test_states_with_retry_or_catch_arcs_restore_the_record_in_every_mode(
    side: Side, mode: str, keep: dict[str, Any]
) -> None:
    record = fresh()
    more = {"dead": None} if "on_error" in keep else {}
    result = run(side, record, mode, {"transforms": ["changes", "replaces", "raises"], **keep}, **more)
    assert result.data == fresh()
    assert (result.data is record) == (mode == "direct")


def test_a_state_may_write_into_a_machines_copy(side: Side) -> None:
    seen: list[Any] = []
    record = fresh()
    machine = work_machine({"transforms": ["remember", "replaces", "remember"], "data_mode": "direct"})
    with SimpleFSM(machine, functions={**FUNCTIONS, "remember": seen.append}) as fsm:
        result = process(side, fsm, record)
    assert seen[0] is seen[1] is result.data
    assert record == fresh()


# --- two runs on one object ----------------------------------------------------------------------------------


OWN = pytest.mark.parametrize("mode", ["reference", "direct"])  # the runs work on the caller's object


class Meeting:
    """A function that stands still inside its run until the test has done something meanwhile."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2)

    def __call__(self, record: Any) -> None:
        self.barrier.wait(5)  # inside the run
        self.barrier.wait(5)  # the other one was refused, or served

    def during(self, runs: Any, act: Any) -> Any:
        """*act* while *runs* stands still in another thread; return what *runs* returned."""
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(runs)
            self.barrier.wait(5)
            try:
                act()
            finally:
                self.barrier.wait(5)
            return first.result(5)


@OWN
def test_one_object_in_two_threads_at_once_is_refused(mode: Any) -> None:  # case 33
    meeting = Meeting()
    record = fresh()

    def refused() -> None:
        with pytest.raises(RecordInUseError):
            fsm.process(record)

    with SimpleFSM(work_machine({"transform": "waits"}), functions={"waits": meeting}, data_mode=mode) as fsm:
        assert meeting.during(lambda: fsm.process(record), refused).success
        assert meeting.during(lambda: fsm.process(record), refused).success  # it was let go, and refusing held nothing


@OWN
def test_one_object_in_two_machines_at_once_is_refused(mode: Any) -> None:
    meeting = Meeting()
    record = fresh()

    def refused() -> None:
        for other in "reference", "direct":
            with (
                SimpleFSM(work_machine({"transform": "changes"}), functions=FUNCTIONS, data_mode=other) as fsm,  # type: ignore[arg-type]  # one of three
                pytest.raises(RecordInUseError),
            ):
                fsm.process(record)
        with SimpleFSM(work_machine({"transform": "changes"}), functions=FUNCTIONS) as fsm:
            assert fsm.process(record).success  # a copy needs nothing

    with SimpleFSM(work_machine({"transform": "waits"}), functions={"waits": meeting}, data_mode=mode) as fsm:
        assert meeting.during(lambda: fsm.process(record), refused).data == fresh()


def test_no_update_is_lost_in_mode_direct() -> None:
    record, together = {"n": 0}, threading.Barrier(4)

    def adds(record: Any) -> Any:
        seen = record["n"]
        time.sleep(0)  # another thread may run here
        return {"n": seen + 1}

    def many() -> int:
        together.wait(5)
        done = 0
        for _ in range(500):
            with suppress(RecordInUseError):
                done += fsm.process(record).success
        return done

    with (
        SimpleFSM(work_machine({"transform": "adds"}), functions={"adds": adds}, data_mode="direct") as fsm,
        ThreadPoolExecutor(4) as pool,
    ):
        done = sum(one.result(60) for one in [pool.submit(many) for _ in range(4)])
        assert record["n"] == done


@OWN
@pytest.mark.parametrize("work", [{}, {"offload": True}])
def test_a_function_may_give_its_record_to_another_machine(side: Side, mode: Any, work: dict[str, Any]) -> None:
    record = fresh()
    with SimpleFSM(work_machine({"transform": "changes"}), functions=FUNCTIONS, data_mode=mode) as inner:

        def calls(record: Any) -> Any:
            return inner.process(record).data

        machine = work_machine({"transform": "calls", **work})
        with SimpleFSM(machine, functions={"calls": calls}, data_mode=mode) as fsm:
            for _ in range(2):
                assert process(side, fsm, record).success
    assert record["nested"] == {"n": 3, "list": ["x", "x"]}


@OWN
def test_a_function_may_not_give_its_record_to_two_machines_at_once(mode: Any) -> None:
    async def waits(record: Any) -> None:
        await asyncio.sleep(0)

    async def scenario() -> None:
        machine = work_machine({"transform": "waits"})
        first, second = (SimpleFSM(machine, functions={"waits": waits}, data_mode=mode) for _ in range(2))

        async def calls(record: Any) -> None:
            await asyncio.wait_for(first.aprocess(record), 5)  # a task of its own, and one at a time
            both = await asyncio.gather(first.aprocess(record), second.aprocess(record), return_exceptions=True)
            assert [type(one) for one in both].count(RecordInUseError) == 1

        fsm = SimpleFSM(work_machine({"transform": "calls"}), functions={"calls": calls}, data_mode=mode)
        for _ in range(2):
            assert (await fsm.aprocess(fresh())).success

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["copy", "reference", "direct"])
def test_one_object_in_two_tasks_at_once(mode: Any) -> None:
    async def waits(record: Any) -> None:
        await asyncio.sleep(0)

    async def scenario() -> list[Any]:
        record = fresh()
        with SimpleFSM(work_machine({"transform": "waits"}), functions={"waits": waits}, data_mode=mode) as fsm:
            results = await asyncio.gather(fsm.aprocess(record), fsm.aprocess(record), return_exceptions=True)
            assert (await fsm.aprocess(record)).success
            return list(results)

    refused = [result for result in asyncio.run(scenario()) if isinstance(result, RecordInUseError)]
    assert len(refused) == (0 if mode == "copy" else 1)


@OWN
def test_one_object_twice_in_a_batch_or_stream_is_a_failed_record_if_its_runs_meet(mode: Any) -> None:
    async def waits(record: Any) -> None:
        await asyncio.sleep(0)

    async def scenario(fsm: SimpleFSM, workers: int) -> list[Any]:
        record = fresh()
        batch = await fsm.aprocess_batch([record, record, fresh()], max_workers=workers)
        rejects: list[Any] = []
        summary = await fsm.aprocess_stream([record, record, fresh()], workers=workers, rejects=rejects.append)
        assert [result.outcome for result in batch].count("failed") == summary.failed == len(rejects)
        return [result.error for result in batch if not result.success]

    with SimpleFSM(work_machine({"transform": "waits"}), functions={"waits": waits}, data_mode=mode) as fsm:
        [refusal] = asyncio.run(scenario(fsm, 3))
        assert isinstance(refusal, RecordInUseError)
        assert asyncio.run(scenario(fsm, 1)) == []


@pytest.mark.parametrize(
    ("mode", "work"),
    [("copy", {}), ("reference", {"data_mode": "copy"}), ("direct", {"on_error": "e"}), ("direct", {"retry": RETRY})],
)
def test_a_record_that_cannot_be_copied_fails_and_says_so(side: Side, mode: str, work: dict[str, Any]) -> None:
    record = {"lock": threading.Lock()}
    result = run(side, record, mode, {"transform": "replaces", **work})
    if "on_error" in work:
        assert (result.success, type(result.caught[0].error)) == (True, TypeError)
    else:
        assert (result.outcome, result.phase, type(result.error)) == ("failed", "read", TypeError)
    assert result.data is record


# --- the copy itself --------------------------------------------------------------------------------------------


class Odd:
    """Something that only the standard library can copy."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and self.inner == other.inner

    __hash__ = None  # type: ignore[assignment]


SHARED = [1]
CASES: list[Any] = [
    {}, {"a": [1, {"b": (2, {3}, [4])}]}, {"t": (1, (2, [3]))}, {"t": ([1],)}, {"l": [({"a": 1},)]},
    {"d": dt.datetime(2020, 1, 1), "n": decimal.Decimal(1)},
    {"o": Odd([1])}, {"deque": collections.deque([[1]])}, {"default": collections.defaultdict(list, a=[1])},
    collections.OrderedDict(a=[1]), {"f": frozenset({1})}, {"b": bytearray(b"x")}, {("k", 1): [1]},
    {"nan": float("inf"), "none": None, "bytes": b"x", "complex": 1j},
]  # fmt: skip


@pytest.mark.parametrize("value", CASES, ids=range(len(CASES)))
def test_a_copy_equals_the_standard_one_and_shares_nothing_that_changes(value: Any) -> None:
    copied = deep_copy(value)
    assert (copied, type(copied)) == (copy.deepcopy(value), type(value))
    assert not parts_that_change(copied) & parts_that_change(value)


def parts_that_change(value: Any) -> set[int]:
    """Return the ids of what can be written into, at any depth: a tuple cannot, what it holds may be."""
    inner = value.values() if isinstance(value, dict) else vars(value).values() if isinstance(value, Odd) else value
    found = set() if isinstance(value, tuple | frozenset) else {id(value)}
    for part in inner if not isinstance(value, bytearray) else ():
        if isinstance(part, dict | list | tuple | set | frozenset | bytearray | collections.deque | Odd):
            found |= parts_that_change(part)
    return found


def test_shared_and_circular_parts_stay_what_they_are() -> None:
    circle: dict[str, Any] = {"a": Odd()}
    circle["self"] = circle
    copied = deep_copy(circle)
    assert copied["self"] is copied
    plain: dict[str, Any] = {}
    plain["self"] = [plain]
    copied = deep_copy(plain)
    assert copied["self"][0] is copied
    deep: Any = {}
    for _ in range(200):
        deep = {"in": [deep]}
    assert deep_copy(deep) == deep
