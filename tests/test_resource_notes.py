"""Errors of libraries in a run say whose they are: which resource, at which place, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from dependency_injector.wiring import Provide, inject
from sqlalchemy import text

from tests.http_services import dead
from wirestate import (
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    HTTPResourceAdapter,
    LLMResourceAdapter,
    ResourceContainer,
    RunResult,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import LeaseReleasedError, LLMUnavailableError

if TYPE_CHECKING:
    from tests.conftest import Side

pytestmark = pytest.mark.usefixtures("invariant")

SECRET = "pl4nted-token"
KEY = "thing"


def machine_of(provider: Any, function: Any, **machine: Any) -> SimpleFSM:
    """Return a machine with one resource, called ``thing``."""
    config = {"states": {"a": {"transform": "f", "resources": [KEY], "arcs": [{"target": "b"}]}, "b": {}}}
    return SimpleFSM(config, resources={KEY: provider}, functions={"f": function}, **machine)


def notes_of(result: RunResult) -> str:
    assert result.error is not None
    return "; ".join(getattr(result.error, "__notes__", ()))


async def run(side: Side, provider: Any, function: Any) -> RunResult:
    fsm = machine_of(provider, function)
    result: RunResult = await side.call(fsm, "process", {"i": 1})
    await side.call(fsm, "close")
    return result


def getting(side: Side, *, stream: bool = False) -> Any:
    """Return a function that asks for one page."""
    options = {"params": {"token": SECRET}, "headers": {"Authorization": SECRET}}

    async def aget(record: Any, context: Any) -> None:
        client = context.resources[KEY]
        if stream:
            async with client.stream("GET", "/page", **options) as answer:
                await answer.aread()
        else:
            (await client.get("/page", **options)).raise_for_status()

    def get(record: Any, context: Any) -> None:
        client = context.resources[KEY]
        if stream:
            with client.stream("GET", "/page", **options) as answer:
                answer.read()
        else:
            client.get("/page", **options).raise_for_status()

    return aget if side.is_async else get


class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __iter__(self) -> Any:
        yield b"half"
        raise httpx.ReadError("cut off")

    async def __aiter__(self) -> Any:
        for piece in self:
            yield piece


def answer(request: httpx.Request) -> httpx.Response:
    if request.url.host == "moved.test":
        raise httpx.ConnectError("nobody is there")
    if request.url.host == "moves.test":
        return httpx.Response(307, headers={"Location": f"https://moved.test/x?token={SECRET}"})
    if request.url.host == "breaks.test":
        return httpx.Response(200, stream=Broken())
    return httpx.Response(500)


@pytest.mark.parametrize(
    ("host", "stream", "kind", "origin"),
    [
        ("none", False, httpx.ConnectError, ""),
        ("fails.test", False, httpx.HTTPStatusError, "https://fails.test:8443"),
        ("breaks.test", True, httpx.ReadError, "https://breaks.test:8443"),
        ("moves.test", False, httpx.ConnectError, "https://moved.test"),
    ],
)
def test_an_error_of_httpx_says_of_which_service_at_which_origin(
    side: Side, host: str, stream: bool, kind: type[Exception], origin: str
) -> None:
    base = origin = dead() if host == "none" else origin
    if host != "none":
        base = f"https://{host}:8443"
    transport = None if host == "none" else httpx.MockTransport(answer)
    api = HTTPResourceAdapter(
        KEY, base_url=f"{base}/v1", async_client=side.is_async, retry_count=1, retry_pause=0.001, transport=transport
    )
    result = side.run(run(side, api, getting(side, stream=stream)))
    assert type(result.error) is kind
    assert notes_of(result).count(f"of resource 'thing' at {origin}; ") == 1
    assert SECRET not in notes_of(result) + str(result.error)


def test_a_model_s_error_says_at_which_address(side: Side) -> None:
    url = dead()

    async def aask(record: Any, context: Any) -> None:
        await context.resources[KEY].acomplete("x")

    def ask(record: Any, context: Any) -> None:
        context.resources[KEY].complete("x")

    llm = LLMResourceAdapter(KEY, model="m", base_url=f"{url}/v1", api_key=SECRET, retry_count=1, retry_pause=0.001)
    result = side.run(run(side, llm, aask if side.is_async else ask))
    assert type(result.error) is LLMUnavailableError
    assert notes_of(result).count(f"of resource 'thing' at {url}/v1; ") == 1
    assert SECRET not in notes_of(result) + str(result.error)


def _open_and_read(files: Any) -> None:
    with files.open("a") as file:
        file.read()


@pytest.mark.parametrize(
    "work",
    [
        lambda files: files.read("a"),
        lambda files: files.write("a", "x"),
        lambda files: files.list("a"),
        lambda files: files.exists("a"),
        lambda files: files.delete("a"),
        _open_and_read,
    ],
    ids=["read", "write", "list", "exists", "delete", "open"],
)
def test_an_error_of_a_store_says_of_which_file_system(work: Any) -> None:
    options = {"key": "k", "secret": SECRET, "endpoint_url": dead(), "config_kwargs": {"retries": {"max_attempts": 0}}}
    files = FileSystemResourceAdapter(KEY, base_path="s3://bucket/folder", storage_options=options)
    with machine_of(files, lambda record, context: work(context.resources[KEY])) as fsm:
        result = fsm.process({"i": 1})
    assert "of resource 'thing' at s3://bucket/folder; " in notes_of(result)
    assert SECRET not in notes_of(result) + str(result.error)


def test_a_function_s_own_error_is_not_put_on_the_file_that_is_open(tmp_path: Path) -> None:
    def parse(record: Any, context: Any) -> None:
        with context.resources[KEY].open("a", "w"):
            raise OSError("of the function")

    def lack(record: Any, context: Any) -> None:
        context.resources[KEY].read("missing")

    for function, said in ((parse, False), (lack, True)):
        with machine_of(FileSystemResourceAdapter(KEY, base_path=tmp_path), function) as fsm:
            assert (f"of resource 'thing' at {tmp_path}" in notes_of(fsm.process({"i": 1}))) is said


def test_an_error_of_a_statement_says_of_which_database(side: Side, tmp_path: Path) -> None:
    async def aquery(record: Any, context: Any) -> None:
        await context.resources[KEY].query("SELECT * FROM nowhere")

    def query(record: Any, context: Any) -> None:
        context.resources[KEY].query("SELECT * FROM nowhere")

    driver = "+aiosqlite" if side.is_async else ""
    database = DatabaseResourceAdapter(KEY, url=f"sqlite{driver}:///{tmp_path}/db")
    result = side.run(run(side, database, aquery if side.is_async else query))
    assert f"of resource 'thing' at sqlite{driver}:///{tmp_path}/db; " in notes_of(result)


def test_rejects_and_first_errors_of_a_stream_show_it(tmp_path: Path) -> None:
    url = dead()
    api = HTTPResourceAdapter(KEY, base_url=url, retry_count=0)
    with machine_of(api, lambda record, context: context.resources[KEY].get("/x")) as fsm:
        summary = fsm.process_stream([{"i": 1}], rejects=str(tmp_path / "rejects.jsonl"))
    entry = json.loads((tmp_path / "rejects.jsonl").read_text())
    assert entry["reason"].endswith(f"; of resource 'thing' at {url}")
    assert f"of resource 'thing' at {url}" in summary.errors[0]


# --- a lease that is over ----------------------------------------------------------------------


@pytest.mark.parametrize("resource", ["session", "connection"])
@pytest.mark.parametrize("verb", ["execute", "scalar", "query", "stream"])
def test_what_uses_a_lease_after_its_end_is_told_so(side: Side, resource: str, verb: str, tmp_path: Path) -> None:
    if resource == "connection" and verb in ("query", "stream"):
        verb = "begin_nested"
    url = f"sqlite{'+aiosqlite' if side.is_async else ''}:///{tmp_path}/db"
    database = DatabaseResourceAdapter("orders", url=url, resource=resource)  # type: ignore[arg-type]  # one of them

    async def use(db: Any) -> None:
        if verb == "begin_nested":
            begun = db.begin_nested()
            if side.is_async:
                await begun
        elif verb == "stream":
            rows = db.stream("SELECT 1 AS one")
            if side.is_async:
                await anext(rows)
            else:
                next(rows)
        else:
            done = getattr(db, verb)("SELECT 1" if verb == "query" else text("SELECT 1"))
            if side.is_async:
                await done

    async def scenario() -> None:
        db = await side.call(database, "acquire")
        if verb != "begin_nested":
            await use(db)
        await side.call(database, "release", db)
        with pytest.raises(LeaseReleasedError, match="lease of 'orders' was released already; acquire a new one"):
            await use(db)
        again = await side.call(database, "acquire")  # the same connection serves the next one as ever
        if verb != "begin_nested":
            await use(again)
        await side.call(database, "release", again)
        await side.call(database, "close")

    side.run(scenario())


def test_a_session_that_a_function_kept_tells_that_its_lease_is_over() -> None:
    kept: list[Any] = []

    class App(ResourceContainer):
        orders = lifetimes.PerState(DatabaseResourceAdapter, url="memory")

    @inject
    def keep(record: Any, db: Any = Provide[App.orders]) -> None:
        kept.append(db)

    states = {
        "a": {"transform": "keep", "arcs": [{"target": "b"}]},
        "b": {"transform": "use", "arcs": [{"target": "c"}]},
        "c": {},
    }
    functions = {"keep": keep, "use": lambda record: kept[0].query("SELECT 1")}
    with App() as app, SimpleFSM({"states": states}, container=app, functions=functions) as fsm:
        result = fsm.process({"i": 1})
    assert result.state == "b"
    with pytest.raises(LeaseReleasedError, match="'orders' was released already"):
        result.raise_error()
