"""Kinds of resources: our own, and those that other packages offer by entry point."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from wirestate.resources.recipes import Lifetime
from wirestate.settings.imports import ImportRefusedError, Prefixes, attribute_of, import_module

GROUP = "wirestate.resources"
PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class KindInfo:
    """What a kind of resource brings with it.

    ``path`` is where its provider is imported from (None: the setting ``class`` says it);
    ``required`` holds groups of settings, of each of which one must be given.
    """

    name: str
    path: str | None
    default_lifetime: Lifetime
    required: tuple[tuple[str, ...], ...] = ()


_OURS = "wirestate.resources"
_DATABASE = f"{_OURS}.database:DatabaseResourceAdapter"

KINDS: Mapping[str, KindInfo] = {
    kind.name: kind
    for kind in (
        KindInfo("database", _DATABASE, "per_state", (("url", "connection_string", "backend"),)),
        KindInfo("async_database", _DATABASE, "per_state", (("url", "connection_string"),)),
        KindInfo("filesystem", f"{_OURS}.filesystem:FileSystemResourceAdapter", "per_owner", (("base_path",),)),
        KindInfo("http", f"{_OURS}.http:HTTPResourceAdapter", "singleton", (("base_url",),)),
        KindInfo("llm", f"{_OURS}.llm:LLMResourceAdapter", "singleton", (("model",),)),
        KindInfo("values", f"{_OURS}.values:ValuesProvider", "singleton", (("data",),)),
        KindInfo("custom", None, "per_state", (("class",),)),
    )
}

# Where no kind is said, the first of these settings that is given tells it.
TELLING = {
    "class": "custom",
    "backend": "database",
    "url": "database",
    "connection_string": "database",
    "base_url": "http",
    "base_path": "filesystem",
    "data": "values",
}


def kind_of(name: str) -> KindInfo | None:
    """Return the kind called *name*, ours or an entry point's; None if there is none."""
    if name in KINDS:
        return KINDS[name]
    for entry in entry_points(group=GROUP, name=name):
        return KindInfo(name, entry.value, "per_state")
    return None


def known_kinds() -> list[str]:
    """Return the names of all kinds that can be used here."""
    return [*KINDS, *sorted(set(entry_points(group=GROUP).names) - set(KINDS))]


def inferred_kind(given: Mapping[str, object]) -> str | None:
    """Return the kind that the *given* settings tell without saying it."""
    return next((kind for setting, kind in TELLING.items() if given.get(setting) is not None), None)


def imported(path: str, imports: Prefixes = None) -> Callable[..., Any]:  # Any: a provider makes what it likes
    """Import ``pkg.mod:Class`` (or dotted ``pkg.mod.Class``).

    Raises:
        ImportRefusedError: it does not come from a module of *imports*.
        ImportError: there is no such module, or nothing of that name in it.
    """
    if not PATH.fullmatch(path):
        raise ImportError("it is no path of the form 'package.module:Class'")  # not shown: it may be a misplaced secret
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        found: Any = import_module(module_name, imports)  # Any: whatever the path names
    except ImportRefusedError as error:
        raise ImportRefusedError(f"{path!r} {error}") from None
    except ModuleNotFoundError as error:
        if (
            error.name is None
            or error.name.startswith("wirestate.")
            or not f"{module_name}.".startswith(f"{error.name}.")
        ):
            raise
        raise ImportError(f"there is no module for {path!r}") from None  # a path quotes itself without its variables
    for part in attribute.split("."):
        try:
            found = attribute_of(found, part, imports)
        except ImportRefusedError as error:
            raise ImportRefusedError(f"{path!r} {error}") from None
        except AttributeError:
            raise ImportError(f"module {module_name!r} has no {attribute!r}") from None
    if not callable(found):
        raise ImportError(f"{path!r} is no class and no function")
    return found  # type: ignore[no-any-return]  # callable() narrows nothing here
