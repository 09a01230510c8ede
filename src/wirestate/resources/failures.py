"""What openings and releases raise: named, collected, attached to the error that stays the error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wirestate.errors import ReleaseFailedError, ResourceUnavailableError, WirestateError
from wirestate.redaction import quoted


def named(name: str, error: BaseException) -> BaseException:
    """Return the error that tells that the resource *name* could not be had."""
    return error if _tells(error) else ResourceUnavailableError(name, error)


def cause(error: BaseException) -> BaseException | None:
    """Return the cause of what :func:`named` returns."""
    return error.__cause__ if _tells(error) else error


def _tells(error: BaseException) -> bool:
    """Tell whether *error* is no matter of the provider, or names the resource already."""
    return isinstance(error, WirestateError) or not isinstance(error, Exception)


def outcome_of(error: BaseException | None, failures: Sequence[BaseException]) -> BaseException | None:
    """Return the outcome for the releases that follow: after one that raised, nothing may be committed."""
    return failures[0] if error is None and failures else error


def note(error: BaseException, text: str) -> None:
    """Add a note to *error*, a frozen dataclass too, which lets nobody set anything."""
    if not hasattr(error, "__notes__"):
        object.__setattr__(error, "__notes__", [])
    error.add_note(text)


def raise_failures(failures: Sequence[BaseException], error: BaseException | None, where: str) -> None:
    """Raise what releases raised, or attach it to the body's *error*, which stays the error."""
    if not failures:
        return
    if error is not None:
        attach(error, failures)
        return
    _raise_interrupt(failures, None)
    raise ReleaseFailedError(f"release failed in {where!r}", [f for f in failures if isinstance(f, Exception)])


@contextmanager
def attaching(error: BaseException | None) -> Iterator[None]:
    """Attach what a release raises inside to the body's *error*, which stays the error."""
    try:
        yield
    except Exception as failure:
        if error is None:
            raise
        raise_failures([failure], error, "")


def attach(error: BaseException, failures: Sequence[BaseException]) -> None:
    """Note on *error* what releases raised after it; ``error.release_errors`` holds it.

    A KeyboardInterrupt or a cancellation among *failures* is raised: a record's error must not hide it.
    """
    for failure in failures:
        note(error, f"and a release failed: {quoted(failure)}")
    object.__setattr__(error, "release_errors", (*getattr(error, "release_errors", ()), *failures))
    if isinstance(error, Exception):
        _raise_interrupt(failures, error)


def _raise_interrupt(failures: Sequence[BaseException], error: BaseException | None) -> None:
    for failure in failures:
        if not isinstance(failure, Exception):
            raise failure from error
