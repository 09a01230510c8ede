"""The demo: all flights through the machine, and a table of what became of them."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from dependency_injector import providers
from sqlalchemy.exc import SQLAlchemyError

from containers.flights import FlightsContainer, FlightsSettings
from examples.flights import functions
from examples.flights.recount import OUTCOMES, Counts, Stored, mismatches, refused, stored
from examples.flights.reference import prepare
from examples.flights.terminal import Stop, progress, stopped_by_signals
from examples.flights.weather_service import serving
from wirestate import SimpleFSM, StreamSummary, manager_of
from wirestate.errors import BuildError, InvalidSettingError, MissingDriverError, WirestateError

MACHINE = Path(__file__).with_name("flights.yaml")
FILES = ("flights.csv", "airlines.csv", "planes.csv", "weather.csv")
REJECTS = "rejects.jsonl"


def main() -> int:
    """Load the flights and say what was done.

    Returns:
        The exit code: 1 if something failed or the numbers do not agree, 2 if the settings are wrong,
        128 + the signal that stopped it.
    """
    try:
        return load_flights(FlightsSettings())
    except KeyboardInterrupt:
        say("interrupted: what is done stays done; run it again to go on")
        return 130
    except (BuildError, InvalidSettingError, MissingDriverError) as error:
        say(error)
        return 2
    except (WirestateError, OSError) as error:
        say(error)
    except SQLAlchemyError as error:
        say(f"database: {getattr(error, 'orig', None) or error}")
    return 1


def say(what: object) -> None:
    print(what, file=sys.stderr)


def load_flights(settings: FlightsSettings) -> int:
    """Start what is missing, run the flights, and return the exit code."""
    if missing := [name for name in FILES if not (settings.data_dir / name).is_file()]:
        say(f"FLIGHTS_DATA_DIR: {settings.data_dir} has no {', '.join(missing)}")
        return 2
    try:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"FLIGHTS_OUTPUT_DIR: {settings.output_dir} cannot be made: {error.strerror}")
        return 2
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
