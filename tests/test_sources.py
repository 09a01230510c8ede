"""Sources: every row once, with its position and physical line; what cannot be read says why."""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib
import io
import json
import lzma
import re
import sys
import traceback
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard

from wirestate.errors import AsyncInSyncRunError, NotAvailableError, SourceError
from wirestate.redaction import without_secrets
from wirestate.running.compression import packer_of, unpacked
from wirestate.running.rows import Row
from wirestate.running.sources import Source, open_source
from wirestate.waiting import BLOCKING


def rows_of(source: Any, **options: Any) -> list[Row]:
    opened = open_source(source, world=BLOCKING, **options)
    assert isinstance(opened, Source)
    try:
        rows = []
        while (row := opened.read()) is not None:
            rows.append(row)
        return rows
    finally:
        opened.close()


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def records(rows: list[Row]) -> list[Any]:
    return [row.record for row in rows if row.reason is None]


def test_a_csv_row_knows_its_line_and_keeps_its_text(tmp_path: Path) -> None:
    rows = rows_of(written(tmp_path, "a.csv", "id,n\n1, 02 \n2,\n"))
    assert rows == [Row({"id": "1", "n": " 02 "}, 2, 0), Row({"id": "2", "n": ""}, 3, 1)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quoted_value_of_many_lines_is_counted_right(tmp_path: Path, end: str) -> None:
    text = f'id,n{end}1,"a{end}b"{end}{end}2,"c, ""d"""{end}3,x'
    rows = rows_of(written(tmp_path, "a.csv", text))
    assert [(row.line, row.position) for row in rows] == [(2, 0), (5, 1), (6, 2)]
    assert [row.record["n"] for row in rows] == [f"a{end}b", 'c, "d"', "x"]


def test_unreadable_rows_are_told_and_reading_goes_on(tmp_path: Path) -> None:
    content = b'id,n\n1,a\n2\n3,\xff\xfe\n4,"x\n\xc3\xa9"\n5,"x\n\xe9"\n6,b,c\n7,\xc3\xbc\n'
    rows = rows_of(written(tmp_path, "a.csv", content))
    assert [(row.line, row.position, row.raw, row.reason) for row in rows if row.reason] == [
        (3, 1, "2", "1 fields where the header has 2"),
        (4, 2, "3,\\xff\\xfe", "not UTF-8"),
        (7, 4, '5,"x\n\\xe9"', "not UTF-8"),
        (9, 5, "6,b,c", "3 fields where the header has 2"),
    ]
    assert [record["n"] for record in records(rows)] == ["a", "x\né", "ü"]


def test_a_quote_that_nobody_closes_costs_one_line(tmp_path: Path) -> None:
    lines = ["id,n", '1,"open', *(f'{n},"fine {n}"' for n in range(2, 50)), '50,"open again', "51,last"]
    rows = rows_of(written(tmp_path, "a.csv", "\n".join(lines)))
    assert [(row.line, row.raw) for row in rows if row.reason] == [(2, '1,"open'), (51, '50,"open again')]
    assert [(row.line, row.record["id"]) for row in rows if not row.reason] == [
        *((n + 1, str(n)) for n in range(2, 50)),
        (52, "51"),
    ]
    assert [row.position for row in rows] == list(range(51))


def test_a_value_beyond_the_limit_of_csv_costs_one_row(tmp_path: Path) -> None:
    rows = rows_of(written(tmp_path, "a.csv", f"id,n\n1,{'x' * 200_000}\n2,b\n"))
    assert "limit" in str(rows[0].reason)
    assert rows[1] == Row({"id": "2", "n": "b"}, 3, 1)


def test_tsv_separates_by_tabs(tmp_path: Path) -> None:
    assert records(rows_of(written(tmp_path, "a.TSV", "a\tb\n1,0\t2\n"))) == [{"a": "1,0", "b": "2"}]


@pytest.mark.parametrize(
    ("header", "said"),
    [("", "empty"), ("\n\n", "empty"), ("a,b,a\n1,2,3\n", "twice: 'a'"), (b"a,\xff\n", "not UTF-8")],
)
def test_a_wrong_header_is_told_at_once(tmp_path: Path, header: str | bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_source(written(tmp_path, "a.csv", header), world=BLOCKING)


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "id\n1\n"), ("a.jsonl", '{"id": "1"}\n'), ("a.json", '[{"id": "1"}]')]
)
def test_a_byte_order_mark_is_no_content(tmp_path: Path, name: str, content: str) -> None:
    assert records(rows_of(written(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))) == [{"id": "1"}]


def test_text_lines_are_records_with_one_key(tmp_path: Path) -> None:
    rows = rows_of(written(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\n\n\xff\nlast"))
    assert records(rows) == [{"text": "one"}, {"text": ""}, {"text": "last"}]
    assert rows[2] == Row(None, 3, 2, "\\xff", "not UTF-8")
    assert rows[3].line == 4


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson"])
def test_json_lines_are_read_and_bad_ones_told(tmp_path: Path, name: str) -> None:
    rows = rows_of(written(tmp_path, name, b'{"a": 1}\n\n{"a": }\r\n"\xff"\nnull\n' + b"[" * 100_000 + b'\n{"a": 2}'))
    assert [(row.line, row.position) for row in rows] == [(1, 0), (3, 1), (4, 2), (5, 3), (6, 4), (7, 5)]
    assert records(rows) == [{"a": 1}, {"a": 2}]
    assert [(row.raw, str(row.reason)[:9]) for row in rows[1:3]] == [('{"a": }', "not JSON:"), ('"\\xff"', "not UTF-8")]
    assert (rows[3].raw, rows[3].reason) == ("null", "a record must be a mapping, not NoneType")
    assert str(rows[4].reason).startswith("not JSON")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_is_no_mapping_is_a_rejected_row_and_its_text_is_kept(tmp_path: Path, name: str) -> None:
    lines = ['{"a": 1}', "[1]", '"x"']
    text = "\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]"
    rows = rows_of(written(tmp_path, name, text))
    told = "a record must be a mapping, not "
    assert [(row.raw, row.reason) for row in rows[1:]] == [("[1]", f"{told}list"), ('"x"', f"{told}str")]


def test_a_json_array_is_streamed_over_the_edges_of_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        {"id": n, "t": 'a "quoted" ],}[{ \\ text' * (n % 3), "l": [1, {"x": []}], "n": -1.5e10} for n in range(40)
    ]
    path = written(tmp_path, "a.json", json.dumps(wanted, indent=1))
    for size in (1, 2, 3, 7, 64, 1 << 16):
        monkeypatch.setattr("wirestate.running.json_array._PIECE", size)
        rows = rows_of(path)
        assert records(rows) == wanted
        assert rows[1].line == path.read_text().splitlines().index(" {", 3) + 1


@pytest.mark.parametrize("piece", [1, 5, 1 << 16])
def test_a_bad_element_of_an_array_is_alone_so(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wirestate.running.json_array._PIECE", piece)
    content = b'[{"a": 1},\n{"a": nope},\n{"b": "\xff"},\n{} x, 12, 1 2, "s",\n{"a": [",]"]}]\n'
    rows = rows_of(written(tmp_path, "a.json", content))
    assert [(row.position, row.line, row.raw) for row in rows if row.reason] == [
        (1, 2, '{"a": nope}'),
        (2, 3, '{"b": "\\xff"}'),
        (3, 4, "{} x"),
        (4, 4, "12"),
        (5, 4, "1 2"),
        (6, 4, '"s"'),
    ]
    assert records(rows) == [{"a": 1}, {"a": [",]"]}]


@pytest.mark.parametrize("content", ["[]", " [ \n] \n"])
def test_an_empty_array_has_no_rows(tmp_path: Path, content: str) -> None:
    assert rows_of(written(tmp_path, "a.json", content)) == []


@pytest.mark.parametrize("content", ["", '{"a": 1}', "1"])
def test_json_that_is_no_array_is_told_at_once(tmp_path: Path, content: str) -> None:
    with pytest.raises(SourceError, match="jsonl"):
        open_source(written(tmp_path, "a.json", content), world=BLOCKING)


@pytest.mark.parametrize(
    ("content", "said"),
    [('[{"a": 1}, {"b"', "array is not closed"), ('[{"a": 1}}', "ends with '}'"), ('[{"a": 1}] {}', "after the end")],
)
def test_an_array_without_its_end_fails_after_what_it_holds(tmp_path: Path, content: str, said: str) -> None:
    opened = open_source(written(tmp_path, "a.json", content + " "), world=BLOCKING)
    assert isinstance(opened, Source)
    assert opened.read() == Row({"a": 1}, 1, 0)
    with pytest.raises(SourceError, match=said):
        opened.read()
    opened.close()


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard.compress)],
)
@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", b"id\n1\n2\n"), ("a.jsonl", b'{"id": "1"}\n{"id": "2"}\n'), ("a.txt", b"1\n2\n")]
)
def test_packed_files_are_unpacked_member_by_member(
    tmp_path: Path, suffix: str, pack: Any, name: str, content: bytes
) -> None:
    path = written(tmp_path, name + suffix, pack(content[:5]) + pack(content[5:]))
    assert [list(record.values()) for record in records(rows_of(path))] == [["1"], ["2"]]


ROWS = [b'{"id": %d}\n' % n for n in range(5_000)]
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def rows_until_it_fails(path: Path) -> int:
    read = 0
    with ExitStack() as opened, pytest.raises(SourceError, match=re.escape(path.name)):  # noqa: PT012  # counted on the way
        source = open_source(path, world=BLOCKING)
        assert isinstance(source, Source)
        opened.callback(source.close)
        while source.read() is not None:
            read += 1
    return read


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_that_is_cut_off_fails_the_source(tmp_path: Path, suffix: str) -> None:
    whole = PACKERS[suffix](b"".join(ROWS))
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        assert rows_until_it_fails(written(tmp_path, f"a.jsonl{suffix}", whole[:size])) <= len(ROWS)


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_file_that_is_cut_off_in_its_second_frame_fails_after_the_rows_of_its_first(
    tmp_path: Path, suffix: str
) -> None:
    first, second = PACKERS[suffix](b"".join(ROWS)), PACKERS[suffix](b'{"id": 5000}\n' * 9)
    for size in (7, len(second) // 2, len(second) - 1):
        path = written(tmp_path, f"a.jsonl{suffix}", first + second[:size])
        assert rows_until_it_fails(path) in (len(ROWS), len(ROWS) + 9)  # its checksum may be all that is missing


JUNK = [b"\n", b"junk" * 30, b"\1" + bytes(30), bytes(1), bytes(7), bytes(1030)]


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("junk", [*JUNK, None], ids=range(len(JUNK) + 1))
def test_what_is_no_stream_behind_a_compressed_stream_fails_the_source(
    tmp_path: Path, suffix: str, junk: bytes | None
) -> None:
    first, second = PACKERS[suffix](b"".join(ROWS)), PACKERS[suffix](ROWS[0])
    between = b"?" + second[1:] if junk is None else junk  # None: a stream that is damaged
    for content in (first + between + second, first + between):
        assert rows_until_it_fails(written(tmp_path, f"a.jsonl{suffix}", content)) == len(ROWS)
    assert rows_until_it_fails(written(tmp_path, f"a.jsonl{suffix}", between)) == 0


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_a_later_part_of_an_own_output_that_is_damaged_fails_the_source(tmp_path: Path, suffix: str) -> None:
    packer = packer_of(suffix)
    streams = [packer.pack(b"".join(ROWS)) for _ in range(3)]
    path = written(tmp_path, f"a.jsonl{suffix}", b"".join(streams))
    assert len(rows_of(path)) == 3 * len(ROWS)
    for at in (0, 5, len(streams[0]) // 2, len(streams[0]) - 1):
        damaged = bytearray(streams[1])
        damaged[at] ^= 0xFF
        path.write_bytes(streams[0] + damaged + streams[2])
        assert len(ROWS) <= rows_until_it_fails(path) <= 2 * len(ROWS)


@pytest.mark.parametrize("zeros", [4, 16, 1020, 1024, 4096])
def test_the_zeros_that_xz_allows_behind_a_stream_are_read_over(tmp_path: Path, zeros: int) -> None:
    content = lzma.compress(ROWS[0]) + bytes(zeros) + lzma.compress(ROWS[1]) + bytes(zeros)
    assert records(rows_of(written(tmp_path, "a.jsonl.xz", content))) == [{"id": 0}, {"id": 1}]


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_a_small_file_of_large_content_is_read_in_bounded_memory(suffix: str) -> None:
    packed = PACKERS[suffix](bytes(50_000_000))
    tracemalloc.start()
    try:
        file = unpacked(io.BytesIO(packed), suffix)
        before = tracemalloc.get_traced_memory()[0]
        assert sum(map(len, iter(lambda: file.read(8192), b""))) == 50_000_000
        assert tracemalloc.get_traced_memory()[1] - before < 20_000_000  # the dictionary of xz is 8 MB
    finally:
        tracemalloc.stop()


def test_zstd_that_is_cut_off_at_the_end_of_a_line_fails_the_source(tmp_path: Path) -> None:
    frame = zstandard.ZstdCompressor().compressobj()
    flushed = frame.compress(b"".join(ROWS)) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert rows_until_it_fails(written(tmp_path, "a.jsonl.zst", flushed)) == len(ROWS)


def test_zstd_frames_of_every_kind_are_read_whole(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    checked = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(b"".join(ROWS))
    content = skippable + checked + zstandard.compress(b"") + skippable + zstandard.compress(ROWS[0])
    assert len(rows_of(written(tmp_path, "a.jsonl.zst", content))) == len(ROWS) + 1
    assert rows_of(written(tmp_path, "a.jsonl.zst", zstandard.compress(b""))) == []


def test_what_is_no_archive_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.csv\.gz"):
        open_source(written(tmp_path, "a.csv.gz", b"no archive"), world=BLOCKING)


def test_a_url_is_read_through_fsspec() -> None:
    with fsspec.open("memory://in/rows.csv.gz", "wb") as file:
        file.write(gzip.compress(b"id\n7\n"))
    opened = open_source("memory://in/rows.csv.gz", world=BLOCKING)
    assert isinstance(opened, Source)
    assert opened.is_remote
    assert opened.read() == Row({"id": "7"}, 2, 0)
    opened.close()


def test_a_missing_file_is_told_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nope\.csv' cannot be opened: No such file"):
        open_source(tmp_path / "nope.csv", world=BLOCKING)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a.xyz", {}, r"'\.xyz' names no known format; say the format \(format="),
        ("a", {}, r"say the format \(format=, --format\), one of 'csv'"),
        ("a.csvv", {}, r"did you mean '\.csv'\?"),
        ("a.csv", {"format": "jsonn"}, "did you mean 'json'"),
    ],
)
def test_an_unknown_format_says_which_are_known(tmp_path: Path, name: str, options: Any, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        open_source(written(tmp_path, name, "x"), world=BLOCKING, **options)


def test_a_format_that_is_said_wins_over_the_suffix(tmp_path: Path) -> None:
    assert records(rows_of(written(tmp_path, "a.txt", "id\n1\n"), format="csv")) == [{"id": "1"}]


def test_parquet_comes_later(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="later release"):
        open_source(tmp_path / "a.parquet", world=BLOCKING)


def test_an_iterable_numbers_its_records() -> None:
    assert rows_of(iter([{"a": 1}, {"a": 2}])) == [Row({"a": 1}, None, 0), Row({"a": 2}, None, 1)]


def test_a_limit_reads_no_further() -> None:
    endless = iter(int, 1)
    assert len(rows_of(endless, limit=3)) == 3
    assert open_source([1, 2, 3], world=BLOCKING, limit=2).total == 2


def test_an_error_of_an_iterable_is_the_sources() -> None:
    def broken() -> Any:
        yield {"a": 1}
        raise KeyError("gone")

    with pytest.raises(SourceError, match="KeyError: 'gone'") as caught:
        rows_of(broken())
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("source", [{"a": 1}, 5, b"x"])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(SourceError, match="a source is"):
        open_source(source, world=BLOCKING)


def test_an_asynchronous_source_needs_an_asynchronous_stream() -> None:
    async def rows() -> Any:
        yield {}

    with pytest.raises(AsyncInSyncRunError, match="aprocess_stream"):
        open_source(rows(), world=BLOCKING)


SECRET = "ftp://me:s3c/r@t@127.0.0.1:1/a.csv"
SECRET_TOO = "ftp://me:hidden@word@127.0.0.1:1/a.csv"


def test_a_url_is_told_without_its_password_by_errors_and_by_their_causes() -> None:
    with pytest.raises(SourceError) as told:
        open_source(SECRET_TOO, world=BLOCKING)
    text = "".join(traceback.format_exception(told.value))
    assert "source 'ftp://127.0.0.1:1/a.csv' cannot be opened: " in text
    assert "hidden" not in text
    assert "@word" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no {SECRET!r} today", "no 'ftp://127.0.0.1:1/a.csv' today"),
        ("s3://key@bucket/a@b.csv", "s3://bucket/a@b.csv"),
        ("http://localhost:80/@a.csv", "http://localhost:80/@a.csv"),
        ("me@host and memory://a", "me@host and memory://a"),
        ("http://a/b.csv?token=hidden and s3://a/c.csv", "http://a/b.csv and s3://a/c.csv"),
        ("http://a/b.csv#token=hidden and s3://a/c.csv", "http://a/b.csv and s3://a/c.csv"),
        ("http://a#hidden?hidden and http://a/b?x#hidden", "http://a and http://a/b"),
        ("no. 1 of #5, is it?", "no. 1 of #5, is it?"),
    ],
)
def test_user_password_query_and_fragment_are_taken_out_of_every_url_of_a_text(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_url_whose_library_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for name in ("fsspec.implementations.http", "s3fs.core"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    registry = importlib.import_module("fsspec.registry")
    for protocol in ("http", "s3"):
        monkeypatch.delitem(registry._registry, protocol, raising=False)
    for url, packages in (("http://h/a.csv", "requests aiohttp"), ("s3://b/a.csv", r"'wirestate\[s3\]'")):
        with pytest.raises(SourceError, match=f"cannot be opened: '.*://' needs a package: pip install {packages}$"):
            open_source(url, world=BLOCKING)


def test_a_field_over_the_limit_of_csv_says_how_to_raise_it(tmp_path: Path) -> None:
    rows = rows_of(written(tmp_path, "a.csv", f"a\n{'x' * (csv.field_size_limit() + 1)}\n1\n"))
    assert "csv.field_size_limit(n)" in str(rows[0].reason)
    assert rows[1].record == {"a": "1"}
