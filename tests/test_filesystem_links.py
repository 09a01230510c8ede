"""No link leads out of a base folder of this disk, however it is swapped while files are read, written and listed."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from wirestate import BuildError, SimpleFSM
from wirestate.errors import InvalidSettingError, PathOutsideBaseError
from wirestate.resources.filesystem.adapter import FileSystemResourceAdapter
from wirestate.resources.filesystem.files import Files, Root
from wirestate.resources.filesystem.folders import DiskFolder, NamedFolders, OpenFolders

pytestmark = pytest.mark.usefixtures("invariant")
ROUNDS = 3000


@pytest.fixture(params=[OpenFolders, NamedFolders])
def kind(request: pytest.FixtureRequest) -> Callable[[str, str], DiskFolder]:
    """Both ways in which a system opens files."""
    found: Callable[[str, str], DiskFolder] = request.param
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.txt").write_text("outside")
    return tmp_path / "base"


@pytest.fixture
def fs(kind: Callable[[str, str], DiskFolder], base: Path) -> Files:
    return Files(Root("files", kind("files", str(base)), None, auto_cleanup=True, shown=str(base)))


def used(fs: Files, path: str, way: str) -> Any:
    """Use *path* in one way."""
    if way == "open":
        with fs.open(path) as file:
            return file.read()
    if way == "write":
        return fs.write(path, "inside")
    if way == "recursive":
        return fs.list(path, recursive=True)
    return getattr(fs, way)(path)


OUTSIDE = {
    "a file": ("link", "../out/x.txt", "link"),
    "an absolute file": ("link", "{out}/x.txt", "link"),
    "a folder": ("link", "../out", "link/x.txt"),
    "an absolute folder": ("link", "{out}", "link/x.txt"),
    "a new name": ("link", "../out", "link/new.txt"),
    "a dangling link": ("link", "../out/new.txt", "link"),
    "a sibling that begins alike": ("link", "../base-private/x.txt", "link"),
    "by a folder of the base": ("d/link", "../../out", "d/link/x.txt"),
    "through another link": ("link", "other/../../out/x.txt", "link"),
    "the folder above": ("link", "..", "link/out/x.txt"),
}


@pytest.mark.parametrize("way", ["read", "open", "write", "exists", "list", "recursive"])
@pytest.mark.parametrize("case", OUTSIDE)
def test_a_link_that_leads_out_is_refused(fs: Files, base: Path, case: str, way: str) -> None:
    link, target, path = OUTSIDE[case]
    (base / "d").mkdir()
    (base / "other").symlink_to("d")
    (base.parent / "base-private").mkdir()
    (base.parent / "base-private" / "x.txt").write_text("outside")
    (base / link).symlink_to(target.format(out=base.parent / "out"))
    before = sorted(base.parent.rglob("*"))
    with pytest.raises(PathOutsideBaseError):
        used(fs, path, way)
    assert (base.parent / "out" / "x.txt").read_text() == "outside"
    assert sorted(base.parent.rglob("*")) == before


@pytest.mark.parametrize("target", ["real", "./real/", "d/../real", "{base}/real", "again", "d/up/real"])
def test_a_link_that_stays_below_the_base_is_followed(fs: Files, base: Path, target: str) -> None:
    (base / "real").mkdir()
    (base / "d").mkdir()
    (base / "d" / "up").symlink_to("..")
    (base / "again").symlink_to("real")
    (base / "link").symlink_to(target.format(base=base))
    (base / "real" / "file").symlink_to("x.txt")
    fs.write("link/x.txt", "one")
    assert fs.read("real/x.txt") == fs.read("link/x.txt") == fs.read("link/file") == "one"
    fs.write("link/file", "two")  # what a link names is replaced, not the link
    assert (fs.read("real/x.txt"), (base / "real" / "file").is_symlink()) == ("two", True)
    assert fs.exists("link/x.txt")
    assert not fs.exists("link/y.txt")
    assert fs.list("link") == ["real/file", "real/x.txt"]
    assert fs.list("link", recursive=True) == ["real/file", "real/x.txt"]
    fs.delete("link/file")
    assert fs.list("real") == ["real/x.txt"]
    fs.delete("link")
    assert (base / "real").is_dir()


def test_links_that_lead_to_each_other_are_an_error_and_no_hang(fs: Files, base: Path) -> None:
    (base / "a").symlink_to("b")
    (base / "b").symlink_to("a")
    assert not fs.exists("a")
    for way in ("read", "open"):
        with pytest.raises(OSError, match="a"):
            used(fs, "a", way)


@pytest.mark.parametrize("path", ["x.txt/y", "no/y", "no"])
def test_an_error_names_the_whole_path(fs: Files, base: Path, path: str) -> None:
    (base / "x.txt").touch()
    with pytest.raises((FileNotFoundError, NotADirectoryError)) as caught:
        fs.read(path)
    assert str(base) in str(caught.value)


def test_an_error_of_a_function_keeps_its_own_path(fs: Files) -> None:
    with pytest.raises(FileNotFoundError) as caught, fs.open("x.txt", "w"):
        raise FileNotFoundError(2, "gone", "mine.txt")
    assert caught.value.filename == "mine.txt"
    assert fs.list() == []


@contextmanager
def swapped(base: Path) -> Iterator[threading.Event]:
    """Swap ``d`` all the time: now a folder of the base, now a link that leads out."""
    (base / "real").mkdir()
    (base / "real" / "x.txt").write_text("inside")
    (base / "real" / "s.yaml").write_text("transform: inside")
    over, begun = threading.Event(), threading.Event()

    def swap() -> None:
        while not over.is_set():
            shutil.rmtree(base / "d", ignore_errors=True)  # which a write has made
            with suppress(OSError):  # and again
                os.symlink("../out", base / "d")
                os.unlink(base / "d")
                os.rename(base / "real", base / "d")
                begun.set()
                os.rename(base / "d", base / "real")

    thread = threading.Thread(target=swap)
    thread.start()
    assert begun.wait(10)
    try:
        yield over
    finally:
        over.set()
        thread.join()


def test_no_race_of_a_link_leads_a_read_out(base: Path) -> None:
    fs = FileSystemResourceAdapter("files", base_path=base).acquire()
    found: set[str] = set()
    with swapped(base):
        for turn in range(ROUNDS):
            try:
                found.add(fs.read("d/x.txt") if turn % 2 else used(fs, "d/x.txt", "open"))
            except (PathOutsideBaseError, OSError):
                continue
    assert "outside" not in found


def test_no_race_of_a_link_leads_a_write_a_deletion_or_a_listing_out(base: Path) -> None:
    fs = FileSystemResourceAdapter("files", base_path=base).acquire()
    out = base.parent / "out"
    for number in range(10):
        (out / f"only-outside-{number}").touch()
    listed: set[str] = set()
    with swapped(base):
        for turn in range(ROUNDS // 3):
            for work in (
                lambda: fs.write(f"d/{turn}.txt", "inside"),  # noqa: B023  # called at once
                lambda: fs.delete("d/x.txt"),
                lambda: listed.update(fs.list("d")),
            ):
                try:
                    work()
                except (PathOutsideBaseError, OSError):
                    continue
    assert not any("outside" in name for name in listed)
    assert sorted(path.name for path in out.iterdir()) == [f"only-outside-{number}" for number in range(10)] + ["x.txt"]
    assert (out / "x.txt").read_text() == "outside"


def test_no_race_of_a_link_leads_an_include_out(base: Path) -> None:
    (base.parent / "out" / "s.yaml").write_text("transform: outside")
    (base / "machine.yaml").write_text("states: {s: {$include: d/s.yaml}}")
    with swapped(base):
        for _ in range(ROUNDS // 5):
            with pytest.raises(BuildError) as caught:
                SimpleFSM(base / "machine.yaml")
            assert "'outside'" not in str(caught.value)


def test_a_base_that_became_a_link_is_refused(base: Path, fs: Files) -> None:
    base.rename(base.parent / "old")
    base.symlink_to("out")
    with pytest.raises(PathOutsideBaseError):
        fs.read("x.txt")


def test_a_folder_that_may_only_be_walked_through_is_no_hindrance(base: Path) -> None:
    fs = FileSystemResourceAdapter("files", base_path=base).acquire()
    fs.write("d/x.txt", "x")
    (base / "d").chmod(0o300)
    try:
        assert fs.read("d/x.txt") == "x"
    finally:
        (base / "d").chmod(0o700)


def test_no_handle_is_left_open(fs: Files, base: Path) -> None:
    (base / "link").symlink_to("../out")
    (base / "d").mkdir()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        for path in ("link/x.txt", "d", "no/x", "d/no"):
            with pytest.raises((PathOutsideBaseError, OSError)):
                fs.read(path)
        fs.write("d/e/x.txt", "x")
        fs.list(recursive=True)
        fs.delete("d/e/x.txt")
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


# --- chains --------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache", "simplecache::filecache"])
@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_cache_in_front_of_this_disk_follows_no_link_out(base: Path, cache: str, scheme: str) -> None:
    (base / "link").symlink_to("../out")
    options = {"simplecache": {"cache_storage": str(base.parent / "cache")}}
    adapter = FileSystemResourceAdapter("files", base_path=f"{cache}::{scheme}://{base}", storage_options=options)
    fs = adapter.acquire()
    fs.write("d/x.txt", "inside")
    assert (fs.read("d/x.txt"), (base / "d" / "x.txt").read_text()) == ("inside", "inside")
    for way in ("read", "open", "write", "exists", "list"):
        with pytest.raises(PathOutsideBaseError):
            used(fs, "link/x.txt", way)
    adapter.close()


def test_a_view_of_a_folder_of_this_disk_is_refused(base: Path) -> None:
    with pytest.raises(InvalidSettingError, match="give the folder itself"):
        FileSystemResourceAdapter("files", base_path=f"dir::file://{base}")
