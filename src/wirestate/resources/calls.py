"""How one callable is called: found once when it is declared, never per call.

``Any`` here: callables of users, of any form and signature.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

DEEPEST = 100  # layers that are looked through: an object may answer to every name, also to __wrapped__


def layers(call: Any) -> Iterator[Any]:
    """Yield *call* and what it calls in turn: through partials, methods, decorators and ``__call__`` of objects."""
    for _ in range(DEEPEST):
        yield call
        below = _below(call)
        if below is None:
            return
        call = below


def _below(call: Any) -> Any:
    if isinstance(call, functools.partial):
        return call.func
    if inspect.ismethod(call):
        return call.__func__
    wrapped = getattr(call, "__wrapped__", None)
    if callable(wrapped):
        return wrapped
    if inspect.isclass(call) or inspect.isroutine(call):
        return None
    called = getattr(type(call), "__call__", None)  # noqa: B004  # looked at, not asked for
    return called if inspect.isfunction(called) or getattr(called, "__wrapped__", None) is not None else None


def is_async_callable(call: object) -> bool:
    """Tell whether calling *call* gives an awaitable or an async generator."""
    return any(
        inspect.iscoroutinefunction(layer) or inspect.isasyncgenfunction(layer)
        for layer in layers(call)
        if has_code(layer)
    )


def has_code(function: Any) -> bool:
    """Tell whether *function* has flags that can be asked for: a mock of a function makes up something else."""
    return isinstance(getattr(getattr(function, "__code__", None), "co_flags", None), int)


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


def can_block(provider: object) -> bool:
    """Return True if *provider* says that opening, using or ending its resource can wait in the thread.

    A provider class whose instances decide it themselves can.
    """
    blocking = getattr(provider, "blocking", False)
    return blocking is True or isinstance(blocking, property)


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
    def of(cls, provider: Any, *, pooled: bool = False, shared: bool = False) -> ProviderCalls:
        """Read the verbs of *provider*; ``reset`` is one only where its resources are *pooled*.

        What is acquired to be *shared* goes through ``freeze_shared``, if the provider has it.

        A provider with ``is_async = True`` is called by its a-twins (``aacquire``, ``arelease``,
        ``avalidate``, ``areset``, ``aclose``) where it has them; one whose plain verbs are coroutine
        functions by those, and by ``aclose`` where it has that.
        """
        asynchronous = getattr(provider, "is_async", False) is True

        def verb(name: str) -> Any:
            twin = getattr(provider, f"a{name}", None) if asynchronous else None
            return twin if twin is not None else getattr(provider, name, None)

        acquire, release, validate = map(verb, ("acquire", "release", "validate"))
        if shared and (freeze := getattr(provider, "freeze_shared", None)) is not None:
            acquire = _frozen(acquire, freeze)
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


def _frozen(acquire: Callable[..., Any], freeze: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return *acquire* with *freeze* behind it."""

    async def aacquire(**options: Any) -> Any:  # Any: as the provider's own
        return freeze(await acquire(**options))

    return aacquire if is_async_callable(acquire) else lambda **options: freeze(acquire(**options))
