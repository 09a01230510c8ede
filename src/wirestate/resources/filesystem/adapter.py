"""File systems as a resource: any place that fsspec knows, seen through one base folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from wirestate.errors import InvalidSettingError, MissingDriverError, ResourceUnavailableError
from wirestate.redaction import half_made_too, text_of, without_secrets
from wirestate.resources.base import BaseResourceProvider, ResourceHealth
from wirestate.resources.filesystem.files import Files, Root, made
from wirestate.resources.filesystem.folders import DiskFolder, folder_of_disk
from wirestate.resources.filesystem.replacing import BLOCK, System
from wirestate.resources.filesystem.stores import StoreFolder
from wirestate.resources.native_pools import PerLoop, refuse_options
from wirestate.resources.secrets import NoFrames, Revealed, concealed, revealed, title_of, trouble_of

log = logging.getLogger("wirestate.filesystem")

PROBE_LIMIT = 4.0  # seconds that a store has to answer a probe; the manager's own limit is 5
GOODBYE_LIMIT = 2.0
SECRET = re.compile(r"pass|secret|token|key|cred|auth|sas|connection", re.IGNORECASE)
# Stores without folders. Their libraries make a bucket that is missing when they are asked for folders: a typo in a
# name would not fail, but get a bucket of its own.
IN_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})


class FileSystemResourceAdapter(BaseResourceProvider):
    """Lease a view of one folder, on a disk or in a store; see :class:`~wirestate.resources.files.Files`.

    Args:
        name: the name of the resource.
        base_path: a folder, or a URL such as ``s3://bucket/folder`` or ``memory://folder``. A folder of a disk and
            a bucket must exist; they are never made.
        temp_dir: where temporary files are made, and large ones wait until they are complete.
        auto_cleanup: whether temporary files vanish when their lease ends.
        storage_options: what fsspec needs besides the URL, for example ``{"key": …, "secret": SecretStr(…)}``; its
            secrets may be wrapped at any depth.

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
        place, options = concealed(base_path), concealed(storage_options)
        del base_path, storage_options  # a traceback with locals shows this frame
        super().__init__(name)
        with NoFrames():
            self._url = self._checked_place(place)
        if temp_dir is not None and "\0" in os.fspath(temp_dir):
            raise self._wrong("its temp_dir holds a null character, which no path may")
        if options is not None and not isinstance(options, Mapping):
            raise self._wrong(f"storage_options is a {title_of(options)}; it must be a mapping")
        self.blocking = not revealed(self._url).startswith("memory://")
        self._shown = without_secrets(revealed(self._url))
        self._options = Revealed(options or {})
        self._temp_dir = None if temp_dir is None else Path(temp_dir).absolute()
        self._auto_cleanup = auto_cleanup
        self._store: PerLoop[StoreFolder] = PerLoop(name, self._connect, lambda store: None, per_loop=False)
        # Now: a relative path means a folder of today's working directory.
        with NoFrames():
            self._disk = self._on_disk() if self._reaches_disk() else None

    def _checked_place(self, place: Any) -> SecretStr:  # Any: what a user gives
        place = revealed(place)
        if not isinstance(place, str | os.PathLike) or not os.fspath(place):
            what = "empty" if isinstance(place, str) else f"a {type(place).__name__}"
            raise self._wrong(f"base_path is {what}; give a folder or a URL such as s3://bucket/folder")
        url = os.fspath(place)
        if "\0" in url:
            raise self._wrong("its base_path holds a null character, which no path may")
        if "://" in url and "?" in url:
            raise self._wrong("give what its base_path says behind '?' by storage_options=: names are joined to a path")
        return SecretStr(url)

    def _reaches_disk(self) -> bool:
        """Look up what speaks to the place, which connects to nothing, and tell whether it is this disk."""
        # They have no types.
        from fsspec.implementations.cached import CachingFileSystem  # type: ignore[import-untyped]
        from fsspec.implementations.dirfs import DirFileSystem  # type: ignore[import-untyped]
        from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

        parts = revealed(self._url).split("::")  # a chain, such as simplecache::ftp://host/folder
        *before, last = [self._kind_of(part, alone=len(parts) == 1) for part in parts]
        if self._is_in_bucket and not parts[-1].partition("://")[2].strip("/"):
            raise self._wrong(f"its base_path {self._shown!r} names no bucket")
        if last is not LocalFileSystem or not all(issubclass(kind, CachingFileSystem) for kind in before):
            if last is LocalFileSystem and DirFileSystem in before:
                raise self._wrong("'dir::' in front of a folder of this disk adds nothing; give the folder itself")
            return False
        # A cache of this disk would follow links out of the base, and its files are near enough.
        self._url = SecretStr(parts[-1])
        for part in parts[:-1]:
            self._options.pop(part, None)
        return True

    def _kind_of(self, part: str, *, alone: bool) -> Any:  # Any: a class of the untyped fsspec
        import fsspec  # type: ignore[import-untyped]  # it has no types

        protocol = fsspec.core.split_protocol(part)[0] or ("file" if alone else part)
        del part  # a traceback with locals shows this frame
        try:
            return fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            if protocol in ("s3", "s3a"):
                raise MissingDriverError(f"'{protocol}://'", "s3fs", "s3", self.name) from error
            raise self._wrong(f"'{protocol}://' needs a package that is not installed: {text_of(error)}") from error
        except ValueError:
            raise self._wrong(f"fsspec knows no '{protocol}://'; see fsspec.available_protocols()") from None

    @property
    def _is_in_bucket(self) -> bool:
        *before, last = (part.partition("://")[0] for part in revealed(self._url).split("::"))
        return last in IN_BUCKETS and all(kind.endswith("cache") for kind in before)

    def _on_disk(self) -> DiskFolder:
        from fsspec.implementations.local import LocalFileSystem

        return folder_of_disk(self.name, os.path.realpath(LocalFileSystem._strip_protocol(revealed(self._url))))

    def _connect(self) -> StoreFolder:
        """Connect to the store: when it is used first, and anew in a forked child."""
        with NoFrames():
            return self._connected()

    def _connected(self) -> StoreFolder:
        import fsspec

        # fsspec keeps file systems, and what they have listed, for the whole process: neither suits a resource.
        options = Revealed({"use_listings_cache": False, "skip_instance_cache": True, **_revealed(self._options)})
        try:
            system, base = fsspec.core.url_to_fs(revealed(self._url), **options)
        except Exception as error:  # whatever a store raises; its text and its traceback may hold the URL
            cause = ConnectionError(f"{self._shown} cannot be reached ({self._trouble_of(error)})")
            raise ResourceUnavailableError(self.name, cause) from None
        return StoreFolder(
            name=self.name,
            system=system,
            base=base,
            is_memory=revealed(self._url).startswith("memory://"),
            bucket=base.partition("/")[0] if self._is_in_bucket else None,
            block=options.get("default_block_size") or BLOCK,
            temp_dir=partial(made, self._temp_dir),
        )

    def _trouble_of(self, error: Exception) -> str:
        return trouble_of(error, *_secrets_in(self._options))

    def _wrong(self, what: str) -> InvalidSettingError:
        return InvalidSettingError(f"file system {self.name!r}: {what}", self.name, "build")

    def acquire(self, **options: Any) -> Files:  # Any: refused
        """Return the view of one lease.

        Raises:
            InvalidSettingError: the base folder does not exist on this disk.
            ResourceUnavailableError: the store cannot be reached.
        """
        refuse_options(self.name, options)
        disk = self._disk
        if disk is not None and not os.path.isdir(disk.base):
            if os.path.exists(disk.base):
                raise self._wrong(f"its base_path {disk.base!r} is a file; name the folder that holds it")
            raise self._wrong(f"its base folder {disk.base!r} does not exist; create it first")
        return Files(Root(self.name, disk or self._store.get(), self._temp_dir, self._auto_cleanup, self._shown))

    def release(self, resource: Files) -> None:
        """End a lease and remove its temporary files."""
        resource.close()

    def validate(self, resource: Files) -> bool:
        """Tell whether the lease of a view is still open."""
        return resource.is_open

    def health_check(self) -> ResourceHealth:
        """Look at the base folder; a store that answers is healthy, with or without that folder, if it has the bucket.

        A store has 4 seconds to answer where its library is asynchronous, and as long as the library lets it where not.
        """
        try:
            self.trouble = self._look()
        except Exception as error:  # whatever a store raises is an answer
            log.debug("probe of %r: %s", self.name, type(error).__name__)
            self.trouble = self._trouble_of(error)
        return ResourceHealth.HEALTHY if self.trouble is None else ResourceHealth.UNHEALTHY

    def _look(self) -> str | None:
        """Return what is wrong with the base folder."""
        if self._disk is not None:
            base = self._disk.base
            usable = os.path.isdir(base) and os.access(base, os.R_OK | os.X_OK)
            if os.path.isfile(base):
                return f"base_path {base!r} is a file, not a folder"
            return None if usable else f"folder {base!r} does not exist, or cannot be read"
        store = self._store.get()
        for place in dict.fromkeys((store.base, store.bucket or store.base)):
            try:
                _ask(store.system, place)
                return None
            except FileNotFoundError:
                pass
            except TimeoutError:
                return f"{self._shown} did not answer in time"
        return None if store.bucket is None else f"bucket {store.bucket!r} does not exist"

    def close(self) -> None:
        """Close the connections of the store."""
        store = self._store.close()
        if store is not None:
            try:
                _disconnect(store.system)
            except Exception as error:  # a store that does not answer keeps nobody from closing
                log.debug("close of %r: %s", self.name, type(error).__name__)
        super().close()

    @half_made_too
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._shown} {self.status.value}>"


def _ask(system: System, place: str) -> None:
    """Ask whether there is something at *place*, for no longer than a probe may take."""
    if getattr(system, "async_impl", False):
        from fsspec.asyn import sync  # type: ignore[import-untyped]  # it has no types

        sync(system.loop, system._info, place, timeout=PROBE_LIMIT)
    else:
        system.info(place)


def _disconnect(system: System) -> None:
    """Close what s3fs keeps open; it would do so by itself only when its cycles are collected."""
    client = getattr(system, "_s3", None)  # where nothing was asked for yet, the public name would connect
    if client is not None:
        from fsspec.asyn import sync

        sync(system.loop, client.close, timeout=GOODBYE_LIMIT)


def _revealed(value: Any) -> Any:  # Any: options of any kind
    """Return *value* with its secrets unwrapped, at any depth."""
    if isinstance(value, Mapping):
        return {key: _revealed(below) for key, below in value.items()}
    return revealed(value) if isinstance(value, SecretStr) else value


def _secrets_in(value: Any, name: str = "") -> Iterator[str]:  # Any: options of any kind
    """Yield the texts that are wrapped, or whose name says that they are secret."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _secrets_in(below, str(key))
    elif isinstance(value, SecretStr) or (isinstance(value, str) and SECRET.search(name)):
        yield revealed(value)
