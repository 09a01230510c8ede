"""HTTP services as a resource."""

from wirestate.resources.http.adapter import HTTPResourceAdapter

__all__ = ["HTTPResourceAdapter"]
