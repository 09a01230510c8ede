"""What adapters over a library with a pool of its own share: one client per event loop, refused pool settings."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Collection, Coroutine
from dataclasses import fields
from typing import Any, Generic, TypeVar

from wirestate.errors import BlockingWaitError, InvalidSettingError, ResourceClosedError, listed
from wirestate.resources.base import ResourceHealth
from wirestate.resources.pool_config import PoolConfig
from wirestate.waiting import drive, running_loop

log = logging.getLogger("wirestate.resources")
T = TypeVar("T")
_INHERITED: list[object] = []  # kept in a forked child: a finalizer could say goodbye on the parent's socket


def blocking_probe(
    probe: Callable[[], Coroutine[Any, Any, ResourceHealth]],
    *,
    is_async: bool,  # Any: what a coroutine sends
) -> ResourceHealth:
    """Run *probe* in this thread; one that needs an event loop gets a loop of its own."""
    if not is_async:
        return drive(probe())
    if running_loop() is not None:
        raise BlockingWaitError("a blocking probe would stop the event loop; await ahealth_check()")
    return asyncio.run(probe())


def tell_cut_off(name: str, count: int, what: str = "connections") -> None:
    """Log that something was not closed: only its event loop could do that."""
    if count:
        log.warning(
            "resource %r: %d of its %s belong to an event loop that is closed, or is not this one, and were cut off "
            "instead of closed; close its container in the loop that uses it",
            name,
            count,
            what,
        )


class PerLoop(Generic[T]):
    """One object for each event loop, or one for all threads; made at first use.

    Sockets of an asynchronous library belong to the loop that opened them, and none may be used by
    a forked child: there, the object is made anew.

    Args:
        name: the resource, for errors.
        make: makes the object.
        abandon: lets go of an object that can no longer be closed, without touching its sockets.
        per_loop: whether the object belongs to the running loop.
    """

    def __init__(self, name: str, make: Callable[[], T], abandon: Callable[[T], None], *, per_loop: bool) -> None:
        self._name = name
        self._make = make
        self._abandon = abandon
        self._per_loop = per_loop
        self._lock = threading.Lock()
        self._made: dict[AbstractEventLoop | None, T] = {}
        self._pid = os.getpid()
        self._closed = False

    def get(self) -> T:
        """Return the object of the running loop.

        Raises:
            ResourceClosedError: :meth:`close` was called.
        """
        loop = running_loop() if self._per_loop else None
        made = self._made.get(loop)
        if made is not None and self._pid == os.getpid():
            return made
        return self._first(loop)

    def peek(self) -> T | None:
        """Return the object of the running loop if there is one."""
        return self._made.get(running_loop() if self._per_loop else None) if self._pid == os.getpid() else None

    def replace(self, old: T) -> T:
        """Return another object than *old*: a new one, unless somebody else replaced it already."""
        loop = running_loop() if self._per_loop else None
        with self._lock:
            if self._made.get(loop) is old:
                del self._made[loop]
        return self.get()

    def all(self) -> list[T]:
        """Return every object that there is."""
        return list(self._made.values()) if self._pid == os.getpid() else []

    def abandon_others(self) -> None:
        """Let go of the objects of all other loops than the running one."""
        here = running_loop() if self._per_loop else None
        with self._lock:
            self._drop([loop for loop in self._made if loop is not here])

    def _first(self, loop: AbstractEventLoop | None) -> T:
        if self._pid != os.getpid():
            # The parent may have held the lock at the fork; a child begins with one thread.
            self._lock, self._pid = threading.Lock(), os.getpid()
            _INHERITED.append(self._made)
            self._made = {}
        with self._lock:
            if self._closed:
                raise ResourceClosedError(f"resource {self._name!r} is closed", self._name, "acquire")
            self._drop([other for other in self._made if other is not None and other.is_closed()])
            if loop not in self._made:
                self._made[loop] = self._make()
            return self._made[loop]

    def _drop(self, loops: list[AbstractEventLoop | None]) -> None:
        for loop in loops:
            self._abandon(self._made.pop(loop))

    @property
    def is_used(self) -> bool:
        """Whether an object has been made."""
        return bool(self._made)

    @property
    def needs_loop(self) -> bool:
        """Whether an object belongs to an event loop that is open."""
        return self._pid == os.getpid() and any(loop is not None and not loop.is_closed() for loop in list(self._made))

    def close(self) -> T | None:
        """Make no object any more; return the one that the caller has to close, and abandon all others."""
        loop = running_loop() if self._per_loop else None
        with self._lock:
            self._closed = True
            mine = self._made.pop(loop, None) if self._pid == os.getpid() else None
            self._drop(list(self._made))
        return mine


def refuse_unhonoured(name: str, config: PoolConfig, honoured: Collection[str], *, why: str) -> None:
    """Refuse settings that a native pool cannot honour.

    Raises:
        InvalidSettingError: a field that is not *honoured* differs from its default.
    """
    default = PoolConfig()
    refused = [
        field.name
        for field in fields(PoolConfig)
        if field.name not in honoured and getattr(config, field.name) != getattr(default, field.name)
    ]
    if refused:
        reason = f"cannot be honoured: {why}; it takes {listed(honoured)}"
        text = f"resource {name!r}: pool settings {listed(refused)} {reason}"
        each = {field: f"resource {name!r}: pool setting {field!r} {reason}" for field in refused}
        raise InvalidSettingError(text, name, "configure", pool_faults=each)


def refuse_options(name: str, options: Collection[str]) -> None:
    """Refuse options of ``acquire()``, which an adapter that is configured once does not take."""
    if options:
        text = f"resource {name!r}: acquire() takes no options here ({listed(options)}); give them to its adapter"
        raise InvalidSettingError(text, name, "acquire")
