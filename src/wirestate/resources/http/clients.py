"""The clients that an HTTP adapter lends: each lease has one of its own, and one that all share cannot be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from http.cookiejar import CookieJar
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx

from wirestate.errors import SharedClientError
from wirestate.resources.http.origins import Service

Refusal = Callable[[str], SharedClientError]


def make_lent(client: Any, service: Service) -> None:  # Any: an httpx client of either kind
    """Make *client* one of a lease, whatever factory made it."""
    kind: Any = type(client)  # Any: for mypy, no class of httpx can be hashed
    client.__class__ = _lent_kind(kind)
    client._service = service


def frozen(client: Any) -> Any:  # Any: an httpx client of either kind
    """Make *client* one that all may use at once: nothing can be set on it, and it keeps no cookies."""
    if isinstance(client, LentClient | LentAsyncClient):
        kind: Any = type(client)  # Any: as above
        client.__class__ = _frozen_kind(kind)
    return client


@lru_cache(64)  # a factory may make its class anew each time
def _lent_kind(kind: Any) -> Any:  # Any: as above
    return type(kind.__name__, (LentAsyncClient if issubclass(kind, httpx.AsyncClient) else LentClient, kind), {})


@lru_cache(64)
def _frozen_kind(kind: Any) -> Any:  # Any: as above
    return type(kind.__name__, (Frozen, kind), {})


class LentClient(httpx.Client):
    """A client whose ``close`` ends nothing: its connections serve others, and its lease goes on."""

    _service: Service

    def build_request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Request:  # Any: httpx's own
        return self._service.built(partial(super().build_request, method), url, options)

    def close(self) -> None:
        """Do nothing: the end of the lease closes it."""

    def end(self) -> None:
        """Close it, and what its factory gave it beside the connections."""
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

    _service: Service

    def build_request(self, method: str, url: httpx.URL | str, **options: Any) -> httpx.Request:  # Any: httpx's own
        return self._service.built(partial(super().build_request, method), url, options)

    async def aclose(self) -> None:
        """Do nothing: the end of the lease closes it."""

    async def end(self) -> None:
        """Close it, and what its factory gave it beside the connections."""
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


class Frozen:
    """What goes before the class of a client that all share: each of its parts is shown as one that refuses changes."""

    _service: Service

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):  # httpx notes there that it has been used
            raise self._refusal(name)
        super().__setattr__(name, value)

    def _refusal(self, part: str) -> SharedClientError:
        return SharedClientError(self._service.name, part)

    @property
    def _parts(self) -> Any:  # Any: the httpx client behind this class
        return super()

    @property
    def headers(self) -> httpx.Headers:
        return FrozenHeaders(self._parts.headers, self._refusal)

    @property
    def cookies(self) -> httpx.Cookies:
        return httpx.Cookies(FrozenJar(self._parts.cookies.jar, self._refusal))

    @property
    def timeout(self) -> httpx.Timeout:
        return FrozenTimeout(self._parts.timeout, self._refusal)

    @property
    def event_hooks(self) -> FrozenHooks:
        return FrozenHooks(self._parts.event_hooks, self._refusal)


class FrozenHeaders(httpx.Headers):
    """Headers that can only be read."""

    def __init__(self, headers: httpx.Headers, refusal: Refusal) -> None:
        super().__init__(headers)
        self._refusal = refusal

    def __setitem__(self, key: str, value: str) -> NoReturn:
        raise self._refusal("headers")

    def __delitem__(self, key: str) -> NoReturn:
        raise self._refusal("headers")

    def update(self, headers: Any = None) -> NoReturn:  # type: ignore[override]  # Any: httpx's own
        raise self._refusal("headers")


class DeafJar(CookieJar):
    """Cookies to which those of responses are not added: they would go out with requests of others."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Keep none."""


class FrozenJar(DeafJar):
    """Cookies that can only be read."""

    def __init__(self, cookies: CookieJar, refusal: Refusal) -> None:
        super().__init__()
        for cookie in cookies:
            super().set_cookie(cookie)
        self._refusal = refusal

    def set_cookie(self, cookie: object) -> NoReturn:
        raise self._refusal("cookies")

    def clear(self, domain: str | None = None, path: str | None = None, name: str | None = None) -> NoReturn:
        raise self._refusal("cookies")


class FrozenTimeout(httpx.Timeout):
    """Time limits that can only be read."""

    def __init__(self, timeout: httpx.Timeout, refusal: Refusal) -> None:
        super().__init__(timeout)
        self._refusal = refusal  # from now on

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, "_refusal"):
            raise self._refusal("timeout")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, httpx.Timeout) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]  # as httpx's own


class FrozenHooks(dict[str, Any]):  # Any: lists of a user's functions
    """Functions by their event that can only be read."""

    def __init__(self, hooks: Mapping[str, list[Any]], refusal: Refusal) -> None:  # Any: as above
        super().__init__({event: FrozenList(each, refusal) for event, each in hooks.items()})
        self._refusal = refusal

    def _refuse(self, *given: object, **named: object) -> Any:  # Any: it never returns
        raise self._refusal("event_hooks")

    pop = popitem = clear = _refuse
    update: Any = _refuse  # Any: it has several signatures
    setdefault: Any = _refuse  # Any: so has this
    __setitem__ = __delitem__ = __ior__ = _refuse


class FrozenList(list[Any]):  # Any: a user's functions
    """Functions of one event that can only be read."""

    def __init__(self, hooks: list[Any], refusal: Refusal) -> None:  # Any: as above
        super().__init__(hooks)
        self._refusal = refusal

    def _refuse(self, *given: object, **named: object) -> Any:  # Any: it never returns
        raise self._refusal("event_hooks")

    append = extend = insert = remove = pop = clear = reverse = _refuse
    sort: Any = _refuse  # Any: as update above
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
