"""S2: acquire from a pool and release, uncontended, with leases, lifetimes, a validation window and metrics.

The unit is a semaphore around a deque: the least that lends a thing safely.
"""

from __future__ import annotations

from operator import attrgetter

from benchmarks.timing import Contender, Group
from wirestate import BaseResourceProvider, PoolConfig, ResourcePool
from wirestate.resources.pool import Lease

PEERS = ("psycopg-pool", "SQLAlchemy", "dataknobs-fsm")
REASONS = {
    "S2": "the unit counts nothing and reads no clock. Of a pair's time, a seventh counts uses and the time held, a "
    "fifteenth sets when to check next, and an eighth reads the clock, twice. "
    "The ratio was 0.44 to 0.52 on two machines."
}


def groups() -> list[Group]:
    from benchmarks.peers import pools as peers  # here: they are imported once all are known to be there

    class ConnectionProvider(BaseResourceProvider):
        def acquire(self, **_: object) -> peers.Connection:
            return peers.Connection()

        def release(self, resource: peers.Connection) -> None:
            resource.close()

        def validate(self, resource: peers.Connection) -> bool:
            return not resource.closed

    config = PoolConfig(max_size=peers.SIZE, max_lifetime=peers.LIFETIME, acquire_timeout=peers.TIMEOUT)
    pool = ResourcePool(ConnectionProvider("connection"), config)
    ours = peers.lending(pool.acquire, Lease.release, attrgetter("resource"))
    return [
        Group(
            "S2",
            peers.semaphore(),
            (
                Contender("wirestate", ours, "wirestate", 0.45),
                peers.lifo_queue(),
                peers.psycopg_pool(),
                peers.dataknobs_pool(),
                peers.sqlalchemy_pool(),
            ),
        )
    ]
