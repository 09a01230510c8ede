"""Where a request may go and what it may take along: the credentials of a service stay at its origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

import httpx

from wirestate.errors import UnsafeRequestError
from wirestate.resources.http.display import shown_origin
from wirestate.resources.reports import note_resource

Origin: TypeAlias = tuple[str, str, int | None]
ASKED = "wirestate_asked"  # in Request.extensions, which redirects carry on
# What goes to any origin: it tells how to read a message, not who sends it.
HARMLESS = frozenset(
    {"host", "accept", "accept-encoding", "accept-language", "connection", "user-agent"}
    | {"content-encoding", "content-length", "content-type", "transfer-encoding"}
)
CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asked for: from which origin, and the headers that are meant for it."""

    origin: Origin
    headers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Service:
    """One service; ``private`` are the lower-case names of headers that only it may see."""

    name: str
    base_url: httpx.URL
    private: frozenset[str]

    def owns(self, url: httpx.URL) -> bool:
        """Tell whether *url* has the origin of the service."""
        return _origin(url) == _origin(self.base_url)

    def refuse(self, text: str) -> UnsafeRequestError:
        """Make the error for a request that may not be sent."""
        return UnsafeRequestError(f"service {self.name!r}: {text}", self.name, "request")

    def built(
        self,
        build: Callable[..., httpx.Request],  # Any: httpx's own
        url: httpx.URL | str,
        options: Mapping[str, Any],
    ) -> httpx.Request:
        """Build a request as its caller asks for it: a transport sees neither relative URLs nor what a client adds.

        A relative URL that climbs above the base is refused; headers and parameters that are set on the
        client stay at the service.
        """
        given = httpx.URL(url)
        if given.is_relative_url and _climbs(given.path):
            raise self.refuse("a relative URL climbs above the base URL; leave '..' out")
        request = build(url, **options)
        if not self.owns(request.url):
            meant = HARMLESS | _names(httpx.Headers(options.get("headers")))
            for header in _names(request.headers) - meant:
                del request.headers[header]
            params = options.get("params")
            if not given.is_relative_url:
                request.url = given if params is None else httpx.URL(given, params=params)
        _note(request, Asked(_origin(request.url), _names(request.headers)))
        return request

    @contextmanager
    def telling(self, url: httpx.URL) -> Iterator[None]:
        """Note on what httpx raises that it is this service's, and which origin was asked."""
        try:
            yield
        except httpx.HTTPError as error:
            note_resource(error, self.name, shown_origin(url))
            raise


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port


def protect(request: httpx.Request, service: Service) -> None:
    """Take from *request* what is not meant for where it goes; redirects and absolute URLs come through here, too.

    Raises:
        UnsafeRequestError: the scheme is not HTTP.
    """
    if request.url.scheme not in ("http", "https"):
        raise service.refuse(f"{request.url.scheme!r} is no scheme for it; only http and https are")
    here, own = _origin(request.url), service.owns(request.url)
    asked = request.extensions.get(ASKED)
    if asked is None:  # no client built it: its first origin is the one that was asked
        asked = Asked(here, _names(request.headers))
        _note(request, asked)
    if here == asked.origin and own:
        return
    allowed = HARMLESS | asked.headers if here == asked.origin else HARMLESS
    if not own:
        allowed -= CREDENTIALS | service.private
    for header in _names(request.headers) - allowed:
        del request.headers[header]


def _note(request: httpx.Request, asked: Asked) -> None:
    request.extensions = {**request.extensions, ASKED: asked}  # a dict of its own: the caller's may serve others


def _names(headers: httpx.Headers) -> frozenset[str]:
    return frozenset(headers.keys())  # httpx gives them in lower case


def _climbs(path: str) -> bool:
    depth = 0
    for part in unquote(path).replace("\\", "/").split("/"):  # some services decode twice, or take \ for /
        name = part.partition(";")[0]  # or leave parameters out before they look
        depth += -1 if name == ".." else name not in ("", ".")
        if depth < 0:
            return True
    return False
