"""S8: import in a fresh interpreter, in processor time; the unit is the two libraries that Wirestate is built on.

All public names are imported, so that a lazy ``__init__`` would gain nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.timing import Contender, Group

PEERS = ("dataknobs-fsm",)
PROGRAM = "import time; start = time.process_time(); {}; print(time.process_time() - start)"
UNIT = "import dependency_injector.wiring, pydantic_settings"


def groups() -> list[Group]:
    return [
        Group(
            "S8",
            Contender(UNIT, running(UNIT), "dependency-injector"),
            (
                Contender("wirestate", running("from wirestate import *"), "wirestate", 1.15),
                Contender("dataknobs-fsm", running("import dataknobs_fsm"), "dataknobs-fsm"),
            ),
            told=True,
        )
    ]


def running(statement: str) -> Callable[[int], object]:
    """Return the run that executes *statement* in *n* interpreters and returns the seconds that it took there."""
    command = [sys.executable, "-c", PROGRAM.format(statement)]

    def run(n: int) -> float:
        return sum(float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(n))

    return run
