"""What one lease of an HTTP service sets or receives, no other sees; what all share cannot be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from dependency_injector.wiring import Provide, inject

from tests.http_services import Service, running, settled
from wirestate import ResourceContainer, ResourceManager, SimpleFSM, lifetimes
from wirestate.errors import InvalidSettingError, SharedClientError
from wirestate.resources.http.adapter import HTTPResourceAdapter
from wirestate.resources.recipes import Lifetime

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture
def service(side: Side, invariant: Invariant) -> Service:
    return Service(side, invariant)


def spy(message: object) -> None:
    raise AssertionError("a hook of another lease was called")


async def aspy(message: object) -> None:
    spy(message)


def hook_of(client: Any) -> Any:
    return aspy if isinstance(client, httpx.AsyncClient) else spy


def do(client: Any, name: str, value: Any) -> None:
    setattr(client, name, value)


SETS: dict[str, Callable[[Any], Any]] = {
    "headers": lambda client: do(client, "headers", {"X-Other": "pl4nted"}),
    "one header": lambda client: client.headers.__setitem__("X-Other", "pl4nted"),
    "more headers": lambda client: client.headers.update({"X-Other": "pl4nted"}),
    "a header by default": lambda client: client.headers.setdefault("X-Other", "pl4nted"),
    "a header gone": lambda client: client.headers.pop("User-Agent"),
    "no header left": lambda client: client.headers.clear(),
    "params": lambda client: do(client, "params", {"other": "pl4nted"}),
    "auth": lambda client: do(client, "auth", ("me", "pl4nted")),
    "no auth": lambda client: do(client, "auth", None),
    "cookies": lambda client: do(client, "cookies", {"other": "pl4nted"}),
    "one cookie": lambda client: client.cookies.set("other", "pl4nted"),
    "more cookies": lambda client: client.cookies.update({"other": "pl4nted"}),
    "a cookie by its key": lambda client: client.cookies.__setitem__("other", "pl4nted"),
    "no cookie left": lambda client: client.cookies.clear(),
    "base_url": lambda client: do(client, "base_url", "http://127.0.0.1:1/pl4nted"),
    "timeout": lambda client: do(client, "timeout", 0.001),
    "one timeout": lambda client: do(client.timeout, "read", 0.001),
    "follow_redirects": lambda client: do(client, "follow_redirects", False),
    "max_redirects": lambda client: do(client, "max_redirects", 0),
    "hooks": lambda client: do(client, "event_hooks", {"request": [hook_of(client)], "response": [hook_of(client)]}),
    "one hook": lambda client: client.event_hooks["request"].append(hook_of(client)),
    "more hooks": lambda client: client.event_hooks["response"].extend([hook_of(client)]),
    "hooks of one event": lambda client: client.event_hooks.__setitem__("request", [hook_of(client)]),
}


async def seen(client: Any) -> Any:
    """Return what a redirected request of *client* brings to the service."""
    return (await settled(client.get("/redirect?to=/echo"))).json()


@pytest.mark.parametrize("lifetime", ["per_owner", "per_state"])
@pytest.mark.parametrize("setting", SETS)
def test_what_one_lease_sets_no_other_sees(service: Service, server: str, setting: str, lifetime: Lifetime) -> None:
    adapter = service.adapter(server, headers={"X-Key": "k"}, auth=("us", "open"))
    manager = ResourceManager()
    manager.register_provider("api", adapter, lifetime=lifetime)

    async def main() -> None:
        third = await service.side.call(manager, "acquire", "api", "third")  # open before, while and after
        expected = await seen(third)
        first = await service.side.call(manager, "acquire", "api", "first")
        assert first is await service.side.call(manager, "acquire", "api", "first")
        SETS[setting](first)
        assert await seen(third) == expected
        second = await service.side.call(manager, "acquire", "api", "second")
        assert await seen(second) == expected
        await service.side.call(manager, "release_all", "first")
        assert await seen(await service.side.call(manager, "acquire", "api", "first")) == expected
        await service.side.call(manager, "close")

    service.side.run(main())


@pytest.mark.parametrize("setting", SETS)
def test_nothing_can_be_set_on_the_client_of_a_singleton(service: Service, server: str, setting: str) -> None:
    adapter = service.adapter(server, headers={"X-Key": "k"}, auth=("us", "open"))
    manager = ResourceManager()
    manager.register_provider("api", adapter, lifetime="singleton")

    async def main() -> None:
        client = await service.side.call(manager, "acquire", "api", "first")
        assert client is await service.side.call(manager, "acquire", "api", "second")
        expected = await seen(client)
        with pytest.raises(SharedClientError, match=r"'api' is a singleton.*declare it per owner"):
            SETS[setting](client)
        assert await seen(client) == expected
        await service.side.call(manager, "close")

    service.side.run(main())


async def own_of(client: Any) -> Any:
    """Return what requests bring that say all by themselves."""
    options: dict[str, Any] = {"headers": {"X-Own": "mine", "Cookie": "own=mine"}, "params": {"own": "mine"}}
    return (await settled(client.get("/echo", auth=("me", "mine"), timeout=5, **options))).json()


def test_the_client_of_a_singleton_can_be_read_and_each_request_says_its_own(service: Service, server: str) -> None:
    manager = ResourceManager()
    manager.register_provider("api", service.adapter(server, headers={"X-Key": "k"}, timeout=7), lifetime="singleton")

    async def main() -> None:
        client = await service.side.call(manager, "acquire", "api", "first")
        assert client.headers["x-key"] == "k"
        assert client.headers.copy()["X-Key"] == "k"
        assert client.timeout == httpx.Timeout(7, pool=30)
        assert client.timeout != httpx.Timeout(8)
        assert (len(client.cookies), len(client.params), client.event_hooks["request"]) == (0, 0, [])
        own = await own_of(client)
        assert own["query"] == "own=mine"
        assert own["headers"]["x-own"] == "mine"
        assert own["headers"]["cookie"] == "own=mine"
        assert not {"x-own", "authorization", "cookie"} & (await seen(client))["headers"].keys()
        await service.side.call(manager, "close")

    service.side.run(main())


@pytest.mark.parametrize("lifetime", ["singleton", "per_owner", "per_state"])
def test_a_cookie_that_one_owner_received_goes_out_with_no_request_of_another(
    service: Service, server: str, lifetime: Lifetime
) -> None:
    manager = ResourceManager()
    manager.register_provider("api", service.adapter(server), lifetime=lifetime)

    async def main() -> None:
        first = await service.side.call(manager, "acquire", "api", "first")
        assert (await settled(first.get("/cookie"))).cookies["session"] == "cookie-of-the-service"
        kept = "cookie" in (await seen(first))["headers"]
        assert kept is (lifetime != "singleton")  # its own session lasts as long as the lease
        second = await service.side.call(manager, "acquire", "api", "second")
        assert "cookie" not in (await seen(second))["headers"]
        await service.side.call(manager, "close")

    service.side.run(main())


@pytest.mark.parametrize("lifetime", [lifetimes.PerOwner, lifetimes.PerState])
def test_what_one_run_sets_the_next_run_does_not_send(service: Service, server: str, lifetime: Any) -> None:
    class Container(ResourceContainer):
        api = lifetime(HTTPResourceAdapter, base_url=server, async_client=service.is_async)

    @inject
    def asks(record: Any, api: httpx.Client = Provide["api"]) -> Any:
        if record["first"]:
            api.headers["X-Other"] = "pl4nted"
            api.get("/cookie")
        return {"headers": api.get("/echo").json()["headers"]}

    @inject
    async def asks_in_a_loop(record: Any, api: httpx.AsyncClient = Provide["api"]) -> Any:
        if record["first"]:
            api.headers["X-Other"] = "pl4nted"
            await api.get("/cookie")
        return {"headers": (await api.get("/echo")).json()["headers"]}

    machine = {"states": {"s": {"transform": "asks"}}}
    functions = {"asks": asks_in_a_loop if service.is_async else asks}

    async def main() -> None:
        container = Container()
        fsm = SimpleFSM(machine, container=container, functions=functions)
        runs = [await service.side.call(fsm, "process", {"first": first}) for first in (True, False)]
        sent = [{"x-other", "cookie"} & cast("Any", run.data)["headers"].keys() for run in runs]
        assert sent == [{"x-other", "cookie"}, set()]
        await service.side.call(fsm, "close")
        await settled(container.shutdown_resources())

    service.side.run(main())


def test_a_singleton_in_a_machine_refuses_to_be_changed(server: str) -> None:
    class Container(ResourceContainer):
        api = lifetimes.Singleton(HTTPResourceAdapter, base_url=server)

    @inject
    def sets(record: Any, api: httpx.Client = Provide["api"]) -> Any:
        api.headers["X-Other"] = "pl4nted"

    container = Container()
    with SimpleFSM({"states": {"s": {"transform": "sets"}}}, container=container, functions={"sets": sets}) as fsm:
        assert "declare it per owner" in str(fsm.process({}).error)
    container.shutdown_resources()


@pytest.mark.parametrize("lifetime", ["singleton", "per_owner"])
def test_what_a_factory_sets_every_lease_has(service: Service, server: str, lifetime: Lifetime) -> None:
    kind: Any = httpx.AsyncClient if service.is_async else httpx.Client

    class Mine(kind):  # type: ignore[misc]  # of either world
        __slots__ = ("extra",)

    def factory(**options: Any) -> Any:
        client = Mine(**options, cookies={"ours": "set"}, params={"ours": "set"})
        client.headers["X-Ours"] = "set"
        return client

    manager = ResourceManager()
    manager.register_provider("api", service.adapter(server, client_factory=factory), lifetime=lifetime)

    async def main() -> None:
        for owner in ("first", "second"):
            client = await service.side.call(manager, "acquire", "api", owner)
            assert isinstance(client, Mine)
            brought = (await settled(client.get("/echo"))).json()
            assert (brought["headers"]["x-ours"], brought["headers"]["cookie"]) == ("set", "ours=set")
            assert brought["query"] == "ours=set"
            if lifetime == "singleton":
                with pytest.raises(SharedClientError):
                    client.cookies.clear()
            else:
                client.cookies.clear()
        await service.side.call(manager, "close")

    service.side.run(main())


def test_a_factory_that_gives_one_client_to_two_leases_is_refused(service: Service, server: str) -> None:
    made: list[Any] = []

    def factory(**options: Any) -> Any:
        kind: Any = httpx.AsyncClient if service.is_async else httpx.Client
        made.append(made[0] if made else kind(**options))
        return made[0]

    async def main() -> None:
        async with service.lent(server, client_factory=factory) as (adapter, _):
            with pytest.raises(InvalidSettingError, match="must make a new one for each lease"):
                await service.lease(adapter)

    service.side.run(main())


def test_leases_share_their_connections(service: Service, server: str) -> None:
    async def main() -> None:
        async with service.lent(server) as (adapter, client):
            accepted = (await settled(client.get("/connections"))).json()
            for _ in range(3):
                other = await service.lease(adapter)
                assert (await settled(other.get("/connections"))).json() == accepted
                await service.side.call(adapter, "release", other)

    service.side.run(main())


def test_a_client_is_closed_with_its_lease(service: Service, server: str) -> None:
    async def main() -> None:
        async with service.lent(server) as (adapter, client):
            under_way = await service.send(client, "GET", "/stream/10")
            await service.side.call(adapter, "release", client)
            assert len(await service.read(under_way)) == 10 * 65536  # what it began is brought to its end
            with pytest.raises(RuntimeError, match="closed"):
                await settled(client.get("/ok"))

    service.side.run(main())


def test_a_subclass_may_lend_what_it_makes_of_a_client(server: str) -> None:
    class Users(HTTPResourceAdapter):
        def acquire(self, **options: Any) -> Any:
            client = super().acquire(**options)
            client.headers["X-Ours"] = "set"
            return client if self.name == "client" else client.get

    for name in ("client", "verb"):
        manager = ResourceManager()
        manager.register_provider("api", Users(name, base_url=server), lifetime="singleton")
        lent = manager.acquire("api", "me")
        answer = lent.get("/echo") if name == "client" else lent("/echo")
        assert answer.json()["headers"]["x-ours"] == "set"
        manager.release("api", "me")
        manager.close()
