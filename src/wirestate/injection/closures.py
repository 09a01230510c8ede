"""What calling some providers needs: dependencies first, overrides followed, lifetimes compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dependency_injector import providers

from wirestate.errors import LifetimeMismatchError, ResourceError
from wirestate.injection.edges import AnyProvider, Watch, direct_edges, is_lazy, suspends, unchanged
from wirestate.injection.home import Home, Lifetime
from wirestate.resources.recipes import LIFETIME_WORDS, Recipe

Way = tuple[AnyProvider, ...]


class Closure(NamedTuple):
    """All that calling some providers needs."""

    steps: tuple[Recipe, ...]
    watch: Watch
    is_async: bool
    suspends: bool  # a provider of the library itself gives awaitables
    paths: tuple[tuple[Way, Lifetime], ...]  # the way from a root to each lifetime met

    @property
    def fresh(self) -> bool:
        """True if nothing of it was overridden, restored or closed since."""
        return unchanged(self.watch) and not any(step.manager.closed for step in self.steps)


NOTHING = Closure((), (), False, False, ())


def closure_of(roots: Iterable[AnyProvider], home: Home) -> Closure:
    """Walk what calls of *roots* would call, following overrides; stop at what resolves lazily.

    Args:
        home: where lifetimes go that belong to no container, as overrides may bring them.
    """
    roots = tuple(roots)
    walk = _Walk(home)
    while not walk.over(roots):  # another thread overrode or restored something meanwhile
        walk = _Walk(home)
    steps = tuple(walk.steps)
    is_async = walk.suspends or any(step.is_async for step in steps)
    return Closure(steps, tuple(walk.watch.items()), is_async, walk.suspends, tuple(walk.paths))


class _Walk:
    def __init__(self, home: Home) -> None:
        self.home = home
        self.steps: dict[Recipe, None] = {}
        self.watch: dict[AnyProvider, AnyProvider | None] = {}
        self.paths: list[tuple[Way, Lifetime]] = []
        self.suspends = False
        self.agrees = True  # what was met in one place was overridden as in any other

    def over(self, roots: Iterable[AnyProvider]) -> bool:
        """Visit *roots*; False if what was found belongs to more than one moment."""
        for root in roots:
            self.visit(root, ())
        return self.agrees

    def visit(self, provider: AnyProvider, way: Way) -> None:
        if provider in way:
            names = " ─> ".join(labels((*way, provider)))
            raise ResourceError(f"providers depend on each other in a circle: {names}", labels((provider,))[0], "build")
        way = (*way, provider)
        self.watch[provider] = overriding = provider.last_overriding
        if overriding is not None:
            self.visit(overriding, way)
        elif isinstance(provider, Lifetime):
            self.home.adopt(provider)
            self.paths.append((way, provider))
            for dependency in provider.dependencies():
                self.visit(dependency, way)
            compiled = provider.compiled()
            self.agrees = self.agrees and all(self.watch.get(met) is over for met, over in compiled.watch)
            self.steps.update(dict.fromkeys(compiled.steps))
        elif not is_lazy(provider):
            self.suspends = self.suspends or suspends(provider)
            for dependency in direct_edges(provider):
                if not isinstance(dependency, providers.BaseResource) or dependency not in self.watch:
                    self.visit(dependency, way)


def refuse_shorter(provider: AnyProvider, closure: Closure) -> None:
    """Refuse that *provider* depends on something that lives shorter than itself."""
    level = level_of(provider)
    if level is None:
        return
    for way, met in closure.paths:
        if met.level > level:
            names = labels((provider, *way))
            raise LifetimeMismatchError(
                f"{LIFETIME_WORDS[level]} {names[0]!r} depends on {LIFETIME_WORDS[met.level]} {names[-1]!r}:  "
                f"{' ─> '.join(names)}.  Make {names[0]!r} {LIFETIME_WORDS[met.level]}, "
                f"or inject `{names[-1]}.provider`.",
                names[-1],
                "build",
            )


def level_of(provider: AnyProvider) -> int | None:
    """How long *provider*'s object lives: 0 container, 1 owner, 2 visit; None if it is new on every call."""
    if isinstance(provider, Lifetime):
        return provider.level
    return 0 if isinstance(provider, providers.BaseSingleton | providers.BaseResource) else None


def labels(way: Way) -> list[str]:
    """Return the names of providers for messages: those of their container, as far as one is known."""
    homes = [provider.home for provider in way if isinstance(provider, Lifetime)]
    return [
        next((home.labels[provider] for home in homes if provider in home.labels), None) or label_of(provider)
        for provider in way
    ]


def label_of(provider: AnyProvider) -> str:
    """Return a name of *provider* for messages; never its arguments, which may hold secrets."""
    if isinstance(provider, Lifetime):
        return provider.label
    provides = getattr(provider, "provides", None)
    named = getattr(provides, "__name__", None)
    return f"{type(provider).__name__}({named})" if named else type(provider).__name__
