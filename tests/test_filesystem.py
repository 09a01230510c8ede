"""Files: the base folder is never left, writing is all or nothing, temporary files end with their lease."""

from __future__ import annotations

import io
import os
import socket
import stat
import threading
import traceback
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import place
from wirestate.errors import (
    InvalidSettingError,
    LeaseReleasedError,
    PathOutsideBaseError,
    ResourceUnavailableError,
)
from wirestate.resources.base import ResourceHealth
from wirestate.resources.filesystem.adapter import FileSystemResourceAdapter
from wirestate.resources.filesystem.files import Files
from wirestate.resources.filesystem.replacing import BLOCK

pytestmark = pytest.mark.usefixtures("invariant")


@pytest.fixture(params=["disk", "memory", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """A base in each kind of place, with the options that lead there; beside it lies a secret."""
    (tmp_path / "base").mkdir()
    (tmp_path / "secret").write_text("secret")
    return place(request.param, tmp_path / "base")


@pytest.fixture
def adapter(base: tuple[str, dict[str, Any]], tmp_path: Path) -> Iterator[FileSystemResourceAdapter]:
    path, options = base
    adapter = FileSystemResourceAdapter("files", base_path=path, temp_dir=tmp_path / "temp", storage_options=options)
    yield adapter
    adapter.close()


@pytest.fixture
def fs(adapter: FileSystemResourceAdapter) -> Iterator[Files]:
    lease = adapter.acquire()
    yield lease
    adapter.release(lease)


@pytest.fixture
def disk(tmp_path: Path) -> Files:
    return FileSystemResourceAdapter("files", base_path=tmp_path).acquire()


def test_what_was_written_is_read(fs: Files) -> None:
    fs.write("text.txt", "grüße")
    fs.write("bytes.bin", b"\0\1")
    fs.write("deep/down/there.txt", "x")
    assert fs.read("text.txt") == "grüße"
    assert fs.read("text.txt", "bytes") == "grüße".encode()
    assert fs.read("bytes.bin", mode="bytes") == b"\0\1"
    assert fs.read("deep/down/there.txt") == "x"


@pytest.mark.parametrize(("data", "text"), [({"ü": [1, None]}, '{"ü": [1, null]}'), ([1, 2], "[1, 2]")])
def test_records_are_written_as_json(fs: Files, data: Any, text: str) -> None:
    fs.write("output.json", data)
    assert fs.read("output.json") == text


def test_what_json_cannot_hold_leaves_the_old_file_whole(fs: Files) -> None:
    fs.write("output.json", "old")
    with pytest.raises(TypeError):
        fs.write("output.json", {"x": object()})
    assert fs.read("output.json") == "old"


def test_folders_are_listed_by_paths_that_can_be_read(fs: Files) -> None:
    for path in ("b.txt", "a/1.txt", "a/deep/2.txt"):
        fs.write(path, "x")
    assert fs.list() == ["a", "b.txt"]
    assert fs.list("a") == ["a/1.txt", "a/deep"]
    assert fs.list(recursive=True) == ["a/1.txt", "a/deep/2.txt", "b.txt"]


def test_a_base_without_files_is_an_empty_folder(fs: Files) -> None:
    assert fs.list() == fs.list(recursive=True) == []
    with pytest.raises(FileNotFoundError):
        fs.list("a")


def test_a_file_can_be_deleted_once(fs: Files) -> None:
    fs.write("a/x.txt", "x")
    assert fs.exists("a/x.txt")
    fs.delete("a/x.txt")
    assert not fs.exists("a/x.txt")
    with pytest.raises(FileNotFoundError):
        fs.delete("a/x.txt")


def test_a_folder_is_not_deleted(fs: Files) -> None:
    fs.write("a/x.txt", "x")
    for folder in ("a", "."):
        with pytest.raises(IsADirectoryError):
            fs.delete(folder)
    assert fs.exists("a/x.txt")


def test_a_missing_file_is_the_callers_mistake(fs: Files, adapter: FileSystemResourceAdapter) -> None:
    fs.write("there.txt", "x")
    with pytest.raises(FileNotFoundError):
        fs.read("missing.txt")
    assert adapter.health_check() is ResourceHealth.HEALTHY


OUTSIDE = [
    *("..", "../secret", "a/../../secret", "/etc/passwd", "x\0y"),
    *("file:///etc/passwd", "s3://other/x", "memory://x", "x/http://y"),
    *("%2e%2e/secret", "a/%2E%2e/.%2e/secret", "%252e%252e/secret", "%2fetc/passwd", "x%00y"),
    *("..\\secret", "a\\..\\..\\secret", "\\\\host\\share", "%2e%2e%5csecret"),
    "../base2/x",
]


CALLS = {
    "read": lambda fs, path: fs.read(path),
    "write": lambda fs, path: fs.write(path, "x"),
    "exists": lambda fs, path: fs.exists(path),
    "delete": lambda fs, path: fs.delete(path),
    "list": lambda fs, path: fs.list(path),
    "open": lambda fs, path: fs.open(path, "w").__enter__(),
}


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leaves_the_base(fs: Files, tmp_path: Path, path: str) -> None:
    for call in CALLS.values():
        with pytest.raises(PathOutsideBaseError) as caught:
            call(fs, path)
        assert repr(path) in str(caught.value)
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("path", ["", ".", "a/.."])
def test_the_base_itself_is_no_file(fs: Files, path: str) -> None:
    for verb in ("read", "write", "delete", "open"):
        with pytest.raises(IsADirectoryError, match="is the base folder"):
            CALLS[verb](fs, path)


def test_what_only_begins_like_the_base_is_out_of_reach(
    base: tuple[str, dict[str, Any]], fs: Files, tmp_path: Path
) -> None:
    (tmp_path / "base2").mkdir()
    path, options = base
    beside = FileSystemResourceAdapter("beside", base_path=f"{path}2", storage_options=options)
    beside.acquire().write("x.txt", "secret")
    beside.close()
    assert fs.list() == fs.list(recursive=True) == []
    assert not fs.exists("x.txt")
    with pytest.raises(PathOutsideBaseError):
        fs.read("../base2/x.txt")


def test_an_absolute_path_is_refused_even_below_the_base(disk: Files, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(PathOutsideBaseError):
        disk.read(tmp_path / "x")


def test_no_link_leaves_the_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "base" / "file").symlink_to(tmp_path / "secret")
    (tmp_path / "base" / "folder").symlink_to(tmp_path)
    fs = FileSystemResourceAdapter("files", base_path=tmp_path / "base").acquire()
    for path in ("file", "folder/secret", "folder/new"):
        with pytest.raises(PathOutsideBaseError):
            fs.read(path)
        with pytest.raises(PathOutsideBaseError):
            fs.write(path, "x")
    fs.delete("file")  # the link itself is below the base
    assert (tmp_path / "secret").read_text() == "secret"


def test_no_link_leads_to_a_neighbour_whose_name_begins_like_the_base(tmp_path: Path) -> None:
    for folder in ("base", "base-private", "base2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "secret").write_text("secret")
    fs = FileSystemResourceAdapter("files", base_path=tmp_path / "base").acquire()
    for neighbour in ("base-private", "base2"):
        (tmp_path / "base" / f"to-{neighbour}").symlink_to(tmp_path / neighbour)
        (tmp_path / "base" / f"file-of-{neighbour}").symlink_to(f"../{neighbour}/secret")
        for path in (f"to-{neighbour}/secret", f"to-{neighbour}/new", f"file-of-{neighbour}"):
            with pytest.raises(PathOutsideBaseError):
                fs.read(path)
            with pytest.raises(PathOutsideBaseError):
                fs.write(path, "x")
        assert [file.name for file in (tmp_path / neighbour).iterdir()] == ["secret"]
        assert (tmp_path / neighbour / "secret").read_text() == "secret"


def test_links_that_stay_below_the_base_work(disk: Files, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    disk.write("link/x.txt", "x")
    assert disk.read("real/x.txt") == "x"


def test_a_base_behind_a_link_works(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fs = FileSystemResourceAdapter("files", base_path=tmp_path / "link").acquire()
    fs.write("x.txt", "x")
    assert fs.list() == ["x.txt"]


def test_no_listing_looks_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret").touch()
    (tmp_path / "base" / "link").symlink_to(tmp_path / "out")
    fs = FileSystemResourceAdapter("files", base_path=tmp_path / "base").acquire()
    assert fs.list(recursive=True) == ["link"]
    with pytest.raises(PathOutsideBaseError):
        fs.list("link")


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_failed_write_leaves_the_old_file_whole(fs: Files, mode: Any) -> None:
    def write_half() -> None:
        with fs.open("x.txt", mode) as file:
            file.write("half" if mode == "w" else b"half")
            raise ZeroDivisionError

    fs.write("x.txt", "old")
    with pytest.raises(ZeroDivisionError):
        write_half()
    assert fs.read("x.txt") == "old"
    assert fs.list() == ["x.txt"]


def test_a_file_is_replaced_only_when_it_is_complete(fs: Files) -> None:
    fs.write("x.txt", "old")
    with fs.open("x.txt", "w") as file:
        file.write("new")
        assert fs.read("x.txt") == "old"
        assert fs.list() == ["x.txt"]
    assert fs.read("x.txt") == "new"


LARGE = 2 * BLOCK + 5  # a store gets and gives it in several pieces


def test_nobody_sees_half_a_file(adapter: FileSystemResourceAdapter, fs: Files) -> None:
    seen: list[bytes] = []
    over = threading.Event()

    def read_on() -> None:
        mine = adapter.acquire()
        while not over.is_set():
            content = mine.read("x.bin", "bytes")
            seen.append(bytes({*content[:1], *content[-1:]}) if len(content) == LARGE else b"half")
        adapter.release(mine)

    fs.write("x.bin", b"a" * LARGE)
    readers = [threading.Thread(target=read_on) for _ in range(2)]
    for reader in readers:
        reader.start()
    for letter in (b"b", b"c", b"d"):
        fs.write("x.bin", letter * LARGE)
        before = len(seen)
        while len(seen) < before + 3 and all(reader.is_alive() for reader in readers):
            over.wait(0.001)  # two reads may have begun before this version
    over.set()
    for reader in readers:
        reader.join()
    assert set(seen) <= {b"a", b"b", b"c", b"d"}
    assert b"d" in seen


def test_a_file_that_is_replaced_while_it_is_read_is_no_mixture(fs: Files) -> None:
    fs.write("x.bin", b"a" * LARGE)
    with fs.open("x.bin", "rb") as file:
        content = file.read(10)
        fs.write("x.bin", b"b" * LARGE)
        try:
            content += file.read()
        except OSError:  # a store may have the new version only, and says so
            return
    assert content == b"a" * LARGE


def test_two_readers_of_one_file_do_not_disturb_each_other(adapter: FileSystemResourceAdapter, fs: Files) -> None:
    fs.write("x.txt", "abcdef")
    with fs.open("x.txt") as one, fs.open("x.txt") as two:
        assert (one.read(2), two.read(3), one.read(), two.read()) == ("ab", "abc", "cdef", "def")


@pytest.mark.parametrize("base", ["disk", "s3"], indirect=True)
def test_a_large_file_is_read_block_by_block(fs: Files) -> None:
    line = "x" * 1023 + "\n"
    with fs.open("large.txt", "w") as file:
        for _ in range(56):
            file.write(line * 1024)
    lines = size = 0
    tracemalloc.start()
    try:
        with fs.open("large.txt") as file:
            for read in file:
                assert len(read) == 1024
                lines += 1
        with fs.open("large.txt", "rb") as raw:
            while block := raw.read(2**16):
                size += len(block)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (lines, size) == (56 * 1024, 56 * 2**20)
    assert most < 48 * 2**20  # five blocks: what is read, what comes next, and copies


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1])
def test_files_of_any_size_come_back_as_they_were(fs: Files, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"." * (size % 256)
    fs.write("x.bin", content)
    assert fs.read("x.bin", "bytes") == content
    with fs.open("x.bin", "rb") as file:
        assert file.read() == content
        file.seek(0, io.SEEK_SET)
        assert file.read(3) == content[:3]


def test_a_replaced_file_keeps_its_permissions(disk: Files, tmp_path: Path) -> None:
    disk.write("x.sh", "old")
    (tmp_path / "x.sh").chmod(0o750)
    disk.write("x.sh", "new")
    assert stat.S_IMODE((tmp_path / "x.sh").stat().st_mode) == 0o750


def test_text_is_opened_with_the_newlines_that_csv_wants(fs: Files) -> None:
    with fs.open("x.csv", "w", newline="") as file:
        file.write("a\r\nb\n")
    with fs.open("x.csv", newline="") as file:
        assert file.read() == "a\r\nb\n"


def test_unknown_modes_are_refused(fs: Files) -> None:
    with pytest.raises(InvalidSettingError, match="mode is 'a'"), fs.open("x", "a"):  # type: ignore[arg-type]
        pass
    with pytest.raises(InvalidSettingError, match="mode is 'json'"):
        fs.read("x", "json")  # type: ignore[arg-type]


def test_temporary_files_end_with_their_lease(adapter: FileSystemResourceAdapter, tmp_path: Path) -> None:
    mine, yours = adapter.acquire(), adapter.acquire()
    temp = mine.create_temp(prefix="part-", suffix=".csv")
    kept = yours.create_temp()
    assert temp.name.startswith("part-")
    assert temp.suffix == ".csv"
    mine.write(temp, "x")
    assert mine.read(temp) == temp.read_text() == "x"
    with pytest.raises(PathOutsideBaseError):
        yours.read(temp)  # only the lease that made it
    adapter.release(mine)
    assert not temp.exists()
    assert kept.exists()
    adapter.release(yours)
    assert list((tmp_path / "temp").iterdir()) == []


def test_temporary_files_can_be_kept(tmp_path: Path) -> None:
    adapter = FileSystemResourceAdapter("files", base_path=tmp_path, temp_dir=tmp_path / "t", auto_cleanup=False)
    fs = adapter.acquire()
    temp = fs.create_temp()
    adapter.release(fs)
    assert temp.exists()


@pytest.mark.parametrize("part", ["../x", "/x", "a\\b", "x\0y"])
def test_the_name_of_a_temporary_file_has_no_separators(fs: Files, part: str) -> None:
    for end in ("prefix", "suffix"):
        with pytest.raises(PathOutsideBaseError) as caught:
            fs.create_temp(**{end: part})
        assert repr(part) in str(caught.value)


def test_files_of_a_released_lease_are_out_of_reach(adapter: FileSystemResourceAdapter) -> None:
    fs = adapter.acquire()
    assert adapter.validate(fs)
    adapter.release(fs)
    assert not adapter.validate(fs)
    with pytest.raises(LeaseReleasedError):
        fs.write("x.txt", "x")
    with pytest.raises(LeaseReleasedError):
        fs.create_temp()


def test_a_file_that_is_still_open_when_its_lease_ends_is_not_written(adapter: FileSystemResourceAdapter) -> None:
    lease = adapter.acquire()
    lease.write("kept.txt", "old")
    with ExitStack() as blocks:
        for name in ("kept.txt", "new.txt"):
            blocks.enter_context(pytest.raises(LeaseReleasedError))
            blocks.enter_context(lease.open(name, "w")).write("new")
        adapter.release(lease)
    after = adapter.acquire()
    assert after.list() == ["kept.txt"]
    assert after.read("kept.txt") == "old"
    adapter.release(after)


def test_a_missing_base_folder_is_not_made(tmp_path: Path) -> None:
    adapter = FileSystemResourceAdapter("files", base_path=tmp_path / "typo")
    with pytest.raises(InvalidSettingError, match="does not exist; create it first"):
        adapter.acquire()
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("settings", [{"base_path": "/a\0b"}, {"base_path": "memory://a\0b"}, {"temp_dir": "/a\0b"}])
def test_a_null_character_in_a_path_is_refused_by_the_name_of_the_setting(settings: dict[str, str]) -> None:
    with pytest.raises(InvalidSettingError, match=f"'files': its {next(iter(settings))} holds a null character"):
        FileSystemResourceAdapter("files", **{"base_path": "/", **settings})  # type: ignore[arg-type]


def test_unknown_stores_are_refused_when_the_adapter_is_made() -> None:
    with pytest.raises(InvalidSettingError, match="fsspec knows no 'bogus://'"):
        FileSystemResourceAdapter("files", base_path="bogus://x")


@pytest.mark.parametrize("url", ["memory://x?sig=sesame", "memory://u:ope@n?sesame@b/x"])
def test_a_store_with_a_query_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidSettingError, match="storage_options=") as caught:
        FileSystemResourceAdapter("files", base_path=url)
    assert "sesame" not in str(caught.value)


def test_a_password_with_an_at_sign_is_not_shown() -> None:
    shown = repr(FileSystemResourceAdapter("files", base_path="memory://u:open@sesame@b/x"))
    assert "sesame" not in shown
    assert "memory://b/x" in shown


def test_no_secret_is_shown(tmp_path: Path) -> None:
    adapter = FileSystemResourceAdapter(
        "files", base_path="memory://me:sesame@host/x", storage_options={"key": "sesame"}
    )
    assert "sesame" not in repr(adapter)


def test_a_store_is_connected_to_when_it_is_acquired_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    adapter = FileSystemResourceAdapter("files", base_path=f"ftp://me:sesame@127.0.0.1:{port}/x")
    for _ in range(2):
        with pytest.raises(ResourceUnavailableError, match=r"ftp://127\.0\.0\.1") as caught:
            adapter.acquire()
    assert "sesame" not in "".join(traceback.format_exception(caught.value))
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    with pytest.raises(InvalidSettingError, match="fsspec knows no 'bogus://'"):
        FileSystemResourceAdapter("files", base_path="simplecache::bogus://x")


def test_a_relative_folder_is_that_of_the_moment_when_the_adapter_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    adapter = FileSystemResourceAdapter("files", base_path="here")
    monkeypatch.chdir("/")
    adapter.acquire().write("a.txt", "a")
    assert (tmp_path / "here" / "a.txt").read_text() == "a"


def test_adapters_never_share_a_file_system_instance(tmp_path: Path) -> None:
    one, two = (FileSystemResourceAdapter("files", base_path="memory://x") for _ in range(2))
    assert one._store.get().system is not two._store.get().system


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests leave threads behind
def test_a_forked_child_does_not_remove_temporary_files(tmp_path: Path) -> None:
    fs = FileSystemResourceAdapter("files", base_path=tmp_path).acquire()
    temp = fs.create_temp()
    child = os.fork()
    if child == 0:
        try:
            fs.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert temp.exists()
    fs.close()
    assert not temp.exists()


def test_a_base_path_that_is_a_file_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("")
    adapter = FileSystemResourceAdapter("files", base_path=tmp_path / "orders.csv")
    with pytest.raises(InvalidSettingError, match="is a file; name the folder"):
        adapter.acquire()
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert "is a file, not a folder" in (adapter.trouble or "")
