"""What is said about one resource: its kind, its lifetime, its pool, and what its provider takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from wirestate.errors import InvalidSettingError, SettingsError, listed, nearest
from wirestate.redaction import text_of
from wirestate.resources.database.adapter import ASYNC_DRIVERS
from wirestate.resources.pool_config import POOL_FIELDS, PoolConfig
from wirestate.resources.recipes import Lifetime
from wirestate.settings.imports import ImportRefusedError, Prefixes
from wirestate.settings.kinds import KINDS, TELLING, imported, kind_of, known_kinds
from wirestate.settings.report import Problem, faults_from, problems_of
from wirestate.settings.signature import Accepted, accepted_by, parsed
from wirestate.settings.sources import Sources, from_mapping
from wirestate.settings.spelling import LATER, respelled
from wirestate.waiting import LONGEST_WAIT

SECRET = re.compile(r"pass|secret|token|key|credential|dsn|auth|url", re.IGNORECASE)
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")  # a double underscore separates the parts of a variable
# All other settings are the provider's.
DESCRIBING = ("kind", "lifetime", "pool", "class", "creation_attempts", "creation_delay", "health_check_interval")


def _checked_pool(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:  # Any: not validated yet
    value = parsed(value, PoolConfig)
    if isinstance(value, Mapping) and (unknown := sorted(value.keys() - POOL_FIELDS)):
        raise ValueError(f"no setting of a pool is called {unknown[0]!r}")
    try:
        return validate(value)
    except InvalidSettingError as error:
        wrong = [
            InitErrorDetails(type=PydanticCustomError("pool", "{text}", {"text": text}), loc=(field,), input=None)
            for field, text in error.pool_faults.items()
        ]
        raise ValidationError.from_exception_data("pool", wrong) from None


def _object(value: Any) -> Any:  # Any: not validated yet
    return parsed(value, dict)


def _nothing_required(schema: dict[str, Any]) -> None:  # Any: JSON Schema
    schema.pop("required", None)  # the kind is required here, and inferred before where nobody says it


class ResourceSettings(BaseModel):
    """The settings of one resource; what is not listed here goes to its provider as it is.

    Example:
        >>> ResourceSettings(kind="http", base_url="https://api.example.com").effective_lifetime
        'singleton'
    """

    model_config = ConfigDict(
        extra="allow", frozen=True, hide_input_in_errors=True, json_schema_extra=_nothing_required
    )

    kind: str = Field(description=f"One of {', '.join(KINDS)}, or the name of an entry point.")
    lifetime: Lifetime | None = Field(None, description="How long a lease lasts; the kind has a default.")
    pool: Annotated[PoolConfig, WrapValidator(_checked_pool)] | None = None
    class_path: str | None = Field(None, alias="class", description="The provider, as package.module:Class.")
    creation_attempts: int | None = Field(None, ge=1, description="How often a resource is asked for before it fails.")
    creation_delay: float = Field(1.0, ge=0, description="Seconds between two of these attempts.")
    health_check_interval: float | None = Field(
        None, gt=0, le=LONGEST_WAIT, description="Seconds between two probes in the background; unset: none."
    )
    url: SecretStr | None = None
    connection_string: SecretStr | None = None
    backend: str | None = None
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    base_url: str | None = None
    base_path: str | None = None
    headers: Annotated[dict[str, SecretStr], BeforeValidator(_object)] | None = None
    token: SecretStr | None = None
    api_key: SecretStr | None = None
    data: Annotated[dict[str, Any], BeforeValidator(_object)] | None = Field(  # Any: the user's own values
        None, description="What a resource of kind values holds."
    )

    @model_validator(mode="before")
    @classmethod
    def _hide_secrets(cls, given: Any) -> Any:  # Any: not validated yet
        """Hide what may be secret among the free settings."""
        if not isinstance(given, Mapping):
            return given
        free = {key: _hidden(key, value) for key, value in given.items() if key not in LISTED or key == "data"}
        return {**given, **free}

    @property
    def effective_lifetime(self) -> Lifetime:
        """The lifetime that was set, else the kind's own."""
        info = kind_of(self.kind)
        return self.lifetime or (info.default_lifetime if info else "per_state")

    def provider_class(self) -> Callable[..., Any]:  # Any: a provider takes and makes what it likes
        """Import what makes the resource: a provider class, or any callable that a lifetime takes.

        Raises:
            ImportError: it cannot be imported; settings that were read have been checked for that.
        """
        info = kind_of(self.kind)
        return imported(self.class_path or (info.path if info else None) or "")

    def arguments(self) -> dict[str, Any]:  # Any: what the provider takes
        """Return what the provider is called with: secrets unwrapped, texts converted as it annotates them."""
        arguments, problems = accepted_by(self.provider_class()).converted(self._for_provider())
        if problems:
            raise SettingsError(faults_from(problems, Sources(())), f"resource of kind {self.kind!r}")
        if self.pool is not None:
            arguments["pool"] = self.pool
        return arguments

    def _for_provider(self) -> dict[str, Any]:  # Any: not converted yet
        own = self.model_fields_set - {*DESCRIBING, "class_path"}
        shown = {key: _shown(getattr(self, key)) for key in sorted(own)}
        if self.kind == "async_database":
            for key in {"url", "connection_string"} & shown.keys():
                scheme, separator, rest = (shown[key] or "").partition("://")
                shown[key] = ASYNC_DRIVERS.get(scheme, scheme) + separator + rest
        return shown

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:  # Any: pydantic's signature
        """Show names only: any setting of a provider may be secret."""
        yield from (("kind", self.kind), ("lifetime", self.effective_lifetime))
        yield from ((None, key) for key in sorted(self.model_fields_set - {"kind", "lifetime"}))


LISTED = tuple(field.alias or name for name, field in ResourceSettings.model_fields.items())


def resource_from_mapping(
    name: str, mapping: Mapping[str, Any], *, where: str, imports: Prefixes = None
) -> ResourceSettings:
    """Read one resource from a configuration, or from ``resources=`` of a machine.

    Args:
        name: of the resource.
        mapping: its settings, in any of the spellings that a configuration may use.
        where: the place that errors name, such as ``flights.yaml:5:5``.
        imports: prefixes of the modules that its class may come from; None allows all.

    Raises:
        SettingsError: with all that is wrong with it.
    """
    settings, problems = examined(name, mapping, imports)
    if settings is None or problems:
        sources = Sources((from_mapping(where, mapping, "resources", name),))
        raise SettingsError(faults_from(problems, sources), f"resource {name!r}")
    return settings


def examined(
    name: str,
    given: Any,  # Any: not validated yet
    imports: Prefixes = None,
) -> tuple[ResourceSettings | None, list[Problem]]:
    """Read one resource; return it as far as it is right, and all that is wrong."""
    if isinstance(given, ResourceSettings):
        return given, []
    if not isinstance(given, Mapping):
        return None, [Problem("S003", ("resources", name), "must be a mapping of settings")]
    plain, written, problems = respelled(name, given)
    if "kind" not in plain and (kind := kind_of_nearest(plain)):
        plain["kind"], written["kind",] = kind, ()
    if not NAME.fullmatch(name):
        text = "the name of a resource has lower-case letters, digits and single underscores"
        problems.append(Problem("S003", (), text))
    accepted, wrong = _provider_of(plain, imports)
    wrong += _take_unknown_from_pool(plain)
    settings = None
    try:
        settings = ResourceSettings.model_validate({"kind": "", **plain})
        wrong += accepted.converted(settings._for_provider())[1] if accepted else []
    except ValidationError as error:
        wrong += problems_of(error)
    problems += [replace(problem, path=written.get(problem.path, problem.path)) for problem in wrong]
    return settings, [problem.below("resources", name) for problem in problems]


def kind_of_nearest(given: Iterable[str]) -> str | None:
    """Return the kind that a misspelt one among the *given* settings was meant to tell."""
    near = (nearest(key, TELLING) for key in given if key not in LISTED)
    return next((TELLING[key] for key in near if key), None)


def _provider_of(
    plain: Mapping[str, Any],  # Any: not validated yet
    imports: Prefixes,
) -> tuple[Accepted | None, list[Problem]]:
    """Find the provider of a described resource, and what it lacks or does not take."""
    kind, free = plain.get("kind"), {key: value for key, value in plain.items() if key not in DESCRIBING}
    if kind is None:
        unknown = [Problem("S002", (key,), known=LISTED) for key in free if key not in LISTED]
        return None, [Problem("S001", ("kind",), f"A kind is one of {listed(known_kinds())}"), *unknown]
    info = kind_of(kind) if isinstance(kind, str) else None
    if info is None:
        kinds = known_kinds()
        return None, [Problem("S008", ("kind",), nearest(str(kind), kinds) or "", tuple(kinds))]
    required = () if plain.get("class") else info.required  # a class of the user's says itself what it needs
    lacking = [group for group in required if all(plain.get(key) in (None, "") for key in group)]
    problems = [Problem("S001", (group[0],), known=group) for group in lacking]
    shared = plain.get("lifetime") == "singleton" and plain.get("resource") != "engine"
    if shared and info.name in ("database", "async_database"):
        text = "a session is not for all: a singleton database hands out its engine, with resource = 'engine'"
        problems.append(Problem("S003", ("lifetime",), text))
    path = plain.get("class") or info.path
    if path is None:
        return None, problems
    try:
        limited = bool(plain.get("class")) or info.name not in KINDS
        accepted = accepted_by(imported(path, imports if limited else None))
    except Exception as error:  # a module of the user's is run here: anything can happen
        return None, [*problems, _not_imported(error, "class" if plain.get("class") else "kind")]
    grouped = {key for group in required for key in group}
    found = [p for p in accepted.problems(free) if p.code != "S001" or p.path[0] not in grouped]
    of_kind = f"a resource of kind {info.name!r}"
    found = [replace(p, text=of_kind, known=(*p.known, *DESCRIBING)) if p.code == "S002" else p for p in found]
    return accepted, problems + [Problem("S007", p.path, LATER[p.path[0]]) if p.path[0] in LATER else p for p in found]


def _not_imported(error: Exception, setting: str) -> Problem:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("wirestate."):
        return Problem("S007", (setting,), "this release has no provider of that kind")
    if isinstance(error, ImportRefusedError):
        return Problem("M032", (setting,), str(error))
    text = text_of(error) if isinstance(error, ImportError) else f"importing it raised {type(error).__name__}"
    return Problem("S005", (setting,), text)


def _take_unknown_from_pool(plain: dict[str, Any]) -> list[Problem]:  # Any: not validated yet
    """Report the fields that a pool does not have, and leave them out, so that the others are checked too."""
    pool = parsed(plain.get("pool"), PoolConfig)
    if not isinstance(pool, Mapping):
        return []
    plain["pool"] = {key: value for key, value in pool.items() if key in POOL_FIELDS}
    return [Problem("S002", ("pool", key), "a pool", POOL_FIELDS) for key in pool if key not in POOL_FIELDS]


def _hidden(key: str, value: Any) -> Any:
    """Wrap texts whose name says that they may be secret, at any depth."""
    if isinstance(value, Mapping):
        return {inner: _hidden(str(inner), below) for inner, below in value.items()}
    return SecretStr(value) if isinstance(value, str) and SECRET.search(key) else value


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shown(below) for key, below in value.items()}
    return value.get_secret_value() if isinstance(value, SecretStr) else value
