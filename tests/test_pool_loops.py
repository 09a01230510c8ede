"""Pools that several event loops share: running ones, such as stand still, and such as are gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.crews import PATIENCE, Resource, TaskMaker
from tests.invariant import Invariant
from wirestate.errors import AsyncResourceError, PoolTimeoutError, ResourceClosedError
from wirestate.resources.pool import PoolConfig, ResourcePool

pytestmark = [pytest.mark.usefixtures("invariant"), pytest.mark.filterwarnings("ignore::ResourceWarning")]


class Homesick(TaskMaker):
    """Its resources are checked and destroyed only where they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.homes: dict[int, Any] = {}

    async def acquire(self) -> Resource:
        resource = await super().acquire()
        self.homes[resource.number] = asyncio.get_running_loop()
        return resource

    def destroy(self, resource: Resource) -> None:
        assert self.homes[resource.number] is asyncio.get_running_loop()
        super().destroy(resource)


class Elsewhere:
    """An event loop that runs in a thread of its own."""

    def __enter__(self) -> Elsewhere:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *outcome: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    def start(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.start(work).result(PATIENCE)


@pytest.fixture
def maker() -> Homesick:
    return Homesick()  # not watched: what rests on a loop that is closed can be destroyed no more


def pool_of(maker: TaskMaker, invariant: Invariant, **settings: Any) -> ResourcePool:
    made: ResourcePool = invariant.watch(ResourcePool(maker, PoolConfig(**settings)))
    return made


async def until(so: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not so():
            await asyncio.sleep(0.001)


async def number_of_one(pool: ResourcePool, timeout: float | None = None) -> int:
    async with await pool.aacquire(timeout) as resource:
        return int(resource.number)


async def rested(pool: ResourcePool, count: int) -> None:
    for lease in [await pool.aacquire() for _ in range(count)]:
        await lease.arelease()


def test_what_comes_back_on_its_loop_makes_room_for_who_waits_on_another(maker: Homesick, invariant: Invariant) -> None:
    pool = pool_of(maker, invariant, max_size=1)

    async def main() -> None:
        with Elsewhere() as elsewhere:
            for number in (1, 3):  # there and back: a place moves as often as it has to
                lease = await pool.aacquire(PATIENCE)
                assert lease.resource.number == number
                waiter = elsewhere.start(number_of_one(pool))
                await until(lambda: pool.snapshot().waiting == 1)
                await lease.arelease()
                assert await asyncio.wrap_future(waiter) == number + 1
            assert pool.snapshot().discards == {"moved": 3}

    asyncio.run(main())


def test_no_more_places_move_than_others_wait_for(maker: Homesick, invariant: Invariant) -> None:
    pool = pool_of(maker, invariant, max_size=3)

    async def main() -> None:
        with Elsewhere() as elsewhere:
            await rested(pool, 3)
            assert await asyncio.wrap_future(elsewhere.start(number_of_one(pool))) == 4
            assert pool.snapshot().discards == {"moved": 1}
            assert await number_of_one(pool) == 3  # what rested least is lent first, still

    asyncio.run(main())


def test_a_search_for_what_a_loop_has_leaves_the_order_of_the_others(maker: Homesick, invariant: Invariant) -> None:
    pool = pool_of(maker, invariant, max_size=4)

    async def main() -> None:
        with Elsewhere() as elsewhere:
            await rested(pool, 3)
            assert await asyncio.wrap_future(elsewhere.start(number_of_one(pool))) == 4
            assert await number_of_one(pool) == 3

    asyncio.run(main())


def test_a_lease_that_is_released_on_another_loop_ends_on_its_own(maker: Homesick, invariant: Invariant) -> None:
    pool = pool_of(maker, invariant, max_size=2)

    async def main() -> None:
        with Elsewhere() as elsewhere:
            one, two = await pool.aacquire(), await pool.aacquire()
            await asyncio.wrap_future(elsewhere.start(one.arelease(broken=True)))
            await until(lambda: maker.destroyed == 1)
            await two.arelease()
            await asyncio.wrap_future(elsewhere.start(pool.aclose()))
            await until(lambda: maker.destroyed == 2)

    asyncio.run(main())


def test_a_resource_of_a_loop_is_lent_to_no_thread(maker: Homesick, invariant: Invariant) -> None:
    pool = pool_of(maker, invariant, max_size=2)

    async def main() -> None:
        await rested(pool, 1)
        with pytest.raises(AsyncResourceError):
            pool.acquire()
        with pytest.raises(AsyncResourceError):
            await asyncio.to_thread(pool.acquire, 0)
        assert await number_of_one(pool) == 1

    asyncio.run(main())


def test_who_waits_on_a_closed_loop_is_passed_by_and_nothing_moves_for_them(
    maker: Homesick, invariant: Invariant
) -> None:
    pool = pool_of(maker, invariant, max_size=1)

    async def park() -> Any:
        waiter = asyncio.ensure_future(pool.aacquire(60))
        await asyncio.sleep(0)
        return waiter

    def leave_behind() -> None:
        loop = asyncio.new_event_loop()
        waiter = loop.run_until_complete(park())
        loop.close()
        waiter._log_destroy_pending = False

    async def main() -> None:
        lease = await pool.aacquire()
        await asyncio.to_thread(leave_behind)
        second = asyncio.create_task(pool.aacquire(PATIENCE))
        await asyncio.sleep(0)
        await lease.arelease()
        async with await second as resource:
            assert resource.number == 1
        assert pool.snapshot().discards == {}

    asyncio.run(main())


def test_a_loop_that_stands_still_is_named_and_gives_way_when_it_is_closed(
    maker: Homesick, invariant: Invariant
) -> None:
    pool = pool_of(maker, invariant, max_size=1)
    still = asyncio.new_event_loop()
    assert still.run_until_complete(number_of_one(pool)) == 1

    async def main() -> None:
        with pytest.raises(PoolTimeoutError, match="1 belong to event loops that do not run: run or close them"):
            await pool.aacquire(0.02)
        waiter = asyncio.create_task(number_of_one(pool, PATIENCE))
        await asyncio.sleep(0)
        await asyncio.to_thread(still.close)
        assert await waiter == 2

    asyncio.run(main())


def test_a_loop_that_stood_still_goes_on_with_a_resource_of_its_own(maker: Homesick, invariant: Invariant) -> None:
    pool = pool_of(maker, invariant, max_size=1)

    async def late() -> None:
        with pytest.raises(PoolTimeoutError):
            await pool.aacquire(0.01)

    with asyncio.Runner() as still:
        assert still.run(number_of_one(pool)) == 1
        asyncio.run(late())
        assert still.run(number_of_one(pool, PATIENCE)) == 2
        assert maker.destroyed == 1
        still.run(pool.aclose())


def test_a_close_on_another_loop_ends_what_rests_on_one_that_stands_still_when_that_goes_on(
    maker: Homesick, invariant: Invariant
) -> None:
    pool = pool_of(maker, invariant, max_size=1)

    async def refused() -> None:
        with pytest.raises(ResourceClosedError):
            await pool.aacquire(0)
        await until(lambda: maker.destroyed == 1)

    with asyncio.Runner() as still:
        still.run(number_of_one(pool))
        asyncio.run(pool.aclose())
        still.run(refused())
