"""Settings models of a person's own container: which variable stands behind what.

``Any`` here: containers, and the providers in them, are seen from outside dependency-injector.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wirestate.errors import SettingsError
from wirestate.settings.kinds import TELLING
from wirestate.settings.report import faults_from, problems_of
from wirestate.settings.sources import Sources, from_variables, read_dotenv


@contextmanager
def settings_named(container: Any) -> Iterator[None]:
    """Turn what a settings model of *container* raises into a report that names variables, without values.

    Raises:
        SettingsError: instead of pydantic's ValidationError.
    """
    try:
        yield
    except ValidationError as error:
        model = next((kind for kind in _models(container) if kind.__name__ == error.title), None)
        raise SettingsError(faults_from(problems_of(error), _sources(model)), f"settings {error.title}") from error


def variable_behind(lifetime: Any) -> str | None:
    """Return the variable that a lifetime's telling argument comes from, and where it is set."""
    arguments: Mapping[str, Any] = getattr(lifetime, "kwargs", {})
    for name in (*(name for name in TELLING if name in arguments), *arguments):
        model, path = _setting(arguments[name])
        if model is not None and path:
            sources = _sources(model)
            return f"{sources.written(path)} ({sources.label(path)})"
    return None


def _setting(value: Any) -> tuple[Any, tuple[str, ...]]:
    """Read ``settings.provided.a.b`` as its model and ``("a", "b")``."""
    path: tuple[str, ...] = ()
    while isinstance(name := getattr(value, "name", None), str) and hasattr(value, "provides"):
        path, value = (name, *path), value.provides
    model = getattr(getattr(value, "provides", None), "cls", None)
    return (model, path) if hasattr(model, "model_config") else (None, ())


def _models(container: Any) -> list[type]:
    made = (getattr(provider, "cls", None) for provider in container.traverse()) if container is not None else ()
    return [kind for kind in made if isinstance(kind, type)]


def _sources(model: Any) -> Sources:
    config = getattr(model, "model_config", {})
    env_file = config.get("env_file")
    prefix = config.get("env_prefix", "")
    layers, names = [from_variables("environment", os.environ, prefix)], [*os.environ]
    if isinstance(env_file, str | os.PathLike):
        variables = read_dotenv(Path(env_file))
        layers.append(from_variables(os.fspath(env_file), variables or {}, prefix, found=variables is not None))
        names += variables or ()
    return Sources(tuple(layers), prefix, tuple(name for name in names if not name.upper().startswith(prefix.upper())))
