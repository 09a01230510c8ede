"""HTTP services as a resource: an httpx client that retries, breaks its circuit and keeps its credentials."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from pydantic import SecretStr

from wirestate.errors import AsyncResourceError, InvalidSettingError
from wirestate.resources.base import BaseResourceProvider, ResourceHealth, ResourceStatus
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.gate import Gate
from wirestate.resources.native_pools import PerLoop, blocking_probe, refuse_options, refuse_unhonoured
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.secrets import revealed, revealed_all, trouble_of

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("wirestate.http")

HONOURED = ("max_size", "max_idle_time", "acquire_timeout", "max_waiting")
CONNECTIONS = 100
KEEP_ALIVE = 5.0  # seconds; many servers close an idle connection soon after
PROBE_TIMEOUT = 5.0
SLOW = 1.0  # seconds after which a healthy answer counts as degraded


class HTTPResourceAdapter(BaseResourceProvider):
    """Lend one httpx client per service to all its users, with kept-alive connections.

    ``GET HEAD OPTIONS PUT DELETE`` are tried again when the service cannot be reached, is late, or
    answers 429, 502, 503 or 504; ``Retry-After`` is respected. Other methods are sent once.
    Credentials and configured headers go to the service's own origin only; a header that is given with one
    request goes where that request goes, but no redirect takes it elsewhere. No relative URL climbs above the base URL.

    Args:
        name: the name of the resource.
        base_url: of the service; a path in it stays in front of every relative URL.
        timeout: seconds for each of connecting, sending and receiving.
        headers: for every request.
        retry_count: how often a request is tried again.
        async_client: lend an ``httpx.AsyncClient``.
        auth: a (user, password) pair, or an ``httpx.Auth``.
        token: for ``Authorization: Bearer``.
        pool: how many requests may run at once, and how long others wait.
        max_connections: short for ``pool=PoolConfig(max_size=…)``.
        transport: sends the requests instead of the network.
        client_factory: makes the client, from the keywords of ``httpx.Client``.
        verify: whether certificates are checked, or a file of authorities.
        retry_pause: seconds before the first retry; doubled for each further one.
        retry_pause_max: longest of these.
        retry_after_max: longest ``Retry-After`` that is waited for; beyond it, the answer is handed out.
        breaker_failures: failures in a row after which requests fail at once (None: never).
        breaker_reset: seconds until one request may try again.

    Raises:
        InvalidSettingError: the base URL cannot be used, or settings contradict each other.

    Example:
        >>> import httpx
        >>> answer = httpx.MockTransport(lambda request: httpx.Response(200, text=request.url.path))
        >>> service = HTTPResourceAdapter("api", base_url="https://api.example.com/v1", transport=answer)
        >>> service.acquire().get("/users/1").text
        '/v1/users/1'
        >>> service.close()
    """

    native_pool = True
    gate_per_lease = False  # the gate counts requests: all leases share one client

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
        pool: PoolConfig | None = None,
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
        from wirestate.resources.http_transport import Policy  # it imports httpx, which `import wirestate` must not

        super().__init__(name)
        if pool is not None and max_connections is not None:
            raise self._wrong("max_connections and pool are one setting")
        self.is_async = async_client
        self.timeout = timeout
        self._headers = _with_token(revealed_all(headers or {}), token)
        self._auth = _authentication(auth)
        self._policy = Policy(
            name,
            self._checked(base_url),
            frozenset(header.lower() for header in self._headers),
            retry_count,
            retry_pause,
            retry_pause_max,
            retry_after_max,
        )
        self._transport = transport
        self._client_factory = client_factory
        self._verify = verify
        self._breaker = None if breaker_failures is None else CircuitBreaker(breaker_failures, breaker_reset, name)
        self._clients: PerLoop[httpx.Client | httpx.AsyncClient] = PerLoop(
            name, self._new_client, _abandon, per_loop=async_client
        )
        self.configure_pool(pool or PoolConfig(max_size=max_connections or CONNECTIONS))

    def _wrong(self, what: str) -> InvalidSettingError:
        return InvalidSettingError(f"service {self.name!r}: {what}", self.name, "build")

    def _checked(self, base_url: str) -> httpx.URL:
        import httpx

        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL:  # from None: it quotes what may be a password
            raise self._wrong("its base_url cannot be read") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise self._wrong("its base_url must begin with http:// or https:// and a host")
        if url.query or url.fragment:
            raise self._wrong("its base_url ends with a path; a token behind '?' belongs into headers= or token=")
        if url.userinfo or "@" in url.path:
            raise self._wrong("give user and password by auth=, not in the base_url, which is logged")
        return url

    @property
    def breaker(self) -> CircuitBreaker | None:
        """What stops requests to a service that is out of order."""
        return self._breaker

    # --- the pool --------------------------------------------------------------------------

    def accepts_pool(self, config: PoolConfig) -> None:
        """Refuse what a gate in front of httpx cannot honour.

        Raises:
            InvalidSettingError: with the names of those settings.
        """
        refuse_unhonoured(self.name, config, HONOURED, why="the connections are httpx's")

    def configure_pool(self, config: PoolConfig) -> None:
        """Say how many requests may run at once, before the first one.

        Raises:
            InvalidSettingError: a setting cannot be honoured, or the client is in use.
        """
        self.accepts_pool(config)
        if self._clients.is_used:
            raise self._wrong("it is in use; size its pool before")
        self.pool_config = config
        self.gate = Gate(
            config.max_size, name=self.name, timeout=config.acquire_timeout, max_waiting=config.max_waiting
        )

    def _new_transport(self) -> httpx.BaseTransport | httpx.AsyncBaseTransport:
        import httpx

        # No limit in httpx: 0.28 loses places for good when requests that wait for one are cancelled.
        limits = httpx.Limits(
            max_connections=None,
            max_keepalive_connections=self.pool_config.max_size,
            keepalive_expiry=self.pool_config.max_idle_time or KEEP_ALIVE,
        )
        verify = ssl.create_default_context(cafile=self._verify) if isinstance(self._verify, str) else self._verify
        kind = httpx.AsyncHTTPTransport if self.is_async else httpx.HTTPTransport
        return kind(verify=verify, limits=limits)

    def _new_client(self) -> httpx.Client | httpx.AsyncClient:
        import httpx

        from wirestate.resources.http_transport import ServiceTransport, watch_requests

        inner = self._transport or self._new_transport()
        make = self._client_factory or (httpx.AsyncClient if self.is_async else httpx.Client)
        client = make(
            base_url=self._policy.base_url,
            headers=self._headers,
            auth=self._auth,
            timeout=self.timeout,
            transport=ServiceTransport(inner, self._policy, self.gate, self._breaker),
            follow_redirects=True,
        )
        watch_requests(client, self.name)
        return client

    # --- leases ----------------------------------------------------------------------------

    def acquire(self, **options: Any) -> Any:  # Any: an httpx client of either kind
        """Return the client, the same for all."""
        refuse_options(self.name, options)
        if self.is_async:
            raise AsyncResourceError(f"service {self.name!r} is asynchronous; await aacquire()", self.name, "acquire")
        return self._clients.get()

    async def aacquire(self, **options: Any) -> Any:  # Any: an httpx client of either kind
        """Return the client of the running loop."""
        refuse_options(self.name, options)
        return self._clients.get()

    async def arelease(self, resource: object) -> None:
        """Keep the client open for the next one."""

    def validate(self, resource: Any) -> bool:  # Any: an httpx client of either kind
        """Tell whether the client is open."""
        return not resource.is_closed

    # --- health and end --------------------------------------------------------------------

    def health_check(self) -> ResourceHealth:
        """Ask for the base URL; any answer below 500 is healthy: a missing page is nobody's illness."""
        return blocking_probe(self.ahealth_check, is_async=self.is_async)

    async def ahealth_check(self) -> ResourceHealth:
        """Do the same in an event loop; a synchronous client blocks it."""
        if self.status is ResourceStatus.CLOSED:
            return ResourceHealth.UNHEALTHY
        began = monotonic()
        try:
            status = await self._probed()
        except Exception as error:  # whatever a transport raises is an answer
            log.debug("probe of %r: %s", self.name, type(error).__name__)
            self.trouble = trouble_of(error)
            return ResourceHealth.UNHEALTHY
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.trouble = f"it answers with status {status}"
            return ResourceHealth.UNHEALTHY
        return ResourceHealth.DEGRADED if monotonic() - began > SLOW else ResourceHealth.HEALTHY

    async def _probed(self) -> int:
        """Send one request past gate, breaker and retries, by a connection of its own; return the status."""
        import httpx

        timeout = httpx.Timeout(min(self.timeout, PROBE_TIMEOUT)).as_dict()
        request = httpx.Request("HEAD", self._policy.base_url, headers=self._headers, extensions={"timeout": timeout})
        transport = self._transport or self._new_transport()
        own = transport is not self._transport
        if self.is_async:
            suspending = cast("httpx.AsyncBaseTransport", transport)
            async with suspending if own else nullcontext():
                response = await suspending.handle_async_request(request)
                await response.aclose()
        else:
            blocking = cast("httpx.BaseTransport", transport)
            with blocking if own else nullcontext():
                response = blocking.handle_request(request)
                response.close()
        return response.status_code

    def close(self) -> None:
        """Close the client and its connections."""
        if self.is_async:
            raise AsyncResourceError(f"service {self.name!r} is asynchronous; await aclose()", self.name, "close")
        super().close()
        self.gate.close()
        client = self._clients.close()
        if client is not None:
            cast("httpx.Client", client).close()

    async def aclose(self) -> None:
        """Close the client of this loop and its connections."""
        super().close()
        self.gate.close()
        client = self._clients.close()
        if client is not None:
            await cast("httpx.AsyncClient", client).aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self._policy.base_url} {self.status.value}>"


def _with_token(headers: dict[str, str], token: str | SecretStr | None) -> dict[str, str]:
    return headers if token is None else {**headers, "Authorization": f"Bearer {revealed(token)}"}


def _authentication(auth: Any) -> Any:  # Any: a pair, or an httpx.Auth
    if isinstance(auth, tuple | list):
        user, password = auth
        return revealed(user), revealed(password)
    return auth


def _abandon(client: httpx.Client | httpx.AsyncClient) -> None:
    """Nothing can be awaited in a loop that is closed; the client's sockets end with it."""
