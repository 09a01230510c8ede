"""The circuit breaker of an HTTP service: what opens it, what closes it, and what can be seen of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.http_services import Service, dead, running, settled
from wirestate import ResourceManager
from wirestate.errors import CircuitOpenError
from wirestate.observing import Listener
from wirestate.resources.http.adapter import HTTPResourceAdapter

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


def test_a_dead_host_opens_the_breaker(service: Service) -> None:
    async def work(request: Any) -> Any:
        for _ in range(3):
            with pytest.raises(httpx.ConnectError):
                await request("GET", "/ok")
        with pytest.raises(CircuitOpenError, match="breaker is open after 3 failures") as caught:
            await request("GET", "/ok")
        return caught.value.retry_after

    assert 0 < service.run(work, base_url=dead(), retry_count=0, breaker_failures=3) <= 30


def let_pass(adapter: HTTPResourceAdapter, seconds: float) -> None:
    """Let *seconds* pass for the breaker."""
    breaker: Any = adapter._breaker
    now = breaker._clock
    breaker._clock = lambda: now() + seconds


def test_the_state_of_the_breaker_is_visible_and_one_probe_closes_it(service: Service, server: str, key: str) -> None:
    async def main() -> None:
        async with service.lent(server, breaker_failures=2, breaker_reset=60, retry_count=0) as (adapter, client):

            async def status() -> int:
                return (await settled(client.get(f"/flaky/{key}/3"))).status_code

            assert adapter.breaker.state == "closed"
            assert repr(adapter).endswith("breaker closed>")
            assert [await status(), await status()] == [503, 503]
            assert adapter.breaker.state == "open"
            with pytest.raises(CircuitOpenError) as caught:
                await status()
            assert 40 < caught.value.retry_after <= 60
            assert re.search(r"breaker open, next try in \d\d\.\d s>$", repr(adapter))

            let_pass(adapter, 60)
            assert await status() == 503  # the probe, and the third failure
            assert adapter.breaker.state == "open"
            with pytest.raises(CircuitOpenError):
                await status()

            let_pass(adapter, 60)
            assert await status() == 200
            assert adapter.breaker.state == "closed"

    service.side.run(main())


def test_only_one_request_probes_a_service_that_was_out_of_order(service: Service, server: str, key: str) -> None:
    async def main() -> None:
        async with service.lent(server, breaker_failures=1, breaker_reset=60, retry_count=0) as (adapter, client):
            assert (await settled(client.get(f"/flaky/{key}/1"))).status_code == 503
            let_pass(adapter, 60)

            async def held() -> int:
                return (await settled(client.get(f"/hold/{key}"))).status_code

            probe = service.crew.start(held())
            await service.crew.until(lambda: adapter.breaker.state == "half-open")
            with pytest.raises(CircuitOpenError):
                await settled(client.get("/ok"))
            ask(server, f"/free/{key}")
            assert await probe.result() == 200
            assert (await settled(client.get("/ok"))).status_code == 200

    service.side.run(main())


def test_the_error_of_an_open_breaker_has_the_last_failure_as_its_cause(service: Service) -> None:
    async def work(request: Any) -> Any:
        with pytest.raises(httpx.ConnectError):
            await request("GET", "/ok")
        with pytest.raises(
            CircuitOpenError, match=r"open after 1 failures in a row; the next try is allowed in \d"
        ) as caught:
            await request("GET", "/ok")
        assert "ConnectError" in str(caught.value.__cause__)

    service.run(work, base_url=dead(), retry_count=0, breaker_failures=1)


def test_an_open_breaker_refuses_at_once_while_all_places_are_taken(service: Service, server: str, key: str) -> None:
    async def main() -> None:
        async with service.lent(server, max_connections=1, breaker_failures=1, retry_count=0) as (adapter, client):
            assert (await settled(client.get(f"/flaky/{key}/1"))).status_code == 503
            place = adapter.gate.enter_now("somebody")
            with pytest.raises(CircuitOpenError):
                await settled(client.get("/ok"))
            adapter.gate.leave(place)

    service.side.run(main())


def test_those_who_wait_in_line_are_told_when_the_breaker_opens(service: Service, server: str, key: str) -> None:
    async def main() -> None:
        async with service.lent(server, max_connections=1, breaker_failures=1, retry_count=0) as (adapter, client):
            place = adapter.gate.enter_now("somebody")

            async def request() -> int:
                return (await settled(client.get(f"/flaky/{key}/9"))).status_code

            members = [service.crew.start(request()) for _ in range(5)]
            await service.crew.until(lambda: adapter.gate.snapshot().waiting == 5)
            adapter.gate.leave(place)
            errors = [await member.error() for member in members]
            assert sorted(type(error).__name__ for error in errors) == ["CircuitOpenError"] * 4 + ["NoneType"]
            assert ask(server, f"/count/{key}") == 1

    service.side.run(main())


def ask(server: str, path: str) -> Any:
    """Ask past the adapter."""
    return httpx.get(f"{server}{path}", trust_env=False).json()


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_answers_that_are_not_an_outage_do_not_open_the_breaker(service: Service, server: str, status: int) -> None:
    async def work(request: Any) -> Any:
        for _ in range(5):
            assert (await request("GET", f"/status/{status}")).status_code == status
        return (await request("GET", "/ok")).status_code

    assert service.run(work, base_url=server, breaker_failures=3, retry_count=0) == 200


def test_callers_that_wait_for_less_than_the_service_is_given_do_not_open_the_breaker(
    service: Service, server: str
) -> None:
    async def main() -> None:
        settings = {"timeout": 20, "breaker_failures": 2, "retry_count": 0}
        async with service.lent(server, **settings) as (adapter, client):
            for _ in range(3):
                with pytest.raises(httpx.TimeoutException):
                    await settled(client.get("/slow/0.5", timeout=0.02))
            assert adapter.breaker.state == "closed"
        async with service.lent(server, **{**settings, "timeout": 0.02}) as (adapter, client):
            for _ in range(2):
                with pytest.raises(httpx.TimeoutException):
                    await settled(client.get("/slow/0.5"))
            assert adapter.breaker.state == "open"

    service.side.run(main())


def test_another_origin_that_is_dead_does_not_open_the_breaker(service: Service, server: str) -> None:
    async def work(request: Any) -> Any:
        elsewhere = dead()
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                await request("GET", f"{elsewhere}/ok")
        return (await request("GET", "/ok")).status_code

    assert service.run(work, base_url=server, breaker_failures=1, retry_count=0) == 200


def test_a_listener_hears_of_the_breaker(service: Service, server: str, key: str) -> None:
    heard = []

    class Hears(Listener):
        def on_breaker(self, resource: str, before: str, after: str) -> None:
            heard.append((resource, before, after))

    async def main() -> None:
        async with service.lent(server, breaker_failures=1, breaker_reset=60, retry_count=0) as (adapter, client):
            adapter.breaker.listener = Hears()
            await settled(client.get(f"/flaky/{key}/1"))
            let_pass(adapter, 60)
            await settled(client.get("/ok"))

    service.side.run(main())
    assert heard == [("api", "closed", "open"), ("api", "open", "half-open"), ("api", "half-open", "closed")]


def test_a_service_without_a_breaker_says_so(server: str) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server, breaker_failures=None)
    assert adapter.breaker is None
    assert repr(adapter).endswith("no breaker>")


def test_the_manager_tells_the_state_of_the_breaker() -> None:
    with ResourceManager() as manager:
        manager.register_provider("api", HTTPResourceAdapter("api", base_url=dead(), breaker_failures=1, retry_count=0))
        manager.register_provider("plain", HTTPResourceAdapter("plain", base_url=dead(), breaker_failures=None))
        assert manager.get_resource_status("api")["breaker"] == "closed"
        with manager.resource_context("api", "me") as client, pytest.raises(httpx.ConnectError):
            client.get("/ok")
        assert manager.get_resource_status("api")["breaker"] == "open"
        assert manager.get_resource_status("plain")["breaker"] is None
