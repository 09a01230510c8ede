"""For pytest: the fixture ``no_leaks`` fails a test that leaves leases open."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
WATCHED = pytest.StashKey[list[Any]]()  # Any: containers of any type, and managers


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Callable[[T], T]:
    """Watch what it is called with and give it back: ``container = no_leaks(Flights())``."""
    watched = request.node.stash.setdefault(WATCHED, [])

    def watch(container: T) -> T:
        watched.append(container)
        return container

    return watch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Look at the end of the test itself: fixtures that close the container would hide the leak."""
    result = yield
    for container in item.stash.get(WATCHED, []):
        from wirestate.testing import assert_no_leaks  # pytest loads this plugin in every project

        assert_no_leaks(container)
    return result
