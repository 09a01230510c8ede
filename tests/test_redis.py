"""Redis as the example of a custom provider: by class, by settings, by entry point, in a machine."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from dependency_injector.wiring import Provide, inject

from examples.redis_resource.wirestate_redis import RedisResource
from tests.invariant import Invariant
from tests.services import url_of
from tests.stores import work_machine
from wirestate import PoolConfig, ResourceContainer, ResourceManager, SimpleFSM, container_from_settings, lifetimes
from wirestate.errors import InvalidSettingError, ResourceUnavailableError, SettingsError, WirestateError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.pool import ResourcePool
from wirestate.settings import WirestateSettings

ROOT = Path(__file__).parents[1]
CLASS = "examples.redis_resource.wirestate_redis:RedisResource"


class Server:
    """The shared Redis; everything that a test does there has a name of its own."""

    def __init__(self) -> None:
        self.mark = f"wirestate-test-{secrets.token_hex(6)}"
        base = url_of("redis")
        self.url = f"{base}?client_name={self.mark}"
        self.admin = redis.Redis.from_url(base)

    def key(self, name: str) -> str:
        return f"{self.mark}:{name}"

    def connections(self) -> set[int]:
        """The ids of the connections that were made by :attr:`url`."""
        return {int(client["id"]) for client in self.admin.client_list() if client["name"] == self.mark}

    def close(self) -> None:
        left = list(self.admin.scan_iter(f"{self.mark}*"))
        if left:
            self.admin.delete(*left)
        self.admin.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


async def of(side: Any, answer: Any) -> Any:
    """Await the answer of an asynchronous client."""
    return await answer if side.is_async else answer


def test_two_owners_have_two_connections_that_are_used_again(side: Any, server: Server, invariant: Invariant) -> None:
    async def scenario() -> None:
        manager = invariant.watch(ResourceManager())
        provider = RedisResource("cache", url=server.url, is_async=side.is_async)
        manager.register_provider("cache", provider, PoolConfig(max_size=4))
        ids = []
        for _ in range(2):
            one, two = [await side.call(manager, "acquire", "cache", owner) for owner in ("one", "two")]
            assert one is not two
            await of(side, one.set(server.key("x"), "y"))
            assert await of(side, two.get(server.key("x"))) == b"y"
            ids.append({await of(side, client.client_id()) for client in (one, two)})
            now = manager.get_metrics("cache")["cache_pool"]
            assert (now.idle, now.used, now.size, now.max_size) == (0, 2, 2, 4)
            for owner in ("one", "two"):
                await side.call(manager, "release", "cache", owner)
        assert ids[0] == ids[1] == server.connections()
        assert manager.get_metrics("cache")["cache"].total_acquisitions == 4
        await side.call(manager, "close")
        assert server.connections() == set()

    side.run(scenario())


def test_a_connection_that_was_killed_at_rest_is_replaced(side: Any, server: Server, invariant: Invariant) -> None:
    async def scenario() -> None:
        provider = RedisResource("cache", url=server.url, is_async=side.is_async)
        pool = invariant.watch(ResourcePool(provider, PoolConfig(max_size=1, validate_after=0.0)))
        lease = await side.call(pool, "acquire")
        killed = await of(side, lease.resource.client_id())
        await side.call(lease, "release")
        server.admin.client_kill_filter(_id=killed)
        lease = await side.call(pool, "acquire", 20.0)
        assert await of(side, lease.resource.client_id()) != killed
        assert len(server.connections()) == 1
        await side.call(lease, "release")
        now = pool.snapshot()
        assert (now.created, dict(now.discards)) == (2, {"invalid": 1})
        await side.call(pool, "close")

    side.run(scenario())


def test_a_connection_that_was_killed_in_use_is_not_lent_again(side: Any, server: Server, invariant: Invariant) -> None:
    async def scenario() -> None:
        provider = RedisResource("cache", url=server.url, is_async=side.is_async)
        pool = invariant.watch(ResourcePool(provider, PoolConfig(max_size=2, validate_after=60.0)))
        one, two = [await side.call(pool, "acquire") for _ in range(2)]
        dead = [await of(side, lease.resource.client_id()) for lease in (one, two)]
        for id_ in dead:
            server.admin.client_kill_filter(_id=id_)
        with pytest.raises(redis.ConnectionError) as caught:
            await of(side, one.resource.get(server.key("x")))
        await side.call(one, "release", caught.value)
        await side.call(two, "release", broken=True)
        lease = await side.call(pool, "acquire", 20.0)
        assert await of(side, lease.resource.client_id()) not in dead
        await side.call(lease, "release")
        assert sum(pool.snapshot().discards.values()) == 2
        await side.call(pool, "close")

    side.run(scenario())


@pytest.mark.parametrize(
    "commands",
    [
        [["SELECT", "5"]],
        [["CLIENT", "SETNAME", "another"]],
        [["MULTI"], ["SET", "x", "y"]],
        [["WATCH", "x"]],
        [["CLIENT", "TRACKING", "ON", "BCAST"]],
    ],
    ids=lambda commands: " ".join(commands[0]),
)
def test_what_one_lease_did_to_its_connection_the_next_does_not_have(
    side: Any, server: Server, invariant: Invariant, commands: list[list[str]]
) -> None:
    async def scenario() -> None:
        provider = RedisResource("cache", url=server.url, is_async=side.is_async)
        pool = invariant.watch(ResourcePool(provider, PoolConfig(max_size=1)))
        found: list[dict[str, Any]] = []
        for turn in range(2):
            lease = await side.call(pool, "acquire")
            state = await of(side, lease.resource.client_info())
            found.append({key: state[key] for key in ("id", "db", "name", "multi", "flags", "sub", "user", "resp")})
            for command in commands if turn == 0 else ():
                await of(side, lease.resource.execute_command(*command))
            await side.call(lease, "release")
        assert found[0] == found[1]  # and it is the same connection
        await side.call(pool, "close")

    side.run(scenario())


def test_a_machine_gets_a_client_for_each_visit(side: Any, server: Server, invariant: Invariant) -> None:
    class Shop(ResourceContainer):
        cache = lifetimes.PerState(
            RedisResource, url=server.url, is_async=side.is_async, pool=PoolConfig(max_size=2, min_size=0)
        )

    @inject
    def counts(record: dict[str, Any], cache: Any = Provide[Shop.cache]) -> dict[str, Any]:
        return {"visits": cache.incr(server.key("visits"))}

    @inject
    async def acounts(record: dict[str, Any], cache: Any = Provide[Shop.cache]) -> dict[str, Any]:
        return {"visits": await cache.incr(server.key("visits"))}

    async def scenario() -> list[Any]:
        container = Shop()
        invariant.watch(container.manager)
        fsm = SimpleFSM(
            work_machine({"transform": "counts"}),
            container=container,
            functions={"counts": acounts if side.is_async else counts},
        )
        results = [await side.call(fsm, "process", {}) for _ in range(3)]
        await side.call(fsm, "close")
        await side.call(container.manager, "close")
        return results

    results = side.run(scenario())
    assert [result.data["visits"] for result in results] == [1, 2, 3]
    assert server.connections() == set()


# --- settings and the entry point ------------------------------------------------------------------


def test_the_class_is_named_in_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLASS": CLASS, "URL": server.url, "TIMEOUT": "3", "POOL__MAX_SIZE": "3"}.items():
        monkeypatch.setenv(f"WIRESTATE_RESOURCES__CACHE__{name}", value)
    container = container_from_settings(WirestateSettings())
    manager = container.manager  # type: ignore[attr-defined]
    with manager.resource_context("cache", "me") as cache:
        cache.set(server.key("x"), "y")
        assert server.admin.get(server.key("x")) == b"y"
        assert manager.get_metrics("cache")["cache_pool"].max_size == 3
    container.shutdown_resources()
    assert server.connections() == set()


def test_a_setting_that_it_does_not_take_is_told_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIRESTATE_RESOURCES__CACHE__CLASS", CLASS)
    monkeypatch.setenv("WIRESTATE_RESOURCES__CACHE__TIMOUT", "3")
    with pytest.raises(SettingsError, match="WIRESTATE_RESOURCES__CACHE__TIMOUT") as caught:
        WirestateSettings()
    assert "Did you mean 'timeout'?" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"url": "http://me:sesame@127.0.0.1"}, "its url must look like"), ({"ping_timeout": 0}, "ping_timeout is 0.0")],
)
def test_a_wrong_setting_is_told_when_the_machine_is_built(wrong: dict[str, Any], told: str) -> None:
    container = container_from_settings(WirestateSettings(resources={"cache": {"class": CLASS, **wrong}}))
    with pytest.raises(WirestateError) as caught:
        SimpleFSM(work_machine({"resources": ["cache"]}), container=container)
    assert told in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a person installs it, in a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    where = tmp_path_factory.mktemp("source") / "redis_resource"
    where.mkdir()
    for file in ("pyproject.toml", "README.md", "wirestate_redis.py"):
        (where / file).write_bytes((ROOT / "examples" / "redis_resource" / file).read_bytes())
    output_of("-m", "pip", "install", *options, "--target", str(target), str(where))
    return target


def output_of(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_package_offers_its_kind_by_an_entry_point(installed: Path, server: Server) -> None:
    program = f"""
import json
from wirestate import container_from_settings
from wirestate.settings import WirestateSettings
container = container_from_settings(WirestateSettings())
with container.manager.resource_context("cache", "me") as cache:
    cache.set("{server.key("x")}", "y")
    print(json.dumps([cache.get("{server.key("x")}").decode(), type(cache).__name__]))
container.shutdown_resources()
"""
    said = output_of(
        "-W",
        "error",
        "-c",
        program,
        PYTHONPATH=os.pathsep.join((str(installed), str(ROOT / "src"))),
        WIRESTATE_RESOURCES__CACHE__KIND="redis",
        WIRESTATE_RESOURCES__CACHE__URL=server.url,
        WIRESTATE_RESOURCES__CACHE__POOL__MAX_SIZE="2",
    )
    assert json.loads(said) == ["y", "Redis"]


@pytest.mark.slow
def test_an_unknown_kind_lists_those_of_packages(installed: Path) -> None:
    program = """
from wirestate.errors import SettingsError
from wirestate.settings import WirestateSettings
try:
    WirestateSettings(resources={"cache": {"kind": "rediss"}})
except SettingsError as error:
    print(error)
"""
    said = output_of("-c", program, PYTHONPATH=os.pathsep.join((str(installed), str(ROOT / "src"))))
    assert "Did you mean 'redis'?" in said
    assert "'custom', 'redis'" in said


# --- what is refused, and what is not shown --------------------------------------------------------


WRONG_URLS = [
    None,
    5,
    "",
    "127.0.0.1:6379",
    "http://me:sesame@127.0.0.1",
    "redis://me:sesame@host:port",
    "redis://me:sesame@host/orders",
    "redis://me:sesame@host/1/2",
    "redis://me:sesame@host/-1",
    "redis://me:sesame@host?db=-1",
    "redis://me:sesame@host?db=orders",
    "unix://",
]


@pytest.mark.parametrize("url", WRONG_URLS)
def test_a_wrong_url_is_refused_when_the_provider_is_made_and_not_shown(url: Any) -> None:
    with pytest.raises(
        InvalidSettingError, match="redis 'cache': its url must look like redis://host:6379/0"
    ) as caught:
        RedisResource("cache", url=url)
    assert caught.value.setting == ("url",)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["redis://host", "redis://host/", "rediss://host:6380/12", "redis://host?db=3", "unix:///run/redis.sock?db=2"],
)
def test_a_right_url_is_taken(url: str) -> None:
    RedisResource("cache", url=url)


def test_a_server_that_is_not_there_is_unhealthy_and_named(invariant: Invariant, side: Any) -> None:
    async def scenario() -> None:
        provider = RedisResource("cache", url="redis://me:sesame@127.0.0.1:9/0", is_async=side.is_async)
        pool = invariant.watch(ResourcePool(provider, PoolConfig(max_size=1)))
        with pytest.raises(ResourceUnavailableError) as caught:
            await side.call(pool, "acquire")
        assert isinstance(caught.value.__cause__, redis.ConnectionError)
        assert provider.health_check() is ResourceHealth.UNHEALTHY
        assert provider.trouble is not None
        shown = f"{caught.value} {caught.value.__cause__} {provider.trouble} {provider!r} {pool!r} {vars(provider)}"
        assert "sesame" not in shown

    side.run(scenario())
