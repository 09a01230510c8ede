"""The servers that tests talk to: where they are, and what happens where one is absent.

An address comes from the environment (``WIRESTATE_TEST_POSTGRESQL``, ``…_MARIADB``, ``…_REDIS``); the default is what
``compose.yaml`` starts. A test that needs an absent server is skipped with the reason, or fails where
``WIRESTATE_TEST_SERVICES=required`` is set.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from typing import NoReturn
from urllib.parse import urlsplit

import pytest

DEFAULTS = {
    "postgresql": "postgresql://postgres@127.0.0.1:5432/test",
    "mariadb": "mariadb://root@127.0.0.1:3306/test",
    "redis": "redis://127.0.0.1:6379/0",
}
# Read once, before a fixture takes all WIRESTATE_ variables out of the environment.
URLS = {name: os.environ.get(f"WIRESTATE_TEST_{name.upper()}", default) for name, default in DEFAULTS.items()}
REQUIRED = os.environ.get("WIRESTATE_TEST_SERVICES") == "required"


def url_of(name: str) -> str:
    """Return the URL of a running server; skip the test, or fail it where servers are required, without one."""
    trouble = _trouble(name)
    if trouble is not None:
        absent(f"no {name} server: {trouble}; start one (docker compose up) or set WIRESTATE_TEST_{name.upper()}")
    return URLS[name]


def absent(reason: str) -> NoReturn:
    """End a test that cannot run here: skip it, or fail it where servers are required."""
    if REQUIRED:
        pytest.fail(f"{reason} (WIRESTATE_TEST_SERVICES=required)")
    pytest.skip(reason)


@cache
def _trouble(name: str) -> str | None:
    where = urlsplit(URLS[name])
    try:
        socket.create_connection((where.hostname or "127.0.0.1", where.port or 0), timeout=3).close()
    except OSError as error:
        return f"{where.hostname}:{where.port}: {error}"
    return None
