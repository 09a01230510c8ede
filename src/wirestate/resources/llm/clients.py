"""The openai clients behind one model: one for all threads, one for each event loop, each closed where it was made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import openai
from pydantic import SecretStr

from wirestate.resources.http.clients import DeafJar
from wirestate.resources.native_pools import PerLoop
from wirestate.resources.secrets import revealed, revealed_all
from wirestate.waiting import World, drive

NO_KEY = "none"  # the client wants one; NO_AUTHORIZATION takes it off again
AUTHORIZATION = "Authorization"
NO_AUTHORIZATION: Mapping[str, Any] = {AUTHORIZATION: openai.Omit()}  # Any: a value that the client's types leave out


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is, and what its service wants to see with each request."""

    base_url: str
    api_key: SecretStr | None = None
    headers: Mapping[str, SecretStr] = field(default_factory=dict)

    @property
    def secrets(self) -> list[str]:
        """What must not be shown, should the service quote it."""
        return [revealed(secret) for secret in (self.api_key, *self.headers.values()) if secret is not None]

    @property
    def is_open(self) -> bool:
        """Whether it is asked without credentials."""
        return self.api_key is None and AUTHORIZATION not in self.headers

    def keywords(self) -> dict[str, Any]:  # Any: those of the client
        """Return what makes a client say this and nothing else.

        The client takes what it is not given from variables of its own, and would send the keys and names
        in them to any base URL.
        """
        key = NO_KEY if self.api_key is None else revealed(self.api_key)
        lines = [line.partition(":")[0].strip() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")]
        ambient = {name: openai.Omit() for name in lines if name}
        authorization = {} if self.is_open else {AUTHORIZATION: f"Bearer {key}"}
        return {
            "api_key": key,
            "base_url": self.base_url,
            "max_retries": 0,
            "default_headers": {**ambient, **authorization, **revealed_all(self.headers)},
        }


class LoopClient:
    """The client of one event loop.

    Its keeper is an asynchronous generator: asyncio ends those before it closes their loop, which closes the client.
    """

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client = client
        self._loop = asyncio.get_running_loop()
        self._keeper = self._keep()
        drive(anext(self._keeper))

    async def _keep(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.client.close()

    async def close(self) -> None:
        """Close it, in its loop."""
        await self._keeper.aclose()

    def abandon(self) -> None:
        """Let its loop close it, from outside; with a loop that is closed it is closed already."""
        with suppress(RuntimeError):  # the loop was closed in this instant
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._begin_close)

    def _begin_close(self) -> None:
        self._closing = self._loop.create_task(self.close())  # a loop keeps no task alive


class Clients:
    """All clients of one model, each made at first use."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._of_threads: PerLoop[openai.OpenAI] = PerLoop(name, self._blocking, _forget, per_loop=False)
        self._of_loops: PerLoop[LoopClient] = PerLoop(name, self._suspending, LoopClient.abandon, per_loop=True)

    def get(self, world: World) -> openai.OpenAI | openai.AsyncOpenAI:
        """Return the client for the running loop, or for all threads.

        Raises:
            ResourceClosedError: they are closed.
        """
        return self._of_loops.get().client if world.is_async else self._of_threads.get()

    def blocking(self) -> openai.OpenAI:
        """Return the client for all threads."""
        return self._of_threads.get()

    # No redirect is followed: it would take the prompt, and headers beside Authorization, to another origin.
    # No cookie is kept: one client asks for all owners.

    def _blocking(self) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(follow_redirects=False, cookies=DeafJar())
        client = openai.OpenAI(http_client=http, **self.endpoint.keywords())
        client.organization = client.project = None  # which it read from its variables
        return client

    def _suspending(self) -> LoopClient:
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, cookies=DeafJar())
        client = openai.AsyncOpenAI(http_client=http, **self.endpoint.keywords())
        client.organization = client.project = None
        return LoopClient(client)

    @property
    def is_used(self) -> bool:
        """Whether a client has been made."""
        return self._of_threads.is_used or self._of_loops.is_used

    @property
    def needs_loop(self) -> bool:
        """Whether a client can be closed only in its event loop."""
        return self._of_loops.needs_loop

    def close(self) -> None:
        """Close the client of the threads, and tell those of loops to close."""
        self._of_loops.close()
        blocking = self._of_threads.close()
        if blocking is not None:
            blocking.close()

    async def aclose(self) -> None:
        """Close all; the clients of other loops are told to."""
        mine = self._of_loops.close()
        try:
            self.close()
        finally:
            if mine is not None:
                await mine.close()


def _forget(client: openai.OpenAI) -> None:
    """The client of the threads belongs to no loop that could end."""
