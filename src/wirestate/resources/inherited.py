"""What a forked child inherits is its parent's: kept untouched, never used, closed or finished here."""

from __future__ import annotations

import os
from typing import Protocol, TypeVar
from weakref import WeakSet

T = TypeVar("T")


class Forgetful(Protocol):
    """Something that knows what was made in this process."""

    def forget_parent(self) -> None:
        """Begin anew, in a forked child."""
        ...


_FORGETFUL: WeakSet[Forgetful] = WeakSet()  # a set and one hook: a hook for each could never be taken out again
_KEPT: list[object] = []  # a finalizer could say goodbye on the parent's socket, or end its generators


def forget_at_fork(one: Forgetful) -> None:
    """Let *one* forget its parent's things in every forked child."""
    _FORGETFUL.add(one)


def living(kind: type[T]) -> list[T]:
    """Return the objects of *kind* that forget at a fork and are still in use."""
    while True:
        try:
            return [one for one in _FORGETFUL if isinstance(one, kind)]
        except RuntimeError:  # another thread made one meanwhile
            continue


def keep(*things: object) -> None:
    """Keep what belongs to the parent from being collected in this child."""
    _KEPT.extend(things)


def _forget_all() -> None:
    for one in list(_FORGETFUL):
        one.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
