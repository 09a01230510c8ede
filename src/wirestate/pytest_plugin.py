"""For pytest: ``no_leaks`` fails a test that leaves leases open; ``wirestate_no_leaks = all`` looks at every test.

pytest loads this plugin in every project of its environment: it imports nothing of ours before it is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
SETTING = "wirestate_no_leaks"
WATCHED = pytest.StashKey[list[Any]]()  # Any: containers of any type, and managers
LEAKS = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Know the setting."""
    parser.addini(SETTING, "all: a test that leaves leases of Wirestate open fails, whatever container they are of")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse other values of the setting."""
    value = config.getini(SETTING)
    if value not in ("", "all"):
        raise pytest.UsageError(f"{SETTING} = {value}: write 'all', or leave it out")


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Callable[[T], T]:
    """Watch what it is called with and give it back: ``container = no_leaks(Flights())``."""
    from wirestate.resources.leaks import watch as keep_places
    from wirestate.testing import manager_behind

    watched = request.node.stash.setdefault(WATCHED, [])

    def watch(container: T) -> T:
        keep_places(manager_behind(container))
        watched.append(container)
        return container

    return watch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Look at the end of the test itself: fixtures that close the container would hide the leak."""
    item.stash[LEAKS] = ""
    began = monotonic()
    result, skip = None, None
    with _watching(item):
        try:
            result = yield
        except pytest.skip.Exception as error:
            skip = error
        except BaseException:
            item.stash[LEAKS] = _leaks(item, began)
            raise
        leaks = item.stash[LEAKS] = _leaks(item, began)
    if leaks:  # a failing test of unittest comes here too, and its report shows its own error
        pytest.fail(leaks, pytrace=False)
    if skip is not None:
        raise skip
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell the leaks of a test that failed by an error of its own, too."""
    report = yield
    leaks = item.stash.get(LEAKS, "")
    if leaks and call.when == "call" and report.failed and leaks not in report.longreprtext:
        # Beside the traceback: sections of the report itself are hidden by --show-capture=no.
        add = getattr(report.longrepr, "addsection", None) or (lambda *section: report.sections.append(section))
        add("Leases left open", leaks)
    return report


def _watching(item: pytest.Item) -> AbstractContextManager[None]:
    if not _all_are_looked_at(item):
        return nullcontext()
    from wirestate.resources.leaks import watching_all

    return watching_all()


def _all_are_looked_at(item: pytest.Item) -> bool:
    """Return True if every manager is meant and there can be one."""
    return item.config.getini(SETTING) == "all" and "wirestate.resources.manager" in sys.modules


def _leaks(item: pytest.Item, began: float) -> str:
    watched = item.stash.get(WATCHED, [])
    item.stash[WATCHED] = []  # a test that is run again begins anew
    everything = _all_are_looked_at(item)
    if not watched and not everything:
        return ""
    from wirestate.resources.inherited import living
    from wirestate.resources.leaks import told_leaks
    from wirestate.resources.manager import ResourceManager
    from wirestate.testing import manager_behind

    # With the setting, what a fixture of a wider scope has opened before may stay open.
    managers = dict.fromkeys(living(ResourceManager), began) if everything else {}
    return told_leaks(managers | {manager_behind(container): 0.0 for container in watched})
