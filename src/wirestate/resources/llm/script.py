"""A language model that answers by a script: the double for tests of one's own machines."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, TypeAlias, cast

from wirestate.errors import InvalidSettingError, ScriptOverError
from wirestate.resources.base import BaseResourceProvider, ResourceHealth, ResourceMetrics
from wirestate.resources.llm.calls import LLM, Completion, Pieces, Question, Tally
from wirestate.resources.native_pools import refuse_options
from wirestate.waiting import World

# What may stand in a script; a sequence gives the pieces of a stream, of which one may be an error.
Said: TypeAlias = str | Completion | BaseException | type[BaseException] | Sequence[str | BaseException]
Line: TypeAlias = Said | Callable[[Question], Said | Awaitable[Said]]
_WORD = re.compile(r"\S+\s*|\s+")
END: Any = object()  # Any: stands where a line would
SHOWN = 60  # letters of a prompt in an error


class ScriptedLLM(BaseResourceProvider):
    """Stand in for an :class:`~wirestate.LLMResourceAdapter` and answer line by line from a script.

    Streams come word by word. Tokens are counted as words. Any thread or task may ask; each takes the next line.

    Args:
        script: the answers in order: a text, a :class:`Completion`, an exception to raise, a list of the pieces
            of a stream (an exception in it breaks the stream off there), or a function of the
            :class:`Question` that gives one of these. ``itertools.repeat("yes")`` never ends.
        name: the name of the resource.
        model: the model that answers say they are from.

    Raises:
        InvalidSettingError: the script is one text; give a list.

    Example:
        >>> fake = ScriptedLLM(["positive", lambda question: question.prompt.upper()])
        >>> llm = fake.acquire()
        >>> llm.complete("I like it").text, llm.complete("loud").text
        ('positive', 'LOUD')
        >>> fake.prompts
        ['I like it', 'loud']
    """

    default_lifetime = "singleton"

    def __init__(self, script: Iterable[Line], *, name: str = "llm", model: str = "scripted") -> None:
        super().__init__(name)
        if isinstance(script, str):
            raise InvalidSettingError("a script is a list of answers; put the text into [ ]", name, "build")
        self.model = model
        self.asked: list[Question] = []
        self._lines: Iterator[Line] = iter(script)
        self._lock = threading.Lock()
        self._tally = Tally()
        self._llm = LLM(self)

    @property
    def prompts(self) -> list[str]:
        """The text of the last message of every question, in the order in which they were asked."""
        return [question.prompt for question in self.asked]

    def acquire(self, **options: Any) -> LLM:  # Any: none is taken
        """Return the model, the same for all."""
        refuse_options(self.name, options)
        return self._llm

    def health_check(self) -> ResourceHealth:
        """A script cannot fail."""
        return ResourceHealth.HEALTHY

    def counters(self) -> dict[str, int | float]:
        """Return what was asked and answered, by the names of the real adapter."""
        return self._tally.counters()

    def get_metrics(self) -> ResourceMetrics:
        """Return the provider's own counters."""
        self.metrics.counters = self.counters()
        return self.metrics

    async def answer(self, question: Question, world: World) -> Completion:
        """Give the next line of the script."""
        completion: Completion | None = None
        async for piece in self.pieces(question, world):
            completion = piece if isinstance(piece, Completion) else None
        assert completion is not None, "pieces end with the completion, or raise"
        return completion

    async def pieces(self, question: Question, world: World) -> Pieces:
        """Give the next line of the script word by word, then whole."""
        began = monotonic()
        failed = False
        try:
            said = await self._next(question)
            texts = []
            for text in _split(said):
                texts.append(text)
                yield text
            yield self._completion(said, "".join(texts), question)
        except Exception:
            failed = True
            raise
        finally:
            self._tally.ended(monotonic() - began, failed=failed)

    async def _next(self, question: Question) -> Said:
        with self._lock:
            self.asked.append(question)
            count = len(self.asked)
            line = next(self._lines, END)
        if line is END:
            prompt = " ".join(question.prompt.split())
            shown = prompt if len(prompt) <= SHOWN else prompt[:SHOWN] + "…"
            raise ScriptOverError(self.name, f"its script has {count - 1} answers, and question {count} is {shown!r}")
        if not callable(line) or inspect.isclass(line):
            return cast(Said, line)
        said: Any = line(question)  # Any: the user's, checked when it is split
        return cast(Said, await said if inspect.isawaitable(said) else said)

    def _completion(self, said: Said, text: str, question: Question) -> Completion:
        completion = said
        if not isinstance(completion, Completion):
            words = sum(len(str(message.get("content", "")).split()) for message in question.messages)
            completion = Completion(
                text, question.model or self.model, input_tokens=words, output_tokens=len(text.split())
            )
        self._tally.spent(completion.input_tokens, completion.output_tokens)
        return completion


def _split(said: Said) -> Iterator[str]:
    """Give the pieces of one line of a script, and raise what it says."""
    text = said.text if isinstance(said, Completion) else said
    parts: Any = _WORD.findall(text) if isinstance(text, str) else text  # Any: the user's, checked below
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, BaseException) or (inspect.isclass(part) and issubclass(part, BaseException)):
            raise part
        else:
            kinds = "a text, a Completion, an exception, a list or a function"
            raise InvalidSettingError(f"a line of a script is {kinds}, not {type(part).__name__}", None, "complete")
