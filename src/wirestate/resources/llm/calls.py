"""What a language model is asked and what it answers, in both worlds, whoever answers."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from wirestate.errors import BlockingWaitError, InvalidSettingError
from wirestate.redaction import half_made_too
from wirestate.resources.inherited import forget_at_fork
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive, running_loop

Message: TypeAlias = Mapping[str, Any]  # Any: what the protocol allows in a message
Prompt: TypeAlias = str | Sequence[Message]
Options: TypeAlias = Mapping[str, Any]  # Any: what the protocol allows in a request
OURS = frozenset({"messages", "stream"})  # options that the verbs say themselves


@dataclass(frozen=True, slots=True)
class Question:
    """One request: messages in the form of the chat protocol, and what is said beside them."""

    messages: tuple[Message, ...]
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float | None = None
    options: Options = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        return str(self.messages[-1].get("content", ""))


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer; a count of tokens is None where the service does not tell it.

    ``raw`` is the answer as the client library gave it, with tool calls and all else; None for streams.
    """

    text: str
    model: str = ""
    finish_reason: str | None = "stop"
    input_tokens: int | None = None
    output_tokens: int | None = None
    raw: Any = field(default=None, repr=False, compare=False)  # Any: an object of the client library

    def __str__(self) -> str:
        return self.text


Pieces: TypeAlias = AsyncGenerator[str | Completion, None]  # texts, then the completion that they make


class Answering(Protocol):
    """Who answers: a service, or a script."""

    name: str
    model: str

    async def answer(self, question: Question, world: World) -> Completion:
        """Answer at once."""
        ...

    def pieces(self, question: Question, world: World) -> Pieces:
        """Answer piece by piece."""
        ...


class LLM:
    """A language model, to be asked from threads and from tasks; made by its adapter.

    A prompt is a text, or messages in the form of the chat protocol. ``options`` go to the service as they are.
    Every call may raise an :class:`~wirestate.errors.LLMError`, or what its pool raises; a blocking one raises a
    :class:`~wirestate.errors.BlockingWaitError` where an event loop runs.

    Example:
        >>> from wirestate.testing import ScriptedLLM
        >>> llm = ScriptedLLM(["Paris.", "It is Rome."]).acquire()
        >>> llm.complete("The capital of France?").text
        'Paris.'
        >>> [piece for piece in llm.stream("And of Italy?")]
        ['It ', 'is ', 'Rome.']
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    @property
    def model(self) -> str:
        """The model that answers where a call names no other."""
        return self._answering.model

    def complete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Completion:
        """Ask, and return the whole answer.

        Args:
            prompt: a text, or messages.
            model: another than the adapter's; so for ``temperature`` and ``max_tokens``.
            temperature: how freely it answers.
            max_tokens: longest answer.
            timeout: seconds until the answer is there, waits and retries included (None: the adapter's).
            options: further fields of the request.
        """
        question = self._asked(
            prompt, options, model=model, temperature=temperature, max_tokens=max_tokens, timeout=timeout
        )
        _refuse_in_loop("complete")
        return drive(self._answering.answer(question, BLOCKING))

    async def acomplete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Completion:
        """Asynchronous twin of :meth:`complete`."""
        question = self._asked(
            prompt, options, model=model, temperature=temperature, max_tokens=max_tokens, timeout=timeout
        )
        return await self._answering.answer(question, SUSPENDING)

    def stream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> TextStream:
        """Ask when the first piece is taken; ``timeout`` is for the first piece, and for each that follows."""
        question = self._asked(
            prompt, options, model=model, temperature=temperature, max_tokens=max_tokens, timeout=timeout
        )
        return TextStream(self._answering.pieces(question, BLOCKING))

    def astream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncTextStream:
        """Asynchronous twin of :meth:`stream`."""
        question = self._asked(
            prompt, options, model=model, temperature=temperature, max_tokens=max_tokens, timeout=timeout
        )
        return AsyncTextStream(self._answering.pieces(question, SUSPENDING))

    def _asked(
        self, prompt: Prompt, options: Options, *, timeout: float | None, **said: Any
    ) -> Question:  # Any: fields
        name = self._answering.name
        messages: Sequence[Message] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        if not messages or not all(isinstance(message, Mapping) and "role" in message for message in messages):
            text = f"llm {name!r}: a prompt is a text, or a list of messages like {{'role': 'user', 'content': …}}"
            raise InvalidSettingError(text, name, "complete")
        if taken := OURS & options.keys():
            text = f"llm {name!r}: leave {min(taken)!r} out; stream() streams, and the prompt holds the messages"
            raise InvalidSettingError(text, name, "complete")
        if timeout is not None and not 0 < timeout < math.inf:
            raise InvalidSettingError(f"llm {name!r}: timeout is {timeout!r}; it must be more than 0", name, "complete")
        return Question(tuple(messages), timeout=timeout, options=options, **said)

    @half_made_too
    def __repr__(self) -> str:
        return f"<LLM {self._answering.name!r} {self.model}>"


def _refuse_in_loop(verb: str) -> None:
    if running_loop() is not None:
        text = f"{verb}() would stop the event loop that runs in this thread until the model has answered"
        raise BlockingWaitError(f"{text}; use a{verb}()")


class TextStream(Iterator[str]):
    """The pieces of one answer; ``completion`` is the whole of it, None until the last piece was taken.

    Take all pieces, or close it: it holds a place in the line of its service meanwhile.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.completion: Completion | None = None

    def __next__(self) -> str:
        _refuse_in_loop("stream")
        try:
            piece = drive(anext(self._pieces))
        except StopAsyncIteration:
            raise StopIteration from None
        if isinstance(piece, str):
            return piece
        self.completion = piece
        self.close()
        raise StopIteration

    def close(self) -> None:
        """End it here."""
        drive(self._pieces.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class AsyncTextStream(AsyncIterator[str]):
    """Asynchronous twin of :class:`TextStream`."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.completion: Completion | None = None

    async def __anext__(self) -> str:
        piece = await anext(self._pieces)
        if isinstance(piece, str):
            return piece
        self.completion = piece
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End it here."""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class Tally:
    """What one model was asked and has answered, counted by threads and tasks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = self._failed = self._retried = self._input = self._output = 0
        self._seconds = 0.0
        forget_at_fork(self)

    def forget_parent(self) -> None:
        """Take a lock of one's own in a forked child: the parent may have held the old one."""
        self._lock = threading.Lock()

    def retried(self) -> None:
        """Count one more try of a request."""
        with self._lock:
            self._retried += 1

    def ended(self, seconds: float, *, failed: bool) -> None:
        """Count a request that ended after *seconds*."""
        with self._lock:
            self._requests += 1
            self._failed += failed
            self._seconds += seconds

    def spent(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """Count tokens, as far as the service tells."""
        with self._lock:
            self._input += input_tokens or 0
            self._output += output_tokens or 0

    def counters(self) -> dict[str, int | float]:
        """Return all counts, by the names of OpenTelemetry where it has one."""
        with self._lock:
            return {
                "gen_ai.client.inference.usage.input_tokens": self._input,
                "gen_ai.client.inference.usage.output_tokens": self._output,
                "gen_ai.client.operation.duration.count": self._requests,
                "gen_ai.client.operation.duration.sum": self._seconds,
                "wirestate.resource.requests.failed": self._failed,
                "wirestate.resource.requests.retried": self._retried,
            }
