"""The pools of engines: SQLAlchemy's, of which the rest can be counted, thinned out and filled up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord


class EnginePool(QueuePool):
    """A ``QueuePool`` that puts entries without a connection below all others.

    An entry whose connection was closed stays as a right to connect: giving the right itself back would wake
    nobody who waits for it.
    """

    resting: set[ConnectionPoolEntry]  # those with a connection
    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"  # where SQLAlchemy's users look for it

    def __init__(self, *args: Any, **settings: Any) -> None:  # Any: what QueuePool takes
        super().__init__(*args, **settings)
        self.resting = set()
        self.disposed = False
        # Keeps other threads out; an event loop does not switch without an await.
        self._alone: AbstractContextManager[object] = getattr(self._pool, "mutex", None) or nullcontext()

    def _do_get(self) -> ConnectionPoolEntry:
        entry = super()._do_get()
        self.resting.discard(entry)
        return entry

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if record.dbapi_connection is not None:
            with self._alone:
                if not self.disposed:
                    self.resting.add(record)
                    super()._do_return_conn(record)
                    return
            record.close()
        with self._arranged() as entries:
            entries.insert(0, record)

    @property
    def total(self) -> int:
        """How many connections there are, with those that are being made."""
        # A task that waited in line has its entry an iteration of the loop before it is taken off the resting ones.
        return min(self.size(), len(self.resting) + self.checkedout())

    def thin_out(self, tired: Callable[[ConnectionPoolEntry], bool]) -> None:
        """Close what rests and is *tired*; it is asked for the longest rested first."""
        with self._arranged() as entries:
            ending = [entry for entry in entries if entry in self.resting and tired(entry)]
            entries[:] = [entry for entry in entries if entry not in ending]
            self.resting.difference_update(ending)
        for entry in ending:
            try:
                entry.close()
            finally:
                self._do_return_conn(entry)

    def fill_up(self, size: int) -> None:
        """Connect until there are *size* connections.

        Raises:
            Exception: what connecting raises.
        """
        while self.total < size and not self.disposed:
            with self._arranged() as entries:
                entry = entries.pop(0) if entries and entries[0] not in self.resting else None
            if entry is None:
                if not self._inc_overflow():
                    return
                entry = _ConnectionRecord(self, connect=False)
            try:
                entry.get_connection()  # type: ignore[attr-defined]  # as QueuePool itself does with its entries
            finally:
                self._do_return_conn(entry)

    @contextmanager
    def _arranged(self) -> Iterator[list[ConnectionPoolEntry]]:
        """Hold what rests, the longest rested first, to be changed."""
        with self._alone:
            entries: list[ConnectionPoolEntry] = []
            while not self._pool.empty():
                entries.insert(0, self._pool.get_nowait())
            try:
                yield entries
            finally:
                for entry in entries:
                    self._pool.put_nowait(entry)

    def dispose(self) -> None:
        with self._alone:
            self.disposed = True  # what comes back later is closed then
        super().dispose()
        self.resting.clear()


class AsyncEnginePool(EnginePool, AsyncAdaptedQueuePool):
    """The same for an event loop."""
