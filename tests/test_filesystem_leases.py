"""Files behind a manager and in a machine: what a lease made ends with it, however it ends."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.invariant import Invariant
from tests.object_store import place, private_object_store
from tests.stores import process, work_machine
from wirestate import ResourceContainer, ResourceManager, SimpleFSM, lifetimes
from wirestate.errors import LeaseReleasedError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.filesystem.adapter import FileSystemResourceAdapter

pytestmark = pytest.mark.usefixtures("invariant")

KINDS = ("disk", "memory", "s3")


@pytest.fixture(params=KINDS)
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystemResourceAdapter:
    (tmp_path / "base").mkdir()
    path, options = place(request.param, tmp_path / "base")
    return FileSystemResourceAdapter("files", base_path=path, temp_dir=tmp_path / "temp", storage_options=options)


@pytest.fixture
def manager(adapter: FileSystemResourceAdapter, invariant: Invariant) -> Any:
    manager = invariant.watch(ResourceManager())
    manager.register_provider("files", adapter)
    return manager


async def by_release(side: Any, manager: Any, fs: Any) -> None:
    await side.call(manager, "release", "files", "me")


async def by_an_error(side: Any, manager: Any, fs: Any) -> None:
    try:
        with fs.open("x.txt", "w") as file:
            file.write("half")
            raise ZeroDivisionError
    except ZeroDivisionError:
        await side.call(manager, "release_all", "me")


async def by_close(side: Any, manager: Any, fs: Any) -> None:
    await side.call(manager, "close")


@pytest.mark.parametrize("ending", [by_release, by_an_error, by_close], ids=lambda ending: ending.__name__)
def test_temporary_files_end_with_their_lease_however_it_ends(
    side: Any, manager: Any, tmp_path: Path, ending: Any
) -> None:
    async def scenario() -> None:
        fs = await side.call(manager, "acquire", "files", "me")
        fs.write("x.txt", "old")
        temp = fs.create_temp(prefix="mine-")
        fs.write(temp, "x")
        await ending(side, manager, fs)
        assert not temp.exists()
        assert list((tmp_path / "temp").iterdir()) == []
        with pytest.raises(LeaseReleasedError):
            fs.read("x.txt")

    side.run(scenario())


def test_a_state_that_fails_leaves_its_files_as_they_were(
    side: Any, adapter: FileSystemResourceAdapter, invariant: Invariant
) -> None:
    temps: list[Path] = []

    class Container(ResourceContainer):
        files = lifetimes.PerState(adapter)

    def work(record: dict[str, Any], context: Any) -> None:
        fs = context.resources["files"]
        temps.append(fs.create_temp())
        with fs.open("result.txt", "w") as file:
            file.write(record["text"])
            1 / record["divisor"]

    container = Container()
    invariant.watch(container.manager)
    machine = work_machine({"resources": ["files"], "functions": {"transform": "work"}})
    with SimpleFSM(machine, container=container, functions={"work": work}) as fsm:
        results = [process(side, fsm, {"text": text, "divisor": n}) for text, n in (("whole", 1), ("half", 0))]
    assert [result.success for result in results] == [True, False]
    assert isinstance(results[1].error, ZeroDivisionError)
    assert len(temps) == 2
    assert not any(temp.exists() for temp in temps)
    fs = adapter.acquire()
    assert fs.read("result.txt") == "whole"
    assert fs.list() == ["result.txt"]
    adapter.release(fs)


def test_a_missing_file_makes_no_resource_unhealthy(side: Any, manager: Any) -> None:
    fs = side.run(side.call(manager, "acquire", "files", "me"))
    with suppress(FileNotFoundError):
        fs.read("missing.txt")
    assert manager.health_check("files")["files"] is ResourceHealth.HEALTHY
    side.run(side.call(manager, "release", "files", "me"))


def test_a_store_that_is_dead_or_says_nothing_is_unhealthy_in_bounded_time(
    request: pytest.FixtureRequest, invariant: Invariant
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    silent = private_object_store(request.addfinalizer)
    manager = invariant.watch(ResourceManager())
    manager.register_provider("silent", silent.adapter(f"{silent.new_bucket()}/base"))
    manager.register_provider("dead", silent.adapter("bucket/base", endpoint_url=f"http://127.0.0.1:{port}"))
    assert manager.health_check("silent")["silent"] is ResourceHealth.HEALTHY
    silent.freeze()
    for name in ("silent", "dead"):
        began = time.monotonic()
        assert manager.health_check(name)[name] is ResourceHealth.UNHEALTHY
        assert time.monotonic() - began < 20
    silent.thaw()
    assert manager.health_check("silent")["silent"] is ResourceHealth.HEALTHY
