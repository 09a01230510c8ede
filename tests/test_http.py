"""The HTTP adapter: what it takes, what it lends, and its end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http_services import running
from wirestate.errors import AsyncResourceError, InvalidSettingError, ResourceClosedError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.http.adapter import HTTPResourceAdapter
from wirestate.resources.pool_config import PoolConfig


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


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
        ({"base_url": 7}, "cannot be read"),
        ({"pool": PoolConfig(), "max_connections": 1}, "one setting"),
        ({"pool": PoolConfig(min_size=1)}, "'min_size' cannot be honoured"),
        ({"pool": PoolConfig(max_lifetime=1)}, "'max_lifetime' cannot be honoured"),
        ({"max_connections": 0}, "max_size is 0"),
        ({"timeout": 0}, "timeout is 0; it must be more than 0"),
        ({"timeout": "5"}, "timeout is '5'; it must be a number"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retry_count": -1}, "retry_count is -1; it must be 0 or more"),
        ({"retry_count": 1.5}, "retry_count is 1.5; it must be a whole number"),
        ({"retry_pause": -1}, "retry_pause is -1"),
        ({"retry_pause_max": -1}, "retry_pause_max is -1"),
        ({"retry_after_max": True}, "retry_after_max is True"),
        ({"breaker_failures": 0}, "breaker_failures is 0; it must be more than 0"),
        ({"breaker_reset": -1}, "breaker_reset is -1"),
        ({"token": "sesame", "headers": {"authorization": "sesame"}}, "token and the header 'Authorization'"),
        ({"token": "sesame", "auth": ("me", "sesame")}, "auth and token"),
        ({"verify": "/nowhere/ca.pem"}, "verify names the file '/nowhere/ca.pem', which is not there"),
        ({"transport": httpx.AsyncHTTPTransport()}, "it must be an httpx.BaseTransport"),
        ({"transport": httpx.HTTPTransport(), "async_client": True}, "it must be an httpx.AsyncBaseTransport"),
        ({"client_factory": httpx.AsyncClient}, "it must be an httpx.Client"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words) as caught:
        HTTPResourceAdapter("api", **{"base_url": "https://example.com", **settings})
    assert "sesame" not in str(caught.value)


def test_an_adapter_is_closed_once_and_for_all(server: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server)
    client = adapter.acquire()
    assert adapter.validate(client)
    other = adapter.acquire()
    adapter.release(client)
    assert not adapter.validate(client)
    assert adapter.validate(other)
    adapter.close()
    assert not adapter.validate(other)
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


def test_a_client_of_a_library_that_resembles_httpx_is_refused() -> None:
    httpx2: Any = pytest.importorskip("httpx2")
    words = r"makes a httpx2\.\S*Client; it must be an httpx\.Client"
    with pytest.raises(InvalidSettingError, match=words):
        HTTPResourceAdapter("api", base_url="https://example.com", client_factory=httpx2.Client)

    def factory(**options: Any) -> Any:
        return httpx2.Client()

    adapter = HTTPResourceAdapter("api", base_url="https://example.com", client_factory=factory)
    with pytest.raises(InvalidSettingError, match=words):
        adapter.acquire()
    adapter.close()


def test_a_pool_cannot_be_sized_in_use(server: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server)
    adapter.configure_pool(PoolConfig(max_size=3))
    assert adapter.gate.snapshot().limit == 3
    adapter.acquire()
    with pytest.raises(InvalidSettingError, match="in use"):
        adapter.configure_pool(PoolConfig(max_size=4))
    adapter.close()


def test_a_file_of_authorities_decides_whom_to_trust(tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.write_text("no certificate")
    adapter = HTTPResourceAdapter("api", base_url="https://example.com", verify=str(authorities))
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert "SSLError" in str(adapter.trouble)


def test_httpx_is_loaded_with_the_first_adapter() -> None:
    code = (
        "import sys, wirestate; from wirestate import HTTPResourceAdapter as made; assert 'httpx' not in sys.modules; "
        "made(base_url='http://x'); assert 'httpx' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
