"""What is left of a machine that was built, used and closed a thousand times: nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from dependency_injector import wiring
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from wirestate import BaseResourceProvider, ResourceContainer, SimpleFSM, lifetimes
from wirestate.resources import inherited, upkeep

pytestmark = pytest.mark.usefixtures("invariant")

TIMES = 1000
USED = 5  # one of so many is used too: that opens its database, its connection, its pool
FIRST = 20  # after so many, caches of the libraries are full


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class Tool(BaseResourceProvider):
    """A custom provider, whose resources are pooled."""

    def acquire(self, **options: Any) -> list[str]:
        return ["tool"]

    def release(self, resource: Any) -> None:
        resource.clear()


@inject
def work(
    record: dict[str, Any],
    database: Any = Provide["database"],
    api: Any = Provide["api"],
    files: Any = Provide["files"],
    tool: Any = Provide["tool"],
) -> dict[str, Any]:
    files.write("n.txt", str(record["n"]))
    one = database.query("SELECT 1 AS one")[0]["one"]
    return {"seen": [one, api.get("/").text, files.read("n.txt"), tool[0]]}


@inject
async def awork(
    record: dict[str, Any],
    database: Any = Provide["database"],
    api: Any = Provide["api"],
    files: Any = Provide["files"],
    tool: Any = Provide["tool"],
) -> dict[str, Any]:
    files.write("n.txt", str(record["n"]))
    one = (await database.query("SELECT 1 AS one"))[0]["one"]
    return {"seen": [one, (await api.get("/")).text, files.read("n.txt"), tool[0]]}


class Machines:
    """Builds the same machine again and again."""

    def __init__(self, side: Side, folder: Path, url: str) -> None:
        self.side = side
        driver = "sqlite+aiosqlite" if side.is_async else "sqlite"
        self.resources = {
            "database": {"type": "database", "url": f"{driver}:///{folder}/x.db", "pool": {"max_size": 2}},
            "api": {"type": "http", "base_url": url, "async_client": side.is_async, "verify": False},
            "files": {"type": "filesystem", "base_path": str(folder)},
            "tool": {
                "class": f"{__name__}:Tool",
                # A pool with upkeep: it is looked after by a thread.
                "pool": {"max_size": 2, "max_idle_time": 60.0, "min_size": 1},
            },
        }
        self.functions = {"work": awork if side.is_async else work}

    async def once(self, number: int) -> None:
        machine = {"states": {"s": {"transform": "work"}}, "resources": self.resources}
        fsm = SimpleFSM(machine, functions=self.functions)
        if number % USED == 0:
            result = await self.side.call(fsm, "process", {"n": number})
            assert result.error is None
            assert result.data["seen"] == [1, "hello", str(number), "tool"]
        await self.side.call(fsm, "close")


def remains() -> Counter[str]:
    """Count threads, file descriptors, our objects and our registry entries."""
    gc.collect()
    found: Counter[str] = Counter()
    found["threads"] = sum("process_request_thread" not in one.name for one in threading.enumerate())  # the server's
    found["descriptors"] = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for one in gc.get_objects():
        kind = type(one)
        if str(kind.__module__).startswith("wirestate"):
            found[f"{kind.__module__}.{kind.__qualname__}"] += 1
    found["upkeep"] = len(upkeep.UPKEEP._watched)
    found["at fork"] = len(inherited._FORGETFUL)
    found["patched functions"] = len(wiring._patched_registry._callables)
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_built_and_closed_a_thousand_times_leaves_nothing_behind(
    side: Side, tmp_path: Path, url: str
) -> None:
    machines = Machines(side, tmp_path, url)

    async def settled(expected: Counter[str] | None = None) -> Counter[str]:
        """Count when threads that were told to end have ended."""
        for _ in range(200):
            found = remains()
            if expected is not None and not found - expected:
                break
            await asyncio.sleep(0.01) if side.is_async else threading.Event().wait(0.01)
            if expected is None:
                break
        return found

    async def scenario() -> None:
        for number in range(FIRST):
            await machines.once(number)
        before = await settled()
        for number in range(TIMES):
            await machines.once(number)
        after = await settled(before)
        assert not after - before, "left behind"

    side.run(scenario())


def test_a_machine_with_a_container_that_stays_open_leaves_nothing_in_it(tmp_path: Path, url: str) -> None:
    class C(ResourceContainer):
        database = lifetimes.PerState(list)

    @inject
    def use(record: Any, database: Any = Provide["database"], tool: Any = Provide["tool"]) -> None: ...

    def once(container: Any) -> None:
        with SimpleFSM(
            {"states": {"s": {"transform": "use"}}},
            container=container,
            resources={"tool": {"class": f"{__name__}:Tool", "pool": {"max_size": 1}}},
            functions={"use": use},
        ) as fsm:
            assert fsm.process({}).success

    with C() as container:
        for _ in range(FIRST):
            once(container)
        before = remains()
        for _ in range(TIMES // 5):
            once(container)
        assert not remains() - before
