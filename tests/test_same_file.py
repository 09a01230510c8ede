"""One file under two names: nothing that is read is ever written, and nothing is written twice."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from wirestate import SimpleFSM, WirestateSettings, container_from_settings
from wirestate.cli.app import app
from wirestate.errors import SinkError
from wirestate.running.same_file import shared_file
from wirestate.running.stream import StreamSummary

MACHINE = {"name": "pass", "states": {"end": {}}}
ROWS = "id\n1\n2\n"


def linked(folder: Path, name: str) -> str:
    (folder / "link.csv").symlink_to(name)
    return "link.csv"


def hard_linked(folder: Path, name: str) -> str:
    (folder / name).touch()
    os.link(folder / name, folder / "hard.csv")
    return "hard.csv"


def through_a_linked_folder(folder: Path, name: str) -> str:
    (folder / "same").symlink_to(folder, target_is_directory=True)
    return f"same/{name}"


def through_two_links(folder: Path, name: str) -> str:
    (folder / "first.csv").symlink_to("second.csv")
    (folder / "second.csv").symlink_to(folder / name)
    return str(folder / "first.csv")


SPELLINGS: dict[str, Callable[[Path, str], str]] = {
    "the same": lambda folder, name: name,
    "dot": lambda folder, name: f"./{name}",
    "double slash": lambda folder, name: f".//{name}",
    "up and down": lambda folder, name: f"../{folder.name}/{name}",
    "absolute": lambda folder, name: str(folder / name),
    "file URL": lambda folder, name: f"file://{folder}/{name}",
    "relative file URL": lambda folder, name: f"file://{name}",
    "local URL": lambda folder, name: f"local://{folder}/{name}",
    "chained URL": lambda folder, name: f"simplecache::file://{folder}/{name}",
    "link": linked,
    "hard link": hard_linked,
    "linked folder": through_a_linked_folder,
    "two links": through_two_links,
}
spelt = pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
both_worlds = pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "tasks"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text(ROWS)
    (tmp_path / "machine.json").write_text(json.dumps(MACHINE))
    (tmp_path / "profile.toml").write_text("")
    return tmp_path


def stream(asynchronous: bool, *arguments: Any, machine: Any = MACHINE, **options: Any) -> StreamSummary:
    with SimpleFSM(machine) as fsm:
        return stream_of(fsm, asynchronous, *arguments, **options)


def stream_of(fsm: SimpleFSM, asynchronous: bool, *arguments: Any, **options: Any) -> StreamSummary:
    if asynchronous:
        return asyncio.run(fsm.aprocess_stream(*arguments, **options))
    return fsm.process_stream(*arguments, **options)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


@spelt
@both_worlds
def test_a_stream_never_writes_the_file_that_it_reads(
    folder: Path, asynchronous: bool, spell: Callable[[Path, str], str]
) -> None:
    other = spell(folder, "in.csv")
    before = contents(folder)
    for options in ({"sink": other}, {"rejects": other}):
        with pytest.raises(SinkError, match="is the file of the source too; name another file") as caught:
            stream(asynchronous, "in.csv", **options)
        assert caught.value.summary is None
        with pytest.raises(SinkError, match="is the file of the source too"):
            stream(asynchronous, Path(other) if "://" not in other else other, **{next(iter(options)): "in.csv"})
    assert contents(folder) == before


@spelt
@both_worlds
def test_a_stream_never_writes_one_file_twice(
    folder: Path, asynchronous: bool, spell: Callable[[Path, str], str]
) -> None:
    other = spell(folder, "out.csv")  # which is not there yet, or is a link that leads to nothing
    before = contents(folder)
    for sink, rejects in (("out.csv", other), (other, "out.csv")):
        with pytest.raises(SinkError, match="is the file of the sink too; name another file"):
            stream(asynchronous, [{"id": 1}], sink, rejects=rejects)
    assert contents(folder) == before


@both_worlds
def test_a_stream_never_writes_its_machine_and_profile(
    folder: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIRESTATE_PROFILE", "profile.toml")
    before = contents(folder)
    for path, who in (("./machine.json", "machine"), (str(folder / "profile.toml"), "profile")):
        for options in ({"sink": path}, {"rejects": path}):
            with pytest.raises(SinkError, match=f"is the file of the {who} "):
                stream(asynchronous, "in.csv", machine="machine.json", format="csv", **options)
    assert contents(folder) == before


@both_worlds
def test_a_stream_never_writes_the_profiles_that_made_its_container(
    folder: Path, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "base.toml").write_text("")
    container = container_from_settings(WirestateSettings(_profile="profile.toml", _env_file=None))
    fsm = SimpleFSM("machine.json", container=container)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")  # what was named before is what it was then
    before = contents(folder)
    for name in ("profile.toml", "base.toml", "machine.json"):
        with pytest.raises(SinkError, match=f"is the file of the .*{name.partition('.')[0]}"):
            stream_of(fsm, asynchronous, [{"id": 1}], str(folder / name), format="csv")
    fsm.close()
    assert contents(folder) == before


@spelt
@pytest.mark.parametrize("option", ["--output", "--rejects"])
def test_the_command_refuses_every_pair_that_is_one_file(
    folder: Path, option: str, spell: Callable[[Path, str], str]
) -> None:
    for name, who in (("in.csv", "input"), ("machine.json", "machine"), ("profile.toml", "profile")):
        for link in ("link.csv", "hard.csv", "same", "first.csv", "second.csv"):
            (folder / link).unlink(missing_ok=True)
        path = spell(folder, name)
        before = contents(folder)
        done = CliRunner().invoke(
            app, ["run", "machine.json", "--profile", "profile.toml", "--input", "in.csv", option, path]
        )
        assert (done.exit_code, done.stderr) == (2, f"{option}: {path} is the {who} too; name another file\n")
        assert contents(folder) == before


@spelt
def test_the_command_refuses_one_file_for_output_and_rejects(folder: Path, spell: Callable[[Path, str], str]) -> None:
    path = spell(folder, "out.csv")
    done = CliRunner().invoke(app, ["run", "machine.json", "-i", "in.csv", "-o", "out.csv", "-r", path])
    assert (done.exit_code, done.stderr) == (2, f"--rejects: {path} is the output too; name another file\n")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("memory://a/x.csv", "memory:///a/x.csv"),
        ("memory://a/x.csv", "memory://a/b/../x.csv"),
        ("s3://bucket/k.csv", "s3a://bucket//k.csv"),
        ("s3://bucket/k.csv", "simplecache::s3://bucket/k.csv"),
        ("s3://bucket/k.csv?versionId=7", "s3://bucket/k.csv"),
        ("sftp://me:secret@Host/k.csv", "ssh://host:22/k.csv"),
        ("ftp://host/k.csv", "ftp://host:21/./k.csv"),
        ("https://host/a%20b.csv", "https://host:443/a b.csv"),
        ("zip://a.csv::file://all.zip", "./all.zip"),
    ],
)
def test_urls_of_one_place_are_one_file(one: str, other: str) -> None:
    assert shared_file({"sink": one}, {"source": other}) == ("sink", "source")
    assert shared_file({"sink": other}, {"source": one}) == ("sink", "source")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("out.csv", "out.csv.part"),
        ("out.csv", "sub/out.csv"),
        ("in.csv", "out.csv"),
        ("memory://a/x.csv", "a/x.csv"),
        ("memory://a/x.csv", "memory://b/x.csv"),
        ("memory://A/x.csv", "memory://a/x.csv"),
        ("s3://bucket/a#1.csv", "s3://bucket/a#2.csv"),
        ("sftp://one/k.csv", "sftp://two/k.csv"),
        ("https://host/k.csv?page=1", "https://host/k.csv?page=2"),
        ("/dev/null", "/dev/null"),
        (print, print),
        ([], []),
    ],
)
def test_other_places_are_other_files(one: object, other: object) -> None:
    assert shared_file({"sink": one}, {"source": other}) is None


def test_what_is_only_read_may_be_read_twice() -> None:
    assert shared_file({"sink": "out.csv", "rejects": None}, {"source": "in.csv", "machine": "./in.csv"}) is None


def test_letters_of_another_case_are_one_file_where_the_disk_says_so(folder: Path) -> None:
    (folder / "Probe").touch()
    one_file = (folder / "probe").exists()
    (folder / "IN.CSV").touch()
    assert (shared_file({"sink": "IN.CSV"}, {"source": "in.csv"}) is not None) == one_file


@both_worlds
def test_a_url_in_memory_is_never_read_and_written(asynchronous: bool) -> None:
    with fsspec.open("memory://same/in.csv", "w") as file:
        file.write(ROWS)
    with pytest.raises(SinkError, match="is the file of the source too"):
        stream(asynchronous, "memory://same/in.csv", "memory:///same/in.csv")
    with fsspec.open("memory://same/in.csv", "r") as file:
        assert file.read() == ROWS


@both_worlds
def test_a_file_url_is_the_file(folder: Path, asynchronous: bool) -> None:
    (folder / "out.csv").write_text("old")
    assert stream(asynchronous, f"file://{folder}/in.csv", f"file://{folder}/out.csv").emitted == 2
    assert (folder / "out.csv").read_text() == ROWS
    assert stream(asynchronous, "file://in.csv", "file://other.csv").emitted == 2
    assert sorted(contents(folder)) == ["in.csv", "machine.json", "other.csv", "out.csv", "profile.toml"]


def test_a_password_in_a_url_of_two_roles_is_not_shown() -> None:
    url = "sftp://me:hidden@host/k.csv"
    with pytest.raises(SinkError, match=r"sftp://host/k\.csv") as caught:
        stream(False, url, url)
    assert "hidden" not in str(caught.value)
