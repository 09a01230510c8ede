"""The circuit breaker of an HTTP service: what opens it, what closes it, and what can be seen of it."""

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


def test_what_is_missing_does_not_open_the_breaker(service: Service, server: str) -> None:
    async def work(request: Any) -> Any:
        for _ in range(5):
            assert (await request("GET", "/status/404")).status_code == 404
        return (await request("GET", "/ok")).status_code

    assert service.run(work, base_url=server, breaker_failures=3) == 200


def test_a_dead_host_opens_the_breaker(service: Service, dead_server: str) -> None:
    async def work(request: Any) -> Any:
        for _ in range(3):
            with pytest.raises(httpx.ConnectError):
                await request("GET", "/ok")
        with pytest.raises(CircuitOpenError, match="breaker is open after 3 failures") as caught:
            await request("GET", "/ok")
        return caught.value.retry_after

    assert 0 < service.run(work, base_url=dead_server, retry_count=0, breaker_failures=3) <= 30
