"""What goes wrong with a service of language models, told in our errors and without what a request carried."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, cast

import openai

from wirestate.errors import (
    LLMAnswerError,
    LLMError,
    LLMRateLimitError,
    LLMRefusedError,
    LLMTimeoutError,
    LLMUnavailableError,
)
from wirestate.redaction import without_secrets
from wirestate.resources.http.transport import retry_after
from wirestate.resources.secrets import trouble_of
from wirestate.waiting import ExpiredError

if TYPE_CHECKING:
    import httpx

SHOWN = 300  # letters of what a service says
TRY_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT})  # beside those from 500 on
USED_UP = "insufficient_quota"  # comes as a rate limit, and no waiting helps
HINTS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "; check its api_key",
    HTTPStatus.FORBIDDEN: "; check its api_key",
    HTTPStatus.NOT_FOUND: "; check its model and base_url",
}


def failure_of(name: str, error: Exception, seconds: float, secrets: Collection[str]) -> LLMError | None:
    """Return what *error* means, or None if it is no matter of the service.

    The result must be raised where *error* is handled no more: an error of the client library holds the
    request with its headers, and would come along as the context.
    """
    kind = type(error)
    if isinstance(error, ExpiredError | openai.APITimeoutError) or _is_of_transport(error, "Timeout"):
        return LLMTimeoutError(name, f"no answer within {seconds:.2f} s; raise its timeout, or ask for less")
    if isinstance(error, openai.APIStatusError):
        return _refusal(name, error, secrets)
    if isinstance(error, openai.APIConnectionError) or _is_of_transport(error):
        return LLMUnavailableError(name, f"it cannot be reached: {_trouble(error.__cause__ or error, secrets)}")
    if isinstance(error, openai.APIError):
        return LLMAnswerError(name, f"the answer broke off{_said(error, secrets)}")
    if isinstance(error, openai.OpenAIError | JSONDecodeError | UnicodeDecodeError):
        return LLMAnswerError(name, f"the answer cannot be understood ({kind.__name__}); does its base_url end right?")
    return None


def _trouble(error: BaseException, secrets: Collection[str]) -> str:
    # Of what cannot be sent, the text quotes the header.
    return type(error).__name__ if "LocalProtocol" in type(error).__name__ else trouble_of(error, *secrets)


def _is_of_transport(error: Exception, what: str = "") -> bool:
    """Tell whether the transport raised *error*: early clients use httpx, later ones its successor httpx2."""
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in ("httpx", "httpx2")]
    return any(what in kind.__name__ for kind in kinds)


def _refusal(name: str, error: openai.APIStatusError, secrets: Collection[str]) -> LLMError:
    status = error.status_code
    pause = retry_after(cast("httpx.Response", error.response))  # of httpx or httpx2: both have such headers
    said = f"(status {status}){_said(error, secrets)}"
    if status == HTTPStatus.TOO_MANY_REQUESTS and error.code != USED_UP:
        wait = "" if pause is None else f"; it asks to wait {pause:g} s"
        return LLMRateLimitError(name, f"its rate limit is reached {said}{wait}", status=status, retry_after=pause)
    if status in TRY_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return LLMUnavailableError(name, f"its service fails {said}", status=status, retry_after=pause)
    if status < HTTPStatus.BAD_REQUEST:
        what = f"its service redirects (status {status}), which is not followed; correct its base_url"
        return LLMRefusedError(name, what, status=status)
    return LLMRefusedError(name, f"its service refuses the request {said}{HINTS.get(status, '')}", status=status)


def _said(error: openai.APIError, secrets: Collection[str]) -> str:
    """Return what the service says, short and on one line; it may quote the key that it got."""
    body: Any = error.body  # Any: JSON
    message = body.get("message") if isinstance(body, dict) else body
    text = " ".join(without_secrets(message).split()) if isinstance(message, str) else ""
    for secret in filter(None, secrets):
        text = text.replace(secret, "…")
    return f": {text[:SHOWN]}" if text else ""
