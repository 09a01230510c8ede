"""Sinks and rejects: what is written is whole, under its own name, and can be read again."""

from __future__ import annotations

import asyncio
import csv
import datetime
import decimal
import gzip
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec
import pytest

from wirestate.errors import AsyncInSyncRunError, NotAvailableError, RecordRejectedError, SinkError
from wirestate.machine.results import RunResult
from wirestate.running.rejects import open_rejects
from wirestate.running.rows import Row, unreadable, unstarted
from wirestate.running.sinks import open_sink
from wirestate.running.sources import Source, open_source
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

worlds = pytest.mark.parametrize("world", [BLOCKING, SUSPENDING], ids=["blocking", "suspending"])
RUN = "run7"
RESULT = RunResult(("done", "end", {}, ("end",), None, None, None, (), (), 0.0, 1, None, 0, None, True))


def put_all(sink: Any, records: Iterable[Any], world: World = BLOCKING, **options: Any) -> None:
    async def put() -> None:
        opened = open_sink(sink, world=world, run=RUN, **options)
        for record in records:
            await opened.put(record, RESULT)
        await opened.finish()

    if world.is_async:
        asyncio.run(put())
    else:
        drive(put())


def read_back(path: Any) -> list[Any]:
    source = open_source(path, world=BLOCKING)
    assert isinstance(source, Source)
    rows = list(iter(source.read, None))
    source.close()
    return [row.record for row in rows]


@worlds
@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt"])
def test_what_is_written_can_be_read(tmp_path: Path, world: World, suffix: str, packed: str) -> None:
    records = [{"text": text} for text in ("one", 'two, "quoted"', "drei ü", "")]
    if suffix in (".csv", ".tsv"):
        records = [{"id": str(n), **record, "t": "a\tb"} for n, record in enumerate(records)]
    path = tmp_path / f"out{suffix}{packed}"
    put_all(path, records, world)
    assert read_back(path) == records
    assert list(tmp_path.iterdir()) == [path]


# All control characters, what else some reader takes for the end of a line, a byte order mark, and what tables use.
AWKWARD = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA1), 0x2028, 0x2029, 0xFEFF)] + list("\"',;| \\#")
SHAPES = ("{0}", "{0}{0}", "a{0}b", "{0}a", "a{0}", '"{0}"', " {0} ", "{0}\n{0}", "\r{0}", ",{0}\t")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_gives_back_every_character_of_values_and_column_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    values = ["", *(shape.format(character) for character in AWKWARD for shape in SHAPES)]
    records = [{"id": one, "text": other} for one, other in zip(values, reversed(values), strict=True)]
    put_all(path, records)
    assert read_back(path) == records
    names = list(dict.fromkeys(values))
    for columns in (*([name] for name in names), names, names[::-1]):
        put_all(path, [dict.fromkeys(columns, "a\rb")])
        assert read_back(path) == [dict.fromkeys(columns, "a\rb")]


@pytest.mark.parametrize("character", ["\r", "\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_what_any_reader_takes_for_the_end_of_a_line_is_quoted(tmp_path: Path, character: str) -> None:
    put_all(tmp_path / "out.csv", [{f"a{character}": f"{character}b"}])
    assert (tmp_path / "out.csv").read_bytes() == f'"a{character}"\n"{character}b"\n'.encode()


def test_a_text_that_would_lose_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    put_all(path, [{"text": "10 %\r20 %"}, {"text": ""}])
    assert read_back(path) == [{"text": "10 %\r20 %"}, {"text": ""}]
    sink = open_sink(path, world=BLOCKING, run=RUN)
    for text in ("20 %\r", "a\nb", "a\n"):
        with pytest.raises(ValueError, match="one line for each record"):
            drive(sink.put({"text": text}, RESULT))
    sink.discard()


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_first_text_that_would_lose_its_byte_order_mark_is_refused(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"out.txt{packed}"
    sink = open_sink(path, world=BLOCKING, run=RUN)
    for text in ("\ufeffa", "\ufeff"):
        with pytest.raises(ValueError, match="byte order mark"):
            drive(sink.put({"text": text}, RESULT))
    later = [{"text": text} for text in ("a", "\ufeffb", "\ufeff", "c\ufeff")]
    for record in later:
        drive(sink.put(record, RESULT))
    drive(sink.finish())
    assert read_back(path) == later


@pytest.mark.parametrize(("suffix", "content"), [(".csv", ""), (".jsonl", ""), (".json", "[\n]\n"), (".txt", "")])
def test_a_sink_without_records_is_a_file_without_records(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"out{suffix}"
    put_all(path, [])
    assert path.read_text() == content


def test_a_table_with_said_columns_has_its_header_always(tmp_path: Path) -> None:
    put_all(tmp_path / "out.csv", [], columns=["b", "a"])
    assert (tmp_path / "out.csv").read_text() == "b,a\n"
    put_all(tmp_path / "out.csv", [{"a": 1, "b": None}], columns=["b", "a"])
    assert (tmp_path / "out.csv").read_text() == "b,a\n,1\n"


@worlds
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".json"])
@pytest.mark.parametrize("bad", [{"a": 1, "extra": "\ud800"}, {"\ud800": 1}])
def test_a_first_record_that_is_refused_fixes_no_columns(
    tmp_path: Path, world: World, suffix: str, bad: Mapping[str, Any]
) -> None:
    path = tmp_path / f"out{suffix}"

    async def put() -> None:
        sink = open_sink(path, world=world, run=RUN)
        for _ in range(2):
            with pytest.raises(UnicodeEncodeError):
                await sink.put(bad, RESULT)
        for n in range(3):
            await sink.put({"a": str(n)}, RESULT)
        await sink.finish()

    if world.is_async:
        asyncio.run(put())
    else:
        drive(put())
    assert read_back(path) == [{"a": "0"}, {"a": "1"}, {"a": "2"}]


def test_a_discarded_sink_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.csv.gz"
    path.write_text("old")
    open_sink(path, world=BLOCKING, run=RUN).discard()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("suffix", "good", "bad"),
    [
        (".csv", {"a": 1}, [{"a": 1, "b": 2}, {"b": 1}, {}, 5, {"a": "\ud800"}]),
        (".jsonl", {"a": 1}, [{"a": object()}, {"a": float("nan")}, {"a": "\ud800"}, {("a", 1): 2}]),
        (".json", {"a": 1}, [{"a": object()}, {"a": "\ud800"}]),
        (".txt", {"text": "x"}, [{"a": 1}, {"text": "a\nb"}, {"text": "a", "b": 1}]),
    ],
)
def test_a_record_that_does_not_fit_leaves_no_trace(
    tmp_path: Path, suffix: str, good: Mapping[str, Any], bad: list[Any]
) -> None:
    def write(path: Path, records: list[Any]) -> None:
        sink = open_sink(path, world=BLOCKING, run=RUN)
        for record in records:
            if record is good:
                drive(sink.put(record, RESULT))
            else:
                with pytest.raises((TypeError, ValueError)):
                    drive(sink.put(record, RESULT))
        drive(sink.finish())

    write(tmp_path / f"mixed{suffix}", [good, *bad, good])
    put_all(tmp_path / f"clean{suffix}", [good, good])
    assert (tmp_path / f"mixed{suffix}").read_bytes() == (tmp_path / f"clean{suffix}").read_bytes()


def test_a_record_with_other_keys_is_told_which(tmp_path: Path) -> None:
    sink = open_sink(tmp_path / "out.csv", world=BLOCKING, run=RUN)
    drive(sink.put({"a": 1, "b": 2}, RESULT))
    with pytest.raises(ValueError, match="'c' has no column, 'a', 'b' has no value; say columns="):
        drive(sink.put({"c": 3}, RESULT))
    sink.discard()


def test_json_holds_dates_decimals_and_bytes(tmp_path: Path) -> None:
    record = {
        "date": datetime.date(2013, 1, 2),
        "time": datetime.datetime(2013, 1, 2, 3, 4, tzinfo=datetime.UTC),
        "decimal": decimal.Decimal("1.10"),
        "id": uuid.UUID(int=1),
        "bytes": b"\x00\xff",
        "frozen": MappingProxyType({"a": (1, 2)}),
        "set": {1},
    }
    put_all(tmp_path / "out.jsonl", [record])
    assert read_back(tmp_path / "out.jsonl") == [
        {
            "date": "2013-01-02",
            "time": "2013-01-02T03:04:00+00:00",
            "decimal": "1.10",
            "id": "00000000-0000-0000-0000-000000000001",
            "bytes": "AP8=",
            "frozen": {"a": [1, 2]},
            "set": [1],
        }
    ]


@worlds
def test_a_url_is_written_through_fsspec(world: World) -> None:
    put_all("memory://out/rows.jsonl.gz", [{"a": 1}, {"a": 2}], world)
    with fsspec.open("memory://out/rows.jsonl.gz", "rb") as file:
        assert gzip.decompress(file.read()) == b'{"a": 1}\n{"a": 2}\n'


def test_a_device_is_written_directly() -> None:
    put_all("/dev/null", [{"a": 1}], format="jsonl")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere/out.csv", "cannot be written: its folder '.*nowhere' does not exist"),
        ("folder.csv", "is a folder"),
        ("out.xyz", "format="),
    ],
)
def test_a_sink_that_cannot_be_is_told_at_once(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SinkError, match=said):
        open_sink(tmp_path / name, world=BLOCKING, run=RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def fill(sink: Any) -> None:
    for _ in range(100):
        drive(sink.put({"a": "x" * 1000}, RESULT))


def test_a_full_disk_breaks_the_sink() -> None:
    sink = open_sink("/dev/full", world=BLOCKING, run=RUN, format="jsonl")
    with pytest.raises(SinkError, match="No space left"):
        fill(sink)
    with pytest.raises(SinkError, match="No space left"):
        drive(sink.put({"a": 1}, RESULT))
    drive(sink.finish())


def test_a_disk_that_is_full_at_the_end_breaks_the_sink() -> None:
    with pytest.raises(SinkError, match="No space left"):
        put_all("/dev/full", [{"a": 1}], format="jsonl")


def test_parquet_comes_later(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="later release"):
        open_sink(tmp_path / "out.parquet", world=BLOCKING, run=RUN)


def test_a_function_gets_the_result_if_it_takes_one() -> None:
    got: list[Any] = []

    def one(record: Any) -> None:
        got.append(record)

    def two(record: Any, result: RunResult) -> None:
        got.append((record, result))

    def named(record: Any, result: RunResult | None = None) -> None:
        got.append((record, result))

    def other(record: Any, flush: bool = False) -> None:
        got.append((record, flush))

    for call in (one, two, named, other, got.append):
        put_all(call, [1])
    assert got == [1, (1, RESULT), (1, RESULT), (1, False), 1]


def test_an_asynchronous_function_is_awaited_in_asynchronous_streams_only() -> None:
    got = []

    class Receiver:
        async def __call__(self, record: Any) -> None:
            await asyncio.sleep(0)
            got.append(record)

    put_all(Receiver(), [1, 2], SUSPENDING)
    assert got == [1, 2]
    with pytest.raises(AsyncInSyncRunError, match="aprocess_stream"):
        open_sink(Receiver(), world=BLOCKING, run=RUN)


def test_what_is_no_sink_is_refused() -> None:
    with pytest.raises(SinkError, match="not list"):
        open_sink([], world=BLOCKING, run=RUN)  # type: ignore[arg-type]  # the mistake that is tested


def reject(receiver: Any, *pairs: tuple[Row, RunResult]) -> None:
    rejects = open_rejects(receiver, "in.csv", world=BLOCKING, run=RUN)
    for row, result in pairs:
        drive(rejects.put(row, result))
    drive(rejects.finish())


BAD_ROW = Row(None, 4, 2, "1,2,3", "3 fields where the header has 2")
FAILED_ROW = Row({"id": "9"}, 5, 3)
FAILED = RunResult(
    (
        "failed",
        "load",
        {"id": 0},
        ("start", "load"),
        KeyError("x"),
        "load",
        "transform",
        (),
        (),
        0.1,
        2,
        None,
        3,
        5,
        True,
    )
)


def test_rejects_say_where_and_why(tmp_path: Path) -> None:
    refused = unstarted(Row({"id": "7"}, 9, 8), "rejected", "validate", RecordRejectedError(["too old", "no name"]))
    path = tmp_path / "rejects.jsonl"
    reject(path, (BAD_ROW, unreadable(BAD_ROW)), (FAILED_ROW, FAILED), (Row({"id": "7"}, 9, 8), refused))
    first, second, third = map(json.loads, path.read_text().splitlines())
    assert first == {
        "line": 4,
        "position": 2,
        "source": "in.csv",
        "outcome": "rejected",
        "state": None,
        "phase": "read",
        "reason": "3 fields where the header has 2",
        "error": "RecordRejectedError: 3 fields where the header has 2",
        "raw": "1,2,3",
    }
    assert second == {
        "line": 5,
        "position": 3,
        "source": "in.csv",
        "outcome": "failed",
        "state": "load",
        "phase": "transform",
        "reason": "KeyError: 'x'",
        "error": "KeyError: 'x'",
        "record": {"id": "9"},
    }
    assert third["reason"] == "too old; no name"


def test_rejects_fit_a_table(tmp_path: Path) -> None:
    path = tmp_path / "rejects.csv"
    reject(path, (BAD_ROW, unreadable(BAD_ROW)), (FAILED_ROW, FAILED))
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["record"], first["raw"]) == ("", "1,2,3")
    assert (json.loads(second["record"]), second["raw"], second["state"]) == ({"id": "9"}, "", "load")


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_rejects_in_a_table_keep_the_ends_of_lines_in_what_they_quote(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rejects{suffix}"
    row = Row(None, 4, 2, "1,2\r3\r\n4", "two\rlines")
    reject(path, (row, unreadable(row)))
    [entry] = read_back(path)
    assert (entry["raw"], entry["reason"]) == ("1,2\r3\r\n4", "two\rlines")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_reject_that_text_cannot_hold_is_shown(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rejects{suffix}"
    reject(path, *((Row(record, None, 0), FAILED) for record in ({"a": 1j}, {"a": "\ud800"}, 1j)))
    text = path.read_text()
    assert "{'a': 1j}" in text
    assert "ud800" in text


def test_a_function_gets_each_entry_with_the_record_itself() -> None:
    record = object()
    got: list[Any] = []
    reject(got.append, (Row(record, None, 0), FAILED))
    assert got[0]["record"] is record


def test_a_function_that_refuses_a_reject_breaks_the_stream() -> None:
    def full(entry: Any) -> None:
        raise LookupError("no room")

    with pytest.raises(SinkError, match="no room"):
        reject(full, (FAILED_ROW, FAILED))


def test_a_text_file_cannot_hold_rejects(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="cannot hold"):
        open_rejects(tmp_path / "rejects.txt", None, world=BLOCKING, run=RUN)
