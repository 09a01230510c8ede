"""Finds the format of a path by its suffix, and opens local files and URLs, compressed or not."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO, Literal, cast
from urllib.parse import urlsplit

from wirestate.errors import NotAvailableError, SinkError, SourceError, listed, nearest
from wirestate.redaction import quoted, without_secrets
from wirestate.running.compression import SUFFIXES, need, unpacked

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
    descriptor: int | None = None  # of a named pipe that is open already

    @property
    def shown(self) -> str:
        return without_secrets(self.path)

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
    shown = without_secrets(text)
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
        raw = opened.enter_context(_open_bytes(place))
        if place.compression == "":
            return raw
        return cast(BinaryIO, opened.enter_context(unpacked(raw, place.compression)))
    except Exception as error:  # each file system of fsspec raises its own
        raise SourceError(f"source {place.shown!r} cannot be opened: {said(error)}") from place.cause(error)


def said(error: BaseException) -> str:
    """Return what *error* says, without the path that an OSError repeats, and without passwords."""
    if isinstance(error, ImportError):
        text = str(error)  # it says what to install
    else:
        text = (isinstance(error, OSError) and error.strerror) or quoted(error)
    return without_secrets(text)


def _open_bytes(place: Place) -> BinaryIO:
    return open_url(place.path, "rb") if place.is_url else open(place.path, "rb")


def open_url(url: str, mode: Literal["rb", "wb"]) -> BinaryIO:
    """Open *url* by fsspec; an ImportError says what to install."""
    fsspec = need("fsspec", "a URL")
    try:
        return cast(BinaryIO, fsspec.open(url, mode).open())
    except ImportError as error:
        protocol = url.partition("://")[0]
        packages = _PACKAGES.get(protocol)
        why = str(error) if packages is None else f"'{protocol}://' needs a package: pip install {packages}"
        raise ImportError(why) from error
