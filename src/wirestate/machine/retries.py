"""Attempts at one visit, with the waits between them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from wirestate.machine.definition import RetryPolicy
from wirestate.waiting import World

T = TypeVar("T")


def _wait(policy: RetryPolicy, attempt: int) -> float:
    """Return the seconds to wait after *attempt*; tenacity names the arguments of its own differently over versions."""
    grown = policy.wait_initial * policy.wait_exp_base ** (attempt - 1)
    return min(policy.wait_max, grown + random.uniform(0, policy.wait_jitter))


class _StoppedError(Exception):
    """Carries a StopAsyncIteration past the loop of attempts, which would end at it."""

    def __init__(self, error: StopAsyncIteration) -> None:
        super().__init__(error)
        self.error = error


def as_raised(error: BaseException) -> BaseException:
    """Return what a function raised: coroutines let no StopIteration pass, and raise a RuntimeError in its place."""
    if isinstance(error, _StoppedError):
        return error.error
    cause = error.__cause__
    stopped = isinstance(cause, StopIteration) and str(error) == "coroutine raised StopIteration"
    return cause if stopped and cause is not None else error


async def attempts(
    policy: RetryPolicy,
    kinds: tuple[type[Exception], ...],
    attempt: Callable[[int], Awaitable[T]],
    *,
    world: World,
    deadline: float | None,
    may_retry: Callable[[BaseException], bool],
) -> T:
    """Try until it works, until *policy* is used up, or until the next wait would pass the deadline.

    Only errors of *kinds* for which *may_retry* is true are tried again; any other is raised at once.
    """
    import tenacity  # at first use: `import wirestate` stays light

    ends = [end for end in (deadline, None if policy.timeout is None else monotonic() + policy.timeout) if end]

    def stop(state: tenacity.RetryCallState) -> bool:
        wait = state.upcoming_sleep
        return state.attempt_number >= policy.attempts or any(monotonic() + wait >= end for end in ends)

    def wanted(error: BaseException) -> bool:
        return isinstance(error, kinds) and may_retry(error)

    retrying = tenacity.AsyncRetrying(
        stop=stop,
        wait=lambda state: _wait(policy, state.attempt_number),
        retry=tenacity.retry_if_exception(lambda error: wanted(as_raised(error))),
        sleep=world.sleep,
        reraise=True,
    )
    try:
        async for tried in retrying:
            with tried:
                try:
                    return await attempt(tried.retry_state.attempt_number)
                except StopAsyncIteration as error:
                    raise _StoppedError(error) from None
        raise AssertionError("the last error is raised when no attempt is left")
    except _StoppedError as carried:
        stopped = carried.error
    raise stopped  # out here: it keeps its own context
