"""S5 by the guide's own package: its manager, with a provider that makes what it lends itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from dataknobs_fsm.resources.base import BaseResourceProvider
from dataknobs_fsm.resources.manager import ResourceManager
from dataknobs_fsm.resources.pool import PoolConfig

from benchmarks.timing import Contender

NAME = "thing"
OWNER = "the one who is measured"
FEW, MANY = 10, 10_000
POOL_SIZE = 4


class Thing:
    """What all managers lend."""


class ThingProvider(BaseResourceProvider):
    def acquire(self, **_: object) -> Thing:
        return Thing()

    def release(self, resource: Thing) -> None: ...

    def validate(self, resource: Thing) -> bool:
        return True


def lending(
    acquire: Callable[[str, str], object], release: Callable[[str, str], object], holds: Callable[[str, str], bool]
) -> Callable[[int], object]:
    """Return the run that acquires and releases by name and owner."""

    def run(n: int) -> object:
        for _ in range(n):
            acquire(NAME, OWNER)
            release(NAME, OWNER)
        lent = acquire(NAME, OWNER)
        held = holds(NAME, OWNER)
        release(NAME, OWNER)
        return isinstance(lent, Thing), held, holds(NAME, OWNER)

    return run


def releasing_all(
    acquire: Callable[[str, str], object], release_all: Callable[[str], object], holds: Callable[[str, str], bool]
) -> Callable[[int], object]:
    """Return the run that acquires, and releases all that its owner holds."""

    def run(n: int) -> object:
        for _ in range(n):
            acquire(NAME, OWNER)
            release_all(OWNER)
        return holds(NAME, OWNER)

    return run


def fill(acquire: Callable[[str, str], object], owners: int) -> None:
    """Let so many other owners hold one thing each."""
    for number in range(owners):
        acquire(NAME, f"owner {number}")


def closing(filled: Callable[[], Callable[[], object]]) -> Callable[[int], float]:
    """Return the run that tells the seconds of a close; *filled* makes a manager and returns its ``close``."""

    def run(n: int) -> float:
        told = 0.0
        for _ in range(n):
            close = filled()
            start = time.process_time()
            close()
            told += time.process_time() - start
        return told

    return run


def manager(pool: PoolConfig | None = None) -> ResourceManager:
    made = ResourceManager()
    made.register_provider(NAME, ThingProvider(NAME), pool)
    return made


def dataknobs() -> Contender:
    theirs = manager()
    return Contender("dataknobs-fsm", lending(theirs.acquire, theirs.release, theirs.has_resource), "dataknobs-fsm")


def dataknobs_pooled() -> Contender:
    theirs = manager(PoolConfig(max_size=POOL_SIZE))
    return Contender("dataknobs-fsm", lending(theirs.acquire, theirs.release, theirs.has_resource), "dataknobs-fsm")


def dataknobs_release_all(owners: int) -> Contender:
    theirs = manager()
    fill(theirs.acquire, owners)
    run = releasing_all(theirs.acquire, theirs.release_all, theirs.has_resource)
    return Contender(f"dataknobs-fsm, {owners:,} owners", run, "dataknobs-fsm")
