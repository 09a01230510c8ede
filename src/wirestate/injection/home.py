"""What the lifetimes of one container share: the manager behind them, and the names they have there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from dependency_injector import providers

from wirestate.errors import ResourceError
from wirestate.injection.edges import AnyProvider, Watch, effective, unchanged
from wirestate.resources import inherited
from wirestate.resources.manager import ResourceManager
from wirestate.resources.recipes import Recipe
from wirestate.resources.scopes import Entry, current
from wirestate.waiting import SUSPENDING


class Compiled(NamedTuple):
    """One lifetime as it must be opened while its dependencies are overridden the way they are now."""

    recipe: Recipe
    steps: tuple[Recipe, ...]  # dependencies first, itself last
    watch: Watch
    is_async: bool  # one of the steps is
    manager: ResourceManager

    @property
    def fresh(self) -> bool:
        return not self.manager.closed and unchanged(self.watch)

    @property
    def may_return(self) -> bool:
        """True if resets of overrides can make it fresh again."""
        return not self.manager.closed and all(
            overriding is None or overriding in provider.overridden for provider, overriding in self.watch
        )


class Lifetime(providers.Provider[Any]):  # Any: what it provides is the user's type
    """A lifetime provider, as its home and the walk over dependencies know it."""

    level: ClassVar[int]
    home: Home
    name: str
    health_interval: float | None = None  # seconds between probes in the background
    overrode = False  # it was, or is, an override

    @property
    def label(self) -> str:
        """The name, or what is provided."""
        raise NotImplementedError

    def entry(self, name: str, overridden: AnyProvider | None = None) -> Entry:
        """Return what the manager knows under *name*: this lifetime, or a provider of the library that it overrides."""
        raise NotImplementedError

    def dependencies(self) -> Iterator[AnyProvider]:
        """Yield the providers among the arguments."""
        raise NotImplementedError

    @property
    def is_compiled(self) -> bool:
        """True if :meth:`compiled` has nothing to do."""
        raise NotImplementedError

    def compiled(self, known: Known | None = None) -> Compiled:
        """Return how to open this lifetime under the overrides of now.

        Args:
            known: what was found a moment ago; more is added.
        """
        raise NotImplementedError

    def in_use(self) -> Sequence[Compiled]:
        """Return each way in which this is, or may be, open as long as its container."""
        raise NotImplementedError

    def forget(self) -> None:
        """Know nothing that the parent of a forked child has made."""
        raise NotImplementedError

    def move(self, home: Home, *, wait: bool = True) -> bool:
        """Belong to *home* from now on; without *wait*, False if another thread is at it."""
        raise NotImplementedError


class Known:
    """What one thread found a moment ago, so that it looks at nothing twice; overrides are compared again later."""

    def __init__(self) -> None:
        self.compiled: dict[Lifetime, Compiled] = {}
        self.below: dict[AnyProvider, AnyProvider | None] = {}  # all below is compiled while overridden by this
        self.calls: dict[AnyProvider, tuple[tuple[AnyProvider, ...], bool]] = {}  # edges; whether one suspends

    def clear(self) -> None:
        """Know nothing."""
        self.compiled.clear()
        self.below.clear()
        self.calls.clear()


class FunctionPlan(Protocol):
    """How one function is called."""

    @property
    def steps(self) -> Sequence[Recipe]: ...


class FunctionPlanner(Protocol):
    """What knows the injections of functions."""

    def plan(self, function: Callable[..., Any]) -> FunctionPlan: ...


# By the id of a provider of the library, none of which can be referred to weakly: its home keeps it alive.
_homes: WeakValueDictionary[int, Home] = WeakValueDictionary()


def home_with(provider: AnyProvider) -> Home | None:
    """Return the home of the container in which *provider* is, as far as one is known."""
    if isinstance(provider, Lifetime):
        return provider.home
    home = _homes.get(id(provider))
    return home if home is not None and provider in home.library else None


def overridden_by(provider: AnyProvider) -> list[AnyProvider]:
    """Return what *provider* overrides, and what that overrides in turn."""
    found: list[AnyProvider] = []
    ahead = list(provider.overrides)
    while ahead:
        overridden = ahead.pop(0)
        if overridden not in found:
            found.append(overridden)
            ahead += overridden.overrides
    return found


class Home:
    """Holds the manager of one container, or of one lifetime that no container has adopted yet."""

    def __init__(self, *, lone: bool) -> None:
        self.lone = lone
        self.members: WeakKeyDictionary[Lifetime, None] = WeakKeyDictionary()  # in their order; a set has none
        self.paths: dict[str, Lifetime] = {}
        self.labels: dict[AnyProvider, str] = {}  # names of all providers of the container
        self.library: set[AnyProvider] = set()  # the library's own providers in it, also those without a name
        self.planner: FunctionPlanner | None = None  # set when the container behind this home is known
        self.door = ManagerResource(self)
        self._manager: ResourceManager | None = None
        self._outcome: tuple[BaseException | None] | None = None  # of the block whose end closes this home
        self._in_task = False  # that block can await
        self._managers: WeakSet[ResourceManager] = WeakSet()  # closed ones too, as long as somebody knows them
        self._lock = threading.RLock()
        inherited.forget_at_fork(self)

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
        # Who listened to the one before it was closed listens to the container.
        listener = self._manager.listener if self._manager is not None else None
        manager = ResourceManager(name="the container's manager", steps_of=self.steps_of, listener=listener)
        for entry in (self._entries() | self._stand_ins()).values():
            manager.register_entry(entry)
        self._managers.add(manager)
        return manager

    @contextmanager
    def ending(self, error: BaseException | None, *, in_task: bool = False) -> Iterator[None]:
        """Let *error* be the outcome for what is closed inside, by a task that awaits it or not."""
        self._outcome, self._in_task = (error,), in_task
        try:
            yield
        finally:
            self._outcome, self._in_task = None, False

    @property
    def must_be_awaited(self) -> bool:
        """Whether the manager is closed by what must be awaited."""
        manager = self.open_manager
        return manager is not None and (self._in_task or bool(manager.async_names()))

    @property
    def outcome(self) -> BaseException | None:
        """The outcome for what is closed now: of the block that ends, else the exception being handled."""
        return sys.exception() if self._outcome is None else self._outcome[0]

    def had(self, manager: object) -> bool:
        """Tell whether *manager* is, or was before it was closed, the one behind this container."""
        return manager in self._managers

    def forget_parent(self) -> None:
        """Let every lifetime make what it needs anew, in a forked child."""
        self._lock = threading.RLock()
        for member in list(self.members):
            member.forget()

    def named(self) -> Iterator[tuple[str, Lifetime]]:
        """Yield each member with the name that the manager knows it by; a path wins over a bare name."""
        taken = dict(self.paths)
        for member in list(self.members):
            if member.name and member not in taken.values():
                taken.setdefault(member.name, member)
        yield from taken.items()

    def _entries(self) -> dict[str, Entry]:
        return {path: member.entry(path) for path, member in self.named()}

    def _stand_ins(self) -> dict[str, Entry]:
        """Return an entry for each provider of the library that a lifetime overrides now."""
        found = ((provider, path, effective(provider)) for provider, path in list(self.labels.items()))
        return {
            path: over.entry(path, provider)
            for provider, path, over in found
            if isinstance(over, Lifetime) and not isinstance(provider, Lifetime)
        }

    def know(self, container: Iterable[AnyProvider], labels: Mapping[AnyProvider, str]) -> None:
        """Know the providers of a container, and the names that some of them have."""
        for provider in container:
            if not isinstance(provider, Lifetime) and provider not in self.library:
                self.library.add(provider)
                _homes.setdefault(id(provider), self)
        self.labels.update(labels)
        self.list_stand_ins()

    def list_stand_ins(self) -> None:
        """Let the manager know what is overridden by a lifetime since it was made."""
        if (manager := self.open_manager) is not None:
            for path, entry in self._stand_ins().items():
                if path not in manager.names:
                    manager.register_entry(entry, replace=True)

    def adopt(self, member: Lifetime, path: str | None = None, *, wait: bool = True) -> None:
        """Take in a lifetime that was made outside, and name it.

        Without *wait* it is left where it is if another thread is at it.
        """
        if member.home is not self and not member.home.lone:
            return
        if path is None and member in self.members:
            return
        if not self._lock.acquire(blocking=wait):
            return
        try:
            if member.home is not self and member.home.lone and not member.move(self, wait=wait):
                return
            if member.home is not self:
                return
            self.members[member] = None
            if path is not None and self.paths.get(path) is not member:  # new, or assigned anew
                self.paths[path] = member
                if "." in path or not member.name:
                    member.name = path
                if self.open_manager is not None:
                    self.open_manager.register_entry(member.entry(path), replace=True)
        finally:
            self._lock.release()

    def steps_of(self, target: object) -> Sequence[Recipe]:
        """Return what ``scope.open(function)`` opens."""
        if self.planner is None or not callable(target):
            raise ResourceError(
                f"scope.open() takes names, or functions once manager_of(container) was called, "
                f"not {type(target).__name__}",
                None,
                "open",
            )
        return self.planner.plan(target).steps

    def open_singletons(self) -> Coroutine[Any, Any, None] | None:
        """Open what lives as long as the container; a coroutine if some of it must be awaited."""
        root = self.manager.root
        standing = [member for member in list(self.members) if _stands(member)]
        for member in standing:
            if member.health_interval is not None:
                member.compiled()  # its probes begin with the container, whether it is used or not
        steps = [step for member in standing if member.level == 0 for step in member.compiled().steps]
        if any(step.is_async for step in steps):
            return root.open_waiting(steps, SUSPENDING)
        root.open_blocking(steps)
        return None


def _stands(member: Lifetime) -> bool:
    """Tell whether *member* is what its container provides now, neither overridden nor an override of the past."""
    if member.last_overriding is not None:
        return False
    if member.overrides:
        return any(effective(overridden) is member for overridden in member.overrides)
    return not member.overrode or bool(member.name)


class ManagerResource(providers.Resource[None]):
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
        return _UsedResources(self)

    def is_async_mode_enabled(self) -> bool:
        return self.home is not None and self.home.must_be_awaited

    def init(self) -> Any:  # Any: None, or what the library awaits
        return None if self.home is None else self.home.open_singletons()

    def shutdown(self) -> Any:  # Any: None, or what the library awaits
        manager = self.home.open_manager if self.home is not None else None
        if self.home is None or manager is None:
            return None
        scope = current.get()
        if scope is not None and not scope.closed and scope.manager.root is manager.root:
            raise ResourceError(
                f"the container was shut down inside its own scope {scope.owner_id!r}; leave the scope first",
                None,
                "close",
            )
        if self.home.must_be_awaited:
            return manager.aclose_with(self.home.outcome)
        manager.close_with(self.home.outcome)
        return None


class _UsedResources(Iterator[AnyProvider]):
    """Answer ``resource in door.related``, by which containers order what they shut down, and lead on to nothing.

    A walk over providers that passed from one lifetime by its manager to all others would reset, or shut down,
    what the provider where it began has nothing to do with.
    """

    def __init__(self, door: ManagerResource) -> None:
        self._door = door

    def __next__(self) -> AnyProvider:
        raise StopIteration

    def __contains__(self, resource: object) -> bool:
        home = self._door.home
        seen: set[AnyProvider] = {self._door}  # its own lifetimes lead back to it
        ahead: list[AnyProvider] = []
        for member in list(home.members) if home is not None else ():
            ahead += (*member.overridden, *member.dependencies())
        while ahead:
            provider = ahead.pop()
            if provider is resource and not isinstance(provider, ManagerResource):
                return True
            if provider not in seen:
                seen.add(provider)
                ahead += provider.related
        return False
