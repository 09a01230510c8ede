"""Writes a file record by record, so that whatever breaks it off leaves whole records."""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Lock, Thread
from typing import NoReturn

from wirestate.errors import SinkError
from wirestate.running.compression import packer_of
from wirestate.running.files import Place, said
from wirestate.running.targets import open_target

_PAUSE = 0.8  # seconds between two times that all is flushed and synced: within a second, with the time that it takes
_PACKED_LIMIT = 1 << 18  # bytes of text that are compressed at once


class OutFile:
    """A file of records; each is flushed, and brought to the disk, within a second of :meth:`add`.

    A file that breaks off, since its disk is full or its process is killed, keeps the name of its part, ends
    behind a whole record and is valid: the array of JSON is closed, the stream of a compression ended.

    Args:
        place: where it is.
        run: distinguishes the part files of several runs.
        tail: what stands behind the last record.
    """

    def __init__(self, place: Place, run: str, tail: bytes) -> None:
        self._place = place
        self._tail = tail
        self._packer = packer_of(place.compression)
        try:
            self._target = open_target(place, run)
        except SinkError:
            raise
        except Exception as error:  # each file system of fsspec raises its own
            raise SinkError(f"sink {place.shown!r} cannot be written: {said(error)}") from place.cause(error)
        self.part = self._target.part  # its name while it is not whole
        self.records = 0  # that were written
        self._end = 0  # bytes that were written
        self._synced = (0, 0)  # as much of both as is on the disk
        self._waiting: list[bytes] = []
        self._size = 0  # bytes that wait
        limit = self._target.limit
        self._limit = _PACKED_LIMIT if limit and place.compression else limit
        self._turn = Lock()
        self._packing = False  # True while waiting records are being packed, and after an interrupt there
        self._whole = False  # True when it is written to its end
        self._finished = False
        self._broken: Exception | None = None
        self._kept = True  # whether a broken file can be read
        self._told = False  # that it is broken
        self._done = Event()
        self._keeper: Thread | None = None

    def add(self, record: bytes) -> bool:
        """Take one record; return True if it is time for :meth:`flush`."""
        self._tell()
        self._waiting.append(record)
        self._size += len(record)
        if self._keeper is None and self.part is not None:
            self._start_keeper()
        return self._size >= self._limit

    def flush(self) -> None:
        """Hand all records over to the operating system.

        Raises:
            SinkError: that cannot be.
        """
        self._flush()
        self._tell()

    def finish(self, tail: bytes) -> None:
        """Write what waits and *tail*, close the file and give it its name.

        Raises:
            SinkError: that cannot be; not if it was raised before.
        """
        self._stop_keeper()
        with self._turn:
            if self._broken is None and not self._finished:
                try:
                    if not self._whole:
                        self._write_last(tail)
                        self._whole = True
                    self._target.finish()
                    self._finished = True
                except Exception as error:  # each file system raises its own
                    self._break_off(error)
        if not self._told:
            self._tell()

    def discard(self) -> None:
        """Close the file and leave nothing of it."""
        self._stop_keeper()
        self._target.discard()

    @property
    def is_empty(self) -> bool:
        """True until a record is taken."""
        return not self.records and not self._waiting

    @property
    def left(self) -> str | None:
        """The name of the part file if it stays."""
        return self.part if self._broken is not None else None

    def _flush(self) -> None:
        with self._turn:
            if self._broken is None and not self._finished:
                try:
                    self._write_waiting()
                except Exception as error:  # as above
                    self._break_off(error)

    def _write_waiting(self) -> None:
        count = len(self._waiting)
        if not count:
            return
        data = b"".join(self._waiting[:count])
        packer, before = self._packer, b""
        if self._packing:  # an interrupt came in between: how much of these the packer has taken is not known
            packer, before = packer_of(self._place.compression), self._packer.end(b"") if self._end else b""
        self._packing = True
        packed = before + packer.pack(data)
        self._target.write(packed + self._closing(), self._end)
        end = self._end + len(packed)
        # No call in between: an interrupt leaves all of it or nothing.
        self._end = end
        self.records += count
        self._size = 0  # a record that comes in this moment is not counted, and flushed a little later
        self._packer = packer
        self._packing = False
        del self._waiting[:count]

    def _write_last(self, tail: bytes) -> None:
        self._write_waiting()
        # An empty file is a file, compressed too.
        last = b"" if self._end else packer_of(self._place.compression).pack(b"")
        last += self._packer.end(tail)
        self._target.write(last, self._end)
        self._target.cut(self._end + len(last))
        self._sync()

    def _closing(self) -> bytes:
        """Return what ends a part file here and now; the next records are written over it.

        So that a process may be killed at any moment, and its file is a whole one.
        """
        return b"" if self.part is None else self._packer.end(self._tail)

    def _break_off(self, error: Exception) -> None:
        self._broken = error
        self._waiting.clear()
        with suppress(Exception):  # as above; its disk may be full
            self._target.cut(self._end)
            if self.records:
                self._target.write(self._closing(), self._end)
        self._kept = self._target.close()
        if not self._kept:
            self.records = 0

    def _tell(self) -> None:
        if self._broken is not None:
            self._told = True
            self._raise(self._broken)

    def _raise(self, error: Exception) -> NoReturn:
        count = f"{self.records:,} whole record{'' if self.records == 1 else 's'}"
        where = "it took" if self.part is None else f"{self.part!r} holds"
        kept = f"{where} {count}" if self._kept else "nothing of it is kept"
        message = f"sink {self._place.shown!r} cannot be written: {said(error)}; {kept}"
        raise SinkError(message) from self._place.cause(error)

    # --- what waits is written in time ----------------------------------------------------

    def _start_keeper(self) -> None:
        self._keeper = Thread(target=self._keep, name="wirestate-writer", daemon=True)
        try:
            self._keeper.start()
        except RuntimeError:  # the system gives no more threads
            self._limit = 0

    def _keep(self) -> None:
        """Flush and sync once a second, whatever the source and the records do meanwhile."""
        while not self._done.wait(_PAUSE):
            self._flush()
            with self._turn:
                written = self._end, self.records
            if self._broken is None and written != self._synced:
                try:
                    self._target.sync()  # others may write meanwhile
                    self._synced = written
                except (OSError, ValueError) as error:  # ValueError: another thread has just closed it
                    self._lose(error)

    def _lose(self, error: Exception) -> None:
        with self._turn:
            if self._broken is None and not self._finished:
                self._end, self.records = self._synced
                self._break_off(error)

    def _sync(self) -> None:
        try:
            self._target.sync()
        except OSError:  # nobody knows what the disk took of the rest
            self._end, self.records = self._synced
            raise

    def _stop_keeper(self) -> None:
        self._done.set()
        if self._keeper is not None and self._keeper.ident is not None:
            self._keeper.join()
