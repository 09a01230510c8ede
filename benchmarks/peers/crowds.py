"""S4 by the peers: tasks that wait for the connections of a pool; none needs a server for that."""

from __future__ import annotations

import asyncio
import atexit
import time
from collections import deque
from collections.abc import Callable, Coroutine

from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import greenlet_spawn

from benchmarks.peers.pools import LIFETIME, TIMEOUT
from benchmarks.timing import Contender, awaited

SIZE = 10
TASKS = 1000
VISITS = 3  # of each task


class Connection:
    """What all pools lend: as much of an asynchronous connection as they look at."""

    transaction_status = TransactionStatus.IDLE
    closed = False

    def __init__(self) -> None:
        self.pgconn = self  # psycopg_pool asks it for the transaction status

    @classmethod
    async def connect(cls, *_: object, **__: object) -> Connection:
        return cls()

    def rollback(self) -> None:
        """Do nothing: SQLAlchemy calls it before it takes a connection back."""

    async def close(self) -> None:
        self.closed = True


async def work() -> None:
    await asyncio.sleep(0)


def rate(visit: Callable[[], Coroutine[None, None, None]]) -> Callable[[int], object]:
    """Return the run that tells how many visits a crowd of tasks makes in a second."""

    async def one() -> None:
        for _ in range(VISITS):
            await visit()

    async def run(_: int) -> float:
        tasks = [asyncio.ensure_future(one()) for _ in range(TASKS)]
        start = time.process_time()
        await asyncio.gather(*tasks)
        return TASKS * VISITS / (time.process_time() - start)

    return awaited(run)


def semaphore() -> Contender:
    free, idle = asyncio.Semaphore(SIZE), deque(Connection() for _ in range(SIZE))

    async def visit() -> None:
        async with free:
            connection = idle.pop()
            await work()
            idle.append(connection)

    return Contender("asyncio.Semaphore + deque", rate(visit))


def psycopg_pool() -> Contender:
    pool = AsyncConnectionPool(connection_class=Connection, min_size=SIZE, max_size=SIZE, timeout=TIMEOUT, open=False)
    awaited(lambda _: pool.open(wait=True))(1)
    atexit.register(awaited(lambda _: pool.close()), 1)  # on the loop, before that is closed

    async def visit() -> None:
        lent = await pool.getconn()
        await work()
        await pool.putconn(lent)

    return Contender("psycopg_pool, async", rate(visit), "psycopg-pool")


def sqlalchemy_pool() -> Contender:
    pool = AsyncAdaptedQueuePool(Connection, pool_size=SIZE, max_overflow=0, timeout=TIMEOUT, recycle=round(LIFETIME))

    async def visit() -> None:
        lent = await greenlet_spawn(pool.connect)
        await work()
        await greenlet_spawn(lent.close)

    return Contender("SQLAlchemy, async", rate(visit), "SQLAlchemy")
