"""Synchronous and asynchronous confused: refused before the run where that is known, named with the mend where not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from wirestate import (
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    LLMResourceAdapter,
    ResourceContainer,
    SimpleFSM,
    lifetimes,
)
from wirestate.errors import AsyncInSyncRunError, BlockingWaitError

pytestmark = [
    pytest.mark.usefixtures("invariant"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class App(ResourceContainer):
    tasks = lifetimes.PerState(DatabaseResourceAdapter, url="sqlite+aiosqlite:///app.db")
    files = lifetimes.PerState(FileSystemResourceAdapter, base_path="memory://mix-ups")
    model = lifetimes.Singleton(LLMResourceAdapter, model="m", base_url="http://127.0.0.1:9")


@inject
def forgetful(record: Any, db: Any = Provide[App.tasks]) -> Any:
    return {"one": db.query("SELECT 1 AS one").pop()}


@inject
async def forgetful_in_a_coroutine(record: Any, db: Any = Provide[App.tasks]) -> Any:
    return {"one": db.query("SELECT 1 AS one").pop()}


@inject
async def awaiting(record: Any, files: Any = Provide[App.files]) -> Any:
    return {"found": await files.list()}


@inject
async def bracketing(record: Any, files: Any = Provide[App.files]) -> Any:
    async with files.open("a.txt"):
        return None


@inject
async def blocking(record: Any, llm: Any = Provide[App.model]) -> Any:
    llm.complete("x")


@inject
async def right(record: Any, db: Any = Provide[App.tasks]) -> Any:
    return (await db.query("SELECT 1 AS one"))[0].missing


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(function: Any) -> Any:
    async def scenario() -> Any:
        async with App() as app, machine(app, function) as fsm:
            return await fsm.aprocess({"i": 1})

    return asyncio.run(scenario())


def machine(app: App, function: Any) -> SimpleFSM:
    states = {"a": {"transform": "f", "arcs": [{"target": "b"}]}, "b": {}}
    return SimpleFSM({"states": states}, container=app, functions={"f": function})


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (forgetful, "forgetful gets 'tasks', which is asynchronous: declare it with 'async def', and await"),
        (forgetful_in_a_coroutine, "forgetful_in_a_coroutine gets 'tasks', which is asynchronous: await its calls"),
        (awaiting, "awaiting awaits what 'files' gives, which is not asynchronous: leave out 'await' or 'async'"),
        (bracketing, "bracketing awaits what 'files' gives, which is not asynchronous: leave out 'await' or 'async'"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_an_error_of_a_mix_up_names_the_resource_and_the_mend(function: Any, told: str) -> None:
    error = run(function).error
    assert error is not None
    assert error.__notes__[0] == f"tests.test_mix_ups.{told}"
    assert len(error.__notes__) == 2


@pytest.mark.usefixtures("folder")
def test_another_error_gets_no_such_note() -> None:
    error = run(right).error
    assert isinstance(error, AttributeError)
    assert len(error.__notes__) == 1


@pytest.mark.parametrize(
    ("function", "named"), [(forgetful, "resource 'tasks'"), (awaiting, r"state 'a' \(function .*awaiting\)")]
)
@pytest.mark.usefixtures("folder")
def test_a_synchronous_run_is_refused_by_name_before_it_begins(function: Any, named: str) -> None:
    with App() as app, machine(app, function) as fsm, pytest.raises(AsyncInSyncRunError, match=f"{named}.*aprocess"):
        fsm.process({"i": 1})


@pytest.mark.usefixtures("folder")
def test_a_model_that_would_block_the_loop_names_the_twin() -> None:
    with pytest.raises(BlockingWaitError, match=r"use acomplete\(\)"):
        run(blocking)
