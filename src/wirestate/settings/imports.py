"""What a text may name that becomes code: modules below the allowed prefixes, and what is defined in them.

``Any`` here: whatever a path leads to.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from wirestate.errors import listed

Prefixes = Sequence[str] | None  # None allows all
DATA = (dict, list, tuple, set, frozenset, str, bytes, int, float, bool, type(None))


class ImportRefusedError(ImportError):
    """A path leads to a module that may not be imported, or to something that is defined elsewhere."""


def checked_prefixes(imports: Prefixes) -> Prefixes:
    """Return *imports* as it is.

    Raises:
        TypeError: it is one text, whose characters would be taken for prefixes.
    """
    if isinstance(imports, str):
        raise TypeError(f"imports= takes a list of prefixes, such as [{imports!r}], not a text")
    return imports


def import_module(module: str, imports: Prefixes) -> ModuleType:
    """Import *module*, if that is allowed.

    Raises:
        ImportRefusedError: it is not; nothing was imported.
    """
    if imports is not None and not _allows(imports, module):
        raise ImportRefusedError(f"may not be imported; allowed: {listed(imports)}")
    return importlib.import_module(module)


def attribute_of(found: Any, name: str, imports: Prefixes) -> Any:
    """Return an attribute on the way of a path; each must be defined below an allowed prefix.

    Else a module that may be imported would lead to all that it imports itself.

    Raises:
        AttributeError: there is none of that name.
        ImportRefusedError: it is defined elsewhere.
    """
    value = getattr(found, name)
    if imports is None or (isinstance(found, ModuleType) and type(value) in DATA):  # such a value is no code
        return value
    home = defined_in(value)
    if home is None or not _allows(imports, home):
        where = f"in {home!r}" if home else "in no module"
        raise ImportRefusedError(f"may not be used: it leads to what is defined {where}; allowed: {listed(imports)}")
    return value


def defined_in(value: Any) -> str | None:
    """Return the module that defines *value*: of a method its function's, of a partial its function's,
    of any other object that of its class; None for what Python itself made up.
    """
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, functools.partial):
        return defined_in(value.func)
    if inspect.ismethod(value):
        return defined_in(value.__func__)
    if inspect.isclass(value) or inspect.isroutine(value):
        home = getattr(value, "__module__", None)
    else:  # a decorator that is a class writes down the module of what it decorates
        home = getattr(value, "__dict__", {}).get("__module__", type(value).__module__)
    return home if isinstance(home, str) else None


def _allows(imports: Sequence[str], module: str) -> bool:
    packages = (prefix.rstrip(".") for prefix in imports)
    return any(module == package or module.startswith(f"{package}.") for package in packages if package)
