"""Settings models of a person's own container: which variable stands behind what.

``Any`` here: containers, and the providers in them, are seen from outside dependency-injector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from wirestate.errors import SettingsError
from wirestate.injection.edges import provides_of
from wirestate.injection.setting_paths import path_of
from wirestate.settings.foreign import faults_of, sources_of
from wirestate.settings.kinds import TELLING


@contextmanager
def settings_named(container: Any) -> Iterator[None]:
    """Turn what a settings model of *container* raises into a report that names variables, without values.

    Raises:
        SettingsError: instead of pydantic's ValidationError.
    """
    try:
        yield
    except ValidationError as error:
        raise SettingsError(faults_of(error, _models(container)), f"settings {error.title}") from error


def variable_behind(lifetime: Any) -> str | None:
    """Return the variable that a lifetime's telling argument comes from, and where it is set.

    A property of the model has no variable; ``database_url`` is taken to stand for ``resources.database.url``.
    """
    arguments: Mapping[str, Any] = getattr(lifetime, "kwargs", {})
    telling = [name for name in arguments if name in TELLING]
    told = [text for name in telling or arguments if (text := _behind(*_setting(arguments[name]))) is not None]
    return next((text for text in told if not text.endswith("(not set)")), told[0] if told else None)


def _behind(model: Any, path: tuple[str, ...]) -> str | None:
    if model is None or not path:
        return None
    if path[0] not in model.model_fields:
        if "resources" not in model.model_fields:
            return f"{model.__name__}.{path[0]}"
        path = ("resources", *path[0].rsplit("_", 1))
    sources = sources_of(model)
    return f"{sources.written(path)} ({sources.label(path)})"


def _setting(value: Any) -> tuple[Any, tuple[str, ...]]:
    """Read ``settings.provided.a.b`` as its model and ``("a", "b")``."""
    root, steps = path_of(value)
    path = tuple(step.name for step in steps if isinstance(step.name, str))
    model = provides_of(root) if len(path) == len(steps) else None
    return (model, path) if hasattr(model, "model_config") else (None, ())


def _models(container: Any) -> list[type]:
    made = map(provides_of, container.traverse()) if container is not None else ()
    return [kind for kind in made if isinstance(kind, type)]
