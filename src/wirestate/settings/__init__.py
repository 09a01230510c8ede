"""Settings: what is read from arguments, environment, files and profiles, and what it describes."""

from wirestate.settings.kinds import KindInfo, kind_of, known_kinds
from wirestate.settings.model import WirestateSettings, schema_text
from wirestate.settings.resource import ResourceSettings, resource_from_mapping

__all__ = [
    "KindInfo",
    "ResourceSettings",
    "WirestateSettings",
    "kind_of",
    "known_kinds",
    "resource_from_mapping",
    "schema_text",
]
