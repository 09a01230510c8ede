"""For tests of one's own machines: fakes behind names, functions with their resources, and a look for leaks."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from wirestate.errors import AsyncResourceError, UnknownResourceError
from wirestate.fsm import SimpleFSM
from wirestate.injection.container import manager_of, planner_of
from wirestate.injection.declared import is_entered
from wirestate.injection.edges import member_of, members_of
from wirestate.injection.lifetimes import LifetimeProvider
from wirestate.injection.plans import Plan, Where, raise_faults
from wirestate.resources.base import BaseResourceProvider
from wirestate.resources.leaks import told_leaks
from wirestate.resources.llm.script import ScriptedLLM
from wirestate.resources.manager import ResourceManager
from wirestate.waiting import SUSPENDING

F = TypeVar("F", bound=Callable[..., Any])  # Any, here and below: functions, containers and fakes of any type

__all__ = ["Injected", "ScriptedLLM", "assert_no_leaks", "injected", "override"]


@contextmanager
def override(container: Any, **fakes: Any) -> Iterator[None]:
    """Put fakes behind names of a container for the length of a ``with`` block.

    Args:
        container: an instance; or a class, for all instances that are made meanwhile; or a machine, whose own
            resources come first.
        fakes: what functions get instead; a resource provider, a lifetime, or a generator or context manager
            function lends it as the real one would.
            Dotted names of sub-containers and of configuration go in as ``**{"storage.database": fake}``.

    Raises:
        UnknownResourceError: the container has no such name; nothing was overridden.

    Example:
        >>> from wirestate import ResourceContainer, lifetimes
        >>> class App(ResourceContainer):
        ...     rates = lifetimes.Singleton(dict)
        >>> app = App()
        >>> with override(app, rates={"EUR": 1.1}):
        ...     app.rates()
        {'EUR': 1.1}
    """
    replaced = [(_provider(container, name), fake) for name, fake in fakes.items()]
    with ExitStack() as stack:
        for provider, fake in replaced:
            stack.enter_context(provider.override(_lent_as(provider, fake)))
        yield


def _provider(container: Any, name: str) -> Any:
    places = container.containers if isinstance(container, SimpleFSM) else [container]
    first = name.partition(".")[0]
    found = next((place for place in places if first in place.providers), None)
    known = [one for place in places for one in place.providers] if found is None else []
    for part in name.split("."):
        member = None if found is None else member_of(found, part)
        if member is None:
            names = known or members_of(found)
            raise UnknownResourceError(name, [one for one in names if one != "__self__"], "override")
        found = member
    return found


def _lent_as(provider: Any, fake: Any) -> Any:
    # Not by its verbs: a Mock has all of them, and is meant to be the resource itself.
    if isinstance(provider, LifetimeProvider) and (isinstance(fake, BaseResourceProvider) or is_entered(fake)):
        fake = type(provider)(fake)
        fake.name = provider.name
    return fake


def injected(container: Any, function: F) -> Injected[F]:
    """Open what *function* injects and give the function with it, for ``with`` or ``async with``.

    All calls within the block belong to one visit to a state. Leaving it well commits, an exception rolls back.

    Raises:
        BuildError: an injection of *function* cannot be resolved.

    Example:
        >>> from dependency_injector.wiring import Provide, inject
        >>> from wirestate import ResourceContainer, lifetimes
        >>> class App(ResourceContainer):
        ...     basket = lifetimes.PerState(list)
        >>> @inject
        ... def add(record, basket=Provide[App.basket]):
        ...     basket.append(record["item"])
        ...     return {**record, "count": len(basket)}
        >>> with injected(App(), add) as add_item:
        ...     add_item({"item": "apple"})
        {'item': 'apple', 'count': 1}
    """
    return Injected(container, function)


class Injected(Generic[F]):
    """A function whose injections are open within the block; made by :func:`injected`."""

    def __init__(self, container: Any, function: F) -> None:
        self._function = function
        self._title = getattr(function, "__name__", type(function).__name__)
        self._manager = manager_of(container)
        self._planner = planner_of(container)
        raise_faults(self._planner.faults(function, Where(f"function {self._title}")), self._title)
        self._blocking: AbstractContextManager[F]
        self._suspending: AbstractAsyncContextManager[F]

    def __enter__(self) -> F:
        plan = self._planner.plan(self._function)  # now: overrides may have come since
        if plan.is_async:
            text = f"{self._title} injects what is asynchronous; write 'async with injected(…)'"
            raise AsyncResourceError(text, None, "open")
        self._blocking = self._open(plan)
        return self._blocking.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._blocking.__exit__(kind, error, tb)

    async def __aenter__(self) -> F:
        self._suspending = self._open_waiting(self._planner.plan(self._function))
        return await self._suspending.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._suspending.__aexit__(kind, error, tb)

    @contextmanager
    def _open(self, plan: Plan) -> Iterator[F]:
        with self._manager.scope() as owner, owner.state(self._title) as visit:
            visit.open_blocking(plan.steps)
            yield self._with(plan.injected(visit))

    @asynccontextmanager
    async def _open_waiting(self, plan: Plan) -> AsyncIterator[F]:
        async with self._manager.scope() as owner, owner.state(self._title) as visit:
            await visit.open_waiting(plan.steps, SUSPENDING)
            yield self._with(await plan.injected_waiting(visit))

    def _with(self, resources: dict[str, Any]) -> F:
        # A partial: what asks whether a function is a coroutine function looks through it.
        return cast(F, functools.partial(self._function, **resources))


def assert_no_leaks(container: Any) -> None:
    """Fail if a lease is still open that its owner should have given back; singletons may stay open.

    Args:
        container: any container, or a :class:`ResourceManager`.

    Raises:
        AssertionError: with each lease, who holds it, for how long, and where it was acquired if that is known
            (pytest's fixture ``no_leaks`` watches for it).
    """
    __tracebackhide__ = True  # pytest shows the line that asked
    if text := told_leaks({manager_behind(container): 0.0}):
        raise AssertionError(text)


def manager_behind(container: Any) -> ResourceManager:
    """Return the manager of *container*, or *container* if it is one."""
    return container if isinstance(container, ResourceManager) else manager_of(container)
