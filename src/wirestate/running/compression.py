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
from typing import Any, BinaryIO, Protocol, cast

# A block of zstd may hold 128 KiB in 4 bytes, and zstandard gives out at once all that it was given.
_PIECE = 1024
_LIMIT = 1 << 16  # bytes that the other decompressors give out at once


def need(module: str, what: str) -> ModuleType:
    """Import *module*, or say how to install what *what* needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module}: pip install {module}") from error


class _Streams(io.RawIOBase):
    """The content of compressed streams, or frames, one after the other.

    The readers of bz2, lzma and Python 3.14 take a later stream that is damaged for the end of the file, and the
    one of zstandard a frame cut short for a whole one.

    Args:
        raw: the compressed bytes.
        kind: the name of the compression.
        new_stream: makes a decompressor of one stream (Any: the libraries give theirs no common type).
        padding: how many zeros, or a multiple of that, may stand behind a stream; 0 is none.
    """

    def __init__(self, raw: BinaryIO, kind: str, new_stream: Callable[[], Any], padding: int = 0) -> None:
        self._raw = raw
        self._kind = kind
        self._new_stream = new_stream
        self._padding = padding
        self._zeros = 0  # read since the last stream
        self._stream: Any = new_stream()  # None between two; a file without any is cut short too
        self._limits = (_LIMIT,) if hasattr(self._stream, "needs_input") else ()  # zstandard has none
        self._unread = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:  # Any: a writable buffer
        while not self._content:
            data = b""
            if getattr(self._stream, "needs_input", True):
                data = self._unread or self._raw.read(_PIECE)
                self._unread = b""
                if not data:
                    self._end()
                    return 0
                if self._stream is None and not (data := self._begin(data)):
                    continue
            stream = cast(Any, self._stream)  # there is one: it needs no input, or _begin() has made it
            self._content = memoryview(stream.decompress(data, *self._limits))
            if stream.eof:
                self._unread = stream.unused_data
                self._stream = None
        size = min(len(target), len(self._content))
        target[:size] = self._content[:size]
        self._content = self._content[size:]
        return size

    def _begin(self, data: bytes) -> bytes:
        """Return *data* without the zeros in front, and begin a stream if something is left."""
        if self._padding:
            rest = data.lstrip(b"\0")
            self._zeros += len(data) - len(rest)
            data = rest
        if data:
            self._check_padding()
            self._stream = self._new_stream()
        return data

    def _end(self) -> None:
        if self._stream is not None:
            raise EOFError(f"the file ends inside a {self._kind} stream; is it whole?")
        self._check_padding()

    def _check_padding(self) -> None:
        if self._padding and self._zeros % self._padding:
            raise EOFError(f"{self._zeros} zeros stand behind a {self._kind} stream; is the file whole?")
        self._zeros = 0


def _gzip(raw: BinaryIO) -> Any:  # Any: as _READERS
    file = gzip.GzipFile(fileobj=raw, mode="rb")
    if not file.peek(1) and file.mtime is None:  # no header was read: bz2 and lzma refuse that
        raise EOFError("the file is empty, without even the header of gzip; is it whole?")
    return file


def _bzip2(raw: BinaryIO) -> Any:  # Any: as _READERS
    return io.BufferedReader(_Streams(raw, "bzip2", bz2.BZ2Decompressor))


def _xz(raw: BinaryIO) -> Any:  # Any: as _READERS
    # No other format: to the one of old .lzma files, which has no mark, 18 zeros are a file without content.
    return io.BufferedReader(_Streams(raw, "xz", partial(lzma.LZMADecompressor, lzma.FORMAT_XZ), padding=4))


def _zstd(raw: BinaryIO) -> Any:  # Any: as _READERS
    try:
        new_frame = importlib.import_module("compression.zstd").ZstdDecompressor  # Python 3.14
    except ImportError:
        new_frame = need("zstandard", "a .zst file").ZstdDecompressor().decompressobj
    return io.BufferedReader(_Streams(raw, "zstd", new_frame))


_READERS: dict[str, Callable[[BinaryIO], Any]] = {  # Any: a class of each library
    ".gz": _gzip,
    ".bz2": _bzip2,
    ".xz": _xz,
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
