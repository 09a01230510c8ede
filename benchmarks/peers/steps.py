"""The work of S6 and S7: five functions that each leave a mark; the order of the marks is that of the calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from benchmarks.timing import Contender, awaited

Record = dict[str, Any]  # Any: a record holds what its user puts there
Step = Callable[[Record], Record]
AsyncStep = Callable[[Record], Awaitable[Record]]
NAMES = ("a", "b", "c", "d", "e")
FLIGHT: Record = {  # a record of ordinary size, where copying is part of the work
    "flight": 1545,
    "carrier": "UA",
    "origin": "EWR",
    "dest": "IAH",
    "scheduled": {"departure": 515, "arrival": 819},
    "actual": {"departure": 517, "arrival": 830},
    "distance": 1400.0,
    "tags": ["domestic", "morning"],
}


def _marking(name: str) -> Step:
    def step(record: Record) -> Record:
        record[name] = name
        return record

    return step


def _amarking(name: str) -> AsyncStep:
    async def step(record: Record) -> Record:
        record[name] = name
        return record

    return step


STEPS = {name: _marking(name) for name in NAMES}
ASTEPS = {name: _amarking(name) for name in NAMES}


def marks(record: Mapping[str, object]) -> str:
    """Return what must be the same for everybody: the marks in their order."""
    return "".join(key for key in record if key in STEPS)


def processing(
    process: Callable[[Record], Any], data: Callable[[Any], Record] = dict, new: Callable[[], Record] = dict
) -> Callable[[int], object]:
    """Return the run that gives a *new* record to *process* each time; *data* takes the record out of its result."""

    def run(n: int) -> object:
        result = None
        for _ in range(n):
            result = process(new())
        return marks(data(result))

    return run


def aprocessing(
    process: Callable[[Record], Awaitable[Any]],
    data: Callable[[Any], Record] = dict,
    new: Callable[[], Record] = dict,
) -> Callable[[int], object]:
    async def run(n: int) -> object:
        result = None
        for _ in range(n):
            result = await process(new())
        return marks(data(result))

    return awaited(run)


def plain_loop(new: Callable[[], Record] = dict, name: str = "plain loop") -> Contender:
    steps = tuple(STEPS.values())

    def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            record = new()
            for step in steps:
                record = step(record)
        return marks(record)

    return Contender(name, run)


def aplain_loop(new: Callable[[], Record] = dict, name: str = "plain loop") -> Contender:
    steps = tuple(ASTEPS.values())

    async def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            record = new()
            for step in steps:
                record = await step(record)
        return marks(record)

    return Contender(name, awaited(run))
