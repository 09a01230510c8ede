"""Threads for resources that can block, so that an event loop never waits for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any, TypeVar

from wirestate.resources.failures import attach
from wirestate.waiting import ended

T = TypeVar("T")
SHARED_THREADS = 32  # of one container, for what has no pool
_UNSET = object()
_INHERITED: list[object] = []  # kept in a forked child: a finalizer would wait for threads of the parent


class Threads:
    """Up to *limit* threads, started at need, in which tasks make calls that can block.

    The executor of asyncio itself is not used: it has ``min(32, cores + 4)`` threads, and twenty runs that wait
    for each other's locks in it never get the thread in which the first of them would commit.

    Args:
        name: what the calls are for; the threads are named after it.
        limit: how many calls may run at once; more wait in line.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._executor: ThreadPoolExecutor | None = None
        self._running: set[Future[Any]] = set()  # Any: whatever the calls return
        self._closed = False
        self._pid = os.getpid()

    async def run(
        self,
        call: Callable[[], T],
        *,
        undo: Callable[[T], object] | None = None,
        on_cancel: Callable[[], None] | None = None,
        required: bool = False,
    ) -> T:
        """Call *call* in a thread, with the caller's context variables; return what it returns.

        A thread cannot be stopped, and what it works with must not be taken from under it: a task that is
        cancelled waits for the end of the call, and is cancelled then. Context variables that the call sets
        are set in the caller, as if it had called it itself.

        Args:
            call: what can block.
            undo: called with the result, in a thread too, if the caller was cancelled.
            on_cancel: called at once when the caller is cancelled while the call runs.
            required: whether the call is made also if the caller is cancelled before it begins.
        """
        context = copy_context()
        outcome: list[tuple[T | None, BaseException | None]] = []

        def work() -> None:
            try:
                outcome.append((context.run(call), None))
            except BaseException as error:  # the caller raises it
                outcome.append((None, error))

        begun = self._submit(work)
        done = asyncio.wrap_future(begun)
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError as cancelled:
            if not required and begun.cancel():  # it stood in line
                raise
            if on_cancel is not None:
                on_cancel()
            await ended(done)
            result, error = outcome.pop()
            if error is None and undo is not None:
                error = await self._undone(context, undo, result)  # type: ignore[arg-type]  # it is one without an error
            if error is not None and not isinstance(error, asyncio.CancelledError):
                attach(cancelled, [error])
            raise
        finally:
            if self._closed and not self._running:
                self._shut_down()
        result, error = outcome.pop()
        _adopt(context)
        if error is not None:
            if isinstance(error, StopIteration):  # as coroutines do: it would end the one that awaits this
                raise RuntimeError("coroutine raised StopIteration") from error
            raise error
        return result  # type: ignore[return-value]  # without an error it is the result

    async def _undone(self, context: Context, undo: Callable[[T], object], result: T) -> BaseException | None:
        raised: list[BaseException] = []

        def work() -> None:
            try:
                context.run(undo, result)
            except BaseException as error:  # attached to the cancellation
                raised.append(error)

        await ended(asyncio.wrap_future(self._submit(work)))
        return raised[0] if raised else None

    def _submit(self, work: Callable[[], None]) -> Future[None]:
        if self._pid != os.getpid():  # a forked child has none of these threads
            _INHERITED.append(self._executor)
            self._executor, self._running, self._pid = None, set(), os.getpid()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._limit, thread_name_prefix=f"wirestate-{self._name}")
        future = self._executor.submit(work)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def close(self) -> None:
        """Let every thread end: at once, or with the call that it makes."""
        self._closed = True
        if self._pid == os.getpid():
            self._shut_down()

    def _shut_down(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=not self._running)  # threads that rest end in well under a millisecond


def _adopt(context: Context) -> None:
    """Set the context variables here that were set in *context*."""
    for variable, value in context.items():
        if variable.get(_UNSET) is not value:
            variable.set(value)
