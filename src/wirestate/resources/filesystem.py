"""File systems as a resource: any place that fsspec knows, seen through one base folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wirestate.errors import InvalidSettingError, MissingDriverError
from wirestate.resources.base import BaseResourceProvider, ResourceHealth
from wirestate.resources.files import Files, Root
from wirestate.resources.native_pools import refuse_options
from wirestate.resources.secrets import revealed_all

log = logging.getLogger("wirestate.filesystem")


class FileSystemResourceAdapter(BaseResourceProvider):
    """Lease a view of one folder, on a disk or in a store; see :class:`~wirestate.resources.files.Files`.

    Args:
        name: the name of the resource.
        base_path: a folder, or a URL such as ``s3://bucket/folder`` or ``memory://folder``.
        temp_dir: where temporary files are made.
        auto_cleanup: whether temporary files vanish when their lease ends.
        storage_options: what fsspec needs besides the URL, for example credentials.

    Raises:
        InvalidSettingError: fsspec knows no such place.
        MissingDriverError: what fsspec needs for it is not installed.

    Example:
        >>> adapter = FileSystemResourceAdapter("files", base_path="memory://readme")
        >>> fs = adapter.acquire()
        >>> fs.write("notes/today.txt", "hello")
        >>> fs.read("notes/today.txt")
        'hello'
        >>> fs.list("notes")
        ['notes/today.txt']
        >>> adapter.release(fs)
    """

    def __init__(
        self,
        name: str = "filesystem",
        *,
        base_path: str | Path,
        temp_dir: str | Path | None = None,
        auto_cleanup: bool = True,
        storage_options: Mapping[str, Any] | None = None,  # Any: the store's own
    ) -> None:
        super().__init__(name)
        url = os.fspath(base_path)
        self._shown = re.sub(r"//[^/@]*@", "//", url)  # no credentials
        system, base = self._opened(url, revealed_all(storage_options or {}))
        is_local = type(system) is type(self._disk)
        self._root = Root(
            name,
            system,
            os.path.realpath(base) if is_local else base,
            is_local,
            None if temp_dir is None else Path(temp_dir).absolute(),
            auto_cleanup,
        )

    def _opened(self, url: str, options: Mapping[str, Any]) -> tuple[Any, str]:  # Any: the store's own; untyped fsspec
        import fsspec  # type: ignore[import-untyped]  # it has no types
        from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

        # fsspec keeps file systems, and what they have listed, for the whole process: neither suits a resource.
        self._disk = LocalFileSystem(skip_instance_cache=True)
        protocol = fsspec.core.split_protocol(url)[0] or "file"
        options = {"use_listings_cache": False, "skip_instance_cache": True, **options}
        try:
            system, base = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            if protocol in ("s3", "s3a"):
                raise MissingDriverError(f"'{protocol}://'", "s3fs", "s3", self.name) from error
            raise self._wrong(f"'{protocol}://' needs a package that is not installed: {error}") from error
        except ValueError:
            raise self._wrong(f"fsspec knows no '{protocol}://'; see fsspec.available_protocols()") from None
        return system, base

    def _wrong(self, what: str) -> InvalidSettingError:
        return InvalidSettingError(f"file system {self.name!r}: {what}", self.name, "build")

    def acquire(self, **options: Any) -> Files:  # Any: refused
        """Return the view of one lease.

        Raises:
            InvalidSettingError: the base folder does not exist on this disk.
        """
        refuse_options(self.name, options)
        if self._root.is_local and not os.path.isdir(self._root.base):
            raise self._wrong(f"its base folder {self._root.base!r} does not exist; create it first")
        return Files(self._root, self._disk)

    def release(self, resource: Files) -> None:
        """End a lease and remove its temporary files."""
        resource.close()

    def validate(self, resource: Files) -> bool:
        """Tell whether the lease of a view is still open."""
        return resource.is_open

    def health_check(self) -> ResourceHealth:
        """Look at the base folder; a store that answers is healthy, with or without that folder."""
        root = self._root
        if root.is_local:
            usable = os.path.isdir(root.base) and os.access(root.base, os.R_OK | os.X_OK)
            return ResourceHealth.HEALTHY if usable else ResourceHealth.UNHEALTHY
        try:
            root.system.ls(root.base, detail=False)
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever a store raises is an answer
            log.debug("probe of %r: %s", self.name, type(error).__name__)
            return ResourceHealth.UNHEALTHY
        return ResourceHealth.HEALTHY

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._shown} {self.status.value}>"
