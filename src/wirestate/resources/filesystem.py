"""File systems as a resource: any place that fsspec knows, seen through one base folder."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from wirestate.errors import InvalidSettingError, MissingDriverError, ResourceUnavailableError
from wirestate.resources.base import BaseResourceProvider, ResourceHealth
from wirestate.resources.files import Files, Root
from wirestate.resources.native_pools import refuse_options
from wirestate.resources.secrets import revealed, revealed_all, trouble_of, without_credentials

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
        if "://" in url and "?" in url:
            raise self._wrong("give what its base_path says behind '?' by storage_options=: names are joined to a path")
        self._shown = without_credentials(url)
        self._url = SecretStr(url)
        self._options = revealed_all(storage_options or {})
        self._temp_dir = None if temp_dir is None else Path(temp_dir).absolute()
        self._auto_cleanup = auto_cleanup
        self._connecting = threading.Lock()
        self._connected: Root | None = None
        if self._reaches_disk():
            self._connected = self._connect()  # now: a relative path means a folder of today's working directory

    def _reaches_disk(self) -> bool:
        """Look up what speaks to the place, which connects to nothing, and tell whether it is this disk."""
        from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]  # it has no types

        # fsspec keeps file systems, and what they have listed, for the whole process: neither suits a resource.
        self._disk = LocalFileSystem(skip_instance_cache=True)
        parts = revealed(self._url).split("::")  # a chain, such as simplecache::ftp://host/folder
        kinds = [self._kind_of(part, alone=len(parts) == 1) for part in parts]
        return kinds == [LocalFileSystem]

    def _kind_of(self, part: str, *, alone: bool) -> Any:  # Any: a class of the untyped fsspec
        import fsspec  # type: ignore[import-untyped]  # it has no types

        protocol = fsspec.core.split_protocol(part)[0] or ("file" if alone else part)
        try:
            return fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            if protocol in ("s3", "s3a"):
                raise MissingDriverError(f"'{protocol}://'", "s3fs", "s3", self.name) from error
            raise self._wrong(f"'{protocol}://' needs a package that is not installed: {error}") from error
        except ValueError:
            raise self._wrong(f"fsspec knows no '{protocol}://'; see fsspec.available_protocols()") from None

    @property
    def _root(self) -> Root:
        """Where the files are; the store is connected to when this is asked for first."""
        with self._connecting:
            if self._connected is None:
                self._connected = self._connect()
            return self._connected

    def _connect(self) -> Root:
        import fsspec

        options = {"use_listings_cache": False, "skip_instance_cache": True, **self._options}
        try:
            system, base = fsspec.core.url_to_fs(revealed(self._url), **options)
        except Exception as error:  # whatever a store raises; its text and its traceback may hold the URL
            secrets = [value for value in self._options.values() if isinstance(value, str)]
            cause = ConnectionError(f"{self._shown} cannot be reached ({trouble_of(error, *secrets)})")
            raise ResourceUnavailableError(self.name, cause) from None
        is_local = type(system) is type(self._disk)
        where = os.path.realpath(base) if is_local else base
        return Root(self.name, system, where, is_local, self._temp_dir, self._auto_cleanup)

    def _wrong(self, what: str) -> InvalidSettingError:
        return InvalidSettingError(f"file system {self.name!r}: {what}", self.name, "build")

    def acquire(self, **options: Any) -> Files:  # Any: refused
        """Return the view of one lease.

        Raises:
            InvalidSettingError: the base folder does not exist on this disk.
            ResourceUnavailableError: the store cannot be reached.
        """
        refuse_options(self.name, options)
        root = self._root
        if root.is_local and not os.path.isdir(root.base):
            raise self._wrong(f"its base folder {root.base!r} does not exist; create it first")
        return Files(root, self._disk)

    def release(self, resource: Files) -> None:
        """End a lease and remove its temporary files."""
        resource.close()

    def validate(self, resource: Files) -> bool:
        """Tell whether the lease of a view is still open."""
        return resource.is_open

    def health_check(self) -> ResourceHealth:
        """Look at the base folder; a store that answers is healthy, with or without that folder."""
        try:
            root = self._root
            if root.is_local:
                usable = os.path.isdir(root.base) and os.access(root.base, os.R_OK | os.X_OK)
                self.trouble = None if usable else f"folder {root.base!r} does not exist, or cannot be read"
                return ResourceHealth.HEALTHY if usable else ResourceHealth.UNHEALTHY
            root.system.ls(root.base, detail=False)
        except FileNotFoundError:
            pass
        except Exception as error:  # whatever a store raises is an answer
            log.debug("probe of %r: %s", self.name, type(error).__name__)
            self.trouble = trouble_of(error)
            return ResourceHealth.UNHEALTHY
        return ResourceHealth.HEALTHY

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._shown} {self.status.value}>"
