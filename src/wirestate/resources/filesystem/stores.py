"""A folder of a store that fsspec speaks to."""

from __future__ import annotations

import contextlib
import io
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from wirestate.resources.filesystem.folders import is_folder, is_missing
from wirestate.resources.filesystem.replacing import System, replacing_in_store


@dataclass(frozen=True, slots=True)
class StoreFolder:
    """What can be done below a base in a store; see :class:`~wirestate.resources.filesystem.folders.Folder`.

    Args:
        name: the resource, for errors.
        system: what speaks to the store.
        base: a path of *system*.
        is_memory: it is a store of this process.
        bucket: the part of the base that must exist, in a store that has no folders.
        block: bytes that are sent or fetched at once.
        temp_dir: makes the folder where large files wait, if it is not the system's own.
    """

    name: str
    system: System
    base: str
    is_memory: bool
    bucket: str | None
    block: int
    temp_dir: Callable[[], Path | None]

    def _place(self, path: str) -> str:
        return self.base if path == "." else posixpath.join(self.base, path)

    def read(self, path: str) -> bytes:
        content: bytes = self.system.cat_file(self._place(path))  # one request: of one version
        return content

    def reading(self, path: str) -> IO[bytes]:
        file: IO[bytes] = self.system.open(self._place(path), "rb", block_size=self.block)
        # All who read a file of memory:// are given the same object, with one position.
        return io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else file

    def replacing(self, path: str, check: Callable[[], None]) -> contextlib.AbstractContextManager[IO[bytes]]:
        return replacing_in_store(
            self.system,
            self._place(path),
            check,
            folders=self.bucket is None,
            at_once=self.is_memory,
            block=self.block,
            temp_dir=self.temp_dir(),
        )

    def exists(self, path: str) -> bool:
        return bool(self.system.exists(self._place(path)))

    def names(self, path: str, *, recursive: bool) -> Iterator[str]:
        place = self._place(path)
        for entry in self._entries(place, recursive=recursive):
            # An object whose name ends with a slash marks a folder that has no files.
            if not entry.endswith("/") or not (recursive or entry.rstrip("/") == place):
                full: str = self.system._strip_protocol(entry).rstrip("/")
                yield full[len(self.base.rstrip("/")) + 1 :]

    def _entries(self, place: str, *, recursive: bool) -> Iterable[str]:
        try:
            found: Iterable[str] = self.system.find(place) if recursive else self.system.ls(place, detail=False)
        except FileNotFoundError:
            if place != self.base:
                raise
            if self.bucket is not None:
                self.system.info(self.bucket)
            found = []  # the first file makes its folders, that of the base too
        return found

    def delete(self, path: str) -> None:
        place = self._place(path)
        if self.system.isdir(place):
            raise is_folder(self.name, path)
        if not self.system.exists(place):
            raise is_missing(self.name, path)
        self.system.rm_file(place)
