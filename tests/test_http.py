"""HTTP services: retries, breaker, gate and where credentials go, against a real server in another process."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from wirestate.errors import (
    AsyncResourceError,
    BlockingWaitError,
    CircuitOpenError,
    InvalidSettingError,
    PoolTimeoutError,
    ResourceClosedError,
    UnsafeRequestError,
)
from wirestate.resources.base import ResourceHealth
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.http import HTTPResourceAdapter
from wirestate.resources.http_transport import retry_after
from wirestate.resources.pool_config import PoolConfig

if TYPE_CHECKING:
    from tests.conftest import Side

SERVER = Path(__file__).parent / "servers" / "http_server.py"
keys = itertools.count()


def started() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process, url = started()
    yield url
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def other_server() -> Iterator[str]:
    process, url = started()
    yield url
    process.kill()
    process.communicate()


@pytest.fixture
def dead_server() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def key() -> str:
    return f"key{next(keys)}"


class Service:
    """Adapters of one world, used in the same words in both."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.is_async = side.is_async

    def run(self, work: Callable[[Callable[..., Awaitable[httpx.Response]]], Awaitable[Any]], **settings: Any) -> Any:
        adapter = HTTPResourceAdapter("api", async_client=self.is_async, **{"retry_pause": 0.01, **settings})

        async def main() -> Any:
            client = await self.side.call(adapter, "acquire")

            async def request(method: str, url: str, **keywords: Any) -> httpx.Response:
                answer = client.request(method, url, **keywords)
                return await answer if self.is_async else answer

            try:
                result = await work(request)
                assert adapter.gate.snapshot().used == 0
                return result
            finally:
                await self.side.call(adapter, "close")

        return self.side.run(main())


@pytest.fixture
def service(side: Side) -> Service:
    return Service(side)


@pytest.mark.parametrize("url", ["../x", "/a/../../x", "a/%2e%2e/..%2fx", "..?a=b"])
def test_no_relative_url_climbs_above_the_base_url(service: Service, server: str, url: str) -> None:
    async def work(request: Any) -> Any:
        with pytest.raises(UnsafeRequestError, match="climbs above"):
            await request("GET", url)
        return (await request("GET", "a/../users/1?x=../y")).json()["path"]

    assert service.run(work, base_url=f"{server}/v1/") == "/v1/users/1"


def test_the_path_of_the_base_url_stays_in_front(service: Service, server: str) -> None:
    async def work(request: Any) -> Any:
        return (await request("GET", "/users/1")).json()["path"]

    assert service.run(work, base_url=f"{server}/v1") == "/v1/users/1"


def test_connections_are_kept_alive(service: Service, server: str) -> None:
    async def work(request: Any) -> Any:
        before = (await request("GET", "/connections")).json()
        for _ in range(5):
            await request("GET", "/ok")
        return (await request("GET", "/connections")).json() - before

    assert service.run(work, base_url=server) == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_an_idempotent_request_is_tried_again(service: Service, server: str, key: str, method: str) -> None:
    async def work(request: Any) -> Any:
        return (await request(method, f"/flaky/{key}/2")).status_code, (await request("GET", f"/count/{key}")).json()

    assert service.run(work, base_url=server, retry_count=3) == (200, 3)


@pytest.mark.parametrize("status", [500, 503])
def test_a_post_is_sent_once(service: Service, server: str, key: str, status: int) -> None:
    async def work(request: Any) -> Any:
        answer = await request("POST", f"/flaky/{key}/1?status={status}", json={})
        return answer.status_code, (await request("GET", f"/count/{key}")).json()

    assert service.run(work, base_url=server) == (status, 1)


def test_the_last_answer_is_handed_out_when_retries_are_used_up(service: Service, server: str, key: str) -> None:
    async def work(request: Any) -> Any:
        answer = await request("GET", f"/flaky/{key}/9")
        return answer.status_code, (await request("GET", f"/count/{key}")).json()

    assert service.run(work, base_url=server, retry_count=2) == (503, 3)


def test_a_body_that_cannot_be_sent_twice_is_sent_once(service: Service, server: str, key: str) -> None:
    async def chunks() -> Any:
        yield b"once"

    async def work(request: Any) -> Any:
        body = chunks() if service.is_async else iter([b"once"])
        answer = await request("PUT", f"/flaky/{key}/1", content=body, headers={"Content-Length": "4"})
        return answer.status_code

    assert service.run(work, base_url=server) == 503


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for(service: Service, server: str, key: str, status: int) -> None:
    async def work(request: Any) -> Any:
        began = monotonic()
        answer = await request("GET", f"/flaky/{key}/1?status={status}&retry_after=1")
        return answer.status_code, monotonic() - began

    status_code, took = service.run(work, base_url=server)
    assert status_code == 200
    assert took >= 1.0


def test_a_retry_after_beyond_the_limit_is_handed_out_at_once(service: Service, server: str, key: str) -> None:
    async def work(request: Any) -> Any:
        answer = await request("GET", f"/flaky/{key}/1?retry_after=3600")
        return answer.status_code, answer.headers["retry-after"]

    assert service.run(work, base_url=server) == (503, "3600")


def test_retry_after_may_be_a_date() -> None:
    def pause(text: str) -> float | None:
        return retry_after(httpx.Response(503, headers={"Retry-After": text}))

    assert pause("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert (pause("Wed, 21 Oct 2099 07:28:00 GMT") or 0) > 1e8
    assert pause("soon") is None
    assert pause("7") == 7.0


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


SECRETS = {"headers": {"X-Api-Key": SecretStr("open sesame")}, "token": SecretStr("open sesame")}


def test_credentials_reach_the_service(service: Service, server: str) -> None:
    async def work(request: Any) -> Any:
        return (await request("GET", "/echo")).json()["headers"]

    headers = service.run(work, base_url=server, **SECRETS)
    assert headers["authorization"] == "Bearer open sesame"
    assert headers["x-api-key"] == "open sesame"


@pytest.mark.parametrize("way", ["/redirect?to={other}/echo", "{other}/echo"], ids=["redirect", "absolute URL"])
def test_credentials_never_reach_another_origin(service: Service, server: str, other_server: str, way: str) -> None:
    async def work(request: Any) -> Any:
        answer = await request("GET", way.format(other=other_server), headers={"Cookie": "session=open sesame"})
        return str(answer.url), answer.text

    url, seen = service.run(work, base_url=server, **SECRETS)
    assert url.startswith(other_server)
    assert "open sesame" not in seen


def test_a_header_of_one_request_goes_where_it_goes_and_no_redirect_takes_it_elsewhere(
    service: Service, server: str, other_server: str
) -> None:
    async def work(request: Any) -> Any:
        mine = {"headers": {"X-Once": "once"}}
        there = await request("GET", f"{other_server}/echo", **mine)
        redirected = await request("GET", f"/redirect?to={other_server}/echo", **mine)
        inside = await request("GET", f"/redirect?to={server}/echo", **mine)
        return [answer.json()["headers"].get("x-once") for answer in (there, redirected, inside)]

    assert service.run(work, base_url=server) == ["once", None, "once"]


def test_passwords_never_reach_another_origin(service: Service, server: str, other_server: str) -> None:
    async def work(request: Any) -> Any:
        mine = (await request("GET", "/echo")).json()["headers"]
        return mine, (await request("GET", f"{other_server}/echo")).json()["headers"]

    mine, others = service.run(work, base_url=server, auth=("me", SecretStr("open sesame")))
    assert "authorization" in mine
    assert "authorization" not in others


@pytest.mark.parametrize("way", ["ftp://127.0.0.1/x", "/redirect?to=file:///etc/passwd"])
def test_other_schemes_are_refused(service: Service, server: str, way: str) -> None:
    async def work(request: Any) -> Any:
        with pytest.raises((UnsafeRequestError, httpx.HTTPError)):
            await request("GET", way)

    service.run(work, base_url=server)


def test_a_streamed_answer_holds_its_place_until_it_is_closed(server: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server, pool=PoolConfig(max_size=1, acquire_timeout=0))
    client = adapter.acquire()
    with client.stream("GET", "/ok"), pytest.raises(PoolTimeoutError, match="GET /ok"):
        client.get("/ok")
    assert client.get("/ok").status_code == 200
    adapter.close()


def test_requests_succeed_after_bursts_of_cancelled_ones(server: str) -> None:
    async def main() -> None:
        adapter = HTTPResourceAdapter("api", base_url=server, async_client=True, max_connections=3)
        client = await adapter.aacquire()
        for _ in range(4):
            burst = [asyncio.create_task(client.get("/slow/0.05")) for _ in range(30)]
            await asyncio.sleep(0.02)
            for task in burst:
                task.cancel()
            await asyncio.gather(*burst, return_exceptions=True)
        answers = await asyncio.gather(*(client.get("/ok") for _ in range(12)))
        assert [answer.status_code for answer in answers] == [200] * 12
        assert adapter.gate.snapshot().used == 0
        await adapter.aclose()

    asyncio.run(main())


def test_a_blocking_pause_in_an_event_loop_is_refused(server: str, key: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server)

    async def main() -> None:
        with pytest.raises(BlockingWaitError):
            adapter.acquire().get(f"/flaky/{key}/1")

    asyncio.run(main())
    adapter.close()


def test_each_event_loop_gets_a_client_of_its_own(server: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server, async_client=True)
    clients = []

    async def main() -> None:
        client = await adapter.aacquire()
        clients.append(client)
        assert client is await adapter.aacquire()
        assert (await client.get("/ok", headers={"Connection": "close"})).status_code == 200

    asyncio.run(main())
    asyncio.run(main())
    assert clients[0] is not clients[1]


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


def test_no_secret_is_shown() -> None:
    adapter = HTTPResourceAdapter("api", base_url="https://example.com/v1", **SECRETS)
    client = adapter.acquire()
    assert repr(adapter) == "<HTTPResourceAdapter 'api' https://example.com/v1 idle, 0 of 100 requests, breaker closed>"
    shown = [repr(part) for name, part in vars(adapter).items() if name != "_headers"]
    assert "sesame" not in f"{client!r} {client._transport!r} {shown}"
    adapter.close()


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
