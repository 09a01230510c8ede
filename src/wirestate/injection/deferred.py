"""Resource providers that cannot be made before their container is in use."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

from wirestate.injection.arguments import Arguments
from wirestate.resources.calls import can_block
from wirestate.resources.managed import ManagedRecipe
from wirestate.resources.recipes import HoldingScope, Opened, Recipe, settled
from wirestate.resources.threads import Threads
from wirestate.waiting import World


class DeferredRecipe(Recipe):
    """A resource provider that is made when its own arguments are open, and anew after each reset.

    Args:
        name: of the resource.
        level: how long a lease lasts.
        provides: a class or instance with the verbs of a resource provider.
        make: makes the provider, from what gets its arguments in a scope, and says how its resources are lent.
        arguments: how its arguments are got.
        now: it can be made at once, as it needs nothing open; only a reset makes it anew.
        awaits: they may have to be awaited.
        blocking: whether the resource can wait in the thread, whatever the provider says.
    """

    __slots__ = ("_arguments", "_awaits", "_inner", "_make", "_making", "now")

    def __init__(
        self,
        name: str,
        level: int,
        provides: Any,  # Any: what users declare
        make: Callable[[Arguments, HoldingScope], ManagedRecipe],
        arguments: Arguments,
        *,
        now: bool,
        awaits: bool,
        blocking: bool,
    ) -> None:
        verbs = (getattr(provides, verb, None) for verb in ("acquire", "release"))
        is_async = awaits or any(map(inspect.iscoroutinefunction, verbs))
        super().__init__(name, level, is_async=is_async, blocking=blocking or can_block(provides))
        self._make = make
        self._arguments = arguments
        self.now = now
        self._awaits = awaits
        self._inner: ManagedRecipe | None = None
        self._making = threading.Lock()

    @property
    def inner(self) -> ManagedRecipe:
        """The provider, made now if it is not there yet."""
        return self._made(self._arguments)

    async def _inner_waiting(self) -> ManagedRecipe:
        if self._inner is not None:
            return self._inner
        args, kwargs = self._arguments(self.manager.root)
        args = tuple([await settled(value) for value in args])
        kwargs = {name: await settled(value) for name, value in kwargs.items()}
        return self._made(lambda scope: (args, kwargs))

    def _made(self, arguments: Arguments) -> ManagedRecipe:
        with self._making:
            if self._inner is None:
                inner = self._make(arguments, self.manager.root)
                inner.meter = self.meter
                self.manager.manage(inner)
                self._inner = inner
                # What an adapter says of itself may depend on its arguments, as on a URL.
                self.is_async, self.blocking = self._awaits or inner.is_async, inner.blocking
            return self._inner

    def renew(self) -> ManagedRecipe | None:
        """Forget the provider, and return it to be closed; the next use makes another."""
        with self._making:
            made, self._inner = self._inner, None
        return made

    @property
    def longest_wait(self) -> float | None:
        return None if self._inner is None and self._awaits else self.inner.longest_wait

    @property
    def threads(self) -> Threads:
        return super().threads if self._inner is None else self._inner.threads

    @property
    def source(self) -> Recipe:
        return self if self._inner is None else self._inner

    def start(self, scope: HoldingScope) -> Opened | None:
        return None if self._awaits else self.inner.start(scope)

    async def astart(self, scope: HoldingScope, world: World, timeout: float | None, options: dict[str, Any]) -> Opened:
        inner = await (self._inner_waiting() if self._awaits else self.call(world, lambda: self.inner))
        return await inner.astart(scope, world, timeout, options)

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        return self.inner.finish(handle, error)

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        await self.inner.afinish(handle, error, world)
