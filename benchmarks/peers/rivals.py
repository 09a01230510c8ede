"""S3 by the peers: threads that compete for the connections of a pool."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from psycopg_pool import ConnectionPool as PsycopgPool
from sqlalchemy.pool import QueuePool

from benchmarks.peers.pools import LIFETIME, SIZE, TIMEOUT, Connection
from wirestate import BaseResourceProvider

THREADS = 8
WORK = 0.0005
SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Lender:
    """One way to lend a connection."""

    name: str
    acquire: Callable[[], Any]
    release: Callable[[Any], object]
    package: str | None = None


class ConnectionProvider(BaseResourceProvider):
    """Makes connections for our pool."""

    def acquire(self, **_: object) -> Connection:
        return Connection()

    def release(self, resource: Connection) -> None:
        resource.close()

    def validate(self, resource: Connection) -> bool:
        return not resource.closed


def turns(lender: Lender) -> list[int]:
    """Return how often each thread had its turn."""
    counts = [0] * THREADS
    start = threading.Barrier(THREADS)

    def compete(number: int) -> None:
        acquire, release, work = lender.acquire, lender.release, time.sleep
        start.wait()
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            lent = acquire()
            work(WORK)
            release(lent)
            counts[number] += 1

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def throughput(lender: Lender) -> float:
    return sum(turns(lender)) / SECONDS


def fairness(lender: Lender) -> float:
    counts = turns(lender)
    return min(counts) / max(counts)


def semaphore() -> Lender:
    free, idle = threading.Semaphore(SIZE), deque(Connection() for _ in range(SIZE))

    def acquire() -> Connection:
        free.acquire(timeout=TIMEOUT)
        return idle.pop()

    def release(connection: Connection) -> None:
        idle.append(connection)
        free.release()

    return Lender("threading.Semaphore + deque", acquire, release)


def psycopg_pool() -> Lender:
    pool = PsycopgPool(connection_class=Connection, min_size=SIZE, max_size=SIZE, open=True)
    atexit.register(pool.close)  # its threads would keep the interpreter from ending
    pool.wait()
    return Lender("psycopg_pool", pool.getconn, pool.putconn, "psycopg-pool")


def sqlalchemy_pool() -> Lender:
    pool = QueuePool(Connection, pool_size=SIZE, max_overflow=0, timeout=TIMEOUT, recycle=round(LIFETIME))
    return Lender("SQLAlchemy QueuePool", pool.connect, methodcaller("close"), "SQLAlchemy")
