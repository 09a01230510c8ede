"""Every fault and note that reading a configuration can give, and the report that collects them."""

from __future__ import annotations

from typing import NamedTuple

from wirestate.errors import BuildError, Fault
from wirestate.machine.definition import Place


class Code(NamedTuple):
    """A fault's number and name; each number has an anchor in ``docs/errors.md``."""

    number: str
    kind: str


UNREADABLE = Code("M001", "Unreadable")
DUPLICATE_KEY = Code("M002", "DuplicateKey")
UNKNOWN_KEY = Code("M003", "UnknownKey")
TWO_SPELLINGS = Code("M004", "TwoSpellings")
WRONG_VALUE = Code("M005", "WrongValue")
MISSING_KEY = Code("M006", "MissingKey")
DUPLICATE_NAME = Code("M007", "DuplicateName")
INCLUDE_REFUSED = Code("M008", "IncludeRefused")
UNKNOWN_NETWORK = Code("M009", "UnknownNetwork")
UNKNOWN_STATE = Code("M010", "UnknownState")
UNREACHABLE = Code("M011", "Unreachable")
NO_WAY_OUT = Code("M012", "NoWayOut")
DEAD_END = Code("M013", "DeadEndState")
END_GOES_ON = Code("M014", "EndGoesOn")
START_CONTRADICTED = Code("M015", "StartContradicted")
UNKNOWN_FUNCTION = Code("M030", "UnknownFunction")
BAD_EXPRESSION = Code("M031", "BadExpression")
IMPORT_REFUSED = Code("M032", "ImportRefused")
IMPORT_FAILED = Code("M033", "ImportFailed")
SHADOWED_FUNCTION = Code("M034", "ShadowedFunction")
WRONG_PARAMS = Code("M035", "WrongParams")
REFUSED = Code("M050", "Refused")
NOT_AVAILABLE = Code("M090", "NotAvailable")
NEVER_TAKEN = Code("M101", "NeverTaken")
UNUSED_RESOURCE = Code("M102", "UnusedResource")
INFERRED_START = Code("M103", "InferredStart")
UNUSED_NETWORK = Code("M104", "UnusedNetwork")
MISSING_SETTING = Code("S001", "MissingSetting")


class Report:
    """Collects faults and notes, so that all of them come at once."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.notes: list[Fault] = []

    def fault(self, code: Code, message: str, place: Place, *help_lines: str | None) -> None:
        """Add what stops the build; lines of help that are None are left out."""
        self.faults.append(fault_at(code, message, place, *help_lines))

    def note(self, code: Code, message: str, place: Place, *help_lines: str | None) -> None:
        """Add what ``wirestate check`` shows, and what ``--strict`` makes a fault."""
        self.notes.append(fault_at(code, message, place, *help_lines))

    def raise_faults(self, what: str) -> None:
        """Raise one BuildError with all faults in the order of their places, if there are any."""
        if self.faults:
            order = sorted(self.faults, key=lambda fault: (fault.file or "", fault.line or 0, fault.column or 0))
            raise BuildError(order, what)


def fault_at(code: Code, message: str, place: Place, *help_lines: str | None) -> Fault:
    """Return a fault with its place."""
    lines = tuple(line for line in help_lines if line)
    return Fault(code.number, code.kind, message, lines, place.file, place.line, place.column)


def did_you_mean(near: str | None) -> str | None:
    """Return the question about the nearest name, if there is one."""
    return f"Did you mean {near!r}?" if near else None
