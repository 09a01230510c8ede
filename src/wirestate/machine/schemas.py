"""A state's schema as a function that says why a record is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wirestate.errors import MissingDriverError
from wirestate.machine.outcomes import reason_of


def compile_schema(schema: Mapping[str, Any] | type) -> Callable[[Any], str | None]:
    """Return a check for a JSON Schema, or for a pydantic model.

    It checks only: the record that goes on is the one that came.

    Raises:
        MissingDriverError: a JSON Schema needs the jsonschema library.
        ValueError: it is no valid schema.
    """
    return _model_check(schema) if isinstance(schema, type) else _json_check(schema)


def _model_check(model: Any) -> Callable[[Any], str | None]:
    def check(record: Any) -> str | None:
        try:
            model.model_validate(record)
        except ValueError as error:
            return reason_of(error)
        return None

    return check


def _json_check(schema: Mapping[str, Any]) -> Callable[[Any], str | None]:
    try:
        import jsonschema.validators  # type: ignore[import-untyped]  # at first use: `import wirestate` stays light
    except ImportError:
        raise MissingDriverError("a JSON Schema on a state", "jsonschema", "schema") from None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        raise ValueError(f"it is no valid JSON Schema: {error.message}") from None
    validator = kind(schema)

    def check(record: Any) -> str | None:
        found = sorted(validator.iter_errors(record), key=lambda error: [str(part) for part in error.path])
        # The validator's own message quotes the value; the rule that failed is enough, and never a secret.
        return "; ".join(_said(error) for error in found) or None

    return check


def _said(error: Any) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "record"
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{where}: {', '.join(missing)} missing"
    if error.validator == "additionalProperties":
        return f"{where}: has fields that the schema does not know"
    return f"{where}: breaks {error.validator} {error.validator_value!r}"
