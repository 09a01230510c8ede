"""What a declaration provides: by its kind, how it is opened and ended.

Any stands for what users declare: classes, functions, instances.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import import_module
from types import CodeType
from typing import Any

from wirestate.errors import NotMadeError
from wirestate.redaction import text_of
from wirestate.resources.calls import has_code, layers
from wirestate.resources.recipes import (
    AsyncContextRecipe,
    AsyncGeneratorRecipe,
    CallRecipe,
    ContextRecipe,
    FunctionRecipe,
    GeneratorRecipe,
)


def is_resource_provider(provides: Any) -> bool:
    """Tell whether *provides* has the verbs of a resource provider."""
    return callable(getattr(provides, "acquire", None)) and callable(getattr(provides, "release", None))


def recipe_kind(provides: Any) -> type[FunctionRecipe]:
    """Return how what *provides* gives is opened and ended; decorators and partials are looked through."""
    for layer in layers(provides):
        if _gives(layer, AbstractAsyncContextManager, "_AsyncGeneratorContextManager"):
            return AsyncContextRecipe
        if _gives(layer, AbstractContextManager, "_GeneratorContextManager"):
            return ContextRecipe
        if has_code(layer) and inspect.isasyncgenfunction(layer):
            return AsyncGeneratorRecipe
        if has_code(layer) and inspect.isgeneratorfunction(layer):
            return GeneratorRecipe
    return CallRecipe


def is_entered(value: Any) -> bool:
    """Tell whether *value* is a function whose result has to be entered: of no use as a resource itself."""
    is_function = inspect.isroutine(value) or isinstance(value, functools.partial)
    return is_function and recipe_kind(value) is not CallRecipe


def misuse(provides: Any, kind: type[FunctionRecipe], *, closes: bool) -> str | None:
    """Return what is wrong with a declaration of a callable, for messages; *closes*: it has a ``close=``."""
    reached = list(layers(provides))[-1]
    if isinstance(reached, type) and is_resource_provider(reached):
        return (
            f"is a partial of {title(reached)}, which would be handed out itself; declare the class with its arguments"
        )
    if closes and kind is not CallRecipe and not isinstance(reached, type):
        return (
            "has close=, which is for what a plain function returns; a generator's clean-up is what follows its yield"
        )
    return None


def _gives(provides: Any, kind: type, made_by: str) -> bool:
    """Tell whether a call gives a context manager: a class of them, or a function that contextlib decorated."""
    if isinstance(provides, type):
        return issubclass(provides, kind)
    code = getattr(provides, "__code__", None)
    return isinstance(code, CodeType) and made_by in code.co_names


def imported(provides: Any, label: str) -> Any:
    """Accept ``"pkg.mod:name"`` and ``"pkg.mod.name"`` as the library does; *label* names the resource for messages."""
    if not isinstance(provides, str):
        return provides
    module, _, name = provides.replace(":", ".").rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: there is no module in it
        text = f"resource {label!r}: {provides!r} cannot be imported: {text_of(error)}"
        raise NotMadeError(text, label, "build") from error


def takes_name(provides: type) -> bool:
    """Tell whether the class wants to know what it is called."""
    return "name" in inspect.signature(provides).parameters


def title(provides: Any) -> str:
    """Return what *provides* is called, for messages."""
    return getattr(provides, "__name__", type(provides).__name__)
