"""A blocking call in a thread of its own, for which its caller waits only so long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from wirestate.waiting import ExpiredError, World, run_in_thread

T = TypeVar("T")


class ThreadedCall(Generic[T]):
    """One call; what comes after its caller has left goes to *late* (result, error), exactly once.

    It sees the context variables of its caller.
    """

    def __init__(
        self, call: Callable[[], T], late: Callable[[T | None, BaseException | None], None], world: World
    ) -> None:
        self._call = call
        self._late = late
        self._waiter = world.new_waiter()
        self._lock = threading.Lock()
        self._begun = False
        self.left = False

    async def wait(self, seconds: float) -> T:
        """Start the call and return its result.

        Raises:
            ExpiredError: it takes longer than *seconds*; it goes on.
        """
        # Daemonic: a call that never returns must not keep the program from ending.
        thread = threading.Thread(target=run_in_thread(self._run), name="wirestate-call", daemon=True)
        try:
            try:
                thread.start()
            except RuntimeError:  # no more threads, as when the interpreter ends; or an interrupt after the start
                self._run()
            in_time = await self._waiter.wait(seconds)
            if in_time:
                with suppress(RuntimeError):  # it was not started
                    thread.join()  # it has nothing left to do; who counts threads shall not find it
        except BaseException:
            if not self._leave():
                self.left = True
                self._late(*self._waiter.value)
            raise
        if not in_time and self._leave():
            raise ExpiredError
        result, error = self._waiter.value
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]  # what a waiter carries has no type

    def _leave(self) -> bool:
        """Stop waiting; False if the outcome is there already."""
        with self._lock:
            self.left = self._waiter.value is None
            return self.left

    def _run(self) -> None:
        with self._lock:
            begun, self._begun = self._begun, True
        if begun:
            return
        result: T | None = None
        error: BaseException | None = None
        try:
            result = self._call()
        except BaseException as caught:  # the caller raises it
            error = caught
        with self._lock:
            wanted = not self.left and self._waiter.fill((result, error))
            self.left = not wanted
        if not wanted:
            self._late(result, error)
