"""Where the bytes of an output go: a file that takes its name when it is whole, a device or pipe, a URL."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from io import FileIO
from typing import Any, Protocol

from wirestate.errors import SinkError
from wirestate.running.files import Place, open_url

# Names of what this process has open. A shell's file is shared with the shell: it is written on, and not replaced.
_DESCRIPTOR = re.compile(r"/(?:dev/(?:fd/(\d+)|stdin|(stdout)|(stderr))|proc/self/fd/(\d+))")
_PRIVATE = 0o600


class Target(Protocol):
    """Takes bytes; *at* says how many came before, and what was written behind that is written over."""

    part: str | None  # the name of the file while it is not whole
    limit: int  # bytes that may wait before they are written

    def write(self, data: bytes, at: int) -> None: ...

    def finish(self) -> None:
        """Make what was written whole under its name; may be called again after an interrupt."""
        ...

    def cut(self, at: int) -> None:
        """Drop what was written behind *at*."""
        ...

    def sync(self) -> None:
        """Bring what was written to the disk; takes its time, and holds up no other call."""
        ...

    def close(self) -> bool:
        """Close what broke off; return True if what was written can be read."""
        ...

    def discard(self) -> None:
        """Close it and leave nothing behind."""
        ...


class PartFile:
    """A file beside its target, ``<target>.<run>.part``, that is renamed at the end.

    Links are followed to their target first, so that they stay links.
    """

    part: str | None
    limit = 1 << 13

    def __init__(self, path: str, run: str) -> None:
        suffix = f".{run}.part"
        self._target = os.path.realpath(path)  # absolute: a function of the machine may change the folder
        self._path = self._target + suffix
        self.part = (self._target if os.path.islink(path) else path) + suffix
        try:
            mode = stat.S_IMODE(os.stat(self._target).st_mode)
        except FileNotFoundError:
            mode = None
        # Private from its first moment on, if what it replaces is.
        first = 0o666 if mode is None else mode & _PRIVATE
        self._raw = FileIO(self._path, "xb", opener=lambda name, flags: os.open(name, flags, first))
        try:
            if mode is not None:
                os.chmod(self._path, mode)
            self._inode = os.fstat(self._raw.fileno()).st_ino
        except BaseException:
            self.discard()
            raise

    def write(self, data: bytes, at: int) -> None:
        self._raw.seek(at)
        _write_all(self._raw, data)

    def sync(self) -> None:
        copy = os.dup(self._raw.fileno())  # the file may be closed meanwhile
        try:
            os.fsync(copy)
        finally:
            os.close(copy)

    def finish(self) -> None:
        self._raw.close()
        try:
            os.replace(self._path, self._target)
        except FileNotFoundError:
            if os.stat(self._target).st_ino != self._inode:  # else an interrupt came after the renaming
                raise

    def cut(self, at: int) -> None:
        self._raw.truncate(at)

    def close(self) -> bool:
        with suppress(OSError):
            self._raw.close()
        return True

    def discard(self) -> None:
        self.close()
        with suppress(OSError):
            os.remove(self._path)


class Direct:
    """A device, a pipe or an open descriptor: there is nothing to rename, and nothing can be taken back."""

    part: str | None = None
    limit = 0

    def __init__(self, path: str, opened: int | None = None) -> None:
        self._writing = False  # True while something is written, and after an interrupt there
        named = _DESCRIPTOR.fullmatch(path)
        if opened is not None:
            self._raw = FileIO(os.dup(opened), "wb")
        elif named is None:
            self._raw = FileIO(path, "wb")
        else:
            number, out, err, other = named.groups()
            descriptor = 1 if out else 2 if err else int(number or other or 0)
            self._raw = FileIO(os.dup(descriptor), "wb")

    def write(self, data: bytes, at: int) -> None:
        # Not once more: a part of it may be out already, and a reader that stalls would hold up the end, too.
        if self._writing:
            raise OSError("writing was interrupted")
        self._writing = True
        _write_all(self._raw, data)
        self._writing = False

    def finish(self) -> None:
        self._raw.close()

    def cut(self, at: int) -> None:
        """Leave what was written: it is out."""

    def sync(self) -> None:
        """Leave the pace to the other side."""

    def close(self) -> bool:
        with suppress(OSError):
            self._raw.close()
        return True

    def discard(self) -> None:
        self.close()


class Upload:
    """A URL: most stores show a new file when it is closed, and none before."""

    part: str | None = None
    limit = 1 << 16

    def __init__(self, path: str) -> None:
        self._raw: Any = open_url(path, "wb")  # Any: each file system of fsspec has its own

    def write(self, data: bytes, at: int) -> None:
        self._raw.write(data)

    def finish(self) -> None:
        self._raw.close()

    def cut(self, at: int) -> None:
        """Leave what was sent; :meth:`close` throws it away where that can be."""

    def sync(self) -> None:
        """Leave it to the store."""

    def close(self) -> bool:
        is_buffered = hasattr(self._raw, "blocksize")  # by fsspec, until it is closed
        with suppress(Exception):  # each file system raises its own, and it is broken already
            if is_buffered:
                self._raw.closed = True  # a later close, as at its collection, would store the half that was sent
                self._raw.discard()
            else:
                self._raw.close()
        return not is_buffered

    def discard(self) -> None:
        self.close()


def names_descriptor(path: str) -> bool:
    """Return True if *path* is a name of what this process has open."""
    return _DESCRIPTOR.fullmatch(path) is not None


def open_target(place: Place, run: str) -> Target:
    """Open what *place* names, to be written by *run*.

    Raises:
        SinkError: it is a folder, or in a folder that does not exist.
    """
    path = place.path
    if place.is_url:
        return Upload(path)
    if place.descriptor is not None or names_descriptor(path):
        return Direct(path, place.descriptor)
    if os.path.isdir(path):
        raise SinkError(f"sink {path!r} is a folder; name a file in it")
    folder = os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path)
    if folder and not os.path.isdir(folder):
        raise SinkError(f"sink {path!r} cannot be written: its folder {folder!r} does not exist")
    if os.path.exists(path) and not os.path.isfile(path):
        return Direct(path)
    return PartFile(path, run)


def _write_all(raw: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = raw.write(view)
        if written is None:
            raise BlockingIOError("the other side does not read, and the pipe was opened not to wait")
        view = view[written:]
