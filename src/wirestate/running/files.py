"""Finds the format of a path by its suffix, and opens local files and URLs, compressed or not."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from threading import Lock
from typing import BinaryIO, Literal, NoReturn, cast
from urllib.parse import urlsplit

from wirestate.errors import NotAvailableError, SinkError, SourceError, listed, nearest
from wirestate.resources.secrets import without_credentials
from wirestate.running.compression import SUFFIXES, Mode, need, packed

Format = Literal["csv", "tsv", "jsonl", "json", "txt"]
Path = str | os.PathLike[str]
FORMATS: tuple[Format, ...] = ("csv", "tsv", "jsonl", "json", "txt")
_BY_SUFFIX: dict[str, Format] = {**{f".{name}": name for name in FORMATS}, ".ndjson": "jsonl"}
# What fsspec does not bring by itself.
_PACKAGES = {
    "s3": "'wirestate[s3]'",
    "s3a": "'wirestate[s3]'",
    "http": "requests aiohttp",
    "https": "requests aiohttp",
    "sftp": "paramiko",
    "ssh": "paramiko",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A path or URL, and what its name says about its content; ``shown`` is the path as messages may show it."""

    path: str = field(repr=False)
    format: Format
    compression: str
    is_url: bool

    @property
    def shown(self) -> str:
        return without_credentials(self.path)

    def cause(self, error: Exception) -> Exception | None:
        """Return what a traceback may show as the cause: a library's own text may quote a password of the URL."""
        return error if self.shown == self.path else None


def local_path(path: Path) -> str | None:
    """Return the path on a disk that *path* names, also as a ``file://`` URL; None for other URLs."""
    text = os.fspath(path)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    return os.path.expanduser(rest) if scheme.lower() in ("file", "local") and "::" not in rest else None


def place_of(
    path: Path,
    fault: type[SourceError] | type[SinkError],
    *,
    chosen: str | None = None,
    fallback: str | None = None,
) -> Place:
    """Return the place that *path* names.

    Args:
        path: a local path or any URL that fsspec opens.
        fault: the error to raise when the format is not known.
        chosen: the format whatever the suffix says.
        fallback: the format where the suffix says nothing.
    """
    local = local_path(path)
    is_url = local is None
    text = os.fspath(path) if local is None else local
    shown = without_credentials(text)
    suffixes = PurePosixPath(urlsplit(text).path if is_url else text.replace(os.sep, "/")).suffixes
    compression = suffixes.pop().lower() if suffixes and suffixes[-1].lower() in SUFFIXES else ""
    suffix = suffixes[-1].lower() if suffixes else ""
    if (chosen or suffix.lstrip(".")) == "parquet":
        raise NotAvailableError(f"{shown!r}: a later release reads and writes Parquet; use csv or jsonl for now")
    found = chosen or _BY_SUFFIX.get(suffix) or fallback
    if found is None:
        near = nearest(suffix, _BY_SUFFIX)
        hint = f"; did you mean {near!r}? Or" if near else ";"
        raise fault(
            f"{shown!r}: suffix {suffix!r} names no known format{hint} say the format (format=, --format), "
            f"one of {listed(FORMATS)}"
        )
    if found not in FORMATS:
        near = nearest(found, FORMATS)
        hint = f"; did you mean {near!r}?" if near else ";"
        raise fault(f"{shown!r}: format {found!r} is not known{hint} formats: {listed(FORMATS)}")
    return Place(text, found, compression, is_url)


def open_to_read(place: Place, opened: ExitStack) -> BinaryIO:
    """Open *place* for bytes; *opened* closes all that this takes.

    Raises:
        SourceError: it does not exist, or cannot be opened.
    """
    try:
        return _packed(place, opened.enter_context(_open_bytes(place, place.path, "rb")), "rb", opened)
    except Exception as error:  # each file system of fsspec raises its own
        raise SourceError(f"source {place.shown!r} cannot be opened: {said(error)}") from place.cause(error)


class OutFile:
    """Text that is written beside its target as ``name.part``, and takes the name when it is whole.

    A URL, a device or a pipe is written directly: there is nothing to rename. ``broken`` is the error
    that ended it; then nothing is left of it.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._opened = ExitStack()
        self.broken: Exception | None = None
        self._turn = Lock()  # a cancelled task leaves the thread behind that writes for it
        direct = place.is_url or (os.path.exists(place.path) and not os.path.isfile(place.path))
        self._written = place.path if direct else place.path + ".part"
        if os.path.isdir(place.path):
            raise SinkError(f"sink {place.path!r} is a folder; name a file in it")
        folder = os.path.dirname(place.path)
        if folder and not place.is_url and not os.path.isdir(folder):
            raise SinkError(f"sink {place.path!r} cannot be written: its folder {folder!r} does not exist")
        try:
            raw = self._opened.enter_context(_open_bytes(place, self._written, "wb"))
            packed = _packed(place, raw, "wb", self._opened)
            self._text = self._opened.enter_context(io.TextIOWrapper(packed, encoding="utf-8", newline=""))
        except Exception as error:  # each file system of fsspec raises its own
            self._give_up(error)

    def write(self, text: str) -> None:
        if self.broken is not None:
            raise SinkError(self._message(self.broken))
        try:
            with self._turn:
                self._text.write(text)
        except UnicodeEncodeError:  # nothing of it was written: the fault of one record
            raise
        except Exception as error:  # as above
            self._give_up(error)

    def finish(self) -> None:
        """Close the file and give it its name."""
        try:
            with self._turn:
                self._opened.close()
            if self._written != self._place.path:
                os.replace(self._written, self._place.path)
        except Exception as error:  # as above
            self._give_up(error)

    def discard(self) -> None:
        """Close the file and leave nothing of it."""
        with suppress(Exception):
            self._opened.close()
        if self._written != self._place.path:
            with suppress(OSError):
                os.remove(self._written)

    def _give_up(self, error: Exception) -> NoReturn:
        # A failed write drops what was buffered, so the file would have a hole.
        self.broken = error
        self.discard()
        raise SinkError(self._message(error)) from self._place.cause(error)

    def _message(self, error: Exception) -> str:
        return f"sink {self._place.shown!r} cannot be written: {said(error)}"


def said(error: BaseException) -> str:
    """Return what *error* says, without the path that an OSError repeats, and without passwords."""
    if isinstance(error, ImportError):
        text = str(error)  # it says what to install
    else:
        text = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
    return without_credentials(text)


def _open_bytes(place: Place, path: str, mode: Mode) -> BinaryIO:
    if not place.is_url:
        return open(path, mode)
    fsspec = need("fsspec", "a URL")
    try:
        return cast(BinaryIO, fsspec.open(path, mode).open())
    except ImportError as error:
        protocol = path.partition("://")[0]
        packages = _PACKAGES.get(protocol)
        why = str(error) if packages is None else f"'{protocol}://' needs a package: pip install {packages}"
        raise ImportError(why) from error


def _packed(place: Place, raw: BinaryIO, mode: Mode, opened: ExitStack) -> BinaryIO:
    """Return what reads or writes through the compression of *place*."""
    if place.compression == "":
        return raw
    return cast(BinaryIO, opened.enter_context(packed(raw, mode, place.compression)))
