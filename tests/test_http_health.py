"""The health of an HTTP service, asked from real, dead, slow and silent ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.http_services import Service, dead, running, settled

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant

keys = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture
def key() -> str:
    return f"key{next(keys)}"


@pytest.fixture
def service(side: Side, invariant: Invariant) -> Service:
    return Service(side, invariant)


def test_health_tells_answers_from_failures(service: Service, server: str, dead_server: str) -> None:
    def health(url: str) -> ResourceHealth:
        return HTTPResourceAdapter("api", base_url=url, async_client=service.is_async, timeout=2).health_check()

    assert health(server) is ResourceHealth.HEALTHY
    assert health(f"{server}/status/404") is ResourceHealth.HEALTHY
    assert health(f"{server}/status/500") is ResourceHealth.UNHEALTHY
    assert health(dead_server) is ResourceHealth.UNHEALTHY
    assert health(f"{server}/slow/1.1") is ResourceHealth.DEGRADED


def test_a_service_that_never_answers_is_unhealthy_in_time(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        adapter = HTTPResourceAdapter("api", base_url=url, async_client=service.is_async, timeout=0.1)
        assert adapter.health_check() is ResourceHealth.UNHEALTHY
