"""How everything that a person reads is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any  # Any: options of rich

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wirestate.errors import BuildError, Fault, printable

WIDE = 200  # columns where no terminal says how many: lines in a file or a log are not broken


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDE
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


OUT = _console(stderr=False)
ERR = _console(stderr=True)


def show(*lines: str | Text | Table, console: Console = OUT) -> None:
    """Print lines: broken between words on a terminal, and nowhere else."""
    with console.capture() as printed:
        for line in lines:
            shown = line if isinstance(line, Table) else escaped(line)
            console.print(shown, soft_wrap=not (console.is_terminal or isinstance(line, Table)))
    # Tables are padded to their width, which would be left in files and logs.
    console.file.writelines(f"{line.rstrip()}\n" for line in printed.get().splitlines())


def escaped(line: str | Text) -> str | Text:
    """Return a line with what steers a terminal written out; its styles stay where they are."""
    if isinstance(line, str):
        return printable(line)
    if line.plain.isprintable():
        return line
    made = Text(style=line.style)
    for piece in line.divide(range(1, len(line))):
        piece.plain = printable(piece.plain)
        made.append_text(piece)
    return made


def show_json(report: Mapping[str, object]) -> None:
    """Print one JSON document."""
    text = json.dumps(report, indent=2, ensure_ascii=False)
    # JSON writes out the control characters of ASCII only.
    lines = ("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line) for line in text.split("\n"))
    sys.stdout.write("\n".join(lines) + "\n")


def show_error(message: str) -> None:
    """Print what went wrong on the error stream."""
    show(Text(printable(message), "red"), console=ERR)


def show_build_error(error: BuildError) -> None:
    """Print a report of faults; the text is the error's own."""
    title = str(error).partition("\n")[0]
    show(Text(title, "bold red"), *fault_lines(error.faults, "red"), console=ERR)


def fault_lines(faults: Iterable[Fault], style: str) -> Iterable[Text]:
    """Yield the lines of *faults*, in the words of each."""
    for fault in faults:
        first, *helping = str(fault).split("\n")
        head = f"{fault.kind} [{fault.code}]"
        yield Text("")
        yield Text.assemble((head, style), first.removeprefix(head))
        yield from (Text(line, "dim") for line in helping)


def fault_report(fault: Fault) -> dict[str, object]:
    """Return a fault as ``--json`` tells it."""
    return {
        "code": fault.code,
        "kind": fault.kind,
        "message": fault.message,
        "help": list(fault.help),
        "file": fault.file,
        "line": fault.line,
        "column": fault.column,
    }


class Rows(Table):
    """A table whose cells steer no terminal."""

    def add_row(self, *cells: str | Text, **options: Any) -> None:  # type: ignore[override]  # of these cells only
        super().add_row(*map(escaped, cells), **options)


def table(*headers: str) -> Rows:
    """Return an empty table without lines around it."""
    made = Rows(box=None, show_header=any(headers), header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for header in headers:
        made.add_column(header, overflow="fold")
    return made


def fits(rows: Table) -> bool:
    """Tell whether a table goes onto the output without breaking its cells."""
    unbound = OUT.options.update_width(10_000)
    return OUT.measure(rows, options=unbound).maximum <= OUT.width


def counted(number: int, noun: str) -> str:
    """Return ``1 record`` or ``2,000 records``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def lasting(seconds: float) -> str:
    """Return how long something took: ``0.41 s``, ``12.3 s``, ``3:05``."""
    if seconds >= 60:
        return clock(seconds)
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def clock(seconds: float) -> str:
    """Return a time in whole seconds: ``0:09``, ``3:05``, ``1:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
