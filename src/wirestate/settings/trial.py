"""Which setting is to blame for what an adapter refuses; asked before anything is connected to."""

from __future__ import annotations

from wirestate.errors import Fault, InvalidSettingError, LackingSettingError, ResourceError
from wirestate.settings.kinds import KINDS
from wirestate.settings.model import WirestateSettings
from wirestate.settings.resource import ResourceSettings


def refusals(settings: WirestateSettings) -> list[Fault]:
    """Return what the adapters refuse, each with the setting that is to blame.

    Only our own adapters are tried: making one connects to nothing. What a class of the user's does when it is made
    is its own affair. What is lacking, a driver or a key, is told when a machine is built that uses the resource:
    until then a test may override it.
    """
    found = ((name, _refusal(name, resource)) for name, resource in settings.resources.items())
    return [
        Fault("S003", "InvalidSetting", f"{setting_to_blame(settings, name, error)}: {error}")
        for name, error in found
        if error is not None
    ]


def setting_to_blame(settings: WirestateSettings, name: str, error: ResourceError) -> str:
    """Return the setting of resource *name* that *error* is about, and where it was set."""
    known = error.setting if isinstance(error, InvalidSettingError) else ()
    return settings.set_by("resources", name, *(known or _telling(settings.resources[name])))


def _refusal(name: str, resource: ResourceSettings) -> InvalidSettingError | None:
    if resource.class_path is not None or resource.kind not in KINDS:
        return None
    try:
        resource.provider_class()(name=name, **resource.arguments())
    except LackingSettingError:
        return None
    except InvalidSettingError as error:
        return error
    except ResourceError:  # a missing driver
        return None
    return None


def _telling(resource: ResourceSettings) -> tuple[str, ...]:
    """Return the setting that says where the resource is: what an adapter refuses is mostly wrong there."""
    info = KINDS.get(resource.kind)
    groups = info.required if info is not None else ()
    given = (key for group in groups for key in group if key in resource.model_fields_set)
    return tuple(given)[:1]
