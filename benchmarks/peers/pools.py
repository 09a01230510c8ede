"""S2 by the peers: pools of four that make what they lend themselves; none needs a server for that."""

from __future__ import annotations

import atexit
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from operator import attrgetter, methodcaller
from typing import TypeVar

from dataknobs_fsm.resources.base import BaseResourceProvider
from dataknobs_fsm.resources.pool import PoolConfig, ResourcePool
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool
from sqlalchemy.pool import QueuePool

from benchmarks.timing import Contender

SIZE = 4
TIMEOUT = 30.0
LIFETIME = 3600.0
T = TypeVar("T")


class Connection:
    """What all pools lend: as much of a database connection as they look at."""

    transaction_status = TransactionStatus.IDLE
    closed = False

    def __init__(self) -> None:
        self.pgconn = self  # psycopg_pool asks it for the transaction status

    @classmethod
    def connect(cls, *_: object, **__: object) -> Connection:
        return cls()

    def rollback(self) -> None:
        """Do nothing: SQLAlchemy calls it before it takes a connection back."""

    def close(self) -> None:
        self.closed = True


def lending(
    acquire: Callable[[], T], release: Callable[[T], object], inside: Callable[[T], object] = lambda lent: lent
) -> Callable[[int], object]:
    """Return the run that acquires and releases; *inside* takes the connection out of what was lent."""

    def run(n: int) -> object:
        for _ in range(n):
            release(acquire())
        return lent_in_turn(acquire, release, inside)

    return run


def lent_in_turn(
    acquire: Callable[[], T], release: Callable[[T], object], inside: Callable[[T], object] = lambda lent: lent
) -> object:
    """Return what must be the same for everybody: open connections come out, and always those few."""
    seen = set()
    for _ in range(2 * SIZE):
        lent = acquire()
        seen.add(inside(lent))
        release(lent)
    return len(seen) <= SIZE, all(isinstance(connection, Connection) and not connection.closed for connection in seen)


def semaphore() -> Contender:
    free, idle = threading.Semaphore(SIZE), deque(Connection() for _ in range(SIZE))

    def acquire() -> Connection:
        free.acquire(timeout=TIMEOUT)
        return idle.pop()

    def release(connection: Connection) -> None:
        idle.append(connection)
        free.release()

    def run(n: int) -> object:
        for _ in range(n):  # the two calls written out: the unit of comparison pays for nothing else
            free.acquire(timeout=TIMEOUT)
            idle.append(idle.pop())
            free.release()
        return lent_in_turn(acquire, release)

    return Contender("threading.Semaphore + deque", run)


def lifo_queue() -> Contender:
    idle: queue.LifoQueue[Connection] = queue.LifoQueue(SIZE)
    for _ in range(SIZE):
        idle.put(Connection())
    return Contender("queue.LifoQueue", lending(partial(idle.get, timeout=TIMEOUT), idle.put))


def psycopg_pool() -> Contender:
    pool = ConnectionPool(connection_class=Connection, min_size=SIZE, max_size=SIZE, open=True)
    atexit.register(pool.close)  # its threads would keep the interpreter from ending
    pool.wait()
    return Contender("psycopg_pool", lending(pool.getconn, pool.putconn), "psycopg-pool")


def sqlalchemy_pool() -> Contender:
    pool = QueuePool(Connection, pool_size=SIZE, max_overflow=0, timeout=TIMEOUT, recycle=round(LIFETIME))
    run = lending(pool.connect, methodcaller("close"), attrgetter("dbapi_connection"))
    return Contender("SQLAlchemy QueuePool", run, "SQLAlchemy")


class ConnectionProvider(BaseResourceProvider):
    """Makes connections for the pool of dataknobs-fsm."""

    def acquire(self, **_: object) -> Connection:
        return Connection()

    def release(self, resource: Connection) -> None:
        resource.close()

    def validate(self, resource: Connection) -> bool:
        return not resource.closed


def dataknobs_pool() -> Contender:
    pool = ResourcePool(ConnectionProvider("connection"), PoolConfig(max_size=SIZE, max_lifetime=LIFETIME))
    return Contender("dataknobs-fsm", lending(pool.acquire, pool.release), "dataknobs-fsm")
