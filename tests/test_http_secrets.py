"""Nothing that is secret about an HTTP service is shown: in reprs, logs, errors and their chains."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from tests.http_services import Service, dead, running
from wirestate.errors import CircuitOpenError, InvalidSettingError
from wirestate.resources.http.adapter import HTTPResourceAdapter

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant

SECRETS: dict[str, Any] = {"headers": {"X-Api-Key": SecretStr("pl4nted-key")}, "token": SecretStr("pl4nted-token")}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture
def service(side: Side, invariant: Invariant) -> Service:
    return Service(side, invariant)


def chain(error: BaseException) -> str:
    """Return what the errors of a chain say; a traceback shows lines of this file, too."""
    others = [chain(other) for other in (error.__cause__, error.__context__) if other is not None]
    return " ".join([str(error), repr(error), repr(error.args), *others])


def test_no_secret_is_in_a_repr(service: Service) -> None:
    adapter = service.adapter("https://example.com/v1", **SECRETS)
    again = service.adapter("https://example.com/v1", auth=("me", SecretStr("pl4nted-password")))

    async def main() -> None:
        for one in (adapter, again):
            client = await service.lease(one)
            parts = [repr(part) for part in vars(one).values()]
            assert "pl4nted" not in f"{one!r} {client!r} {client._transport!r} {parts}"
            await service.side.call(one, "close")

    service.side.run(main())
    assert repr(adapter) == (
        "<HTTPResourceAdapter 'api' https://example.com/v1 closed, 0 of 100 requests, breaker closed>"
    )


def test_logs_show_no_query_and_no_credentials(service: Service, server: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def work(request: Any) -> None:
        await request("GET", "/ok?key=pl4nted-query", params={"more": "pl4nted-parameter"})
        await request("GET", "/ok#key=pl4nted-fragment")
        await request("GET", f"/redirect?to={server}/ok")
        await request("GET", f"{server.replace('//', '//me:pl4nted-password@')}/flaky/secrets{service.side}/1")

    service.run(work, base_url=server, **SECRETS)
    assert "HTTP Request: GET" in caplog.text  # httpx's own line
    assert "again in" in caplog.text
    assert "pl4nted" not in caplog.text


def test_other_clients_of_httpx_log_as_before(server: str, caplog: pytest.LogCaptureFixture) -> None:
    HTTPResourceAdapter("api", base_url=server).acquire().close()
    caplog.set_level(logging.INFO, "httpx")
    httpx.get(f"{server}/ok?a=b", trust_env=False)
    assert f"HTTP Request: GET {server}/ok?a=b" in caplog.text


@pytest.mark.parametrize("end", ["?key=pl4nted-query", "#key=pl4nted-fragment", "?a=b#pl4nted-fragment"])
def test_the_error_of_a_bad_status_shows_neither_query_nor_fragment(service: Service, server: str, end: str) -> None:
    async def work(request: Any) -> None:
        answer = await request("GET", f"/status/404{end}")
        with pytest.raises(httpx.HTTPStatusError) as caught:
            answer.raise_for_status()
        assert str(caught.value) == f"Client error '404 Not Found' for url '{server}/status/404'"
        assert "pl4nted" not in chain(caught.value)
        assert caught.value.response is answer
        good = await request("GET", "/ok")
        assert good.raise_for_status() is good

    service.run(work, base_url=server)


def test_the_errors_of_a_dead_service_show_no_secret(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def work(request: Any) -> None:
        for kind in (httpx.ConnectError, CircuitOpenError):
            with pytest.raises(kind) as caught:
                await request("GET", "/ok?key=pl4nted-query", headers={"X-Once": "pl4nted-once"})
            assert "pl4nted" not in chain(caught.value)

    service.run(work, base_url=dead(), retry_count=1, breaker_failures=2, **SECRETS)
    assert "pl4nted" not in caplog.text


def test_a_header_that_http_forbids_is_not_quoted(service: Service, server: str) -> None:
    async def work(request: Any) -> None:
        with pytest.raises(httpx.LocalProtocolError, match="holds what HTTP forbids") as caught:
            await request("GET", "/ok", headers={"X-Once": "pl4nted-once\n"})
        assert "pl4nted" not in chain(caught.value)
        assert (await request("GET", "/ok")).status_code == 200

    service.run(work, base_url=server)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"token": "pl4nted-token\n"}, "token must be plain text"),
        ({"token": SecretStr("pl4nted-tökén")}, "token must be plain text"),
        ({"headers": {"X-Api-Key": SecretStr(" pl4nted")}}, "headers: 'X-Api-Key' must be plain text"),
        ({"headers": {"X-Api-Key": 7}}, "headers: 'X-Api-Key' must be plain text"),
        ({"headers": {"pl4nted key": "x"}}, "headers holds a name that is none"),
        ({"auth": "pl4nted"}, "auth must be a pair"),
        ({"auth": ("me", "pl4nted", "x")}, "auth must be a pair"),
    ],
)
def test_a_secret_that_cannot_be_sent_is_refused_at_build_and_not_quoted(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words) as caught:
        HTTPResourceAdapter("api", base_url="https://example.com", **settings)
    assert "pl4nted" not in chain(caught.value)


def test_the_trouble_of_a_probe_shows_no_secret(service: Service) -> None:
    adapter = service.adapter(dead(), **SECRETS)
    adapter.health_check()
    assert "ConnectError" in str(adapter.trouble)
    assert "pl4nted" not in str(adapter.trouble)
