"""Whether the adapters accept what the settings give them, found before anything is connected to."""

from __future__ import annotations

from wirestate.errors import Fault, InvalidSettingError, MissingDriverError
from wirestate.settings.kinds import KINDS
from wirestate.settings.model import WirestateSettings
from wirestate.settings.resource import ResourceSettings


def refusals(settings: WirestateSettings) -> list[Fault]:
    """Return what the adapters refuse, each with the setting that is to blame.

    Only our own adapters are tried: making one connects to nothing. What a class of the user's does when it is made
    is its own affair; a machine makes it when it is built.
    """
    found = ((name, resource, _refusal(name, resource)) for name, resource in settings.resources.items())
    return [_fault(settings, name, resource, error) for name, resource, error in found if error is not None]


def _refusal(name: str, resource: ResourceSettings) -> InvalidSettingError | MissingDriverError | None:
    if resource.class_path is not None or resource.kind not in KINDS:
        return None
    try:
        resource.provider_class()(name=name, **resource.arguments())
    except (InvalidSettingError, MissingDriverError) as error:
        return error
    return None


def _fault(
    settings: WirestateSettings, name: str, resource: ResourceSettings, error: InvalidSettingError | MissingDriverError
) -> Fault:
    blamed = getattr(error, "setting", None) or _telling(resource)
    where = settings.set_by("resources", name, *blamed)
    if isinstance(error, MissingDriverError):
        return Fault("D001", "MissingDriver", f"{where}: {error}")
    return Fault("S003", "InvalidSetting", f"{where}: {error}")


def _telling(resource: ResourceSettings) -> tuple[str, ...]:
    """Return the setting that says where the resource is: what an adapter refuses is mostly wrong there."""
    groups = KINDS[resource.kind].required
    given = (key for group in groups for key in group if key in resource.model_fields_set)
    return tuple(given)[:1]
