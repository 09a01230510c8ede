"""How far a stream is: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from wirestate.cli.terminal import ERR, clock, show
from wirestate.errors import printable
from wirestate.running.files import local_path
from wirestate.running.progress import Progress

EVERY = 5.0  # seconds between two lines
SAMPLE = 1 << 20  # bytes from which the number of rows is estimated
LINES = {".csv": 1, ".tsv": 1, ".jsonl": 0, ".ndjson": 0, ".txt": 0}  # suffix -> lines that are no rows

Tell = Callable[[Progress], None]


@contextmanager
def reporting(name: str, total: int | None) -> Iterator[Tell]:
    """Give a function to be told of progress; *total* is the number of records as far as it is known."""
    if not ERR.is_terminal:
        yield _in_lines(total)
        return
    counts = TextColumn("{task.fields[counts]}", style="dim")
    # A person's own prints go above the bar, unless they go to another place than the bar.
    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30, complete_style="green", finished_style="green", pulse_style="green"),
        counts,
        console=ERR,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with bar:
        task = bar.add_task(printable(name), total=total, counts="")
        yield lambda progress: bar.update(task, completed=progress.done, counts=_said(progress, total))


def show_part(path: str, part: str) -> None:
    """Print the name that a file has until it is whole."""
    # By the console itself: above the bar, which it moves down.
    ERR.print(Text(f"writing {printable(path)} as {printable(part)} until it is whole"), soft_wrap=True)


def _in_lines(total: int | None) -> Tell:
    due = 1.0

    def tell(progress: Progress) -> None:
        nonlocal due
        if progress.elapsed >= due and not progress.final:
            due = progress.elapsed + EVERY
            show(_said(progress, total), console=ERR)

    return tell


def _said(progress: Progress, total: int | None) -> str:
    known = total is not None and total >= progress.done
    parts = [f"{progress.done:,} of {total:,}" if known else f"{progress.done:,} records"]
    parts += [
        f"{count:,} {what}" for count, what in ((progress.rejected, "rejected"), (progress.failed, "failed")) if count
    ]
    parts.append(f"{progress.rate:,.0f}/s")
    if known and progress.rate > 0:
        parts.append(f"{clock(((total or 0) - progress.done) / progress.rate)} left")
    return " · ".join(parts)


def expected_rows(source: str, limit: int | None) -> int | None:
    """Estimate how many rows a local file has, from its size and the length of its first rows."""
    path = Path(local_path(source) or source)
    if path.suffix.lower() not in LINES or not path.is_file():
        return limit
    try:
        with path.open("rb") as file:
            sample = file.read(SAMPLE)
            size = os.fstat(file.fileno()).st_size
    except OSError:  # told when the records are to be read
        return limit
    lines = sample.count(b"\n") + (not sample.endswith(b"\n") and size <= SAMPLE and bool(sample))
    rows = max(0, round(lines * size / max(len(sample), 1)) - LINES[path.suffix.lower()])
    return rows if limit is None else min(rows, limit)
