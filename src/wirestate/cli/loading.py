"""From the options of a command to a container, functions and a machine.

``Any`` here: the containers of dependency-injector share no typed base.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from wirestate.cli.models import settings_named
from wirestate.errors import WirestateError, nearest
from wirestate.fsm import functions_of
from wirestate.injection.container import container_from_settings, settings_of
from wirestate.machine.build import Built, build
from wirestate.machine.definition import Machine
from wirestate.machine.reading import SUFFIXES
from wirestate.redaction import quoted, without_secrets
from wirestate.settings import WirestateSettings

_NOT_THEIRS = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))


class OptionError(WirestateError):
    """An option names something that is not there, or that cannot be used."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(f"{option}: {text}")


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

    container: Any
    settings: WirestateSettings | None
    functions: ModuleType | None


def load(named: Named) -> Loaded:
    """Import and make what the options name.

    Raises:
        OptionError: an option names nothing that there is.
        SettingsError: the settings are wrong or incomplete.
    """
    _refuse_missing(named)
    _make_importable(named.machine)
    with settings_named(None):
        container, settings = _container(named)
    functions = None if named.functions is None else _module(named.functions, "--functions")
    return Loaded(container, settings, functions)


def built_from(machine: Machine, loaded: Loaded) -> Built:
    """Build *machine* from what was loaded; nothing is opened.

    Raises:
        BuildError: everything that is wrong with it, or with the settings.
    """
    with settings_named(loaded.container):
        return build(
            machine,
            container=loaded.container,
            resources={},
            functions=functions_of(loaded.functions),
            imports=None,
            data_mode=None,
        )


def close_all(container: Any, built: Built | None) -> None:
    """Close what was made where nothing was opened."""
    if built is not None and built.own is not None:
        built.own.close()
    if container is not None:
        container.shutdown_resources()


def _refuse_missing(named: Named) -> None:
    machine = named.machine
    if not machine.is_file():
        beside = [file.name for ending in SUFFIXES for file in machine.parent.glob(f"*{ending}")]
        near = nearest(machine.name, beside)
        hint = f"; did you mean {str(machine.with_name(near))!r}?" if near else ""
        raise OptionError("MACHINE", f"{machine} {'is a folder' if machine.is_dir() else 'does not exist'}{hint}")
    refuse_missing_profile(named.profile)


def refuse_missing_profile(profile: Path | None) -> None:
    """Raise OptionError if --profile, or its variable, names a file that is not there."""
    if profile is not None and not profile.is_file():
        beside = ", ".join(sorted(other.name for other in profile.parent.glob("*.toml"))) or "none"
        raise OptionError("--profile", f"{profile} does not exist; profiles beside it: {beside}")


def _make_importable(machine: Path) -> None:
    """Let modules be found where the person stands, and beside the machine."""
    for folder in (str(machine.resolve().parent), os.getcwd()):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def _container(named: Named) -> tuple[Any, WirestateSettings | None]:
    profile = named.profile
    if named.container is None:
        settings = WirestateSettings(_profile=profile)
        return container_from_settings(settings), settings
    if profile is not None:
        os.environ["WIRESTATE_PROFILE"] = str(profile)  # a container reads its settings by itself
    found = _attribute(named.container, "--container")
    if not (callable(found) or hasattr(found, "providers")):
        raise OptionError("--container", f"{named.container!r} is no container, but a {type(found).__name__}")
    container = _called(found, named.container) if _is_recipe(found) else found
    if not hasattr(container, "providers"):
        raise OptionError("--container", f"{named.container!r} is no container, but a {type(container).__name__}")
    return container, settings_of(container)


def _is_recipe(found: Any) -> bool:
    """Tell whether *found* makes a container: its class, or a function."""
    return isinstance(found, type) or not hasattr(found, "providers")


def _attribute(path: str, option: str) -> Any:
    module_name, separator, name = path.partition(":")
    if not (separator and name):
        raise OptionError(option, f"{path!r}: write it as package.module:Class")
    module = _module(module_name, option)
    if not hasattr(module, name):
        near = nearest(name, [other for other in vars(module) if not other.startswith("_")])
        hint = f"; did you mean {near!r}?" if near else ""
        raise OptionError(option, f"module {module_name!r} has no {name!r}{hint}")
    return getattr(module, name)


def _module(name: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise OptionError(option, f"{name!r} imports {error.name!r}, which is not there") from error
        places = "in the working directory, beside the machine and among what is installed"
        raise OptionError(option, f"no module {error.name!r} {places}") from None
    except WirestateError:
        raise
    except Exception as error:  # a person's module is run here: anything can happen
        raise OptionError(option, f"importing {name!r} raised {described(error)}") from error


def _called(make: Callable[[], Any], path: str) -> Any:
    try:
        return make()
    except (WirestateError, ValidationError):
        raise
    except Exception as error:  # it is a person's code
        raise OptionError("--container", f"making {path!r} raised {described(error)}") from error


def said(error: BaseException) -> str:
    """Return what an error says: the library's own words, else those of :func:`described`."""
    text = str(error) if isinstance(error, WirestateError) else described(error)
    return without_secrets("; ".join((text, *getattr(error, "__notes__", ()))))


def described(error: BaseException) -> str:
    """Return kind, text and place of an error that a person's code raised; the place is the innermost of theirs."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_person(frame.filename)]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    kind = type(error).__name__
    return f"{kind if isinstance(error, ValidationError) else quoted(error)}{place}"  # pydantic quotes values


def _is_of_person(filename: str) -> bool:
    path = Path(filename)
    return path.is_file() and "site-packages" not in path.parts and not any(map(path.is_relative_to, _NOT_THEIRS))
