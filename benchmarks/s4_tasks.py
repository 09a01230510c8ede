"""S4: a thousand tasks on a pool of ten; each gives way once while it holds what it was lent.

The unit is a semaphore of asyncio around a deque.
All of it is work of one thread, so the rate counts processor time, which other programs do not change.
"""

from __future__ import annotations

from benchmarks.timing import Contender, Group
from wirestate import PoolConfig, ResourcePool

PEERS = ("psycopg-pool", "SQLAlchemy")
REASONS = {"S4": "the unit counts nothing and has no deadline; the ratio was 0.82 to 0.85 on two machines."}


def groups() -> list[Group]:
    from benchmarks.peers import crowds as peers  # here: they are imported once all are known to be there

    class ConnectionProvider:
        async def acquire(self) -> peers.Connection:
            return await peers.Connection.connect()

        async def release(self, resource: peers.Connection) -> None:
            await resource.close()

        async def validate(self, resource: peers.Connection) -> bool:
            return not resource.closed

    config = PoolConfig(max_size=peers.SIZE, max_lifetime=peers.LIFETIME, acquire_timeout=peers.TIMEOUT)
    pool = ResourcePool(ConnectionProvider(), config)

    async def visit() -> None:
        async with await pool.aacquire():
            await peers.work()

    return [
        Group(
            "S4",
            peers.semaphore(),
            (
                Contender("wirestate", peers.rate(visit), "wirestate", 0.85),
                peers.psycopg_pool(),
                peers.sqlalchemy_pool(),
            ),
            told=True,
            unit="/s",
        )
    ]
