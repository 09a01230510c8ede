"""How a service of language models is asked: in line, within a deadline, again where that helps, and counted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeAlias, cast

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential, wait_random

from wirestate.errors import (
    LLMAnswerError,
    LLMError,
    LLMRateLimitError,
    LLMTimeoutError,
    LLMUnavailableError,
    PoolTimeoutError,
)
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.gate import Gate
from wirestate.resources.llm.calls import Completion, Options, Pieces, Question, Tally
from wirestate.resources.llm.clients import NO_AUTHORIZATION, Clients
from wirestate.resources.llm.failures import failure_of
from wirestate.resources.places import Place
from wirestate.resources.reports import note_resource
from wirestate.waiting import World

log = logging.getLogger("wirestate.llm")

OUT_OF_ORDER = frozenset({None, 502, 503, 504})  # what a breaker counts; None: it was not reached
END = object()
Raw: TypeAlias = Any  # what the client library gives: objects that its service may have filled with anything


@dataclass(frozen=True, slots=True)
class Manners:
    """How one service is asked; times are float seconds.

    ``defaults`` are fields of every request; ``longest_pause`` is the longest ``Retry-After`` that is waited for.
    """

    timeout: float
    retry_count: int
    first_pause: float
    last_pause: float
    longest_pause: float
    defaults: Options = field(default_factory=dict, repr=False)  # headers among them may be secret


class Service:
    """Ask one service, blocking or not."""

    gate: Gate  # set once its pool is sized

    def __init__(
        self, name: str, model: str, clients: Clients, manners: Manners, breaker: CircuitBreaker | None
    ) -> None:
        self.name = name
        self.model = model
        self.tally = Tally()
        self._clients = clients
        self._manners = manners
        self._breaker = breaker
        self._backoff = wait_exponential(manners.first_pause, manners.last_pause) + wait_random(0, manners.first_pause)

    async def answer(self, question: Question, world: World) -> Completion:
        """Return the whole answer."""
        with self._counted():
            raw, _ = await self._opened(question, world, streaming=False)
            completion = completion_of(raw, self.name)
            self.tally.spent(completion.input_tokens, completion.output_tokens)
            return completion

    async def pieces(self, question: Question, world: World) -> Pieces:
        """Give the answer piece by piece, then whole; the place in line is left at the end of it."""
        parts = Parts(self.name, question.model or self.model)
        with self._counted():
            chunks, place = await self._opened(question, world, streaming=True)
            try:
                while (chunk := await self._next(chunks, question, world)) is not END:
                    if piece := parts.add(chunk):
                        yield piece
                yield parts.completion()
            finally:
                self.tally.spent(parts.input_tokens, parts.output_tokens)
                try:
                    await _close(chunks, world)
                finally:
                    self.gate.leave(cast(Place, place))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        began = monotonic()
        failed = False
        try:
            yield
        except Exception as error:
            failed = True
            if isinstance(error, LLMError):
                note_resource(error, self.name, self._clients.endpoint.base_url)
            raise
        finally:
            self.tally.ended(monotonic() - began, failed=failed)

    def _seconds(self, question: Question) -> float:
        return self._manners.timeout if question.timeout is None else question.timeout

    # --- one request, until there is an answer or no sense in another try ------------------------

    async def _opened(self, question: Question, world: World, *, streaming: bool) -> tuple[Raw, Place | None]:
        """Return what the client gives; with *streaming* also the place in line, which the caller has to leave."""
        deadline = monotonic() + self._seconds(question)
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._can_help),
            stop=self._stop(deadline),
            wait=self._pause,
            sleep=world.sleep,
            before_sleep=self._before_sleep,
            reraise=True,
        )
        return await retrying(self._try, question, deadline, world, streaming)

    async def _try(
        self, question: Question, deadline: float, world: World, streaming: bool
    ) -> tuple[Raw, Place | None]:
        place = await self._enter(question, deadline, world)
        kept = False
        try:
            if self._breaker is not None:
                self._breaker.before()
            raw, failure = await self._send(question, deadline, world, streaming)
            self._report(question, failure)
            if failure is not None:
                raise failure
            kept = streaming
            return raw, place
        finally:
            if not kept:  # also while it waits for another try
                self.gate.leave(place)

    async def _enter(self, question: Question, deadline: float, world: World) -> Place:
        owner = f"a question to {question.model or self.model}"
        place = self.gate.enter_now(owner)
        if place is not None:
            return place
        left = max(0.0, deadline - monotonic())
        try:
            return await self.gate.enter(owner, min(self.gate.longest_wait, left), world)
        except PoolTimeoutError as error:
            if left > self.gate.longest_wait:
                raise
            text = f"no answer within {self._seconds(question):.2f} s, all of which it waited in line"
            raise LLMTimeoutError(self.name, f"{text}; raise its timeout, or its pool's max_size") from error

    async def _send(
        self, question: Question, deadline: float, world: World, streaming: bool
    ) -> tuple[Raw, LLMError | None]:
        """Send once; the failure is returned, so that nobody raises it where the client's error is handled."""
        seconds = deadline - monotonic()
        if seconds <= 0:
            return None, LLMTimeoutError(self.name, f"no answer within {self._seconds(question):.2f} s")
        fields = self._fields(question, streaming)
        create: Callable[..., Raw] = self._clients.get(world).chat.completions.create
        try:
            if world.is_async:
                return await world.bounded(create(**fields, timeout=seconds), seconds), None
            return create(**fields, timeout=seconds), None
        except Exception as error:  # classified; what is no matter of the service goes on as it is
            failure = self._failure_of(question, error)
            if failure is None:
                raise
        return None, failure

    def _fields(self, question: Question, streaming: bool) -> dict[str, Raw]:
        own = {
            "model": question.model or self.model,
            "temperature": question.temperature,
            "max_tokens": question.max_tokens,
        }
        given = {**self._manners.defaults, **{key: value for key, value in own.items() if value is not None}}
        fields = {**given, **question.options, "messages": list(question.messages)}
        if streaming:
            fields["stream"] = True
            fields.setdefault("stream_options", {"include_usage": True})
        else:
            fields.pop("stream_options", None)
        if self._clients.endpoint.is_open:
            fields["extra_headers"] = {**NO_AUTHORIZATION, **(fields.get("extra_headers") or {})}
        return {key: value for key, value in fields.items() if value is not None}

    def _failure_of(self, question: Question, error: Exception) -> LLMError | None:
        own = (question.options.get("extra_headers") or {}).values()
        secrets = [*self._clients.endpoint.secrets, *(value for value in own if isinstance(value, str))]
        return failure_of(self.name, error, self._seconds(question), secrets)

    async def _next(self, chunks: Raw, question: Question, world: World) -> Raw:
        try:
            if world.is_async:
                return await world.bounded(cast("Awaitable[Raw]", anext(chunks, END)), self._seconds(question))
            return next(chunks, END)
        except Exception as error:  # see _send
            failure = self._failure_of(question, error)
            if failure is None:
                raise
        if isinstance(failure, LLMUnavailableError):
            failure = LLMAnswerError(self.name, "the answer broke off: the connection was lost")
        raise failure

    def _report(self, question: Question, failure: LLMError | None) -> None:
        if self._breaker is None:
            return
        if isinstance(failure, LLMTimeoutError) and self._seconds(question) < self._manners.timeout:
            return  # a caller in a hurry says nothing about the service
        lost = isinstance(failure, LLMUnavailableError | LLMTimeoutError) and failure.status in OUT_OF_ORDER
        self._breaker.failure(failure) if lost else self._breaker.success()

    def probe(self, seconds: float) -> LLMError | None:
        """Ask for the list of models, past line, breaker and retries; return what is wrong."""
        try:
            extra = NO_AUTHORIZATION if self._clients.endpoint.is_open else {}
            models = self._clients.blocking().models.list(timeout=seconds, extra_headers=extra)
        except Exception as error:  # whatever comes is an answer
            return failure_of(self.name, error, seconds, self._clients.endpoint.secrets) or LLMAnswerError(
                self.name, f"its probe raised {type(error).__name__}"
            )
        if not isinstance(getattr(models, "data", None), list):
            return LLMAnswerError(self.name, "its list of models cannot be understood; does its base_url end right?")
        return None

    # --- another try --------------------------------------------------------------------------

    def _can_help(self, error: BaseException) -> bool:
        if not isinstance(error, LLMRateLimitError | LLMUnavailableError):
            return False
        return error.retry_after is None or error.retry_after <= self._manners.longest_pause

    def _stop(self, deadline: float) -> Callable[[RetryCallState], bool]:
        def is_over(state: RetryCallState) -> bool:
            late = monotonic() + state.upcoming_sleep >= deadline
            return late or state.attempt_number > self._manners.retry_count

        return is_over

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, LLMError) and error.retry_after is not None:
            return error.retry_after
        return self._backoff(state)

    def _before_sleep(self, state: RetryCallState) -> None:
        self.tally.retried()
        log.debug("llm %r: try %d failed, the next in %.2f s", self.name, state.attempt_number, state.upcoming_sleep)


async def _close(chunks: Raw, world: World) -> None:
    if world.is_async:
        await chunks.close()
    else:
        chunks.close()


# --- reading: a service may have left out anything, or sent something else ------------------------


def completion_of(raw: Raw, name: str) -> Completion:
    """Return the first choice of an answer.

    Raises:
        LLMAnswerError: there is none.
    """
    message = getattr(_first_choice(raw), "message", None)
    if message is None:
        raise LLMAnswerError(name, "the answer holds no message; does its base_url end right?")
    content = getattr(message, "content", None)
    if not isinstance(content, str | None):
        raise LLMAnswerError(name, f"the answer is a {type(content).__name__} where a text should be")
    finish_reason = getattr(_first_choice(raw), "finish_reason", None)
    return Completion(content or "", str(getattr(raw, "model", "")), finish_reason, *_tokens(raw), raw)


class Parts:
    """The chunks of a stream, put together."""

    def __init__(self, name: str, model: str) -> None:
        self._name = name
        self._model = model
        self._texts: list[str] = []
        self._finish_reason: str | None = None
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None

    def add(self, chunk: Raw) -> str:
        """Take note of *chunk*, and return its text."""
        self._model = getattr(chunk, "model", None) or self._model
        if getattr(chunk, "usage", None) is not None:
            self.input_tokens, self.output_tokens = _tokens(chunk)
        choice = _first_choice(chunk)
        self._finish_reason = getattr(choice, "finish_reason", None) or self._finish_reason
        text = getattr(getattr(choice, "delta", None), "content", None)
        if not isinstance(text, str) or getattr(choice, "index", 0) not in (
            0,
            None,
        ):  # others come where the caller asked for several
            return ""
        self._texts.append(text)
        return text

    def completion(self) -> Completion:
        """Return the whole.

        Raises:
            LLMAnswerError: the service did not say that it is the whole.
        """
        if self._finish_reason is None:
            text = f"the answer broke off after {sum(map(len, self._texts))} letters: its end never came"
            raise LLMAnswerError(self._name, text)
        return Completion("".join(self._texts), self._model, self._finish_reason, self.input_tokens, self.output_tokens)


def _first_choice(raw: Raw) -> Raw:
    choices = getattr(raw, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


def _tokens(raw: Raw) -> tuple[int | None, int | None]:
    usage = getattr(raw, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    first, second = (count if isinstance(count, int) else None for count in counts)
    return first, second
