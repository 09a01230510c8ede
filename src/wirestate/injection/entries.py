"""Names that a manager can be asked for, and the providers of a container that stand behind them."""

from __future__ import annotations

from wirestate.injection.closures import Closure, closure_of, refuse_shorter
from wirestate.injection.edges import AnyProvider, effective
from wirestate.injection.home import Home, Lifetime
from wirestate.resources.recipes import CallRecipe, Recipe


class ProviderEntry:
    """A name that can be asked for, behind which any provider of a container stands."""

    def __init__(self, name: str, provider: AnyProvider, level: int, home: Home) -> None:
        self.name = name
        self.level = level
        self.provider = provider
        self._home = home
        self._known: tuple[Closure, tuple[Recipe, ...]] | None = None  # one pair: threads may set it at once

    @property
    def home(self) -> Home:
        """Where what is opened belongs to."""
        return self._home

    def steps(self) -> tuple[Recipe, ...]:
        known = self._known
        if known is None or not known[0].fresh:
            closure = closure_of([self.provider], self.home)
            refuse_shorter(closure)
            known = self._known = closure, self._steps_of(closure)
        return known[1]

    def forget(self) -> None:
        """Know nothing: in a forked child."""
        self._known = None

    def _steps_of(self, closure: Closure) -> tuple[Recipe, ...]:
        found = effective(self.provider)
        if isinstance(found, Lifetime):
            return closure.steps
        # What a plain provider of the library gives is held like any other resource.
        level = max([self.level, *(step.level for step in closure.steps)])
        recipe = CallRecipe(self.name, level, lambda scope: found(), awaits=closure.suspends)
        recipe.manager = self.home.manager
        return (*closure.steps, recipe)


class LifetimeEntry(ProviderEntry):
    """A name of the manager behind which a lifetime of the container stands, or what a lifetime overrides there."""

    def __init__(self, name: str, lifetime: Lifetime, overridden: AnyProvider | None = None) -> None:
        super().__init__(name, lifetime if overridden is None else overridden, lifetime.level, lifetime.home)
        self.lifetime = lifetime

    @property
    def home(self) -> Home:
        return self.lifetime.home  # it may have moved
