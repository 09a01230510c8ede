"""The command ``wirestate``: it needs the extra ``cli``, and says so."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command with the arguments of this process, and exit."""
    if missing := [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]:
        sys.exit(f"wirestate: the command needs {' and '.join(missing)}: pip install 'wirestate[cli]'")
    try:
        from wirestate.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="wirestate")
