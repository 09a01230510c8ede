"""The connections of an HTTP service: made anew when they break, closed when nobody uses them any more."""

from __future__ import annotations

import asyncio
import logging
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias, cast
from weakref import WeakSet

import httpx

from wirestate.resources.native_pools import PerLoop, tell_cut_off
from wirestate.resources.places import Place
from wirestate.waiting import SUSPENDING, World, running_loop

log = logging.getLogger("wirestate.http")

Transport: TypeAlias = httpx.BaseTransport | httpx.AsyncBaseTransport
Body: TypeAlias = httpx.SyncByteStream | httpx.AsyncByteStream


class Outlet:
    """One httpx transport and the requests under way in it; once it is given up, the last of them closes it."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.loop = running_loop()
        self.dropped: deque[Body] = deque()  # bodies that were collected unclosed: httpx still counts their connections
        self._users: WeakSet[Place] = WeakSet()  # weak: a place that is lost is no user
        self._given_up = False
        self._lock = allocate_lock()

    def admit(self, user: Place) -> bool:
        """Let a request begin; False: it has been given up."""
        with self._lock:
            if not self._given_up:
                self._users.add(user)
            return not self._given_up

    def dismiss(self, user: Place) -> bool:
        """Let a request end; True: the caller has to close the outlet."""
        with self._lock:
            self._users.discard(user)
            return self._given_up and not self._users

    def give_up(self) -> bool:
        """Let no request begin any more; True: the caller has to close the outlet."""
        with self._lock:
            self._given_up = True
            return not self._users

    async def close(self, world: World) -> None:
        """Close the connections; nobody waits for the outcome, so a failure is only logged."""
        try:
            if world.is_async:
                await _to_its_end(cast("httpx.AsyncBaseTransport", self.transport).aclose())
            else:
                cast("httpx.BaseTransport", self.transport).close()
        except Exception as error:  # it is broken, as may be the reason why it was given up
            log.debug("closing connections failed: %s", type(error).__name__)

    async def close_dropped(self, world: World) -> None:
        """Close the connections of bodies that nobody closed."""
        while self.dropped:
            try:
                await close_body(self.dropped.popleft(), world)
            except IndexError:  # another thread took the last one
                return
            except Exception as error:  # nobody is left who could be told
                log.debug("closing a dropped response failed: %s", type(error).__name__)


class Connections:
    """The outlet of one service: one for each event loop, replaced when it breaks.

    Args:
        name: the service, for errors.
        make: makes an httpx transport.
        per_loop: whether its sockets belong to the running loop.
        lasting: it is the user's own transport, of which there is one: never replaced nor closed here.
    """

    def __init__(self, name: str, make: Callable[[], Transport], *, per_loop: bool, lasting: bool) -> None:
        self.lasting = lasting
        self._retired = False
        self._name = name
        self._outlets: PerLoop[Outlet] = PerLoop(name, lambda: Outlet(make()), self._abandon, per_loop=per_loop)

    def enter(self, user: Place) -> Outlet:
        """Return the outlet for one request; end it by :meth:`Outlet.dismiss`."""
        outlet = self._outlets.get()
        while not outlet.admit(user):
            outlet = self._outlets.replace(outlet)
        if self._retired:
            outlet.give_up()
        return outlet

    async def retire(self, world: World) -> None:
        """Keep no connection open from now on, beyond the requests under way and those that may come."""
        if self.lasting:
            return
        self._retired = True
        outlet = self._outlets.peek()
        self._outlets.abandon_others()
        if outlet is not None and outlet.give_up():
            await outlet.close(world)

    def _abandon(self, outlet: Outlet) -> None:
        """Let the loop of *outlet* close it; where it does not run nothing can be, and the sockets end with it."""
        idle = outlet.give_up()
        if outlet.loop is not None and outlet.loop.is_running():
            if idle:
                asyncio.run_coroutine_threadsafe(outlet.close(SUSPENDING), outlet.loop)
        elif not self.lasting:
            pool = getattr(outlet.transport, "_pool", None)
            tell_cut_off(self._name, len(getattr(pool, "connections", ())))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await *work*, and let no cancellation stop it half way: what it had not closed by then nobody would close."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):  # a second one changes nothing: the first goes on below
                await asyncio.wait([task])
        raise


async def close_body(body: Body, world: World) -> None:
    """Close a response body in its own world."""
    if world.is_async:
        if isinstance(body, httpx.AsyncByteStream):
            await body.aclose()
    elif isinstance(body, httpx.SyncByteStream):
        body.close()
