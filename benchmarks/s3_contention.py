"""S3: eight threads share a pool of four, with half a millisecond of work each time: throughput, and fair shares.

The unit of throughput is a semaphore around a deque, that of fairness a share as large as anybody's.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.timing import Contender, Group
from wirestate import PoolConfig, ResourcePool
from wirestate.resources.pool import Lease

PEERS = ("psycopg-pool", "SQLAlchemy")


def groups() -> list[Group]:
    from benchmarks.peers import pools as peers  # here: they are imported once all are known to be there
    from benchmarks.peers import rivals

    config = PoolConfig(max_size=peers.SIZE, max_lifetime=peers.LIFETIME, acquire_timeout=peers.TIMEOUT)
    pool = ResourcePool(rivals.ConnectionProvider("connection"), config)
    ours = rivals.Lender("wirestate", pool.acquire, Lease.release, "wirestate")
    others = (ours, rivals.psycopg_pool(), rivals.sqlalchemy_pool())

    def contenders(measure: Callable[[rivals.Lender], float], goal: float) -> tuple[Contender, ...]:
        return tuple(
            Contender(
                lender.name,
                lambda _, lender=lender: measure(lender),
                lender.package,
                goal if lender is ours else None,
            )
            for lender in others
        )

    unit = rivals.semaphore()
    return [
        Group(
            "S3 throughput",
            Contender(unit.name, lambda _: rivals.throughput(unit)),
            contenders(rivals.throughput, 0.97),
            told=True,
            unit="/s",
        ),
        Group(
            "S3 fewest to most",
            Contender("equal shares", lambda _: 1.0),
            (Contender(unit.name, lambda _: rivals.fairness(unit)), *contenders(rivals.fairness, 0.97)),
            told=True,
            unit="shares",
        ),
    ]
