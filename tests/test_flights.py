"""The flights example keeps what it promises, on the rows of its data that are out of the ordinary."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from dependency_injector import providers

from containers.flights import FlightsContainer, FlightsSettings
from containers.flights_async import AsyncFlightsContainer
from examples.flights import functions, functions_async
from examples.flights.demo import MACHINE, REJECTS, main, run
from examples.flights.functions import read_values
from examples.flights.reference import prepare
from examples.flights.terminal import Stop, stopped_by_signals
from examples.flights.weather_service import serving
from wirestate import Reject, SimpleFSM, manager_of

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "flights" / "data"
KEY = ("year", "month", "day", "carrier", "flight")
TOO_FEW = b"2013,1,5,1200\n"
NO_NUMBER = b"2013,1,5,12x0,1155,5,1400,1350,10,UA,9001,N14228,EWR,IAH,227,1400,11,55,2013-01-05T16:00:00Z\n"
NO_TEXT = b"2013,1,5,1200,1155,5,1400,1350,10,U\xff,9002,N14228,EWR,IAH,227,1400,11,55,2013-01-05T16:00:00Z\n"


@pytest.fixture(autouse=True)
def _no_flights_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FLIGHTS_"):
            monkeypatch.delenv(name)


class Sample(NamedTuple):
    """A folder of data with few flights, and what is to become of them."""

    folder: Path
    rows: list[dict[str, str]]
    cancelled: int
    loaded: int
    no_weather: int
    no_plane: int


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Take some flights of each kind: cancelled, never landed, without weather, with an unknown plane, ordinary."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("airlines.csv", "planes.csv", "weather.csv"):
        shutil.copy(DATA / name, folder)
    measured = {(row["origin"], row["time_hour"]) for row in table(DATA / "weather.csv")}
    known = {row["tailnum"] for row in table(DATA / "planes.csv")}
    kinds: dict[str, Callable[[dict[str, str]], bool]] = {
        "cancelled": lambda row: row["dep_time"] == "NA",
        "no air_time": lambda row: row["dep_time"] != "NA" and row["air_time"] == "NA",
        "no weather": lambda row: (row["origin"], row["time_hour"]) not in measured,
        "no plane": lambda row: row["tailnum"] not in known,
        "ordinary": lambda row: True,
    }
    flights = table(DATA / "flights.csv")
    wanted = {id(row) for fits in kinds.values() for row in [row for row in flights if fits(row)][:12]}
    rows = [row for row in flights if id(row) in wanted]
    with (folder / "flights.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    gone = [row for row in rows if row["dep_time"] != "NA"]
    return Sample(
        folder,
        rows,
        cancelled=len(rows) - len(gone),
        loaded=len(gone),
        no_weather=sum(map(kinds["no weather"], gone)),
        no_plane=sum(map(kinds["no plane"], gone)),
    )


@pytest.fixture(scope="session")
def weather() -> Iterator[str]:
    """Run the example's own weather service."""
    with serving(DATA / "weather.csv") as address:
        yield address


@pytest.fixture
def settings(sample: Sample, weather: str, tmp_path: Path) -> FlightsSettings:
    return FlightsSettings(data_dir=sample.folder, output_dir=tmp_path, weather_url=weather, _env_file=None)


@pytest.fixture
def container(settings: FlightsSettings) -> Iterator[Any]:
    """Give a container whose tables are made."""
    container = FlightsContainer(settings=providers.Object(settings))
    with manager_of(container) as manager:
        prepare(manager)
        yield container


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def query(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "flights.db")) as connection:
        return connection.execute(statement).fetchall()


def contents(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {name: query(folder, f"SELECT * FROM {name} ORDER BY {', '.join(KEY)}") for name in ("flights", "audit")}


def printed(output: str) -> dict[str, int]:
    """Return the numbers of the closing table."""
    lines = [line.split() for line in output.splitlines()]
    return {words[0]: int(words[1].replace(",", "")) for words in lines if len(words) == 2}


def answering(status: int, asked: list[str]) -> Any:
    """Stand in for the weather service."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(status)

    client = httpx.Client(base_url="http://weather", transport=httpx.MockTransport(answer))
    return providers.Object(client)


# --- the demo -----------------------------------------------------------------------------


def test_every_flight_is_loaded_or_cancelled_and_all_counts_agree(
    settings: FlightsSettings, sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, Stop())
    output = capsys.readouterr().out
    assert printed(output) == {
        "read": len(sample.rows),
        "loaded": sample.loaded,
        "cancelled": sample.cancelled,
        "rejected": 0,
        "failed": 0,
    }
    assert f"The database holds {sample.loaded} flights and {len(sample.rows)} audit rows." in output


def test_a_second_demo_says_what_is_done_already_and_changes_nothing(
    settings: FlightsSettings, sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(settings, Stop())
    first, before = printed(capsys.readouterr().out), contents(settings.output_dir)
    assert run(settings, Stop())
    output = capsys.readouterr().out
    assert f"{len(sample.rows)} are already done" in output
    assert printed(output) == first
    assert contents(settings.output_dir) == before


def test_damaged_rows_are_rejected_with_line_and_reason_and_all_others_are_as_before(
    settings: FlightsSettings, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(sample.folder, folder)
    header, *rows = (folder / "flights.csv").read_bytes().splitlines(keepends=True)
    (folder / "flights.csv").write_bytes(b"".join([header, TOO_FEW, *rows, NO_NUMBER, NO_TEXT]))
    assert run(settings.model_copy(update={"data_dir": folder}), Stop())
    counts = printed(capsys.readouterr().out)
    assert counts == {
        "read": len(rows) + 3,
        "loaded": sample.loaded,
        "cancelled": sample.cancelled,
        "rejected": 3,
        "failed": 0,
    }
    rejects = [json.loads(line) for line in (tmp_path / REJECTS).read_text().splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in rejects] == [
        (2, "4 fields where the header has 19"),
        (len(rows) + 3, "dep_time: '12x0' is no number"),
        (len(rows) + 4, "not UTF-8"),
    ]
    assert len(query(tmp_path, "SELECT * FROM audit")) == len(rows)


def test_a_mismatch_fails_the_demo(
    settings: FlightsSettings, sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    with manager_of(FlightsContainer(settings=providers.Object(settings))) as manager:
        prepare(manager)
    with closing(sqlite3.connect(settings.output_dir / "flights.db")) as connection:
        connection.execute("CREATE TRIGGER lost BEFORE INSERT ON audit BEGIN SELECT RAISE(IGNORE); END")
    assert not run(settings, Stop())
    assert f"MISMATCH  audit rows, loaded: 0 where {sample.loaded} was expected" in capsys.readouterr().out


def test_a_misspelt_setting_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLIGHTS_WEATHER_ULR", "http://127.0.0.1:1")
    assert main() == 2
    error = capsys.readouterr().err
    assert "FLIGHTS_WEATHER_ULR" in error
    assert "Did you mean 'weather_url'?" in error


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (("DATA_DIR", "/nowhere"), (2, "FLIGHTS_DATA_DIR: /nowhere has no flights.csv, airlines.csv")),
        (("OUTPUT_DIR", "{file}/x"), (2, "FLIGHTS_OUTPUT_DIR: {file}/x cannot be made: Not a directory")),
        (("RESOURCES__DATABASE__URL", "mssql+pymssql://me:hidden@h/d"), (2, "needs the package 'pymssql', which is")),
        (("RESOURCES__DATABASE__URL", "sqlite:////nowhere/x.db"), (2, "folder '/nowhere' of its SQLite file does")),
        (("RESOURCES__DATABASE__URL", "sqlite:///{file}"), (1, "resource 'database' could not be had: DatabaseError")),
    ],
)
def test_what_the_demo_cannot_use_is_told_in_one_line(
    settings: FlightsSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: tuple[str, str],
    told: tuple[int, str],
) -> None:
    file = settings.output_dir / "file"
    file.write_text("this is no folder, and no database either " * 100)
    places = {name.upper(): str(getattr(settings, name)) for name in ("data_dir", "output_dir", "weather_url")}
    for name, text in {**places, setting[0]: setting[1].format(file=file)}.items():
        monkeypatch.setenv(f"FLIGHTS_{name}", text)
    code, said = told
    assert main() == code
    error = capsys.readouterr().err
    assert said.format(file=file) in error
    assert error.count("\n") == 1
    assert "hidden" not in error


# --- interrupted --------------------------------------------------------------------------


# Tests may be run where Ctrl-C is ignored, and a child inherits that.
HEARING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('examples.flights', run_name='__main__', alter_sys=True)"
)


def demo(sample: Sample, output: Path, weather: str, *, hearing: bool = False) -> subprocess.Popen[str]:
    places = {"FLIGHTS_DATA_DIR": str(sample.folder), "FLIGHTS_OUTPUT_DIR": str(output), "FLIGHTS_WEATHER_URL": weather}
    return subprocess.Popen(
        [sys.executable, *(("-c", HEARING) if hearing else ("-m", "examples.flights"))],
        cwd=ROOT,
        env=os.environ | places,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if hearing else None,
        text=True,
    )


def wait_until_some_are_done(folder: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 30
    while time.monotonic() < limit and process.poll() is None:
        try:
            if query(folder, "SELECT 1 FROM audit LIMIT 1"):
                return
        except sqlite3.OperationalError:
            pass  # there is no table yet
        time.sleep(0.01)
    pytest.fail("no flight was done in time")


@pytest.fixture
def many(sample: Sample, tmp_path: Path) -> Sample:
    """Enough flights to be interrupted."""
    folder = tmp_path / "many"
    shutil.copytree(sample.folder, folder)
    lines = (DATA / "flights.csv").read_bytes().splitlines(keepends=True)[:501]
    (folder / "flights.csv").write_bytes(b"".join(lines))
    cancelled = sum(row["dep_time"] == "NA" for row in table(folder / "flights.csv"))
    return sample._replace(folder=folder, cancelled=cancelled, loaded=500 - cancelled)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_demo_goes_on_without_doubles(
    many: Sample, tmp_path: Path, weather: str, how: signal.Signals
) -> None:
    with demo(many, tmp_path, weather) as first:
        wait_until_some_are_done(tmp_path, first)
        first.send_signal(how)
        output, _ = first.communicate(timeout=30)
    done = len(query(tmp_path, "SELECT * FROM audit"))
    assert done < 500, "it was not interrupted"
    if how is signal.SIGKILL:
        assert first.returncode == -how
    else:
        assert first.returncode == 128 + how
        assert "Stopped before the end" in output
        assert "All counts agree." in output
        assert printed(output)["read"] == done
    with demo(many, tmp_path, weather) as second:
        output, _ = second.communicate(timeout=60)
    assert second.returncode == 0, output
    assert f"{done} are already done" in output
    assert printed(output) == {
        "read": 500,
        "loaded": many.loaded,
        "cancelled": many.cancelled,
        "rejected": 0,
        "failed": 0,
    }
    assert len(query(tmp_path, "SELECT * FROM flights")) == many.loaded
    assert len(query(tmp_path, "SELECT * FROM audit")) == 500


def test_two_interrupts_at_once_are_one(many: Sample, tmp_path: Path, weather: str) -> None:
    with demo(many, tmp_path, weather, hearing=True) as process:
        wait_until_some_are_done(tmp_path, process)
        # They wait until it goes on; of two that are alike, one would be delivered.
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        output, error = process.communicate(timeout=30)
    assert "All counts agree." in output
    assert (process.returncode, error) == (130, "")


@pytest.mark.slow
def test_an_interrupt_while_the_demo_is_imported_leaves_no_traceback() -> None:
    program = "import sys, threading, _thread, runpy; sys.path.insert(0, ''); sys.meta_path.insert(0, Finder())"
    finder = (
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'wirestate':\n"
        "            raise KeyboardInterrupt\n"
    )
    code = f"{finder}\n{program}\nrunpy.run_module('examples.flights', run_name='__main__', alter_sys=True)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_lets_the_flights_in_hand_finish_and_a_second_one_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.flights.terminal.ONE_PRESS", 0.0)
    with stopped_by_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        assert stop.code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("at", range(1, 25))
def test_a_signal_may_come_at_any_step_in_which_another_is_handled(at: int) -> None:
    stop, steps = Stop(), []

    def step(frame: Any, event: str, argument: Any) -> Any:
        steps.append(event)
        if len(steps) == at:
            stop.receive(signal.SIGINT, None)
        return step

    def receive() -> None:
        sys.settrace(step)
        stop.receive(signal.SIGINT, None)

    receiving = threading.Thread(target=receive, daemon=True)
    receiving.start()
    receiving.join(5)
    assert not receiving.is_alive()
    assert stop.code == 130


# --- what becomes of a flight -------------------------------------------------------------


def test_a_missing_number_is_missing_and_not_invalid() -> None:
    assert read_values({"air_time": "NA", "distance": "1400", "carrier": "UA", "tailnum": "NA"}) == {
        "air_time": None,
        "distance": 1400,
        "carrier": "UA",
        "tailnum": None,
    }
    with pytest.raises(Reject, match=r"distance: '14O0' is no number"):
        read_values({"distance": "14O0"})


def test_flights_without_weather_or_plane_are_loaded_without_them(settings: FlightsSettings, sample: Sample) -> None:
    assert run(settings, Stop())
    folder = settings.output_dir
    assert query(folder, "SELECT count(*) FROM flights WHERE temp IS NULL AND visib IS NULL") == [(sample.no_weather,)]
    assert query(folder, "SELECT count(*) FROM flights WHERE model IS NULL") == [(sample.no_plane,)]
    assert query(folder, "SELECT count(*) FROM flights WHERE airline IS NULL") == [(0,)]
    assert sample.no_weather > 0
    assert sample.no_plane > 0


def test_a_cancelled_flight_is_audited_and_not_loaded(settings: FlightsSettings, sample: Sample) -> None:
    assert run(settings, Stop())
    rows = query(settings.output_dir, "SELECT outcome, states FROM audit WHERE final_state = 'cancelled'")
    assert set(rows) == {("done", "received validated cancelled")}
    assert len(rows) == sample.cancelled


def test_no_weather_is_asked_for_once_and_is_no_failure(container: Any, sample: Sample) -> None:
    asked: list[str] = []
    row = next(row for row in sample.rows if row["dep_time"] != "NA")
    with container.weather.override(answering(404, asked)), machine(container) as fsm:
        assert fsm.process(row).final_state == "loaded"
    assert asked == [f"/weather/{row['origin']}/{row['time_hour']}"]


def test_a_failed_flight_is_audited_with_its_state_and_tried_again_later(
    container: Any, settings: FlightsSettings, sample: Sample
) -> None:
    row = next(row for row in sample.rows if row["dep_time"] != "NA")
    rows = "SELECT outcome, final_state, states, error FROM audit"
    with container.weather.override(answering(500, [])), machine(container) as fsm:
        result = fsm.process(row)
    assert (result.outcome, result.state) == ("failed", "enriched")
    assert query(settings.output_dir, rows) == [
        ("failed", "enriched", "received validated enriched", "HTTPStatusError")
    ]
    assert query(settings.output_dir, "SELECT * FROM flights") == []
    with machine(container) as fsm:
        assert fsm.process(row).final_state == "loaded"
        assert fsm.process(row).final_state == "skipped"
    assert query(settings.output_dir, rows) == [("done", "loaded", "received validated enriched loaded", None)]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"month": "13"}, "month is above 12"),
        ({"origin": "BOS"}, "origin is none of 'EWR', 'JFK', 'LGA'"),
        ({"day": "NA"}, "missing: day"),
        ({"time_hour": "noon"}, "time_hour does not match"),
    ],
)
def test_an_invalid_flight_is_rejected_and_leaves_no_audit_row(
    container: Any, settings: FlightsSettings, sample: Sample, wrong: dict[str, str], reason: str
) -> None:
    with machine(container) as fsm:
        result = fsm.process(sample.rows[0] | wrong)
    assert (result.outcome, result.state) == ("rejected", "validated")
    assert result.reasons[0].startswith(reason)
    assert query(settings.output_dir, "SELECT * FROM audit") == []


def machine(container: Any) -> SimpleFSM:
    return SimpleFSM(MACHINE, container=container, functions=functions)


# --- in an event loop ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_machine_runs_asynchronously_with_the_same_rows(
    settings: FlightsSettings, sample: Sample, tmp_path: Path
) -> None:
    assert run(settings, Stop())
    output = tmp_path / "async"
    output.mkdir()
    plain = settings.model_copy(update={"output_dir": output})
    with manager_of(FlightsContainer(settings=providers.Object(plain))) as manager:
        prepare(manager)
    database = {"kind": "database", "url": f"sqlite+aiosqlite:///{output / 'flights.db'}"}
    suspending = FlightsSettings(
        output_dir=output, weather_url=settings.weather_url, resources={"database": database}, _env_file=None
    )

    async def process_all() -> dict[str, int]:
        container = AsyncFlightsContainer(settings=providers.Object(suspending))
        async with (
            manager_of(container),
            SimpleFSM(MACHINE, container=container, functions=functions_async) as fsm,
        ):
            results = [await fsm.aprocess(row) for row in sample.rows]
            again = await fsm.aprocess(sample.rows[0])
        assert again.final_state == "skipped"
        return {state: sum(result.final_state == state for result in results) for state in ("loaded", "cancelled")}

    assert asyncio.run(process_all()) == {"loaded": sample.loaded, "cancelled": sample.cancelled}
    assert contents(output) == contents(tmp_path)


# --- the weather service ------------------------------------------------------------------


def test_the_weather_service_answers_one_connection_again_and_again(weather: str) -> None:
    host, port = weather.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        answers = connection.makefile("rb")
        for path, status in (("EWR/2013-01-01T10:00:00Z", b"200 OK"), ("EWR/1999-01-01T10:00:00Z", b"404 Not Found")):
            connection.sendall(f"GET /weather/{path} HTTP/1.1\r\nHost: weather\r\n\r\n".encode())
            assert answers.readline() == b"HTTP/1.1 " + status + b"\r\n"
            head = dict(line.split(b": ") for line in iter(answers.readline, b"\r\n"))
            answers.read(int(head[b"Content-Length"]))
        answers.close()


def test_the_weather_service_ends_with_the_one_who_started_it() -> None:
    with serving(DATA / "weather.csv") as address:
        assert httpx.get(address, trust_env=False).status_code == 404
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)
