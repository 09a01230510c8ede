"""The container to begin with: a database and a folder, both where the settings say."""

from __future__ import annotations

from dependency_injector import providers

from wirestate import (
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    ResourceContainer,
    WirestateSettings,
    lifetimes,
)


class DefaultContainer(ResourceContainer):
    """What ``container_from_settings()`` makes of the profiles in settings/, written out so that it can be changed."""

    settings = providers.Singleton(WirestateSettings)

    _database = settings.provided.resources["database"]
    database = lifetimes.PerState(
        DatabaseResourceAdapter,
        url=_database.url,
        backend=_database.backend,
        host=_database.host,
        port=_database.port,
        database=_database.database,
        user=_database.user,
        password=_database.password,
        pool=_database.pool,
    )
    workdir = lifetimes.PerOwner(FileSystemResourceAdapter, base_path=settings.provided.resources["workdir"].base_path)
