"""Deadlines for drivers that wait on a socket without one: the call goes on in a thread, its caller does not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any, TypeVar

from wirestate.errors import ResourceTimeoutError
from wirestate.waiting import run_in_thread

T = TypeVar("T")
_UNTIL: ContextVar[float] = ContextVar("wirestate_database_until", default=float("inf"))


@contextmanager
def until(seconds: float | None) -> Iterator[None]:
    """Bound what connects and checks inside the block, in this thread; 0 or None: by its own limits only."""
    token = _UNTIL.set(monotonic() + seconds if seconds else float("inf"))
    try:
        yield
    finally:
        _UNTIL.reset(token)


def left_of(seconds: float) -> float:
    """Return how many of *seconds* the deadline of the caller allows."""
    return max(0.0, min(seconds, _UNTIL.get() - monotonic()))


def within(seconds: float, call: Callable[[], T], late: Callable[[T], object], too_late: ResourceTimeoutError) -> T:
    """Return what *call* returns; after *seconds* raise *too_late*, and give what comes then to *late*."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # the caller raises it
            future.set_exception(error)

    # Daemonic: a server that never answers must not keep the program from ending.
    threading.Thread(target=run_in_thread(work), name="wirestate-database", daemon=True).start()
    try:
        return future.result(seconds)
    except BaseException as error:
        expired = isinstance(error, TimeoutError) and not future.done()
        future.add_done_callback(lambda done: done.exception() or late(done.result()))
        if expired:
            raise too_late from None
        raise


def cut_off(driver: Any) -> None:  # Any: a driver's connection
    """Wake whoever still reads from it: closing it would not, and is not safe before."""
    if hasattr(driver, "terminate"):  # asyncpg
        driver.terminate()
        return
    fileno = getattr(driver, "fileno", None) or getattr(getattr(driver, "_sock", None), "fileno", None)  # PyMySQL
    if fileno is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)


def hang_up(driver: Any) -> None:  # Any: a driver's connection
    """End what only its loop could close well, and that loop is closed."""
    if hasattr(driver, "pgconn"):  # psycopg
        driver.pgconn.finish()
    elif hasattr(driver, "stop"):  # aiosqlite, whose thread would keep the program from ending
        ending = threading.Thread(target=driver.stop)  # where a loop runs, its thread would report to that
        ending.start()
        ending.join()
    else:
        with suppress(RuntimeError):  # the loop is closed: the socket is closed when it is collected
            (driver.terminate if hasattr(driver, "terminate") else driver.close)()
