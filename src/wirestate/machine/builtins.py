"""Functions that every machine may name; their parameters come from ``params``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal  # Any: a record holds whatever its source holds

Record = Mapping[str, Any]
Verdict = tuple[bool, str]
TypeName = Literal["text", "number", "integer", "boolean", "list", "mapping"]
Conversion = Literal["text", "integer", "number", "boolean"]
PASSED: Verdict = (True, "")

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "text": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "list": list,
    "mapping": Mapping,
}
_CONVERSIONS: Mapping[str, Callable[[Any], Any]] = {"text": str, "integer": int, "number": float}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

# --- validators and conditions -----------------------------------------------------------


def required(record: Record, *, fields: Sequence[str]) -> Verdict:
    """Refuse a record in which one of *fields* is missing, None or an empty text."""
    missing = [name for name in fields if record.get(name) in (None, "")]
    return (False, f"missing: {', '.join(missing)}") if missing else PASSED


def in_range(record: Record, *, field: str, minimum: float | None = None, maximum: float | None = None) -> Verdict:
    """Refuse a value of *field* below *minimum* or above *maximum*."""
    value = record[field]
    if minimum is not None and value < minimum:
        return False, f"{field} is below {minimum}"
    if maximum is not None and value > maximum:
        return False, f"{field} is above {maximum}"
    return PASSED


def one_of(record: Record, *, field: str, values: Sequence[Any]) -> Verdict:
    """Refuse a value of *field* that is none of *values*."""
    return PASSED if record[field] in values else (False, f"{field} is none of {', '.join(map(repr, values))}")


def matches(record: Record, *, field: str, pattern: str) -> Verdict:
    """Refuse a text in *field* that the whole regular expression does not match."""
    return PASSED if re.fullmatch(pattern, str(record[field])) else (False, f"{field} does not match {pattern!r}")


def has_type(record: Record, *, field: str, type: TypeName) -> Verdict:
    """Refuse a value of *field* that is no ``text number integer boolean list`` or ``mapping``."""
    value = record[field]
    # A boolean is an integer to Python and to nobody else.
    fits = isinstance(value, _TYPES[type]) and (type == "boolean" or not isinstance(value, bool))
    return PASSED if fits else (False, f"{field} is no {type}")


def has_length(record: Record, *, field: str, minimum: int = 0, maximum: int | None = None) -> Verdict:
    """Refuse a text or list in *field* that is too short or too long."""
    length = len(record[field])
    if length < minimum or (maximum is not None and length > maximum):
        return False, f"{field} has length {length}"
    return PASSED


# --- transforms --------------------------------------------------------------------------


def keep(record: Record, *, fields: Sequence[str]) -> dict[str, Any]:
    """Keep only *fields*."""
    return {name: record[name] for name in fields if name in record}


def drop(record: Record, *, fields: Sequence[str]) -> dict[str, Any]:
    """Leave *fields* out."""
    return {name: value for name, value in record.items() if name not in fields}


def rename(record: Record, *, fields: Mapping[str, str]) -> dict[str, Any]:
    """Give fields new names: ``{old: new}``."""
    return {fields.get(name, name): value for name, value in record.items()}


def set_fields(record: Record, *, values: Mapping[str, Any]) -> dict[str, Any]:
    """Set fields to fixed values."""
    return {**record, **values}


def defaults(record: Record, *, values: Mapping[str, Any]) -> dict[str, Any]:
    """Set the fields that are missing or None."""
    return {**record, **{name: value for name, value in values.items() if record.get(name) is None}}


def replace(record: Record, *, field: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace a text in *field* by what *values* holds for it; others stay."""
    return {**record, field: values.get(record[field], record[field])}


def strip(record: Record, *, fields: Sequence[str] | None = None) -> dict[str, Any]:
    """Take white space from both ends of the texts in *fields*, or of all texts."""
    return _on_texts(record, fields, str.strip)


def lower(record: Record, *, fields: Sequence[str]) -> dict[str, Any]:
    """Turn the texts in *fields* to lower case."""
    return _on_texts(record, fields, str.lower)


def upper(record: Record, *, fields: Sequence[str]) -> dict[str, Any]:
    """Turn the texts in *fields* to upper case."""
    return _on_texts(record, fields, str.upper)


def convert(record: Record, *, types: Mapping[str, Conversion]) -> dict[str, Any]:
    """Convert fields: ``{field: text | integer | number | boolean}``; an empty text becomes None."""
    return {**record, **{name: _converted(name, record[name], kind) for name, kind in types.items()}}


def _on_texts(record: Record, fields: Sequence[str] | None, change: Callable[[str], str]) -> dict[str, Any]:
    return {
        name: change(value) if isinstance(value, str) and (fields is None or name in fields) else value
        for name, value in record.items()
    }


def _converted(name: str, value: Any, kind: str) -> Any:
    if value is None or value == "":
        return None
    try:
        return _BOOLEANS[str(value).strip().lower()] if kind == "boolean" else _CONVERSIONS[kind](value)
    except (ValueError, TypeError, KeyError):
        if kind not in {"boolean", *_CONVERSIONS}:
            raise ValueError(f"{name}: {kind!r} is no type; use text, integer, number or boolean") from None
        raise ValueError(f"{name} is no {kind}") from None


BUILTINS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(required, in_range, one_of, matches, has_type, has_length),
        *(keep, drop, rename, set_fields, defaults, replace, strip, lower, upper, convert),
    )
}
