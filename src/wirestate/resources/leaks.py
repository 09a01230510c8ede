"""Leases that a test leaves open: which, whose, since when, and where they were acquired."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from weakref import WeakKeyDictionary

from wirestate.observing import Listener
from wirestate.resources import registry
from wirestate.resources.inherited import living
from wirestate.resources.manager import ResourceManager
from wirestate.resources.questions import Holder
from wirestate.resources.registry import Registry
from wirestate.resources.reports import Stack, call_stack, formatted, seconds_text

STACK_DEPTH = 16  # tools such as ExitStack and TaskGroup stand between an acquire and the code that asked for it
STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
TOOLS = (f"{os.sep}dependency_injector{os.sep}",)


class Borrowings(Listener):
    """Keep where each open lease of one manager was acquired."""

    def __init__(self) -> None:
        self._stacks: dict[tuple[str, str], Stack] = {}

    def on_open(self, resource: str, owner_id: str, seconds: float) -> None:
        self._stacks[resource, owner_id] = call_stack(STACK_DEPTH)

    def on_close(self, resource: str, owner_id: str, seconds: float, error: BaseException | None) -> None:
        self._stacks.pop((resource, owner_id), None)

    def place(self, holder: Holder) -> str:
        """Return ``file:line in function`` of the code that acquired; "" if it is not known."""
        stack = self._stacks.get((holder.resource, holder.owner_id), [])
        found = next((frame for frame in stack if not _is_tool(frame[0].co_filename)), None)
        return "" if found is None else formatted([found]).strip().removeprefix(os.getcwd() + os.sep)


_BORROWINGS: WeakKeyDictionary[Registry, Borrowings] = WeakKeyDictionary()


def watch(manager: Registry) -> None:
    """Keep from now on where leases of *manager* are acquired."""
    if manager not in _BORROWINGS:
        _BORROWINGS[manager] = borrowings = Borrowings()
        manager.watch(borrowings)


@contextmanager
def watching_all() -> Iterator[None]:
    """Watch every manager that there is, and those that are made in the block, which all live until its end."""
    managers: list[Registry] = []

    def keep(manager: Registry) -> None:
        managers.append(manager)
        watch(manager)

    for manager in living(ResourceManager):
        keep(manager)
    before, registry.on_new = registry.on_new, keep
    try:
        yield
    finally:
        registry.on_new = before


def told_leaks(managers: Mapping[ResourceManager, float]) -> str:
    """Return the leases that are open, singletons aside, as text; "" if there are none.

    Args:
        managers: each with the moment (:func:`time.monotonic`) before which its leases do not count.
    """
    now = monotonic()
    told = [
        f"{it.owner_id!r} holds {it.resource!r} since {seconds_text(it.seconds)}{_place(manager, it)}"
        for manager, since in managers.items()
        for it in manager.holders()
        if it.owner_id != manager.root.owner_id and now - it.seconds >= since
    ]
    return f"not given back: {'; '.join(told)}.  Leave the scopes, or release what was acquired" if told else ""


def _place(manager: ResourceManager, holder: Holder) -> str:
    borrowings = _BORROWINGS.get(manager)
    place = borrowings.place(holder) if borrowings is not None else ""
    return f", acquired at {place}" if place else ""


def _is_tool(file: str) -> bool:
    if file.startswith(STANDARD_LIBRARY):
        return "site-packages" not in file
    return file.startswith("<frozen") or any(tool in file for tool in TOOLS)
