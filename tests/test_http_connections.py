"""The connections of an HTTP adapter: at their limit, cancelled in bursts, broken, dropped and closed."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from dependency_injector.wiring import Provide, inject

from tests.crews import Crew
from tests.http_services import Service, running, settled
from wirestate import ResourceContainer, SimpleFSM, container_from_settings, lifetimes, manager_of
from wirestate.errors import PoolTimeoutError, ResourceClosedError, TooManyWaitingError
from wirestate.observing import Listener
from wirestate.resources.http.adapter import HTTPResourceAdapter
from wirestate.resources.http.connections import Outlet
from wirestate.resources.pool_config import PoolConfig
from wirestate.settings import WirestateSettings
from wirestate.waiting import SUSPENDING, drive

pytestmark = pytest.mark.usefixtures("invariant")

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant

ROUNDS = 50
LIMIT = 2
# Cancelled at a bad moment, httpx leaves a socket to the garbage collection.
UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
CLOSING = {"Connection": "close"}  # so that each waiting request gets a new connection


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture
def service(side: Side, invariant: Invariant) -> Service:
    return Service(side, invariant)


@asynccontextmanager
async def narrow(server: str, invariant: Invariant) -> AsyncIterator[Any]:
    """Give an asynchronous client with few places: only tasks can be cancelled."""
    adapter = HTTPResourceAdapter("api", base_url=server, async_client=True, max_connections=LIMIT, timeout=20)
    invariant.watch(adapter.gate)
    yield await adapter.aacquire()
    await adapter.aclose()


def outlet_of(client: Any) -> Any:
    """Return what sends the requests of *client* now."""
    return client._transport._connections._outlets.get()


def httpx_pool(client: Any) -> Any:
    return outlet_of(client).transport._pool


# --- at the limit ---------------------------------------------------------------------------


async def hedged(get: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Send several requests; the first that is answered cancels the others, in the same tick as the next are served."""
    members: list[asyncio.Task[Any]] = []

    async def member() -> None:
        await get()
        for other in members:
            if other is not asyncio.current_task():
                other.cancel()

    members += [asyncio.create_task(member()) for _ in range(3 * LIMIT)]
    await asyncio.gather(*members, return_exceptions=True)


async def stopped(get: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Send several requests and cancel each at any point of its life."""

    async def member() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, 0.02)):
                await get()

    await asyncio.gather(*(member() for _ in range(6 * LIMIT)))


async def stopped_twice(get: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Cancel each request again while it cleans up after the first time."""
    members = [asyncio.create_task(get()) for _ in range(6 * LIMIT)]
    await asyncio.sleep(random.uniform(0, 0.01))
    while not all(member.done() for member in members):
        for member in members:
            member.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*members, return_exceptions=True)


@pytest.mark.documentation
@UNCLOSED
@pytest.mark.parametrize("burst", [hedged, stopped])
def test_httpx_by_itself_loses_places_when_waiting_requests_are_cancelled(server: str, burst: Any) -> None:
    limits = httpx.Limits(max_connections=LIMIT, max_keepalive_connections=LIMIT)

    async def lost() -> bool:
        timeout = httpx.Timeout(20, pool=1)
        async with httpx.AsyncClient(base_url=server, limits=limits, timeout=timeout) as client:
            for _ in range(ROUNDS):
                await burst(lambda: client.get("/ok", headers=CLOSING))
                try:
                    await client.get("/ok")  # alone: nobody else is there to have the places
                except httpx.PoolTimeout:
                    return True
        return False

    has_lost = asyncio.run(lost())
    gc.collect()
    if not has_lost:
        pytest.skip(f"httpx {httpx.__version__} no longer loses places: none in {ROUNDS} rounds")


@UNCLOSED
@pytest.mark.parametrize("burst", [hedged, stopped, stopped_twice])
def test_requests_succeed_after_bursts_of_cancelled_ones(server: str, burst: Any, invariant: Invariant) -> None:
    async def main() -> None:
        async with narrow(server, invariant) as client:
            for _ in range(ROUNDS):
                await burst(lambda: client.get("/ok", headers=CLOSING))
                assert (await client.get("/ok")).status_code == 200
            answers = await asyncio.gather(*(client.get("/ok") for _ in range(20)))
            assert [answer.status_code for answer in answers] == [200] * 20

    asyncio.run(main())
    gc.collect()


def test_requests_succeed_after_bursts_of_those_that_gave_up(service: Service, server: str) -> None:
    async def main() -> None:
        settings = {"max_connections": LIMIT, "retry_count": 0, "breaker_failures": None}
        async with service.lent(server, **settings) as (adapter, client):

            async def impatient() -> None:
                with pytest.raises((PoolTimeoutError, httpx.TimeoutException)):
                    await settled(client.get("/slow/0.2", timeout=0.05))

            for _ in range(3):
                members = [service.crew.start(impatient()) for _ in range(6 * LIMIT)]
                for member in members:
                    await member.result()
                assert adapter.gate.snapshot().used == 0
            assert (await settled(client.get("/ok", timeout=20))).status_code == 200

    service.side.run(main())


def test_requests_are_served_in_the_order_in_which_they_came(service: Service, server: str) -> None:
    async def main() -> None:
        served = []
        async with service.lent(server, max_connections=1) as (adapter, client):
            holding = await service.send(client, "GET", "/ok")

            async def request(number: int) -> None:
                await settled(client.get("/ok"))
                served.append(number)

            members = []
            for number in range(8):
                members.append(service.crew.start(request(number)))
                await service.crew.until(lambda: adapter.gate.snapshot().waiting == len(members))
            await service.shut(holding)
            for member in members:
                await member.result()
        if service.is_async:
            assert served == list(range(8))
        else:  # threads are let in by turns, but may note their end in any order
            assert sorted(served) == list(range(8))

    service.side.run(main())


def test_no_more_connections_are_opened_than_may_be(service: Service, server: str) -> None:
    async def main() -> None:
        async with service.lent(server, max_connections=3) as (_, client):
            before = (await settled(client.get("/connections"))).json()

            async def request() -> None:
                await settled(client.get("/slow/0.01"))

            members = [service.crew.start(request()) for _ in range(20)]
            for member in members:
                await member.result()
            assert (await settled(client.get("/connections"))).json() - before <= 2  # beside the one that asks

    service.side.run(main())


def test_connections_are_kept_alive(service: Service, server: str) -> None:
    async def work(request: Any) -> Any:
        before = (await request("GET", "/connections")).json()
        for _ in range(5):
            await request("GET", "/ok")
        return (await request("GET", "/connections")).json() - before

    assert service.run(work, base_url=server) == 0


@pytest.mark.parametrize(
    ("pool", "error", "words"),
    [
        ({"acquire_timeout": 0}, PoolTimeoutError, r"came free in 0\.00 s .*held .* by GET /ok"),
        ({"acquire_timeout": 0.02}, PoolTimeoutError, r"came free in 0\.02 s"),
        ({"max_waiting": 0}, TooManyWaitingError, "0 are waiting already"),
    ],
)
def test_a_streamed_answer_holds_its_place_until_it_is_closed(
    service: Service, server: str, pool: dict[str, Any], error: type[Exception], words: str
) -> None:
    async def main() -> None:
        async with service.lent(server, pool=PoolConfig(max_size=1, **pool)) as (_, client):
            answer = await service.send(client, "GET", "/ok?token=pl4nted-token")
            with pytest.raises(error, match=words) as caught:
                await settled(client.get("/ok"))
            assert "pl4nted" not in str(caught.value)
            await service.shut(answer)
            assert (await settled(client.get("/ok"))).status_code == 200

    service.side.run(main())


def test_a_request_waits_for_a_place_no_longer_than_its_caller_says(service: Service, server: str) -> None:
    async def main() -> None:
        async with service.lent(server, max_connections=1) as (_, client):
            answer = await service.send(client, "GET", "/ok")
            with pytest.raises(PoolTimeoutError, match=r"came free in 0\.03 s"):
                await settled(client.get("/ok", timeout=httpx.Timeout(20, pool=0.03)))
            await service.shut(answer)

    service.side.run(main())


# --- dropped --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default::ResourceWarning")
def test_a_dropped_response_gives_its_place_and_its_connection_back(service: Service, server: str) -> None:
    heard = []

    class Hears(Listener):
        def on_leak(self, resource: str, owner_id: str | None, stack: str) -> None:
            heard.append((resource, owner_id))

    async def main() -> None:
        async with service.lent(server, max_connections=1) as (adapter, client):
            first = outlet_of(client)
            adapter.gate.listen(Hears())
            for times in range(1, 4):
                await service.send(client, "GET", "/stream/100")
                gc.collect()
                assert (await settled(client.get("/ok"))).status_code == 200
                assert adapter.gate.snapshot().leaks == times
            assert outlet_of(client) is first
            assert len(httpx_pool(client).connections) == 1
            await Crew(service.side.world).until(lambda: len(heard) == 3)  # another thread may tell of a loss

    with pytest.warns(ResourceWarning, match="a lease of GET /stream/100 was lost"):
        service.side.run(main())
    assert heard == [("api", "GET /stream/100")] * 3


def test_a_streamed_answer_that_is_read_in_part_and_closed_gives_all_back(service: Service, server: str) -> None:
    async def main() -> None:
        async with service.lent(server, max_connections=1) as (adapter, client):
            answer = await service.send(client, "GET", "/stream/100")
            if service.is_async:
                async for chunk in answer.aiter_raw():
                    assert chunk
                    break
            else:
                assert next(answer.iter_raw())
            await service.shut(answer)
            await service.shut(answer)  # a second time is nothing
            assert adapter.gate.snapshot().used == 0
            assert (await settled(client.get("/ok"))).status_code == 200

    service.side.run(main())


# --- broken ---------------------------------------------------------------------------------


def test_connections_that_httpx_has_lost_are_made_anew_and_disturb_nobody(
    service: Service, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "wirestate.http")

    async def main() -> None:
        async with service.lent(server, max_connections=LIMIT, timeout=20) as (_, client):
            lost = outlet_of(client)
            under_way = await service.send(client, "GET", "/stream/100")
            # Past our gate, so that httpx's own places are gone.
            past = [
                await settled(
                    lost.transport.handle_async_request(httpx.Request("GET", f"{server}/ok"))
                    if service.is_async
                    else lost.transport.handle_request(httpx.Request("GET", f"{server}/ok"))
                )
                for _ in range(LIMIT - 1)
            ]
            assert (await settled(client.post("/ok"))).status_code == 200  # not idempotent, and sent all the same
            assert outlet_of(client) is not lost
            assert len(await service.read(under_way)) == 100 * 65536
            assert lost.transport._pool.connections == []  # closed with the last request that used it
            for answer in past:
                await service.shut(answer)

    service.side.run(main())
    assert caplog.text.count("made anew") == 1


def test_a_transport_that_raises_nonsense_is_replaced_for_the_next_request(service: Service, server: str) -> None:
    async def main() -> None:
        async with service.lent(server, retry_count=0) as (_, client):
            await settled(client.get("/ok"))
            broken = outlet_of(client)
            connections, broken.transport._pool._connections = broken.transport._pool._connections, None
            with pytest.raises(TypeError):
                await settled(client.get("/ok"))
            assert (await settled(client.get("/ok"))).status_code == 200
            assert outlet_of(client) is not broken
            broken.transport._pool._connections = connections
            await service.shut(broken.transport)

    service.side.run(main())


def test_a_failed_request_is_no_reason_to_replace_the_connections(service: Service, server: str) -> None:
    async def main() -> None:
        async with service.lent(server, retry_count=0, breaker_failures=None) as (_, client):
            first = outlet_of(client)
            with pytest.raises(httpx.TimeoutException):
                await settled(client.get("/slow/0.3", timeout=0.05))
            with pytest.raises(httpx.RemoteProtocolError):
                await settled(client.get(f"/flaky/broken{os.urandom(4).hex()}/1?hang_up=1"))
            assert outlet_of(client) is first

    service.side.run(main())


class Own(httpx.MockTransport):
    """A transport that a user gives."""

    closed = 0

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


def test_a_transport_that_a_user_gives_is_kept_and_closed_with_the_adapter(service: Service) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return {"/bad": lambda: 1 / 0, "/late": late}.get(request.url.path, lambda: httpx.Response(200))()

    def late() -> None:
        raise httpx.PoolTimeout("its own limit")

    own = Own(answer)

    async def main() -> None:
        async with service.lent("https://example.com", transport=own, retry_count=0) as (adapter, client):
            for path, error in {"/bad": ZeroDivisionError, "/late": httpx.PoolTimeout}.items():
                with pytest.raises(error):
                    await settled(client.get(path))
            await service.shut(client)
            assert own.closed == 0
            assert (await settled((await service.lease(adapter)).get("/ok"))).status_code == 200
        assert own.closed == 1

    service.side.run(main())


def test_no_cancellation_stops_the_closing_of_connections_half_way() -> None:
    closed = []

    class Slow(httpx.AsyncBaseTransport):
        async def aclose(self) -> None:
            for number in range(3):
                await asyncio.sleep(0.01)
                closed.append(number)

    async def main() -> None:
        task = asyncio.create_task(Outlet(Slow()).close(SUSPENDING))
        for _ in range(3):
            await asyncio.sleep(0.005)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == [0, 1, 2]

    asyncio.run(main())


# --- closed by a user -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "with"])
def test_a_client_that_a_user_closes_stays_usable_and_closes_no_connection(
    service: Service, server: str, way: str
) -> None:
    async def main() -> None:
        async with service.lent(server) as (adapter, client):
            other = await service.lease(adapter)
            under_way = await service.send(other, "GET", "/stream/100")
            await settled(client.get("/ok"))
            accepted = (await settled(client.get("/connections"))).json()
            if way == "close":
                await service.shut(client)
            elif service.is_async:
                async with client as same:
                    assert same is client
            else:
                with client as same:
                    assert same is client
            for one in (client, other, await service.lease(adapter)):
                assert (await settled(one.get("/connections"))).json() == accepted  # the kept-alive one is used
            assert len(await service.read(under_way)) == 100 * 65536

    service.side.run(main())


def open_now(server: str) -> int:
    """Return how many connections the server has, but for the one that asks."""
    answer: int = httpx.get(f"{server}/open", trust_env=False).json()
    return answer - 1


def test_a_singleton_that_a_state_closes_serves_the_next_runs(server: str) -> None:
    class Container(ResourceContainer):
        api = lifetimes.Singleton(HTTPResourceAdapter, base_url=server)

    @inject
    def asks(record: Any, api: httpx.Client = Provide["api"]) -> dict[str, Any]:
        with api:
            return {"status": api.get("/ok").status_code}

    container = Container()
    machine = {"states": {"s": {"transform": "asks"}}}
    with SimpleFSM(machine, container=container, functions={"asks": asks}) as fsm:
        assert [fsm.process({}).data for _ in range(3)] == [{"status": 200}] * 3
    container.shutdown_resources()


def test_a_client_of_another_factory_is_closed_by_its_lease_only(service: Service, server: str) -> None:
    kind: Any = httpx.AsyncClient if service.is_async else httpx.Client
    closed: list[Any] = []

    class Mine(kind):  # type: ignore[misc]  # of either world
        def close(self) -> None:
            closed.append(self)

        async def aclose(self) -> None:
            closed.append(self)

    async def main() -> None:
        async with service.lent(server, client_factory=Mine) as (adapter, client):
            assert isinstance(client, Mine)
            await service.shut(client)
            assert closed == []
            assert (await settled(client.get("/ok"))).status_code == 200
            await service.side.call(adapter, "release", client)
            assert closed == [client]
            assert (await settled((await service.lease(adapter)).get("/ok"))).status_code == 200

    service.side.run(main())


# --- closed by its adapter ------------------------------------------------------------------


def test_close_lets_the_request_under_way_finish_and_refuses_the_others(service: Service, server: str) -> None:
    async def main() -> None:
        async with service.lent(server, max_connections=1) as (adapter, client):
            under_way = await service.send(client, "GET", "/stream/100")
            waiting = service.crew.start(settled_get(client))
            await service.crew.until(lambda: adapter.gate.snapshot().waiting == 1)
            await service.side.call(adapter, "close")
            assert isinstance(await waiting.error(), ResourceClosedError)
            assert len(await service.read(under_way)) == 100 * 65536
            with pytest.raises(ResourceClosedError):
                await settled(client.get("/ok"))
            await service.crew.until(lambda: open_now(server) == 0)

    service.side.run(main())


async def settled_get(client: Any) -> Any:
    return await settled(client.get("/ok"))


# --- loops and processes --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # a closed loop can close nothing
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
def test_each_event_loop_gets_connections_of_its_own(server: str, invariant: Invariant) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server, async_client=True)
    invariant.watch(adapter.gate)
    clients: list[Any] = []

    async def main() -> None:
        client = await adapter.aacquire()
        clients.append(client)
        assert (await client.get("/ok")).status_code == 200

    async def again() -> None:
        await main()
        assert (await clients[0].get("/ok")).status_code == 200  # the old one finds connections of this loop
        assert outlet_of(clients[0]) is outlet_of(clients[1])
        await adapter.aclose()

    asyncio.run(main())
    asyncio.run(again())
    clients.clear()
    gc.collect()


def ask_in_child(adapter: HTTPResourceAdapter, client: Any, pipe: Any) -> None:
    pipe.send([client.get("/ok").status_code, adapter.acquire().get("/ok").status_code])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # other tests leave threads behind
def test_a_forked_child_opens_connections_of_its_own(server: str, invariant: Invariant) -> None:
    adapter = HTTPResourceAdapter("api", base_url=server)
    invariant.watch(adapter.gate)
    client = adapter.acquire()
    before = client.get("/connections").json()
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=ask_in_child, args=(adapter, client, there))
    child.start()
    assert here.poll(20)
    assert here.recv() == [200, 200]
    child.join()
    assert client.get("/connections").json() == before + 1  # the child's; ours is still alive
    adapter.close()


# --- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_pool_settings_of_the_environment_reach_httpx(
    monkeypatch: pytest.MonkeyPatch, server: str, invariant: Invariant, *, asynchronous: bool
) -> None:
    for name, value in {
        "KIND": "http",
        "BASE_URL": server,
        "ASYNC_CLIENT": str(asynchronous),
        "TIMEOUT": "7",
        "POOL__MAX_SIZE": "3",
        "POOL__MAX_IDLE_TIME": "11",
        "POOL__ACQUIRE_TIMEOUT": "0.5",
        "POOL__MAX_WAITING": "2",
    }.items():
        monkeypatch.setenv(f"WIRESTATE_RESOURCES__API__{name}", value)

    async def check() -> None:
        container = container_from_settings(WirestateSettings())
        manager = manager_of(container)
        client = await settled(manager.aacquire("api", "me") if asynchronous else manager.acquire("api", "me"))
        real = httpx_pool(client)
        assert (real._max_connections, real._max_keepalive_connections, real._keepalive_expiry) == (3, 3, 11)
        assert client.timeout == httpx.Timeout(7, pool=0.5)
        assert client._transport._gate.snapshot().limit == 3
        assert (client._transport._gate.longest_wait, client._transport._gate._max_waiting) == (0.5, 2)
        await manager.aclose() if asynchronous else manager.close()

    asyncio.run(check()) if asynchronous else drive(check())
