"""Decides once, by its signature, how a caller's function is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any  # Any: functions of any signature

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def takes_second(call: Callable[..., Any], name: str) -> bool:
    """True if *call* has a second positional parameter that has no default or is called *name*."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except ValueError:  # built-in functions may have no signature
        return False
    second = [parameter for parameter in parameters if parameter.kind in _POSITIONAL][1:2]
    return bool(second) and (second[0].default is inspect.Parameter.empty or second[0].name == name)


def is_async(call: Callable[..., Any]) -> bool:
    """True if calling *call* gives a coroutine."""
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
