"""What stands between an HTTP client and the network: origin check, retries, circuit breaker, gate."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import cast

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.gate import Gate
from wirestate.resources.http.connections import Body, Connections, Outlet, close_body
from wirestate.resources.http.display import ServiceResponse, ServiceURL
from wirestate.resources.http.origins import Service, protect
from wirestate.resources.places import Place
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

log = logging.getLogger("wirestate.http")

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
TRY_AGAIN = frozenset({429, 502, 503, 504})
OUT_OF_ORDER = frozenset({502, 503, 504})  # what a breaker counts: neither a caller's mistake nor a bug of one page
PHASES: dict[type, str] = {httpx.ConnectTimeout: "connect", httpx.WriteTimeout: "write", httpx.ReadTimeout: "read"}
SENDABLE = re.compile(rb"([^\x00\s]+([ \t]+[^\x00\s]+)*)?")  # RFC 9110, 5.5: field-value
TRANSIENT = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)


@dataclass(frozen=True, slots=True)
class Policy:
    """How patiently a service is talked to; times are float seconds.

    ``longest_pause`` is the longest ``Retry-After`` that is waited for.
    """

    timeout: float
    retry_count: int
    first_pause: float
    last_pause: float
    longest_pause: float


class _AgainError(Exception):
    """The service asks to be tried again, after so many seconds if it says so."""

    def __init__(self, status: int, pause: float | None) -> None:
        super().__init__(f"status {status}")
        self.pause = pause


class ServiceTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Send the requests of all clients of one service, blocking or not."""

    def __init__(
        self, connections: Connections, service: Service, policy: Policy, gate: Gate, breaker: CircuitBreaker | None
    ) -> None:
        self._connections = connections
        self._service = service
        self._policy = policy
        self._gate = gate
        self._breaker = breaker
        self._backoff = wait_exponential(policy.first_pause, policy.last_pause) + wait_random(0, policy.first_pause)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._service.telling(request.url):
            return drive(self._send(request, BLOCKING))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with self._service.telling(request.url):
            return await self._send(request, SUSPENDING)

    async def end(self, world: World) -> None:
        """Keep no connection open; a client that is closed does nothing here, since others use them."""
        await self._connections.retire(world)

    async def _send(self, request: httpx.Request, world: World) -> httpx.Response:
        """Try until there is an answer to hand out."""
        protect(request, self._service)
        request.url = ServiceURL(request.url)
        # A body that was made on the way cannot be sent twice.
        repeatable = request.method in IDEMPOTENT and isinstance(request.stream, httpx.ByteStream)
        tries = 1 + self._policy.retry_count if repeatable else 1
        patience = min(self._policy.longest_pause, _seconds(request, "read"))
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
                    if pause is None or pause <= patience:
                        # This also leaves the gate while it waits.
                        await (response.aclose() if world.is_async else _closed(response))
                        raise _AgainError(response.status_code, pause)
                return response
        raise AssertionError("tenacity ends by an answer or an error")

    def _pause(self, state: RetryCallState) -> float:
        """Return the seconds until the next try."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.pause if isinstance(error, _AgainError) else None
        pause = self._backoff(state) if asked is None else asked
        reason = error if isinstance(error, _AgainError) else type(error).__name__
        log.debug("service %r: try %d: %s; again in %.2f s", self._service.name, state.attempt_number, reason, pause)
        return pause

    async def _try(self, request: httpx.Request, world: World) -> httpx.Response:
        """Send once; the place behind the gate is left when the response is closed."""
        breaker = self._breaker if self._service.owns(request.url) else None
        admitted = breaker is None or breaker.state != "closed"
        if breaker is not None and admitted:
            breaker.before()  # before the gate: nobody waits in line for a refusal
        owner = f"{request.method} {request.url.path}"  # never the query: it may hold a token
        place = self._gate.enter_now(owner) or await self._gate.enter(owner, self._longest_wait(request), world)
        try:
            if breaker is not None and not admitted:
                breaker.before()  # and after it: the service may have failed meanwhile
            response, outlet = await self._exchange(request, place, world)
        except BaseException as error:
            self._gate.leave(place)
            if breaker is not None and isinstance(error, TRANSIENT) and not self._was_impatient(request, error):
                breaker.failure(error)
            raise
        if breaker is not None:
            breaker.failure() if response.status_code in OUT_OF_ORDER else breaker.success()
        held = HeldStream(response.stream, self._gate, place, outlet, partial(self._service.telling, request.url))
        if response.is_closed:  # read already, so nobody will close it
            await held.end(world)
        else:
            response.stream = held
        if type(response) is httpx.Response:
            response.__class__ = ServiceResponse  # made by another's transport: only its error text changes
            cast("ServiceResponse", response).service_name = self._service.name
        return response

    async def _exchange(self, request: httpx.Request, place: Place, world: World) -> tuple[httpx.Response, Outlet]:
        """Send once through an outlet that works; one that is broken is not used again."""
        ours = not self._connections.lasting
        for last in (False, True):
            outlet = self._connections.enter(place)
            try:
                await outlet.close_dropped(world)
                return await _call(outlet, _unqueued(request) if ours else request, world), outlet
            except BaseException as error:
                if ours and isinstance(error, Exception) and not _is_outcome(error):
                    # httpx loses places when requests are cancelled: nothing that a person could mend.
                    level = logging.DEBUG if isinstance(error, httpx.PoolTimeout) else logging.WARNING
                    text = "service %r: its connections are broken (%s) and are made anew"
                    log.log(level, text, self._service.name, type(error).__name__)
                    outlet.give_up()
                if outlet.dismiss(place):
                    await outlet.close(world)
                # The gate let it in, so httpx has lost places; nothing was sent yet.
                if last or not ours or not isinstance(error, httpx.PoolTimeout):
                    raise
        raise AssertionError("the loop ends by an answer or an error")

    def _longest_wait(self, request: httpx.Request) -> float:
        return min(_seconds(request, "pool"), self._gate.longest_wait)

    def _was_impatient(self, request: httpx.Request, error: BaseException) -> bool:
        """Tell whether a caller waited for less time than the service is given: that says nothing about it."""
        phase = PHASES.get(type(error))
        return phase is not None and _seconds(request, phase) < self._policy.timeout


class HeldStream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a response that has a place behind the gate until it is closed."""

    def __init__(
        self, inner: Body, gate: Gate, place: Place, outlet: Outlet, telling: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._inner = inner
        self._telling = telling
        self._gate = gate
        self._place: Place | None = place
        self._outlet = outlet

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._inner, httpx.SyncByteStream)
        with self._telling():
            yield from self._inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert isinstance(self._inner, httpx.AsyncByteStream)
        with self._telling():
            async for chunk in self._inner:
                yield chunk

    def close(self) -> None:
        drive(self.end(BLOCKING))

    async def aclose(self) -> None:
        await self.end(SUSPENDING)

    async def end(self, world: World) -> None:
        """Close it, and give the place to the next."""
        place, self._place = self._place, None
        if place is None:
            return
        try:
            await close_body(self._inner, world)
        finally:
            due = self._outlet.dismiss(place)
            self._gate.leave(place)
        if due:
            await self._outlet.close(world)

    def __del__(self) -> None:
        # The place comes back by its own collection; the connection is closed by the next request,
        # since a finalizer may neither wait nor take httpx's locks.
        if getattr(self, "_place", None) is not None:
            self._outlet.dropped.append(self._inner)


async def _call(outlet: Outlet, request: httpx.Request, world: World) -> httpx.Response:
    if not all(SENDABLE.fullmatch(value) for _, value in request.headers.raw):
        # Found here: httpcore would quote the header, in its error and in its log.
        raise httpx.LocalProtocolError("a header of the request holds what HTTP forbids, such as a line break")
    if world.is_async:
        return await cast("httpx.AsyncBaseTransport", outlet.transport).handle_async_request(request)
    return cast("httpx.BaseTransport", outlet.transport).handle_request(request)


def _unqueued(request: httpx.Request) -> httpx.Request:
    """Return *request* as one that does not wait inside httpx: the gate lets in only as many as find a place there."""
    extensions = {**request.extensions, "timeout": {**request.extensions.get("timeout", {}), "pool": 0.0}}
    return httpx.Request(
        request.method, request.url, headers=request.headers, stream=request.stream, extensions=extensions
    )


def _is_outcome(error: Exception) -> bool:
    """Tell whether httpx reports how one request went; anything else says that the transport itself is broken."""
    return isinstance(error, httpx.HTTPError) and not isinstance(error, httpx.PoolTimeout)


def _seconds(request: httpx.Request, phase: str) -> float:
    """Return how long the caller waits in one phase of the request."""
    seconds = request.extensions.get("timeout", {}).get(phase)
    return math.inf if seconds is None else float(seconds)


async def _closed(response: httpx.Response) -> None:
    response.close()


def retry_after(response: httpx.Response) -> float | None:
    """Return how many seconds a service asks to wait; it says so in seconds or by a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
