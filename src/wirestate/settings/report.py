"""What is wrong with settings, said with the names that the person wrote; never with a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from pydantic import ValidationError

from wirestate.errors import Fault, listed, nearest
from wirestate.resources.pool_config import POOL_FIELDS
from wirestate.settings.sources import Path, Sources

KINDS_OF_FAULT = {
    "S001": "MissingSetting",
    "S002": "UnmatchedSetting",
    "S003": "InvalidSetting",
    "S005": "ProviderNotFound",
    "S006": "UnreadableSource",
    "S007": "NotAvailable",
    "S008": "UnknownKind",
    "M032": "ImportRefused",
}
OWN_WORDS = ("value_error", "assertion_error")  # said by a validator, which may have quoted the value
CLOSE = 0.6
POOL_WORDS = {"size": "max_size", "timeout": "acquire_timeout"}  # what other pools call it


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong setting: *path* leads to it, *known* are the names that would be right there."""

    code: str
    path: Path
    text: str = ""
    known: tuple[str, ...] = ()

    def below(self, *path: str) -> Problem:
        """Return the same problem, seen from further up."""
        return replace(self, path=(*path, *self.path))


def problems_of(error: ValidationError, known: Sequence[str] = ()) -> list[Problem]:
    """Read pydantic's report; *known* are the names of the model's fields."""
    codes = {"missing": "S001", "extra_forbidden": "S002"}
    found = []
    for detail in error.errors(include_url=False):
        text = detail["msg"].removeprefix("Value error, ")
        given = detail["input"]
        if detail["type"] in OWN_WORDS and isinstance(given, str) and given:
            text = text.replace(given, "…")
        path = tuple(str(part) for part in detail["loc"])
        found.append(Problem(codes.get(detail["type"], "S003"), path, text, tuple(known) if len(path) == 1 else ()))
    return found


def faults_from(problems: Iterable[Problem], sources: Sources) -> list[Fault]:
    """Say each problem with the name, the place and the nearest right word.

    A misspelt name that explains a missing setting is told there, and not a second time.
    """
    ordered = sorted(problems, key=lambda problem: (problem.path, problem.code))
    explained: set[str] = set()
    faults = [Fault("S006", KINDS_OF_FAULT["S006"], trouble) for trouble in sources.troubles()]
    for problem in (p for p in ordered if p.code == "S001"):
        close = _close_name(sources.wanted(problem.path), sources.names())
        explained.update({close} if close else ())
        faults.append(_missing(problem, close, sources))
    for problem in (p for p in ordered if p.code != "S001"):
        if problem.code != "S002" or sources.written(problem.path) not in explained:
            faults.append(_wrong(problem, sources))
    return faults


def _missing(problem: Problem, close: str | None, sources: Sources) -> Fault:
    wanted = sources.wanted(problem.path)
    setting = problem.path[-1]
    article = "" if setting == "data" else "an " if setting[0] in "aeio" else "a "
    lack = f"needs {article}{setting}; {wanted} is {'empty' if sources.is_empty(problem.path) else 'not set'}."
    others = [sources.wanted((*problem.path[:-1], name)) for name in problem.known if name != setting]
    help_lines = [f"Looked in: {sources.looked_in()}." + (f"  Close name that is set: {close}" if close else "")]
    if problem.text:
        help_lines.append(problem.text)
    if others:
        help_lines.append(f"Instead of it you may set: {', '.join(others)}")
    return Fault("S001", KINDS_OF_FAULT["S001"], f"{_subject(problem.path)} {lack}", tuple(help_lines))


def _wrong(problem: Problem, sources: Sources) -> Fault:
    where = sources.set_by(problem.path)
    unmatched = f"matches no setting of {problem.text}" if problem.text else "matches no setting"
    text = {"S002": unmatched, "S008": "names no kind of resource"}.get(problem.code, problem.text)
    separator = " " if problem.code in ("S002", "S008") else ": "
    help_lines = []
    if problem.known:
        near = problem.text if problem.code == "S008" else _meant(problem, sources)
        asked = f"Did you mean {near!r}?  " if near else ""
        help_lines.append(f"{asked}Known: {listed(problem.known)}")
    if len(problem.path) == 1 and any(problem.path[0].startswith(f"{name}_") for name in problem.known):
        help_lines.append("The parts of a name are separated by two underscores")
    return Fault(problem.code, KINDS_OF_FAULT[problem.code], f"{where}{separator}{text}", tuple(help_lines))


def _meant(problem: Problem, sources: Sources) -> str | None:
    """Return the setting that an unmatched one was probably meant to be; one of a pool may have been put beside it."""
    *above, name = problem.path
    if above[-1:] == ["pool"]:
        return POOL_WORDS.get(name) or nearest(name, problem.known)
    field = POOL_WORDS.get(name.removeprefix("pool_")) if name.startswith("pool_") else name
    if "pool" in problem.known and field in POOL_FIELDS:
        return sources.wanted((*above, "pool", field))
    return nearest(name, problem.known)


def _subject(path: Path) -> str:
    return f"resource {path[1]!r}" if path[0] == "resources" and len(path) > 2 else "the settings"


def close_resource(name: str, sources: Sources) -> str | None:
    """Return what is set of the resource that was probably meant to be called *name*."""
    set_here = {"__".join(form.split("__")[:2]): written for form, written in sources.names().items()}
    return _close_name(sources.wanted(("resources", name)), set_here)


def _close_name(wanted: str, names: Mapping[str, str]) -> str | None:
    """Return the name that was probably meant to be *wanted*, compared part by part.

    *names* maps the form that a variable has to what was written.
    """
    parts = wanted.upper().split("__")

    def likeness(name: str) -> float:
        theirs = name.upper().split("__")
        if len(theirs) != len(parts):
            return float(name.upper().replace("__", "_") == wanted.replace("__", "_"))
        return min(SequenceMatcher(None, *pair).ratio() for pair in zip(parts, theirs, strict=True))

    best = max(((likeness(name), written) for name, written in names.items() if name != wanted), default=(0.0, ""))
    return best[1] if best[0] >= CLOSE else None
