"""A loan: the lease of an owner who holds nothing else, and its way into a scope when the owner gets one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from wirestate.resources.managed import ManagedRecipe
from wirestate.resources.openings import Opening
from wirestate.resources.owners import OwnerScope
from wirestate.resources.scopes import Scope, Taken

# How a name is lent without waiting: its recipe, and what makes and takes back its resources where nothing else is to
# be done. A plain tuple: a named one is unpacked more slowly. Any: the resource, and whatever a release returns.
Quick: TypeAlias = tuple[ManagedRecipe, Callable[[], Any] | None, Callable[[Any], Any] | None]


def quick_of(recipe: ManagedRecipe) -> Quick | None:
    """Return how *recipe* is lent without waiting, None if it cannot be."""
    if recipe.is_async or recipe.level == 0:
        return None
    plain, calls = type(recipe) is ManagedRecipe, recipe.calls
    release = calls.release if plain and not calls.release_takes_error else None
    return recipe, calls.acquire if plain else None, release


class Loan:
    """One name that one owner acquired once. Whoever takes it off the list ends it, or moves it into a scope."""

    # No __init__: the call would cost as much as all that is set in its place.
    __slots__ = ("by", "handle", "opening", "place", "recipe", "release", "since", "value")

    recipe: ManagedRecipe
    release: Callable[[Any], Any] | None  # as in Quick
    by: int  # the thread that opens
    since: float  # 0 while it opens
    value: Any  # Any: the resource
    handle: Any  # Any: whatever ends the lease
    place: Scope | None  # where it was moved to
    opening: Opening | None  # set with place: what its opener must finish there

    def move(self, owner: OwnerScope) -> None:
        """Become a part of what *owner* holds; the manager's lock is held."""
        recipe = self.recipe
        place = owner.lending() if recipe.level == 2 else owner
        taken = place.counted()
        before = taken.get(recipe.name)
        taken[recipe.name] = Taken(recipe, 1 if before is None else before.times + 1)
        self.place = place  # before the look at since: its opener sets that first, and then looks here
        if self.since:
            self.opening = None
            self.keep(place)
        else:
            self.opening = place.held[recipe] = Opening(self.by)

    def keep(self, place: Scope) -> None:
        """Be held in *place*, and end with it."""
        place.exits.append((self.recipe, self.handle, self.since))
        place.held[self.recipe] = self.value
