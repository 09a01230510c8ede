"""Single flight: one opens, the others wait for it."""

from __future__ import annotations

import asyncio
from _thread import get_ident
from contextlib import suppress
from time import monotonic

from wirestate.errors import ResourceError, ResourceTimeoutError
from wirestate.waiting import Waiter, World


class Opening:
    """Stands where the resource will be while somebody opens it."""

    __slots__ = ("by", "over", "waiters")

    def __init__(self, by: object) -> None:
        self.by = by  # the thread or the task that opens
        self.over = False
        self.waiters: list[Waiter] = []

    async def ended(self, name: str, world: World, until: float | None) -> None:
        """Wait for the end of this opening of *name*, but no longer than *until*."""
        if self.by == opener(world):
            raise ResourceError(f"resource {name!r} asks for itself while it is opened", name, "resolve")
        waiter = world.new_waiter()
        self.waiters.append(waiter)
        if self.over:  # it ended before it could see this waiter
            return
        if not await waiter.wait(None if until is None else until - monotonic()):
            with suppress(ValueError):  # taken off in this very moment
                self.waiters.remove(waiter)
            raise ResourceTimeoutError(
                f"resource {name!r} was not ready in time; another opens it still", name, "acquire"
            )

    def finish(self) -> None:
        """Wake all who wait; each looks for itself what became of it."""
        self.over = True
        for waiter in list(self.waiters):  # a copy: others take themselves off
            waiter.fill(None)


def opener(world: World) -> object:
    """Return what tells two parties apart that may wait for each other."""
    return asyncio.current_task() if world.is_async else get_ident()
