"""The settings of an application: what all sources say together, checked as one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from wirestate.errors import Fault, ResourceError, SettingsError
from wirestate.resources.secrets import Revealed
from wirestate.settings.report import Problem, close_resource, faults_from, problems_of
from wirestate.settings.resource import NAME, ResourceSettings, examined
from wirestate.settings.signature import parsed
from wirestate.settings.sources import Sources, read_sources
from wirestate.settings.trial import refusals, setting_to_blame


class WirestateSettings(BaseSettings):
    """Read the settings from, strongest first: arguments, environment, ``.env``, secrets folder, profile, defaults.

    Variables begin with ``WIRESTATE_``, and two underscores separate the parts of a name:
    ``WIRESTATE_RESOURCES__DATABASE__URL``. An empty variable counts as not set. A ``base.toml``
    beside the profile is the layer below it. A subclass may add fields.

    Args:
        _profile: a TOML file; else ``WIRESTATE_PROFILE`` names it.
        _env_file: a file of variables; None reads none.
        _secrets_dir: a folder with one file per variable; else ``WIRESTATE_SECRETS_DIR`` names it.
        values: settings by name.

    Raises:
        SettingsError: with every setting that is missing, misspelt or wrong; never with a value.

    Example:
        >>> settings = WirestateSettings(_env_file=None, resources={"files": {"base_path": "memory://"}})
        >>> settings.resources["files"].kind
        'filesystem'
    """

    model_config = SettingsConfigDict(
        env_prefix="WIRESTATE_", env_nested_delimiter="__", env_file=".env", extra="forbid", hide_input_in_errors=True
    )

    resources: dict[str, ResourceSettings] = Field(default_factory=dict, description="Resources by name.")
    _sources: Sources = PrivateAttr()

    def __init__(
        self,
        *,
        _profile: str | Path | None = None,
        _env_file: str | Path | None = "",
        _secrets_dir: str | Path | None = None,
        **values: Any,  # Any: settings by name, validated below
    ) -> None:
        config = type(self).model_config
        values = Revealed(values)  # a traceback with locals shows it, and the tree below
        env_file = _text(config.get("env_file") if _env_file == "" else _env_file)
        sources = read_sources(
            values,
            prefix=config.get("env_prefix", ""),
            places={"profile": _text(_profile), "secrets_dir": _text(_secrets_dir or config.get("secrets_dir"))},
            env_file=Path(env_file) if env_file else None,
        )
        fields = type(self).model_fields
        tree = Revealed(
            (name, parsed(value, fields[name].annotation) if name in fields else value)
            for name, value in sources.merged().items()
        )
        tree["resources"], problems = _resources(tree.get("resources", {}))
        problems += [Problem("S002", path) for path in sources.stray()]
        try:
            super().__init__(_env_file=None, _secrets_dir=None, **tree)
        except ValidationError as error:
            problems += problems_of(error, tuple(fields))
        if problems or sources.troubles():
            wrong = {problem.path[1] for problem in problems if problem.path[:1] == ("resources",) != problem.path}
            right = {name: resource for name, resource in tree["resources"].items() if name not in wrong}
            raise SettingsError(faults_from(problems, sources) + refusals(right, sources), "settings")
        self._sources = sources.without_values()
        self.__dict__["resources"] = Declared(self)  # pyright: ignore[reportIndexIssue]  # an instance has a dict; frozen models refuse setattr

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave only what the constructor gives: it has read the others, and knows what came from where."""
        return (init_settings,)

    def set_by(self, *path: str) -> str:
        """Tell which source set a setting, and under which name: ``set_by("resources", "database", "url")``."""
        return self._sources.set_by(path)

    def profiles(self) -> list[str]:
        """Return the TOML files that were read: the profile, and the base beside it."""
        return self._sources.profiles()

    def refusals(self) -> list[Fault]:
        """Return what the adapters of these resources refuse, each with what set it."""
        return refusals(self.resources, self._sources)

    def setting_to_blame(self, name: str, error: ResourceError) -> str:
        """Tell which source set what *error* of resource *name* is about, and under which name."""
        return self.set_by("resources", name, *setting_to_blame(self.resources[name], error))

    def ways_to_declare(self, name: str) -> tuple[str, ...]:
        """Tell which variables would declare a resource *name* that is missing, and which of those set look alike."""
        if not NAME.fullmatch(name):
            return ()
        sources = self._sources
        close = close_resource(name, sources)
        wanted = f"{sources.wanted(('resources', name))}__…"
        near = f"  Close name that is set: {close}" if close else ""
        return (f"No variable {wanted} is set.  Looked in: {sources.looked_in()}.{near}",)


class Declared(dict[str, ResourceSettings]):
    """The resources of settings by name; asking for one that is not there says how to declare it."""

    def __init__(self, settings: WirestateSettings) -> None:
        super().__init__(settings.resources)
        self._ways = settings.ways_to_declare

    def __missing__(self, name: str) -> ResourceSettings:
        text = f"the settings declare no resource {name!r}; give at least its url, base_url or base_path."
        raise SettingsError([Fault("S001", "MissingSetting", text, self._ways(name))], "settings")

    def __reduce__(self) -> tuple[type[dict[str, ResourceSettings]], tuple[dict[str, ResourceSettings]]]:
        return dict, (dict(self),)  # in another process it is asked for nothing that is missing


def schema_text() -> str:
    """Return the JSON Schema of a profile, as ``settings/schema.json`` holds it."""
    schema = WirestateSettings.model_json_schema()
    schema["$defs"]["PoolConfig"]["additionalProperties"] = False  # pydantic takes the rule of the model around it
    for part in (schema, *schema["$defs"].values()):
        if "description" in part:  # pydantic 2.12 has none for some
            part["description"] = part["description"].splitlines()[0]
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _resources(given: Any) -> tuple[dict[str, ResourceSettings], list[Problem]]:  # Any: not validated yet
    if not isinstance(given, Mapping):
        return {}, [Problem("S003", ("resources",), "must be a mapping of resources")]
    built: dict[str, ResourceSettings] = {}
    problems: list[Problem] = []
    for name, description in given.items():
        settings, wrong = examined(str(name), description)
        problems += wrong
        if settings is not None:
            built[name] = settings
    return built, problems


def _text(path: Any) -> str | None:  # Any: pydantic-settings also allows several folders; one is supported
    return os.fspath(path) if path else None
