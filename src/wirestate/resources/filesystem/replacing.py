"""How a file of a store is replaced as a whole: nobody sees half of the new one, and a failure keeps the old one."""

from __future__ import annotations

import contextlib
import math
import os
import posixpath
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

BLOCK = 8 * 2**20  # bytes that are held in memory, and that are sent or fetched at once
MOST_PARTS = 5000  # of one file; S3 takes twice as many

System: TypeAlias = Any  # Any: an AbstractFileSystem; fsspec has no types


@contextlib.contextmanager
def replacing_in_store(
    system: System,
    place: str,
    check: Callable[[], None],
    *,
    folders: bool,
    at_once: bool,
    block: int,
    temp_dir: Path | None,
) -> Iterator[IO[bytes]]:
    """Hold what is written, and send it if the block did not fail and *check* raises nothing.

    Args:
        folders: the store has folders, to be made before their files.
        at_once: send a file of any size in one piece, not in blocks.
        block: bytes of one piece, at least.
        temp_dir: where a large file waits.
    """
    with tempfile.SpooledTemporaryFile(BLOCK, dir=None if temp_dir is None else str(temp_dir)) as held:
        yield held
        check()
        size = held.seek(0, os.SEEK_END)
        held.seek(0)
        if folders:
            system.makedirs(posixpath.dirname(place), exist_ok=True)
        if at_once or size <= BLOCK:
            system.pipe_file(place, held.read())
        else:
            _send(system.open(place, "wb", block_size=max(block, math.ceil(size / MOST_PARTS))), held)


def _send(file: Any, held: IO[bytes]) -> None:  # Any: a file of fsspec
    try:
        shutil.copyfileobj(held, file, BLOCK)
        file.close()
    except BaseException:
        with contextlib.suppress(Exception):  # what failed stays the error
            file.closed = True  # a later close, as at its collection, would store the half that was sent
            file.discard()
        raise
