"""Redis as a resource: one connection for each lease, kept by the pool of Wirestate."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from pydantic import SecretStr
from redis.connection import parse_url
from redis.exceptions import BusyLoadingError, RedisError, ResponseError

from wirestate import BaseResourceProvider, ResourceHealth
from wirestate.errors import InvalidSettingError
from wirestate.redaction import quoted

log = logging.getLogger("wirestate_redis")


SHAPE = "its url must look like redis://host:6379/0, rediss://… or unix:///path?db=0"


def _fault_of(url: str) -> str | None:
    """Return what is wrong with *url*, without quoting it: it may hold a password."""
    try:
        options, where = parse_url(url), urlsplit(url)
    except ValueError:  # its text quotes the URL
        return SHAPE
    # Of anything else, redis would take database 0, or join 1/2 to 12.
    path = r".+" if where.scheme == "unix" else r"/?|/\d+/?"
    if not re.fullmatch(path, where.path) or options.get("db", 0) < 0:
        return f"{SHAPE}; the database is a number"
    return None


class RedisResource(BaseResourceProvider):
    """Lend ``redis.Redis`` clients that have one connection each; with *is_async*, ``redis.asyncio.Redis``.

    Give it a ``PoolConfig``: without one, each lease connects anew. Commands go over the client's one
    connection; ``pipeline()`` and ``pubsub()`` open a second one, which is closed with the first.

    Args:
        name: the name of the resource.
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``.
        password: where the URL has none.
        is_async: lend asynchronous clients, only to coroutines.
        timeout: seconds to connect, and for the answer to a command.
        ping_timeout: seconds for the answer to a ping: of a connection that is to be lent again, of a health probe.

    Raises:
        InvalidSettingError: the URL is no URL of Redis, or a time is not more than 0.
    """

    def __init__(
        self,
        name: str = "redis",
        *,
        url: str | SecretStr = "redis://127.0.0.1:6379/0",
        password: str | SecretStr | None = None,
        is_async: bool = False,
        timeout: float = 5.0,
        ping_timeout: float = 1.0,
    ) -> None:
        super().__init__(name)
        self.is_async = is_async
        self.blocking = not is_async
        self._url = url if isinstance(url, SecretStr) else SecretStr(url if isinstance(url, str) else "")
        self._password = SecretStr(password) if isinstance(password, str) else password
        self._timeout = timeout
        self._ping_timeout = ping_timeout
        for setting, seconds in (("timeout", timeout), ("ping_timeout", ping_timeout)):
            if not seconds > 0:
                raise InvalidSettingError(
                    f"redis {name!r}: {setting} is {seconds!r}; it must be more than 0", name, setting=(setting,)
                )
        if fault := _fault_of(self._url.get_secret_value()):
            raise InvalidSettingError(f"redis {name!r}: {fault}", name, setting=("url",))

    def _options(self, timeout: float) -> dict[str, Any]:  # Any: of redis
        return {
            "url": self._url.get_secret_value(),
            "password": self._password and self._password.get_secret_value(),
            "single_connection_client": True,
            "socket_connect_timeout": timeout,
            "socket_timeout": timeout,
        }

    def _connected(self, timeout: float) -> redis.Redis:
        client = redis.Redis.from_url(**self._options(timeout))
        try:
            client.ping()
        except BaseException:
            client.close()
            raise
        return client

    # --- blocking --------------------------------------------------------------------------

    def acquire(self, **_: Any) -> redis.Redis:  # Any: there are no options
        """Connect, and ask whether commands are answered."""
        return self._connected(self._timeout)

    def validate(self, resource: redis.Redis) -> bool:
        """Tell whether a connection still answers; one that died raises why."""
        connection = resource.connection
        if connection is None or not connection.is_connected:
            return False
        connection.send_command("PING")
        return connection.read_response(timeout=self._ping_timeout) in (b"PONG", "PONG")

    def reset(self, resource: redis.Redis) -> None:
        """Take back what a lease did to its connection: database, name, user, transaction, watches, subscriptions."""
        connection = resource.connection
        if connection is None or not connection.is_connected:
            return  # it is not lent again
        try:
            connection.send_command("RESET")
            while connection.read_response(timeout=self._ping_timeout) not in (b"RESET", "RESET"):
                pass  # messages of a subscription, on their way
            connection.on_connect()
        except ResponseError:  # before Redis 6.2: the next command connects anew
            connection.disconnect()

    def release(self, resource: redis.Redis) -> None:
        """Close the connection."""
        resource.close()

    def health_check(self) -> ResourceHealth:
        """Connect anew and ping: healthy, degraded while the server loads its data, or unhealthy."""
        try:
            self._connected(self._ping_timeout).close()
        except (RedisError, OSError) as error:
            log.debug("probe of %r: %s", self.name, type(error).__name__)
            self.trouble = quoted(error)
            return ResourceHealth.DEGRADED if isinstance(error, BusyLoadingError) else ResourceHealth.UNHEALTHY
        self.trouble = None
        return ResourceHealth.HEALTHY

    # --- asynchronous ----------------------------------------------------------------------

    async def aacquire(self, **_: Any) -> redis.asyncio.Redis:  # Any: there are no options
        """Connect, and ask whether commands are answered."""
        client = redis.asyncio.Redis.from_url(**self._options(self._timeout))
        try:
            async with asyncio.timeout(self._timeout):
                await client.initialize()
                await client.ping()
        except BaseException:  # cancelled, too: what is half made is closed
            await client.aclose()
            raise
        return client

    async def avalidate(self, resource: redis.asyncio.Redis) -> bool:
        """Tell whether a connection still answers; one that died raises why."""
        if resource.connection is None or not resource.connection.is_connected:
            return False
        async with asyncio.timeout(self._ping_timeout):
            return bool(await resource.ping())

    async def areset(self, resource: redis.asyncio.Redis) -> None:
        """Do the same without stopping the event loop."""
        connection = resource.connection
        if connection is None or not connection.is_connected:
            return
        try:
            async with asyncio.timeout(self._ping_timeout):
                await connection.send_command("RESET")
                while await connection.read_response() not in (b"RESET", "RESET"):
                    pass
                await connection.on_connect()
        except ResponseError:
            await connection.disconnect()

    async def arelease(self, resource: redis.asyncio.Redis) -> None:
        """Close the connection."""
        await resource.aclose()
