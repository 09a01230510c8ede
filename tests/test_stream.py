"""Streams: bounded, in order, accounted for to the last record, whatever stops them."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from wirestate.errors import (
    AsyncInSyncRunError,
    NotAvailableError,
    RecordRejectedError,
    SinkError,
    SourceError,
)
from wirestate.machine.results import RunResult
from wirestate.running.progress import Progress
from wirestate.running.stream import StreamSummary, run_stream
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

WAYS = {"inline": (BLOCKING, {}), "threads": (BLOCKING, {"workers": 4}), "tasks": (SUSPENDING, {})}
every_way = pytest.mark.parametrize("way", list(WAYS))
several = pytest.mark.parametrize("way", ["threads", "tasks"])


def stream(way: str, run_one: Any, source: Any, sink: Any = None, **options: Any) -> StreamSummary:
    world, chosen = WAYS[way]
    made = run_stream(run_one, source, sink, world=world, **{**chosen, **options})
    return asyncio.run(made) if world.is_async else drive(made)


def machine(act: Any = None, *, emit: Any = lambda record: True) -> Any:
    """A run function: *act* may raise ValueError (failed) or RecordRejectedError (rejected)."""

    async def run_one(record: Any, position: int | None, line: int | None, world: World) -> RunResult:
        outcome, error, state = "done", None, "end"
        try:
            if act is not None:
                await act(record, world)
        except RecordRejectedError as refused:
            outcome, error, state = "rejected", refused, "check"
        except ValueError as failed:
            outcome, error, state = "failed", failed, "work"
        at, phase = (state, "transform") if error else (None, None)
        head = (outcome, state, record, ("start", state), error, at, phase, (), ())
        return RunResult((*head, 0.0, 1, None, position, line, emit(record)))

    return run_one


async def uneven(record: Any, world: World) -> None:
    await world.sleep(0.0005 * (7 - record["id"] % 7))


def numbers(count: int) -> list[dict[str, int]]:
    return [{"id": n} for n in range(count)]


class Watched:
    """A source without end that knows how many of its records were not handed over yet."""

    def __init__(self) -> None:
        self.read = 0
        self.handed = 0
        self.most = 0

    def __iter__(self) -> Iterator[dict[str, int]]:
        for n in itertools.count():
            self.read += 1
            self.most = max(self.most, self.read - self.handed)
            yield {"id": n}


@every_way
def test_records_reach_the_sink_in_order(way: str) -> None:
    got: list[Any] = []
    summary = stream(way, machine(uneven), numbers(50), got.append)
    assert got == numbers(50)
    assert (summary.total_processed, summary.successful, summary.emitted, summary.stopped) == (50, 50, 50, False)
    assert summary.by_state == {"end": 50}
    assert summary.rate > 0


@several
def test_without_order_a_slow_record_holds_nobody_back(way: str) -> None:
    got: list[int] = []

    async def first_waits_for_the_others(record: Any, world: World) -> None:
        deadline = time.monotonic() + 5
        while record["id"] == 0 and len(got) < 49 and time.monotonic() < deadline:
            await world.sleep(0.001)

    stream(
        way, machine(first_waits_for_the_others), numbers(50), lambda record: got.append(record["id"]), ordered=False
    )
    assert got[-1] == 0
    assert sorted(got) == list(range(50))


@every_way
@pytest.mark.parametrize("ordered", [True, False])
def test_never_more_is_read_than_may_be_in_flight_and_a_stop_ends_cleanly(way: str, ordered: bool) -> None:
    source, stop = Watched(), threading.Event()
    got: list[int] = []

    def slow_sink(record: Any) -> None:
        time.sleep(0.0005)
        source.handed += 1
        got.append(record["id"])
        if len(got) == 60:
            stop.set()

    summary = stream(way, machine(uneven), source, slow_sink, max_in_flight=8, ordered=ordered, stop=stop)
    assert source.most <= 8
    assert way == "inline" or source.most == 8
    assert summary.stopped
    assert summary.total_processed == summary.emitted == source.read == len(got) < 60 + 8
    assert sorted(got) == list(range(len(got)))


@every_way
def test_rejects_keep_the_order_of_the_source_and_count_right(way: str, tmp_path: Path) -> None:
    async def some_do_not(record: Any, world: World) -> None:
        await uneven(record, world)
        if record["id"] % 3 == 1:
            raise ValueError("broke")
        if record["id"] % 3 == 2:
            raise RecordRejectedError(["refused"])

    path = tmp_path / "rejects.jsonl"
    summary = stream(way, machine(some_do_not), numbers(30), rejects=path, ordered=False)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["record"]["id"] for entry in entries] == [n for n in range(30) if n % 3]
    assert [entry["outcome"] for entry in entries[:2]] == ["failed", "rejected"]
    assert (summary.successful, summary.failed, summary.rejected, summary.emitted) == (10, 10, 10, 0)
    assert summary.by_state == {"end": 10, "work": 10, "check": 10}
    assert summary.unsuccessful_by_state == {"work": 10, "check": 10}
    assert summary.errors == (
        "record 1 (state 'work'): ValueError: broke  (10 times)",
        "record 2 (state 'check'): refused  (10 times)",
    )


def test_the_first_ten_reasons_are_told_without_statements_and_passwords(tmp_path: Path) -> None:
    async def fail(record: Any, world: World) -> None:
        raise ValueError(
            f"no {record['id']} at ftp://me:hidden@host/\n[SQL: INSERT\n INTO hidden]\n"
            "(Background on this error at: https://sqlalche.me/e/20/e3q8)"
        )

    path = tmp_path / "rejects.jsonl"
    summary = stream("inline", machine(fail), numbers(20), rejects=path)
    assert list(summary.errors) == [f"record {n} (state 'work'): ValueError: no {n} at ftp://host/" for n in range(10)]
    assert "me:hidden" not in path.read_text()


@every_way
def test_a_file_with_bad_rows_goes_through(way: str, tmp_path: Path) -> None:
    lines = [b"id,n", b'0,"two', b'lines"', *(b"%d,%d" % (n, n) for n in range(1, 100))]
    lines[10] = b"8"
    lines[20] = b"18,many"
    lines[30] = b"28,\xff"
    (tmp_path / "in.csv").write_bytes(b"\n".join(lines))

    async def number(record: Any, world: World) -> None:
        if record["id"] != "0":
            int(record["n"])

    summary = stream(
        way, machine(number), tmp_path / "in.csv", tmp_path / "out.jsonl", rejects=tmp_path / "rejects.jsonl"
    )
    assert (summary.total_processed, summary.successful, summary.failed, summary.rejected) == (100, 97, 1, 2)
    entries = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["position"], entry["outcome"]) for entry in entries] == [
        (11, 8, "rejected"),
        (21, 18, "failed"),
        (31, 28, "rejected"),
    ]
    assert entries[2]["reason"] == "not UTF-8"
    assert all(entry["source"] == str(tmp_path / "in.csv") for entry in entries)
    ids = [int(json.loads(line)["id"]) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ids == [n for n in range(100) if n not in (8, 18, 28)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.jsonl", "rejects.jsonl"]


@every_way
def test_a_source_that_fails_keeps_what_was_done(way: str, tmp_path: Path) -> None:
    def broken() -> Iterator[Any]:
        yield from numbers(10)
        raise OSError("the line went dead")

    with pytest.raises(SourceError, match="the line went dead") as caught:
        stream(way, machine(uneven), broken(), tmp_path / "out.csv")
    summary = caught.value.summary
    assert isinstance(summary, StreamSummary)
    assert (summary.successful, summary.stopped) == (10, True)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 11
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@every_way
def test_an_interrupt_finishes_the_files_and_goes_on(way: str, tmp_path: Path) -> None:
    begun: list[int] = []
    left: list[int] = []

    async def tenth_is_interrupted(record: Any, world: World) -> None:
        begun.append(record["id"])
        try:
            await world.sleep(0.001)
            if record["id"] == 10:
                raise KeyboardInterrupt
        finally:
            left.append(record["id"])

    with pytest.raises(KeyboardInterrupt):
        stream(way, machine(tenth_is_interrupted), numbers(1000), tmp_path / "out.csv")
    assert sorted(begun) == sorted(left)
    assert len(begun) < 60
    written = [int(line) for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    assert written == sorted(written)
    assert set(written) <= set(left) - {10}
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_an_interrupt_while_waiting_lets_threads_finish_and_begins_nothing_more(tmp_path: Path) -> None:
    begun: list[int] = []
    left: list[int] = []

    async def slow(record: Any, world: World) -> None:
        begun.append(record["id"])
        await world.sleep(0.02)
        left.append(record["id"])

    def interrupted() -> Iterator[Any]:
        yield from numbers(6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream("threads", machine(slow), interrupted(), tmp_path / "out.csv", workers=2, max_in_flight=8)
    assert len(begun) == len(left) == 2
    assert (tmp_path / "out.csv").read_text() == "id\n0\n1\n"


def test_an_interrupt_while_a_thread_begins_loses_no_record_that_it_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, here, start = threading.Event(), threading.get_ident(), threading.Thread.start

    async def slow(record: Any, world: World) -> None:
        begun.set()
        await world.sleep(0.1)

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if threading.get_ident() == here and thread.name.startswith("wirestate-worker"):
            assert begun.wait(20)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream("threads", machine(slow), numbers(6), tmp_path / "out.csv", workers=2)
    assert (tmp_path / "out.csv").read_text() == "id\n0\n"


def test_a_signal_while_threads_work_ends_the_stream(tmp_path: Path) -> None:
    async def tenth_signals(record: Any, world: World) -> None:
        if record["id"] == 10:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        stream("threads", machine(tenth_signals), Watched(), tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert lines == sorted(lines, key=int)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_cancelled_stream_cancels_its_runs_and_finishes_its_files(tmp_path: Path) -> None:
    async def go() -> None:
        waiting = 0

        async def later_ones_wait(record: Any, world: World) -> None:
            nonlocal waiting
            if record["id"] >= 3:
                waiting += 1
                await asyncio.sleep(60)

        made = run_stream(machine(later_ones_wait), numbers(100), tmp_path / "out.csv", world=SUSPENDING)
        task = asyncio.create_task(made)
        while waiting < 32:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())
    assert (tmp_path / "out.csv").read_text() == "id\n0\n1\n2\n"


@every_way
def test_enough_failures_stop_the_intake(way: str) -> None:
    async def all_fail(record: Any, world: World) -> None:
        raise ValueError("no")

    summary = stream(way, machine(all_fail), map(dict, itertools.repeat({})), max_failures=5)
    assert summary.stopped
    assert 5 <= summary.failed < 5 + 32 + 1
    assert summary.failed == 5 or way != "inline"


@every_way
def test_rejected_records_are_no_failures(way: str) -> None:
    async def all_refused(record: Any, world: World) -> None:
        raise RecordRejectedError(["no"])

    summary = stream(way, machine(all_refused), numbers(20), max_failures=1)
    assert (summary.rejected, summary.failed, summary.stopped) == (20, 0, False)


@every_way
@pytest.mark.parametrize("ordered", [True, False])
def test_a_record_that_the_sink_refuses_has_failed(way: str, ordered: bool) -> None:
    def picky(record: Any) -> None:
        if record["id"] in (3, 4):
            raise LookupError("not this one")

    rejects: list[Any] = []
    summary = stream(way, machine(uneven), numbers(20), picky, rejects=rejects.append, ordered=ordered)
    assert (summary.successful, summary.failed, summary.emitted) == (18, 2, 18)
    assert [(entry["position"], entry["phase"], entry["outcome"]) for entry in rejects] == [
        (3, "sink", "failed"),
        (4, "sink", "failed"),
    ]
    assert rejects[0]["error"] == "LookupError: not this one"


@every_way
def test_ends_that_do_not_emit_keep_their_records(way: str) -> None:
    got: list[Any] = []
    summary = stream(way, machine(emit=lambda record: record["id"] % 2), numbers(10), got.append)
    assert [record["id"] for record in got] == [1, 3, 5, 7, 9]
    assert (summary.successful, summary.emitted) == (10, 5)


@every_way
def test_a_limit_reads_no_further(way: str) -> None:
    source = Watched()
    summary = stream(way, machine(), source, limit=7)
    assert (summary.total_processed, summary.stopped) == (7, False)
    assert source.read == 7


@every_way
def test_progress_is_told_in_the_callers_thread_and_once_at_the_end(way: str) -> None:
    told: list[Progress] = []
    threads = set()

    def on_progress(progress: Progress) -> None:
        told.append(progress)
        threads.add(threading.get_ident())

    stream(way, machine(uneven), iter(numbers(20)), on_progress=on_progress)
    assert threads == {threading.get_ident()}
    assert (told[-1].done, told[-1].total, told[-1].remaining, told[-1].final) == (20, None, None, True)
    assert sum(progress.final for progress in told) == 1


@every_way
def test_a_progress_function_that_raises_stops_the_stream_cleanly(way: str, tmp_path: Path) -> None:
    async def slow(record: Any, world: World) -> None:
        await world.sleep(0.02)

    def on_progress(done: int, total: int | None) -> None:
        raise LookupError("the bar broke")

    source = Watched()
    with pytest.raises(LookupError, match="the bar broke"):
        stream(way, machine(slow), source, tmp_path / "out.csv", on_progress=on_progress)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == source.read + 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@every_way
def test_rejects_that_cannot_be_handed_over_end_the_stream(way: str, tmp_path: Path) -> None:
    async def third_fails(record: Any, world: World) -> None:
        if record["id"] == 3:
            raise ValueError("no")

    def full(entry: Any) -> None:
        raise LookupError("no room")

    source = Watched()
    with pytest.raises(SinkError, match="no room") as caught:
        stream(way, machine(third_fails), source, tmp_path / "out.csv", rejects=full)
    assert isinstance(caught.value.summary, StreamSummary)
    assert source.read < 3 + 1 + 32
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@every_way
def test_a_sink_that_breaks_ends_the_stream(way: str) -> None:
    source = ({"text": "x" * 1000} for _ in itertools.count())
    with pytest.raises(SinkError, match="No space left"):
        stream(way, machine(), source, "/dev/full", format="jsonl")


def test_what_cannot_begin_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("old")
    for source, rejects, error in (
        (tmp_path / "none.csv", None, SourceError),
        (numbers(1), tmp_path / "rejects.xyz", SinkError),
        (numbers(1), tmp_path / "out.csv", SinkError),
    ):
        with pytest.raises(error):
            stream("inline", machine(), source, tmp_path / "out.csv", rejects=rejects)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.csv", "old")]


def test_an_asynchronous_progress_function_is_refused_before_a_file_is_made(tmp_path: Path) -> None:
    async def on_progress(progress: Progress) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        stream("tasks", machine(), [], tmp_path / "out.csv", on_progress=on_progress)
    assert list(tmp_path.iterdir()) == []


def test_what_comes_later_is_refused_by_name() -> None:
    for name, value in {"run_id": "x", "ledger": "x", "key": "x", "executor": object(), "commit": 500}.items():
        with pytest.raises(NotAvailableError, match=f"{name}= .*later release"):
            stream("inline", machine(), [], **{name: value})
    assert stream("inline", machine(), [], commit="state", run_id=None).total_processed == 0
    with pytest.raises(TypeError, match="nonsense"):
        stream("inline", machine(), [], nonsense=1)


@pytest.mark.parametrize("name", ["workers", "max_in_flight", "max_failures"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        stream("inline", machine(), [], **{name: 0})


@pytest.mark.parametrize("options", [{}, {"workers": 4}])
def test_an_asynchronous_source_is_refused_by_a_synchronous_stream(options: Any) -> None:
    async def rows() -> AsyncIterator[Any]:
        yield {}

    with pytest.raises(AsyncInSyncRunError, match="aprocess_stream"):
        drive(run_stream(machine(), rows(), world=BLOCKING, **options))


def test_an_asynchronous_source_is_read_in_one_task_and_within_bounds() -> None:
    tasks: set[Any] = set()
    read, most = 0, 0
    got: list[int] = []

    async def rows() -> AsyncIterator[Any]:
        nonlocal read, most
        async with asyncio.timeout(60):
            for n in range(100):
                tasks.add(asyncio.current_task())
                read += 1
                most = max(most, read - len(got))
                yield {"id": n}
                await asyncio.sleep(0)

    async def sink(record: Any) -> None:
        await asyncio.sleep(0)
        got.append(record["id"])

    stream("tasks", machine(uneven), rows(), sink, max_in_flight=6)
    assert got == list(range(100))
    assert len(tasks) == 1
    assert most == 6


def test_a_result_is_handed_over_while_the_source_is_silent() -> None:
    async def go() -> None:
        arrived, handed = asyncio.Event(), asyncio.Event()

        async def rows() -> AsyncIterator[Any]:
            yield {"id": 1}
            async with asyncio.timeout(5):
                await handed.wait()
            arrived.set()

        await run_stream(machine(), rows(), lambda record: handed.set(), world=SUSPENDING)
        assert arrived.is_set()

    asyncio.run(go())


def test_a_stop_does_not_wait_for_a_silent_source() -> None:
    async def go() -> StreamSummary:
        stop = asyncio.Event()
        cleaned = asyncio.Event()

        async def rows() -> AsyncIterator[Any]:
            try:
                yield {"id": 1}
                await asyncio.sleep(60)
            finally:
                cleaned.set()

        async with asyncio.timeout(5):
            summary = await run_stream(machine(), rows(), lambda record: stop.set(), world=SUSPENDING, stop=stop)
        assert cleaned.is_set()
        assert len(asyncio.all_tasks()) == 1
        return summary

    summary = asyncio.run(go())
    assert (summary.successful, summary.stopped) == (1, True)


def test_an_asynchronous_source_that_fails_keeps_what_was_done() -> None:
    async def rows() -> AsyncIterator[Any]:
        yield {"id": 1}
        raise OSError("gone")

    got: list[Any] = []
    with pytest.raises(SourceError, match="gone") as caught:
        stream("tasks", machine(uneven), rows(), got.append)
    assert got == [{"id": 1}]
    assert isinstance(caught.value.summary, StreamSummary)


def test_as_many_tasks_run_at_once_as_there_are_workers() -> None:
    running = most = 0

    async def count(record: Any, world: World) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    stream("tasks", machine(count), numbers(50), workers=3, max_in_flight=20)
    assert most == 3


@every_way
def test_urls_are_read_and_written(way: str) -> None:
    with fsspec.open("memory://stream/in.csv", "wb") as file:
        file.write(b"id\n1\n2\n")
    summary = stream(way, machine(), "memory://stream/in.csv", "memory://stream/out.jsonl")
    assert summary.emitted == 2
    with fsspec.open("memory://stream/out.jsonl", "rb") as file:
        assert file.read() == b'{"id": "1"}\n{"id": "2"}\n'


@several
def test_runs_of_different_length_are_all_accounted_for(way: str) -> None:
    owners: list[int] = []

    async def own(record: Any, world: World) -> None:
        await uneven(record, world)
        owners.append(record["id"])

    assert stream(way, machine(own), numbers(30), workers=8).successful == 30
    assert sorted(owners) == list(range(30))


@every_way
def test_memory_stays_flat_in_the_length_of_the_source(way: str) -> None:
    alive = most = 0

    class Record(dict[str, int]):
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    stream(way, machine(), (Record() for _ in range(500)))
    assert most < 100
