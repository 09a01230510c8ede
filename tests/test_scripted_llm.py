"""The scripted model: what it answers, what it remembers, and how it stands in for the real one."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from dependency_injector.wiring import Provide, inject

from tests.crews import Crew
from wirestate import LLMResourceAdapter, ResourceContainer, SimpleFSM, lifetimes
from wirestate.errors import BlockingWaitError, InvalidSettingError, LLMUnavailableError, ScriptOverError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.llm.adapter import LLM, Completion
from wirestate.testing import ScriptedLLM, assert_no_leaks, injected, override

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant


async def pieces_of(side: Side, llm: LLM, prompt: str) -> tuple[list[str], Completion | None]:
    if side.is_async:
        stream = llm.astream(prompt)
        return [piece async for piece in stream], stream.completion
    blocking = llm.stream(prompt)
    return list(blocking), blocking.completion


def test_answers_come_in_order_and_questions_are_remembered(side: Side) -> None:
    fake = ScriptedLLM(["one", Completion("two", "big", "length", 7, 8), lambda question: f"{question.max_tokens}"])

    async def main() -> None:
        llm = fake.acquire()
        assert await side.call(llm, "complete", "a b") == Completion("one", "scripted", "stop", 2, 1)
        assert await side.call(llm, "complete", [{"role": "user", "content": "c"}]) == Completion(
            "two", "big", "length", 7, 8
        )
        assert (await side.call(llm, "complete", "d", max_tokens=3, model="other")).text == "3"

    side.run(main())
    assert fake.prompts == ["a b", "c", "d"]
    assert (fake.asked[2].model, fake.asked[2].max_tokens) == ("other", 3)
    assert fake.counters()["gen_ai.client.inference.usage.input_tokens"] == 2 + 7 + 1
    assert fake.get_metrics().counters == fake.counters()


def test_a_stream_comes_word_by_word_or_as_the_script_says(side: Side) -> None:
    fake = ScriptedLLM(["two  words", ["a", "b", "c"]])

    async def main() -> None:
        llm = fake.acquire()
        texts, whole = await pieces_of(side, llm, "x")
        assert (texts, whole and whole.text) == (["two  ", "words"], "two  words")
        texts, whole = await pieces_of(side, llm, "x")
        assert (texts, whole and whole.text) == (["a", "b", "c"], "abc")

    side.run(main())


def test_a_script_raises_what_it_holds(side: Side) -> None:
    down = LLMUnavailableError("llm", "down")
    fake = ScriptedLLM([down, TimeoutError, ["a", down]])

    async def main() -> None:
        llm = fake.acquire()
        with pytest.raises(LLMUnavailableError, match="down"):
            await side.call(llm, "complete", "x")
        with pytest.raises(TimeoutError):
            await side.call(llm, "complete", "x")
        with pytest.raises(LLMUnavailableError):
            await pieces_of(side, llm, "x")

    side.run(main())
    assert fake.counters()["wirestate.resource.requests.failed"] == 3


def test_a_script_that_is_over_says_so_with_the_question(side: Side) -> None:
    fake = ScriptedLLM(["only one"], name="writer")

    async def main() -> None:
        llm = fake.acquire()
        await side.call(llm, "complete", "first")
        with pytest.raises(ScriptOverError, match=r"'writer': its script has 1 answers, .* 2 is 'and one more'"):
            await side.call(llm, "complete", "and one\nmore")
        with pytest.raises(ScriptOverError, match="y…"):
            await side.call(llm, "complete", "y" * 1000)

    side.run(main())


def test_a_function_in_a_script_may_wait_where_tasks_do(side: Side) -> None:
    async def thought(question: Any) -> str:
        return f"{question.prompt}!"

    fake = ScriptedLLM([thought])
    assert side.run(side.call(fake.acquire(), "complete", "x")).text == "x!"


def test_each_of_many_takes_a_line_of_its_own(side: Side) -> None:
    fake = ScriptedLLM(map(str, range(100)))

    async def main() -> list[str]:
        crew = Crew(side.world)

        async def ask() -> list[str]:
            return [(await side.call(fake.acquire(), "complete", "x")).text for _ in range(10)]

        members = [crew.start(ask()) for _ in range(10)]
        return [text for member in members for text in await member.result()]

    assert sorted(map(int, side.run(main()))) == list(range(100))


def test_a_blocking_call_in_an_event_loop_is_refused_as_it_is_by_the_real_one() -> None:
    llm = ScriptedLLM(["never said"]).acquire()

    async def main() -> None:
        with pytest.raises(BlockingWaitError, match=r"use acomplete\(\)"):
            llm.complete("x")
        with pytest.raises(BlockingWaitError, match=r"use astream\(\)"):
            next(llm.stream("x"))

    asyncio.run(main())


def test_a_script_may_never_end() -> None:
    llm = ScriptedLLM(itertools.repeat("yes")).acquire()
    assert {llm.complete("x").text for _ in range(50)} == {"yes"}


@pytest.mark.parametrize("line", [7, ["a", 7], None])
def test_a_line_that_is_no_answer_is_refused(line: Any) -> None:
    with pytest.raises(InvalidSettingError, match="a line of a script is"):
        ScriptedLLM([line]).acquire().complete("x")
    with pytest.raises(InvalidSettingError, match="put the text into"):
        ScriptedLLM("a text")


class App(ResourceContainer):
    writer = lifetimes.Singleton(LLMResourceAdapter, model="m", base_url="http://127.0.0.1:1/v1")


@inject
def sorted_out(record: Any, llm: LLM = Provide["writer"]) -> Any:
    return {"mood": llm.complete(record["text"]).text}


@inject
async def asorted_out(record: Any, llm: LLM = Provide["writer"]) -> Any:
    return {"mood": (await llm.acomplete(record["text"])).text}


MACHINE = {
    "states": {
        "sorted": {
            "transform": "sorted_out",
            "arcs": [{"target": "glad", "when": "data.mood == 'good'"}, {"target": "sad"}],
        },
        "glad": {},
        "sad": {},
    }
}


def test_a_machine_runs_with_a_script_in_place_of_its_model(side: Side, invariant: Invariant) -> None:
    fake = ScriptedLLM(["good", "bad"])
    functions = {"sorted_out": asorted_out if side.is_async else sorted_out}

    async def main() -> None:
        app = App()
        fsm = SimpleFSM(MACHINE, container=app, functions=functions)
        invariant.watch(fsm.manager)
        with override(app, writer=fake):
            ends = [(await side.call(fsm, "process", {"text": text})).final_state for text in ("hooray", "alas")]
        assert ends == ["glad", "sad"]
        assert_no_leaks(app)
        assert (await side.call(fsm, "process", {"text": "x"})).error.resource_name == "writer"  # the real one again

    side.run(main())
    assert fake.prompts == ["hooray", "alas"]


def test_a_script_may_be_given_to_a_machine_by_name(side: Side, invariant: Invariant) -> None:
    fake = ScriptedLLM(["good"])
    functions = {"sorted_out": asorted_out if side.is_async else sorted_out}

    async def main() -> None:
        fsm = SimpleFSM(MACHINE, resources={"writer": fake}, functions=functions)
        invariant.watch(fsm.manager)
        assert (await side.call(fsm, "process", {"text": "x"})).path == ["sorted", "glad"]
        assert await side.call(fsm.manager, "health_check", "writer") == {"writer": ResourceHealth.HEALTHY}
        assert fsm.manager.get_metrics("writer")["writer"].counters == fake.counters()
        await side.call(fsm, "close")

    side.run(main())


def test_a_function_is_called_with_a_script_injected() -> None:
    app = App()
    with override(app, writer=ScriptedLLM(["good"])), injected(app, sorted_out) as call:
        assert call({"text": "x"}) == {"mood": "good"}
