"""Connections of asynchronous drivers belong to the event loop that made them: what becomes of them elsewhere."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from wirestate.resources.database.deadlines import hang_up
from wirestate.resources.native_pools import tell_cut_off
from wirestate.waiting import running_loop


class LoopWatch:
    """Know the event loop of each connection of one engine, which several loops may use in turn.

    A connection that comes to another loop than its own is cut off, and a new one made.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._name = name
        self._loops: WeakKeyDictionary[ConnectionPoolEntry, AbstractEventLoop] = WeakKeyDictionary()
        event.listen(engine.pool, "connect", self._made)
        event.listen(engine.pool, "checkout", self._taken)

    @property
    def needs_loop(self) -> bool:
        """Whether a connection can be closed in its event loop only."""
        return any(not loop.is_closed() for _, loop in self._open())

    def cut_off(self) -> None:
        """Cut off the connections of all other loops than the running one."""
        here = running_loop()
        self._cut(entry for entry, loop in self._open() if loop is not here)

    def _open(self) -> list[tuple[ConnectionPoolEntry, AbstractEventLoop]]:
        return [(entry, loop) for entry, loop in list(self._loops.items()) if entry.dbapi_connection is not None]

    def _made(self, connection: object, entry: ConnectionPoolEntry) -> None:
        loop = running_loop()
        if loop is not None:
            self._loops[entry] = loop

    def _taken(self, connection: object, entry: ConnectionPoolEntry, proxy: object) -> None:
        if self._loops.get(entry) is not running_loop():
            self._cut([entry])
            raise DisconnectionError("it belongs to another event loop")

    def _cut(self, entries: Iterable[ConnectionPoolEntry]) -> None:
        count = 0
        for entry in entries:
            end_elsewhere(entry.driver_connection, self._loops.pop(entry, None))
            entry.dbapi_connection = None  # type: ignore[misc]  # SQLAlchemy itself would close it in this loop
            count += 1
        tell_cut_off(self._name, count)


def end_elsewhere(driver: Any, loop: AbstractEventLoop | None) -> None:  # Any: a driver's connection
    """Cut off a connection from outside of its loop; where that runs, in it."""
    if loop is not None and loop.is_running():
        loop.call_soon_threadsafe(hang_up, driver)
    else:
        hang_up(driver)
