"""Which setting is to blame for what an adapter refuses; asked before anything is connected to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from wirestate.errors import Fault, InvalidSettingError, LackingSettingError, ResourceError
from wirestate.settings.kinds import KINDS
from wirestate.settings.resource import ResourceSettings
from wirestate.settings.sources import Path, Sources

FIRST_WORD = re.compile(r"(?:\w[\w ]* '[^']*': )?(?:its )?(\w+)")  # behind "database 'orders': "


def refusals(resources: Mapping[str, ResourceSettings], sources: Sources) -> list[Fault]:
    """Return what the adapters refuse, each with the setting that is to blame.

    Only our own adapters are tried: making one connects to nothing. What a class of the user's does when it is made
    is its own affair. What is lacking, a driver or a key, is told when a machine is built that uses the resource:
    until then a test may override it.
    """
    return [
        Fault("S003", "InvalidSetting", f"{sources.set_by(('resources', name, *path))}: {text}")
        for name, resource in resources.items()
        if resource.class_path is None and resource.kind in KINDS
        for path, text in _refused(name, resource)
    ]


def setting_to_blame(resource: ResourceSettings, error: ResourceError) -> Path:
    """Return the setting of *resource* that *error* is about: where it says none, the one that its text begins with."""
    if isinstance(error, InvalidSettingError) and error.setting:
        return error.setting
    begins = FIRST_WORD.match(str(error))
    if begins is not None and begins[1] in resource.model_fields_set:
        return (begins[1],)
    return _telling(resource)


def _refused(name: str, resource: ResourceSettings) -> Iterator[tuple[Path, str]]:
    """Make the adapter again and again, each time without what it refused the last time."""
    arguments = resource.arguments()
    while True:
        try:
            resource.provider_class()(name=name, **arguments)
            return
        except LackingSettingError:
            return
        except InvalidSettingError as error:
            faults: dict[Path, str] = {("pool", field): text for field, text in error.pool_faults.items()}
            faults = faults or {setting_to_blame(resource, error): str(error)}
            yield from faults.items()
            blamed = next(iter(faults))
            if blamed == _telling(resource) or arguments.pop("".join(blamed[:1]), None) is None:
                return
        except ResourceError:  # a missing driver
            return


def _telling(resource: ResourceSettings) -> Path:
    """Return the setting that says where the resource is: what an adapter refuses is mostly wrong there."""
    info = KINDS.get(resource.kind)
    groups = info.required if info is not None else ()
    given = (key for group in groups for key in group if key in resource.model_fields_set)
    return tuple(given)[:1]
