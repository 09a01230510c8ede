"""The work of S1: three resources that need each other, their clean-ups, and a function that takes all three."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

from benchmarks.timing import awaited


class A:
    __slots__ = ("closed",)

    def __init__(self) -> None:
        self.closed = False


class B:
    __slots__ = ("a", "closed")

    def __init__(self, a: A) -> None:
        self.a = a
        self.closed = False


class C:
    __slots__ = ("b", "closed")

    def __init__(self, b: B) -> None:
        self.b = b
        self.closed = False


def open_a() -> Iterator[A]:
    a = A()
    try:
        yield a
    finally:
        a.closed = True


def open_b(a: A) -> Iterator[B]:
    b = B(a)
    try:
        yield b
    finally:
        b.closed = True


def open_c(b: B) -> Iterator[C]:
    c = C(b)
    try:
        yield c
    finally:
        c.closed = True


async def aopen_a() -> AsyncIterator[A]:
    a = A()
    try:
        yield a
    finally:
        a.closed = True


async def aopen_b(a: A) -> AsyncIterator[B]:
    b = B(a)
    try:
        yield b
    finally:
        b.closed = True


async def aopen_c(b: B) -> AsyncIterator[C]:
    c = C(b)
    try:
        yield c
    finally:
        c.closed = True


Record = dict[str, tuple[A, B, C]]


def use(record: Record, a: A, b: B, c: C) -> None:
    record["seen"] = a, b, c


async def ause(record: Record, a: A, b: B, c: C) -> None:
    record["seen"] = a, b, c


def outcome(record: Record) -> tuple[bool, ...]:
    """Return what must be the same for everybody: one a, one b and one c were handed in and all were closed.

    The order of closing is left out: dependency-injector closes in the order of the parameters.
    """
    a, b, c = record["seen"]
    return c.b is b, b.a is a, a.closed, b.closed, c.closed


def calling(visit: Callable[[Record], object]) -> Callable[[int], object]:
    """Return the run of a function that opens, gets and closes all three by being called."""

    def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            visit(record)
        return outcome(record)

    return run


def acalling(visit: Callable[[Record], Awaitable[object]]) -> Callable[[int], object]:
    async def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            await visit(record)
        return outcome(record)

    return awaited(run)
