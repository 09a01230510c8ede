"""The entries of a pool: which exist, which rest, and who may have one now."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any
from weakref import WeakSet

from wirestate.errors import printable
from wirestate.observing import Listener
from wirestate.redaction import quoted
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.inherited import keep
from wirestate.resources.line import Line
from wirestate.resources.native_pools import tell_cut_off
from wirestate.resources.places import Place
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.reports import logger
from wirestate.resources.threaded import ThreadedCall
from wirestate.resources.upkeep import INF
from wirestate.waiting import BLOCKING, SUSPENDING, ExpiredError, World, drive, running_loop

LEAST_PATIENCE = 0.1  # seconds for one destruction when others have used up the time for all
ALWAYS = 0.0  # a moment to check that has always passed


class Entry(Place):
    """A place in a pool, with the resource in it."""

    __slots__ = ("creating", "doomed", "expires", "made", "resource", "stuck")

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.resource: Any = None  # Any: whatever the provider makes
        self.made = False
        self.creating = False  # it counts against max_creating
        self.expires = INF
        self.check_at = ALWAYS
        self.doomed = ""  # why it is being destroyed
        self.stuck = False  # a thread still works with it, and destroys it afterwards


class Store(Line[Entry]):
    """A line whose places hold resources; it destroys them, and knows nothing of making or checking."""

    def __init__(self, calls: ProviderCalls, config: PoolConfig, name: str, listener: Listener | None) -> None:
        self.config = config
        self._calls = calls
        self._max_creating = config.max_creating or config.max_size
        self._tasks: set[asyncio.Task[None]] = set()  # a loop refers to its tasks only weakly
        self._destroyed = 0
        self._discards: Counter[str] = Counter()
        super().__init__(
            name,
            config.max_size,
            timeout=config.acquire_timeout,
            max_waiting=config.max_waiting,
            leak_threshold=config.leak_threshold,
            listener=listener,
        )
        self._bound = calls.is_async

    def _reset(self) -> None:
        super()._reset()
        self._creating = 0
        self._moving = 0  # entries whose place goes to another loop
        self._gone: WeakSet[AbstractEventLoop] = WeakSet()  # closed loops whose resources were told of
        self._condemned: deque[Entry] = deque()  # lost, to be destroyed; their places are free already

    def forget_parent(self) -> None:
        keep(self._condemned)
        super().forget_parent()

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
                    self._note_end(entry)
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
            if not self._send_home(entry, partial(self.discard, entry, SUSPENDING)):
                self._retire(entry)
                self._note_end(entry)

    def _retire(self, place: Entry) -> None:
        super()._retire(place)
        self._uncount(place)

    def _note_end(self, entry: Entry) -> None:
        """Count the end of a resource."""
        self._destroyed += 1
        self._discards[entry.doomed] += 1

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

    def _attend(self) -> None:
        super()._attend()
        if self._closed:  # nobody comes any more to destroy what was lost
            self._bury()

    def _longest(self) -> str:
        with self._lock:
            loops = [entry.loop for entry in self._places if entry.doomed == "moved"]
        count = sum(loop is not None and not loop.is_running() for loop in loops)
        waits = f"; {count} belong to event loops that do not run: run or close them" if count else ""
        return super()._longest() + waits

    # --- destruction ----------------------------------------------------------------------------

    async def discard(
        self, entry: Entry, world: World, error: BaseException | None = None, *, until: float = INF
    ) -> None:
        """Destroy the resource of *entry*, on the loop that it is bound to, and free its place."""
        if entry.stuck:
            self._drop(entry, ended=False)
        elif entry.loop is None or entry.loop is running_loop():
            await self._destroy(entry, error, world, until)
        elif not self._send_home(entry, partial(self.discard, entry, SUSPENDING, error)):
            self._drop(entry)
            self._tell_gone(entry)

    def abandon(self, entry: Entry, reason: str, error: BaseException | None = None) -> None:
        """Discard *entry* where nothing can be awaited: here, or later on its loop."""
        entry.doomed = reason
        if not self._calls.release_is_async:
            drive(self.discard(entry, BLOCKING, error))
        elif not self._send_home(entry, partial(self.discard, entry, SUSPENDING, error)):
            self._drop(entry)
            self._tell_gone(entry)

    def _tell_gone(self, entry: Entry) -> None:
        """Log once for each closed loop how many resources nobody can destroy any more."""
        loop = entry.loop
        if loop is None or loop in self._gone:
            return
        self._gone.add(loop)
        with self._lock:
            others = sum(place.loop is loop and place.alive for place in self._places)
        tell_cut_off(self.name, 1 + others, "resources")

    def _send_home(self, entry: Entry, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:  # Any: its loop's
        """Do *work* on the loop of *entry*, soon; False if that loop is closed."""
        try:
            if entry.loop is not None:
                entry.loop.call_soon_threadsafe(lambda: self._spawn(work()))
                return True
        except RuntimeError:
            pass
        return False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:  # Any: what a coroutine yields is its loop's
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _destroy(self, entry: Entry, error: BaseException | None, world: World, until: float) -> None:
        seconds = self.config.destroy_timeout
        if seconds is not None:
            seconds = min(seconds, max(LEAST_PATIENCE, until - monotonic()))
        release, call = partial(self._release, entry.resource, error), None
        try:
            if self._calls.release_is_async:
                await world.bounded(release(), seconds)
            elif seconds is None or not self._may_thread(entry, world):
                release()
            else:
                call = ThreadedCall(release, partial(self._ended_late, entry), world)
                await call.wait(seconds)
        except ExpiredError:
            logger.warning(
                "pool %r: destroying a resource takes longer than %.2f s; its place is free", self.name, seconds
            )
        except Exception as failure:  # it is gone either way, and the others still are to be destroyed
            logger.warning("pool %r: destroying a resource failed: %s", self.name, printable(quoted(failure)))
        finally:
            self._drop(entry, ended=call is None or not call.left)

    def _release(self, resource: Any, error: BaseException | None) -> Any:  # Any: see Entry
        calls = self._calls
        return calls.release(resource, error=error) if calls.release_takes_error else calls.release(resource)

    def _may_thread(self, entry: Entry, world: World) -> bool:
        """Tell whether a plain verb may work in a thread: not on what is bound to a loop, nor if that blocks one."""
        return entry.loop is None and (world.is_async or running_loop() is None)

    def _ended_late(self, entry: Entry, *outcome: object) -> None:
        with self._lock:
            self._note_end(entry)

    def _drop(self, entry: Entry, *, ended: bool = True) -> None:
        """Free the place of *entry*; its resource has *ended*, or does so later."""
        try:
            with self._lock:
                if entry.alive:  # else it was lost: its place is free already
                    self._retire(entry)
                if ended:
                    self._note_end(entry)
        finally:
            self._serve()

    def _put_back(self, place: Entry) -> None:
        super()._put_back(place)
        if self._closed and self._came_late(place):
            self.abandon(place, "closed")

    def _came_late(self, entry: Entry) -> bool:
        """Take out what came back to a closed pool, to be destroyed; False if ``close()`` did so already."""
        try:
            self._idle.remove(entry)
        except ValueError:
            return False
        entry.doomed = "closed"
        return True

    async def _sweep(self, world: World, until: float = INF) -> None:
        """Destroy what was lost."""
        while (entry := self._next_lost()) is not None:
            await self.discard(entry, world, until=until)

    def _bury(self) -> None:
        """Have what was lost destroyed, where nothing can be awaited."""
        while (entry := self._next_lost()) is not None:
            self.abandon(entry, "lost")

    def _next_lost(self) -> Entry | None:
        try:
            return self._condemned.popleft()
        except IndexError:
            return None

    async def _empty(self, world: World) -> None:
        """Destroy what rests; if that hangs, it hangs no longer for many than for one."""
        until = monotonic() + (self.config.destroy_timeout or INF)
        while self._idle:
            try:
                entry = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            entry.doomed = "closed"
            await self.discard(entry, world, until=until)
        await self._sweep(world, until)
