"""Settings models of a person's own: how their variables are called, and what is wrong with those.

Any stands for such models, which share no typed base.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wirestate.errors import Fault
from wirestate.settings.report import faults_from, problems_of
from wirestate.settings.sources import Sources, from_variables, read_dotenv


def faults_of(error: ValidationError, models: Iterable[type]) -> list[Fault]:
    """Say what pydantic raised for one of *models* with the names of variables, without values."""
    model = next((kind for kind in models if kind.__name__ == error.title), None)
    return faults_from(problems_of(error), sources_of(model))


def sources_of(model: Any) -> Sources:
    """Return where the variables of *model* are looked up."""
    config = getattr(model, "model_config", {})
    env_file = config.get("env_file")
    prefix = config.get("env_prefix", "")
    layers, names = [from_variables("environment", os.environ, prefix)], [*os.environ]
    if isinstance(env_file, str | os.PathLike):
        variables, _ = read_dotenv(Path(env_file))
        layers.append(from_variables(os.fspath(env_file), variables or {}, prefix, found=variables is not None))
        names += variables or ()
    return Sources(tuple(layers), prefix, tuple(name for name in names if not name.upper().startswith(prefix.upper())))
