"""Reads and writes through gzip, bzip2, xz and zstd; a file that was cut off is an error with each of them."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any, BinaryIO, Protocol

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


def _gzip(raw: BinaryIO) -> Any:  # Any: as _READERS
    file = gzip.GzipFile(fileobj=raw, mode="rb")
    if not file.peek(1) and file.mtime is None:  # no header was read: bz2 and lzma refuse that
        raise EOFError("the file is empty, without even the header of gzip; is it whole?")
    return file


def _zstd(raw: BinaryIO) -> Any:  # Any: as _READERS
    with suppress(ImportError):
        return importlib.import_module("compression.zstd").open(raw, "rb")  # Python 3.14
    zstandard = need("zstandard", "a .zst file")
    return io.BufferedReader(_ZstdFrames(raw, zstandard.ZstdDecompressor().decompressobj))


_READERS: dict[str, Callable[[BinaryIO], Any]] = {  # Any: a class of each library
    ".gz": _gzip,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}
SUFFIXES = tuple(_READERS)


def unpacked(raw: BinaryIO, suffix: str) -> Any:  # Any: a file object of each library
    """Return what reads *raw* through the compression that *suffix* names."""
    return _READERS[suffix](raw)


class Packer(Protocol):
    """Compresses a file piece by piece, so that a file which ends behind any piece can be read to there."""

    def pack(self, data: bytes, /) -> bytes:
        """Return *data* compressed."""
        ...

    def end(self, tail: bytes) -> bytes:
        """Return what ends the file behind *tail*; it depends on no piece before."""
        ...


class _Members:
    """Each piece is a whole file of its own: a gzip member, a bzip2 or xz stream; they are read as one."""

    def __init__(self, compress: Callable[[bytes], bytes]) -> None:
        self.pack = compress

    def end(self, tail: bytes) -> bytes:
        return self.pack(tail) if tail else b""


class _ZstdFrame:
    """One frame whose blocks end with each piece: many readers of zstd stop silently behind a first frame."""

    def __init__(self) -> None:
        with suppress(ImportError):
            made = importlib.import_module("compression.zstd").ZstdCompressor()  # Python 3.14
            self.pack: Callable[[bytes], bytes] = lambda data: made.compress(data, made.FLUSH_BLOCK)
            return
        zstandard = need("zstandard", "a .zst file")
        frame = zstandard.ZstdCompressor().compressobj()
        self.pack = lambda data: frame.compress(data) + frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def end(self, tail: bytes) -> bytes:
        # A last block that is not compressed (RFC 8878, 3.1.1.2): it fits behind any block, whatever came after that.
        return (len(tail) << 3 | 1).to_bytes(3, "little") + tail


class _Plain:
    def pack(self, data: bytes, /) -> bytes:
        return data

    def end(self, tail: bytes) -> bytes:
        return tail


_PACKERS: dict[str, Callable[[], Packer]] = {
    "": _Plain,
    ".gz": lambda: _Members(partial(gzip.compress, mtime=0)),
    ".bz2": lambda: _Members(bz2.compress),
    ".xz": lambda: _Members(lzma.compress),
    ".zst": _ZstdFrame,
}


def packer_of(suffix: str) -> Packer:
    """Return what compresses one file as *suffix* says, or leaves it as it is."""
    return _PACKERS[suffix]()
