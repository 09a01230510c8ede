"""What users write, as type checkers see it; read by mypy and pyright, never run."""

from __future__ import annotations

from typing import Any, assert_type

from dependency_injector import providers

import wirestate
from wirestate import (
    DatabaseResourceAdapter,
    PoolConfig,
    ResourceConfig,
    ResourceContainer,
    ResourceHealth,
    ResourceManager,
    ResourcePool,
    RunResult,
    SimpleFSM,
    WirestateSettings,
    container_from_settings,
    lifetimes,
    manager_of,
)
from wirestate.settings import ResourceSettings


class Shop(ResourceContainer):
    settings = providers.Singleton(WirestateSettings)
    database = lifetimes.PerState(DatabaseResourceAdapter, backend="memory", pool=PoolConfig(max_size=4))


def index() -> None:
    assert_type(wirestate.SimpleFSM({}), SimpleFSM)
    assert_type(wirestate.__all__, list[str])
    wirestate.Nothing  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def machines(record: dict[str, Any]) -> None:
    with SimpleFSM({"states": ["only"]}, container=Shop()) as machine:
        assert_type(machine.process(record), RunResult)
        assert_type(machine.process_batch([record]), list[RunResult])
        assert_type(machine.manager, ResourceManager)
        result = machine.process(record, timeout=1.0)
    assert_type(result.success, bool)
    assert_type(result.path, list[str])
    assert_type(result.error, BaseException | None)


async def asynchronous_machines(record: dict[str, Any]) -> None:
    async with SimpleFSM("flights.yaml") as machine:
        assert_type(await machine.aprocess(record), RunResult)
        assert_type(await machine.aprocess_batch([record]), list[RunResult])


def managers() -> None:
    manager = manager_of(container_from_settings(WirestateSettings(_profile="settings/test.toml")))
    assert_type(manager, ResourceManager)
    assert_type(manager.health_check(), dict[str, ResourceHealth])
    assert_type(manager.get_resource_owners("database"), list[str])
    manager.configure_from_requirements([ResourceConfig("cache", required=False)], "job-1")
    with manager.scope("job-1") as scope, scope.state("load"):
        assert_type(manager.has_resource("database", "job-1"), bool)


def pools() -> None:
    pool = ResourcePool(DatabaseResourceAdapter(backend="memory"), PoolConfig(max_size=2))
    assert_type(pool.size, int)
    with pool.acquire(timeout=0):
        pass


def settings() -> None:
    assert_type(WirestateSettings().resources, dict[str, ResourceSettings])
    assert_type(WirestateSettings().resources["database"].pool, PoolConfig | None)
