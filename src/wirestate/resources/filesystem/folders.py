"""A folder of this disk that no link leads out of: what is opened below it is what was looked at."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import IO, NoReturn, Protocol, TypeAlias

from wirestate.errors import PathOutsideBaseError

PART = re.compile(r"\.[0-9a-f]{16}\.part")  # the name of a local file while it is written
MOST_LINKS = 40  # on the way to one file, as Linux has it
HAS_DIR_FD = hasattr(os, "O_NOFOLLOW") and {os.open, os.stat, os.unlink, os.rename, os.mkdir} <= os.supports_dir_fd
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
SEARCH = NO_LINK | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_PATH", os.O_RDONLY)  # needs no right to list
LIST = NO_LINK | getattr(os, "O_DIRECTORY", 0) | os.O_RDONLY
LINK = (errno.ELOOP, errno.EMLINK, errno.ENOTDIR)  # what an open says that should follow none

Check = Callable[[], None]


class Folder(Protocol):
    """What can be done below a base folder; paths are relative, with ``/`` and without ``..``."""

    def read(self, path: str) -> bytes:
        """Return the whole content, of one version, whoever writes meanwhile."""
        ...

    def reading(self, path: str) -> IO[bytes]:
        """Open a file to read."""
        ...

    def replacing(self, path: str, check: Check) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Write beside a file, and rename if the block did not fail and *check* raises nothing."""
        ...

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file or folder."""
        ...

    def names(self, path: str, *, recursive: bool) -> Iterator[str]:
        """Yield what is in a folder, by paths from the base; with *recursive*, all files below it."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file, or a link."""
        ...


class Spot:
    """A name in a folder that is open; ``"."`` is that folder itself. *path* leads there from the base, past links."""

    __slots__ = ("folder", "name", "path")

    def __init__(self, folder: int, name: str, path: str) -> None:
        self.folder = folder
        self.name = name
        self.path = path


class OpenFolders:
    """Walk from the base through open folders, one name at a time: no link can come in between.

    Links that stay below the base are followed.
    """

    def __init__(self, name: str, base: str) -> None:
        self._name = name
        self.base = base

    # --- the walk --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _spot(self, path: str, *, follow: bool = True, make: bool = False) -> Iterator[Spot]:
        """Give where *path* leads; *follow* a link at its end, *make* folders that are missing."""
        with _telling(os.path.join(self.base, path)):
            walk = _Walk(self._name, self.base, path)
        try:
            with _telling(walk.shown):
                spot = walk.go(follow=follow, make=make)
            yield spot
        finally:
            walk.close()

    # --- what can be done ------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        with self.reading(path) as file:
            return file.read()

    def reading(self, path: str) -> IO[bytes]:
        shown = os.path.join(self.base, path)
        for _ in range(MOST_LINKS):
            with self._spot(path) as spot, _telling(shown):
                try:
                    handle = os.open(spot.name, os.O_RDONLY | NO_LINK, dir_fd=spot.folder)
                except OSError as error:
                    if error.errno not in LINK:
                        raise
                    continue  # a link came to this place meanwhile: where does it lead?
                try:
                    return open(handle, "rb")
                except BaseException:  # a folder
                    os.close(handle)
                    raise
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), shown)

    @contextlib.contextmanager
    def replacing(self, path: str, check: Check) -> Iterator[IO[bytes]]:
        with self._spot(path, make=True) as spot:
            shown = os.path.join(self.base, path)
            if spot.name == ".":
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), shown)
            part = f".{secrets.token_hex(8)}.part"  # beside it: a rename is atomic on one disk only
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK
            with _telling(shown):
                handle = os.open(part, flags, 0o666, dir_fd=spot.folder)
            try:
                with open(handle, "wb") as file:
                    yield file
                    check()
                    _copy_mode(spot, file)
                with _telling(shown):
                    os.replace(part, spot.name, src_dir_fd=spot.folder, dst_dir_fd=spot.folder)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=spot.folder)
                raise

    def exists(self, path: str) -> bool:
        try:
            with self._spot(path) as spot:
                os.stat(spot.name, dir_fd=spot.folder, follow_symlinks=False)
        except OSError:  # as os.path.exists()
            return False
        return True

    def names(self, path: str, *, recursive: bool) -> Iterator[str]:
        try:
            with self._spot(path) as spot:
                with _telling(os.path.join(self.base, path)):
                    try:
                        folder = os.open(spot.name, LIST, dir_fd=spot.folder)
                    except NotADirectoryError:  # a file
                        yield spot.path
                        return
                yield from _names(folder, spot.path, recursive=recursive)
        except FileNotFoundError:
            if not recursive:
                raise

    def delete(self, path: str) -> None:
        with _deleting(self._name, path), self._spot(path, follow=False) as spot:
            if stat.S_ISDIR(os.stat(spot.name, dir_fd=spot.folder, follow_symlinks=False).st_mode):
                raise IsADirectoryError
            os.unlink(spot.name, dir_fd=spot.folder)


class NamedFolders:
    """The same where the system opens by whole paths only: what was opened is compared with what is there then."""

    def __init__(self, name: str, base: str) -> None:
        self._name = name
        self.base = base

    def _place(self, path: str, *, follow: bool = True) -> str:
        folder, last = os.path.split(os.path.join(self.base, path))
        real = os.path.realpath(os.path.join(folder, last)) if follow else os.path.join(os.path.realpath(folder), last)
        if os.path.commonpath([self.base, real]) != self.base:
            raise PathOutsideBaseError(self._name, path)
        return real

    def read(self, path: str) -> bytes:
        with self.reading(path) as file:
            return file.read()

    def reading(self, path: str) -> IO[bytes]:
        file = open(self._place(path), "rb")  # noqa: SIM115  # the caller closes it
        try:
            if os.path.samestat(os.fstat(file.fileno()), os.stat(self._place(path))):
                return file
            raise PathOutsideBaseError(self._name, path)
        except BaseException:
            file.close()
            raise

    @contextlib.contextmanager
    def replacing(self, path: str, check: Check) -> Iterator[IO[bytes]]:
        place = self._place(path)
        folder = os.path.dirname(place)
        os.makedirs(folder, exist_ok=True)
        part = os.path.join(folder, f".{secrets.token_hex(8)}.part")
        try:
            with open(part, "xb") as file:
                yield file
            check()
            if self._place(path) != place:
                raise PathOutsideBaseError(self._name, path)
            if os.path.exists(place):
                shutil.copymode(place, part)
            os.replace(part, place)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            raise

    def exists(self, path: str) -> bool:
        return os.path.exists(self._place(path))

    def names(self, path: str, *, recursive: bool) -> Iterator[str]:
        place = self._place(path)
        start = os.path.relpath(place, self.base).replace(os.sep, "/")
        start = "" if start == "." else start
        if recursive or os.path.isdir(place):
            yield from self._below(place, start, recursive=recursive)
        if not os.path.isdir(place) and os.path.exists(place):
            yield start
        elif not os.path.exists(place) and not recursive:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)

    def _below(self, place: str, start: str, *, recursive: bool) -> Iterator[str]:
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                name = f"{start}/{entry.name}" if start else entry.name
                if recursive and entry.is_dir(follow_symlinks=False):
                    yield from self._below(entry.path, name, recursive=True)
                else:
                    yield name

    def delete(self, path: str) -> None:
        place = self._place(path, follow=False)
        with _deleting(self._name, path):
            if os.path.isdir(place) and not os.path.islink(place):
                raise IsADirectoryError
            os.unlink(place)


class _Walk:
    """One way from the base to a file."""

    def __init__(self, name: str, base: str, path: str) -> None:
        self._name = name
        self.base = base
        self._asked = path
        self._ahead = _parts(path)
        self._names: list[str] = []
        self._folders: list[int] = []
        self._links = 0
        try:
            self._folders.append(os.open(base, SEARCH))
        except OSError as error:
            if error.errno in LINK and os.path.islink(base):
                self._leaves()
            raise

    @property
    def shown(self) -> str:
        """The whole path, as errors show it."""
        return os.path.join(self.base, self._asked)

    def go(self, *, follow: bool, make: bool) -> Spot:
        """Walk to the last name."""
        while self._ahead:
            part = self._ahead.pop(0)
            if part == "..":  # of a link
                if not self._names:
                    self._leaves()
                self._names.pop()
                os.close(self._folders.pop())
            elif self._ahead:
                self._enter(part, make=make)
            elif not follow or not self._follow(part):
                return Spot(self._folders[-1], part, "/".join((*self._names, part)))
        return Spot(self._folders[-1], ".", "/".join(self._names))

    def _enter(self, part: str, *, make: bool) -> None:
        try:
            folder = os.open(part, SEARCH, dir_fd=self._folders[-1])
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=self._folders[-1])
            self._count()  # somebody may take it away again and again
            self._ahead.insert(0, part)
        except OSError as error:
            if error.errno not in LINK or not self._follow(part):
                raise
        else:
            self._folders.append(folder)
            self._names.append(part)

    def _follow(self, part: str) -> bool:
        """Go on where the link *part* leads; False: it is none."""
        try:
            target = os.readlink(part, dir_fd=self._folders[-1])
        except OSError:  # no link, or nothing at all
            return False
        self._count()
        if os.path.isabs(target):
            real = os.path.realpath(target)  # which is walked again: it may be another by then
            if os.path.commonpath([self.base, real]) != self.base:
                self._leaves()
            target = os.path.relpath(real, self.base)
            while len(self._folders) > 1:
                os.close(self._folders.pop())
            self._names.clear()
        self._ahead[:0] = _parts(target)
        return True

    def _count(self) -> None:
        self._links += 1
        if self._links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), self.shown)

    def _leaves(self) -> NoReturn:
        raise PathOutsideBaseError(self._name, self._asked)

    def close(self) -> None:
        """Close all folders on the way."""
        while self._folders:
            os.close(self._folders.pop())


@contextlib.contextmanager
def _deleting(name: str, path: str) -> Iterator[None]:
    """Say in words what is no file that could be deleted."""
    try:
        yield
    except IsADirectoryError:
        raise is_folder(name, path) from None
    except FileNotFoundError:
        raise is_missing(name, path) from None


def is_folder(name: str, path: str) -> IsADirectoryError:
    """Make the error for a folder that is no file."""
    return IsADirectoryError(f"{path!r} of {name!r} is a folder; delete its files")


def is_missing(name: str, path: str) -> FileNotFoundError:
    """Make the error for a file that is not there."""
    return FileNotFoundError(f"there is no file {path!r} in {name!r}")


@contextlib.contextmanager
def _telling(shown: str) -> Iterator[None]:
    """Let an error of this disk name the whole path: a name in an open folder says little."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = shown, None
        raise


DiskFolder: TypeAlias = OpenFolders | NamedFolders


def folder_of_disk(name: str, base: str) -> DiskFolder:
    """Return the folder *base*, which is no link, in the safest way that this system has."""
    return OpenFolders(name, base) if HAS_DIR_FD else NamedFolders(name, base)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _copy_mode(spot: Spot, file: IO[bytes]) -> None:
    """Give *file* the mode of what it replaces."""
    with contextlib.suppress(FileNotFoundError):
        old = os.stat(spot.name, dir_fd=spot.folder, follow_symlinks=False)
        if stat.S_ISREG(old.st_mode):
            file.flush()
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))


def _names(folder: int, path: str, *, recursive: bool) -> Iterator[str]:
    """Yield the names in *folder*, which is closed then; a link below it is a name, and not followed."""
    try:
        below: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if recursive and entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                else:
                    yield f"{path}/{entry.name}" if path else entry.name
        for name in below:
            with contextlib.suppress(OSError):  # gone meanwhile, or not to be read
                inner = os.open(name, LIST, dir_fd=folder)
                yield from _names(inner, f"{path}/{name}" if path else name, recursive=True)
    finally:
        os.close(folder)
