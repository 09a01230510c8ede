"""How the arguments of a declaration are got in a scope: compiled once, called at every opening.

Any stands for what users declare, give and take: arguments and results of their functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from dependency_injector import providers

from wirestate.injection.edges import effective, is_handed_out
from wirestate.injection.home import Lifetime
from wirestate.injection.options import OPTIONS, value_of
from wirestate.resources.recipes import HoldingScope, Make, Recipe, settled
from wirestate.resources.secrets import Hidden, Revealed

NO_SCOPE = cast(HoldingScope, None)  # for arguments that need none: their closure holds no lifetime
Ready = tuple[tuple[Any, ...], dict[str, Any]]
Arguments = Callable[[HoldingScope], Ready]
Getter = Callable[[Any], Any]
Recipes = Mapping[Lifetime, Recipe]


def arguments_for(args: tuple[Any, ...], kwargs: dict[str, Any], recipes: Recipes) -> Arguments:
    """Compile how the arguments of a call are got in a scope."""
    args, kwargs = Hidden(args), Revealed(kwargs)  # a traceback with locals shows them
    getters = [_getter(value, recipes) for value in args]
    named = {name: _getter(value, recipes) for name, value in kwargs.items()}
    if not any(getters) and not any(named.values()):
        return lambda scope: (args, kwargs)

    def arguments(scope: HoldingScope) -> Ready:
        ready = tuple(value if get is None else get(scope) for value, get in zip(args, getters, strict=True))
        return ready, {name: kwargs[name] if get is None else get(scope) for name, get in named.items()}

    return arguments


def maker_for(
    call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], recipes: Recipes, *, awaits: bool
) -> Make:
    """Compile the call of a user's function with its arguments; the commonest forms without a detour.

    Args:
        call: the function.
        args: its arguments.
        kwargs: its keyword arguments.
        recipes: of the lifetimes among the arguments.
        awaits: arguments may be awaitable; then what is returned gives a coroutine.
    """
    if not args and not kwargs:
        return lambda scope: call()
    if len(args) == 1 and not kwargs and not awaits:
        recipe = _recipe(args[0], recipes)
        if recipe is not None and recipe.level == 2:
            return lambda scope: call(scope.held[recipe])
    arguments = arguments_for(args, kwargs, recipes)

    def make(scope: HoldingScope) -> Any:
        ready, named = arguments(scope)
        return call(*ready, **named)

    async def make_waiting(scope: HoldingScope) -> Any:
        ready, named = arguments(scope)
        return call(
            *[await settled(value) for value in ready], **{name: await settled(value) for name, value in named.items()}
        )

    return make_waiting if awaits else make


def _getter(value: Any, recipes: Recipes) -> Getter | None:
    """Return how to get an argument in a scope; None if it is a constant."""
    if not isinstance(value, providers.Provider) or is_handed_out(value):
        return None
    recipe = _recipe(value, recipes)
    if recipe is None:
        return (lambda scope: value_of(value)) if isinstance(value, OPTIONS) else (lambda scope: value())
    if recipe.level == 2:
        return lambda scope: scope.held[recipe]
    return lambda scope: scope.find(recipe)


def _recipe(value: Any, recipes: Recipes) -> Recipe | None:
    """Return how the lifetime behind an argument is opened; None if it is something else."""
    found = effective(value) if isinstance(value, providers.Provider) else None
    return (recipes.get(found) or found.compiled().recipe) if isinstance(found, Lifetime) else None


def resolved(value: Any) -> Any:
    """Return what a declaration's value stands for: a provider's object, or the value itself."""
    return value() if isinstance(value, providers.Provider) else value
