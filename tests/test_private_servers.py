"""Private servers: that tests may do with them what they do, and that nothing of them stays."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.services.private import KINDS, PrivateServer


@pytest.fixture(params=list(KINDS))
def server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    with PrivateServer(request.param) as server:
        yield server


def says(server: PrivateServer, seconds: float = 5.0) -> bool:
    """Tell whether a new connection is greeted in time."""
    where = urlsplit(server.url)
    try:
        with socket.create_connection((where.hostname, where.port), timeout=seconds) as connection:
            connection.sendall(server.kind.greeting)
            return server.kind.answer(connection.recv(64))
    except OSError:
        return False


def test_it_lives_through_everything_on_one_port(server: PrivateServer) -> None:
    url = server.url
    assert says(server)
    server.restart()
    assert says(server)
    server.kill()
    assert not says(server)
    server.start()
    assert says(server)
    with server.frozen():
        assert not says(server, 0.2)
    assert says(server)
    server.stop()
    assert not says(server)
    assert server.url == url


def test_nothing_stays_of_a_frozen_one(server: PrivateServer) -> None:
    assert server._process is not None
    pid, folder = server._process.pid, Path(server._words["folder"])
    assert folder.stat().st_uid != 0
    assert Path(f"/proc/{pid}").stat().st_uid != 0
    server.freeze()
    server.__exit__(None, None, None)
    assert not os.path.exists(f"/proc/{pid}")
    assert not folder.exists()
