"""The file system that one lease sees: everything below its base, nothing else, and temporary files of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import posixpath
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias
from urllib.parse import unquote

from wirestate.errors import InvalidSettingError, LeaseReleasedError, PathOutsideBaseError, listed
from wirestate.resources.private_folders import PrivateFolder

PART = re.compile(r"\.[0-9a-f]{16}\.part")  # the name of a local file while it is written
IN_MEMORY = 8 * 2**20  # bytes of a remote file that are held in memory while it is written

Location: TypeAlias = str | os.PathLike[str]
System: TypeAlias = Any  # Any: an AbstractFileSystem; fsspec has no types


@dataclass(frozen=True, slots=True)
class Root:
    """Where the files of one adapter are; ``base`` is a path of ``system``, without links if that is local."""

    name: str
    system: System
    base: str
    is_local: bool
    temp_dir: Path | None
    auto_cleanup: bool


class Files:
    """Files below a base folder; all paths are relative to it, and given and returned with ``/``."""

    def __init__(self, root: Root, disk: System) -> None:
        self._root = root
        self._disk = disk  # where temporary files are
        self._lock = threading.Lock()
        self._temp_folder: PrivateFolder | None = None
        self._temp_files: set[str] = set()
        self.is_open = True

    # --- reading ---------------------------------------------------------------------------

    def read(self, path: Location, mode: Literal["text", "bytes"] = "text", *, encoding: str = "utf-8") -> Any:
        """Return the whole content: ``str``, or ``bytes`` with ``mode="bytes"``."""
        self._require("read", mode, ("text", "bytes"))
        with self.open(path, "rb") as file:
            content: bytes = file.read()
        return content if mode == "bytes" else content.decode(encoding)

    def exists(self, path: Location) -> bool:
        """Tell whether there is such a file or folder."""
        system, place = self._find(path)
        return bool(system.exists(place))

    def list(self, path: Location = ".", *, recursive: bool = False) -> list[str]:
        """Return the sorted paths of what is in a folder; with *recursive*, of all files below it."""
        system, place = self._find(path)
        found = system.find(place) if recursive else system.ls(place, detail=False)
        names = (posixpath.relpath(system._strip_protocol(entry), self._root.base) for entry in found)
        return sorted(name for name in names if not PART.fullmatch(posixpath.basename(name)))

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
        system, place = self._find(path, follow=False)
        is_link = self._is_on_disk(system) and os.path.islink(place)
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

    def _place_of_temp_files(self) -> Path | None:
        parent = self._root.temp_dir
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
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

        What is written takes the place of the old file at the end of the block, if the block did not fail
        and the lease is not over.
        """
        self._require("open", mode, ("r", "rb", "w", "wb"))
        system, place = self._find(path)
        with contextlib.ExitStack() as stack:
            if mode in ("r", "rb"):
                raw = stack.enter_context(system.open(place, "rb"))
            elif self._is_on_disk(system):
                raw = stack.enter_context(_replacing_on_disk(place, self._check_open))
            else:
                raw = stack.enter_context(_replacing(system, place, self._check_open))
            if "b" in mode:
                yield raw
                return
            text = io.TextIOWrapper(raw, encoding=encoding, newline=newline)
            try:
                yield text
            finally:
                text.detach()  # flushes; the stack closes what is below

    def close(self) -> None:
        """End the lease: its temporary files vanish."""
        with self._lock:
            self.is_open = False
            if self._temp_folder is not None:
                self._temp_folder.remove()

    def _require(self, verb: str, mode: str, modes: tuple[str, ...]) -> None:
        if mode not in modes:
            text = f"{verb}() of {self._root.name!r}: mode is {mode!r}; it must be one of {listed(modes)}"
            raise InvalidSettingError(text, self._root.name, verb)

    def _check_open(self) -> None:
        if not self.is_open:
            raise LeaseReleasedError(self._root.name)

    def _is_on_disk(self, system: System) -> bool:
        return self._root.is_local or system is self._disk

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
        plain = asked.replace("\\", "/") if os.sep == "\\" else asked
        normal = posixpath.normpath(plain)
        decoded = posixpath.normpath(unquote(plain))  # some stores decode
        if os.path.isabs(asked) or "://" in asked or "\0" in asked or _climbs(normal) or _climbs(decoded):
            raise PathOutsideBaseError(root.name, asked)
        if not root.is_local:
            return root.system, root.base if normal == "." else posixpath.join(root.base, normal)
        folder, last = os.path.split(os.path.join(root.base, normal))
        real = os.path.realpath(os.path.join(folder, last)) if follow else os.path.join(os.path.realpath(folder), last)
        if os.path.commonpath([root.base, real]) != root.base:
            raise PathOutsideBaseError(root.name, asked)
        return root.system, real


def _climbs(path: str) -> bool:
    return path == ".." or path.startswith(("../", "/"))


@contextlib.contextmanager
def _replacing_on_disk(place: str, check: Callable[[], None]) -> Iterator[IO[bytes]]:
    folder = os.path.dirname(place)
    os.makedirs(folder, exist_ok=True)
    part = os.path.join(folder, f".{secrets.token_hex(8)}.part")  # beside it: a rename is atomic on one disk only
    try:
        with open(part, "xb") as file:
            yield file
        check()
        if os.path.exists(place):
            shutil.copymode(place, part)
        os.replace(part, place)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


@contextlib.contextmanager
def _replacing(system: System, place: str, check: Callable[[], None]) -> Iterator[IO[bytes]]:
    """Send a file only when all of it is there: closing a remote file half-way would store that half."""
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as held:
        yield held
        check()
        held.seek(0)
        system.makedirs(posixpath.dirname(place), exist_ok=True)
        with system.open(place, "wb") as file:
            shutil.copyfileobj(held, file)
