"""One class per mistake; every message says who, what and how much, then what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wirestate.redaction import quoted


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that *name* was probably meant to be."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def listed(names: Iterable[str]) -> str:
    """Return the names quoted and joined, or ``none``."""
    return ", ".join(repr(name) for name in names) or "none"


def printable(text: str) -> str:
    """Return *text* with control characters and line breaks written out: what is not ours steers no terminal or log."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class WirestateError(Exception):
    """Base of every error that this library raises; it can be copied and sent to another process as it is."""

    def __reduce__(self) -> tuple[object, ...]:
        # By its text and its fields: a constructor builds its text from other things, and would do it twice.
        return _blank, (type(self), self.args), self.__dict__


def _blank(kind: type[WirestateError], args: tuple[object, ...]) -> WirestateError:
    """Return an error that has its text only; notes and fields follow."""
    made = kind.__new__(kind, *args)  # a group takes its errors here
    made.args = args  # which OSError leaves empty here
    return made


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with what is being built.

    ``code`` is a letter and three digits: R resources, S settings, I injection, D drivers,
    M machine. Each code has an anchor in ``docs/errors.md``.
    """

    code: str
    kind: str
    message: str
    help: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None
    column: int | None = None

    @property
    def place(self) -> str:
        """``file:line:column`` as far as it is known, else an empty text."""
        if self.file is None and self.line is None:
            return ""
        return ":".join(str(part) for part in (self.file or "<config>", self.line, self.column) if part is not None)

    def __str__(self) -> str:
        place = f" ({self.place})" if self.place and self.place not in self.message else ""
        lines = [f"{self.kind} [{self.code}]: {self.message}{place}", *(f"  {line}" for line in self.help)]
        return "\n".join(map(printable, lines))


class BuildError(WirestateError):
    """Something that was to be built is wrong; all its faults come in one report."""

    def __init__(self, faults: Sequence[Fault], what: str = "machine") -> None:
        self.faults = tuple(faults)
        self.what = what
        count = f"{len(self.faults)} fault" + ("s" if len(self.faults) != 1 else "")
        super().__init__("\n".join([f"{printable(what)}: {count}, nothing was run", *map(str, self.faults)]))


class SettingsError(BuildError):
    """The settings that were found do not describe what they should."""


# --- resources -------------------------------------------------------------------------


class ResourceError(WirestateError):
    """A resource could not be had, used or given back."""

    def __init__(self, message: str, resource_name: str | None = None, operation: str | None = None) -> None:
        super().__init__(message)
        self.resource_name = resource_name
        self.operation = operation


class UnknownResourceError(ResourceError):
    """No resource of that name is registered."""

    def __init__(self, name: str, known: Iterable[str], operation: str = "acquire") -> None:
        known = sorted(known)
        near = nearest(name, known)
        hint = f"; did you mean {near!r}?" if near else ";"
        super().__init__(f"no resource is called {name!r}{hint} registered: {listed(known)}", name, operation)


class DuplicateResourceError(ResourceError):
    """The name is taken already."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"a resource called {name!r} is registered already; unregister it first or choose another name",
            name,
            "register",
        )


class ResourceUnavailableError(ResourceError):
    """A provider failed to hand out its resource; the provider's error is the cause."""

    def __init__(self, name: str, cause: BaseException, operation: str = "acquire") -> None:
        super().__init__(f"resource {name!r} could not be had: {quoted(cause)}", name, operation)


class ResourceTimeoutError(ResourceError, TimeoutError):
    """A resource was not ready in time."""


class PoolTimeoutError(ResourceTimeoutError):
    """No resource of a pool came free in time."""


class TooManyWaitingError(ResourceError):
    """The queue in front of a resource is as long as it may get."""

    def __init__(self, name: str, waiting: int) -> None:
        super().__init__(
            f"{name!r}: {waiting} are waiting already and max_waiting is {waiting}; try again later or raise it",
            name,
            "acquire",
        )


class ResourceClosedError(ResourceError):
    """The pool, manager or container behind a resource is closed."""


class CircuitOpenError(ResourceError):
    """A resource failed too often lately; nobody tries it before ``retry_after`` seconds have passed."""

    def __init__(self, name: str, retry_after: float, failures: int) -> None:
        super().__init__(
            f"{name!r}: its circuit breaker is open after {failures} failures in a row; "
            f"the next try is allowed in {retry_after:.1f} s",
            name,
            "acquire",
        )
        self.retry_after = retry_after


class LeaseReleasedError(ResourceError):
    """A lease was used or released after it had been released."""

    def __init__(self, name: str) -> None:
        super().__init__(f"this lease of {name!r} was released already; acquire a new one", name, "release")


class NotHeldError(ResourceError):
    """An owner asked for a resource that it does not hold."""

    def __init__(self, name: str, owner_id: str) -> None:
        super().__init__(f"owner {owner_id!r} does not hold {name!r}; acquire it first", name, "release")


class NoActiveScopeError(ResourceError):
    """A scoped resource was asked for where no scope of its lifetime is open."""

    def __init__(self, name: str, lifetime: str) -> None:
        way = (
            'with manager.scope() as scope, scope.state("name"): …'
            if lifetime == "per state"
            else "with manager.scope(): …"
        )
        super().__init__(
            f"resource {name!r} lives {lifetime} and no such scope is open here; open one: {way}", name, "resolve"
        )


class ScopeClosedError(ResourceError):
    """A scope, or something that belongs to it, was used after its end."""

    def __init__(self, scope: str, name: str | None = None) -> None:
        what = f"resource {name!r} of " if name else ""
        super().__init__(f"{what}scope {scope!r} is closed; what belonged to it is released", name, "resolve")


class OwnerInUseError(ResourceError):
    """An owner id is open already; two runs never share an owner."""

    def __init__(self, owner_id: str) -> None:
        super().__init__(
            f"owner {owner_id!r} has an open scope already; end it first or choose another owner_id", None, "scope"
        )
        self.owner_id = owner_id


class LifetimeMismatchError(ResourceError):
    """Something that lives longer depends on something that lives shorter."""


class AsyncResourceError(ResourceError):
    """An asynchronous resource was asked for where nothing can be awaited."""


class BlockingWaitError(WirestateError):
    """A blocking call would stop the event loop that runs in this thread."""


class AsyncInSyncRunError(WirestateError):
    """A synchronous run was asked to run something asynchronous."""


class LeaseOwnsTransactionError(ResourceError):
    """A function ended the transaction that belongs to its lease."""

    def __init__(self, name: str, verb: str) -> None:
        super().__init__(
            f"{verb}() on the session of {name!r}: its lease ends the transaction when the scope ends; "
            f"leave {verb}() out, raise to roll back, or use begin_nested() for a part of the work",
            name,
            verb,
        )


class PathOutsideBaseError(ResourceError):
    """A path would leave the base folder of its file system."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(f"path {path!r} leaves the base folder of {name!r}; use a path below it", name, "open")


class UnsafeRequestError(ResourceError):
    """A request would leave what its HTTP service allows."""


class SharedClientError(ResourceError):
    """Something would be set on an HTTP client that all its users share."""

    def __init__(self, name: str, part: str) -> None:
        super().__init__(
            f"service {name!r} is a singleton: {part!r} would be set for all who share its client; "
            "declare it per owner, or give that with each request",
            name,
            "use",
        )


class LLMError(ResourceError):
    """A language model did not answer as it should.

    ``status`` is the HTTP status of its service, ``retry_after`` the seconds that it asks to wait; None if unknown.
    """

    def __init__(self, name: str, what: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(f"llm {name!r}: {what}", name, "complete")
        self.status = status
        self.retry_after = retry_after


class LLMRefusedError(LLMError):
    """The service refuses the request as it is: credentials, model, quota, or what was asked."""


class LLMRateLimitError(LLMError):
    """The service takes no more requests for a while."""


class LLMUnavailableError(LLMError):
    """The service cannot be reached, or fails."""


class LLMTimeoutError(LLMError, ResourceTimeoutError):
    """The answer, or the next piece of it, did not come in time."""


class LLMAnswerError(LLMError):
    """The answer cannot be understood, or broke off."""


class ScriptOverError(LLMError):
    """A scripted model was asked more often than its script has answers."""


class MissingDriverError(ResourceError):
    """A library that a resource needs is not installed."""

    def __init__(self, what: str, library: str, extra: str, name: str | None = None) -> None:
        super().__init__(f"{what} needs {library}: pip install 'wirestate[{extra}]'", name, "build")
        self.extra = extra
        self.library = library


class InvalidSettingError(ResourceError):
    """A setting of a resource is wrong, or cannot be honoured by it.

    Args:
        setting: the path to it below the resource, such as ``("pool", "max_size")``, where that is known.
        pool_faults: what is wrong with each field of a pool, where it is about a pool.
    """

    def __init__(
        self,
        message: str,
        resource_name: str | None = None,
        operation: str | None = None,
        *,
        setting: tuple[str, ...] = (),
        pool_faults: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, resource_name, operation)
        self.setting = setting
        self.pool_faults = dict(pool_faults or {})


class LackingSettingError(InvalidSettingError):
    """A resource cannot work without a setting that was not given."""


class MissingSettingError(ResourceError):
    """An option of a configuration is needed, and has not been loaded."""

    def __init__(self, message: str, resource_name: str | None = None, operation: str | None = "build") -> None:
        super().__init__(message, resource_name, operation)


class NotMadeError(ResourceError):
    """The provider of a resource raised something when it was made."""


class UnknownSettingError(ResourceError):
    """A resource reads a setting that the settings do not have."""


class ReleaseFailedError(WirestateError, ExceptionGroup[Exception]):
    """One or more releases failed; everything else was released."""

    def derive(self, excs: Sequence[Exception]) -> ReleaseFailedError:  # type: ignore[override]  # of its own kind only
        return ReleaseFailedError(self.message, excs)


# --- the machine -----------------------------------------------------------------------


class MachineClosedError(WirestateError):
    """A machine was asked to run after it, or its container, had been closed.

    ``summary`` of one that a stream raises says what had been done.
    """

    summary: object = None


class NotAvailableError(WirestateError):
    """A part of the design that this version does not hold yet was asked for."""


class RunError(WirestateError):
    """Something went wrong within one run."""


class NotAMappingError(RunError):
    """A record is no mapping."""

    def __init__(self, kind: type) -> None:
        super().__init__(f"a record must be a mapping, not {kind.__name__}")


class UnknownStateError(RunError):
    """A state of that name does not exist."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = list(known)
        near = nearest(name, known)
        hint = f"; did you mean {near!r}?" if near else ";"
        super().__init__(f"no state is called {name!r}{hint} states: {listed(known)}")


class DeadEndError(RunError):
    """No arc of a state could be taken."""


class StepLimitExceededError(RunError):
    """A run took as many arcs as it may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the run took {limit} arcs, as many as max_transitions allows; does it loop without an exit?")


class DepthLimitExceededError(RunError):
    """Sub-networks were entered deeper than ``max_depth``."""


class RunTimeoutError(RunError, TimeoutError):
    """The deadline of a run passed."""


class StateTimeoutError(RunError, TimeoutError):
    """One attempt at a state took longer than its timeout."""


class FunctionResultError(RunError):
    """A function returned something that its role does not allow."""


class FunctionFailedError(RunError):
    """A function returned an ExecutionResult that says it failed."""


class MissingFieldError(RunError):
    """An expression named a field that the record does not have."""


class FailureEndError(RunError):
    """A run ended in a state whose outcome is ``failure``."""


class RecordInUseError(RunError):
    """One record object was given to two runs at once in mode ``reference`` or ``direct``."""


class NotInjectedError(RunError):
    """A function was called with a marker where its resource should be."""


class Reject(RunError):  # noqa: N818  # a person raises it to say a word, not to report an error
    """Raise it from any function to refuse the record.

    Args:
        reason: what is wrong, for a person.
        field: the field that is wrong, if it is one.
    """

    def __init__(self, reason: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.reason = reason
        self.field = field


class RecordRejectedError(RunError):
    """Validators refused a record; ``reasons`` holds all they said."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


class SourceError(WirestateError):
    """A source failed while records were read; ``summary`` says what had been done."""

    def __init__(self, message: str, summary: object = None) -> None:
        super().__init__(message)
        self.summary = summary


class SinkError(WirestateError):
    """A sink, or the place for rejects, cannot be written; ``summary`` says what had been done."""

    def __init__(self, message: str, summary: object = None) -> None:
        super().__init__(message)
        self.summary = summary
