"""What is told to listeners from other threads, and how that ends for good."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec

from wirestate.resources.inherited import forget_at_fork
from wirestate.resources.reports import tell
from wirestate.waiting import World

P = ParamSpec("P")
PATIENCE = 1.0  # seconds that a listener in another thread gets to end


class Voice:
    """Tell listeners until :meth:`hush`: when that has returned, none is being told, and none will be.

    A listener may hush its own voice, and one that takes longer than a moment is not waited for.
    """

    def __init__(self) -> None:
        self.is_silent = False
        self.forget_parent()
        forget_at_fork(self)

    def forget_parent(self) -> None:
        """Wait in a forked child for no thread of the parent."""
        self._changed = threading.Condition()
        self._speaking: list[int] = []  # threads

    def tell(self, listen: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a listener, unless it is too late for that."""
        with self._changed:
            if self.is_silent:
                return
            self._speaking.append(threading.get_ident())
        try:
            tell(listen, *args, **kwargs)
        finally:
            with self._changed:
                self._speaking.remove(threading.get_ident())
                self._changed.notify_all()

    async def hush(self, world: World) -> None:
        """Tell nothing any more."""
        with self._changed:
            self.is_silent = True
            others = set(self._speaking) - {threading.get_ident()}
        if others:
            await world.offload(self._wait, others)

    def _wait(self, others: set[int]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: others.isdisjoint(self._speaking), PATIENCE)
