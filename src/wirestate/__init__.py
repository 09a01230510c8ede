"""State machines whose states get their resources by dependency injection."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wirestate.index import *  # noqa: F403  # the names are listed there
    from wirestate.index import __all__ as __all__
else:
    # pytest imports this package in every project of its environment, and loading all of it takes half a second.

    def __getattr__(name: str) -> object:
        """Import the names of :mod:`wirestate.index` at the first use of one of them."""
        if not name.startswith("_") or name == "__all__":
            _load()
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        _load()
        return sorted(globals())

    def _load() -> None:
        from importlib import import_module

        index = import_module("wirestate.index")
        globals().update({name: getattr(index, name) for name in index.__all__}, __all__=index.__all__)
