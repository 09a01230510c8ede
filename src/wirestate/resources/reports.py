"""What is said about leases: by whom, where, for how long."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from types import CodeType
from typing import ParamSpec

from wirestate.redaction import quoted

P = ParamSpec("P")
Stack = list[tuple[CodeType, int]]
NO_STACK = "  (not kept: set leak_threshold, or show ResourceWarnings, to see where leases are taken)"
PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
OF_RESOURCE = "of resource "
logger = logging.getLogger("wirestate.resources")


def tell(listen: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a listener; what it raises is logged and goes no further."""
    try:
        listen(*args, **kwargs)
    except Exception as error:  # a listener only watches
        log_failure(logger, error, "a listener failed in %s", getattr(listen, "__qualname__", listen))


def log_failure(log: logging.Logger, error: BaseException, text: str, *args: object) -> None:
    """Log what others raised: its text without secrets, which ``exc_info`` would show, and where it was raised."""
    log.error(f"{text}: %s\n%s", *args, quoted(error), "".join(traceback.format_tb(error.__traceback__)))


def note_resource(error: BaseException, name: str, where: str) -> None:
    """Note on a library's *error* whose it is; *where* shows no credentials and no query.

    A run that fails by it shows the note.
    """
    if not resource_notes(error):  # what is raised again, or by a part of another, is known already
        error.add_note(f"{OF_RESOURCE}{name!r} at {where}")


def resource_notes(error: BaseException) -> list[str]:
    """Return what :func:`note_resource` has noted."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith(OF_RESOURCE)]


def call_stack(depth: int) -> Stack:
    """Return (code, instruction) pairs of the callers outside of this package, innermost first.

    No frame is kept, hence no local of the borrower; lines are looked up only when a leak is reported.
    """
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    found = [(frame.f_code, frame.f_lasti)]
    while len(found) < depth and (outer := frame.f_back) is not None:
        frame = outer
        found.append((frame.f_code, frame.f_lasti))
    return found


def stacks_wanted() -> bool:
    """Tell whether ResourceWarnings are shown, as in tests: then it is worth 1 us to know who borrowed."""
    for action, _, category, _, _ in warnings.filters:
        if issubclass(ResourceWarning, category):
            return action != "ignore"
    return True


def formatted(stack: Stack) -> str:
    """Return *stack* as text, one ``file:line in function`` a line."""
    return "\n".join(f"  {code.co_filename}:{_line(code, at)} in {code.co_qualname}" for code, at in stack)


def _line(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def owner_text(owner: object) -> str:
    """Return who *owner* is, in words."""
    return "an unnamed owner" if owner is None else str(owner)


def seconds_text(seconds: float) -> str:
    """Return *seconds* as a person reads them."""
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"
