"""The health of an HTTP service, asked from real, dead, slow and silent ones."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from tests.crews import Crew
from tests.http_services import Service, dead, running, settled
from wirestate import BaseResourceProvider, ResourceManager
from wirestate.errors import BlockingWaitError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.health import Probe
from wirestate.resources.http.adapter import PROBE_TIMEOUT, HTTPResourceAdapter
from wirestate.waiting import BLOCKING, drive

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


def test_health_tells_answers_from_failures(service: Service, server: str) -> None:
    def health(url: str) -> ResourceHealth:
        return HTTPResourceAdapter("api", base_url=url, async_client=service.is_async, timeout=2).health_check()

    assert health(server) is ResourceHealth.HEALTHY
    assert health(f"{server}/status/404") is ResourceHealth.HEALTHY
    assert health(f"{server}/status/500") is ResourceHealth.UNHEALTHY
    assert health(dead()) is ResourceHealth.UNHEALTHY
    assert health(f"{server}/slow/1.1") is ResourceHealth.DEGRADED


def test_a_service_that_never_answers_is_unhealthy_in_time(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        adapter = HTTPResourceAdapter("api", base_url=url, async_client=service.is_async, timeout=0.1)
        assert adapter.health_check() is ResourceHealth.UNHEALTHY


@pytest.mark.parametrize("path", ["/drip", "/hold/never"])
def test_a_probe_ends_at_its_own_deadline(service: Service, server: str, path: str) -> None:
    adapter = service.adapter(f"{server}{path}", timeout=0.3)
    began = monotonic()
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert monotonic() - began < 3
    assert adapter.trouble is not None
    drive(Crew(BLOCKING).until(lambda: not any(thread.name == "wirestate-call" for thread in threading.enumerate())))


def test_a_probe_of_a_frozen_server_ends_before_the_manager_gives_it_up(service: Service) -> None:
    assert Probe("api", BaseResourceProvider("api")).bound > PROBE_TIMEOUT
    with socket.create_server(("127.0.0.1", 0)) as frozen:  # accepts, and never answers
        adapter = service.adapter(f"http://127.0.0.1:{frozen.getsockname()[1]}", timeout=0.5)
        with ResourceManager() as manager:
            manager.register_provider("api", adapter)
            began = monotonic()
            assert manager.health_check("api") == {"api": ResourceHealth.UNHEALTHY}
            assert monotonic() - began < 5
            assert "no answer within" in str(adapter.trouble) or "ReadTimeout" in str(adapter.trouble)


def test_a_probe_runs_past_the_gate_and_the_breaker(service: Service, server: str, key: str) -> None:
    async def main() -> None:
        async with service.lent(server, max_connections=1, breaker_failures=1, retry_count=0) as (adapter, client):
            assert (await settled(client.get(f"/flaky/{key}/1"))).status_code == 503
            assert adapter.breaker.state == "open"
            place = adapter.gate.enter_now("somebody")
            assert await service.side.call(adapter, "health_check") is ResourceHealth.HEALTHY
            assert adapter.breaker.state == "open"  # a probe of the health is none of the breaker's
            adapter.gate.leave(place)

    service.side.run(main())


def test_health_is_unknown_before_the_first_probe(service: Service, server: str) -> None:
    with ResourceManager() as manager:
        manager.register_provider("api", service.adapter(server))
        assert manager.get_resource_status("api")["health"] is ResourceHealth.UNKNOWN
        assert manager.health_check("api") == {"api": ResourceHealth.HEALTHY}
        assert manager.get_resource_status("api")["health"] is ResourceHealth.HEALTHY


def test_an_asynchronous_probe_does_not_stop_the_event_loop(server: str, invariant: Invariant) -> None:
    async def main(adapter: HTTPResourceAdapter) -> None:
        probe = asyncio.create_task(adapter.ahealth_check())
        ticks = 0
        while not probe.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert await probe is ResourceHealth.HEALTHY
        assert ticks > 2

    for asynchronous in (False, True):
        adapter = HTTPResourceAdapter("api", base_url=f"{server}/slow/0.2", async_client=asynchronous)
        invariant.watch(adapter.gate)
        asyncio.run(main(adapter))


def test_a_blocking_probe_in_an_event_loop_is_refused(service: Service, server: str) -> None:
    async def main() -> None:
        with pytest.raises(BlockingWaitError):
            service.adapter(server).health_check()

    asyncio.run(main())
