"""What the demo shows while it runs, and how it is stopped: progress, signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from wirestate.running.progress import Progress

PAUSE = 2.0  # seconds between two lines of progress
ONE_PRESS = 0.3  # seconds; what comes sooner is the same Ctrl-C, which make and its shell pass on
Show = Callable[[Progress], None]


class Stop:
    """Set by Ctrl-C or SIGTERM; ``code`` is what the process then exits with."""

    code = 0
    _received = 0.0

    def is_set(self) -> bool:
        return self.code != 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Let the flights in hand finish; a second signal interrupts them."""
        # No lock, hence no Event: the second signal may come while this handles the first.
        if not self.is_set():
            self._received = monotonic()
            self.code = 128 + number
        elif monotonic() - self._received >= ONE_PRESS:
            raise KeyboardInterrupt


@contextmanager
def stopped_by_signals() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a stop signal."""
    stop = Stop()
    before = {number: signal.signal(number, stop.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress(total: int) -> Iterator[Show]:
    """Show how far it is: a bar in a terminal that rich knows, else a line now and then."""
    try:
        from rich.progress import Progress as Bar
    except ImportError:
        yield lines(total)
        return
    if not sys.stdout.isatty():
        yield lines(total)
        return
    with Bar() as bar:
        task = bar.add_task("flights", total=total)
        yield lambda now: bar.update(task, completed=now.done)


def lines(total: int) -> Show:
    """Return what prints a line every two seconds."""
    due = monotonic() + PAUSE

    def show(now: Progress) -> None:
        nonlocal due
        if monotonic() >= due:
            due = monotonic() + PAUSE
            print(f"{now.done:>8,} of {total:,}  {now.rate:,.0f}/s", flush=True)

    return show
