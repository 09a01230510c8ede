"""What a piece of work costs relative to another way of doing it, measured in the same minute."""

from __future__ import annotations

import asyncio
import atexit
import gc
import random
import statistics
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

ROUNDS = 11
ROUND_SECONDS = 0.03
WARM_UP = 20  # calls before the first timed one: the interpreter specializes what it has run a few times

_runner = asyncio.Runner()  # one loop for all, since some peers bind what they open to the loop that they saw first
atexit.register(_runner.close)


class DifferentWorkError(Exception):
    """A contender's result is not that of the base: its time would mean nothing."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work; ``run(n)`` does it *n* times *pieces* and returns the last result.

    ``package`` is the distribution that is measured, None for the standard library. ``goal`` is the highest ratio
    to the base that we accept of ourselves, or the lowest where more is better; peers have none.
    """

    name: str
    run: Callable[[int], object]
    package: str | None = None
    goal: float | None = None
    pieces: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """Contenders that do the same work; ``base`` is the unit of comparison.

    With ``told`` the contenders return their figure, instead of a result: the seconds of an import in another
    process, or a rate. ``unit`` says what the figures are; of all but seconds, more is better.
    """

    title: str
    base: Contender
    others: tuple[Contender, ...]
    told: bool = False
    unit: str = "s"

    @property
    def more_is_better(self) -> bool:
        return self.unit != "s"


@dataclass(frozen=True, slots=True)
class Row:
    """One contender's median figure for one piece of work, and its ratios to the base: median and quartiles."""

    group: Group
    contender: Contender
    figure: float
    ratio: float
    low: float
    high: float


def awaited(run: Callable[[int], Coroutine[None, None, object]]) -> Callable[[int], object]:
    """Turn an asynchronous ``run`` into a plain one."""
    return lambda n: _runner.run(run(n))


def measure(group: Group) -> list[Row]:
    """Time the contenders of *group* in interleaved rounds, the base first in the answer.

    Each round gives every contender its turn, in a new order, and a ratio to the base of that round, so a machine
    that slows down for a while slows both sides.

    Raises:
        DifferentWorkError: a contender's result differs from the base's.
    """
    contenders = (group.base, *group.others)
    if not group.told:
        _require_same_work(group)
    # The collector stays on, as in life; the modules of all peers are frozen, so that nobody pays for theirs.
    gc.collect()
    gc.freeze()
    try:
        rounds = _rounds(contenders, told=group.told)
    finally:
        gc.unfreeze()
    return [_row(group, contender, rounds) for contender in contenders]


def _require_same_work(group: Group) -> None:
    expected = group.base.run(WARM_UP)
    for contender in group.others:
        found = contender.run(WARM_UP)
        if found != expected:
            raise DifferentWorkError(f"{group.title}: {contender.name} gives {found!r}, the base gives {expected!r}")


def _rounds(contenders: tuple[Contender, ...], *, told: bool) -> list[dict[str, float]]:
    counts = {contender.name: 1 if told else _fitting_count(contender) for contender in contenders}
    order, chance, rounds = list(contenders), random.Random(0), []
    for _ in range(ROUNDS):
        chance.shuffle(order)
        rounds.append({turn.name: _sample(turn, counts[turn.name], told=told) for turn in order})
    return rounds


def _fitting_count(contender: Contender) -> int:
    """Return the count that fills one turn."""
    count = 1
    while (seconds := _sample(contender, count, told=False) * count * contender.pieces) < ROUND_SECONDS / 2:
        count *= 2
    return max(1, round(count * ROUND_SECONDS / seconds))


def _sample(contender: Contender, count: int, *, told: bool) -> float:
    """Return the seconds of one piece of work, or what the contender tells."""
    gc.collect()
    # Processor time of all threads: on a shared machine the clock on the wall counts the work of others too.
    start = time.process_time()
    result = contender.run(count)
    seconds = time.process_time() - start
    if told:
        assert isinstance(result, float), "a told contender returns its figure"
        seconds = result
    return seconds / (count * contender.pieces)


def _row(group: Group, contender: Contender, rounds: list[dict[str, float]]) -> Row:
    ratios = [times[contender.name] / times[group.base.name] for times in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4)
    figure = statistics.median(times[contender.name] for times in rounds)
    return Row(group, contender, figure, middle, low, high)
