"""All that differs between threads and tasks.

Whatever can wait is written once, as ``async def``. Asynchronous callers await it; synchronous
callers :func:`drive` it: in the blocking world waiting blocks instead of suspending, so one
``send(None)`` carries a coroutine to its ``return``, without an event loop and without a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from _thread import allocate_lock
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, ParamSpec, Protocol, TypeVar

from wirestate.errors import AsyncInSyncRunError, BlockingWaitError

T = TypeVar("T")
P = ParamSpec("P")
running_loop = asyncio._get_running_loop  # None outside a loop, where the public form raises
LONGEST_WAIT = 4e6  # seconds; a lock refuses more than threading.TIMEOUT_MAX


def drive(coro: Coroutine[Any, Any, T]) -> T:
    """Run *coro* to its end in this thread, without an event loop.

    Raises:
        AsyncInSyncRunError: it had to wait for something that only an event loop can give.
    """
    try:
        coro.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # StopIteration carries no type
    coro.close()
    name = getattr(coro, "__qualname__", repr(coro))
    raise AsyncInSyncRunError(f"{name} has to wait on an event loop; use its asynchronous twin")


class Waiter(Protocol):
    """A one-shot slot: one party waits, another fills it."""

    value: Any  # whatever the filler hands over

    def fill(self, value: Any) -> bool:
        """Hand *value* over; False if nobody is there to take it."""
        ...

    async def wait(self, timeout: float | None) -> bool:
        """Wait until filled; False when *timeout* seconds (None: no limit) have passed."""
        ...


class ThreadWaiter:
    """Blocks the calling thread; its ``wait`` is a coroutine that never suspends."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self.value: Any = None  # Any: see Waiter
        self._lock = allocate_lock()
        self._lock.acquire()

    def fill(self, value: Any) -> bool:
        self.value = value
        self._lock.release()
        return True

    async def wait(self, timeout: float | None) -> bool:
        return self.block(timeout)

    def block(self, timeout: float | None) -> bool:
        """Wait, for those who are no coroutine."""
        if running_loop() is not None:
            raise BlockingWaitError(
                "a blocking wait would stop the event loop that runs in this thread; "
                "use the asynchronous twin (acquire -> aacquire, process -> aprocess, with -> async with)"
            )
        return self._lock.acquire(True, -1 if timeout is None else max(0.0, min(timeout, LONGEST_WAIT)))


class TaskWaiter:
    """Suspends the calling task; may be filled from any thread."""

    __slots__ = ("_future", "_loop", "value")

    def __init__(self) -> None:
        self.value: Any = None  # Any: see Waiter
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def fill(self, value: Any) -> bool:
        self.value = value
        if running_loop() is self._loop:
            # Waking the loop through its self-pipe costs 5 us and more: only other threads need it.
            if self._future.done():
                return False
            self._future.set_result(None)
            return True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # its loop is closed: nobody is there to take it
            return False
        return True

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout: float | None) -> bool:
        if timeout is None:
            await self._future
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._future
        except TimeoutError:
            return False
        return True


def hand_to_task(
    future: asyncio.Future[T], loop: asyncio.AbstractEventLoop, value: T, back: Callable[[T], None]
) -> bool:
    """Hand *value* to the task of *loop* that awaits *future*, from any thread; False if nobody is there to take it.

    This is a :class:`TaskWaiter` without the object, for those who wait by the thousand. What is on
    its way to another thread's task that is cancelled meanwhile goes *back*.
    """
    if running_loop() is loop:
        # Waking the loop through its self-pipe costs 5 us and more: only other threads need it.
        try:
            future.set_result(value)
        except asyncio.InvalidStateError:
            return False
        return True
    try:
        loop.call_soon_threadsafe(_arrive, future, value, back)
    except RuntimeError:  # its loop is closed: nobody is there to take it
        return False
    return True


def _arrive(future: asyncio.Future[T], value: T, back: Callable[[T], None]) -> None:
    if future.done():
        back(value)
    else:
        future.set_result(value)


class ExpiredError(TimeoutError):
    """The time that :meth:`World.bounded` allowed is over; a TimeoutError of the work itself is another."""


class World(Protocol):
    """What a core needs to know about the side that runs it."""

    is_async: bool

    def new_waiter(self) -> Waiter: ...

    async def sleep(self, seconds: float) -> None: ...

    async def offload(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call where it stops nobody: in a thread, or inline where the thread is the caller's."""
        ...

    async def bounded(self, work: Awaitable[T], seconds: float | None) -> T:
        """Await *work* for at most *seconds*.

        Only tasks can be interrupted: the blocking world lets *work* finish; its callers check the
        clock between steps. Raises ExpiredError.
        """
        ...


class _Blocking:
    is_async = False
    new_waiter = ThreadWaiter

    async def sleep(self, seconds: float) -> None:
        if running_loop() is not None:
            raise BlockingWaitError("a blocking sleep would stop the event loop that runs in this thread")
        time.sleep(seconds)

    async def offload(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return call(*args, **kwargs)

    async def bounded(self, work: Awaitable[T], seconds: float | None) -> T:
        return await work


async def ended(work: asyncio.Future[Any]) -> None:  # Any: what it gives is not looked at
    """Wait for the end of *work*, however often the waiting task is cancelled."""
    while not work.done():
        with suppress(asyncio.CancelledError):  # the first one goes on when this is over; more change nothing
            await asyncio.wait([work])


class _Suspending:
    is_async = True
    new_waiter = TaskWaiter

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def offload(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def called() -> T:
            try:
                return call(*args, **kwargs)
            except StopIteration as error:  # as coroutines do: a future that gets one itself never ends
                raise RuntimeError("coroutine raised StopIteration") from error

        work = asyncio.ensure_future(asyncio.to_thread(called))  # carries the context variables
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A thread cannot be stopped: what it works with must not be taken from under it.
            await ended(work)
            if not work.cancelled():
                work.exception()  # seen, so that asyncio does not report it as lost
            raise

    async def bounded(self, work: Awaitable[T], seconds: float | None) -> T:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await work
        except TimeoutError as error:
            if limit.expired():
                raise ExpiredError from error
            raise


BLOCKING: World = _Blocking()
SUSPENDING: World = _Suspending()


def run_in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
    """Bind *call* to the current context variables, so that another thread sees the same scopes.

    A plain ``Thread``, ``submit`` or ``run_in_executor`` starts with empty context variables;
    ``executor.submit(run_in_thread(call, x))`` carries them over.
    """
    context = contextvars.copy_context()
    return lambda: context.run(call, *args, **kwargs)
