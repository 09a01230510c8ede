"""HTTP services as a resource: httpx clients that retry, break their circuit and keep their credentials."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import cached_property
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from pydantic import SecretStr

from wirestate.errors import AsyncResourceError, BlockingWaitError, ResourceClosedError
from wirestate.redaction import half_made_too
from wirestate.resources.base import BaseResourceProvider, ResourceHealth, ResourceStatus
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.gate import Gate
from wirestate.resources.native_pools import blocking_probe, refuse_options, refuse_unhonoured
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.secrets import NoFrames, concealed, revealed_all, trouble_of
from wirestate.resources.threaded import ThreadedCall
from wirestate.waiting import BLOCKING, SUSPENDING, ExpiredError, World, drive

if TYPE_CHECKING:
    import httpx

    from wirestate.resources.http.connections import Transport

log = logging.getLogger("wirestate.http")

HONOURED = ("max_size", "max_idle_time", "acquire_timeout", "max_waiting", "leak_threshold")
CONNECTIONS = 100
KEEP_ALIVE = 5.0  # seconds; many servers close an idle connection soon after
PROBE_TIMEOUT = 4.0  # less than a manager waits for a probe, so that the reason is told
SLOW = 1.0  # seconds after which a healthy answer counts as degraded


class HTTPResourceAdapter(BaseResourceProvider):
    """Lend httpx clients of one service, one for each lease, over connections that they share and that are kept alive.

    What a lease sets on its client or receives (headers, params, cookies, hooks) is gone with it. The client of a
    singleton is one for all: nothing can be set on it, and it keeps no cookies.

    ``GET HEAD OPTIONS PUT DELETE`` are tried again when the service cannot be reached, is late, or
    answers 429, 502, 503 or 504; ``Retry-After`` is waited for if it is no longer than ``retry_after_max``
    and than what the caller gives one answer; else, and when the tries are used up, the answer is handed out.
    Other methods, and bodies that are made on the way, are sent once.

    Credentials and configured headers go to the service's own origin only, and so does what is set on the
    client; a header that is given with one request goes where that request goes, but no redirect takes it
    elsewhere. No relative URL climbs above the base URL. Proxies of the environment are not used: give a ``transport``.

    A request waits in line for a place, first come, first served, and has it until its response is closed.
    Closing a client does nothing: its lease ends it, and no connection with it. Connections that break are made anew.

    Args:
        name: the name of the resource.
        base_url: of the service; a path in it stays in front of every relative URL.
        timeout: seconds for each of connecting, sending and receiving; a request may bring its own.
        headers: for every request.
        retry_count: how often a request is tried again.
        async_client: lend an ``httpx.AsyncClient``.
        auth: a (user, password) pair, or an ``httpx.Auth``, which is one for all leases.
        token: for ``Authorization: Bearer``.
        pool: how many requests may run at once, how long others wait, and how long idle connections are kept.
        max_connections: short for ``pool=PoolConfig(max_size=…)``.
        transport: sends the requests instead of the network.
        client_factory: makes a client for each lease, from the keywords of ``httpx.Client``. It must be an ``httpx``
            client; one of ``httpx2`` has requests, responses and errors of its own kind and is refused.
        verify: whether certificates are checked, or a file of authorities.
        retry_pause: seconds before the first retry; doubled for each further one.
        retry_pause_max: longest of these.
        retry_after_max: longest ``Retry-After`` that is waited for.
        breaker_failures: failures in a row after which requests fail at once (None: never). A failure is a
            service that cannot be reached, breaks off, or is late, and one that answers 502, 503 or 504.
        breaker_reset: seconds until one request may try again.

    Raises:
        InvalidSettingError: a setting cannot be used, or settings contradict each other.

    Example:
        >>> import httpx
        >>> answer = httpx.MockTransport(lambda request: httpx.Response(200, text=request.url.path))
        >>> service = HTTPResourceAdapter("api", base_url="https://api.example.com/v1", transport=answer)
        >>> service.acquire().get("/users/1").text
        '/v1/users/1'
        >>> service.close()
    """

    native_pool = True
    gate_per_lease = False  # the gate counts requests: all leases share the connections

    def __init__(
        self,
        name: str = "http",
        *,
        base_url: str,
        timeout: float = 30.0,
        headers: Mapping[str, str | SecretStr] | None = None,
        retry_count: int = 3,
        async_client: bool = False,
        auth: Any = None,  # Any: a pair, or an httpx.Auth
        token: str | SecretStr | None = None,
        pool: PoolConfig | Mapping[str, Any] | None = None,  # Any: its fields
        max_connections: int | None = None,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
        client_factory: Callable[..., httpx.Client | httpx.AsyncClient] | None = None,
        verify: bool | str = True,
        retry_pause: float = 0.2,
        retry_pause_max: float = 10.0,
        retry_after_max: float = 60.0,
        breaker_failures: int | None = 5,
        breaker_reset: float = 30.0,
    ) -> None:
        # They import httpx, which `import wirestate` must not.
        from wirestate.resources.http.origins import Service
        from wirestate.resources.http.settings import HTTPSettings
        from wirestate.resources.http.transport import Policy

        address, credentials = concealed(base_url), (concealed(headers or {}), concealed(auth), concealed(token))
        del base_url, headers, auth, token  # a traceback with locals shows this frame
        super().__init__(name)
        check = self._check = HTTPSettings(name, is_async=async_client)
        if pool is not None and max_connections is not None:
            raise check.wrong("max_connections and pool are one setting")
        check.number("timeout", timeout, zero=False)
        check.number("retry_count", retry_count, whole=True)
        check.number("retry_pause", retry_pause)
        check.number("retry_pause_max", retry_pause_max)
        check.number("retry_after_max", retry_after_max)
        check.number("breaker_failures", 1 if breaker_failures is None else breaker_failures, zero=False, whole=True)
        check.number("breaker_reset", breaker_reset)
        check.transport(transport)
        check.verify(verify)
        if isinstance(client_factory, type):
            check.client(client_factory)
        self.is_async = async_client
        self.blocking = not async_client
        self.timeout = timeout
        with NoFrames():
            self._headers, self._auth = check.credentials(*credentials)
            private = frozenset(header.lower() for header in self._headers)
            self._service = Service(name, check.url(address), private)
        self._policy = Policy(timeout, retry_count, retry_pause, retry_pause_max, retry_after_max)
        self._transport = transport
        self._client_factory = client_factory
        self._verify = verify
        self._breaker = None if breaker_failures is None else CircuitBreaker(breaker_failures, breaker_reset, name)
        self._is_used = False
        self.configure_pool(pool or PoolConfig(max_size=CONNECTIONS if max_connections is None else max_connections))

    @property
    def breaker(self) -> CircuitBreaker | None:
        """What stops requests to a service that is out of order; ``adapter.breaker.state`` tells whether it does."""
        return self._breaker

    # --- the pool --------------------------------------------------------------------------

    def accepts_pool(self, config: PoolConfig) -> None:
        """Refuse what a gate in front of httpx cannot honour.

        Raises:
            InvalidSettingError: with the names of those settings.
        """
        refuse_unhonoured(self.name, config, HONOURED, why="the connections are httpx's")

    def configure_pool(self, config: PoolConfig | Mapping[str, Any]) -> None:  # Any: its fields
        """Say how many requests may run at once, before the first one.

        Raises:
            InvalidSettingError: a setting cannot be honoured, or a client is in use.
        """
        from wirestate.resources.http.connections import Connections
        from wirestate.resources.http.transport import ServiceTransport

        config = PoolConfig.of(config, self.name)
        self.accepts_pool(config)
        if self._is_used:
            raise self._check.wrong("it is in use; size its pool before")
        self.pool_config = config
        self.gate = Gate.of(self.name, config)
        connections = Connections(
            self.name,
            lambda: self._transport or self._new_transport(),
            per_loop=self.is_async,
            lasting=self._transport is not None,
        )
        self._sender = ServiceTransport(connections, self._service, self._policy, self.gate, self._breaker)

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        """Read once: it takes 10 ms and more."""
        import httpx

        if isinstance(self._verify, str):
            return ssl.create_default_context(cafile=self._verify)
        return httpx.create_ssl_context(verify=self._verify)

    def _new_transport(self) -> Transport:
        import httpx

        limits = httpx.Limits(
            max_connections=self.pool_config.max_size,
            max_keepalive_connections=self.pool_config.max_size,
            keepalive_expiry=self.pool_config.max_idle_time or KEEP_ALIVE,
        )
        kind = httpx.AsyncHTTPTransport if self.is_async else httpx.HTTPTransport
        return kind(verify=self._certificates, limits=limits)

    # --- leases ----------------------------------------------------------------------------

    def _new_client(self, options: Collection[str]) -> httpx.Client | httpx.AsyncClient:
        import httpx

        from wirestate.resources.http.clients import make_lent

        refuse_options(self.name, options)
        if self.status is ResourceStatus.CLOSED:
            raise ResourceClosedError(f"service {self.name!r} is closed", self.name, "acquire")
        self._is_used = True
        make = self._client_factory or (httpx.AsyncClient if self.is_async else httpx.Client)
        client = make(
            base_url=self._service.base_url,
            headers=revealed_all(self._headers),
            auth=self._auth,
            timeout=httpx.Timeout(self.timeout, pool=self.pool_config.acquire_timeout),
            transport=self._sender,
            follow_redirects=True,
        )
        self._check.new_client(client)
        make_lent(client, self._service)
        return client

    def acquire(self, **options: Any) -> Any:  # Any: an httpx client of either kind
        """Return a new client over the connections of all."""
        if self.is_async:
            raise AsyncResourceError(f"service {self.name!r} is asynchronous; await aacquire()", self.name, "acquire")
        return self._new_client(options)

    async def aacquire(self, **options: Any) -> Any:  # Any: an httpx client of either kind
        """Return a new client over the connections of the running loop."""
        return self._new_client(options)

    def freeze_shared(self, resource: Any) -> Any:  # Any: an httpx client of either kind
        """Return the client as a singleton lends it to all at once: nothing can be set on it."""
        from wirestate.resources.http.clients import frozen

        return frozen(resource)

    def release(self, resource: Any) -> None:  # Any: an httpx client of either kind
        """End the client, and none of the connections."""
        from wirestate.resources.http.clients import LentClient

        if isinstance(resource, LentClient):  # a subclass may lend what it makes of one
            resource.end()

    async def arelease(self, resource: Any) -> None:  # Any: an httpx client of either kind
        """Do the same in its event loop."""
        from wirestate.resources.http.clients import LentAsyncClient

        if isinstance(resource, LentAsyncClient):
            await resource.end()

    def validate(self, resource: Any) -> bool:  # Any: an httpx client of either kind
        """Tell whether the client may send: neither its lease nor the adapter has ended."""
        return not getattr(resource, "is_closed", False) and self.status is not ResourceStatus.CLOSED

    # --- health ----------------------------------------------------------------------------

    def health_check(self) -> ResourceHealth:
        """Ask for the base URL; any answer below 500 is healthy: a missing page is nobody's illness.

        The probe is a request of its own, past gate, breaker and retries; it takes as long as one answer may
        take (``timeout``), but no more than 4 s.
        """
        if self.is_async:
            return blocking_probe(self.ahealth_check, is_async=True)
        return drive(self._health(BLOCKING))

    async def ahealth_check(self) -> ResourceHealth:
        """Do the same without stopping the event loop."""
        return await self._health(SUSPENDING)

    async def _health(self, world: World) -> ResourceHealth:
        if self.status is ResourceStatus.CLOSED:
            return ResourceHealth.UNHEALTHY
        began = monotonic()
        limit = min(self.timeout, PROBE_TIMEOUT)
        try:
            status = await (self._aprobed(limit, world) if self.is_async else self._probed(limit, world))
        except ExpiredError:
            self.trouble = f"no answer within {limit:g} s"
            return ResourceHealth.UNHEALTHY
        except BlockingWaitError:
            raise
        except Exception as error:  # whatever a transport raises is an answer
            log.debug("probe of %r: %s", self.name, type(error).__name__)
            self.trouble = trouble_of(error)
            return ResourceHealth.UNHEALTHY
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.trouble = f"it answers with status {status}"
            return ResourceHealth.UNHEALTHY
        took = monotonic() - began
        self.trouble = f"it took {took:.2f} s to answer" if took > SLOW else None
        return ResourceHealth.DEGRADED if took > SLOW else ResourceHealth.HEALTHY

    def _probe_request(self, limit: float) -> httpx.Request:
        import httpx

        timeout, headers = httpx.Timeout(limit).as_dict(), revealed_all(self._headers)
        return httpx.Request("HEAD", self._service.base_url, headers=headers, extensions={"timeout": timeout})

    async def _probed(self, limit: float, world: World) -> int:
        """Send one request by a connection of its own; return the status."""
        transport = cast("httpx.BaseTransport", self._transport or self._new_transport())
        own = self._transport is None

        def ask() -> int:
            with transport if own else nullcontext():
                response = transport.handle_request(self._probe_request(limit))
                response.close()
            return response.status_code

        try:
            # In a thread: a service that sends a byte now and then is never late for httpx.
            return await ThreadedCall(ask, lambda status, error: None, world).wait(limit)
        except BaseException:
            if own:
                transport.close()  # which ends the thread, at the next byte
            raise

    async def _aprobed(self, limit: float, world: World) -> int:
        transport = cast("httpx.AsyncBaseTransport", self._transport or self._new_transport())

        async def ask() -> int:
            async with transport if self._transport is None else nullcontext():
                response = await transport.handle_async_request(self._probe_request(limit))
                await response.aclose()
            return response.status_code

        return await world.bounded(ask(), limit)

    # --- end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Refuse further requests, and close the connections: at once, or with the last request under way."""
        if self.is_async:
            raise AsyncResourceError(f"service {self.name!r} is asynchronous; await aclose()", self.name, "close")
        super().close()
        self.gate.close()
        drive(self._sender.end(BLOCKING))
        if self._transport is not None:
            cast("httpx.BaseTransport", self._transport).close()

    async def aclose(self) -> None:
        """Do the same in the running loop; connections of other loops end with them."""
        super().close()
        self.gate.close()
        await self._sender.end(SUSPENDING)
        if self._transport is not None:
            await cast("httpx.AsyncBaseTransport", self._transport).aclose()

    @half_made_too
    def __repr__(self) -> str:
        breaker = self._breaker
        state = "no breaker" if breaker is None else f"breaker {breaker.state}"
        if breaker is not None and breaker.retry_after:
            state += f", next try in {breaker.retry_after:.1f} s"
        used = f"{self.gate.snapshot().used} of {self.pool_config.max_size} requests"
        return f"<{type(self).__name__} {self.name!r} {self._service.base_url} {self.status.value}, {used}, {state}>"
