"""What functions require and catch, under the module path of the resource management guide."""

from wirestate.errors import ResourceError
from wirestate.resources.base import ResourceConfig

__all__ = ["ResourceConfig", "ResourceError"]
