"""The pytest plugin: it costs nothing before it is used, and tells every lease that a test leaves open."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import asyncio, contextlib, unittest
import pytest
from wirestate import Listener, ResourceContainer, ResourceManager, lifetimes, manager_of
from wirestate.testing import assert_no_leaks

class App(ResourceContainer):
    db = lifetimes.PerState(list)

@pytest.fixture
def manager(no_leaks):
    with ResourceManager() as made:
        made.register_from_dict("settings", {"a": 1})
        yield no_leaks(made)
"""
TIDY = """
def test_tidy(manager):
    with manager.resource_context("settings", "careful"):
        pass
"""
LEAK = """
def test_leak(manager):
    manager.acquire("settings", "forgotten")
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest on a file of tests, and with lines of settings; the plugin is loaded once, installed or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(tests: str, *options: str, settings: str = "") -> pytest.RunResult:
        pytester.makepyfile(HEAD + tests)
        pytester.makeini(f"[pytest]\n{settings}\n")
        plugins = ("-p", "wirestate.pytest_plugin", "-p", "no:cacheprovider")
        # In a context of its own: the scopes that are left open there would be current here.
        return copy_context().run(pytester.runpytest_inprocess, *plugins, *options)

    return run


# --- what it costs -----------------------------------------------------------------------

PROBE = """
import sys

def test_nothing_is_loaded():
    ours = {name for name in sys.modules if name.split(".")[0] == "wirestate"}
    assert ours == {"wirestate", "wirestate.pytest_plugin"}
    assert not {"dependency_injector", "pydantic", "sqlalchemy", "httpx", "fsspec"} & set(sys.modules)
"""


@pytest.mark.parametrize("settings", ["", "wirestate_no_leaks = all"])
def test_a_run_that_uses_nothing_of_wirestate_loads_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    (tmp_path / "test_probe.py").write_text(PROBE)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{settings}\n")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "wirestate.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


# --- a test that leaks -------------------------------------------------------------------


def test_the_fixture_fails_the_test_that_leaks_and_says_where_it_was_acquired(run: Run) -> None:
    result = run(TIDY + LEAK)
    result.assert_outcomes(passed=1, failed=1)
    line = (HEAD + TIDY + LEAK).strip().splitlines().index('    manager.acquire("settings", "forgotten")') + 1
    place = rf"test_\w+\.py:{line} in test_leak\."
    result.stdout.re_match_lines([rf"not given back: 'forgotten' holds 'settings' since [\d.]+ s, acquired at {place}"])
    assert not {"pytest_plugin.py", "pluggy", "leaks.py", "hidden"} & set(result.stdout.str().replace(":", " ").split())


@pytest.mark.parametrize(
    "acquire",
    [
        'contextlib.ExitStack().enter_context(manager.resource_context("settings", "me"))  # here',
        """
    async def take():
        await manager.aacquire("settings", "me")  # here
    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(take())
    asyncio.run(main())""",
        """
    app = no_leaks(App())
    scope = manager_of(app).scope("me").__enter__()
    visit = scope.state("x").__enter__()
    app.db()  # here""",
    ],
    ids=["exit stack", "task group", "provider"],
)
def test_the_place_of_an_acquire_is_the_users_own_line(run: Run, acquire: str) -> None:
    tests = f"def test_leak(manager, no_leaks):\n    {acquire.strip()}\n"
    line = next(n for n, text in enumerate((HEAD + tests).strip().splitlines(), 1) if text.endswith("# here"))
    result = run(tests)
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([rf"not given back: 'me.* acquired at test_\w+\.py:{line} in "])


FAILING = {
    "assertion": "def test_it(manager):\n    leak(manager)\n    assert 'its own error' == 'shown'",
    "without traceback": "def test_it(manager):\n    leak(manager)\n    pytest.fail('its own error', pytrace=False)",
    "error": "def test_it(manager):\n    leak(manager)\n    raise OSError('its own error')",
    "unittest": """
class TestIt(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def given(self, manager):
        self.manager = manager
    def test_it(self):
        leak(self.manager)
        self.fail("its own error")
""",
}


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
@pytest.mark.parametrize("options", [(), ("--show-capture=no", "--tb=short")], ids=["plain", "quiet"])
def test_a_leak_in_a_test_that_fails_by_itself_is_told_too(run: Run, failing: str, options: tuple[str, ...]) -> None:
    result = run("def leak(manager):\n    manager.acquire('settings', 'forgotten')\n" + failing, *options)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*its own error*", "*Leases left open*", "not given back: 'forgotten' holds 'settings'*acquired at *in leak.*"]
    )
    assert result.stdout.str().count("not given back") == 1


def test_a_skip_hides_no_leak_and_an_expected_failure_stays_one(run: Run) -> None:
    result = run(
        """
def test_skip(manager):
    manager.acquire("settings", "forgotten")
    pytest.skip("not today")

def test_tidy_skip(manager):
    pytest.skip("not today")

@pytest.mark.xfail
def test_expected(manager):
    manager.acquire("settings", "forgotten")
    assert False
"""
    )
    result.assert_outcomes(failed=1, skipped=1, xfailed=1)


def test_a_test_that_runs_again_begins_anew(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    runtestprotocol(item, log=False, nextitem=nextitem)
    item._initrequest()
    runtestprotocol(item, nextitem=nextitem)
    return True
"""
    )
    tests = """
tries = []

def test_it(no_leaks):
    tries.append(no_leaks(ResourceManager()))
    tries[-1].register_from_dict("settings", {"a": 1})
    if len(tries) == 1:
        tries[-1].acquire("settings", "forgotten")
"""
    run(tests).assert_outcomes(passed=1)


def test_what_is_no_container_is_refused_where_it_is_given(run: Run) -> None:
    result = run("def test_it(no_leaks):\n    no_leaks(object())\n")
    result.stdout.fnmatch_lines([">*no_leaks(object())"])


def test_a_direct_check_shows_the_line_that_asked(run: Run) -> None:
    result = run("def test_it(manager):\n    manager.acquire('settings', 'me')\n    assert_no_leaks(manager)\n")
    result.stdout.fnmatch_lines([">*assert_no_leaks(manager)", "E*not given back: 'me' holds 'settings'*in test_it*"])
    assert "raise AssertionError" not in result.stdout.str()


# --- every test --------------------------------------------------------------------------

OF_ALL = """
class Counting(Listener):
    opened = 0
    def on_open(self, resource, owner_id, seconds):
        self.opened += 1

def registered(**options):
    manager = ResourceManager(**options)
    manager.register_from_dict("settings", {"a": 1})
    return manager

def test_leak_of_a_manager_that_is_gone():
    registered().acquire("settings", "forgotten")

def test_leak_beside_a_listener():
    manager, listener = registered(), Counting()
    manager.listener = listener
    manager.acquire("settings", "heard")
    assert manager.listener is listener
    assert listener.opened == 1

@pytest.fixture(scope="module")
def app():
    with App() as app, manager_of(app).scope("suite") as scope, scope.state("open"):
        app.db()
        yield app

def test_wider_fixture_may_hold(app):
    with manager_of(app).scope("job") as scope, scope.state("open"):
        app.db()

def test_leak_in_wider_fixture(app):
    scope = manager_of(app).scope("late").__enter__()
    scope.state("open").__enter__()
    app.db()

def test_failing():
    registered().acquire("settings", "failed")
    assert 0
"""


@pytest.mark.filterwarnings("ignore:.*was lost before it was closed:ResourceWarning")
def test_all_looks_at_every_manager_for_what_the_test_itself_has_opened(run: Run) -> None:
    result = run(OF_ALL, "-W", "ignore::ResourceWarning", settings="wirestate_no_leaks = all")
    result.assert_outcomes(passed=1, failed=4)
    for owner, place in [
        ("forgotten", "test_leak_of_a_manager_that_is_gone"),
        ("heard", "test_leak_beside_a_listener"),
        ("late/open#1", "test_leak_in_wider_fixture"),
        ("failed", "test_failing"),
    ]:
        result.stdout.fnmatch_lines([f"not given back: '{owner}' holds *acquired at test_*.py:* in {place}.*"])
    assert "suite" not in result.stdout.str()


@pytest.mark.filterwarnings("ignore:.*was lost before it was closed:ResourceWarning")
def test_without_the_setting_only_what_is_given_to_the_fixture_is_looked_at(run: Run) -> None:
    run(OF_ALL, "-W", "ignore::ResourceWarning").assert_outcomes(passed=4, failed=1)


@pytest.mark.parametrize("value", ["true", "All", "all none"])
def test_another_value_of_the_setting_is_refused(run: Run, value: str) -> None:
    result = run(TIDY, settings=f"wirestate_no_leaks = {value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: wirestate_no_leaks = {value}: write 'all', or leave it out"])
