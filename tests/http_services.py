"""HTTP services for tests: a scripted server in a process of its own, and adapters used alike in both worlds."""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.crews import Crew
from wirestate.resources.http.adapter import HTTPResourceAdapter

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant

SERVER = Path(__file__).parent / "servers" / "http_server.py"


@contextmanager
def running() -> Iterator[str]:
    """Run the server; gives its URL."""
    process = subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate()


def dead() -> str:
    """Return a URL at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


async def settled(answer: Any) -> Any:
    """Await what one of the worlds has to await."""
    return await answer if inspect.isawaitable(answer) else answer


class Service:
    """Adapters of one world; their gates are watched."""

    def __init__(self, side: Side, invariant: Invariant) -> None:
        self.side = side
        self.is_async = side.is_async
        self.crew = Crew(side.world)
        self._invariant = invariant

    def adapter(self, base_url: str, **settings: Any) -> HTTPResourceAdapter:
        settings = {"retry_pause": 0.01, **settings}
        adapter = HTTPResourceAdapter("api", base_url=base_url, async_client=self.is_async, **settings)
        self._invariant.watch(adapter.gate)
        return adapter

    async def lease(self, adapter: HTTPResourceAdapter) -> Any:
        return await self.side.call(adapter, "acquire")

    async def send(self, client: Any, method: str, url: str, **options: Any) -> httpx.Response:
        """Send one request and leave its response open."""
        answer: httpx.Response = await settled(client.send(client.build_request(method, url, **options), stream=True))
        return answer

    async def read(self, response: httpx.Response) -> bytes:
        content: bytes = await (response.aread() if self.is_async else settled(response.read()))
        return content

    async def shut(self, thing: Any) -> None:
        """Close a response or a client."""
        await (thing.aclose() if self.is_async else settled(thing.close()))

    @asynccontextmanager
    async def lent(self, base_url: str, **settings: Any) -> AsyncIterator[tuple[HTTPResourceAdapter, Any]]:
        adapter = self.adapter(base_url, **settings)
        try:
            yield adapter, await self.lease(adapter)
        finally:
            await self.side.call(adapter, "close")

    def run(self, work: Callable[[Any], Awaitable[Any]], *, base_url: str, **settings: Any) -> Any:
        """Run *work* with a function that sends one request."""

        async def main() -> Any:
            async with self.lent(base_url, **settings) as (_, client):

                async def request(method: str, url: str, **options: Any) -> Any:
                    return await settled(client.request(method, url, **options))

                return await work(request)

        return self.side.run(main())
