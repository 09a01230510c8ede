"""How the arguments of a declaration are got in a scope: compiled once, called at every opening.

Any stands for what users declare, give and take: arguments and results of their functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from dependency_injector import providers

from wirestate.injection.edges import effective
from wirestate.injection.home import Lifetime
from wirestate.resources.recipes import HoldingScope, Make, Recipe, settled

NO_SCOPE = cast(HoldingScope, None)  # for arguments that need none: their closure holds no lifetime
Ready = tuple[tuple[Any, ...], dict[str, Any]]
Arguments = Callable[[HoldingScope], Ready]
Getter = Callable[[Any], Any]


def arguments_for(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Compile how the arguments of a call are got in a scope."""
    getters = [_getter(value) for value in args]
    named = {name: _getter(value) for name, value in kwargs.items()}
    if not any(getters) and not any(named.values()):
        return lambda scope: (args, kwargs)

    def arguments(scope: HoldingScope) -> Ready:
        ready = tuple(value if get is None else get(scope) for value, get in zip(args, getters, strict=True))
        return ready, {name: kwargs[name] if get is None else get(scope) for name, get in named.items()}

    return arguments


def maker_for(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, awaits: bool) -> Make:
    """Compile the call of a user's function with its arguments; the commonest forms without a detour.

    Args:
        awaits: arguments may be awaitable; then what is returned gives a coroutine.
    """
    if not args and not kwargs:
        return lambda scope: call()
    if len(args) == 1 and not kwargs and not awaits and (recipe := _recipe_of_same_visit(args[0])) is not None:
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


def _getter(value: Any) -> Getter | None:
    """Return how to get an argument in a scope; None if it is a constant."""
    if not isinstance(value, providers.Provider):
        return None
    found = effective(value)
    if isinstance(found, Lifetime):
        recipe = found.compiled().recipe
        if recipe.level == 2:
            return lambda scope: scope.held[recipe]
        return lambda scope: scope.find(recipe)
    return lambda scope: value()


def _recipe_of_same_visit(value: Any) -> Recipe | None:
    found = effective(value) if isinstance(value, providers.Provider) else None
    recipe = found.compiled().recipe if isinstance(found, Lifetime) else None
    return recipe if recipe is not None and recipe.level == 2 else None


def resolved(value: Any) -> Any:
    """Return what a declaration's value stands for: a provider's object, or the value itself."""
    return value() if isinstance(value, providers.Provider) else value
