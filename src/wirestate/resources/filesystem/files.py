"""The file system that one lease sees: everything below its base, nothing else, and temporary files of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import posixpath
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias
from urllib.parse import unquote

from wirestate.errors import InvalidSettingError, LeaseReleasedError, PathOutsideBaseError, WirestateError, listed
from wirestate.resources.filesystem.folders import PART, Folder, folder_of_disk
from wirestate.resources.private_folders import PrivateFolder
from wirestate.resources.reports import note_resource

Location: TypeAlias = str | os.PathLike[str]
OF_STORES = frozenset({"aiobotocore", "aiohttp", "botocore"})  # what else raises than OSError, and never a function


@dataclass(frozen=True, slots=True)
class Root:
    """Where the files of one adapter are."""

    name: str
    folder: Folder
    temp_dir: Path | None
    auto_cleanup: bool
    shown: str  # the place without credentials, for errors


class Files:
    """Files below a base folder; all paths are relative to it, and given and returned with ``/``.

    Calls block, also those of stores whose library is asynchronous: in a coroutine, move them to a thread.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._temp_folder: PrivateFolder | None = None
        self._temp_files: set[str] = set()
        self.is_open = True

    # --- reading ---------------------------------------------------------------------------

    def read(self, path: Location, mode: Literal["text", "bytes"] = "text", *, encoding: str = "utf-8") -> Any:
        """Return the whole content: ``str``, or ``bytes`` with ``mode="bytes"``."""
        self._require("read", mode, ("text", "bytes"))
        folder, name = self._find_file(path)
        with self._telling():
            content = folder.read(name)
        return content if mode == "bytes" else content.decode(encoding)

    def exists(self, path: Location) -> bool:
        """Tell whether there is such a file or folder."""
        folder, name = self._find(path)
        with self._telling():
            return folder.exists(name)

    def list(self, path: Location = ".", *, recursive: bool = False) -> list[str]:
        """Return the sorted paths of what is in a folder; with *recursive*, of all files below it."""
        folder, name = self._find(path)
        with self._telling():
            return sorted(set(filter(_leads, folder.names(name, recursive=recursive))))

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
        folder, name = self._find_file(path)
        with self._telling():
            folder.delete(name)

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

    def _place_of_temp_files(self) -> Path | None:
        parent = made(self._root.temp_dir)
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
        folder, name = self._find_file(path)
        with self._telling() as body, contextlib.ExitStack() as stack:
            if mode in ("r", "rb"):
                raw = stack.enter_context(folder.reading(name))
            else:
                raw = stack.enter_context(folder.replacing(name, self._check_open))
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

    def _find_file(self, path: Location) -> tuple[Folder, str]:
        """Return the folder in which *path* is, and its name there, which is not that of the base itself.

        Raises:
            IsADirectoryError: it is the base; a store may hold something else under that very name.
        """
        folder, name = self._find(path)
        if name == ".":
            raise IsADirectoryError(f"{os.fspath(path)!r} is the base folder of {self._root.name!r}; name a file in it")
        return folder, name

    def _find(self, path: Location) -> tuple[Folder, str]:
        """Return the folder in which *path* is, and its name there.

        Raises:
            PathOutsideBaseError: it is not below the base; a link that leads out is found when it is followed.
        """
        self._check_open()
        asked = os.fspath(path)
        if asked in self._temp_files:
            parent, name = os.path.split(asked)
            return folder_of_disk(self._root.name, os.path.realpath(parent)), name
        if os.path.isabs(asked) or any(map(_climbs, _spellings(asked))):
            raise PathOutsideBaseError(self._root.name, asked)
        return self._root.folder, posixpath.normpath(asked.replace("\\", "/") if os.sep == "\\" else asked)


def made(temp_dir: Path | None) -> Path | None:
    """Make the folder for temporary files, if one was named."""
    if temp_dir is not None:
        temp_dir.mkdir(parents=True, exist_ok=True)
    return temp_dir


def _leads(name: str) -> bool:
    """Tell whether an entry of a listing is a path that leads to it."""
    return bool(name) and not (
        name != posixpath.normpath(name) or _climbs(name) or PART.fullmatch(posixpath.basename(name))
    )


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
