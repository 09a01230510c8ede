"""Outputs that are not whole yet, or never will be: where they are, and what can be read of them."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

import wirestate
from tests.interrupts import Interrupter
from tests.object_store import object_store
from wirestate import SimpleFSM
from wirestate.errors import SinkError, SourceError
from wirestate.machine.results import RunResult
from wirestate.running.sinks import open_sink
from wirestate.running.sources import Source, open_source
from wirestate.running.stream import StreamSummary
from wirestate.waiting import BLOCKING, drive

PACKAGE = Path(wirestate.__file__).parents[1]
RESULT = RunResult(("done", "end", {}, ("end",), None, None, None, (), (), 0.0, 1, None, 0, None, True))
PATIENCE = 60.0  # seconds; a test that needs them fails anyway
PACKED = ["", ".gz", ".bz2", ".xz", ".zst"]
FORMATS = [f"{suffix}{packed}" for suffix in (".csv", ".jsonl", ".json") for packed in PACKED]
both_worlds = pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "tasks"])
every_format = pytest.mark.parametrize(
    ("suffix", "asynchronous"), [(suffix, False) for suffix in FORMATS] + [(".csv", True), (".json.zst", True)]
)


def stream(asynchronous: bool, *arguments: Any, function: Callable[[Any], Any] | None = None, **options: Any) -> Any:
    machine = {"states": {"end": {"transform": "work"}}}
    with SimpleFSM(machine, functions={"work": function or (lambda record: record)}) as fsm:
        if asynchronous:
            return asyncio.run(fsm.aprocess_stream(*arguments, **options))
        return fsm.process_stream(*arguments, **options)


def refuse(record: Any) -> Any:
    raise ValueError("no")


def numbers(count: int) -> list[dict[str, str]]:
    return [{"id": str(n), "text": f"{n * 7919 % 100_003:06}" * 8} for n in range(count)]


def ids(path: Path, suffix: str) -> list[int]:
    """Return the ids of all records of a file that is named otherwise; it must be whole."""
    link = path.with_name(f"whole{suffix}")
    link.symlink_to(path)
    source = open_source(link, world=BLOCKING)
    assert isinstance(source, Source)
    try:
        rows = list(iter(source.read, None))
    finally:
        source.close()
        link.unlink()
    assert all(row.reason is None for row in rows)
    return [int(row.record["id"]) for row in rows]


def parts(folder: Path, name: str) -> list[Path]:
    found = [path for path in folder.iterdir() if path.name.startswith(name) and path.name.endswith(".part")]
    assert all(re.fullmatch(re.escape(name) + r"\.[0-9a-f]{8}\.part", path.name) for path in found)
    return found


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond *size*."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- the name ------------------------------------------------------------------------------


@both_worlds
def test_an_output_has_a_name_of_its_own_until_it_is_whole(tmp_path: Path, asynchronous: bool) -> None:
    target, told = tmp_path / "out.jsonl", []
    target.write_text("old")

    def work(record: Any) -> Any:
        assert target.read_text() == "old"
        assert [(str(target), str(part)) for part in parts(tmp_path, "out.jsonl")] == told
        return record

    summary = stream(asynchronous, numbers(3), target, function=work, on_part=lambda *names: told.append(names))
    assert ids(target, ".jsonl") == [0, 1, 2]
    assert (summary.emitted, summary.parts) == (3, {})
    assert list(tmp_path.iterdir()) == [target]


def test_output_and_rejects_of_one_run_have_one_id(tmp_path: Path) -> None:
    told: dict[str, str] = {}
    stream(False, [], tmp_path / "a.csv", rejects=tmp_path / "b.csv", on_part=told.__setitem__)
    first, second = (part.removeprefix(path) for path, part in told.items())
    assert first == second


@both_worlds
def test_what_looks_like_a_part_file_is_left_alone(tmp_path: Path, asynchronous: bool) -> None:
    source, precious = tmp_path / "out.csv.part", tmp_path / "precious"
    source.write_text("id\n1\n")
    precious.write_text("precious")
    (tmp_path / "other.csv.part").symlink_to(precious)
    for name in ("out.csv", "other.csv"):
        stream(asynchronous, str(source), tmp_path / name, format="csv")
        assert (tmp_path / name).read_text() == "id\n1\n"
    assert source.read_text() == "id\n1\n"
    assert precious.read_text() == "precious"


@both_worlds
def test_links_are_followed_and_stay_links(tmp_path: Path, asynchronous: bool) -> None:
    store, told = tmp_path / "store", []
    store.mkdir()
    (tmp_path / "out.csv").symlink_to("second.csv")
    (tmp_path / "second.csv").symlink_to(store / "real.csv")
    for count in (1, 2):  # the file is not there yet, and then it is
        stream(asynchronous, numbers(count), tmp_path / "out.csv", on_part=lambda path, part: told.append(part))
        assert ids(store / "real.csv", ".csv") == list(range(count))
        assert [path.name for path in store.iterdir()] == ["real.csv"]
    assert (tmp_path / "out.csv").is_symlink()
    assert all(part.startswith(f"{store / 'real.csv'}.") for part in told)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_an_output_has_the_mode_of_what_it_replaces_from_its_first_moment_on(tmp_path: Path, mode: int) -> None:
    target, seen = tmp_path / "out.csv", []
    target.touch()
    target.chmod(mode)
    stream(False, numbers(1), target, on_part=lambda path, part: seen.append(stat.S_IMODE(os.stat(part).st_mode)))
    assert seen == [mode]
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_new_output_has_the_mode_that_the_process_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    stream(False, numbers(1), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_part_file_of_the_same_run_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "out.csv.run7.part").write_text("precious")
    with pytest.raises(SinkError, match="exists"):
        open_sink(tmp_path / "out.csv", world=BLOCKING, run="run7")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.csv.run7.part", "precious")]


def test_two_runs_to_one_output_do_not_meet(tmp_path: Path) -> None:
    target, inner = tmp_path / "out.csv", []

    def work(record: Any) -> Any:
        if not inner:
            inner.append(None)
            stream(False, [{"id": 7}], target)
        return record

    stream(False, numbers(3), target, function=work)
    assert ids(target, ".csv") == [0, 1, 2]
    assert list(tmp_path.iterdir()) == [target]


def test_an_output_stays_where_it_was_when_a_function_changes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    stream(False, numbers(2), "out.csv", function=lambda record: (os.chdir(tmp_path / "elsewhere"), record)[1])
    assert ids(tmp_path / "out.csv", ".csv") == [0, 1]


@both_worlds
def test_a_pipe_and_an_open_descriptor_are_written_directly(tmp_path: Path, asynchronous: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    stream(asynchronous, numbers(2), tmp_path / "pipe", format="jsonl")
    reader.join()
    assert [json.loads(line)["id"] for line in got[0].splitlines()] == ["0", "1"]
    with (tmp_path / "shared.txt").open("w") as file:
        file.write("before\n")
        file.flush()
        stream(asynchronous, [{"id": 1}], f"/dev/fd/{file.fileno()}", format="jsonl")
        os.write(file.fileno(), b"behind\n")
    assert (tmp_path / "shared.txt").read_text() == 'before\n{"id": 1}\nbehind\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "shared.txt"]


def test_each_record_leaves_for_a_pipe_at_once(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def work(record: Any) -> Any:
        if record["id"] == 2:
            assert os.read(reading, 1000) == b'{"id": 1}\n'
        return record

    assert stream(False, [{"id": 1}, {"id": 2}], f"/dev/fd/{writing}", function=work, format="jsonl").successful == 2
    os.close(reading)
    os.close(writing)


# --- a disk that is full -------------------------------------------------------------------


@every_format
def test_a_full_disk_leaves_whole_records_and_says_where_and_how_many(
    tmp_path: Path, asynchronous: bool, suffix: str
) -> None:
    target = tmp_path / f"out{suffix}"
    target.write_text("old")
    noise = ({"id": n, "text": os.urandom(1000).hex()} for n in range(100_000))
    with small_disk(400_000), pytest.raises(SinkError, match="File too large") as caught:
        stream(asynchronous, noise, target)
    summary = caught.value.summary
    assert isinstance(summary, StreamSummary)
    (part,) = parts(tmp_path, target.name)
    assert ids(part, suffix) == list(range(summary.emitted))
    assert 0 < summary.emitted <= summary.successful
    assert summary.stopped
    assert summary.parts == {str(target): str(part)}
    assert f"{str(part)!r} holds {summary.emitted:,} whole records" in str(caught.value)
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("suffix", "asynchronous"), [(".csv", False), (".jsonl.gz", False), (".json.zst", False), (".json.bz2", True)]
)
def test_rejects_on_a_full_disk_are_whole_and_named_too(tmp_path: Path, asynchronous: bool, suffix: str) -> None:
    rejects = tmp_path / f"rejects{suffix}"
    noise = ({"id": n, "text": os.urandom(1000).hex()} for n in range(100_000))
    with small_disk(400_000), pytest.raises(SinkError, match="File too large") as caught:
        stream(asynchronous, noise, tmp_path / "out.csv", rejects=rejects, function=refuse)
    (part,) = parts(tmp_path, rejects.name)
    (tmp_path / f"whole{suffix}").symlink_to(part)
    source = open_source(tmp_path / f"whole{suffix}", world=BLOCKING)
    assert isinstance(source, Source)
    positions = [int(row.record["position"]) for row in iter(source.read, None)]
    source.close()
    assert positions == list(range(len(positions)))
    assert f"{str(part)!r} holds {len(positions):,} whole record" in str(caught.value)
    assert caught.value.summary.parts == {str(rejects): str(part)}  # type: ignore[attr-defined]  # a summary is an object
    assert (tmp_path / "out.csv").read_text() == ""  # the other file is whole


@every_format
def test_a_disk_that_is_full_at_the_end_has_a_summary(tmp_path: Path, asynchronous: bool, suffix: str) -> None:
    with small_disk(20), pytest.raises(SinkError, match="holds 0 whole records") as caught:
        stream(asynchronous, numbers(3), tmp_path / f"out{suffix}")
    summary = caught.value.summary
    assert isinstance(summary, StreamSummary)
    assert (summary.successful, summary.emitted, summary.stopped) == (3, 0, False)
    assert [Path(part) for part in summary.parts.values()] == parts(tmp_path, f"out{suffix}")


@both_worlds
def test_two_outputs_that_break_off_are_both_told(tmp_path: Path, asynchronous: bool) -> None:
    with small_disk(20), pytest.raises(SinkError, match=r"out\.jsonl") as caught:
        stream(asynchronous, [*numbers(3), 5], tmp_path / "out.jsonl", rejects=tmp_path / "rejects.jsonl")
    assert any("rejects.jsonl" in note for note in caught.value.__notes__)
    assert isinstance(caught.value.summary, StreamSummary)
    assert list(caught.value.summary.parts) == [str(tmp_path / "out.jsonl"), str(tmp_path / "rejects.jsonl")]


@both_worlds
def test_a_name_that_cannot_be_taken_leaves_all_records_in_the_part_file(tmp_path: Path, asynchronous: bool) -> None:
    target = tmp_path / "out.jsonl"

    def work(record: Any) -> Any:
        (target / "in the way").mkdir(parents=True, exist_ok=True)
        return record

    with pytest.raises(SinkError, match="holds 3 whole records") as caught:
        stream(asynchronous, numbers(3), target, function=work)
    assert isinstance(caught.value.summary, StreamSummary)
    assert caught.value.summary.emitted == 3
    (part,) = parts(tmp_path, "out.jsonl")
    assert ids(part, ".jsonl") == [0, 1, 2]


def test_what_the_disk_did_not_take_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system tells that it is full when it is to bring what it took to the disk."""
    synced, real = threading.Event(), os.fsync

    def fsync(descriptor: int) -> None:
        if synced.is_set():
            raise OSError(28, "No space left on device")
        real(descriptor)
        synced.set()

    def work(record: Any) -> Any:
        if record["id"] == "3":
            assert synced.wait(PATIENCE)
        return record

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SinkError, match="No space left on device") as caught:
        stream(False, numbers(5), tmp_path / "out.csv", function=work)
    assert isinstance(caught.value.summary, StreamSummary)
    (part,) = parts(tmp_path, "out.csv")
    assert 0 < caught.value.summary.emitted < 5
    assert ids(part, ".csv") == list(range(caught.value.summary.emitted))


def test_an_interrupt_while_an_output_takes_its_name_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, interrupts = os.replace, iter([KeyboardInterrupt()])

    def replace(*names: Any) -> None:
        real(*names)
        for interrupt in interrupts:
            raise interrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt) as caught:
        stream(False, numbers(3), tmp_path / "out.csv", rejects=tmp_path / "rejects.csv")
    assert caught.value.summary.emitted == 3  # type: ignore[attr-defined]  # an interrupt carries it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "rejects.csv"]
    assert ids(tmp_path / "out.csv", ".csv") == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # one that an interrupt did not let begin
@pytest.mark.parametrize("suffix", [".json", ".jsonl.gz", ".jsonl.zst"])
def test_an_interrupt_anywhere_loses_and_doubles_no_record(tmp_path: Path, suffix: str) -> None:
    path, at = tmp_path / f"out{suffix}", 1
    while True:
        sink = open_sink(path, world=BLOCKING, run="run7")
        interrupter, interrupted = Interrupter(at, "wirestate/running/"), set()
        for n in range(4):  # each is large enough to be written at once
            work = sink.put({"id": n, "text": "x" * 300_000}, RESULT)
            interrupted |= {n} if interrupts(interrupter, work) else set()
        at_the_end = interrupts(interrupter, sink.finish())
        drive(sink.finish())
        found = ids(path, suffix)
        assert found == sorted(set(found))
        assert set(range(4)) - set(found) <= interrupted
        assert sink.records == len(found)
        assert list(tmp_path.iterdir()) == [path]
        if not interrupted and not at_the_end:
            return
        at += 11


def interrupts(interrupter: Interrupter, work: Coroutine[Any, Any, None]) -> bool:
    """Do *work*; return True if it was interrupted."""
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        drive(work)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


# --- stores --------------------------------------------------------------------------------


@both_worlds
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_store_that_refuses_the_upload_keeps_the_old_object(
    asynchronous: bool, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = object_store()
    bucket = store.new_bucket()
    path = f"/{bucket}/out.jsonl{ending}"
    store.put(path, b"old")
    monkeypatch.setitem(fsspec.config.conf, "s3", store.options())
    with store.refusing(f"PUT {path}"), pytest.raises(SinkError, match="nothing of it is kept") as caught:
        stream(asynchronous, numbers(3), f"s3:/{path}")
    assert isinstance(caught.value.summary, StreamSummary)
    assert (caught.value.summary.successful, caught.value.summary.emitted) == (3, 0)
    assert caught.value.summary.parts == {}
    assert store.get(path) == "old"
    assert stream(asynchronous, numbers(3), f"s3:/{path}").emitted == 3
    with fsspec.open(f"s3:/{path}", "rb") as file:
        content = gzip.decompress(file.read()) if ending else file.read()
    assert [json.loads(line)["id"] for line in content.splitlines()] == ["0", "1", "2"]


@both_worlds
def test_a_stream_that_cannot_begin_leaves_the_old_object(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = object_store()
    path = f"/{store.new_bucket()}/out.jsonl"
    store.put(path, b"old")
    monkeypatch.setitem(fsspec.config.conf, "s3", store.options())
    with pytest.raises(SinkError, match="folder"):
        stream(asynchronous, numbers(3), f"s3:/{path}", rejects=tmp_path / "nowhere" / "rejects.csv")
    assert store.get(path) == "old"


# --- the command ---------------------------------------------------------------------------

FUNCTIONS = """\
import os, resource, signal, time
from pathlib import Path

def dies_at_300(record):
    if record["id"] == "300":
        held = Path(os.environ["HELD"])
        while not held.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return record

async def adies_at_300(record):
    return dies_at_300(record)

def grows(record):
    return {"id": record["id"], "text": os.urandom(500).hex()}

def passes(record):
    return record
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "".join(f"{n},{n * 7919}\n" for n in range(5000))
    (tmp_path / "in.csv").write_text(f"id,text\n{rows}")
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    for name in ("dies_at_300", "adies_at_300", "grows", "passes"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": "pass", "states": {"end": {"transform": name}}}))
    return tmp_path


def command(folder: Path, machine: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wirestate", "run", f"{machine}.json", "--functions", "functions", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "HELD": str(folder / "held")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


DIED: list[tuple[str, str, int]] = [
    ("dies_at_300", suffix, 300) for suffix in (".csv", ".json", ".jsonl.gz", ".csv.bz2", ".jsonl.xz", ".json.zst")
]
# The loop of the asynchronous one stands still when 32 tasks may be under way.
DIED += [("adies_at_300", ".csv", 300 - 32)]


@pytest.mark.parametrize(("machine", "suffix", "least"), DIED)
def test_a_process_that_is_killed_leaves_its_records_whole(folder: Path, machine: str, suffix: str, least: int) -> None:
    with command(folder, machine, "-i", "in.csv", "-o", f"out{suffix}") as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        (part,) = parts(folder, f"out{suffix}")
        assert told == f"writing out{suffix} as {part.name} until it is whole\n"
        while len(readable(part, suffix)) < least:  # which comes true although the process does nothing more
            assert process.poll() is None
            time.sleep(0.05)
        (folder / "held").touch()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        process.communicate()
    found = ids(part, suffix)
    assert found == list(range(len(found)))
    assert least <= len(found) <= 300
    assert not (folder / f"out{suffix}").exists()


def readable(part: Path, suffix: str) -> list[int]:
    try:
        return ids(part, suffix)
    except SourceError:  # nothing is in it yet, or it is read while it is written
        return []
    finally:
        part.with_name(f"whole{suffix}").unlink(missing_ok=True)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_table_of_a_run_that_broke_off_names_the_part_file_and_its_records(folder: Path, scheme: str) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with command(folder, "grows", "-i", "in.csv", "-o", f"{scheme}out.csv", preexec_fn=limit) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    (part,) = parts(folder, "out.csv")
    count = len(ids(part, ".csv"))
    assert process.returncode == 1, errors
    assert errors.splitlines()[1:] == [
        f"sink 'out.csv' cannot be written: File too large; '{part.name}' holds {count} whole records"
    ]
    assert re.search(rf"(?m)^  done +\d+ +100\.0% +{count} of them in {re.escape(part.name)}$", output)


def test_the_report_of_a_run_that_broke_off_at_its_end_has_a_summary(folder: Path) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
    arguments = ("-i", "in.csv", "-o", "out.csv", "--limit", "5", "--json")
    with command(folder, "passes", *arguments, preexec_fn=limit) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    (part,) = parts(folder, "out.csv")
    assert process.returncode == 1, errors
    report = json.loads(output)
    summary = report["summary"]
    assert (report["ok"], report["exit_code"]) == (False, 1)
    assert (summary["successful"], summary["emitted"], summary["parts"]) == (5, 0, {"out.csv": part.name})


def test_the_table_says_how_many_records_an_end_kept_to_itself(folder: Path) -> None:
    (folder / "keeps.json").write_text(json.dumps({"name": "keeps", "states": {"end": {"emit_output": False}}}))
    with command(folder, "keeps", "-i", "in.csv", "-o", "out.csv", "--limit", "5") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert re.search(r"(?m)^  done +5 +100\.0% +0 of them in out\.csv$", output)
