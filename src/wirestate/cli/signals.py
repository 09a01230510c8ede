"""Ctrl-C, SIGTERM and SIGHUP while records run: the first one lets them finish, the second interrupts."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self  # Any: a handler is a function, a number or None

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, HANGUP) if number is not None)
NOTE = "stopping: what is under way will finish; once more to interrupt it"


class Stopper:
    """The ``stop`` of a stream, set by the first signal; only the main thread may use it."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._at_rest = False
        self._heard_again = False
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def is_set(self) -> bool:
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that this signal ended: 130, 143 or 129."""
        return 128 + (self._signal or signal.SIGINT)

    def __enter__(self) -> Self:
        for number in SIGNALS:
            # A shell starts background jobs with Ctrl-C ignored, nohup with SIGHUP, and they must go on ignoring it.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._signal is None:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            return
        # The report and the end of the process are still to come, and with the old handlers another signal would
        # kill it there. Its last moments have no handlers of Python any more: from then on all are ignored.
        self.rest()
        atexit.register(self._ignore_all)

    def rest(self) -> None:
        """Let a second signal do nothing from now on, since the records are done; a third one still interrupts."""
        self._at_rest = True

    def _ignore_all(self) -> None:
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            if number == HANGUP:  # the system and the shell both tell that a terminal is gone: nobody presses twice
                return
            if self._at_rest and not self._heard_again:
                self._heard_again = True
                return
            self._heard_again = True
            raise KeyboardInterrupt
        self._signal = number
        if number == HANGUP:
            self._leave_lost_terminals()
        # Not by print(): a handler may run in the middle of another write, which that would break.
        clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
        with suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), f"{clear}{NOTE}\n".encode())

    def _leave_lost_terminals(self) -> None:
        """Let what is written to a terminal that is gone go nowhere: writing there is an error, also for a bar."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
