"""What the settings of an HTTP service must be: refused before the first request, and never quoted where secret."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from wirestate.errors import InvalidSettingError
from wirestate.resources.http.clients import LentAsyncClient, LentClient
from wirestate.resources.secrets import revealed, revealed_all, title_of

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
HEADER_VALUE = re.compile(r"(?:[!-~](?:[ -~\t]*[!-~])?)?")


class HTTPSettings:
    """Checks the settings of one service; every check raises InvalidSettingError, or returns what to use."""

    def __init__(self, name: str, *, is_async: bool) -> None:
        self._name = name
        self._is_async = is_async

    def wrong(self, what: str) -> InvalidSettingError:
        """Make the error for a setting that cannot be used."""
        return InvalidSettingError(f"service {self._name!r}: {what}", self._name, "build")

    def number(self, setting: str, value: object, *, zero: bool = True, whole: bool = False) -> None:
        """Refuse what is no number, or negative, or 0 where that makes no sense."""
        kinds = int if whole else int | float
        if not isinstance(value, kinds) or isinstance(value, bool) or math.isnan(value):
            raise self.wrong(f"{setting} is {value!r}; it must be a {'whole ' if whole else ''}number")
        if value < 0 or (value == 0 and not zero):
            raise self.wrong(f"{setting} is {value!r}; it must be {'0 or more' if zero else 'more than 0'}")

    def url(self, base_url: str | SecretStr) -> httpx.URL:
        """Read the base URL; it is logged, so nothing secret may be in it."""
        try:
            url = httpx.URL(revealed(base_url))
        except (httpx.InvalidURL, TypeError):  # from None: it quotes what may be a password
            raise self.wrong("its base_url cannot be read") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise self.wrong("its base_url must begin with http:// or https:// and a host")
        if url.query or url.fragment:
            raise self.wrong("its base_url ends with a path; a token behind '?' belongs into headers= or token=")
        if url.userinfo or "@" in url.path:
            raise self.wrong("give user and password by auth=, not in the base_url, which is logged")
        return url

    def credentials(
        self,
        headers: Any,
        auth: Any,
        token: str | SecretStr | None,  # Any: what a user gives
    ) -> tuple[dict[str, SecretStr], httpx.Auth | None]:
        """Return headers, the token among them, and the authentication."""
        wrapped = self.headers(headers, token)
        return wrapped, self.authentication(auth, wrapped)

    def headers(self, headers: Mapping[str, str | SecretStr], token: str | SecretStr | None) -> dict[str, SecretStr]:
        """Add the token to the headers, and wrap them all."""
        if not isinstance(headers, Mapping):
            raise self.wrong(f"headers is a {title_of(headers)}; it must be a mapping")
        plain: dict[str, str] = revealed_all(headers)
        for name, value in plain.items():
            if not HEADER_NAME.fullmatch(name):
                raise self.wrong("headers holds a name that is none: letters, digits and '-' make one")
            self._header_value(f"headers: {name!r}", value)
        if token is not None:
            if any(name.lower() == "authorization" for name in plain):
                raise self.wrong("token and the header 'Authorization' are one setting")
            self._header_value("token", revealed(token))
            plain["Authorization"] = f"Bearer {revealed(token)}"
        return {name: SecretStr(value) for name, value in plain.items()}

    def _header_value(self, what: str, value: object) -> None:
        # Else the error of the first request would quote it, with the secret in it.
        if not isinstance(value, str) or not HEADER_VALUE.fullmatch(value):
            raise self.wrong(f"{what} must be plain text (ASCII), without line breaks or spaces at its ends")

    def authentication(self, auth: Any, headers: Mapping[str, object]) -> httpx.Auth | None:  # Any: or a pair
        """Make a pair of user and password an ``httpx.Auth``."""
        if auth is None:
            return None
        if any(name.lower() == "authorization" for name in headers):
            raise self.wrong("auth and token (or the header 'Authorization') contradict each other")
        if isinstance(auth, httpx.Auth):
            return auth
        pair = [revealed(part) for part in auth] if isinstance(auth, tuple | list) else []
        if len(pair) == 2 and all(isinstance(part, str) for part in pair):
            return httpx.BasicAuth(*pair)
        raise self.wrong("auth must be a pair of user and password, or an httpx.Auth")

    def transport(self, transport: object) -> None:
        """Refuse a transport of the other world."""
        wanted = httpx.AsyncBaseTransport if self._is_async else httpx.BaseTransport
        if transport is not None and not isinstance(transport, wanted):
            raise self.wrong(f"transport is a {type(transport).__qualname__}; it must be an httpx.{wanted.__name__}")

    def client(self, kind: type) -> None:
        """Refuse a client of the other world, or of a library that only resembles httpx."""
        wanted = httpx.AsyncClient if self._is_async else httpx.Client
        if not issubclass(kind, wanted):
            what = f"{kind.__module__}.{kind.__qualname__}"
            raise self.wrong(f"client_factory makes a {what}; it must be an httpx.{wanted.__name__}")

    def new_client(self, client: httpx.Client | httpx.AsyncClient) -> None:
        """Refuse what a factory made that no lease can have for itself."""
        self.client(type(client))
        if isinstance(client, LentClient | LentAsyncClient):
            raise self.wrong("client_factory gave a client again; it must make a new one for each lease")

    def verify(self, verify: bool | str) -> None:
        """Refuse a file of authorities that is not there."""
        if isinstance(verify, str) and not Path(verify).is_file():
            raise self.wrong(f"verify names the file {verify!r}, which is not there")
