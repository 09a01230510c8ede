"""``wirestate graph``: a machine as text that Mermaid or Graphviz draws."""

from __future__ import annotations

from enum import StrEnum

from wirestate.cli.loading import Named, load
from wirestate.fsm import functions_of
from wirestate.injection.container import manager_of
from wirestate.machine.config import load_machine
from wirestate.machine.graph import render
from wirestate.resources.recipes import LIFETIME_WORDS


class PictureFormat(StrEnum):
    """What can draw the text."""

    mermaid = "mermaid"
    dot = "dot"


def drawn(named: Named, format: PictureFormat, *, resources: bool) -> str:
    """Return the picture of a machine that is read, and not built: its resources need not be there."""
    loaded = load(named)
    machine = load_machine(str(named.machine), given=functions_of(loaded.functions))
    entries = manager_of(loaded.container).entries if loaded.container is not None else {}
    words = {name: LIFETIME_WORDS[entry.level] for name, entry in entries.items()}
    return render(machine, format.value, resources=resources, lifetimes=words)
