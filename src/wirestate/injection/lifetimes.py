"""Providers whose objects live as long as the container, an owner, or a visit to a state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import import_module
from typing import Any, ClassVar, NamedTuple, cast

from dependency_injector import providers

from wirestate.errors import InvalidSettingError, LifetimeMismatchError, NoActiveScopeError, ResourceError
from wirestate.injection.edges import AnyProvider, Watch, direct_edges, effective, is_lazy, suspends, unchanged
from wirestate.injection.home import Home
from wirestate.resources.calls import is_async_callable
from wirestate.resources.managed import ManagedRecipe, managed_recipe
from wirestate.resources.manager import ResourceManager
from wirestate.resources.pool import PoolConfig
from wirestate.resources.recipes import (
    LIFETIME_WORDS,
    AsyncContextRecipe,
    AsyncGeneratorRecipe,
    CallRecipe,
    ContextRecipe,
    FunctionRecipe,
    GeneratorRecipe,
    HoldingScope,
    Make,
    Opened,
    Recipe,
    settled,
)
from wirestate.resources.scopes import MISSING, Scope, current
from wirestate.waiting import World

HOME = "wirestate home"  # the memo key under which all lifetimes of one copied container find their home


class Compiled(NamedTuple):
    """One lifetime as it must be opened while its dependencies are overridden the way they are now."""

    recipe: Recipe
    steps: tuple[Recipe, ...]  # dependencies first, itself last
    watch: Watch
    manager: ResourceManager

    @property
    def fresh(self) -> bool:
        return not self.manager.closed and unchanged(self.watch)


class LifetimeProvider(providers.Provider[Any]):  # Any: it provides whatever the user's function makes
    """Base of the three lifetimes; takes ``(provides, *args, **kwargs)`` like ``providers.Factory``.

    Args:
        provides: a resource provider class or instance, a generator or async generator function, a class
            or function that gives a context manager, a coroutine function, or any callable.
        args: for the call of *provides*; providers among them are resolved first.
        pool: a :class:`PoolConfig`, for resource providers.
        close: for a callable or coroutine function: called with what it returned.
        kwargs: as *args*.
    """

    level: ClassVar[int]

    def __init__(
        self,
        provides: Any = None,  # Any: see above
        *args: Any,
        pool: Any = None,
        close: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.provides = provides
        self.args = args
        self.kwargs = kwargs
        self.pool = pool
        self.close = close
        self.name = ""
        self.home = Home(lone=True)
        self.home.members.append(self)
        self._compiled: Compiled | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:  # the first name wins
            self.name = name

    def __deepcopy__(self, memo: dict[Any, Any]) -> LifetimeProvider:
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
        made.name = self.name
        # A copy shares the declaration and nothing that is open: its container gets a manager of its own.
        made.home = memo.setdefault(HOME, Home(lone=False))
        made.home.members.append(made)
        self._copy_overridings(made, memo)  # type: ignore[attr-defined]  # exists; the stubs leave it out
        return made

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
        if value is MISSING or place.is_opening(recipe):
            scope.open_blocking(compiled.steps)
            value = place.held[recipe]
        return value

    def _scope(self, compiled: Compiled) -> Scope:
        """Return the innermost scope of this lifetime's manager; without one, the innermost of all.

        The second case is an override by a lifetime of another container: it lives in the overridden one's scope.
        """
        innermost = scope = current.get()
        while scope is not None and scope.manager is not compiled.manager:
            scope = scope.before
        if scope is not None:
            return scope
        if self.level == 0:
            return compiled.manager.root
        if innermost is None:
            raise NoActiveScopeError(self.label, LIFETIME_WORDS[self.level])
        return innermost

    def steps(self) -> tuple[Recipe, ...]:
        """What must be open so that a call finds its object; follows overrides."""
        return closure_of([self]).steps

    def entry(self, name: str) -> LifetimeEntry:
        """Return what the manager knows under *name*."""
        return LifetimeEntry(name, self)

    @property
    def label(self) -> str:
        """The name, or what is provided."""
        return self.name or getattr(self.provides, "__name__", type(self).__name__)

    @property
    def related(self) -> Iterator[AnyProvider]:
        yield from self.overridden
        yield from self.dependencies()
        yield self.home.door

    def dependencies(self) -> Iterator[AnyProvider]:
        """Yield the providers among the arguments."""
        for value in (self.provides, self.pool, *self.args, *self.kwargs.values()):
            if isinstance(value, providers.Provider):
                yield value

    # --- compiling ---------------------------------------------------------------------

    def compiled(self) -> Compiled:
        """Return how to open this lifetime under the overrides of now."""
        compiled = self._compiled
        if compiled is None or not compiled.fresh:
            compiled = self._compiled = self._compile()
        return compiled

    def _compile(self) -> Compiled:
        closure = closure_of(self.dependencies())
        manager = self.home.manager
        refuse_shorter(self, closure)
        recipe = self._recipe(closure)
        recipe.manager = manager
        if isinstance(recipe, ManagedRecipe):
            manager.manage(recipe)
        return Compiled(recipe, (*closure.steps, recipe), closure.watch, manager)

    def _recipe(self, closure: Closure) -> Recipe:
        provides = _imported(resolved(self.provides))
        name, level = self.label, self.level
        if is_resource_provider(provides):
            if self.close is not None:
                raise InvalidSettingError(f"resource {name!r}: close= is for functions; give the provider a close()", name)
            arguments = arguments_for(self.args, self.kwargs)
            if closure.steps:
                return DeferredRecipe(name, level, provides, arguments, self)
            return managed_recipe(name, level, *self.made_provider(provides, arguments(_NO_SCOPE)))
        if not callable(provides):
            raise InvalidSettingError(f"lifetime {name!r} needs a callable or a resource provider", name, "build")
        if self.pool is not None:
            raise InvalidSettingError(
                f"resource {name!r}: pool= is for resource providers; make {_title(provides)} one", name, "build"
            )
        kind = CallRecipe if self.close is not None else recipe_kind(provides)
        make = maker_for(provides, self.args, self.kwargs, awaits=closure.suspends)
        if kind is CallRecipe:
            asynchronous = is_async_callable(provides)
            return CallRecipe(
                name, level, make, close=self.close, awaits=closure.suspends, call_is_async=asynchronous
            )
        return kind(name, level, make, awaits=closure.suspends)

    def made_provider(self, provides: Any, ready: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Any, Any]:
        """Make the resource provider, once per container, and resolve its pool configuration."""
        args, kwargs = ready
        pool = resolved(self.pool)
        if isinstance(provides, type):
            if "name" not in kwargs and _takes_name(provides) and not args:
                kwargs = {"name": self.label, **kwargs}
            if pool is not None and getattr(provides, "native_pool", False):
                return provides(*args, pool=pool, **kwargs), None
            provides = provides(*args, **kwargs)
        if pool is not None and not isinstance(pool, PoolConfig):
            raise InvalidSettingError(f"resource {self.label!r}: pool= takes a PoolConfig", self.label, "build")
        return provides, pool


class Singleton(LifetimeProvider):
    """Lives as long as its container.

    Example:
        >>> from dependency_injector import containers
        >>> class App(containers.DeclarativeContainer):
        ...     numbers = Singleton(list)
        >>> app = App()
        >>> app.numbers() is app.numbers()
        True
    """

    level = 0


class PerOwner(LifetimeProvider):
    """Lives as long as one run, request or job: one object for each open owner scope."""

    level = 1


class PerState(LifetimeProvider):
    """Lives as long as one visit to a state: one object for each open state scope."""

    level = 2


class LifetimeEntry:
    """A name of the manager behind which a lifetime of the container stands."""

    def __init__(self, name: str, provider: LifetimeProvider) -> None:
        self.name = name
        self.level = provider.level
        self.provider = provider

    def steps(self) -> tuple[Recipe, ...]:
        return self.provider.steps()

    def value(self, scope: Scope) -> Any:
        found = effective(self.provider)
        if isinstance(found, LifetimeProvider):
            return scope.find(found.compiled().recipe)
        return found()


class DeferredRecipe(Recipe):
    """A resource provider whose own arguments are resources: made when they are open."""

    __slots__ = ("_arguments", "_inner", "_lifetime", "_provides")

    def __init__(
        self, name: str, level: int, provides: Any, arguments: Arguments, lifetime: LifetimeProvider
    ) -> None:
        acquire, release = getattr(provides, "acquire", None), getattr(provides, "release", None)
        super().__init__(name, level, is_async=any(map(inspect.iscoroutinefunction, (acquire, release))))
        self._provides = provides
        self._arguments = arguments
        self._lifetime = lifetime
        self._inner: ManagedRecipe | None = None

    @property
    def inner(self) -> ManagedRecipe:
        """The provider, made now if it is not there yet."""
        if self._inner is None:
            made = self._lifetime.made_provider(self._provides, self._arguments(self.manager.root))
            self._inner = managed_recipe(self.name, self.level, *made)
            self._inner.meter = self.meter
            self.manager.manage(self._inner)
        return self._inner

    def start(self, scope: HoldingScope) -> Opened | None:
        return self.inner.start(scope)

    async def astart(self, scope: HoldingScope, world: World, timeout: float | None, options: dict[str, Any]) -> Opened:
        return await self.inner.astart(scope, world, timeout, options)

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        return self.inner.finish(handle, error)

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        await self.inner.afinish(handle, error, world)


# --- the closure of a provider -----------------------------------------------------------


class Closure(NamedTuple):
    """All that calling some providers needs."""

    steps: tuple[Recipe, ...]
    watch: Watch
    is_async: bool
    suspends: bool  # a provider of the library itself gives awaitables
    paths: tuple[tuple[tuple[AnyProvider, ...], LifetimeProvider], ...]  # way from a root to each lifetime met


def closure_of(roots: Any) -> Closure:
    """Walk what calls of *roots* would call, following overrides; stop at what resolves lazily."""
    steps: dict[Recipe, None] = {}
    watch: dict[AnyProvider, AnyProvider | None] = {}
    paths: list[tuple[tuple[AnyProvider, ...], LifetimeProvider]] = []
    pending = False

    def visit(provider: AnyProvider, way: tuple[AnyProvider, ...]) -> None:
        nonlocal pending
        if provider in way:
            names = " -> ".join(label_of(part) for part in (*way, provider))
            raise ResourceError(f"providers depend on each other in a circle: {names}", label_of(provider), "build")
        way = (*way, provider)
        watch[provider] = overriding = provider.last_overriding
        if overriding is not None:
            if isinstance(provider, LifetimeProvider) and isinstance(overriding, LifetimeProvider):
                provider.home.adopt(overriding)
            visit(overriding, way)
        elif isinstance(provider, LifetimeProvider):
            paths.append((way, provider))
            for dependency in provider.dependencies():
                visit(dependency, way)
            steps.update(dict.fromkeys(provider.compiled().steps))
        elif not is_lazy(provider):
            pending = pending or suspends(provider)
            for dependency in direct_edges(provider):
                if not isinstance(dependency, providers.BaseResource) or dependency not in watch:
                    visit(dependency, way)

    for root in roots:
        visit(root, ())
    is_async = pending or any(step.is_async for step in steps)
    return Closure(tuple(steps), tuple(watch.items()), is_async, pending, tuple(paths))


def refuse_shorter(provider: AnyProvider, closure: Closure) -> None:
    """Refuse that *provider* depends on something that lives shorter than itself."""
    level = level_of(provider)
    for way, met in closure.paths:
        if level is not None and met.level > level:
            drawn = " ─> ".join(label_of(part) for part in (provider, *way))
            raise LifetimeMismatchError(
                f"{LIFETIME_WORDS[level]} {label_of(provider)!r} depends on {LIFETIME_WORDS[met.level]} "
                f"{met.label!r}:  {drawn}.  Make {label_of(provider)!r} {LIFETIME_WORDS[met.level]}, "
                f"or inject `{met.label}.provider`.",
                met.label,
                "build",
            )


def level_of(provider: AnyProvider) -> int | None:
    """How long *provider*'s object lives: 0 container, 1 owner, 2 visit; None if it is new on every call."""
    if isinstance(provider, LifetimeProvider):
        return provider.level
    return 0 if isinstance(provider, providers.BaseSingleton | providers.BaseResource) else None


def label_of(provider: AnyProvider) -> str:
    """Return a name of *provider* for messages; never its arguments, which may hold secrets."""
    if isinstance(provider, LifetimeProvider):
        return provider.label
    provides = getattr(provider, "provides", None)
    named = getattr(provides, "__name__", None)
    return f"{type(provider).__name__}({named})" if named else type(provider).__name__


# --- arguments ----------------------------------------------------------------------------

_NO_SCOPE = cast(HoldingScope, None)  # for arguments that need none: their closure holds no lifetime
Getter = Callable[[Any], Any]  # Any: scope in, argument out
Arguments = Callable[[HoldingScope], tuple[tuple[Any, ...], dict[str, Any]]]  # Any: arguments of the user's functions


def getter_for(value: Any) -> Getter | None:
    """Return how to get an argument in a scope; None if it is a constant."""
    if not isinstance(value, providers.Provider):
        return None
    found = effective(value)
    if isinstance(found, LifetimeProvider):
        recipe = found.compiled().recipe
        if recipe.level == 2:
            return lambda scope: scope.held[recipe]
        return lambda scope: scope.find(recipe)
    return lambda scope: value()


def own_recipe(value: Any) -> Recipe | None:
    """Return the recipe of an argument that lives in the same visit."""
    found = effective(value)
    recipe = found.compiled().recipe if isinstance(found, LifetimeProvider) else None
    return recipe if recipe is not None and recipe.level == 2 else None


def arguments_for(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Compile how the arguments of a call are got in a scope."""
    getters = [getter_for(value) for value in args]
    named = {name: getter_for(value) for name, value in kwargs.items()}
    if not any(getters) and not any(named.values()):
        return lambda scope: (args, kwargs)

    def arguments(scope: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ready = tuple(value if get is None else get(scope) for value, get in zip(args, getters, strict=True))
        return ready, {
            name: kwargs[name] if get is None else get(scope) for name, get in named.items()
        }

    return arguments


def maker_for(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, awaits: bool) -> Make:
    """Compile the call of a user's function with its arguments; the commonest forms without a detour."""
    if not args and not kwargs:
        return lambda scope: call()
    if len(args) == 1 and not kwargs and not awaits and (recipe := own_recipe(args[0])) is not None:
        return lambda scope: call(scope.held[recipe])
    arguments = arguments_for(args, kwargs)

    def make(scope: HoldingScope) -> Any:
        ready, named = arguments(scope)
        return call(*ready, **named)

    async def make_waiting(scope: HoldingScope) -> Any:
        ready, named = arguments(scope)
        return call(
            *[await settled(value) for value in ready], **{name: await settled(value) for name, value in named.items()}
        )

    return make_waiting if awaits else make


def resolved(value: Any) -> Any:
    """Return what a declaration's value stands for: a provider's object, or the value itself."""
    if isinstance(value, providers.Provider):
        return value()
    return value


def recipe_kind(provides: Any) -> type[FunctionRecipe]:
    """Return how what *provides* gives is opened and ended."""
    plain = inspect.unwrap(provides)
    decorated = plain is not provides
    if not decorated and inspect.isgeneratorfunction(plain):
        return GeneratorRecipe
    if _gives(provides, AbstractAsyncContextManager, "_AsyncGeneratorContextManager"):
        return AsyncContextRecipe
    if _gives(provides, AbstractContextManager, "_GeneratorContextManager"):
        return ContextRecipe
    if inspect.isasyncgenfunction(plain):
        return AsyncGeneratorRecipe
    if inspect.isgeneratorfunction(plain):
        return GeneratorRecipe
    return CallRecipe


def is_resource_provider(provides: Any) -> bool:
    """Tell whether *provides* has the verbs of a resource provider."""
    return callable(getattr(provides, "acquire", None)) and callable(getattr(provides, "release", None))


def _copied(value: Any, memo: dict[Any, Any]) -> Any:
    return providers.deepcopy(value, memo) if isinstance(value, providers.Provider) else value


def _imported(provides: Any) -> Any:
    """Accept ``"pkg.mod:name"`` and ``"pkg.mod.name"`` as the library's own providers do."""
    if not isinstance(provides, str):
        return provides
    module, _, name = provides.replace(":", ".").rpartition(".")
    return getattr(import_module(module), name)


def _takes_name(provides: type) -> bool:
    return "name" in inspect.signature(provides).parameters


def _gives(provides: Any, kind: type, made_by: str) -> bool:
    """Tell whether a call gives a context manager: a class of them, or a function that contextlib decorated."""
    if isinstance(provides, type):
        return issubclass(provides, kind)
    code = getattr(provides, "__code__", None)
    return code is not None and made_by in code.co_names


def _title(provides: Any) -> str:
    return getattr(provides, "__name__", type(provides).__name__)
