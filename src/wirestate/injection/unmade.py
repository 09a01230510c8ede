"""Why the provider of a resource could not be made: said with names, never with a value.

Any stands for what users declare: their classes and the arguments of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wirestate.errors import InvalidSettingError, NotMadeError, ResourceError, UnknownSettingError, listed, nearest
from wirestate.injection.declared import title
from wirestate.injection.edges import AnyProvider
from wirestate.injection.options import unreadable
from wirestate.injection.setting_paths import LostPath, lost_on_the_way, lost_paths
from wirestate.redaction import text_of
from wirestate.settings.signature import accepted_by


def refuse_lost_paths(name: str, used: Iterable[AnyProvider]) -> None:
    """Refuse that resource *name* uses a settings path which the settings model does not have."""
    if lost := lost_paths(used):
        raise _lost(name, lost)


def refuse_misfit(name: str, provides: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse arguments that the class of a provider does not take, or that it lacks; nothing is made."""
    if isinstance(provides, type) and (text := _misfit(provides, args, named)):
        raise InvalidSettingError(f"resource {name!r}: {title(provides)} {text}", name, "build")


def unmade(
    name: str,
    provides: Any,
    error: Exception,
    *,
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None,
    used: Iterable[AnyProvider],
) -> ResourceError:
    """Return what to raise from *error*.

    Args:
        name: of the resource.
        provides: its provider's class.
        error: what making it raised.
        arguments: with which it was called; None if they could not even be got.
        used: all providers that its arguments use.
    """
    used = list(used)
    if arguments is None and isinstance(error, AttributeError | LookupError) and (lost := lost_on_the_way(used)):
        return _lost(name, [lost])
    if (found := unreadable(f"resource {name!r}", used, name)) is not None:
        return found
    if arguments is not None and isinstance(error, TypeError) and (text := _misfit(provides, *arguments)):
        return InvalidSettingError(f"resource {name!r}: {title(provides)} {text}", name, "build")
    what = "getting its arguments" if arguments is None else f"making its {title(provides)}"
    text = f": {text_of(error)}" if isinstance(error, ImportError) else ""  # the text of any other may hold a value
    return NotMadeError(f"resource {name!r}: {what} raised {type(error).__name__}{text}", name, "build")


def _lost(name: str, paths: Iterable[LostPath]) -> UnknownSettingError:
    texts = [f"{path.text}; did you mean {path.near!r}?" if path.near else f"{path.text}." for path in paths]
    return UnknownSettingError(f"resource {name!r} {' '.join(texts)}", name, "build")


def _misfit(provides: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> str:
    """Say which argument the provider does not take, or which it needs."""
    given = {key: value for key, value in named.items() if key not in ("name", "pool")}
    for problem in accepted_by(provides).problems(given):
        key = problem.path[0]
        if problem.code == "S002":
            near = nearest(key, problem.known)
            return f"takes no {key!r}; " + (f"did you mean {near!r}?" if near else f"it takes {listed(problem.known)}")
        if not args:
            return f"needs {key!r}"
    return ""
