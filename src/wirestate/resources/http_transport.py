"""What stands between an HTTP client and the network: origin check, retries, circuit breaker, gate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from wirestate.errors import UnsafeRequestError
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.gate import Gate
from wirestate.resources.places import Place
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
TRY_AGAIN = frozenset({429, 502, 503, 504})
OUT_OF_ORDER = frozenset({502, 503, 504})  # what a breaker counts: neither a caller's mistake nor a bug of one page
TRANSIENT = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
ASKED = "wirestate_asked"  # in Request.extensions: the origin that the caller named; redirects carry it on
# What a redirect may take along to another origin.
HARMLESS = frozenset(
    {"host", "accept", "accept-encoding", "accept-language", "connection", "user-agent"}
    | {"content-encoding", "content-length", "content-type", "transfer-encoding"}
)
CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie"})

Transport = httpx.BaseTransport | httpx.AsyncBaseTransport


@dataclass(frozen=True, slots=True)
class Policy:
    """How one service is talked to; times are float seconds.

    ``private`` are the lower-case names of headers that only this service may see;
    ``longest_pause`` is the longest ``Retry-After`` that is waited for.
    """

    name: str
    base_url: httpx.URL
    private: frozenset[str]
    retry_count: int
    first_pause: float
    last_pause: float
    longest_pause: float


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def watch_requests(client: httpx.Client | httpx.AsyncClient, name: str) -> None:
    """Look at each request as its caller made it: a transport sees neither relative URLs nor what is a redirect.

    A relative URL that climbs above the base is refused.
    """
    build = client.build_request

    def build_request(method: str, url: httpx.URL | str, **keywords: Any) -> httpx.Request:  # Any: httpx's own
        asked = httpx.URL(url)
        if asked.is_relative_url and _climbs(asked.path):
            text = f"service {name!r}: a relative URL climbs above the base URL; leave '..' out"
            raise UnsafeRequestError(text, name, "request")
        request = build(method, url, **keywords)
        request.extensions[ASKED] = _origin(request.url)
        return request

    setattr(client, "build_request", build_request)  # noqa: B010  # of any client, whatever factory made it


def _climbs(path: str) -> bool:
    depth = 0
    for part in unquote(path).split("/"):  # some services decode twice
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return True
    return False


class _AgainError(Exception):
    """The service asks to be tried again, after so many seconds if it says so."""

    def __init__(self, pause: float | None) -> None:
        super().__init__(pause)
        self.pause = pause


class ServiceTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Send the requests of one client, blocking or not."""

    def __init__(self, inner: Transport, policy: Policy, gate: Gate, breaker: CircuitBreaker | None) -> None:
        self._inner = inner
        self._policy = policy
        self._gate = gate
        self._breaker = breaker
        self._backoff = wait_exponential(policy.first_pause, policy.last_pause) + wait_random(0, policy.first_pause)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return drive(self._send(request, BLOCKING))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._send(request, SUSPENDING)

    def close(self) -> None:
        if isinstance(self._inner, httpx.BaseTransport):
            self._inner.close()

    async def aclose(self) -> None:
        if isinstance(self._inner, httpx.AsyncBaseTransport):
            await self._inner.aclose()

    async def _send(self, request: httpx.Request, world: World) -> httpx.Response:
        """Try until there is an answer to hand out."""
        self._protect(request)
        # A body that was made on the way cannot be sent twice.
        repeatable = request.method in IDEMPOTENT and isinstance(request.stream, httpx.ByteStream)
        tries = 1 + self._policy.retry_count if repeatable else 1
        retrying = AsyncRetrying(
            stop=stop_after_attempt(tries),
            wait=self._pause,
            retry=retry_if_exception_type((*TRANSIENT, _AgainError)),
            sleep=world.sleep,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                response = await self._try(request, world)
                if attempt.retry_state.attempt_number < tries and response.status_code in TRY_AGAIN:
                    pause = retry_after(response)
                    if pause is None or pause <= self._policy.longest_pause:
                        await _close(response, world)  # also leaves the gate while it waits
                        raise _AgainError(pause)
                return response
        raise AssertionError("tenacity ends by an answer or an error")

    def _protect(self, request: httpx.Request) -> None:
        """Let credentials go to the service only; redirects and absolute URLs come through here, too.

        Raises:
            UnsafeRequestError: the scheme is not HTTP.
        """
        policy = self._policy
        if request.url.scheme not in ("http", "https"):
            text = f"service {policy.name!r}: {request.url.scheme!r} is no scheme for it; only http and https are"
            raise UnsafeRequestError(text, policy.name, "request")
        if not self._is_own(request):
            for header in CREDENTIALS | policy.private:
                request.headers.pop(header, None)
        if request.extensions.get(ASKED, _origin(request.url)) != _origin(request.url):
            for header in request.headers.keys() - HARMLESS:
                del request.headers[header]

    def _is_own(self, request: httpx.Request) -> bool:
        return _origin(request.url) == _origin(self._policy.base_url)

    async def _try(self, request: httpx.Request, world: World) -> httpx.Response:
        """Send once; the place behind the gate is left when the response is closed."""
        breaker = self._breaker if self._is_own(request) else None
        owner = f"{request.method} {request.url.path}"  # never the query: it may hold a token
        place = self._gate.enter_now(owner) or await self._gate.enter(owner, None, world)
        try:
            if breaker is not None:
                breaker.before()
            response = await self._call(request, world)
        except BaseException as error:
            self._gate.leave(place)
            if breaker is not None and isinstance(error, TRANSIENT):
                breaker.failure(error)
            raise
        if breaker is not None:
            breaker.failure() if response.status_code in OUT_OF_ORDER else breaker.success()
        if response.is_closed:
            self._gate.leave(place)
        else:
            response.stream = _HeldStream(response.stream, self._gate, place)
        return response

    async def _call(self, request: httpx.Request, world: World) -> httpx.Response:
        inner = self._inner
        if world.is_async:
            assert isinstance(inner, httpx.AsyncBaseTransport)
            return await inner.handle_async_request(request)
        assert isinstance(inner, httpx.BaseTransport)
        return inner.handle_request(request)

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, _AgainError) and error.pause is not None:
            return error.pause
        return self._backoff(state)


class _HeldStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a response that has a place behind the gate until it is closed."""

    def __init__(self, inner: httpx.SyncByteStream | httpx.AsyncByteStream, gate: Gate, place: Place) -> None:
        self._inner = inner
        self._gate = gate
        self._place: Place | None = place

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._inner, httpx.SyncByteStream)
        yield from self._inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._inner, httpx.AsyncByteStream)
        async for chunk in self._inner:
            yield chunk

    def close(self) -> None:
        try:
            if isinstance(self._inner, httpx.SyncByteStream):
                self._inner.close()
        finally:
            self._leave()

    async def aclose(self) -> None:
        try:
            if isinstance(self._inner, httpx.AsyncByteStream):
                await self._inner.aclose()
        finally:
            self._leave()

    def _leave(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._gate.leave(place)


async def _close(response: httpx.Response, world: World) -> None:
    await response.aclose() if world.is_async else response.close()


def retry_after(response: httpx.Response) -> float | None:
    """Return how many seconds a service asks to wait; it says so in seconds or by a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
