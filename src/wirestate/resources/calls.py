"""How one provider is called: found once when it is registered, never per call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def is_async_callable(call: object) -> bool:
    """Tell whether calling *call* gives an awaitable or an async generator."""
    if call is None:
        return False
    target = inspect.unwrap(call) if callable(call) else call
    return (
        inspect.iscoroutinefunction(call)
        or inspect.iscoroutinefunction(target)
        or inspect.isasyncgenfunction(target)
        or inspect.iscoroutinefunction(getattr(type(call), "__call__", None))  # noqa: B004  # looked at, not asked for
    )


def takes_error(call: Callable[..., Any]) -> bool:
    """Tell whether *call* has a parameter named ``error``."""
    try:
        return "error" in inspect.signature(call).parameters
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class ProviderCalls:
    """The verbs of one provider, with what has to be known to call them."""

    acquire: Callable[..., Any]
    release: Callable[..., Any]
    validate: Callable[[Any], Any] | None
    close: Callable[[], Any] | None
    acquire_is_async: bool
    release_is_async: bool
    validate_is_async: bool
    close_is_async: bool
    release_takes_error: bool

    @property
    def is_async(self) -> bool:
        """True if the resource cannot be had or given back without an event loop."""
        return self.acquire_is_async or self.release_is_async or self.validate_is_async

    @classmethod
    def of(cls, provider: Any) -> ProviderCalls:
        """Read the verbs of *provider*.

        A provider with ``is_async = True`` is called by its a-twins (``aacquire``, ``arelease``,
        ``avalidate``, ``aclose``) where it has them; one whose plain verbs are coroutine functions by those.
        """
        asynchronous = getattr(provider, "is_async", False) is True

        def verb(name: str) -> Any:
            twin = getattr(provider, f"a{name}", None) if asynchronous else None
            return twin if twin is not None else getattr(provider, name, None)

        acquire, release, validate, close = map(verb, ("acquire", "release", "validate", "close"))
        if close is None:
            close = getattr(provider, "aclose", None)
        return cls(
            acquire=acquire,
            release=release,
            validate=validate,
            close=close,
            acquire_is_async=is_async_callable(acquire),
            release_is_async=is_async_callable(release),
            validate_is_async=is_async_callable(validate),
            close_is_async=is_async_callable(close),
            release_takes_error=takes_error(release),
        )
