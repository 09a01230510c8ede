"""What a provider accepts, read from its signature, so that no list of settings is kept twice."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, SecretStr, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from wirestate.settings.report import Problem, problems_of

NOT_SETTINGS = {"self", "name", "pool"}  # the container gives the name; a pool has a setting of its own
BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
UNKNOWN = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Accepted:
    """The settings that one provider takes."""

    types: Mapping[str, Any]  # Any: an annotation
    needed: frozenset[str]
    anything: bool  # it takes **kwargs

    def problems(self, given: Mapping[str, Any]) -> list[Problem]:
        """Say which *given* settings it does not take, and which are missing."""
        known = tuple(sorted(self.types))
        unknown = [] if self.anything else [Problem("S002", (key,), known=known) for key in given if key not in known]
        return unknown + [Problem("S001", (key,)) for key in sorted(self.needed - set(given))]

    def converted(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Turn the texts of variables into what the provider's annotations ask for."""
        arguments: dict[str, Any] = {}
        problems: list[Problem] = []
        for key, value in given.items():
            try:
                arguments[key] = _converted(value, self.types.get(key, UNKNOWN))
            except ValidationError as error:
                problems += [problem.below(key) for problem in problems_of(error)][:1]  # one per member of a union
        return arguments, problems


def accepted_by(provider: Callable[..., Any]) -> Accepted:
    """Read what *provider* takes; one without a signature takes anything."""
    try:
        parameters = inspect.signature(provider).parameters.values()
    except (TypeError, ValueError):
        return Accepted({}, frozenset(), anything=True)
    constructor = provider.__init__ if inspect.isclass(provider) else inspect.unwrap(provider)
    namespace = getattr(constructor, "__globals__", {})
    settings = [p for p in parameters if p.kind in BY_KEYWORD and p.name not in NOT_SETTINGS]
    return Accepted(
        {p.name: _evaluated(p.annotation, namespace) for p in settings},
        frozenset(p.name for p in settings if p.default is p.empty),
        anything=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _evaluated(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Resolve a postponed annotation; one that only type checkers can resolve is unknown."""
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return get_type_hints(holder, namespace, include_extras=True)["it"]
    except Exception:  # names behind TYPE_CHECKING: anything can be missing
        return UNKNOWN


def _converted(value: Any, annotation: Any) -> Any:
    if annotation is UNKNOWN:
        return value
    try:
        adapter = TypeAdapter[Any](
            annotation, config=ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)
        )
    except (PydanticUserError, NameError):  # pydantic knows no schema for it
        return value
    return adapter.validate_python(parsed(value, annotation))


def parsed(value: Any, annotation: Any) -> Any:
    """Parse the JSON of a variable whose setting takes no text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "[") or _takes_text(annotation):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value  # validation says what it should be


def _takes_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return any(map(_takes_text, get_args(annotation)))
    return annotation in (str, bytes, SecretStr, Any)
