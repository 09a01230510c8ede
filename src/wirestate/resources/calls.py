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


def takes_one(call: Callable[..., Any]) -> bool:
    """Tell whether *call* can be called with one argument."""
    try:
        inspect.signature(call).bind(None)
    except TypeError:
        return False
    except ValueError:  # a built-in that does not tell
        return True
    return True


@dataclass(frozen=True, slots=True)
class ProviderCalls:
    """The verbs of one provider, with what has to be known to call them."""

    acquire: Callable[..., Any]
    release: Callable[..., Any]
    validate: Callable[[Any], Any] | None
    reset: Callable[[Any], Any] | None
    close: Callable[[], Any] | None
    acquire_is_async: bool
    release_is_async: bool
    validate_is_async: bool
    reset_is_async: bool
    close_is_async: bool
    release_takes_error: bool

    @property
    def is_async(self) -> bool:
        """True if the resource cannot be had or given back without an event loop."""
        return self.acquire_is_async or self.release_is_async or self.validate_is_async or self.reset_is_async

    @classmethod
    def of(cls, provider: Any, *, pooled: bool = False) -> ProviderCalls:
        """Read the verbs of *provider*; ``reset`` is one only where its resources are *pooled*.

        A provider with ``is_async = True`` is called by its a-twins (``aacquire``, ``arelease``,
        ``avalidate``, ``areset``, ``aclose``) where it has them; one whose plain verbs are coroutine
        functions by those, and by ``aclose`` where it has that.
        """
        asynchronous = getattr(provider, "is_async", False) is True

        def verb(name: str) -> Any:
            twin = getattr(provider, f"a{name}", None) if asynchronous else None
            return twin if twin is not None else getattr(provider, name, None)

        acquire, release, validate = map(verb, ("acquire", "release", "validate"))
        reset = verb("reset") if pooled else None
        acquire_is_async, release_is_async = is_async_callable(acquire), is_async_callable(release)
        close, aclose = getattr(provider, "close", None), getattr(provider, "aclose", None)
        if aclose is not None and (close is None or asynchronous or acquire_is_async or release_is_async):
            close = aclose
        return cls(
            acquire=acquire,
            release=release,
            validate=validate,
            reset=reset,
            close=close,
            acquire_is_async=acquire_is_async,
            release_is_async=release_is_async,
            validate_is_async=is_async_callable(validate),
            reset_is_async=is_async_callable(reset),
            close_is_async=is_async_callable(close),
            release_takes_error=takes_error(release),
        )
