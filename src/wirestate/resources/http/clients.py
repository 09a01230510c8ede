"""The clients that an HTTP adapter lends: nobody closes them for another, and none tells what is in a query."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Self

import httpx

from wirestate.resources.reports import note_resource
from wirestate.resources.secrets import without_credentials


class LentClient(httpx.Client):
    """A client that many use at once: ``close`` gives it up, and takes it from nobody who uses it still.

    The next lease gets a new one. This one keeps no connection after that, but sends what it is asked to.
    """

    given_up = False

    def __init__(self, *, transport: httpx.BaseTransport, **options: Any) -> None:  # Any: httpx's own
        super().__init__(transport=transport, **options)
        self._lent = transport

    def close(self) -> None:
        self.given_up = True
        self._lent.close()

    def end(self) -> None:
        """Close it for all."""
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()


class LentAsyncClient(httpx.AsyncClient):
    """Asynchronous twin of :class:`LentClient`."""

    given_up = False

    def __init__(self, *, transport: httpx.AsyncBaseTransport, **options: Any) -> None:  # Any: httpx's own
        super().__init__(transport=transport, **options)
        self._lent = transport

    async def aclose(self) -> None:
        self.given_up = True
        await self._lent.aclose()

    async def end(self) -> None:
        """Close it for all."""
        await super().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


def is_lendable(client: httpx.Client | httpx.AsyncClient) -> bool:
    """Tell whether the next lease may have *client*."""
    return not (client.is_closed or getattr(client, "given_up", False))


def end_client(client: httpx.Client) -> None:
    """Close a client for all who have it."""
    client.end() if isinstance(client, LentClient) else client.close()


async def aend_client(client: httpx.AsyncClient) -> None:
    """Do the same in an event loop."""
    await (client.end() if isinstance(client, LentAsyncClient) else client.aclose())


def shown_origin(url: httpx.URL) -> str:
    """Return scheme, host and port of *url*."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


class ServiceURL(httpx.URL):
    """The URL of a request to a service: httpx's own log shows it without its query, which may hold a token."""


class ServiceResponse(httpx.Response):
    """A response whose error names its service, and its URL without the query."""

    service_name: str

    def raise_for_status(self) -> Self:
        try:
            super().raise_for_status()
            return self
        except httpx.HTTPStatusError as error:
            what = str(error).partition(" for url ")[0]
            text = f"{what} for url '{without_credentials(str(self.request.url))}'"
        told = httpx.HTTPStatusError(text, request=self.request, response=self)
        note_resource(told, self.service_name, shown_origin(self.request.url))
        raise told


def _hide_queries(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple) and any(isinstance(value, ServiceURL) for value in record.args):
        record.args = tuple(
            without_credentials(str(value)) if isinstance(value, ServiceURL) else value for value in record.args
        )
    return True


logging.getLogger("httpx").addFilter(_hide_queries)
