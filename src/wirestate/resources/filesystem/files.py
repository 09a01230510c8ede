"""The file system that one lease sees: everything below its base, nothing else, and temporary files of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import posixpath
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias
from urllib.parse import unquote

from wirestate.errors import InvalidSettingError, LeaseReleasedError, PathOutsideBaseError, WirestateError, listed
from wirestate.resources.filesystem.replacing import PART, System, replacing_in_store, replacing_on_disk
from wirestate.resources.private_folders import PrivateFolder
from wirestate.resources.reports import note_resource

Location: TypeAlias = str | os.PathLike[str]
OF_STORES = frozenset({"aiobotocore", "aiohttp", "botocore"})  # what else raises than OSError, and never a function


@dataclass(frozen=True, slots=True)
class Root:
    """Where the files of one adapter are; ``base`` is a path of ``system``, without links if that is local."""

    name: str
    system: System
    base: str
    is_local: bool
    is_memory: bool  # a store of this process
    bucket: str | None  # the part of the base that must exist, in a store that has no folders
    block: int  # bytes that are sent or fetched at once
    temp_dir: Path | None
    auto_cleanup: bool
    shown: str  # the place without credentials, for errors


class Files:
    """Files below a base folder; all paths are relative to it, and given and returned with ``/``.

    Calls block, also those of stores whose library is asynchronous: in a coroutine, move them to a thread.
    """

    def __init__(self, root: Root, disk: System) -> None:
        self._root = root
        self._disk = disk  # where temporary files are
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._temp_folder: PrivateFolder | None = None
        self._temp_files: set[str] = set()
        self.is_open = True

    # --- reading ---------------------------------------------------------------------------

    def read(self, path: Location, mode: Literal["text", "bytes"] = "text", *, encoding: str = "utf-8") -> Any:
        """Return the whole content: ``str``, or ``bytes`` with ``mode="bytes"``."""
        self._require("read", mode, ("text", "bytes"))
        system, place = self._find_file(path)
        with self._telling():
            content: bytes = system.cat_file(place)  # one request: of one version, whoever writes meanwhile
        return content if mode == "bytes" else content.decode(encoding)

    def exists(self, path: Location) -> bool:
        """Tell whether there is such a file or folder."""
        system, place = self._find(path)
        with self._telling():
            return bool(system.exists(place))

    def list(self, path: Location = ".", *, recursive: bool = False) -> list[str]:
        """Return the sorted paths of what is in a folder; with *recursive*, of all files below it."""
        system, place = self._find(path)
        with self._telling():
            found = self._entries(system, place, recursive=recursive)
        # In a store, an object whose name ends with a slash marks a folder that has no files.
        found = {e for e in found if not e.endswith("/") or not (recursive or e.rstrip("/") == place)}
        return sorted(set(filter(None, map(self._name_of, found))))

    def _entries(self, system: System, place: str, *, recursive: bool) -> Iterable[str]:
        try:
            found: Iterable[str] = system.find(place) if recursive else system.ls(place, detail=False)
        except FileNotFoundError:
            if self._root.is_local or place != self._root.base:
                raise
            if self._root.bucket is not None:
                system.info(self._root.bucket)
            found = []  # the first file makes its folders, that of the base too
        return found

    def _name_of(self, entry: str) -> str | None:
        """Return the path that leads to an entry of a listing, if there is one."""
        full: str = self._root.system._strip_protocol(entry).rstrip("/")
        name = full[len(self._root.base.rstrip("/")) + 1 :]
        if name != posixpath.normpath(name) or _climbs(name) or PART.fullmatch(posixpath.basename(name)):
            return None
        return name

    # --- writing ---------------------------------------------------------------------------

    def write(self, path: Location, data: Any, *, encoding: str = "utf-8") -> None:  # Any: text, bytes or JSON
        """Replace a file as a whole: by text, bytes, or anything else as JSON.

        Folders above it are made. If writing fails, the old file stays as it was.
        """
        if not isinstance(data, str | bytes | bytearray | memoryview):
            data = json.dumps(dict(data) if isinstance(data, Mapping) else data, ensure_ascii=False)
        with self.open(path, "wb") as file:
            file.write(data.encode(encoding) if isinstance(data, str) else data)

    def delete(self, path: Location) -> None:
        """Delete one file.

        Raises:
            FileNotFoundError: there is none.
        """
        system, place = self._find_file(path, follow=False)
        is_link = self._is_on_disk(system) and os.path.islink(place)
        with self._telling():
            if system.isdir(place) and not is_link:
                raise IsADirectoryError(f"{os.fspath(path)!r} of {self._root.name!r} is a folder; delete its files")
            if not system.exists(place) and not is_link:
                raise FileNotFoundError(f"there is no file {os.fspath(path)!r} in {self._root.name!r}")
            system.rm_file(place)

    def create_temp(self, prefix: str = "tmp", suffix: str = "") -> Path:
        """Make an empty local file that lives as long as this lease; its path works here and everywhere else."""
        for part in (prefix, suffix):
            if any(character in part for character in "/\\\0"):
                raise PathOutsideBaseError(self._root.name, part)
        with self._lock:
            self._check_open()
            handle, path = tempfile.mkstemp(suffix, prefix, self._place_of_temp_files())
            os.close(handle)
            self._temp_files.add(path)
        return Path(path)

    def _temp_dir(self) -> Path | None:
        parent = self._root.temp_dir
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        return parent

    def _place_of_temp_files(self) -> Path | None:
        parent = self._temp_dir()
        if not self._root.auto_cleanup:
            return parent
        if self._temp_folder is None:
            self._temp_folder = PrivateFolder(parent)
        return self._temp_folder.path

    # --- both ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def open(
        self,
        path: Location,
        mode: Literal["r", "rb", "w", "wb"] = "r",
        *,
        encoding: str = "utf-8",
        newline: str | None = None,
    ) -> Iterator[IO[Any]]:  # Any: text or bytes
        """Open a file for a ``with`` block.

        A file is read block by block, however large it is. What is written takes the place of the old file
        at the end of the block, if the block did not fail and the lease is not over.
        """
        self._require("open", mode, ("r", "rb", "w", "wb"))
        system, place = self._find_file(path)
        with self._telling() as body, contextlib.ExitStack() as stack:
            if mode in ("r", "rb"):
                raw = stack.enter_context(self._reading(system, place))
            else:
                raw = stack.enter_context(self._replacing(system, place))
            if "b" in mode:
                with body:
                    yield raw
                return
            text = io.TextIOWrapper(raw, encoding=encoding, newline=newline)
            try:
                with body:
                    yield text
            finally:
                text.detach()  # flushes; the stack closes what is below

    @contextlib.contextmanager
    def _telling(self) -> Iterator[contextlib.AbstractContextManager[None]]:
        """Note on what a disk or a store raises which file system it is; give a bracket for what others do inside."""
        theirs = 0  # the identity of an error: to keep it would make a cycle

        @contextlib.contextmanager
        def bracket() -> Iterator[None]:
            nonlocal theirs
            try:
                yield
            except Exception as error:  # a function's, unless its kind tells that it came from the file
                theirs = id(error)
                raise

        try:
            yield bracket()
        except WirestateError:
            raise
        except Exception as error:
            if id(error) != theirs or type(error).__module__.partition(".")[0] in OF_STORES:
                note_resource(error, self._root.name, self._root.shown)
            raise

    def _reading(self, system: System, place: str) -> IO[bytes]:
        if self._is_on_disk(system):
            return open(place, "rb")
        file: IO[bytes] = system.open(place, "rb", block_size=self._root.block)
        # All who read a file of memory:// are given the same object, with one position.
        return io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else file

    def _replacing(self, system: System, place: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        if self._is_on_disk(system):
            return replacing_on_disk(place, self._check_open)
        root = self._root
        return replacing_in_store(
            system,
            place,
            self._check_open,
            folders=root.bucket is None,
            at_once=root.is_memory,
            block=root.block,
            temp_dir=self._temp_dir(),
        )

    def close(self) -> None:
        """End the lease: its temporary files vanish."""
        if self._pid != os.getpid():
            return  # they are the parent's, and so is whatever held the lock at the fork
        with self._lock:
            self.is_open = False
            if self._temp_folder is not None:
                self._temp_folder.remove()

    def _require(self, verb: str, mode: str, modes: tuple[str, ...]) -> None:
        if mode not in modes:
            text = f"{verb}() of {self._root.name!r}: mode is {mode!r}; it must be one of {listed(modes)}"
            raise InvalidSettingError(text, self._root.name, verb)

    def _check_open(self) -> None:
        if not self.is_open or self._pid != os.getpid():
            raise LeaseReleasedError(self._root.name)

    def _is_on_disk(self, system: System) -> bool:
        return self._root.is_local or system is self._disk

    def _find_file(self, path: Location, *, follow: bool = True) -> tuple[System, str]:
        """Return where *path* really is, which is not the base itself.

        Raises:
            IsADirectoryError: it is the base; a store may hold something else under that very name.
        """
        system, place = self._find(path, follow=follow)
        if system is self._root.system and place == self._root.base:
            raise IsADirectoryError(f"{os.fspath(path)!r} is the base folder of {self._root.name!r}; name a file in it")
        return system, place

    def _find(self, path: Location, *, follow: bool = True) -> tuple[System, str]:
        """Return where *path* really is; *follow* a link at its end.

        Raises:
            PathOutsideBaseError: it is not below the base.
        """
        self._check_open()
        asked = os.fspath(path)
        if asked in self._temp_files:
            return self._disk, asked
        root = self._root
        if os.path.isabs(asked) or any(map(_climbs, _spellings(asked))):
            raise PathOutsideBaseError(root.name, asked)
        normal = posixpath.normpath(asked.replace("\\", "/") if os.sep == "\\" else asked)
        if normal == ".":
            return root.system, root.base
        if not root.is_local:
            return root.system, posixpath.join(root.base, normal)
        folder, last = os.path.split(os.path.join(root.base, normal))
        real = os.path.realpath(os.path.join(folder, last)) if follow else os.path.join(os.path.realpath(folder), last)
        if os.path.commonpath([root.base, real]) != root.base:
            raise PathOutsideBaseError(root.name, asked)
        return root.system, real


def _spellings(path: str) -> Iterator[str]:
    """Yield what a store may take *path* for: some decode it, some read a backslash as a slash."""
    while True:
        yield path.replace("\\", "/")
        decoded = unquote(path)
        if decoded == path:
            return
        path = decoded


def _climbs(path: str) -> bool:
    return "://" in path or "\0" in path or f"{posixpath.normpath(path)}/".startswith(("../", "/"))
