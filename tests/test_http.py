"""The HTTP adapter: what it takes, what it lends, and its end."""

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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": "ftp://example.com"}, "http:// or https://"),
        ({"base_url": "https://"}, "and a host"),
        ({"base_url": "https://me:sesame@example.com"}, "auth="),
        ({"base_url": "https://me:open@sesame/x@example.com"}, "auth="),
        ({"base_url": "https://example.com/?token=sesame"}, "token="),
        ({"base_url": "https://example.com/#sesame"}, "token="),
        ({"base_url": "https://example.com", "pool": PoolConfig(), "max_connections": 1}, "one setting"),
        ({"base_url": "https://example.com", "pool": PoolConfig(min_size=1)}, "'min_size' cannot be honoured"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words) as caught:
        HTTPResourceAdapter("api", **settings)
    assert "sesame" not in str(caught.value)


def test_an_adapter_is_closed_once_and_for_all(server: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server)
    client = adapter.acquire()
    assert adapter.validate(client)
    adapter.release(client)
    assert adapter.validate(client)  # all share it: a release does not close it
    adapter.close()
    assert not adapter.validate(client)
    with pytest.raises(ResourceClosedError):
        adapter.acquire()
    assert adapter.health_check() is ResourceHealth.UNHEALTHY


def test_an_asynchronous_adapter_is_called_by_its_twins() -> None:
    adapter = HTTPResourceAdapter("api", base_url="https://example.com", async_client=True)
    assert ProviderCalls.of(adapter).is_async
    assert not ProviderCalls.of(HTTPResourceAdapter("api", base_url="https://example.com")).is_async
    with pytest.raises(AsyncResourceError, match="aacquire"):
        adapter.acquire()
    with pytest.raises(AsyncResourceError, match="aclose"):
        adapter.close()


def test_a_client_may_be_made_by_another_factory() -> None:
    class Mine(httpx.Client):
        pass

    answer = httpx.MockTransport(lambda request: httpx.Response(200, text=request.url.path))
    adapter = HTTPResourceAdapter("api", base_url="https://example.com", transport=answer, client_factory=Mine)
    client = adapter.acquire()
    assert isinstance(client, Mine)
    assert client.get("/x").text == "/x"
    assert adapter.gate.snapshot().used == 0
    assert adapter.health_check() is ResourceHealth.HEALTHY
    adapter.close()
