"""HTTP requests that are tried again: which, when, and how long that may take."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.http_services import Service, dead, running, settled
from wirestate import SimpleFSM
from wirestate.errors import BlockingWaitError, CircuitOpenError, RunTimeoutError
from wirestate.resources.http.adapter import HTTPResourceAdapter
from wirestate.resources.http.transport import retry_after

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


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_an_idempotent_request_is_tried_again(service: Service, server: str, key: str, method: str) -> None:
    async def work(request: Any) -> Any:
        return (await request(method, f"/flaky/{key}/2")).status_code, (await request("GET", f"/count/{key}")).json()

    assert service.run(work, base_url=server, retry_count=3) == (200, 3)


@pytest.mark.parametrize("status", [429, 500, 503])
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
    assert pause("Wed, 21 Oct 99999999999999999999 07:28:00 GMT") is None


def test_a_blocking_pause_in_an_event_loop_is_refused(server: str, key: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server)

    async def main() -> None:
        with pytest.raises(BlockingWaitError):
            adapter.acquire().get(f"/flaky/{key}/1")

    asyncio.run(main())
    adapter.close()


def test_a_retry_after_that_is_a_date_is_waited_for(service: Service, server: str, key: str) -> None:
    async def work(request: Any) -> Any:
        answer = await request("GET", f"/flaky/{key}/1?status=429&date=1")
        return answer.status_code, monotonic() - began

    began = monotonic()
    status_code, took = service.run(work, base_url=server)
    assert status_code == 200
    assert took >= 1.0


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_beyond_the_callers_timeout_is_handed_out_at_once(
    service: Service, server: str, key: str, status: int
) -> None:
    async def work(request: Any) -> Any:
        mine = await request("GET", f"/flaky/{key}/2?status={status}&retry_after=30", timeout=5)
        return mine.status_code, (await request("GET", f"/count/{key}")).json()

    assert service.run(work, base_url=server, timeout=60) == (status, 1)


def test_a_request_that_pauses_lets_others_pass(service: Service, server: str, key: str) -> None:
    async def main() -> None:
        async with service.lent(server, max_connections=1) as (adapter, client):

            async def paused() -> int:
                return (await settled(client.get(f"/flaky/{key}/1?retry_after=1"))).status_code

            member = service.crew.start(paused())
            await service.crew.until(lambda: adapter.gate.snapshot().acquisitions == 1 and not adapter.gate.holders())
            assert (await settled(client.get("/ok"))).status_code == 200
            assert await member.result() == 200

    service.side.run(main())


@pytest.mark.parametrize(("method", "count"), [("GET", 3), ("DELETE", 3), ("POST", 1), ("PATCH", 1)])
def test_only_an_idempotent_request_is_sent_again_when_the_service_hangs_up(
    service: Service, server: str, key: str, method: str, count: int
) -> None:
    async def work(request: Any) -> Any:
        try:
            status = (await request(method, f"/flaky/{key}/2?hang_up=1")).status_code
        except (httpx.RemoteProtocolError, httpx.ReadError):
            status = None
        return status, (await request("GET", f"/count/{key}")).json()

    assert service.run(work, base_url=server, retry_count=3) == (200 if count == 3 else None, count)


def test_retries_that_are_used_up_raise_the_last_error(service: Service) -> None:
    async def work(request: Any) -> Any:
        with pytest.raises(httpx.ConnectError) as caught:
            await request("GET", "/ok")
        return caught.value.request.url

    assert service.run(work, base_url=dead(), retry_count=2, breaker_failures=None).path == "/ok"


def test_a_request_is_tried_as_often_as_the_breaker_lets_it(service: Service) -> None:
    async def work(request: Any) -> Any:
        with pytest.raises(CircuitOpenError):
            await request("GET", "/ok")

    service.run(work, base_url=dead(), retry_count=9, breaker_failures=2)


def test_the_timeout_bounds_a_request(service: Service, server: str) -> None:
    async def work(request: Any) -> Any:
        with pytest.raises(httpx.TimeoutException):
            await request("GET", "/slow/20")
        with pytest.raises(httpx.TimeoutException):
            await request("POST", "/slow/20", timeout=0.05)

    began = monotonic()
    service.run(work, base_url=server, timeout=0.1, retry_count=1)
    assert monotonic() - began < 10


def test_a_request_ends_with_the_deadline_of_its_run(server: str, invariant: Invariant) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server, async_client=True, max_connections=1)
    invariant.watch(adapter.gate)

    async def asks(record: Any, context: Any) -> None:
        await context.resources["api"].get("/slow/20" if record["slow"] else "/ok")

    async def main() -> None:
        machine = {"states": {"s": {"transform": "asks", "resources": ["api"]}}}
        async with SimpleFSM(machine, resources={"api": adapter}, functions={"asks": asks}) as fsm:
            assert (await fsm.aprocess({"slow": False})).success
            began = monotonic()
            result = await fsm.aprocess({"slow": True}, timeout=0.1)
            assert isinstance(result.error, RunTimeoutError)
            assert monotonic() - began < 10
            assert adapter.gate.snapshot().used == 0
            assert (await fsm.aprocess({"slow": False})).success

    asyncio.run(main())
