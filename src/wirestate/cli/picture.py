"""``wirestate graph``: a machine as text that Mermaid or Graphviz draws."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from wirestate.cli.loading import Named, built_from, close_all, load
from wirestate.errors import BuildError
from wirestate.fsm import functions_of
from wirestate.injection.container import manager_of
from wirestate.injection.making import making_only_ours
from wirestate.machine.build import Built
from wirestate.machine.config import load_machine
from wirestate.machine.graph import render
from wirestate.resources.recipes import LIFETIME_WORDS
from wirestate.resources.scopes import Entry


class PictureFormat(StrEnum):
    """What can draw the text."""

    mermaid = "mermaid"
    dot = "dot"


def drawn(named: Named, format: PictureFormat, *, resources: bool) -> str:
    """Return the picture of a machine; one that cannot be built is drawn without what its functions inject."""
    with making_only_ours():
        return _drawn(named, format, resources=resources)


def _drawn(named: Named, format: PictureFormat, *, resources: bool) -> str:
    loaded = load(named)
    container = loaded.container
    built: Built | None = None
    entries: Mapping[str, Entry]
    try:
        machine = load_machine(str(named.machine), given=functions_of(loaded.functions))
        try:
            built = built_from(machine, loaded)
        except BuildError:
            entries = manager_of(container).entries if container is not None else {}
        else:
            entries = built.entries
        words = {name: LIFETIME_WORDS[entry.level] for name, entry in entries.items()}
        used = None if built is None else built.used()
        return render(machine, format.value, resources=resources, lifetimes=words, injected=used)
    finally:
        close_all(container, built)
