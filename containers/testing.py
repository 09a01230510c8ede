"""The container for tests: the names of the default one, with nothing behind them that outlives the test."""

from __future__ import annotations

from wirestate import DatabaseResourceAdapter, FileSystemResourceAdapter, ResourceContainer, lifetimes


class InMemoryContainer(ResourceContainer):
    """Each instance has a private database; the folder is the process's memory."""

    database = lifetimes.PerState(DatabaseResourceAdapter, url="memory")
    workdir = lifetimes.PerOwner(FileSystemResourceAdapter, base_path="memory://wirestate")
