"""Plain values as a resource: every lease gets a copy of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from wirestate.errors import InvalidSettingError
from wirestate.resources.base import BaseResourceProvider, ResourceHealth
from wirestate.resources.native_pools import refuse_options


class ValuesProvider(BaseResourceProvider):
    """Hand out deep copies of *data*: what one owner changes, no other sees.

    Example:
        >>> settings = ValuesProvider("settings", {"timeout": 30})
        >>> mine = settings.acquire()
        >>> mine["timeout"] = 60
        >>> settings.acquire()
        {'timeout': 30}
    """

    def __init__(self, name: str = "values", data: Mapping[str, Any] | None = None) -> None:  # Any: the user's values
        super().__init__(name)
        if not isinstance(data, Mapping):
            text = f"resource {name!r}: data must be a mapping of values, not {type(data).__name__}"
            raise InvalidSettingError(text, name, "build")
        self._data = copy.deepcopy(dict(data))  # later changes of the caller's mapping stay the caller's

    def acquire(self, **options: Any) -> dict[str, Any]:  # Any: the user's values
        """Return a copy for one lease."""
        refuse_options(self.name, options)
        return copy.deepcopy(self._data)

    def health_check(self) -> ResourceHealth:
        """Values cannot fail."""
        return ResourceHealth.HEALTHY
