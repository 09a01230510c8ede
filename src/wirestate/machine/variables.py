"""``${VAR}`` in texts: from the environment, with defaults, never printed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from wirestate.errors import nearest
from wirestate.machine.definition import Place
from wirestate.machine.faults import MISSING_SETTING, WRONG_VALUE, Report, did_you_mean

_VARIABLE = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_]\w*)(?:(?P<how>:-|:\?|:)(?P<rest>[^}]*))?\})?")


def fill(text: str, place: Place, environ: Mapping[str, str], report: Report) -> str:
    """Return *text* with its variables filled in; what is missing goes to the report by name."""

    def value_of(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name, how, rest = match["name"], match["how"], match["rest"]
        if name is None:
            report.fault(WRONG_VALUE, "'${' begins no variable; write '$${' for a literal '${'", place)
            return ""
        found = environ.get(name)
        # As in a shell, the forms with a colon also take an empty value for a missing one.
        if found is not None and (found or how is None):
            return found
        if how in {":-", ":"}:
            return str(rest)
        why = rest if how == ":?" and rest else "it is not set and has no default"
        near = nearest(name, environ)
        report.fault(MISSING_SETTING, f"variable {name} is needed: {why}", place, did_you_mean(near))
        return ""

    return _VARIABLE.sub(value_of, text) if "${" in text else text
