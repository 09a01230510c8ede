"""Language models as a resource: any service that speaks the protocol of OpenAI's chat completions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from time import monotonic
from typing import Any

from pydantic import SecretStr

from wirestate.errors import (
    AsyncResourceError,
    BlockingWaitError,
    InvalidSettingError,
    LackingSettingError,
    LLMRateLimitError,
    MissingDriverError,
    ResourceClosedError,
)
from wirestate.redaction import half_made_too
from wirestate.resources.base import BaseResourceProvider, ResourceHealth, ResourceMetrics, ResourceStatus
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.gate import Gate
from wirestate.resources.llm.calls import LLM, OURS, AsyncTextStream, Completion, Question, TextStream
from wirestate.resources.native_pools import refuse_options, refuse_unhonoured
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.secrets import NoFrames, Revealed, concealed, revealed, title_of
from wirestate.waiting import SUSPENDING, running_loop

__all__ = ["LLM", "AsyncTextStream", "Completion", "LLMResourceAdapter", "Question", "TextStream"]

PRINTABLE = re.compile(r"[!-~]+")
VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
OPENAI = "https://api.openai.com/v1"
HONOURED = ("max_size", "acquire_timeout", "max_waiting", "leak_threshold")
CONNECTIONS = 1000  # the client's own limit; behind a smaller one of ours nobody ever waits there
PROBE_TIMEOUT = 5.0
SLOW = 1.0  # seconds after which a healthy answer counts as degraded
NOT_OFFERED = frozenset({404, 405, 501})  # a service need not list its models


class LLMResourceAdapter(BaseResourceProvider):
    """Lend one language model to all its users, for threads and for tasks.

    Requests wait in line for one of ``pool.max_size`` places; a stream holds its place until its end. A request is
    tried again when the service cannot be reached, fails, or says that its rate limit is reached; ``Retry-After`` is
    respected. All of that, and the answer, has to fit into ``timeout``. Only what is given here is sent: variables
    of the openai client such as ``OPENAI_API_KEY`` are not read, and no redirect is followed.

    Args:
        name: the name of the resource.
        model: the model that answers where a call names no other.
        base_url: of the service (None: OpenAI's); any that speaks the protocol.
        api_key: for ``Authorization: Bearer``; None sends none.
        timeout: seconds until an answer is there, and between two pieces of a stream.
            A blocking call cannot be interrupted: there, each wait for the network is bounded.
        headers: for every request.
        temperature: for every request, unless the call says another.
        max_tokens: the same, for the longest answer.
        options: further fields of every request.
        retry_count: how often a request is tried again.
        retry_pause: seconds before the first retry; doubled for each further one.
        retry_pause_max: longest of these.
        retry_after_max: longest ``Retry-After`` that is waited for; beyond it, the request fails at once.
        breaker_failures: failures in a row after which requests fail at once (None: never).
        breaker_reset: seconds until one request may try again.
        pool: how many requests may run at once, and how long others wait.

    Raises:
        MissingDriverError: the openai client is not installed.
        InvalidSettingError: a setting cannot be used.

    Example:
        >>> writer = LLMResourceAdapter("writer", model="qwen3:8b", base_url="http://127.0.0.1:11434/v1")
        >>> writer.acquire()
        <LLM 'writer' qwen3:8b>
        >>> writer.close()
    """

    default_lifetime = "singleton"
    native_pool = True
    gate_per_lease = False  # the gate counts requests: all leases share one model
    blocking = True  # its plain verbs do; functions that await the others say that they are asynchronous

    def __init__(
        self,
        name: str = "llm",
        *,
        model: str,
        base_url: str | None = None,
        api_key: str | SecretStr | None = None,
        timeout: float = 60.0,
        headers: Mapping[str, str | SecretStr] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        options: Mapping[str, Any] | None = None,  # Any: fields of the protocol
        retry_count: int = 3,
        retry_pause: float = 0.5,
        retry_pause_max: float = 10.0,
        retry_after_max: float = 60.0,
        breaker_failures: int | None = 5,
        breaker_reset: float = 30.0,
        pool: PoolConfig | Mapping[str, Any] | None = None,  # Any: its fields
    ) -> None:
        endpoint, options = (concealed(base_url), concealed(api_key), concealed(headers or {})), concealed(options)
        del base_url, api_key, headers  # a traceback with locals shows this frame
        super().__init__(name)
        if not isinstance(model, str) or not model.strip():
            raise self._wrong("its model must be named")
        positive = {"timeout": timeout, "retry_pause": retry_pause, "retry_pause_max": retry_pause_max}
        whole = {"retry_count": retry_count, "breaker_failures": breaker_failures, "max_tokens": max_tokens}
        self._refuse_numbers({**positive, "breaker_reset": breaker_reset}, zero=False)
        self._refuse_numbers({"retry_after_max": retry_after_max}, zero=True)
        for setting, value in whole.items():
            if value is not None:
                self._refuse_numbers({setting: value}, zero=setting == "retry_count", kind=int)
        if options is not None and not isinstance(options, Mapping):
            raise self._wrong(f"options is a {title_of(options)}; it must be a mapping")
        defaults = Revealed({**(options or {}), "temperature": temperature, "max_tokens": max_tokens})
        if taken := OURS & defaults.keys():
            raise self._wrong(f"options holds {min(taken)!r}, which belongs to each call")
        with NoFrames():
            where, key, wrapped = (
                self._checked_url(endpoint[0]),
                self._checked_key(endpoint[1]),
                self._checked_headers(endpoint[2]),
            )
        try:
            from wirestate.resources.llm.clients import AUTHORIZATION, Clients, Endpoint
            from wirestate.resources.llm.service import Manners, Service
        except ModuleNotFoundError as error:
            if error.name != "openai":
                raise
            raise MissingDriverError(f"llm {name!r}", "openai", "llm", name) from None
        self._timeout = timeout
        self._clients = Clients(name, Endpoint(where, key, wrapped))
        if endpoint[0] is None and self._clients.endpoint.is_open:
            text = "OpenAI wants an api_key (OPENAI_API_KEY is not read here); or give the base_url of another"
            raise LackingSettingError(f"llm {name!r}: {text}", name, "build", setting=("api_key",))
        if key is not None and AUTHORIZATION in wrapped:
            raise self._wrong("api_key and the header Authorization are one setting")
        self._breaker = None if breaker_failures is None else CircuitBreaker(breaker_failures, breaker_reset, name)
        manners = Manners(timeout, retry_count, retry_pause, retry_pause_max, retry_after_max, defaults)
        self._service = Service(name, model, self._clients, manners, self._breaker)
        self.configure_pool(pool or PoolConfig())
        self._llm = LLM(self._service)

    def _wrong(self, what: str) -> InvalidSettingError:
        return InvalidSettingError(f"llm {self.name!r}: {what}", self.name, "build")

    def _refuse_numbers(self, given: Mapping[str, object], *, zero: bool, kind: type = float) -> None:
        for setting, value in given.items():
            fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
            if not fits or not math.isfinite(value) or value < 0 or (value == 0 and not zero):  # type: ignore[arg-type, operator]  # a number by now
                number = "a whole number" if kind is int else "a number"
                raise self._wrong(f"{setting} must be {number}, {'0 or more' if zero else 'more than 0'}")

    def _checked_url(self, given: str | SecretStr | None) -> str:
        if given is None:
            return OPENAI
        import httpx

        base_url = revealed(given)
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError):  # from None: it quotes what may be a password
            raise self._wrong("its base_url cannot be read") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise self._wrong("its base_url must begin with http:// or https:// and a host")
        if "@" in base_url:
            raise self._wrong("its base_url, which is logged, holds user and password; give them by headers=")
        if url.query or url.fragment:
            raise self._wrong("its base_url ends with a path; a token behind '?' belongs into api_key= or headers=")
        return base_url

    def _checked_key(self, api_key: str | SecretStr | None) -> SecretStr | None:
        if api_key is None:
            return None
        key: object = revealed(api_key)
        if not isinstance(key, str) or not PRINTABLE.fullmatch(key):  # the transport would quote it
            raise self._wrong("its api_key is empty, or holds a blank, a line break or another letter that no key has")
        return SecretStr(key)

    def _checked_headers(self, headers: Mapping[str, str | SecretStr]) -> dict[str, SecretStr]:
        if not isinstance(headers, Mapping):
            raise self._wrong(f"headers is a {title_of(headers)}; it must be a mapping")
        for header, value in headers.items():
            if not PRINTABLE.fullmatch(header) or not VALUE.fullmatch(revealed(value)):
                raise self._wrong(f"headers: {header!r} is empty, or holds what no header can carry")
        return {
            "Authorization" if header.lower() == "authorization" else header: SecretStr(revealed(value))
            for header, value in headers.items()
        }

    # --- the pool --------------------------------------------------------------------------

    def accepts_pool(self, config: PoolConfig) -> None:
        """Refuse what a gate in front of the client cannot honour.

        Raises:
            InvalidSettingError: with the names of those settings.
        """
        refuse_unhonoured(self.name, config, HONOURED, why="the connections are the openai client's")
        if config.max_size > CONNECTIONS:
            what = (
                f"llm {self.name!r}: max_size is {config.max_size}; its client opens at most {CONNECTIONS} connections"
            )
            raise InvalidSettingError(what, self.name, "configure", pool_faults={"max_size": what})

    def configure_pool(self, config: PoolConfig | Mapping[str, Any]) -> None:  # Any: its fields
        """Say how many requests may run at once, before the first one.

        Raises:
            InvalidSettingError: a setting cannot be honoured, or the model is in use.
        """
        config = PoolConfig.of(config, self.name)
        self.accepts_pool(config)
        if self._clients.is_used:
            raise self._wrong("it is in use; size its pool before")
        self.pool_config = config
        self._service.gate = Gate.of(self.name, config)

    @property
    def gate(self) -> Gate:
        """The line in front of the service."""
        return self._service.gate

    @property
    def breaker(self) -> CircuitBreaker | None:
        """What stops requests to a service that is out of order; ``adapter.breaker.state`` tells whether it does."""
        return self._breaker

    # --- leases and counts -------------------------------------------------------------------

    def acquire(self, **options: Any) -> LLM:  # Any: none is taken
        """Return the model, the same for all; it connects when it is asked."""
        refuse_options(self.name, options)
        if self.status is ResourceStatus.CLOSED:
            raise ResourceClosedError(f"llm {self.name!r} is closed", self.name, "acquire")
        return self._llm

    def validate(self, resource: object) -> bool:
        """Tell whether the model can be asked."""
        return self.status is not ResourceStatus.CLOSED

    def counters(self) -> dict[str, int | float]:
        """Return tokens, requests, failures, retries and seconds since the start."""
        return self._service.tally.counters()

    def get_metrics(self) -> ResourceMetrics:
        """Return the provider's own counters; the manager adds the leases."""
        self.metrics.counters = self.counters()
        return self.metrics

    # --- health and end ----------------------------------------------------------------------

    def health_check(self) -> ResourceHealth:
        """Ask for the list of models; a service that has none is of unknown health.

        Raises:
            BlockingWaitError: an event loop runs in this thread.
        """
        if running_loop() is not None:
            raise BlockingWaitError("a blocking probe would stop the event loop; await ahealth_check()")
        if self.status is ResourceStatus.CLOSED:
            return ResourceHealth.UNHEALTHY
        began = monotonic()
        failure = self._service.probe(min(self._timeout, PROBE_TIMEOUT))
        self.trouble = None if failure is None else str(failure)
        if failure is not None and failure.status in NOT_OFFERED:
            return ResourceHealth.UNKNOWN
        if isinstance(failure, LLMRateLimitError):
            return ResourceHealth.DEGRADED
        if failure is not None:
            return ResourceHealth.UNHEALTHY
        return ResourceHealth.DEGRADED if monotonic() - began > SLOW else ResourceHealth.HEALTHY

    async def ahealth_check(self) -> ResourceHealth:
        """Asynchronous twin of :meth:`health_check`; it asks in a thread."""
        return await SUSPENDING.offload(self.health_check)

    @property
    def needs_loop(self) -> bool:
        """Whether it was asked in an event loop that is open still: only there can it be closed."""
        return self._clients.needs_loop

    def close(self) -> None:
        """Close its connections.

        Raises:
            AsyncResourceError: it was asked in an event loop that is open; nothing was closed.
        """
        if self.needs_loop:
            raise AsyncResourceError(
                f"llm {self.name!r} was asked in an event loop; await aclose()", self.name, "close"
            )
        super().close()
        self.gate.close()
        self._clients.close()

    async def aclose(self) -> None:
        """Close its connections; those of other event loops are closed there."""
        super().close()
        self.gate.close()
        await self._clients.aclose()

    @half_made_too
    def __repr__(self) -> str:
        where = self._clients.endpoint.base_url
        return f"<{type(self).__name__} {self.name!r} {self._service.model} at {where} {self.status.value}>"
