"""Reads and writes through gzip, bzip2, xz and zstd; a file that was cut off is an error with each of them."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, BinaryIO, Literal

Mode = Literal["rb", "wb"]
# One of its blocks may hold 128 KiB in 4 bytes, and a decompressor gives out all that it was given.
_PIECE = 1024


def need(module: str, what: str) -> ModuleType:
    """Import *module*, or say how to install what *what* needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module}: pip install {module}") from error


class _ZstdFrames(io.RawIOBase):
    """The content of zstd frames one after the other; the reader of zstandard takes a frame cut short for a whole one.

    Args:
        raw: the compressed bytes.
        new_frame: makes a decompressor of one frame (Any: zstandard gives its classes no common type).
    """

    def __init__(self, raw: BinaryIO, new_frame: Callable[[], Any]) -> None:
        self._raw = raw
        self._new_frame = new_frame
        self._frame: Any = new_frame()  # None between two frames; a file without any is cut short too
        self._unread = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:  # Any: a writable buffer
        while not self._content:
            data = self._unread or self._raw.read(_PIECE)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame; is it whole?")
                return 0
            frame = self._frame or self._new_frame()
            self._content = memoryview(frame.decompress(data))
            self._unread = frame.unused_data
            self._frame = None if frame.eof else frame
        size = min(len(target), len(self._content))
        target[:size] = self._content[:size]
        self._content = self._content[size:]
        return size


def _gzip(raw: BinaryIO, mode: Mode) -> Any:  # Any: as _PACKERS
    file = gzip.GzipFile(fileobj=raw, mode=mode)
    if mode == "rb" and not file.peek(1) and file.mtime is None:  # no header was read: bz2 and lzma refuse that
        raise EOFError("the file is empty, without even the header of gzip; is it whole?")
    return file


def _zstd(raw: BinaryIO, mode: Mode) -> Any:  # Any: as _PACKERS
    with suppress(ImportError):
        return importlib.import_module("compression.zstd").open(raw, mode)  # Python 3.14
    zstandard = need("zstandard", "a .zst file")
    if mode == "wb":
        return zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
    return io.BufferedReader(_ZstdFrames(raw, zstandard.ZstdDecompressor().decompressobj))


_PACKERS: dict[str, Callable[[BinaryIO, Mode], Any]] = {  # Any: a class of each library
    ".gz": _gzip,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
SUFFIXES = tuple(_PACKERS)


def packed(raw: BinaryIO, mode: Mode, suffix: str) -> Any:  # Any: a file object of each library
    """Return what reads or writes *raw* through the compression that *suffix* names."""
    return _PACKERS[suffix](raw, mode)
