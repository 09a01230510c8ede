"""File systems as a resource."""

from wirestate.resources.filesystem.adapter import FileSystemResourceAdapter
from wirestate.resources.filesystem.files import Files

__all__ = ["FileSystemResourceAdapter", "Files"]
