"""What must hold after every test under fire: nothing is lost or owned twice, all that was made is destroyed once."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakSet

from tests.crews import Maker
from wirestate import ResourceManager
from wirestate.resources import inherited
from wirestate.resources.gate import Gate
from wirestate.resources.pool import ResourcePool

SETTLE = 5.0  # seconds in which what other threads still give back must have come


class Invariant:
    """Watches what a test makes, and checks it at the end of the test: open first, then closed.

    Every pool, gate and manager that the test has made and that is still there is looked at, and all that was given
    to :meth:`watch`, such as a :class:`~tests.crews.Maker`. A test that ends with leases out on purpose releases
    them before it returns.

    Args:
        run: runs a coroutine on the event loop of the test, where it has one.
    """

    def __init__(self, run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run) -> None:
        self._watched: list[Any] = []
        self._before = WeakSet(_made())
        self._run = run

    def watch(self, thing: Any) -> Any:
        """Check *thing* at the end, and return it."""
        self._watched.append(thing)
        return thing

    def check(self) -> None:
        """Check, close and check again; called by the fixture."""
        gc.collect()
        things = self._watched + [one for one in _made() if one not in self._before and one not in self._watched]
        for thing in things:
            self._run(_soon(_check_open, thing))
        for thing in (*_of(things, ResourceManager), *_of(things, ResourcePool), *_of(things, Gate)):
            self._close(thing)
        for thing in things:
            self._run(_soon(_check_closed, thing))

    def _close(self, thing: Any) -> None:
        if isinstance(thing, ResourceManager | ResourcePool):
            self._run(thing.aclose())
        else:
            thing.close()


def _made() -> list[Any]:
    """Return every pool, gate and manager that there is: all of them must be told of a fork."""
    return [one for one in list(inherited._FORGETFUL) if isinstance(one, ResourcePool | Gate | ResourceManager)]


def _of(things: list[Any], kind: type) -> list[Any]:
    return [thing for thing in things if isinstance(thing, kind)]


async def _soon(check: Callable[[Any], None], thing: Any) -> None:
    """Check until it holds: threads, the loop and the upkeep may be about to give something back."""
    end = time.monotonic() + SETTLE
    while True:
        try:
            return check(thing)
        except AssertionError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.002)


def _check_open(thing: Any) -> None:
    if isinstance(thing, ResourcePool):
        now = thing.snapshot()
        places = [place for place in thing._places if place.alive]
        assert now.waiting == now.creating == now.used == 0, f"{thing!r}: {now}"
        assert thing.holders() == []
        assert now.idle + now.used + now.creating == len(places) <= now.max_size, now
        resources = [id(place.resource) for place in places]
        assert len(set(resources)) == len(resources), f"{thing!r}: one resource in two entries"
        assert now.created - now.destroyed == now.size, now
    elif isinstance(thing, Gate):
        now = thing.snapshot()
        assert now.waiting == now.used == 0, f"{thing!r}: {thing.holders()}"
    elif isinstance(thing, ResourceManager):
        open_owners = [owner for owner in list(thing.owners.values()) if not owner.is_idle]
        assert open_owners == [], "scopes are open"
        assert len(thing.holders()) == len(thing.root.exits), thing.holders()  # all but singletons is given back


def _check_closed(thing: Any) -> None:
    if isinstance(thing, ResourcePool):
        counted = thing.snapshot()
        assert counted.size == counted.creating == 0, f"{thing!r} is closed and holds something"
        assert counted.created == counted.destroyed == sum(counted.discards.values()), counted
    elif isinstance(thing, Maker):
        assert not thing.live, f"never destroyed: {thing.live}"  # destroyed twice: Maker.destroy() asserts that
        assert thing.made == thing.destroyed
