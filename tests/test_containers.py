"""Every container of containers/ can be built with every profile of settings/."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from containers.default import DefaultContainer
from wirestate import BuildError, ResourceContainer, SimpleFSM, WirestateSettings, manager_of
from wirestate.errors import SettingsError

ROOT = Path(__file__).parents[1]
# What a profile leaves to the environment: secrets, and what differs from machine to machine.
FROM_OUTSIDE = {"production": {"RESOURCES__DATABASE__URL": "postgresql://app@db.example/app"}}
PROFILES = sorted(file for file in (ROOT / "settings").glob("*.toml") if file.stem != "base")  # the layer below them


def containers() -> list[type[ResourceContainer]]:
    modules = [
        importlib.import_module(f"containers.{file.stem}")
        for file in sorted((ROOT / "containers").glob("*.py"))
        if file.stem != "__init__"
    ]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ResourceContainer) and value.__module__ == module.__name__
    ]


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # away from a .env
    for name in list(os.environ):
        if name.startswith("FLIGHTS_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.stem)
@pytest.mark.parametrize("kind", containers(), ids=lambda kind: kind.__name__)
def test_every_container_builds_with_every_profile(
    kind: type[ResourceContainer], profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIRESTATE_PROFILE", str(profile))
    for name, value in FROM_OUTSIDE.get(profile.stem, {}).items():
        for prefix in ("WIRESTATE_", "FLIGHTS_"):
            monkeypatch.setenv(prefix + name, value)
    container = kind()
    names = list(manager_of(container).get_all_resources())
    assert names
    machine = {"states": [{"name": "all", "resources": names}]}
    with SimpleFSM(machine, container=container):  # makes every provider, and opens none
        pass
    asyncio.run(opened_and_closed(container))


async def opened_and_closed(container: Any) -> None:
    """Open what lives as long as the container, and close it."""
    for act in (container.init_resources, container.shutdown_resources):
        pending = act()
        if inspect.isawaitable(pending):
            await pending


def test_each_module_declares_one_container() -> None:
    found = containers()
    assert len({kind.__module__ for kind in found}) == len(found) == len(list((ROOT / "containers").glob("*.py"))) - 1


def test_production_names_the_variable_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIRESTATE_PROFILE", str(ROOT / "settings" / "production.toml"))
    with pytest.raises(SettingsError, match="WIRESTATE_RESOURCES__DATABASE__URL"):
        WirestateSettings()
    from containers.flights import FlightsSettings

    with pytest.raises(SettingsError, match="FLIGHTS_RESOURCES__DATABASE__URL"):
        FlightsSettings()


def test_the_default_container_names_what_is_missing_and_only_to_who_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIRESTATE_RESOURCES__WORKDIR__BASE_PATH", "memory://here")

    @inject
    def store(record: Any, db: Any = Provide["database"]) -> Any:
        return record

    with (
        DefaultContainer() as container,
        SimpleFSM({"states": {"all": {"resources": ["workdir"]}}}, container=container),
    ):
        for needy in ({"transform": "store"}, {"resources": ["database"]}):
            with pytest.raises(BuildError) as told:
                SimpleFSM({"states": {"all": needy}}, container=container, functions={"store": store})
            (fault,) = told.value.faults
            assert fault.code == "S001"
            assert "declare no resource 'database'" in fault.message
            assert "WIRESTATE_RESOURCES__DATABASE__" in fault.help[0]
