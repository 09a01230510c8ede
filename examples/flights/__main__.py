"""Run the flights example: ``python -m examples.flights`` from the root of the project."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from dependency_injector import providers

from containers.flights import FlightsContainer, FlightsSettings
from examples.flights import functions
from examples.flights.recount import OUTCOMES, Counts, Stored, mismatches, refused, stored
from examples.flights.reference import prepare
from examples.flights.terminal import Stop, progress, stopped_by_signals
from examples.flights.weather_service import serving
from wirestate import SimpleFSM, StreamSummary, manager_of
from wirestate.errors import SettingsError

MACHINE = Path(__file__).with_name("flights.yaml")
REJECTS = "rejects.jsonl"


def main() -> int:
    """Load the flights and say what was done.

    Returns:
        The exit code: 1 if the numbers do not agree, 2 if the settings are wrong, 128 + the signal that stopped it.
    """
    try:
        settings = FlightsSettings()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if "weather_url" not in settings.model_fields_set:
            address = stack.enter_context(serving(settings.data_dir / "weather.csv"))
            settings = settings.model_copy(update={"weather_url": address})
        stop = stack.enter_context(stopped_by_signals())
        agreed = run(settings, stop)
    return stop.code if agreed else 1


def run(settings: FlightsSettings, stop: Stop) -> bool:
    """Run every flight through the machine; tell whether all counts agree."""
    source = settings.data_dir / "flights.csv"
    counts = Counts()
    container = FlightsContainer(settings=providers.Object(settings))
    with manager_of(container) as manager:
        prepare(manager)
        before = stored(manager)
        with SimpleFSM(MACHINE, container=container, functions=functions) as fsm, progress(rows_in(source)) as show:
            summary = fsm.process_stream(
                source, counts.succeeded, rejects=settings.output_dir / REJECTS, on_progress=show, stop=stop
            )
        counts.now.update(rejected=summary.rejected, failed=summary.failed)
        after = stored(manager)
        wrong = mismatches(counts, summary, added=after - before, after=after, entries=refused(manager, REJECTS))
    print_table(summary, counts, after)
    print("\n".join(f"MISMATCH  {line}" for line in wrong) or "All counts agree.")
    return not wrong


def rows_in(source: Path) -> int:
    """Return about how many rows a CSV file has below its header."""
    with source.open("rb") as lines:
        return sum(1 for _ in lines) - 1


def print_table(summary: StreamSummary, counts: Counts, after: Stored) -> None:
    """Print what became of the flights."""
    print(f"\n{'read':<12}{summary.total_processed:>8,}")
    for name in OUTCOMES:
        print(f"{name:<12}{counts.total(name):>8,}")
    print()
    if counts.done_before:
        print(f"{counts.done_before:,} are already done: an earlier run loaded or cancelled them.")
    if summary.stopped:
        print("Stopped before the end of the input. What is done stays done: run it again to go on.")
    print(f"The database holds {after['flights']:,} flights and {after['audit']:,} audit rows.")
    print(f"{summary.duration:.1f} s, {summary.rate:,.0f} flights per second.")


if __name__ == "__main__":
    sys.exit(main())
