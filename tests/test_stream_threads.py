"""Asynchronous streams leave their event loop free, whatever they read from and write to."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.crews import forbid_threads_made_here
from wirestate import SimpleFSM
from wirestate.errors import SinkError, SourceError

PATIENCE = 20.0


def machine(work: Callable[..., Any] | None = None) -> SimpleFSM:
    return SimpleFSM({"states": {"s": {"transform": "work"}}}, functions={"work": work or (lambda record: None)})


async def arrived(place: list[Any], count: int) -> None:
    """Wait, on the loop, until *place* holds *count* things; it is the loop that must be free for that."""
    async with asyncio.timeout(PATIENCE):
        while len(place) < count:
            await asyncio.sleep(0.001)


class Pipe:
    """A named pipe that a test writes to from the loop which reads it through a stream."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    async def open(self) -> BinaryIO:
        return await asyncio.to_thread(self.path.open, "wb", buffering=0)

    def release(self) -> None:
        """Let a thread go that still waits for somebody who writes."""
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads, or not yet
            return


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Callable[[str], Pipe]]:
    made: list[Pipe] = []

    def new(name: str) -> Pipe:
        made.append(Pipe(tmp_path / name))
        return made[-1]

    yield new
    end = time.monotonic() + PATIENCE
    while source_threads() and time.monotonic() < end:
        for one in made:
            one.release()
        time.sleep(0.001)
    assert source_threads() == []


def source_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "wirestate-source"]


# --- sources ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_the_loop_that_fills_a_pipe_reads_it_row_by_row(pipe: Any, suffix: str) -> None:
    head = b"text\n" if suffix == "csv" else b""
    line = b'{"text": "%d"}\n' if suffix == "jsonl" else b"%d\n"

    async def scenario() -> list[Any]:
        rows, got = pipe(f"rows.{suffix}"), []

        async def sink(record: Any) -> None:
            got.append(record["text"])

        stream = asyncio.create_task(machine().aprocess_stream(rows.path, sink))
        file = await rows.open()  # the stream opens it, too: neither can without the other
        file.write(head)
        for n in range(3):
            file.write(line % n)
            await arrived(got, n + 1)  # each comes at once, not when a buffer is full
        file.close()
        assert (await stream).successful == 3
        return got

    assert asyncio.run(scenario()) == ["0", "1", "2"]


def test_a_generator_may_wait_for_what_the_loop_does(tmp_path: Path) -> None:
    async def scenario() -> None:
        turns = [threading.Event() for _ in range(5)]
        got: list[Any] = []

        def source() -> Iterator[Any]:
            for n, turn in enumerate(turns):
                assert turn.wait(PATIENCE)
                yield {"n": n}

        async def sink(record: Any) -> None:
            got.append(record["n"])

        stream = asyncio.create_task(machine().aprocess_stream(source(), sink))
        for n, turn in enumerate(turns):
            turn.set()
            await arrived(got, n + 1)
        assert (await stream).successful == 5

    asyncio.run(scenario())


def test_the_records_of_a_batch_may_be_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        turn = threading.Event()

        def source() -> Iterator[Any]:
            assert turn.wait(PATIENCE)
            yield {"n": 1}

        batch = asyncio.create_task(machine().aprocess_batch(source()))
        await asyncio.sleep(0)
        turn.set()
        assert len(await batch) == 1

    asyncio.run(scenario())


def test_one_thread_reads_a_whole_source_with_the_variables_of_the_caller() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    threads, seen = set(), set()

    def source() -> Iterator[Any]:
        for n in range(500):
            threads.add(threading.get_ident())
            seen.add(variable.get())
            yield {"n": n}

    async def scenario() -> None:
        variable.set("the caller's")
        assert (await machine().aprocess_stream(source())).successful == 500

    asyncio.run(scenario())
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert seen == {"the caller's"}


def test_a_collection_is_read_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_threads_made_here(monkeypatch)
    records = [{"n": n} for n in range(50)]
    for source in records, tuple(records), dict(enumerate(records)).values():
        assert asyncio.run(machine().aprocess_stream(source)).successful == 50


class Left:
    """A generator that knows in which threads it ran and was closed."""

    def __init__(self) -> None:
        self.ran: set[int] = set()
        self.closed: list[int] = []
        self.read = 0

    def rows(self) -> Iterator[Any]:
        try:
            while True:
                self.ran.add(threading.get_ident())
                self.read += 1
                yield {"n": self.read}
        finally:
            self.closed.append(threading.get_ident())


@pytest.mark.parametrize("way", ["stop", "max_failures", "progress", "cancel", "close"])
def test_a_generator_that_is_left_is_closed_in_its_thread_before_the_stream_ends(way: str) -> None:
    source, stop = Left(), asyncio.Event()
    generator = source.rows()  # held: only a close can end it

    async def scenario() -> None:
        begun: list[Any] = []

        async def work(record: Any) -> None:
            begun.append(record)
            await asyncio.sleep(0)
            if way == "max_failures":
                raise ValueError

        def told(done: int, total: int | None) -> None:
            raise ValueError("told")

        options: dict[str, Any] = {"max_failures": 3} if way == "max_failures" else {}
        options |= {"on_progress": told} if way == "progress" else {}
        fsm = machine(work)
        stream = asyncio.create_task(fsm.aprocess_stream(generator, stop=stop, **options))
        await arrived(begun, 50 if way != "max_failures" else 3)
        if way == "stop":
            stop.set()
        elif way == "cancel":
            stream.cancel()
        elif way == "close":
            fsm.close()
        await asyncio.wait([stream], timeout=PATIENCE)
        assert stream.done()
        error = None if stream.cancelled() else stream.exception()
        assert (error is not None) == (way in ("progress", "close"))
        assert source.closed == list(source.ran)
        assert source.closed != [threading.get_ident()]

    asyncio.run(scenario())


def test_a_generator_goes_on_behind_a_limit() -> None:
    source = Left()
    generator = source.rows()
    for _ in range(2):
        assert asyncio.run(machine().aprocess_stream(generator, limit=10)).successful == 10
    assert (source.read, source.closed) == (20, [])
    generator.close()  # type: ignore[attr-defined]  # it is a generator


@pytest.mark.parametrize("error", [ValueError("broke"), StopIteration("broke"), KeyboardInterrupt("broke")])
def test_what_a_generator_raises_comes_to_the_caller(error: BaseException) -> None:
    def source() -> Iterator[Any]:
        yield {"n": 1}
        raise error

    async def scenario() -> None:
        kind = SourceError if isinstance(error, Exception) else type(error)
        with pytest.raises(kind, match=r"broke|raised StopIteration") as caught:
            await machine().aprocess_stream(source())
        assert vars(caught.value)["summary"].total_processed == 1 or not isinstance(error, Exception)

    if isinstance(error, Exception):
        asyncio.run(scenario())
        return
    with pytest.raises(KeyboardInterrupt, match="broke"):
        asyncio.run(machine().aprocess_stream(source()))


def test_a_file_that_cannot_be_opened_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be opened"):
        asyncio.run(machine().aprocess_stream(tmp_path / "none.csv", tmp_path / "out.csv"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opened", [False, True])
def test_a_cancelled_stream_does_not_wait_for_a_pipe_that_nobody_fills(pipe: Any, opened: bool) -> None:
    async def scenario() -> None:
        rows = pipe("rows.jsonl")
        stream = asyncio.create_task(machine().aprocess_stream(rows.path))
        file = await rows.open() if opened else None
        await asyncio.sleep(0)
        stream.cancel()
        await asyncio.wait([stream], timeout=PATIENCE)
        assert stream.cancelled()
        if file is not None:
            file.close()

    asyncio.run(scenario())


PROGRAM = """
import asyncio, sys
from wirestate import SimpleFSM

async def main():
    stream = asyncio.create_task(SimpleFSM({"states": {"s": None}}).aprocess_stream(sys.argv[1]))
    await asyncio.sleep(0.1)
    stream.cancel()
    await asyncio.wait([stream])

asyncio.run(main())
"""


def test_a_process_ends_though_its_stream_was_reading_a_pipe_that_nobody_fills(pipe: Any) -> None:
    command = [sys.executable, "-c", PROGRAM, str(pipe("rows.jsonl").path)]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)  # of this test
    assert (done.returncode, done.stderr) == (0, "")


# --- sinks and rejects -------------------------------------------------------------------------


def refusing(record: Any) -> None:
    raise ValueError("refused")


class Turns:
    """A receiver that waits in each call until the loop lets it go on."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.threads: set[int] = set()
        self.turn = threading.Semaphore(0)

    def __call__(self, record: Any) -> None:
        self.threads.add(threading.get_ident())
        self.got.append(record)
        assert self.turn.acquire(timeout=PATIENCE)


@pytest.mark.parametrize("place", ["sink", "rejects"])
@pytest.mark.parametrize("other", [None, "file", "function", "asynchronous"])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_sink_may_wait_for_what_the_loop_does(tmp_path: Path, place: str, other: str | None, ordered: bool) -> None:
    async def scenario() -> None:
        waits, also = Turns(), []

        async def awaited(record: Any) -> None:
            also.append(record)

        others = {None: None, "file": tmp_path / "other.jsonl", "function": also.append, "asynchronous": awaited}
        if place == "sink":
            fsm, sink, rejects = machine(), waits, others[other]
        else:
            fsm, sink, rejects = machine(refusing), others[other], waits
        records = [{"n": n} for n in range(5)]
        stream = asyncio.create_task(fsm.aprocess_stream(records, sink, rejects=rejects, ordered=ordered))
        for n in range(5):
            await arrived(waits.got, n + 1)
            waits.turn.release()
        assert (await stream).total_processed == 5
        assert [(one if place == "sink" else one["record"])["n"] for one in waits.got] == list(range(5))
        assert len(waits.threads) == 1
        assert waits.threads != {threading.get_ident()}

    asyncio.run(scenario())


def test_a_sink_sees_the_variables_of_the_caller() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen, threads = set(), set()

    def sink(record: Any) -> None:
        seen.add(variable.get())
        threads.add(threading.get_ident())

    async def scenario() -> None:
        variable.set("the caller's")
        assert (await machine().aprocess_stream([{"n": n} for n in range(500)], sink)).emitted == 500

    asyncio.run(scenario())
    assert seen == {"the caller's"}
    assert len(threads) == 1


def test_what_belongs_to_the_loop_and_what_never_waits_is_called_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_threads_made_here(monkeypatch)
    records = [{"n": n} for n in range(50)]
    got: list[Any] = []

    async def scenario() -> None:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        await machine().aprocess_stream(records, queue.put_nowait)
        await machine().aprocess_stream(records, functools.partial(queue.put_nowait))
        assert queue.qsize() == 100
        await machine().aprocess_stream(records, got.append, rejects=deque().append)

    asyncio.run(scenario())
    assert got == records


def test_a_pipe_that_is_full_does_not_stop_the_loop_that_empties_it(pipe: Any) -> None:
    async def scenario() -> bytes:
        rows = pipe("rows.jsonl")
        file = os.open(rows.path, os.O_RDONLY | os.O_NONBLOCK)
        read = b""
        records = [{"n": n, "text": "x" * 1000} for n in range(300)]  # far more than a pipe holds
        stream = asyncio.create_task(machine().aprocess_stream(records, rows.path))
        try:
            async with asyncio.timeout(PATIENCE):
                while read.count(b"\n") < 300:
                    with suppress(BlockingIOError):
                        read += os.read(file, 1000)
                    await asyncio.sleep(0)
            assert (await stream).emitted == 300
        finally:
            os.close(file)
        return read

    assert [json.loads(line)["n"] for line in asyncio.run(scenario()).splitlines()] == list(range(300))


@pytest.mark.parametrize("place", ["sink", "rejects"])
def test_a_cancelled_stream_does_not_wait_for_a_pipe_that_nobody_reads(pipe: Any, place: str) -> None:
    async def scenario() -> None:
        where = {place: pipe("rows.jsonl").path}
        stream = asyncio.create_task(machine().aprocess_stream([{"n": 1}], **where))
        await asyncio.sleep(0.05)
        stream.cancel()
        await asyncio.wait([stream], timeout=PATIENCE)
        assert stream.cancelled()

    asyncio.run(scenario())


def has_writer(reader: int) -> bool:
    try:
        os.read(reader, 1)  # the end of the pipe, if it has none
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_pipe_whose_reader_goes_before_the_first_record_is_an_error(pipe: Any, form: str) -> None:
    async def scenario() -> None:
        rows, rejects = pipe("rows.jsonl"), pipe("rejects.jsonl")
        reader = os.open(rows.path, os.O_RDONLY | os.O_NONBLOCK)
        sink = form.format(rows.path)
        stream = asyncio.create_task(machine().aprocess_stream([{"n": 1}], sink, rejects=rejects.path))
        async with asyncio.timeout(PATIENCE):
            while not has_writer(reader):
                await asyncio.sleep(0.001)
        os.close(reader)  # while the stream waits for the reader of the other pipe
        other = os.open(rejects.path, os.O_RDONLY | os.O_NONBLOCK)
        done, _ = await asyncio.wait([stream], timeout=PATIENCE)
        os.close(os.open(rows.path, os.O_RDONLY | os.O_NONBLOCK))  # for a stream that waits for another reader
        os.close(other)
        assert done
        with pytest.raises(SinkError, match="Broken pipe"):
            await stream

    asyncio.run(scenario())


def test_a_pipe_may_be_read_by_the_loop_that_waits_for_its_writer(pipe: Any) -> None:
    async def scenario() -> bytes:
        rows = pipe("rows.jsonl")
        stream = asyncio.create_task(machine().aprocess_stream([{"n": n} for n in range(9)], rows.path))
        read = await asyncio.wait_for(asyncio.to_thread(rows.path.read_bytes), PATIENCE)
        assert (await stream).emitted == 9
        return read

    assert asyncio.run(scenario()).count(b"\n") == 9


def test_a_cancelled_stream_waits_for_the_record_that_is_being_handed_over_and_counts_it() -> None:
    async def scenario() -> None:
        waits = Turns()
        stream = asyncio.create_task(machine().aprocess_stream([{"n": n} for n in range(5)], waits))
        await arrived(waits.got, 1)
        stream.cancel()
        await asyncio.sleep(0.01)
        assert not stream.done()
        for _ in range(5):
            waits.turn.release()
        with pytest.raises(asyncio.CancelledError) as caught:
            await stream
        summary = vars(caught.value)["summary"]
        assert summary.emitted == summary.total_processed == len(waits.got) >= 1

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [ValueError("broke"), StopIteration("broke"), KeyboardInterrupt("broke")])
@pytest.mark.parametrize("ordered", [True, False])
def test_what_a_sink_raises_is_its_record_s_failure_or_interrupts(error: BaseException, ordered: bool) -> None:
    rejects: list[Any] = []

    def sink(record: Any) -> None:
        if record["n"] == 3:
            raise error

    async def scenario() -> Any:
        records = [{"n": n} for n in range(6)]
        return await machine().aprocess_stream(records, sink, rejects=rejects.append, ordered=ordered)

    if not isinstance(error, Exception):
        with pytest.raises(KeyboardInterrupt, match="broke"):
            asyncio.run(scenario())
        return
    summary = asyncio.run(scenario())
    assert (summary.emitted, summary.failed, [one["phase"] for one in rejects]) == (5, 1, ["sink"])


def test_a_slow_sink_still_tells_how_far_it_is() -> None:
    told: list[int] = []

    def sink(record: Any) -> None:
        time.sleep(0.06)  # more than the while for which a thread hands over before it is counted

    async def scenario() -> None:
        records = [{"n": n} for n in range(6)]
        await machine().aprocess_stream(records, sink, on_progress=lambda done, total: told.append(done))

    asyncio.run(scenario())
    assert len(told) > 2
