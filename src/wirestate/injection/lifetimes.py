"""Providers whose objects live as long as the container, an owner, or a visit to a state."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self, cast

from dependency_injector import providers
from pydantic import ValidationError

from wirestate.errors import (
    InvalidSettingError,
    LifetimeMismatchError,
    NoActiveScopeError,
    ResourceError,
    WirestateError,
)
from wirestate.injection.arguments import NO_SCOPE, Arguments, Ready, arguments_for, maker_for, resolved
from wirestate.injection.closures import Closure, closure_of, refuse_shorter
from wirestate.injection.declared import imported, is_resource_provider, misuse, recipe_kind, takes_name, title
from wirestate.injection.deferred import DeferredRecipe
from wirestate.injection.edges import AnyProvider, is_handed_out
from wirestate.injection.entries import LifetimeEntry
from wirestate.injection.home import Compiled, Home, Known, Lifetime, home_with, overridden_by
from wirestate.injection.making import may_make
from wirestate.injection.options import refuse_missing
from wirestate.injection.unmade import refuse_lost_paths, refuse_misfit, unmade
from wirestate.injection.wiring import is_walked_for_closing
from wirestate.resources.calls import is_async_callable
from wirestate.resources.managed import Creation, ManagedRecipe
from wirestate.resources.managed_pools import managed_recipe
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.recipes import LIFETIME_WORDS, CallRecipe, HoldingScope, Recipe
from wirestate.resources.scopes import MISSING, Scope, ScopeManager, current
from wirestate.resources.secrets import Hidden, Revealed
from wirestate.waiting import SUSPENDING, running_loop

HOME = "wirestate home"  # the memo key under which all lifetimes of one copied container find their home


class LifetimeProvider(Lifetime):
    """Base of the three lifetimes; takes ``(provides, *args, **kwargs)`` like ``providers.Factory``.

    Args:
        provides: a resource provider class or instance, a generator or async generator function, a class
            with ``__enter__``, a function decorated with ``@contextmanager``, a coroutine function, or any callable.
        args: for the call of *provides*; providers among them are resolved first.
        pool: a :class:`PoolConfig`, for resource providers.
        close: for a callable or coroutine function: called with what it returned.
        blocking: whether opening, using or ending the resource can wait in the thread, as for a lock or a socket.
            Asynchronous runs then do that in a thread; a resource provider says it itself by ``blocking = True``.
        kwargs: as *args*.
    """

    # These stand before the properties of the library's singletons, which know nothing of what is set here.
    provides: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = cast(dict[str, Any], MappingProxyType({}))
    attributes: Mapping[str, Any] = MappingProxyType({})
    _earlier: Sequence[Compiled] = ()

    def __init__(
        self,
        provides: Any = None,  # Any: what users declare
        *args: Any,
        pool: Any = None,
        close: Callable[..., Any] | None = None,
        blocking: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not isinstance(blocking, bool):
            raise InvalidSettingError(f"blocking= is True or False, not {type(blocking).__name__}")
        self.provides = provides
        self.args = args
        self.kwargs = kwargs
        self.pool = pool
        self.close = close
        self.blocking = blocking
        self.creation: Creation | None = None  # set where settings say how often a resource is asked for
        self.name = ""
        self.home = Home(lone=True)
        self.home.members[self] = None
        self._compiled: Compiled | None = None
        self._earlier = ()  # under overrides that lie below those of now: a reset brings one back
        self._compiling = threading.RLock()
        self._forked = False
        self.came_along = False  # it was copied with what it overrides

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:  # the first name wins
            self.name = name

    def __deepcopy__(self, memo: dict[Any, Any] | None) -> LifetimeProvider:
        memo = {} if memo is None else memo
        copied = memo.get(id(self))
        if copied is not None:
            return cast(LifetimeProvider, copied)
        made = type(self)()
        memo[id(self)] = made
        made.provides = _copied(self.provides, memo)
        made.args = tuple(_copied(value, memo) for value in self.args)
        made.kwargs = {name: _copied(value, memo) for name, value in self.kwargs.items()}
        made.pool = _copied(self.pool, memo)
        made.close = self.close
        made.blocking = self.blocking
        made.creation = self.creation
        made.health_interval = self.health_interval
        made.name = self.name
        # A copy shares the declaration and nothing that is open: its container gets a manager of its own.
        if HOME not in memo:
            memo[HOME] = Home(lone=False)
        made.home = memo[HOME]
        made.home.members[made] = None
        made.overrode = self.overrode
        made.came_along = any(id(overridden) in memo for overridden in self.overrides)
        self._copy_overridings(made, memo)
        return made

    # --- the declaration, as of the library's factories and singletons -----------------

    @property
    def cls(self) -> Any:  # Any: what users declare
        """What is provided, as the library's factories and singletons call it."""
        return self.provides

    def set_provides(self, provides: Any) -> Self:  # Any: see cls
        """Provide something else, before the first use."""
        return self._declared_as(provides, self.args, self.kwargs)

    def set_args(self, *args: Any) -> Self:
        """Take these arguments in place of others, before the first use."""
        return self._declared_as(self.provides, args, self.kwargs)

    def add_args(self, *args: Any) -> Self:
        """Take further arguments, before the first use."""
        return self.set_args(*self.args, *args)

    def clear_args(self) -> Self:
        """Take no arguments, before the first use."""
        return self.set_args()

    def set_kwargs(self, **kwargs: Any) -> Self:
        """Take these keyword arguments in place of others, before the first use."""
        return self._declared_as(self.provides, self.args, kwargs)

    def add_kwargs(self, **kwargs: Any) -> Self:
        """Take further keyword arguments, before the first use."""
        return self.set_kwargs(**{**self.kwargs, **kwargs})

    def clear_kwargs(self) -> Self:
        """Take no keyword arguments, before the first use."""
        return self.set_kwargs()

    def _declared_as(self, provides: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Self:
        if self._earlier:
            raise ResourceError(
                f"lifetime {self.label!r} is in use: it cannot be declared anew; override it instead",
                self.label,
                "build",
            )
        self.provides, self.args, self.kwargs = provides, args, dict(kwargs)
        return self

    def __str__(self) -> str:
        kind = type(self)
        return f"<{kind.__module__}.{kind.__qualname__}({title(self.provides)}) at {id(self):#x}>"

    # --- overrides ---------------------------------------------------------------------

    def register_overrides(self, provider: Any) -> None:  # Any: as the library's own, which calls this in override()
        """Belong to the container of what is overridden, and bear its name there.

        The library's lock is held: what another thread is at is left to the first use.
        """
        super().register_overrides(provider)
        self.overrode = True
        self._join(wait=False)

    def _join(self, *, wait: bool) -> None:
        """Belong to the container of what this overrides, if it belongs to none."""
        for overridden in overridden_by(self):
            home = home_with(overridden)
            if home is not None:
                home.adopt(self, wait=wait)
                home.list_stand_ins()
        self.take_name()

    def take_name(self) -> None:
        """Let what is open have the name that this lifetime has by now."""
        for compiled in list(self._earlier):
            compiled.recipe.name = self.label

    # --- resolving ---------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        overriding = self.last_overriding
        if overriding is not None:
            return overriding(*args, **kwargs)
        if args or kwargs:
            raise TypeError(f"lifetime {self.label!r} takes its arguments where it is declared, not where it is called")
        compiled = self.compiled()
        recipe = compiled.recipe
        scope = self._scope(compiled)
        place = scope.place_of(recipe)
        value = place.held.get(recipe, MISSING)
        is_open = value is not MISSING and not place.is_opening(recipe)
        if recipe.level == 0 and compiled.is_async and (loop := running_loop()) is not None:
            # What a Resource of the library with an asynchronous function gives there, before and after it is open.
            return _given(value, loop) if is_open else loop.create_task(_opened(scope, compiled))
        if not is_open:
            scope.open_blocking(compiled.steps)
            value = place.held[recipe]
        return value

    def _scope(self, compiled: Compiled) -> Scope:
        """Return the innermost scope of this lifetime's manager; without one, the innermost of all.

        The second case is an override by a lifetime of another container: it lives in the overridden one's scope.
        """
        innermost = scope = current.get()
        manager: ScopeManager = compiled.manager
        while scope is not None and scope.manager is not manager:
            scope = scope.before
        if scope is not None:
            return scope
        if self.level == 0:
            if innermost is not None and innermost.closed and self.home.had(innermost.manager):
                raise innermost.interruption()  # its run goes on after the close: nobody would end what it opens
            return compiled.manager.root
        if innermost is None:
            raise NoActiveScopeError(self.label, LIFETIME_WORDS[self.level])
        return innermost

    def entry(self, name: str, overridden: AnyProvider | None = None) -> LifetimeEntry:
        """Return what the manager knows under *name*: this lifetime, or a provider of the library that it overrides."""
        return LifetimeEntry(name, self, overridden)

    @property
    def label(self) -> str:
        """The name, or that of what it overrides, or what is provided."""
        if name := self.name or self._name_of_overridden():
            return name
        kind = type(self).__name__
        return kind if isinstance(self.provides, providers.Provider) else getattr(self.provides, "__name__", kind)

    def _name_of_overridden(self) -> str | None:
        for overridden in overridden_by(self):
            if isinstance(overridden, Lifetime) and overridden.name:
                return overridden.name
            home = home_with(overridden)
            if home is not None and overridden in home.labels:
                return home.labels[overridden]
        return None

    @property
    def related(self) -> Iterator[AnyProvider]:
        yield from self.overridden
        yield from self._providers()
        if not is_walked_for_closing():
            yield self.home.door

    def dependencies(self) -> Iterator[AnyProvider]:
        """Yield the providers among the arguments that are called."""
        return (value for value in self._providers() if value is self.provides or not is_handed_out(value))

    def _providers(self) -> Iterator[AnyProvider]:
        for value in (self.provides, self.pool, *self.args, *self.kwargs.values()):
            if isinstance(value, providers.Provider):
                yield value

    # --- compiling ---------------------------------------------------------------------

    @property
    def is_compiled(self) -> bool:
        compiled = self._compiled
        return compiled is not None and compiled.fresh

    def compiled(self, known: Known | None = None) -> Compiled:
        compiled = self._compiled
        if compiled is None or not compiled.fresh:
            if self.overrode and self.home.lone:
                self._join(wait=True)
            with self._compiling:  # two threads would make two providers, hence two singletons
                compiled = self._compiled
                if compiled is None or not compiled.fresh:
                    self._earlier = [one for one in self._earlier if one.may_return]
                    earlier = next((one for one in self._earlier if one.fresh), None)
                    compiled = self._compiled = earlier if earlier is not None else self._compile(known)
        return compiled

    def in_use(self) -> list[Compiled]:
        """Return each way in which this singleton is, or may be, open."""
        return list(self._earlier) if self.level == 0 else []

    def _compile(self, known: Known | None) -> Compiled:
        closure = closure_of(self.dependencies(), self.home, known)
        manager = self.home.manager
        refuse_shorter(closure, self)
        refuse_lost_paths(self.label, closure.direct)
        recipe = self._recipe(closure)
        recipe.manager = manager
        if isinstance(recipe, ManagedRecipe):
            manager.manage(recipe)
        elif isinstance(recipe, DeferredRecipe) and recipe.now:
            recipe.inner  # noqa: B018  # so that what it refuses is told where it is declared
        is_async = closure.is_async or recipe.is_async
        compiled = Compiled(recipe, (*closure.steps, recipe), closure.watch, is_async, manager)
        self._earlier = [*self._earlier, compiled]
        return compiled

    def forget(self) -> None:
        """Know nothing that the parent of a forked child has made."""
        self._compiled, self._earlier = None, ()
        self._compiling = threading.RLock()
        self._forked = True

    def move(self, home: Home, *, wait: bool = True) -> bool:
        """Belong to *home* from now on, with what is open; without *wait*, False if another thread compiles it."""
        if not self._compiling.acquire(blocking=wait):
            return False
        try:
            manager = self.home.open_manager
            self.home = home
            if manager is not None:
                home.manager.absorb(manager)
            # What is open is kept; anything else is compiled anew for its new manager.
            kept = self.home.open_manager
            self._compiled = None
            self._earlier = [
                compiled._replace(manager=kept)
                for compiled in self._earlier
                if kept is not None and compiled.recipe in kept.root.held
            ]
        finally:
            self._compiling.release()
        return True

    def _recipe(self, closure: Closure) -> Recipe:
        name = self.label
        if isinstance(self.provides, providers.Provider) and not may_make(None, closure.direct):
            return CallRecipe(name, self.level, lambda scope: resolved(self.provides))  # only its call would tell more
        provides = imported(resolved(self.provides), name)
        if is_resource_provider(provides):
            return self._provider_recipe(provides, closure)
        if not callable(provides):
            raise InvalidSettingError(f"lifetime {name!r} needs a callable or a resource provider", name, "build")
        if self.pool is not None:
            raise InvalidSettingError(
                f"resource {name!r}: pool= is for resource providers; make {title(provides)} one", name, "build"
            )
        if self.health_interval is not None:
            raise self._unprobed(provides)
        kind = recipe_kind(provides)
        if (text := misuse(provides, kind, closes=self.close is not None)) is not None:
            raise InvalidSettingError(f"resource {name!r} {text}", name, "build")
        make = maker_for(provides, self.args, self.kwargs, closure.recipes, awaits=closure.suspends)
        if self.close is not None:
            kind = CallRecipe
        call_is_async = is_async_callable(provides)
        if self.blocking and (kind.asynchronous or call_is_async):
            raise InvalidSettingError(
                f"resource {name!r}: blocking= is for what waits in its thread, and {title(provides)} is asynchronous; "
                "leave it out",
                name,
                "build",
            )
        # What works with a blocking resource while it begins and ends does so where that may wait.
        blocking = self.blocking or (not call_is_async and any(step.blocking for step in closure.steps))
        if kind is not CallRecipe:
            return kind(name, self.level, make, awaits=closure.suspends, blocking=blocking and not kind.asynchronous)
        return CallRecipe(
            name,
            self.level,
            make,
            close=self.close,
            awaits=closure.suspends,
            blocking=blocking,
            call_is_async=call_is_async,
        )

    def _provider_recipe(self, provides: Any, closure: Closure) -> Recipe:
        """Return how the resources of a resource provider are lent; it is made once per container."""
        name = self.label
        if self.close is not None:
            raise InvalidSettingError(f"resource {name!r}: close= is for functions; give the provider a close()", name)
        if closure.suspends and not closure.steps:
            raise InvalidSettingError(
                f"resource {name!r}: an argument of its provider is asynchronous; give it a plain value", name, "build"
            )
        met = closure.shortest()
        if met is not None and met.level > 0:
            raise LifetimeMismatchError(
                f"the provider of {name!r} is made once per container, and its argument {met.label!r} lives "
                f"{LIFETIME_WORDS[met.level]}; make {met.label!r} a singleton",
                met.label,
                "build",
            )
        refuse_missing(name, [self.provides, self.pool, *self.args, *self.kwargs.values()])
        arguments = arguments_for(self.args, self.kwargs, closure.recipes)
        now = not closure.steps and may_make(provides, closure.direct)
        if not now or (self.level == 0 and isinstance(provides, type)):
            if not now:
                refuse_misfit(name, provides, self.args, self.kwargs)

            def made(arguments: Arguments, scope: HoldingScope) -> ManagedRecipe:
                return self.lent(*self.made_provider(provides, arguments, scope))

            awaits, blocking = closure.suspends, self.blocking
            return DeferredRecipe(
                name, self.level, provides, made, arguments, now=now, awaits=awaits, blocking=blocking
            )
        recipe = self.lent(*self.made_provider(provides, arguments, NO_SCOPE))
        if self._forked and recipe.provider is provides:  # an instance, not made here
            recipe.inherit()
        return recipe

    def lent(self, provider: Any, pool: PoolConfig | None) -> ManagedRecipe:  # Any: as made_provider() gives it
        """Return how the resources of *provider* are lent, as this lifetime was declared."""
        recipe = managed_recipe(self.label, self.level, provider, pool, self.creation, blocking=self.blocking)
        if recipe.probe is not None:
            recipe.probe.interval = self.health_interval
        elif self.health_interval is not None:
            raise self._unprobed(provider)
        return recipe

    def _unprobed(self, provides: Any) -> InvalidSettingError:  # Any: what users declare
        return InvalidSettingError(
            f"resource {self.label!r}: health_check_interval is for resource providers; "
            f"give {title(provides)} a health_check(), or leave it out",
            self.label,
            "build",
        )

    def made_provider(self, provides: Any, arguments: Arguments, scope: HoldingScope) -> tuple[Any, Any]:
        """Make the resource provider, and resolve its pool configuration."""
        ready: Ready | None = None
        try:
            found = arguments(scope)
            ready = args, kwargs = Hidden(found[0]), Revealed(found[1])  # a traceback with locals shows them
            del found
            pool = self._pool_config()
            if not isinstance(provides, type):
                return provides, pool
            if "name" not in kwargs and takes_name(provides) and not args:
                kwargs = Revealed({"name": self.label, **kwargs})
            if pool is not None and getattr(provides, "native_pool", False):
                return provides(*args, pool=pool, **kwargs), None
            return provides(*args, **kwargs), pool
        except (WirestateError, ValidationError):  # they say by themselves what is wrong
            raise
        except Exception as error:  # constructors and settings of the user's: anything can happen
            used = closure_of(self.dependencies(), self.home).direct
            raise unmade(self.label, provides, error, arguments=ready, used=used) from error

    def _pool_config(self) -> PoolConfig | None:
        pool = resolved(self.pool)
        try:
            if pool is None or isinstance(pool, PoolConfig):
                return pool
            if isinstance(pool, Mapping):
                return PoolConfig.from_mapping(pool)
        except InvalidSettingError as error:
            raise InvalidSettingError(f"resource {self.label!r}: {error}", self.label, "build") from None
        text = f"pool= takes a PoolConfig, such as PoolConfig(max_size=10), not {type(pool).__name__}"
        raise InvalidSettingError(f"resource {self.label!r}: {text}", self.label, "build")


class ResetContext(providers.SingletonResetContext):
    """What ``reset()`` returns: to be awaited where something asynchronous ends, and a context that resets again."""

    def __init__(self, singleton: Singleton, ending: asyncio.Task[None] | None) -> None:
        super().__init__(singleton)
        self._ending = ending

    def __await__(self) -> Generator[Any, None, None]:  # Any: what its loop is sent
        if self._ending is not None:
            yield from self._ending.__await__()


class Singleton(LifetimeProvider, providers.BaseSingleton[Any]):  # type: ignore[misc]  # see LifetimeProvider.provides
    """Lives as long as its container, or until it is reset.

    Example:
        >>> from dependency_injector import containers
        >>> class App(containers.DeclarativeContainer):
        ...     numbers = Singleton(list)
        >>> app = App()
        >>> app.numbers() is app.numbers()
        True
    """

    level = 0

    def reset(self) -> ResetContext:
        """End what is open, after all singletons that were made from it; the next use makes it anew.

        What is asynchronous is ended by the running loop: await what this returns. Nothing is handed out from now
        on, and who asks meanwhile waits for the end; so does ``shutdown_resources()``.

        Raises:
            AsyncResourceError: it is open and asynchronous, and no event loop runs here.
        """
        mine = [compiled for compiled in list(self._earlier) if not compiled.manager.closed]
        if not mine:
            return ResetContext(self, None)
        recipes = {compiled.recipe for compiled in mine}
        for member in list(self.home.members):
            recipes |= {used.recipe for used in member.in_use() if not recipes.isdisjoint(used.steps)}
        return ResetContext(self, mine[0].manager.reset(recipes))

    def add_attributes(self, **kwargs: Any) -> Self:
        """Refuse attributes, which lifetimes do not set."""
        raise InvalidSettingError(f"lifetime {self.label!r} sets no attributes; give them as arguments", self.label)

    set_attributes = add_attributes


class PerOwner(LifetimeProvider):
    """Lives as long as one run, request or job: one object for each open owner scope."""

    level = 1


class PerState(LifetimeProvider):
    """Lives as long as one visit to a state: one object for each open state scope."""

    level = 2


def _given(value: Any, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:  # Any: the resource
    future = loop.create_future()
    future.set_result(value)
    return future


async def _opened(scope: Scope, compiled: Compiled) -> Any:  # Any: the resource
    await scope.open_waiting(compiled.steps, SUSPENDING)
    return scope.find(compiled.recipe)


def _copied(value: Any, memo: dict[Any, Any]) -> Any:
    return providers.deepcopy(value, memo) if isinstance(value, providers.Provider) else value
