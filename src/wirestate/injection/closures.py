"""What calling some providers needs: dependencies first, overrides followed, lifetimes compared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from dependency_injector import providers

from wirestate.errors import LifetimeMismatchError, ResourceError
from wirestate.injection.edges import LEAVES, AnyProvider, Watch, direct_edges, provides_of, suspends, unchanged
from wirestate.injection.home import Compiled, Home, Known, Lifetime
from wirestate.resources.recipes import LIFETIME_WORDS, Recipe

Edges = tuple[AnyProvider, ...]


class Closure(NamedTuple):
    """All that calling some providers needs."""

    roots: tuple[AnyProvider, ...]
    steps: tuple[Recipe, ...]
    watch: Watch
    is_async: bool
    suspends: bool  # a provider of the library itself gives awaitables
    # Up to the first lifetime on each way: what lies behind one was checked when it was compiled, and lives as long.
    direct: tuple[AnyProvider, ...]
    recipes: Mapping[Lifetime, Recipe]  # of the lifetimes among these
    towards: Mapping[AnyProvider, tuple[Lifetime, AnyProvider]]  # what lives shortest below, and the next on the way

    @property
    def fresh(self) -> bool:
        """True if nothing of it was overridden, restored or closed since."""
        return unchanged(self.watch) and not any(step.manager.closed for step in self.steps)

    def shortest(self) -> Lifetime | None:
        """Return the lifetime below that lives shortest, the first of several; None if there is none."""
        met = [self.towards[root][0] for root in self.roots if root in self.towards]
        return max(met, key=lambda lifetime: lifetime.level, default=None)

    def way(self, provider: AnyProvider) -> list[AnyProvider]:
        """Return *provider* and all on the way from it to what lives shortest."""
        way = [provider]
        while (following := self.towards[way[-1]][1]) is not way[-1]:
            way.append(following)
        return way


class _Round(threading.local):
    known: Known | None = None


_round = _Round()


@contextmanager
def one_round() -> Iterator[None]:
    """Let all closures that this thread makes within share what they find: each provider is expanded once.

    What another thread overrides meanwhile makes what was found here stale, as it does after the end.
    """
    before, _round.known = _round.known, Known()
    try:
        yield
    finally:
        _round.known = before


def closure_of(roots: Iterable[AnyProvider], home: Home, known: Known | None = None) -> Closure:
    """Find what calls of *roots* would call, following overrides; stop at what resolves lazily.

    Each provider is visited once, however many ways lead to it, and without recursion: chains may be long.

    Args:
        roots: the providers.
        home: where lifetimes go that belong to no container, as overrides may bring them.
        known: what was found a moment ago; more is added.
    """
    roots = tuple(roots)
    found = known or _round.known
    known = found or Known()
    while True:
        # Those below are compiled first: then each finds its own dependencies compiled, and need not go deeper.
        for provider, _ in dependencies_first(roots, partial(_uncompiled_edges, known)):
            if isinstance(provider, Lifetime) and provider.last_overriding is None:
                home.adopt(provider)
                if provider not in known.compiled:
                    known.compiled[provider] = provider.compiled(known)
            else:
                known.below[provider] = provider.last_overriding
        walk = _Walk(known)
        if walk.over(roots) and (found is None or unchanged(walk.watch.values())):
            return walk.closure(roots)
        found = None  # another thread overrode or restored something meanwhile
        known.clear()


def dependencies_first(
    roots: Iterable[AnyProvider], edges_of: Callable[[AnyProvider], Edges]
) -> Iterator[tuple[AnyProvider, Edges]]:
    """Yield *roots* and all below them once each, with their edges; whatever an edge leads to comes before."""
    done: set[AnyProvider] = set()
    for root in roots:
        if root in done:
            continue
        entered: dict[AnyProvider, Edges] = {root: edges_of(root)}
        ahead = [iter(entered[root])]
        while ahead:
            for following in ahead[-1]:
                if following not in done:
                    break
            else:
                ahead.pop()
                provider, edges = entered.popitem()
                done.add(provider)
                yield provider, edges
                continue
            if following in entered:
                names = " ─> ".join(labels((*entered, following)))
                name = labels((following,))[0]
                raise ResourceError(f"providers depend on each other in a circle: {names}", name, "build")
            entered[following] = edges = edges_of(following)
            ahead.append(iter(edges))


def _uncompiled_edges(known: Known, provider: AnyProvider) -> Edges:
    overriding = provider.last_overriding
    if known.below.get(provider, provider) is overriding:
        return ()
    if overriding is not None:
        return (overriding,)
    if isinstance(provider, Lifetime):
        return () if provider in known.compiled or provider.is_compiled else tuple(provider.dependencies())
    return _calls(known, provider)[0]


def _calls(known: Known, provider: AnyProvider) -> tuple[Edges, bool]:
    """Return what *provider* of the library calls, and whether its call itself may give an awaitable."""
    found = known.calls.get(provider)
    if found is None:
        found = tuple(direct_edges(provider)), not isinstance(provider, LEAVES) and suspends(provider)
        if not isinstance(provider, providers.Selector):  # its edges change with what overrides its options
            known.calls[provider] = found
    return found


class _Walk:
    def __init__(self, known: Known) -> None:
        self.known = known
        self.steps: dict[Recipe, None] = {}
        self.watch: dict[AnyProvider, tuple[AnyProvider, AnyProvider | None]] = {}
        self.recipes: dict[Lifetime, Recipe] = {}
        self.direct: list[AnyProvider] = []
        self.towards: dict[AnyProvider, tuple[Lifetime, AnyProvider]] = {}
        self.taken: list[Compiled] = []  # of the recipes
        self.suspends = self.is_async = False
        self.agrees = True  # what was met in one place was overridden as in any other

    def over(self, roots: Iterable[AnyProvider]) -> bool:
        """Visit all below *roots*; False if what was found belongs to more than one moment."""
        for provider, edges in dependencies_first(roots, self._edges):
            self.direct.append(provider)
            overridden = self.watch[provider][1] is not None
            if isinstance(provider, Lifetime) and not overridden:
                self._take(provider)
                continue
            for edge in edges:
                self._compare(provider, edge)
            if not overridden and not self.suspends:
                itself = _calls(self.known, provider)[1]
                self.suspends = itself or (self.is_async and any(map(self._gives_awaitables, edges)))
        self._watch_taken()
        return self.agrees

    def _gives_awaitables(self, edge: AnyProvider) -> bool:
        """Tell whether *edge* gives an awaitable to a provider of the library that calls it in an event loop."""
        while (overriding := self.watch[edge][1]) is not None:
            edge = overriding
        return isinstance(edge, Lifetime) and edge.level == 0 and self._compiled(edge).is_async

    def _edges(self, provider: AnyProvider) -> Edges:
        overriding = provider.last_overriding
        pair = provider, overriding
        if self.watch.setdefault(provider, pair)[1] is not overriding:
            self.agrees = False
        if overriding is not None:
            return (overriding,)
        return () if isinstance(provider, Lifetime) else _calls(self.known, provider)[0]

    def _take(self, lifetime: Lifetime) -> None:
        """Add what a lifetime needs, itself last."""
        compiled = self._compiled(lifetime)
        self.taken.append(compiled)
        self.towards[lifetime] = lifetime, lifetime
        self.recipes[lifetime] = compiled.recipe
        self.steps.update(dict.fromkeys(compiled.steps))
        self.is_async = self.is_async or compiled.is_async

    def _compiled(self, lifetime: Lifetime) -> Compiled:
        return self.known.compiled.get(lifetime) or lifetime.compiled()

    def _watch_taken(self) -> None:
        """Watch what the lifetimes do; those that others need come first, and these watch all that they do."""
        known, covered = self.watch.setdefault, set[Recipe]()
        for compiled in reversed(self.taken):
            if compiled.recipe in covered:
                continue
            covered.update(compiled.steps)
            for pair in compiled.watch:
                if known(pair[0], pair)[1] is not pair[1]:
                    self.agrees = False

    def _compare(self, provider: AnyProvider, edge: AnyProvider) -> None:
        if edge in self.towards:
            lifetime = self.towards[edge][0]
            if provider not in self.towards or lifetime.level > self.towards[provider][0].level:
                self.towards[provider] = lifetime, edge

    def closure(self, roots: tuple[AnyProvider, ...]) -> Closure:
        return Closure(
            roots=roots,
            steps=tuple(self.steps),
            watch=tuple(self.watch.values()),
            is_async=self.suspends or self.is_async,
            suspends=self.suspends,
            direct=tuple(self.direct),
            recipes=self.recipes,
            towards=self.towards,
        )


def refuse_shorter(closure: Closure, holder: Lifetime | None = None) -> None:
    """Refuse that something depends on what lives shorter: *holder*, or a singleton or resource of the library.

    Args:
        closure: of what *holder* depends on, or of anything else.
        holder: a lifetime.
    """
    if holder is not None:
        for root in closure.roots:
            if root in closure.towards and closure.towards[root][0].level > holder.level:
                raise _mismatch(holder.level, (holder, *closure.way(root)))
    for provider, (shorter, following) in closure.towards.items():
        if shorter.level > 0 and following is not provider.last_overriding and level_of(provider) == 0:
            raise _mismatch(0, tuple(closure.way(provider)))


def _mismatch(level: int, way: Edges) -> LifetimeMismatchError:
    names, shorter = labels(way), LIFETIME_WORDS[level_of(way[-1]) or 0]
    return LifetimeMismatchError(
        f"{LIFETIME_WORDS[level]} {names[0]!r} depends on {shorter} {names[-1]!r}:  "
        f"{' ─> '.join(names)}.  Make {names[0]!r} {shorter}, "
        f"or inject `{names[-1]}.provider`.",
        names[-1],
        "build",
    )


def level_of(provider: AnyProvider) -> int | None:
    """How long *provider*'s object lives: 0 container, 1 owner, 2 visit; None if it is new on every call."""
    if isinstance(provider, Lifetime):
        return provider.level
    return 0 if isinstance(provider, providers.BaseSingleton | providers.BaseResource) else None


def labels(way: Edges) -> list[str]:
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
    if isinstance(provider, providers.Configuration | providers.ConfigurationOption):
        return str(provider.get_name())
    named = getattr(provides_of(provider), "__name__", None)
    return f"{type(provider).__name__}({named})" if named else type(provider).__name__
