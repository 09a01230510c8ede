"""A pytest plugin that fails a test in which a planted secret is shown: in a log record, an error or an output."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any

import pytest

from tests.secrets_planted import MARKS

OUTPUTS = ("stdout", "stderr", "log")


class SecretsNet(logging.Handler):
    """Sees every log record, every error that a test expects, and all that is printed; notes who shows a secret."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self.found: list[str] = []

    def look(self, where: str, text: str) -> None:
        """Note *where* a secret was shown, if *text* holds one; never the text itself."""
        if any(mark in text for mark in MARKS):
            self.found.append(where)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{record.name}: {record.getMessage()} {record.args!r}"
        except Exception:  # a wrong call of a logger is not this net's matter
            return
        error = record.exc_info[1] if record.exc_info else None
        self.look(f"a log record of {record.name!r}", "\n".join([text, *texts_of(error)]))

    def expected(self, error: BaseException) -> None:
        """Look at an error that ``pytest.raises`` has caught, and at all that is chained to it."""
        self.look(f"the text of {type(error).__name__}, or of what is chained to it", "\n".join(texts_of(error)))

    # --- hooks -------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        for title, text in report.sections:
            if any(output in title for output in OUTPUTS):
                self.look(title.lower(), text)
        if call.excinfo is not None and not report.skipped:
            self.look("the failure of the test", "\n".join(texts_of(call.excinfo.value)))
        if self.found:
            shown, self.found = sorted(set(self.found)), []
            report.outcome = "failed"
            report.longrepr = f"a planted secret is shown in {'; '.join(shown)}"
        return report

    def pytest_warning_recorded(self, warning_message: Any) -> None:  # Any: it comes from the warnings module
        self.look("a warning", str(warning_message.message))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found:  # after the last test, by a thread say
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:  # Any: pytest exports no type for it
        for where in sorted(set(self.found)):
            terminalreporter.write_line(f"a planted secret is shown in {where}, outside of tests", red=True)


def texts_of(error: BaseException | None) -> Iterator[str]:
    """Yield what an error and all that hangs on it say: causes, contexts, groups, notes, failed releases."""
    seen: set[int] = set()
    ahead = [error]
    while ahead:
        one = ahead.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        try:
            yield f"{type(one).__name__} {one} {one!r} {getattr(one, '__notes__', '')}"
        except Exception as broken:  # of a test's own making
            yield type(broken).__name__
        # What `raise … from None` suppresses, no traceback shows.
        ahead += [one.__cause__, None if one.__suppress_context__ else one.__context__]
        ahead += [*getattr(one, "exceptions", ()), *getattr(one, "release_errors", ())]


def spread(config: pytest.Config) -> SecretsNet:
    """Hang the net up for the whole session."""
    net = SecretsNet()
    config.pluginmanager.register(net, "secrets-net")
    root = logging.getLogger()
    root.addHandler(net)
    root.setLevel(logging.DEBUG)
    caught = pytest.ExceptionInfo.fill_unfilled

    def watched(
        info: pytest.ExceptionInfo[Any],
        exc_info: tuple[type[Any], Any, TracebackType],  # Any: of any class
    ) -> None:
        caught(info, exc_info)
        net.expected(exc_info[1])

    pytest.ExceptionInfo.fill_unfilled = watched  # type: ignore[method-assign]

    def take_down() -> None:
        root.removeHandler(net)
        pytest.ExceptionInfo.fill_unfilled = caught  # type: ignore[method-assign]

    config.add_cleanup(take_down)
    return net
