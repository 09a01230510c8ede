"""Databases as a resource."""

from wirestate.resources.database.adapter import DatabaseResourceAdapter

__all__ = ["DatabaseResourceAdapter"]
