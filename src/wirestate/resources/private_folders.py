"""Folders that one object owns and that vanish with it."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path


class PrivateFolder:
    """A new temporary folder; removed by :meth:`remove`, or when its owner is collected or the program ends.

    Args:
        parent: where it is made; the system's place for temporary files by default.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="wirestate-", dir=parent))
        self.remove = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child runs the finalizers of its parent, too
        shutil.rmtree(folder, ignore_errors=True)
