"""How the requests and responses of a service are shown: in errors and in httpx's log, without their queries."""

from __future__ import annotations

import logging
from typing import Self

import httpx

from wirestate.redaction import without_secrets
from wirestate.resources.reports import note_resource


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
            text = f"{what} for url '{without_secrets(str(self.request.url))}'"
        told = httpx.HTTPStatusError(text, request=self.request, response=self)
        note_resource(told, self.service_name, shown_origin(self.request.url))
        raise told


def _hide_queries(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple) and any(isinstance(value, ServiceURL) for value in record.args):
        record.args = tuple(
            without_secrets(str(value)) if isinstance(value, ServiceURL) else value for value in record.args
        )
    return True


logging.getLogger("httpx").addFilter(_hide_queries)
