"""HTTP requests that are tried again: which, when, and how long that may take."""

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


def test_a_blocking_pause_in_an_event_loop_is_refused(server: str, key: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server)

    async def main() -> None:
        with pytest.raises(BlockingWaitError):
            adapter.acquire().get(f"/flaky/{key}/1")

    asyncio.run(main())
    adapter.close()
