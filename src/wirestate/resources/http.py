"""Being written."""

from __future__ import annotations

from wirestate.resources.base import BaseResourceProvider


class HTTPResourceAdapter(BaseResourceProvider):
    """Being written."""
