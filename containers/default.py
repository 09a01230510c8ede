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

    database = lifetimes.PerState(
        DatabaseResourceAdapter,
        url=settings.provided.resources["database"].url,
        backend=settings.provided.resources["database"].backend,
        host=settings.provided.resources["database"].host,
        port=settings.provided.resources["database"].port,
        database=settings.provided.resources["database"].database,
        user=settings.provided.resources["database"].user,
        password=settings.provided.resources["database"].password,
        pool=settings.provided.resources["database"].pool,
    )
    workdir = lifetimes.PerOwner(FileSystemResourceAdapter, base_path=settings.provided.resources["workdir"].base_path)
