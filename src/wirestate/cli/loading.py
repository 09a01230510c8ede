"""From the options of a command to a container, functions and a machine.

``Any`` here: the containers of dependency-injector share no typed base.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from pydantic import ValidationError

from wirestate.errors import SettingsError, WirestateError, nearest
from wirestate.injection.container import container_from_settings
from wirestate.settings import WirestateSettings
from wirestate.settings.report import faults_from, problems_of
from wirestate.settings.sources import read_sources


@dataclass(frozen=True, slots=True)
class Named:
    """What the options of a command name, not loaded yet."""

    machine: Path
    container: str | None = None
    profile: Path | None = None
    functions: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a machine is built from; ``settings`` are those behind a container that they made."""

    machine: Path
    container: Any
    settings: WirestateSettings | None
    functions: ModuleType | None


def load(named: Named) -> Loaded:
    """Import and make what the options name.

    Raises:
        BadParameter: an option names nothing that there is.
        SettingsError: the settings are wrong or incomplete.
    """
    make_importable(named.machine)
    container, settings = _container(named)
    return Loaded(named.machine, container, settings, _functions(named.functions))


def make_importable(machine: Path) -> None:
    """Let modules be found where the person stands, and beside the machine."""
    for folder in (str(machine.resolve().parent), os.getcwd()):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def _container(named: Named) -> tuple[Any, WirestateSettings | None]:
    profile = named.profile
    if named.container is None:
        settings = WirestateSettings(_profile=profile)
        return (container_from_settings(settings), settings) if settings.resources else (None, None)
    if profile is not None:
        if not profile.is_file():
            beside = ", ".join(sorted(other.name for other in profile.parent.glob("*.toml"))) or "none"
            raise typer.BadParameter(f"{profile} does not exist; beside it: {beside}", param_hint="--profile")
        os.environ["WIRESTATE_PROFILE"] = str(profile)  # a container reads its settings by itself
    found = _attribute(named.container, "--container")
    container = _called(found, f"--container {named.container}") if _is_recipe(found) else found
    if not hasattr(container, "providers"):
        text = f"{named.container!r} is no container, but a {type(container).__name__}"
        raise typer.BadParameter(text, param_hint="--container")
    return container, settings_behind(container)


def _is_recipe(found: Any) -> bool:
    """Tell whether *found* makes a container: its class, or a function."""
    return isinstance(found, type) or not hasattr(found, "providers")


def settings_behind(container: Any) -> WirestateSettings | None:
    """Return the settings that made *container*, if some did."""
    held = getattr(container.providers.get("settings"), "provides", None)
    return held if isinstance(held, WirestateSettings) else None


def _functions(name: str | None) -> ModuleType | None:
    return None if name is None else _module(name, "--functions")


def _attribute(path: str, option: str) -> Any:
    module_name, separator, name = path.partition(":")
    if not (separator and name):
        raise typer.BadParameter(f"{path!r}: write it as package.module:Class", param_hint=option)
    module = _module(module_name, option)
    if not hasattr(module, name):
        near = nearest(name, [other for other in vars(module) if not other.startswith("_")])
        hint = f"; did you mean {near!r}?" if near else ""
        raise typer.BadParameter(f"module {module_name!r} has no {name!r}{hint}", param_hint=option)
    return getattr(module, name)


def _module(name: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise typer.BadParameter(f"{name!r} imports {error.name!r}, which is not there", param_hint=option) from error
        places = "in the working directory, beside the machine and among what is installed"
        raise typer.BadParameter(f"no module {error.name!r} {places}", param_hint=option) from None
    except WirestateError:
        raise
    except Exception as error:  # a person's module is run here: anything can happen
        raise typer.BadParameter(f"importing {name!r} raised {described(error)}", param_hint=option) from error


def _called(make: Callable[[], Any], what: str) -> Any:
    try:
        return make()
    except (WirestateError, ValidationError):
        raise
    except Exception as error:  # it is a person's code
        raise typer.BadParameter(f"making it raised {described(error)}", param_hint=what) from error


def described(error: BaseException) -> str:
    """Return kind, text and place of an error that a person's code raised; the place is the innermost of theirs."""
    library = str(Path(__file__).parents[1])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_person(frame.filename, library)]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = "" if isinstance(error, ValidationError) else f": {error}"  # pydantic quotes values
    return f"{type(error).__name__}{text}{place}"


def _is_of_person(filename: str, library: str) -> bool:
    return not (filename.startswith((library, "<")) or "site-packages" in filename or filename == importlib.__file__)


def settings_error(error: ValidationError, container: Any) -> SettingsError:
    """Say what is wrong with a person's settings model as our own settings say it: by variable, without values."""
    model = next((kind for kind in _models(container) if kind.__name__ == error.title), None)
    config = getattr(model, "model_config", {})
    env_file = config.get("env_file")
    file = Path(env_file) if isinstance(env_file, str | os.PathLike) else None
    sources = read_sources({}, prefix=config.get("env_prefix", ""), places={}, env_file=file)
    known = tuple(getattr(model, "model_fields", ()))
    return SettingsError(faults_from(problems_of(error, known), sources), f"settings {error.title}")


def _models(container: Any) -> list[type]:
    made = (getattr(provider, "provides", None) for provider in container.traverse()) if container is not None else ()
    return [kind for kind in made if isinstance(kind, type)]
