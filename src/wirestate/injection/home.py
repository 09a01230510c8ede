"""What the lifetimes of one container share: the manager behind them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, cast

from dependency_injector import providers

from wirestate.errors import ResourceError
from wirestate.injection.edges import AnyProvider
from wirestate.resources.manager import ResourceManager
from wirestate.resources.recipes import Recipe
from wirestate.resources.scopes import Entry, current
from wirestate.waiting import SUSPENDING


class Member(Protocol):
    """A lifetime provider, as its home knows it."""

    level: int
    home: Home
    name: str

    def entry(self, name: str) -> Entry: ...

    def steps(self) -> tuple[Recipe, ...]: ...

    def dependencies(self) -> Iterator[AnyProvider]: ...


class FunctionPlanner(Protocol):
    """What knows the injections of functions."""

    def entries(self, function: Callable[..., Any]) -> Sequence[Entry]: ...


class Home:
    """Holds the manager of one container, or of one lifetime that no container has adopted yet."""

    def __init__(self, *, lone: bool) -> None:
        self.lone = lone
        self.members: list[Member] = []
        self.paths: dict[str, Member] = {}
        self.planner: FunctionPlanner | None = None  # set when the container behind this home is known
        self.door = ManagerResource(self)
        self._manager: ResourceManager | None = None
        self._lock = threading.RLock()

    @property
    def manager(self) -> ResourceManager:
        """The open manager; after a close, a new one."""
        manager = self._manager
        if manager is None or manager.closed:
            with self._lock:
                manager = self._manager
                if manager is None or manager.closed:
                    manager = self._manager = self._new_manager()
        return manager

    @property
    def open_manager(self) -> ResourceManager | None:
        """The manager if there is one that is open."""
        return self._manager if self._manager is not None and not self._manager.closed else None

    def _new_manager(self) -> ResourceManager:
        manager = ResourceManager(name="the container's manager", entries_of=self.entries_of)
        for path, member in self.named():
            manager.register_entry(member.entry(path))
        return manager

    def named(self) -> Iterator[tuple[str, Member]]:
        """Yield each member with the name that the manager knows it by; a path wins over a bare name."""
        taken = dict(self.paths)
        for member in self.members:
            if member not in taken.values() and member.name:
                taken.setdefault(member.name, member)
        yield from taken.items()

    def adopt(self, member: Member, path: str | None = None) -> None:
        """Take in a lifetime that was made outside, and name it."""
        with self._lock:
            if member.home is not self and member.home.lone:
                member.home = self
                self.members.append(member)
            if path is not None and member.home is self and path not in self.paths:
                self.paths[path] = member
                if "." in path or not member.name:
                    member.name = path
                if self._manager is not None and path not in self._manager.names:
                    self._manager.register_entry(member.entry(path))

    def entries_of(self, target: object) -> Sequence[Entry]:
        """Return what ``scope.open(function)`` opens."""
        if self.planner is None or not callable(target):
            raise ResourceError(
                f"scope.open() takes names, or functions once manager_of(container) was called, "
                f"not {type(target).__name__}",
                None,
                "open",
            )
        return self.planner.entries(target)

    def open_singletons(self) -> Coroutine[Any, Any, None] | None:
        """Open what lives as long as the container; a coroutine if some of it must be awaited."""
        root = self.manager.root
        steps = [step for member in self.members if member.level == 0 for step in member.steps()]
        if any(step.is_async for step in steps):
            return root.open_waiting(steps, SUSPENDING)
        root.open_blocking(steps)
        return None


class ManagerResource(providers.Resource):  # type: ignore[type-arg]  # it provides nothing to anybody
    """The way by which ``init_resources()`` and ``shutdown_resources()`` of any container reach its manager.

    Every lifetime names it among its related providers, and containers find resources by walking those.
    """

    def __init__(self, home: Home | None = None) -> None:
        super().__init__()
        self.home = home

    @property
    def initialized(self) -> bool:
        return self.home is not None and self.home.open_manager is not None

    @property
    def related(self) -> Iterator[AnyProvider]:
        """The library's own resources that lifetimes use: they are shut down after the manager."""
        seen: set[AnyProvider] = {self}  # its own lifetimes lead back to it
        ahead = [part for member in (self.home.members if self.home else ()) for part in member.dependencies()]
        while ahead:
            provider = ahead.pop()
            if provider not in seen:
                seen.add(provider)
                if isinstance(provider, ManagerResource):
                    continue
                if isinstance(provider, providers.BaseResource):
                    yield provider
                ahead += provider.related

    def is_async_mode_enabled(self) -> bool:
        manager = self.home.open_manager if self.home is not None else None
        return manager is not None and bool(manager.async_names())

    def init(self) -> Any:
        return None if self.home is None else self.home.open_singletons()

    def shutdown(self) -> Any:
        manager = self.home.open_manager if self.home is not None else None
        if manager is None:
            return None
        scope = current.get()
        if scope is not None and scope.manager is manager:
            # Closing[...] would come here after every call of a function that uses a scoped provider.
            raise ResourceError(
                f"the container was shut down inside its own scope {scope.owner_id!r}; "
                "leave the scope first, and take Closing[...] off scoped providers",
                None,
                "close",
            )
        return manager.aclose() if manager.async_names() else cast("None", manager.close())
