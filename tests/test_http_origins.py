"""Where HTTP requests go and what they take along, between two real servers."""

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
