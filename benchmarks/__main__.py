"""Compare Wirestate with its peers: ``python -m benchmarks [s1 s2 …]``."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import benchmarks
from benchmarks.timing import Row, measure

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADER = ("work", "what", "version", "figure", "ratio", "middle half", "goal", "met")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Compare Wirestate with its peers.")
    modules = benchmark_modules()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(modules)} (default: all)")
    names = parser.parse_args().names or list(modules)
    if unknown := [name for name in names if name not in modules]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(modules)}")
    chosen = [importlib.import_module(modules[name]) for name in names]
    if missing := missing_peers(chosen):
        # A table without them would flatter us.
        parser.exit(1, f"not installed: {', '.join(missing)}; run: pip install -e . -r benchmarks/requirements.txt\n")
    rows: list[Row] = []
    reasons: list[str] = []
    for module in chosen:
        for group in module.groups():
            print(f"{group.title} …", file=sys.stderr)
            measured = measure(group)
            rows += measured
            if (reason := getattr(module, "REASONS", {}).get(group.title)) and not all(map(is_met, measured)):
                reasons.append(f"- {group.title}: {reason}")
    report = table(rows)
    if reasons:
        report += "\n\nWhy a goal is missed, as far as it was looked into:\n\n" + "\n".join(reasons)
    print(report)
    if set(names) == set(modules):
        RESULTS.write_text(f"# Results\n\n{preface()}\n\n{report}\n", encoding="utf-8")


def benchmark_modules() -> dict[str, str]:
    """Return the benchmarks of this folder: short name to module, in the order of their numbers."""
    found = [info.name for info in pkgutil.iter_modules(benchmarks.__path__) if info.name[:2].strip("s").isdigit()]
    found.sort(key=lambda name: int(name.split("_")[0][1:]))
    return {name.split("_")[0]: f"benchmarks.{name}" for name in found}


def missing_peers(modules: list[ModuleType]) -> list[str]:
    wanted = dict.fromkeys(package for module in modules for package in ("wirestate", *module.PEERS))
    return [package for package in wanted if installed_version(package) is None]


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def preface() -> str:
    return (
        "`make bench` writes this file.\n"
        "A ratio is the processor time of a piece of work relative to the unit of its group, which comes first; "
        "lower is better.\n"
        "Where the figures are rates or shares, a ratio is that of the figures, and higher is better.\n"
        "It is the median of interleaved rounds; the middle half of them lies in the range beside it.\n"
        f"Measured with Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors."
    )


def table(rows: list[Row]) -> str:
    """Return *rows* as a Markdown table that also reads well on a terminal."""
    cells = [HEADER, *map(row_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    cells.insert(1, tuple("-" * width for width in widths))
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in cells)


def is_met(row: Row) -> bool:
    """Tell whether *row* has no goal, or reaches it."""
    goal = row.contender.goal
    return goal is None or (row.ratio >= goal if row.group.more_is_better else row.ratio <= goal)


def row_cells(row: Row) -> tuple[str, ...]:
    contender = row.contender
    number = (installed_version(contender.package) if contender.package else None) or platform.python_version()
    spread, goal, met = f"{figure(row.low)} to {figure(row.high)}", "", ""
    if contender.goal is not None:
        sign = "≥" if row.group.more_is_better else "≤"
        goal, met = f"{sign} {contender.goal:g}", "yes" if is_met(row) else "no"
    shown = f"{figure(row.figure)} {row.group.unit}" if row.group.more_is_better else readable(row.figure)
    return row.group.title, contender.name, number, shown, figure(row.ratio), spread, goal, met


def figure(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 100 else f"{ratio:.0f}"


def readable(seconds: float) -> str:
    size, unit = next((pair for pair in UNITS if seconds >= pair[0]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


if __name__ == "__main__":
    main()
