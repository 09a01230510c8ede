"""What the machine's tests run on: a small database with one table, and resources that note what becomes of them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from wirestate import DatabaseResourceAdapter, PoolConfig, ResourceContainer, RunResult, SimpleFSM, lifetimes

MADE: list[Store] = []  # a fixture closes them after each test


async def _awaited(pending: Any) -> None:
    await pending


class Store:
    """An SQLite file with one table, and a container that offers sessions on it as ``db``, one for each visit."""

    def __init__(self, folder: Path, *, driver: str = "sqlite", pool: PoolConfig | None = None) -> None:
        self.path = folder / "store.db"
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("CREATE TABLE item (x)")

        class Container(ResourceContainer):
            db = lifetimes.PerState(DatabaseResourceAdapter, url=f"{driver}:///{self.path}", pool=pool)

        self.container = Container()
        MADE.append(self)

    def close(self) -> None:
        """Close the container; what only an event loop can close gets one."""
        pending = self.container.shutdown_resources()
        if pending is not None:
            asyncio.run(_awaited(pending))

    def items(self) -> list[Any]:
        """Return what was committed, in the order of insertion."""
        with closing(sqlite3.connect(self.path)) as db:
            return [x for (x,) in db.execute("SELECT x FROM item ORDER BY rowid")]

    @property
    def held(self) -> list[Any]:
        """Every lease that is open now."""
        return self.container.manager.holders()


def insert(db: Any, x: Any) -> None:
    db.query("INSERT INTO item VALUES (:x)", x=x)


def count(db: Any) -> int:
    return db.query("SELECT count(*) AS n FROM item")[0]["n"]


class Diary:
    """Makes generator resources that write down when they open and how they end."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def resource(self, name: str, *, fails: Exception | None = None) -> Callable[[], Iterator[str]]:
        """Return a generator function; with *fails* it cannot be opened."""

        def made() -> Iterator[str]:
            if fails is not None:
                raise fails
            self.lines.append(f"open {name}")
            try:
                yield name
            except BaseException as error:
                self.lines.append(f"close {name}: {type(error).__name__}")
                raise
            self.lines.append(f"close {name}")

        return made

    def per_state(self, *names: str) -> dict[str, lifetimes.PerState]:
        """Return resources by name for ``SimpleFSM(resources=)``."""
        return {name: lifetimes.PerState(self.resource(name)) for name in names}


def work_machine(work: Mapping[str, Any], **keys: Any) -> dict[str, Any]:
    """Return the machine ``s -> w -> e``, whose state ``w`` is *work*; *keys* are further states and machine keys."""
    states = {"s": {"arcs": ["w"]}, "w": {"arcs": ["e"], **work}, "e": None}
    machine = {key: value for key, value in keys.items() if key in MACHINE_KEYS}
    more = {key: value for key, value in keys.items() if key not in MACHINE_KEYS}
    return {"states": {**states, **more}, **machine}


MACHINE_KEYS = ("data_mode", "max_transitions", "timeout", "resources", "functions", "initial_state")


def process(side: Any, fsm: SimpleFSM, record: Any, **options: Any) -> RunResult:
    """Run one record by ``process``, or by ``aprocess`` on the side of tasks."""
    return side.run(side.call(fsm, "process", record, **options))
