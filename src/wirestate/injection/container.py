"""The containers of dependency-injector, seen as homes of resources."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, cast

from dependency_injector import containers, providers

from wirestate.errors import AsyncResourceError, SettingsError
from wirestate.injection import lifetimes
from wirestate.injection.declared import is_entered, is_resource_provider
from wirestate.injection.edges import AnyProvider, provides_of
from wirestate.injection.home import Home, ManagerResource
from wirestate.injection.plans import Planner
from wirestate.resources.failures import attaching
from wirestate.resources.lending import refuse_names
from wirestate.resources.managed import Creation
from wirestate.resources.manager import ResourceManager
from wirestate.settings import ResourceSettings, WirestateSettings

_HOME = "_wirestate_home"
_NAMED = "_wirestate_named"
_making = threading.RLock()
_PLANNER = "_wirestate_planner"
BY_LIFETIME = {
    "singleton": lifetimes.Singleton,
    "per_owner": lifetimes.PerOwner,
    "per_state": lifetimes.PerState,
}


def manager_of(container: Any) -> ResourceManager:
    """Return the manager of any container, declarative or dynamic; after a close, an open one again.

    ``container.init_resources()`` opens its singletons, ``container.shutdown_resources()`` closes it.
    """
    return home_of(container).manager


def planner_of(container: Any) -> Planner:
    """Return what knows which functions need what from *container*."""
    home = home_of(container)
    planner: Planner = vars(container)[_PLANNER]
    if planner.container is not container:  # copied with copy.copy(): its providers are those of the original
        planner = Planner(container, home)
        setattr(container, _PLANNER, planner)
    return planner


def planner_with(container: Any, local: Any) -> Planner:
    """Return a planner for *container* in which the string names of *local* come first."""
    return Planner(container, home_of(container), local=local)


def home_of(container: Any) -> Home:
    """Return the home of *container*, with every lifetime that it holds now."""
    known = vars(container)
    named = list(_named(container, ""))
    if known.get(_NAMED) == named:
        found: Home = known[_HOME]
        return found
    with _making:
        found = _settled(container, named)
        setattr(container, _NAMED, named)
    return found


def _settled(container: Any, named: list[tuple[str, AnyProvider]]) -> Home:
    """Find or make the home of *container*, and let everything in that it holds."""
    found: Home | None = vars(container).get(_HOME)
    members = [(path, provider) for path, provider in named if isinstance(provider, lifetimes.LifetimeProvider)]
    everything = list(container.traverse())
    inside = [provider for provider in everything if isinstance(provider, lifetimes.LifetimeProvider)]
    if found is None:
        own = [member for _, member in members] + [member for member in inside if member.came_along]
        shared = [member.home for member in own if not member.home.lone]
        found = shared[0] if shared else Home(lone=False)
        setattr(container, _HOME, found)
        planner = Planner(container, found)
        setattr(container, _PLANNER, planner)
        if found.planner is None or len(members) >= len(found.paths):  # a parent knows more than its sub-container
            found.planner = planner
    for path, member in members:
        found.adopt(member, path)
    for member in inside:
        found.adopt(member)
    found.know(everything, {provider: path for path, provider in named})
    for member in inside:
        member.take_name()
    return found


def may_open(container: Any) -> bool:
    """Tell whether calls of *container* may open something that needs a scope: now, or after an override."""
    return any(type(provider) not in (providers.Object, providers.Self) for provider in container.providers.values())


def _named(container: Any, prefix: str) -> Iterator[tuple[str, AnyProvider]]:
    """Yield every provider of *container* and its sub-containers with its dotted name."""
    for name, provider in list(container.providers.items()):
        if name == "__self__":
            continue
        yield prefix + name, provider
        if isinstance(provider, providers.Container):
            yield from _named(provider.container, f"{prefix}{name}.")


class OpenContainer(containers.DynamicContainer):
    """What making a :class:`ResourceContainer` gives: a container that can be used with ``with``."""

    @property
    def manager(self) -> ResourceManager:
        """The manager behind this container's resources."""
        return manager_of(self)

    def shutdown_resources(
        self, resource_type: type[providers.BaseResource[Any]] = providers.BaseResource
    ) -> Awaitable[None] | None:
        """Close everything; what this returns, if anything, must be awaited."""
        pending = super().shutdown_resources(resource_type)
        home: Home | None = vars(self).get(_HOME)
        if home is None or not issubclass(ManagerResource, resource_type):
            return pending
        # The library does not find the manager where no lifetime is left: each was an override.
        return home.door.shutdown() if pending is None else _then(pending, home)

    def __enter__(self) -> Self:
        manager_of(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        home = home_of(self)
        with attaching(error), home.ending(error):
            if home.open_manager is not None:
                refuse_names(home.open_manager.async_names(), "with container", "'async with container'")
            pending = self.shutdown_resources()
            if asyncio.iscoroutine(pending):  # a resource of the library's own
                pending.close()
                raise AsyncResourceError(
                    "with container: it holds asynchronous resources; use 'async with container'", None, "close"
                )

    async def __aenter__(self) -> Self:
        manager_of(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with attaching(error), home_of(self).ending(error, in_task=True):
            pending = self.shutdown_resources()
            if pending is not None:
                await pending


async def _then(pending: Awaitable[Any], home: Home) -> None:  # Any: nothing that anybody wants
    await pending
    ending = home.door.shutdown()
    if ending is not None:
        await ending


class ResourceContainer(containers.DeclarativeContainer):
    """A declarative container whose instances know their manager and can be used with ``with``.

    Example:
        >>> from wirestate import ResourceContainer, lifetimes
        >>> class App(ResourceContainer):
        ...     numbers = lifetimes.PerState(list)
        >>> with App() as app, app.manager.scope() as scope, scope.state("count"):
        ...     app.numbers().append(1)
        ...     app.numbers()
        [1]
    """

    instance_type = OpenContainer


def container_from_settings(settings: WirestateSettings | None = None) -> OpenContainer:
    """Make a container with one provider for each resource that the settings declare.

    Each is injectable by its name: ``Provide["database"]``.

    Args:
        settings: None reads the environment, ``.env``, the secrets folder and the profile.

    Raises:
        SettingsError: something is missing or wrong, or an adapter refuses it; all faults are in the report.
    """
    if settings is None:
        settings = WirestateSettings()
    if faults := settings.refusals():
        raise SettingsError(faults, "settings")
    declared = {name: lifetime_from(resource) for name, resource in settings.resources.items()}
    members = {"settings": providers.Object(settings), **declared}
    kind = type("SettingsContainer", (ResourceContainer,), members)
    return cast(OpenContainer, kind())


def settings_of(container: Any) -> WirestateSettings | None:
    """Return the settings that made *container*, if some did."""
    held = provides_of(container.providers.get("settings"))
    return held if isinstance(held, WirestateSettings) else None


def lifetime_from(resource: ResourceSettings) -> lifetimes.LifetimeProvider:
    """Make the lifetime provider that one resource's settings describe."""
    made = BY_LIFETIME[resource.effective_lifetime](resource.provider_class(), **resource.arguments())
    if resource.creation_attempts is not None:
        made.creation = Creation(resource.creation_attempts, resource.creation_delay)
    made.health_interval = resource.health_check_interval
    return made


class MachineContainer(OpenContainer):
    """Holds the resources that a machine brings along."""


def container_of(declared: Mapping[str, Any], beside: Any = None) -> MachineContainer:
    """Make a container from resource providers, settings of resources, lifetimes and plain objects.

    Args:
        declared: by name; a resource provider gets the lifetime that it says itself, else per state;
            a generator or context manager function lives per state.
        beside: the container of the machine; what is declared is copied, but what it needs from there is not.
    """
    members = {name: _as_provider(value) for name, value in declared.items()}
    shared = {} if beside is None else {id(provider): provider for provider in beside.traverse()}
    for own in members.values():
        shared.pop(id(own), None)
    made = MachineContainer()
    made.set_providers(**providers.deepcopy(members, shared))
    return made


def _as_provider(value: Any) -> Any:
    if isinstance(value, providers.Provider):
        return value
    if isinstance(value, ResourceSettings):
        return lifetime_from(value)
    if is_entered(value):
        return lifetimes.PerState(value)
    lifetime = getattr(value, "default_lifetime", "per_state")
    if is_resource_provider(value) and lifetime in BY_LIFETIME:  # else it is a mock, which has all that it is asked for
        return BY_LIFETIME[lifetime](value)
    return providers.Object(value)
