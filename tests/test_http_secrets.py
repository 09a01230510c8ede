"""Nothing that is secret about an HTTP service is shown: in reprs, logs, errors and their chains."""

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


def test_no_secret_is_shown() -> None:
    adapter = HTTPResourceAdapter("api", base_url="https://example.com/v1", **SECRETS)
    client = adapter.acquire()
    assert repr(adapter) == "<HTTPResourceAdapter 'api' https://example.com/v1 idle, 0 of 100 requests, breaker closed>"
    shown = [repr(part) for name, part in vars(adapter).items() if name != "_headers"]
    assert "sesame" not in f"{client!r} {client._transport!r} {shown}"
    adapter.close()
