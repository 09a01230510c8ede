"""SIGHUP while records run: the files are finished, also when the terminal is gone."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import wirestate

PACKAGE = Path(wirestate.__file__).parents[1]
PATIENCE = 60.0  # seconds; a test that needs them fails anyway
FUNCTIONS = """\
import time
from pathlib import Path

def slow(record):
    Path("began").touch()
    time.sleep(0.005)
    return record

def quick(record):
    Path("began").touch()
    return record

def held(record):
    Path("began").touch()
    while not Path("go").exists():
        time.sleep(0.005)
    return record
"""
FILES = ("-i", "in.csv", "-o", "out.csv")
# Tests may be run where SIGHUP is ignored, and a child inherits that; under nohup it shall be.
START = """\
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv.pop(1) == "nohup" else signal.SIG_DFL)
from wirestate.cli import main
main()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "in.csv").write_text("id\n" + "".join(f"{n}\n" for n in range(20_000)))
    for name in ("slow", "held", "quick"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "states": {"end": {"transform": name}}}))
    return tmp_path


@contextmanager
def running(folder: Path, way: str, machine: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the command, wait until its first function was called, and see to its end."""
    with subprocess.Popen(
        [sys.executable, "-c", START, way, "run", f"{machine}.json", "--functions", "functions", *FILES, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PACKAGE), "TERM": "xterm"},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    ) as process:
        try:
            while not (folder / "began").exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def written(folder: Path) -> list[int]:
    """Return the ids of the finished output; nothing is left beside it."""
    assert not list(folder.glob("*.part"))
    with (folder / "out.csv").open() as file:
        return [int(row["id"]) for row in csv.DictReader(file)]


def test_further_hangups_interrupt_nothing(folder: Path) -> None:
    with running(folder, "shell", "held", "--json") as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGHUP)
        assert any(line.startswith("stopping: ") for line in process.stderr)
        for _ in range(3):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
        (folder / "go").touch()
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 129
    assert json.loads(output)["summary"]["emitted"] == 1
    assert written(folder) == [0]


def test_sigterm_after_a_hangup_interrupts(folder: Path) -> None:
    with running(folder, "shell", "held") as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGHUP)
        assert any(line.startswith("stopping: ") for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 129
    assert output.startswith("held  0 records in ")
    assert (folder / "out.csv").read_text() == ""


# Delays behind the first signal: the second one comes while the run ends, prints, or leaves its process.
@pytest.mark.parametrize("delay", [0.01, 0.03, 0.06, 0.1, 0.15])
def test_a_second_hangup_never_kills_a_run_that_ends(folder: Path, delay: float) -> None:
    with running(folder, "shell", "slow") as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(delay)
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 129
    assert output.startswith("slow  ")
    assert written(folder)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_signal_while_the_table_is_printed_or_behind_it_does_nothing(folder: Path, number: int) -> None:
    with running(folder, "shell", "slow") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        rest = process.stdout.read()
        process.wait(PATIENCE)
    assert process.returncode == 143
    assert first.startswith("slow  ")
    assert "last state" in rest


@contextmanager
def silent_input(folder: Path) -> Iterator[int]:
    """Make the input a pipe with three records that stays open."""
    path = folder / "in.csv"
    path.unlink()
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, b"id\n0\n1\n2\n")
    yield descriptor


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["inline", "threads"])
def test_a_run_that_was_told_to_stop_while_it_waited_for_its_input_says_so(
    folder: Path, workers: tuple[str, ...]
) -> None:
    with silent_input(folder) as descriptor, running(folder, "shell", "slow", "--json", *workers) as process:
        assert process.stderr is not None
        time.sleep(0.2)  # in which it reads all that is there; else it stops before that, and says so in any case
        process.send_signal(signal.SIGTERM)
        assert any(line.startswith("stopping: ") for line in process.stderr)
        os.close(descriptor)
        output, _ = process.communicate(timeout=PATIENCE)
    report = json.loads(output)
    assert process.returncode == report["exit_code"] == 143
    assert report["summary"]["stopped"]
    assert written(folder) == list(range(report["summary"]["emitted"]))


def test_a_second_signal_interrupts_the_waiting_for_input(folder: Path) -> None:
    with silent_input(folder) as descriptor, running(folder, "shell", "slow", "--json") as process:
        assert process.stderr is not None
        process.send_signal(signal.SIGTERM)
        assert any(line.startswith("stopping: ") for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
        os.close(descriptor)
    assert process.returncode == 143
    assert json.loads(output)["summary"]["stopped"]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["inline", "threads"])
def test_the_second_signal_interrupts_the_writing_to_a_pipe_whose_reader_stalls(
    folder: Path, workers: tuple[str, ...]
) -> None:
    os.mkfifo(folder / "out.csv")
    reader = os.open(folder / "out.csv", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)  # the first records fill it
    try:
        with running(folder, "shell", "quick", *workers) as process:
            assert process.stderr is not None
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert any(line.startswith("stopping: ") for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=PATIENCE)
    finally:
        os.close(reader)
    assert process.returncode == 143
    assert output.startswith("quick  ")


def test_under_nohup_a_hangup_is_ignored(folder: Path) -> None:
    with running(folder, "nohup", "held", "--limit", "3") as process:
        process.send_signal(signal.SIGHUP)
        (folder / "go").touch()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "stopping" not in errors
    assert written(folder) == [0, 1, 2]


@pytest.mark.parametrize("output", ["terminal", "file"])
def test_a_terminal_that_goes_away_stops_the_run_and_its_files_are_whole(folder: Path, output: str) -> None:
    master, terminal = pty.openpty()
    with (folder / "table.txt").open("w") as table:
        stdout = terminal if output == "terminal" else table
        # Its own session, whose terminal this one becomes: then the system tells it of the end.
        own = {"start_new_session": True, "stdin": terminal, "stdout": stdout, "stderr": terminal}
        with running(folder, "shell", "slow", preexec_fn=_take_terminal, **own) as process:
            os.close(terminal)
            assert os.read(master, 100)  # the bar is there
            os.close(master)
            assert process.wait(PATIENCE) == 129
    ids = written(folder)
    assert ids == list(range(len(ids)))
    assert 0 < len(ids) < 20_000
    shown = (folder / "table.txt").read_text()
    assert shown.startswith(f"slow  {len(ids):,} record" if output == "file" else "")


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
