"""``wirestate run``: records through a machine, with progress and a closing table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any  # Any: containers share no typed base

from rich.table import Table
from rich.text import Text

from wirestate.cli.loading import Named, OptionError, load, said
from wirestate.cli.models import settings_named
from wirestate.cli.progress import Tell, expected_rows, reporting, show_part
from wirestate.cli.signals import Stopper
from wirestate.cli.terminal import Rows, counted, lasting
from wirestate.errors import NotAvailableError, SinkError, SourceError, printable
from wirestate.fsm import SimpleFSM
from wirestate.redaction import without_secrets
from wirestate.running.files import local_path
from wirestate.running.same_file import shared_file
from wirestate.running.stream import StreamSummary


@dataclass(frozen=True, slots=True)
class Order:
    """What to run: where records come from and go to."""

    input: str
    output: str | None
    rejects: str | None
    workers: int | None
    limit: int | None
    format: str | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a run ended; ``error`` is what broke it off, ``signalled`` the exit code of a signal that did."""

    machine: str
    order: Order
    summary: StreamSummary | None
    error: BaseException | None = None
    signalled: int | None = None

    @property
    def exit_code(self) -> int:
        if self.signalled is not None:
            return self.signalled
        if self.summary is None and isinstance(self.error, (SourceError, SinkError, NotAvailableError)):
            return 2  # a file that an option names could not be opened
        return 1 if self.error is not None or self.summary is None or self.summary.failed else 0

    def as_json(self) -> dict[str, object]:
        order, summary = self.order, None if self.summary is None else asdict(self.summary)
        return {
            "report": "run",
            "version": 1,
            "ok": self.exit_code == 0,
            "exit_code": self.exit_code,
            "machine": self.machine,
            "input": without_secrets(order.input),
            "output": order.output and without_secrets(order.output),
            "rejects": order.rejects and without_secrets(order.rejects),
            "error": None if self.error is None else said(self.error),
            "summary": summary,
        }

    def lines(self) -> Iterator[str | Text | Table]:
        summary = self.summary
        if summary is None:
            return
        how = "  stopped" if summary.stopped else ""
        pace = f"  {counted(summary.total_processed, 'record')} in {lasting(summary.duration)}, {summary.rate:,.0f}/s"
        yield Text.assemble((self.machine, "bold"), (pace, "dim"), (how, "yellow"))
        yield from ("", self._counts(summary))
        if summary.errors:
            yield ""
            yield Text("first errors", "dim")
            yield from (Text(f"  {printable(error)}") for error in summary.errors)

    def _counts(self, summary: StreamSummary) -> Table:
        order, rows = self.order, Rows.grid(padding=(0, 3, 0, 0))
        rows.add_column(min_width=12)
        rows.add_column(min_width=9, justify="right")
        rows.add_column(min_width=6, justify="right", style="dim")
        rows.add_column(overflow="fold")
        output, rejects = (self._place(path, summary) for path in (order.output, order.rejects))
        if output and summary.emitted < summary.successful:
            output = f"{summary.emitted:,} of them in {output}"
        for word, count, style, place in (
            ("done", summary.successful, "green", output),
            ("rejected", summary.rejected, "yellow", rejects),
            ("failed", summary.failed, "red", rejects),
        ):
            share = f"{count / summary.total_processed:.1%}" if summary.total_processed else ""
            rows.add_row(Text(f"  {word}", style if count else "dim"), f"{count:,}", share, place if count else "")
        if summary.by_state:
            rows.add_row("")
            rows.add_row(Text("last state", "dim"))
        for state, count in sorted(summary.by_state.items(), key=lambda item: -item[1]):
            bad = summary.unsuccessful_by_state.get(state, 0)
            rows.add_row(f"  {state}", f"{count:,}", "", Text(f"{bad:,} of them not done", "dim") if bad else "")
        return rows

    def _place(self, path: str | None, summary: StreamSummary) -> str:
        """Return where records of one kind are: the part file, if the one that was asked for broke off."""
        if path is None:
            return ""
        shown = without_secrets(local_path(path) or path)
        return printable(summary.parts.get(shown, shown))


def carry_out(named: Named, order: Order) -> RunReport:
    """Build the machine and run the records; the report says what was done, whatever ended it."""
    _refuse_shared(named, order)
    with Stopper() as stopper:
        loaded = load(named)
        with settings_named(loaded.container):
            fsm = SimpleFSM(str(named.machine), container=loaded.container, functions=loaded.functions)
        with reporting(fsm.machine.name, expected_rows(order.input, order.limit)) as tell:
            stream = _Stream(fsm, loaded.container, order, stopper, tell)
            stream.run()
    return stream.report()


def _refuse_shared(named: Named, order: Order) -> None:
    written = {"output": order.output, "rejects": order.rejects}
    shared = shared_file(written, {"input": order.input, "machine": named.machine, "profile": named.profile})
    if shared is not None:
        name, other = shared
        path = without_secrets(written[name] or "")
        raise OptionError(f"--{name}", f"{path} is the {other} too; name another file")


class _Stream:
    """One stream in the world that the machine needs; keeps what was done and what went wrong."""

    def __init__(self, fsm: SimpleFSM, container: Any, order: Order, stopper: Stopper, tell: Tell) -> None:
        self.fsm = fsm
        self.container = container
        self.order = order
        self.stopper = stopper
        self.options: dict[str, Any] = {  # Any: keywords of process_stream
            "rejects": order.rejects,
            "workers": order.workers,
            "limit": order.limit,
            "format": order.format,
            "on_progress": tell,
            "stop": stopper,
            "on_part": show_part,
        }
        self.summary: StreamSummary | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Run all records, then close the machine and the container."""
        with self._keeping():
            if self.fsm.is_async:
                asyncio.run(self._in_tasks())
            else:
                self._in_threads()
        self.stopper.rest()

    def _in_threads(self) -> None:
        with self._keeping():
            self._ended(self.fsm.process_stream(self.order.input, self.order.output, **self.options))
        with self._keeping():
            self.fsm.close()
        with self._keeping():
            if self.container is not None:
                self.container.shutdown_resources()

    async def _in_tasks(self) -> None:
        with self._keeping():
            self._ended(await self.fsm.aprocess_stream(self.order.input, self.order.output, **self.options))
        with self._keeping():
            await self.fsm.aclose()
        with self._keeping():
            pending = self.container.shutdown_resources() if self.container is not None else None
            if pending is not None:
                await pending

    def _ended(self, summary: StreamSummary) -> None:
        """Keep *summary*; an input that ended after a signal, such as a silent pipe, counts as stopped by it."""
        self.summary = replace(summary, stopped=summary.stopped or self.stopper.is_set())

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Keep an error, and go on to close what is open."""
        try:
            yield
        except BaseException as error:  # an interrupt too; asyncio cancels the stream to deliver one
            self.summary = vars(error).get("summary", self.summary)
            if not isinstance(error, asyncio.CancelledError):
                self.error = self.error or error

    def report(self) -> RunReport:
        error, summary = self.error, self.summary
        interrupted = isinstance(error, KeyboardInterrupt)
        stopped = self.stopper.is_set() and (summary is None or summary.stopped)
        return RunReport(
            self.fsm.machine.name,
            self.order,
            summary,
            error=None if interrupted else error,
            signalled=self.stopper.exit_code if interrupted or stopped else None,
        )
