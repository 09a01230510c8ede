"""Ctrl-C and SIGTERM while records run: the first one lets them finish, the second interrupts."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self  # Any: a handler is a function, a number or None

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTE = "stopping: what is under way will finish; once more to interrupt it"


class Stopper:
    """The ``stop`` of a stream, set by the first signal; only the main thread may use it."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def is_set(self) -> bool:
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that this signal ended: 130 or 143."""
        return 128 + (self._signal or signal.SIGINT)

    def __enter__(self) -> Self:
        for number in SIGNALS:
            # A shell starts background jobs with Ctrl-C ignored, and they must go on ignoring it.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        # Not by print(): a handler may run in the middle of another write, which that would break.
        clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
        with suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"{clear}{NOTE}\n".encode())
