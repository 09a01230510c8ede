"""Values: every lease has a copy of its own."""

from __future__ import annotations

import pytest

from wirestate.errors import InvalidSettingError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.values import ValuesProvider


def test_what_one_owner_changes_no_other_sees() -> None:
    provider = ValuesProvider("settings", {"limits": {"rows": 1}})
    mine, yours = provider.acquire(), provider.acquire()
    mine["limits"]["rows"] = 2
    assert yours == provider.acquire() == {"limits": {"rows": 1}}


def test_later_changes_of_the_given_mapping_are_not_seen() -> None:
    given = {"limits": {"rows": 1}}
    provider = ValuesProvider("settings", given)
    given["limits"]["rows"] = 2
    assert provider.acquire() == {"limits": {"rows": 1}}


def test_values_are_never_shown_by_their_provider() -> None:
    provider = ValuesProvider("settings", {"api_key": "sesame"})
    assert repr(provider) == "<ValuesProvider 'settings' idle>"


def test_values_are_always_healthy() -> None:
    provider = ValuesProvider("settings", {})
    assert provider.health_check() is ResourceHealth.HEALTHY
    assert provider.validate(provider.acquire())


def test_only_a_mapping_is_taken() -> None:
    with pytest.raises(InvalidSettingError, match="data must be a mapping of values, not list"):
        ValuesProvider("settings", [1])  # type: ignore[arg-type]


def test_options_of_a_lease_are_refused() -> None:
    with pytest.raises(InvalidSettingError, match="'timeout'"):
        ValuesProvider("settings", {}).acquire(timeout=1)
