"""What a function may give back in its role, and what that means."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wirestate.errors import FunctionFailedError, FunctionResultError, Reject
from wirestate.redaction import text_of, without_secrets


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """An outcome that a function may return instead of raising."""

    success: bool
    data: Any = None  # Any: the record, of the caller's own type
    error: str | None = None


def after_transform(name: str, result: Any, record: Any) -> Any:
    """Return the record after a transform that gave something else than None or a dict."""
    if result is None:
        return record
    if isinstance(result, ExecutionResult):
        if not result.success:
            raise FunctionFailedError(f"transform {name} failed: {result.error or 'it did not say why'}")
        return record if result.data is None else after_transform(name, result.data, record)
    if isinstance(result, Mapping):
        return result
    raise wrong_type("transform", name, result, "None (the record as it left it) or a mapping (the new record)")


def refusal(name: str, result: Any) -> str | None:
    """Return why a validator refuses, or None if it passes."""
    if result is None or result is True:
        return None
    if result is False:
        return f"{name} refused the record"
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], bool):
        return None if result[0] else str(result[1])
    if isinstance(result, ExecutionResult):
        return None if result.success else (result.error or f"{name} refused the record")
    raise wrong_type("validator", name, result, "None, True, False or (False, reason)")


def truth(name: str, result: Any) -> bool:
    """Return what a condition or end test decided."""
    if result is True or result is False:
        return result
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], bool):
        return result[0]
    if isinstance(result, ExecutionResult):
        return bool(result.success and result.data)
    if inspect.isawaitable(result):
        raise wrong_type("condition", name, result, "True or False")
    return bool(result)


def wrong_type(role: str, name: str, result: Any, allowed: str) -> FunctionResultError:
    """Make the error for a result that the role does not allow; a coroutine or generator is closed first."""
    advice = f"return {allowed}"
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()
    if inspect.iscoroutine(result):
        advice = "it is no coroutine function, so declare it with 'async def' and use aprocess()"
    elif inspect.isgenerator(result) or inspect.isasyncgen(result):
        advice = f"it would outlive its resources, so {advice}"
    return FunctionResultError(f"{role} {name} returned {type(result).__name__}; {advice}")


def reason_of(error: BaseException) -> str | None:
    """Return why *error* refuses the record when a validator raised it; None: it is a failure."""
    if isinstance(error, Reject):
        return str(error)
    if isinstance(error, ValueError | AssertionError):
        details: Any = getattr(error, "errors", None)  # Any: pydantic is not imported for it
        if details is not None and type(error).__module__.startswith("pydantic"):
            parts = ((".".join(map(str, part["loc"])) or "record", part["msg"]) for part in details())
            return "; ".join(f"{where}: {without_secrets(said)}" for where, said in parts)
        return text_of(error) or type(error).__name__
    return None
