"""The commands, their options, and how each of them ends."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from wirestate.cli.checking import CheckReport, ResourcesReport, check_machine, declared_resources
from wirestate.cli.loading import Named, OptionError, said
from wirestate.cli.picture import PictureFormat, drawn
from wirestate.cli.streaming import Order, RunReport, carry_out
from wirestate.cli.terminal import ERR, fault_report, show, show_build_error, show_error, show_json
from wirestate.errors import BuildError, WirestateError

EXIT_CODES = """
Exit codes: 0 all is well; 1 a fault was found, a record failed or the run broke off; 2 wrong usage;
129 stopped by SIGHUP; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

app = typer.Typer(
    help="State machines whose states get their resources by dependency injection.",
    epilog=EXIT_CODES,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

MachineFile = Annotated[Path, typer.Argument(metavar="MACHINE", help="The machine: a YAML or JSON file.")]
ContainerPath = Annotated[
    str | None,
    typer.Option(
        "--container",
        metavar="MODULE:CLASS",
        help="Where states take their resources from; by default what the environment and the profile declare.",
    ),
]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", metavar="FILE", envvar="WIRESTATE_PROFILE", help="A TOML file of settings.")
]
FunctionsModule = Annotated[
    str | None,
    typer.Option("--functions", metavar="MODULE", help="The module whose public functions the machine may name."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Trace = Annotated[bool, typer.Option("--trace", help="Show where in the code an error was raised.")]


def _version(wanted: bool) -> None:
    if wanted:
        show(f"wirestate {sys.modules['wirestate'].__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """State machines whose states get their resources by dependency injection."""


@app.command(epilog=EXIT_CODES)
def run(
    machine: MachineFile,
    *,
    input: Annotated[str, typer.Option("--input", "-i", metavar="PATH", help="Records: .csv .tsv .jsonl .json .txt.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="PATH", help="Where successful records go.")
    ] = None,
    rejects: Annotated[
        str | None, typer.Option("--rejects", "-r", metavar="PATH", help="Where rejected and failed records go.")
    ] = None,
    container: ContainerPath = None,
    profile: ProfileFile = None,
    functions: FunctionsModule = None,
    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="What the input is written in, whatever its suffix.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="How many records run at once.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Read no more records than this.")] = None,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Run the records of a file through a machine.

    Ctrl-C, SIGTERM and SIGHUP let the records under way finish; a second one interrupts them.
    Either way what was done stays done, and the closing table says what that is.
    Rejected records alone leave the exit code at 0; a failed one makes it 1.

    `--json` prints `report` ("run"), `version`, `ok`, `exit_code`, `machine`, `input`, `output`, `rejects`,
    `error` and `summary`: `total_processed`, `successful`, `failed`, `rejected`, `skipped`, `emitted`,
    `by_state`, `unsuccessful_by_state`, `duration`, `rate`, `stopped`, `run_id`, `errors`,
    `parts`.
    """
    with _guarded("run", trace=trace, as_json=as_json):
        order = Order(input, output, rejects, workers, limit, format)
        report = carry_out(Named(machine, container, profile, functions), order)
    if report.error is not None:
        _show_other(report.error, trace)
    _finish(report, as_json, report.exit_code)


@app.command(epilog=EXIT_CODES)
def check(
    machine: MachineFile,
    *,
    container: ContainerPath = None,
    profile: ProfileFile = None,
    functions: FunctionsModule = None,
    strict: Annotated[bool, typer.Option("--strict", help="Treat notes as faults.")] = False,
    health: Annotated[bool, typer.Option(help="Ask the built-in adapters for their health.")] = True,
    probe: Annotated[bool, typer.Option("--probe", help="Make and ask classes of your own, too.")] = False,
    as_json: AsJson = False,
    trace: Trace = False,
) -> None:
    """Build a machine, tell everything that is wrong, and show its resources; run no function and no record.

    Built-in adapters are made and asked for their health; an unhealthy one counts as wrong.
    Of your own classes only the signatures are read, unless `--probe` is given.

    `--json` prints `report` ("check"), `version`, `ok`, `file`, `machine`, `start`, `ends`, `resources`
    (each with `name`, `kind`, `lifetime`, `set_by`, `driver`, `health`, `health_ms`, `trouble`, `used_by`),
    `faults` and `notes` (each with `code`, `kind`, `message`, `help`, `file`, `line`, `column`).
    """
    with _guarded("check", trace=trace, as_json=as_json):
        report = check_machine(
            Named(machine, container, profile, functions), strict=strict, asking=health, probing=probe
        )
    _finish(report, as_json, 0 if report.ok else 1)


@app.command(epilog=EXIT_CODES)
def resources(*, profile: ProfileFile = None, as_json: AsJson = False, trace: Trace = False) -> None:
    """Show the resources that the environment declares, and what set each of their settings; never a value.

    `--json` prints `report` ("resources"), `version`, `ok` and `resources`: each with `name`, `kind`,
    `lifetime`, `driver` and `settings` (name to origin).
    """
    with _guarded("resources", trace=trace, as_json=as_json):
        report = declared_resources(profile)
    _finish(report, as_json, 0)


@app.command(epilog=EXIT_CODES)
def graph(
    machine: MachineFile,
    *,
    format: Annotated[
        PictureFormat, typer.Option("--format", help="What the picture is written in.")
    ] = PictureFormat.mermaid,
    container: ContainerPath = None,
    profile: ProfileFile = None,
    functions: FunctionsModule = None,
    resources: Annotated[bool, typer.Option(help="Write what a state uses below its name.")] = True,
    trace: Trace = False,
) -> None:
    """Draw a machine as Mermaid or DOT text."""
    with _guarded("graph", trace=trace):
        picture = drawn(Named(machine, container, profile, functions), format, resources=resources)
    sys.stdout.write(picture)


def _finish(report: RunReport | CheckReport | ResourcesReport, as_json: bool, code: int) -> None:
    if as_json:
        show_json(report.as_json())
    else:
        show(*report.lines())
    raise typer.Exit(code)


@contextmanager
def _guarded(report: str, *, trace: bool, as_json: bool = False) -> Iterator[None]:
    """Say in words what was raised, and exit; with ``--json`` only the report goes to the output."""
    try:
        if not as_json:
            yield
            return
        with redirect_stdout(sys.stderr):  # what a person's functions print
            yield
    except BuildError as error:
        _traced(error, trace)
        show_build_error(error)
        code, text, faults = 1, str(error).partition("\n")[0], [fault_report(fault) for fault in error.faults]
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:  # of the library, or of a person's code
        _show_other(error, trace)
        code, text, faults = 2 if isinstance(error, OptionError) else 1, said(error), []
    else:
        return
    if as_json:
        show_json({"report": report, "version": 1, "ok": False, "exit_code": code, "error": text, "faults": faults})
    raise typer.Exit(code)


def _show_other(error: BaseException, trace: bool) -> None:
    _traced(error, trace)
    show_error(said(error))
    if not trace and not isinstance(error, WirestateError):
        show("Add --trace to see where it comes from.", console=ERR)


def _traced(error: BaseException, trace: bool) -> None:
    """Show the frames of an error and of its causes, without their texts: these may quote values."""
    if trace:
        for cause in _chain(error):
            sys.stderr.write(f"{type(cause).__name__}, raised at:\n")
            sys.stderr.writelines(traceback.format_tb(cause.__traceback__))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
