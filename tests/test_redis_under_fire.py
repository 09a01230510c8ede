"""Redis that restarts, dies and says nothing: what our pool makes of it, with a server of the test's own."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from examples.redis_resource.wirestate_redis import RedisResource
from tests.invariant import Invariant
from tests.services.private import PrivateServer
from wirestate import PoolConfig, ResourceManager
from wirestate.errors import ResourceError, ResourceUnavailableError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.pool import ResourcePool

SHORT = 0.5  # seconds that the provider gives a silent server
SOON = 15.0  # seconds in which all of that has ended, on a machine that is busy


@pytest.fixture
def server() -> Iterator[PrivateServer]:
    with PrivateServer("redis") as server:
        yield server


def provider_for(side: Any, server: PrivateServer) -> RedisResource:
    return RedisResource("cache", url=server.url, is_async=side.is_async, timeout=2 * SHORT, ping_timeout=SHORT)


async def of(side: Any, answer: Any) -> Any:
    """Await the answer of an asynchronous client."""
    return await answer if side.is_async else answer


async def take(side: Any, pool: ResourcePool, count: int) -> list[Any]:
    return [await side.call(pool, "acquire", SOON) for _ in range(count)]


async def give_back(side: Any, leases: list[Any]) -> None:
    for lease in leases:
        await side.call(lease, "release")


def test_after_a_restart_no_dead_connection_is_lent_and_one_probe_fails(
    side: Any, server: PrivateServer, invariant: Invariant
) -> None:
    async def scenario() -> None:
        config = PoolConfig(max_size=8, validate_after=0.0)
        pool = invariant.watch(ResourcePool(provider_for(side, server), config))
        await give_back(side, await take(side, pool, 8))
        for generation in (1, 2):
            server.restart()
            leases = await take(side, pool, 8)
            for lease in leases:
                assert await of(side, lease.resource.ping())
            await give_back(side, leases)
            assert pool.snapshot().discards == {"invalid": generation, "suspect": 7 * generation}
        await side.call(pool, "close")

    side.run(scenario())


def test_a_server_that_says_nothing_is_given_up_at_each_deadline(
    side: Any, server: PrivateServer, invariant: Invariant
) -> None:
    async def scenario() -> None:
        provider = provider_for(side, server)
        pool = invariant.watch(ResourcePool(provider, PoolConfig(max_size=2, validate_after=0.0)))
        used, resting = await take(side, pool, 2)
        await side.call(resting, "release")
        with server.frozen():
            for attempt in (
                of_lease(side, used),  # a command
                side.call(pool, "acquire", SOON),  # a check, then a connection in place of what failed it
                side.call(pool, "acquire", SOON),  # a connection
            ):
                began = time.monotonic()
                with pytest.raises((redis.TimeoutError, redis.ConnectionError, ResourceUnavailableError)):
                    await attempt
                assert SHORT * 0.9 <= time.monotonic() - began < SOON
            assert pool.snapshot().discards == {"invalid": 1}
            assert pool.snapshot().size == 1  # a place that could not be filled is free again
        await side.call(used, "release", broken=True)
        (lease,) = await take(side, pool, 1)
        assert await of(side, lease.resource.ping())
        await side.call(lease, "release")
        await side.call(pool, "close")

    async def of_lease(side: Any, lease: Any) -> Any:
        return await of(side, lease.resource.get("x"))

    side.run(scenario())


def test_a_check_of_a_connection_ends_at_its_own_deadline(side: Any, server: PrivateServer) -> None:
    async def scenario() -> None:
        provider = RedisResource("cache", url=server.url, is_async=side.is_async, timeout=50.0, ping_timeout=SHORT)
        client = await side.call(provider, "acquire")
        with server.frozen():
            began = time.monotonic()
            with pytest.raises(TimeoutError if side.is_async else redis.TimeoutError):
                await side.call(provider, "validate", client)
            assert time.monotonic() - began < SOON
        await side.call(provider, "release", client)

    side.run(scenario())


def test_a_silent_server_is_unhealthy_in_bounded_time_and_then_well_again(
    side: Any, server: PrivateServer, invariant: Invariant
) -> None:
    manager = invariant.watch(ResourceManager())
    manager.register_provider("cache", provider_for(side, server), PoolConfig(max_size=1))
    assert manager.health_check("cache")["cache"] is ResourceHealth.HEALTHY
    with server.frozen():
        began = time.monotonic()
        assert manager.health_check("cache")["cache"] is ResourceHealth.UNHEALTHY
        assert time.monotonic() - began < SOON
    assert manager.health_check("cache")["cache"] is ResourceHealth.HEALTHY
    server.kill()
    assert manager.health_check("cache")["cache"] is ResourceHealth.UNHEALTHY


def test_a_creation_that_is_cancelled_leaves_no_connection(server: PrivateServer, invariant: Invariant) -> None:
    async def scenario() -> None:
        provider = RedisResource("cache", url=server.url, is_async=True, timeout=SOON)
        pool = invariant.watch(ResourcePool(provider, PoolConfig(max_size=1)))
        for pause in (0.0, 0.002, 0.05):  # it may be anywhere in connecting: every place must do
            with server.frozen():
                task = asyncio.create_task(pool.aacquire())
                while pool.snapshot().creating == 0:
                    await asyncio.sleep(0)
                await asyncio.sleep(pause)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        gc.collect()  # a client that was left open warns when it is collected, and a warning is an error
        async with await pool.aacquire() as client:
            assert len(await client.client_list()) == 1
        await pool.aclose()

    asyncio.run(scenario())


def test_a_connection_that_answers_no_ping_is_closed_and_refused(side: Any, server: PrivateServer) -> None:
    async def scenario() -> None:
        admin = redis.Redis.from_url(server.url)
        admin.acl_setuser("guest", enabled=True, nopass=True, commands=["-@all"])
        url = server.url.replace("redis://", "redis://guest:any@")
        provider = RedisResource("cache", url=url, is_async=side.is_async)
        with pytest.raises(redis.exceptions.NoPermissionError) as caught:
            await side.call(provider, "acquire")
        held = caught.value.__traceback__  # with it the client, which therefore is not closed by its collection
        assert provider.health_check() is ResourceHealth.UNHEALTHY
        end = time.monotonic() + SOON
        while any(client["user"] == "guest" for client in admin.client_list()) and time.monotonic() < end:
            time.sleep(0.01)
        assert [client for client in admin.client_list() if client["user"] == "guest"] == []
        del held
        admin.close()

    side.run(scenario())


def test_the_password_is_sent_and_never_shown(side: Any, server: PrivateServer, invariant: Invariant) -> None:
    admin = redis.Redis.from_url(server.url)
    admin.config_set("requirepass", "sesame-right")
    admin.close()

    async def scenario() -> None:
        right = RedisResource("cache", url=server.url, password="sesame-right", is_async=side.is_async)
        pool = invariant.watch(ResourcePool(right, PoolConfig(max_size=1)))
        (lease,) = await take(side, pool, 1)
        shown = [repr(lease), repr(lease.resource), repr(right), repr(vars(right)), repr(pool)]
        await side.call(lease, "release")
        await side.call(pool, "close")
        for password in (None, "sesame-wrong"):
            wrong = RedisResource("cache", url=server.url, password=password, is_async=side.is_async)
            pool = invariant.watch(ResourcePool(wrong, PoolConfig(max_size=1)))
            with pytest.raises(ResourceError) as caught:
                await side.call(pool, "acquire")
            assert wrong.health_check() is ResourceHealth.UNHEALTHY
            shown += [str(caught.value), str(caught.value.__cause__), str(wrong.trouble)]
        assert [text for text in shown if "sesame" in text] == []
        assert "AuthenticationError" in shown[-1]

    side.run(scenario())
