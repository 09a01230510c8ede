"""Where HTTP requests go and what they take along, between two real servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from tests.http_services import Service, running, settled
from wirestate.errors import UnsafeRequestError

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture(scope="module")
def other_server() -> Iterator[str]:
    with running() as url:
        yield url


SECRETS = {"headers": {"X-Api-Key": SecretStr("open sesame")}, "token": SecretStr("open sesame")}


@pytest.fixture
def service(side: Side, invariant: Invariant) -> Service:
    return Service(side, invariant)


@pytest.mark.parametrize("url", ["../x", "/a/../../x", "a/%2e%2e/..%2fx", "..?a=b", "..\\x", "..%5cx", "..;a/x"])
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


@pytest.mark.parametrize("way", ["{other}/echo", "/redirect?to={other}/echo"], ids=["absolute URL", "redirect"])
@pytest.mark.parametrize("part", ["scheme", "host", "port"])
def test_an_origin_is_scheme_and_host_and_port(
    service: Service, server: str, other_server: str, part: str, way: str
) -> None:
    other = {
        "scheme": server.replace("http:", "https:"),  # nobody speaks TLS there: the request fails, and is looked at
        "host": server.replace("127.0.0.1", "localhost"),
        "port": other_server,
    }[part]
    assert other != server

    async def work(request: Any) -> Any:
        try:
            return (await request("GET", way.format(other=other))).json()["headers"]
        except httpx.ConnectError as error:
            return {name.lower(): value for name, value in error.request.headers.items()}

    seen = service.run(work, base_url=server, retry_count=0, **SECRETS)
    assert "user-agent" in seen
    assert not {"authorization", "x-api-key"} & set(seen)


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


@pytest.fixture(params=["redirect", "absolute URL"])
def elsewhere(request: pytest.FixtureRequest, other_server: str) -> str:
    """Return a URL that leads to another origin."""
    return f"/redirect?to={other_server}/echo" if request.param == "redirect" else f"{other_server}/echo"


class Signing(httpx.Auth):
    """Credentials in a header of their own."""

    def auth_flow(self, request: httpx.Request) -> Any:
        request.headers["X-Signed"] = "pl4nted-signature"
        yield request


def test_what_is_set_on_the_client_stays_at_the_service(service: Service, server: str, elsewhere: str) -> None:
    async def main() -> None:
        async with service.lent(server, auth=Signing()) as (_, client):
            client.headers["Authorization"] = "pl4nted-authorization"
            client.headers["X-Mine"] = "pl4nted-header"
            client.cookies.set("mine", "pl4nted-cookie")
            client.params = {"key": "pl4nted-parameter"}
            mine = (await settled(client.get("/echo"))).json()
            assert mine["query"] == "key=pl4nted-parameter"
            assert {"authorization", "x-mine", "cookie", "x-signed"} <= mine["headers"].keys()
            if elsewhere.startswith("/"):
                client.params = {}  # httpx would replace the query of the redirect by them
            assert "pl4nted" not in (await settled(client.get(elsewhere))).text

    service.side.run(main())


def test_cookies_of_the_service_go_to_no_other_origin(service: Service, server: str, elsewhere: str) -> None:
    async def work(request: Any) -> None:
        await request("GET", "/cookie")
        assert "cookie-of-the-service" in (await request("GET", "/echo")).text
        assert "cookie-of-the-service" not in (await request("GET", elsewhere)).text
        assert "cookie-of-the-service" in (await request("GET", "/echo")).text

    service.run(work, base_url=server)


def test_a_request_that_no_client_built_is_protected_as_well(service: Service, server: str, other_server: str) -> None:
    async def main() -> None:
        async with service.lent(server, token="pl4nted-token") as (_, client):

            async def seen(url: str) -> Any:
                request = httpx.Request("GET", url, headers={"X-Once": "once", "Authorization": "pl4nted-other"})
                return (await settled(client.send(request, follow_redirects=True))).json()["headers"]

            assert (await seen(f"{server}/echo"))["authorization"] == "pl4nted-other"
            there = await seen(f"{other_server}/echo")
            assert there["x-once"] == "once"
            assert "authorization" not in there
            assert "x-once" not in await seen(f"{server}/redirect?to={other_server}/echo")

    service.side.run(main())


def test_a_redirect_from_another_origin_brings_nothing_back(service: Service, server: str, other_server: str) -> None:
    async def work(request: Any) -> Any:
        return (await request("GET", f"{other_server}/redirect?to={server}/echo", headers={"X-Once": "once"})).json()

    headers = service.run(work, base_url=server, **SECRETS)["headers"]
    assert not {"x-once", "authorization", "x-api-key"} & headers.keys()


def test_parameters_of_one_request_go_where_it_goes(service: Service, server: str, other_server: str) -> None:
    async def work(request: Any) -> Any:
        return [(await request("GET", f"{url}/echo", params={"a": "b"})).json()["query"] for url in ("", other_server)]

    assert service.run(work, base_url=server) == ["a=b", "a=b"]


def test_another_base_url_of_the_client_gets_no_credentials(service: Service, server: str, other_server: str) -> None:
    async def main() -> None:
        async with service.lent(server, **SECRETS) as (_, client):
            client.base_url = other_server
            assert "open sesame" not in (await settled(client.get("/echo"))).text

    service.side.run(main())
