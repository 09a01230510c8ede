"""The entries of a pool: which exist, which rest, and who may have one now."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections import Counter, deque
from collections.abc import Coroutine
from typing import Any

from wirestate.observing import Listener
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.line import INF, Line, Place
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.reports import logger
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive, running_loop

DESTROY_LIMIT = 5.0  # seconds that an asynchronous destruction may take
ALWAYS = 0.0  # a moment to check that has always passed


class Entry(Place):
    """A place in a pool, with the resource in it."""

    __slots__ = ("check_at", "creating", "doomed", "expires", "loop", "made", "resource", "warned_at")

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.resource: Any = None  # Any: whatever the provider makes
        self.made = False
        self.creating = False  # it counts against max_creating
        self.expires = INF
        self.check_at = ALWAYS
        self.loop: AbstractEventLoop | None = None  # the only one that may use it
        self.doomed = ""  # why it is being destroyed
        self.warned_at = 0.0


class Store(Line[Entry]):
    """A line whose places hold resources; it destroys them, and knows nothing of making or checking."""

    def __init__(self, calls: ProviderCalls, config: PoolConfig, name: str, listener: Listener | None) -> None:
        self.config = config
        self._calls = calls
        self._max_creating = config.max_creating or config.max_size
        self._tasks: set[asyncio.Task[None]] = set()  # a loop refers to its tasks only weakly
        self._destroyed = 0
        self._discards: Counter[str] = Counter()
        super().__init__(name, config.max_size, config.acquire_timeout, config.max_waiting, listener)
        self._bound = calls.is_async

    def _reset(self) -> None:
        super()._reset()
        self._creating = 0
        self._moving = 0  # entries whose place goes to another loop
        self._condemned: deque[Entry] = deque()  # lost, to be destroyed; their places are free already

    # --- decisions: the lock is held -----------------------------------------------------------

    def _pick(self, loop: AbstractEventLoop | None) -> Entry | None:
        if self._idle:
            try:
                entry = self._idle.pop()
            except IndexError:  # another thread was faster
                return self._blank()
            if not self._bound or entry.loop is loop:
                return entry
            self._idle.append(entry)
            return self._search_idle(loop) or self._blank()
        return self._blank()

    def _blank(self) -> Entry | None:
        """Return an entry without a resource, and with it the right to make one."""
        if not self._spare or self._creating >= self._max_creating or self._closed:
            return None
        entry = Entry(self)
        self._places.add(entry)
        self._spare -= 1
        self._creating += 1
        entry.alive = entry.creating = True  # no call in between: an interrupt cannot split these
        return entry

    def _search_idle(self, loop: AbstractEventLoop | None) -> Entry | None:
        """Return the entry of *loop* that rested least; let go of those whose loop is closed."""
        others: list[Entry] = []
        try:
            while self._idle:
                entry = self._idle.pop()
                if entry.loop is loop:
                    return entry
                if entry.loop is None or entry.loop.is_closed():
                    entry.doomed = "loop closed"  # nothing can be awaited there any more
                    self._retire(entry)
                else:
                    others.append(entry)
        except IndexError:  # another thread was faster
            pass
        finally:
            self._idle.extend(reversed(others))
        return None

    def _unpick(self, place: Entry) -> None:
        if place.made:
            self._idle.append(place)
        else:
            self._retire(place)

    def _make_room(self) -> None:
        # What rests on other loops makes room for the first in line: its place moves, it does not.
        while self._idle and self._bound and self._moving < len(self._waiting):
            entry = self._idle.popleft()
            entry.doomed = "moved"
            self._moving += 1
            if not self._send_home(entry):
                self._retire(entry)

    def _retire(self, place: Entry) -> None:
        super()._retire(place)
        self._uncount(place)
        if place.made:
            self._destroyed += 1
            self._discards[place.doomed] += 1

    def _recount(self) -> None:
        super()._recount()
        entries = [entry for entry in self._places if entry.alive]
        self._creating = sum(entry.creating for entry in entries)
        self._moving = sum(entry.doomed == "moved" for entry in entries)

    def _uncount(self, entry: Entry) -> None:
        if entry.creating:
            self._creating -= 1
            entry.creating = False
        if entry.doomed == "moved":
            self._moving -= 1

    def _salvage(self, place: Entry) -> None:
        if place.made:
            place.doomed = "lost"
            self._condemned.append(place)

    # --- destruction ----------------------------------------------------------------------------

    async def discard(self, entry: Entry, world: World, error: BaseException | None = None) -> None:
        """Destroy the resource of *entry*, on the loop that it is bound to, and free its place."""
        if entry.loop is None or entry.loop is running_loop():
            try:
                await self._destroy(entry.resource, error, world)
            finally:
                self._drop(entry)
        elif not self._send_home(entry):
            self._drop(entry)

    def abandon(self, entry: Entry, reason: str, error: BaseException | None = None) -> None:
        """Discard *entry* where nothing can be awaited: here, or later on its loop."""
        entry.doomed = reason
        if not self._calls.release_is_async:
            drive(self.discard(entry, BLOCKING, error))
        elif not self._send_home(entry):
            self._drop(entry)

    def _send_home(self, entry: Entry) -> bool:
        """Discard *entry* on its own loop, soon; False if that loop is closed."""
        try:
            if entry.loop is not None:
                entry.loop.call_soon_threadsafe(lambda: self._spawn(self.discard(entry, SUSPENDING)))
                return True
        except RuntimeError:
            pass
        return False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:  # Any: what a coroutine yields is its loop's
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self, entry: Entry) -> None:
        with self._lock:
            if entry.alive:
                self._retire(entry)
            else:  # lost: its place is free already
                self._destroyed += 1
                self._discards[entry.doomed] += 1
        self._serve()

    async def _destroy(self, resource: Any, error: BaseException | None, world: World) -> None:  # Any: see Entry
        calls = self._calls
        try:
            done = calls.release(resource, error=error) if calls.release_takes_error else calls.release(resource)
            if calls.release_is_async:
                await world.bounded(done, DESTROY_LIMIT)
        except Exception as failure:  # it is gone either way, and the others still are to be destroyed
            logger.warning("pool %r: destroying a resource failed: %s: %s", self.name, type(failure).__name__, failure)

    async def _sweep(self, world: World) -> None:
        """Destroy what was lost."""
        while self._condemned:
            await self.discard(self._condemned.popleft(), world)

    async def _empty(self, world: World) -> None:
        """Destroy what rests."""
        while self._idle:
            try:
                entry = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            entry.doomed = "closed"
            await self.discard(entry, world)
        await self._sweep(world)
