"""S5: acquire from a manager by name and owner and give back, with ten owners and with ten thousand.

The unit of acquire and release is the guide's own package. Release_all and close have units of their own: the same
with few owners, since it must be flat (linear for close), and the time that a close may take.
Counted acquires, holders and metrics are on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from benchmarks.timing import Contender, Group
from wirestate import BaseResourceProvider, PoolConfig, ResourceManager

PEERS = ("dataknobs-fsm",)
REASONS = {
    "S5 acquire, release": "a tenth is the provider's own, a tenth reads the clock for the metrics; most of the rest "
    "is the loan, which keeps the threads of one owner on one resource without a lock."
}
CLOSE_SECONDS = 0.05  # for MANY owners


def groups() -> list[Group]:
    from benchmarks.peers import managers as peers  # here: they are imported once all are known to be there

    class ThingProvider(BaseResourceProvider):
        def acquire(self, **_: object) -> peers.Thing:
            return peers.Thing()

        def release(self, resource: peers.Thing) -> None: ...

    def manager(pool: PoolConfig | None = None) -> ResourceManager:
        made = ResourceManager()
        made.register_provider(peers.NAME, ThingProvider(peers.NAME), pool)
        return made

    def lending(pool: PoolConfig | None = None) -> Contender:
        ours = manager(pool)
        return Contender(
            "wirestate", peers.lending(ours.acquire, ours.release, ours.has_resource), "wirestate", goal=0.5
        )

    def release_all(owners: int, goal: float | None = None) -> Contender:
        ours = manager()
        peers.fill(ours.acquire, owners)
        run = peers.releasing_all(ours.acquire, ours.release_all, ours.has_resource)
        return Contender(f"wirestate, {owners:,} owners", run, "wirestate", goal)

    def close(owners: int, goal: float | None = None, *, each: bool = True) -> Contender:
        def filled() -> Callable[[], object]:
            ours = manager()
            peers.fill(ours.acquire, owners)
            return ours.close

        title = f"wirestate, {owners:,} owners{', each' if each else ''}"
        return Contender(title, peers.closing(filled), "wirestate", goal, owners if each else 1)

    logging.getLogger("wirestate").setLevel(logging.ERROR)  # else each close tells who has not released
    few, many = peers.FEW, peers.MANY
    rivals = (peers.dataknobs_release_all(few), peers.dataknobs_release_all(many))
    allowed = Contender(f"{CLOSE_SECONDS * 1000:g} ms", lambda n: n * CLOSE_SECONDS)
    return [
        Group("S5 acquire, release", peers.dataknobs(), (lending(),)),
        Group("S5 pooled", peers.dataknobs_pooled(), (lending(PoolConfig(max_size=peers.POOL_SIZE)),)),
        Group("S5 acquire, release_all", release_all(few), (release_all(many, goal=1.2), *rivals)),
        Group("S5 close", close(100), (close(many, goal=1.5),), told=True),
        Group("S5 close", allowed, (close(many, goal=1.0, each=False),), told=True),
    ]
