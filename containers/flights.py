"""What stands behind the names that the flights example asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any  # Any: settings by name, validated by their model

from dependency_injector import providers
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from examples.flights.audit import follow
from wirestate import (
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    HTTPResourceAdapter,
    PoolConfig,
    ResourceContainer,
    WirestateSettings,
    lifetimes,
)

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "flights"


class FlightsSettings(WirestateSettings):
    """Values of the flights example: variables that begin with ``FLIGHTS_``, then the profile, then these defaults.

    ``FLIGHTS_RESOURCES__DATABASE__URL`` says where the flights go.
    """

    model_config = SettingsConfigDict(env_prefix="FLIGHTS_")

    data_dir: Path = EXAMPLE / "data"
    output_dir: Path = EXAMPLE / "output"
    weather_url: str = "http://127.0.0.1:8571"

    def __init__(self, **values: Any) -> None:
        # The profile belongs to the deployment, not to this example: its variable has the usual name.
        super().__init__(_profile=os.environ.get("WIRESTATE_PROFILE"), **values)

    @property
    def database_url(self) -> SecretStr | str:
        """Where the flights go: what the settings say by a URL (or "memory"), else a file in the output folder."""
        database = self.resources.get("database")
        if database is None:
            return f"sqlite:///{self.output_dir / 'flights.db'}"
        return database.url or database.connection_string or database.backend or ""

    @property
    def database_pool(self) -> PoolConfig | None:
        """Size and timing of the pools of connections."""
        database = self.resources.get("database")
        return database.pool if database else None


class FlightsContainer(ResourceContainer):
    """The database in one transaction per visit, the audit trail in one per flight."""

    settings = providers.Singleton(FlightsSettings)

    database = lifetimes.PerState(
        DatabaseResourceAdapter, url=settings.provided.database_url, pool=settings.provided.database_pool
    )
    # The same file: its transaction begins late (DEFERRED), so it locks nothing before the trail writes its row.
    audit_database = lifetimes.PerOwner(
        DatabaseResourceAdapter,
        url=settings.provided.database_url,
        pool=settings.provided.database_pool,
        begin="DEFERRED",
        keep_on_failure=True,
    )
    audit = lifetimes.PerOwner(follow, audit_database)
    weather = lifetimes.Singleton(HTTPResourceAdapter, base_url=settings.provided.weather_url)
    data = lifetimes.PerOwner(FileSystemResourceAdapter, base_path=settings.provided.data_dir)
    output = lifetimes.PerOwner(FileSystemResourceAdapter, base_path=settings.provided.output_dir)
