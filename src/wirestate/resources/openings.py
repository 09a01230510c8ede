"""Single flight: one opens, the others wait for it."""

from __future__ import annotations

import asyncio
from _thread import get_ident

from wirestate.waiting import Waiter, World


class Opening:
    """Stands where the resource will be while somebody opens it."""

    __slots__ = ("by", "waiters")

    def __init__(self, by: object) -> None:
        self.by = by  # the thread or the task that opens
        self.waiters: list[Waiter] = []

    def finish(self) -> None:
        """Wake all who wait; each looks for itself what became of it."""
        while self.waiters:
            self.waiters.pop().fill(None)


def opener(world: World) -> object:
    """Return what tells two parties apart that may wait for each other."""
    return asyncio.current_task() if world.is_async else get_ident()
