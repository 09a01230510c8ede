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
    resources = settings.provided.resources

    database = lifetimes.PerState(
        DatabaseResourceAdapter,
        url=resources["database"].url,
        backend=resources["database"].backend,
        pool=resources["database"].pool,
    )
    workdir = lifetimes.PerOwner(FileSystemResourceAdapter, base_path=resources["workdir"].base_path)
