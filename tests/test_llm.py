"""Language models: retries, deadlines, streams, line, breaker and secrets, against a real server in another process."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from dependency_injector.wiring import Provide, inject
from pydantic import SecretStr

from tests.crews import Crew
from wirestate import BuildError, LLMResourceAdapter, ResourceManager, SimpleFSM, container_from_settings, manager_of
from wirestate.errors import (
    AsyncResourceError,
    BlockingWaitError,
    CircuitOpenError,
    InvalidSettingError,
    LLMAnswerError,
    LLMError,
    LLMRateLimitError,
    LLMRefusedError,
    LLMTimeoutError,
    LLMUnavailableError,
    PoolTimeoutError,
    ResourceClosedError,
    ResourceTimeoutError,
    SettingsError,
    TooManyWaitingError,
)
from wirestate.resources.base import ResourceHealth
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.llm.adapter import LLM, Completion
from wirestate.resources.llm.service import Parts
from wirestate.resources.pool_config import PoolConfig

if TYPE_CHECKING:
    from tests.conftest import Side
    from tests.invariant import Invariant

SERVER = Path(__file__).parent / "servers" / "llm_server.py"
SECRET = "pl4nted-llm-key"
HEADER = "pl4nted-llm-header"
keys = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.kill()
    process.communicate()


@pytest.fixture
def dead_server() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def key() -> str:
    return f"key{next(keys)}"


def told(server: str, key: str, what: str = "seen") -> Any:
    """Return what the server saw under one key."""
    with urllib.request.urlopen(f"{server}/{key}/{what}") as answer:
        return json.load(answer)


class Writer:
    """Models of one world, asked in the same words in both."""

    def __init__(self, side: Side, server: str, invariant: Invariant, key: str) -> None:
        self.side = side
        self.key = key
        self.crew = Crew(side.world)
        self.server = server
        self.invariant = invariant

    def run(self, work: Callable[[LLM], Awaitable[Any]], way: str = "ok", **settings: Any) -> Any:
        """Ask the model behind *way*; its line must be whole at the end."""
        settings = {"base_url": f"{self.server}/{self.key}/{way}/v1", "retry_pause": 0.01, **settings}
        self.adapter = LLMResourceAdapter("writer", model="m", **settings)
        self.invariant.watch(self.adapter.gate)

        async def main() -> Any:
            try:
                return await work(self.adapter.acquire())
            finally:
                await self.side.call(self.adapter, "close")

        return self.side.run(main())

    def seen(self) -> Any:
        """Return the requests that came to the server."""
        return told(self.server, self.key)

    def complete(self, way: str = "ok", prompt: Any = "one two", **settings: Any) -> Completion:
        async def work(llm: LLM) -> Completion:
            found: Completion = await self.side.call(llm, "complete", prompt)
            return found

        return self.run(work, way, **settings)  # type: ignore[no-any-return]  # run() returns what work does

    async def take(self, stream: Any, count: int | None = None) -> list[str]:
        """Take *count* pieces of a stream, or all."""
        pieces: list[str] = []
        end = object()
        while count is None or len(pieces) < count:
            piece = await anext(stream, end) if self.side.is_async else next(stream, end)
            if piece is end:
                break
            pieces.append(piece)
        return pieces

    def stream(self, llm: LLM, *args: Any, **keywords: Any) -> Any:
        return (llm.astream if self.side.is_async else llm.stream)(*args, **keywords)

    async def end(self, stream: Any) -> None:
        await self.side.call(stream, "close")


@pytest.fixture
def writer(side: Side, server: str, invariant: Invariant, key: str) -> Writer:
    return Writer(side, server, invariant, key)


# --- asking -----------------------------------------------------------------------------------


def test_a_prompt_is_answered_with_its_tokens_counted(writer: Writer) -> None:
    answer = writer.complete()
    assert answer == Completion("echo: one two", "m", "stop", input_tokens=2, output_tokens=3)
    assert (str(answer), answer.raw.choices[0].message.role) == ("echo: one two", "assistant")


def test_a_request_holds_what_the_adapter_and_the_call_say(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]
        await writer.side.call(llm, "complete", messages, model="other", temperature=0, max_tokens=9, seed=7)

    writer.run(work, "ok", temperature=0.7, options={"top_p": 0.5, "stop": ["."]})
    body = writer.seen()[-1]["body"]
    assert [message["role"] for message in body.pop("messages")] == ["system", "user"]
    assert body == {"model": "other", "temperature": 0, "max_tokens": 9, "seed": 7, "top_p": 0.5, "stop": ["."]}


def test_an_answer_may_be_uncounted(writer: Writer) -> None:
    answer = writer.complete("uncounted")
    assert (answer.text, answer.input_tokens, answer.output_tokens) == ("echo: one two", None, None)


@pytest.mark.parametrize("way", ["html", "choiceless"])
def test_what_is_no_answer_is_told(writer: Writer, way: str) -> None:
    with pytest.raises(LLMAnswerError, match="holds no message"):
        writer.complete(way)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ([], {}),
        (["text"], {}),
        ([{"content": "x"}], {}),
        ("x", {"stream": True}),
        ("x", {"timeout": 0}),
        ("x", {"timeout": float("inf")}),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_before_it_is_sent(
    writer: Writer, prompt: Any, options: dict[str, Any]
) -> None:
    async def work(llm: LLM) -> None:
        for verb in ("complete", "stream"):
            with pytest.raises(InvalidSettingError, match="'writer'"):
                await writer.side.call(llm, verb, prompt, **options)

    writer.run(work)


def test_an_option_that_the_client_does_not_know_is_a_mistake_of_the_program(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        with pytest.raises(TypeError, match="tempature"):
            await writer.side.call(llm, "complete", "x", tempature=1)

    writer.run(work)
    assert writer.adapter.breaker.state == "closed"


# --- streams ----------------------------------------------------------------------------------


def test_a_stream_gives_pieces_and_at_its_end_the_whole(writer: Writer) -> None:
    async def work(llm: LLM) -> Any:
        stream = writer.stream(llm, "one two")
        assert await writer.take(stream, 2) == ["echo:", " one"]
        assert stream.completion is None
        assert writer.adapter.gate.snapshot().used == 1
        assert await writer.take(stream) == [" two"]
        assert writer.adapter.gate.snapshot().used == 0
        return stream.completion

    assert writer.run(work) == Completion("echo: one two", "m", "stop", input_tokens=2, output_tokens=3)


def test_a_stream_asks_nothing_before_its_first_piece_is_taken(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        stream = writer.stream(llm, "never sent")
        await writer.end(stream)
        assert await writer.take(stream) == []

    writer.run(work)
    assert "never sent" not in json.dumps(writer.seen())


def test_a_stream_that_is_closed_early_gives_its_place_back(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        stream = writer.stream(llm, "one two")
        await writer.take(stream, 1)
        await writer.end(stream)
        await writer.end(stream)
        assert writer.adapter.gate.snapshot().used == 0
        assert (await writer.side.call(llm, "complete", "next")).text == "echo: next"

    writer.run(work, pool=PoolConfig(max_size=1, acquire_timeout=0))


def test_a_stream_that_is_dropped_gives_its_place_back(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        stream = writer.stream(llm, "one two")
        await writer.take(stream, 1)
        assert writer.adapter.gate.snapshot().used == 1
        del stream
        gc.collect()
        await writer.crew.until(lambda: writer.adapter.gate.snapshot().used == 0)

    writer.run(work, pool=PoolConfig(max_size=1))
    assert writer.adapter.gate.snapshot().leaks == 0  # it was given back, not found lost


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("cut", "broke off: the connection was lost"),
        ("unended", "broke off after 13 letters"),
        ("garbled", "cannot be understood"),
        ("broken", "broke off: worn out"),
    ],
)
def test_a_stream_that_breaks_off_is_never_taken_for_whole(writer: Writer, way: str, words: str) -> None:
    async def work(llm: LLM) -> None:
        stream = writer.stream(llm, "one two")
        with pytest.raises(LLMAnswerError, match=words):
            await writer.take(stream)
        assert stream.completion is None

    writer.run(work, way)
    assert writer.adapter.counters()["wirestate.resource.requests.failed"] == 1
    assert len(writer.seen()) == 1  # pieces that were given are not given again


def test_a_stream_that_stops_in_the_middle_ends_at_its_timeout(writer: Writer) -> None:
    async def work(llm: LLM) -> float:
        stream = writer.stream(llm, "one two", timeout=0.3)
        began = monotonic()
        with pytest.raises(LLMTimeoutError):
            await writer.take(stream)
        return monotonic() - began

    assert 0.25 <= writer.run(work, "stall/8") < 4


def test_a_task_does_not_wait_for_a_service_that_only_says_that_it_is_not_dead(server: str, key: str) -> None:
    async def main() -> float:
        adapter = LLMResourceAdapter("writer", model="m", base_url=f"{server}/{key}/murmur/8/v1", timeout=0.5)
        began = monotonic()
        with pytest.raises(LLMTimeoutError):
            async for _ in adapter.acquire().astream("one two"):
                pass
        await adapter.aclose()
        return monotonic() - began

    assert 0.4 <= asyncio.run(main()) < 4


def test_a_stream_is_tried_again_until_its_first_piece(writer: Writer) -> None:
    async def work(llm: LLM) -> list[str]:
        return await writer.take(writer.stream(llm, "x"))

    assert writer.run(work, "flaky/2/503") == ["echo:", " x"]
    assert writer.adapter.counters()["wirestate.resource.requests.retried"] == 2


def test_of_several_answers_the_first_is_streamed() -> None:
    parts = Parts("writer", "m")
    for index, text in [(0, "a"), (1, "x"), (0, "b"), (1, "y")]:
        delta = SimpleNamespace(content=text)
        parts.add(SimpleNamespace(choices=[SimpleNamespace(index=index, delta=delta, finish_reason="stop")]))
    assert parts.completion().text == "ab"


def test_a_service_that_refuses_the_count_of_a_stream_is_not_asked_for_it(writer: Writer) -> None:
    async def work(llm: LLM) -> Any:
        stream = writer.stream(llm, "x", stream_options=None)
        await writer.take(stream)
        return stream.completion

    assert writer.run(work, "ok").input_tokens is None


# --- again, and within a deadline ----------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_passes_is_tried_again(writer: Writer, status: int) -> None:
    assert writer.complete(f"flaky/2/{status}").text == "echo: one two"
    counted = writer.adapter.counters()
    assert counted["wirestate.resource.requests.retried"] == 2
    assert counted["gen_ai.client.operation.duration.count"] == 1


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("status/400", r"refuses the request \(status 400\)"),
        ("status/401", "check its api_key"),
        ("status/404", "check its model and base_url"),
        ("used_up", "your quota is used up"),
        ("redirect", "redirects .* correct its base_url"),
    ],
)
def test_what_does_not_pass_is_told_at_once(writer: Writer, way: str, words: str) -> None:
    with pytest.raises(LLMRefusedError, match=words) as caught:
        writer.complete(way)
    assert isinstance(caught.value.status, int)
    assert writer.adapter.counters()["wirestate.resource.requests.retried"] == 0


def test_no_redirect_takes_the_prompt_elsewhere(writer: Writer) -> None:
    with pytest.raises(LLMRefusedError):
        writer.complete("redirect")
    assert len(writer.seen()) == 1


def test_a_rate_limit_is_waited_for(writer: Writer) -> None:
    began = monotonic()
    assert writer.complete("flaky/1/429/1").text == "echo: one two"
    assert monotonic() - began >= 1.0


@pytest.mark.parametrize("settings", [{"retry_after_max": 5.0}, {"timeout": 5.0}], ids=["limit", "deadline"])
def test_a_rate_limit_beyond_what_is_allowed_is_told_at_once(writer: Writer, settings: dict[str, float]) -> None:
    began = monotonic()
    with pytest.raises(LLMRateLimitError, match="asks to wait 10 s") as caught:
        writer.complete("flaky/1/429/10", **settings)
    assert caught.value.retry_after == 10.0
    assert monotonic() - began < 4


def test_retries_end(writer: Writer) -> None:
    with pytest.raises(LLMUnavailableError, match="status 503"):
        writer.complete("flaky/9/503", retry_count=2)
    assert len(writer.seen()) == 3


def test_a_slow_answer_ends_at_the_timeout_of_the_call(writer: Writer) -> None:
    async def work(llm: LLM) -> float:
        began = monotonic()
        with pytest.raises(LLMTimeoutError, match=r"no answer within 0\.30 s"):
            await writer.side.call(llm, "complete", "x", timeout=0.3)
        return monotonic() - began

    assert 0.25 <= writer.run(work, "slow/8") < 4
    assert issubclass(LLMTimeoutError, ResourceTimeoutError)


def test_the_wait_in_line_ends_at_the_timeout_of_the_call(writer: Writer) -> None:
    async def work(llm: LLM) -> float:
        stream = writer.stream(llm, "one two")
        await writer.take(stream, 1)
        began = monotonic()
        with pytest.raises(LLMTimeoutError, match=r"no answer within 0\.20 s, all of which it waited in line"):
            await writer.side.call(llm, "complete", "x", timeout=0.2)
        took = monotonic() - began
        await writer.end(stream)
        return took

    assert 0.15 <= writer.run(work, pool=PoolConfig(max_size=1)) < 4


def test_the_wait_in_line_ends_at_the_pool_s_own_limit(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        stream = writer.stream(llm, "one two")
        await writer.take(stream, 1)
        with pytest.raises(PoolTimeoutError, match="'writer'"):
            await writer.side.call(llm, "complete", "x")
        await writer.end(stream)

    writer.run(work, pool=PoolConfig(max_size=1, acquire_timeout=0.05))


# --- the line in front, and the breaker -------------------------------------------------------------


def test_no_more_requests_run_at_once_than_the_pool_allows(writer: Writer) -> None:
    async def work(llm: LLM) -> list[str]:
        members = [writer.crew.start(writer.side.call(llm, "complete", f"n{n}")) for n in range(9)]
        return [(await member.result()).text for member in members]

    assert writer.run(work, "slow/0.05", pool=PoolConfig(max_size=2)) == [f"echo: n{n}" for n in range(9)]
    assert told(writer.server, writer.key, "most") <= 2


def test_who_cannot_wait_is_refused(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        stream = writer.stream(llm, "one two")
        await writer.take(stream, 1)
        with pytest.raises(TooManyWaitingError):
            await writer.side.call(llm, "complete", "x")
        await writer.end(stream)

    writer.run(work, pool=PoolConfig(max_size=1, max_waiting=0))


def test_requests_succeed_after_bursts_of_cancelled_ones(server: str, invariant: Invariant) -> None:
    async def main() -> None:
        adapter = LLMResourceAdapter(
            "writer", model="m", base_url=f"{server}/key/slow/0.02/v1", pool=PoolConfig(max_size=3), retry_count=0
        )
        invariant.watch(adapter.gate)
        llm = adapter.acquire()

        async def streamed(n: int) -> None:
            async for _ in llm.astream(f"one {n}"):
                await asyncio.sleep(0)

        for round_ in range(6):
            burst = [asyncio.create_task(streamed(n) if n % 2 else llm.acomplete("x")) for n in range(20)]
            await asyncio.sleep(0.005 * round_)
            for task in burst:
                task.cancel()
            await asyncio.gather(*burst, return_exceptions=True)
        answers = await asyncio.gather(*(llm.acomplete(f"n{n}") for n in range(9)))
        assert [answer.text for answer in answers] == [f"echo: n{n}" for n in range(9)]
        await adapter.aclose()

    asyncio.run(main())


def test_a_dead_service_opens_the_breaker(writer: Writer, dead_server: str) -> None:
    async def work(llm: LLM) -> float:
        for _ in range(3):
            with pytest.raises(LLMUnavailableError, match="cannot be reached"):
                await writer.side.call(llm, "complete", "x")
        with pytest.raises(CircuitOpenError) as caught:
            await writer.side.call(llm, "complete", "x")
        assert isinstance(caught.value.__cause__, Exception)
        return caught.value.retry_after

    assert 0 < writer.run(work, base_url=f"{dead_server}/v1", retry_count=0, breaker_failures=3) <= 30
    assert writer.adapter.breaker.state == "open"


@pytest.mark.parametrize("way", ["status/400", "status/404", "status/429", "status/500", "choiceless"])
def test_a_service_that_answers_does_not_open_the_breaker(writer: Writer, way: str) -> None:
    async def work(llm: LLM) -> None:
        for _ in range(3):
            with pytest.raises(LLMError):
                await writer.side.call(llm, "complete", "x")

    writer.run(work, way, retry_count=0, breaker_failures=2)
    assert writer.adapter.breaker.state == "closed"


def test_callers_in_a_hurry_do_not_open_the_breaker_for_all(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        for _ in range(3):
            with pytest.raises(LLMTimeoutError):
                await writer.side.call(llm, "complete", "x", timeout=0.01)

    writer.run(work, "slow/0.2", breaker_failures=2)
    assert writer.adapter.breaker.state == "closed"


def test_a_service_that_is_late_opens_the_breaker(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        for _ in range(2):
            with pytest.raises(LLMTimeoutError):
                await writer.side.call(llm, "complete", "x")

    writer.run(work, "slow/1", breaker_failures=2, timeout=0.05)
    assert writer.adapter.breaker.state == "open"


# --- what is sent and what is shown -----------------------------------------------------------------


def test_only_what_the_settings_say_is_sent(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    ambient = {"API_KEY": "x", "ORG_ID": "x", "PROJECT_ID": "x", "ADMIN_KEY": "x", "BASE_URL": "http://nowhere.example"}
    for name, value in ambient.items():
        monkeypatch.setenv(f"OPENAI_{name}", value)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Ambient: x\nAuthorization: Bearer x")
    writer.complete()
    writer.complete(api_key=SecretStr(SECRET), headers={"X-Mine": HEADER})
    writer.complete(headers={"authorization": f"Basic {HEADER}"})
    none, bearer, basic = (request["headers"] for request in writer.seen())
    assert "authorization" not in none
    assert (bearer["authorization"], bearer["x-mine"]) == (f"Bearer {SECRET}", HEADER)
    assert basic["authorization"] == f"Basic {HEADER}"
    for headers in (none, bearer, basic):
        assert not {"openai-organization", "openai-project", "x-ambient"} & headers.keys()


@pytest.mark.parametrize("verb", ["complete", "stream"])
def test_no_secret_is_in_an_error_its_chain_or_the_log(
    writer: Writer, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(llm: LLM) -> LLMError | None:
        try:
            if verb == "stream":
                await writer.take(writer.stream(llm, "one two"))
            else:
                await writer.side.call(llm, "complete", "one two")
        except LLMError as error:
            return error
        return None

    settings = {"api_key": SECRET, "headers": {"X-Api-Key": SecretStr(HEADER)}, "timeout": 0.5, "retry_count": 1}
    for way in ("status/401", "status/400", "status/503", "status/429", "broken", "cut", "slow/9", "garbled"):
        with caplog.at_level(logging.DEBUG):
            error = writer.run(work, way, **settings)
        shown = caplog.text + repr(writer.adapter)
        links: list[BaseException | None] = [error]
        while links:
            if (link := links.pop()) is not None:
                shown += "".join(traceback.format_exception(link)) + repr(vars(link))
                links += [link.__cause__, link.__context__]
                assert not hasattr(link, "request"), "an error of the client library carries the headers"
        assert "pl4nted" not in shown, way
        assert (error is None) == (verb == "complete" and way in ("broken", "cut", "garbled"))


def test_no_header_of_a_call_is_in_an_error(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        with pytest.raises(LLMRefusedError) as caught:
            await writer.side.call(llm, "complete", "x", extra_headers={"X-Api-Key": HEADER})
        assert HEADER not in str(caught.value)

    writer.run(work, "status/400")
    assert writer.seen()[0]["headers"]["x-api-key"] == HEADER


def test_no_secret_is_in_what_an_adapter_holds() -> None:
    adapter = LLMResourceAdapter("writer", model="m", api_key=SECRET, headers={"X-Api-Key": HEADER})
    llm = adapter.acquire()
    shown = [repr(adapter), repr(llm), repr(vars(adapter)), repr(vars(vars(adapter)["_clients"]))]
    assert "pl4nted" not in " ".join(shown)
    assert shown[:2] == ["<LLMResourceAdapter 'writer' m at https://api.openai.com/v1 idle>", "<LLM 'writer' m>"]


def test_a_cookie_of_the_service_is_not_kept(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        for prompt in ("one", "two"):
            await writer.side.call(llm, "complete", prompt)

    writer.run(work, "cookie")
    assert len(writer.seen()) == 2
    assert not any("cookie" in request["headers"] for request in writer.seen())


# --- counts and health ------------------------------------------------------------------------------


def test_tokens_are_counted_in_the_metrics_of_the_manager(writer: Writer) -> None:
    manager = ResourceManager()
    adapter = LLMResourceAdapter("writer", model="m", base_url=f"{writer.server}/{writer.key}/ok/v1")
    manager.register_provider("writer", adapter)
    writer.invariant.watch(adapter.gate)

    async def main() -> None:
        llm = await writer.side.call(manager, "acquire", "writer", "me")
        await writer.side.call(llm, "complete", "one two")
        await writer.take(writer.stream(llm, "three"))
        await writer.side.call(manager, "release", "writer", "me")
        metrics = manager.get_metrics("writer")["writer"]
        assert metrics.counters["gen_ai.client.inference.usage.input_tokens"] == 3
        assert metrics.counters["gen_ai.client.inference.usage.output_tokens"] == 5
        assert metrics.counters["gen_ai.client.operation.duration.count"] == 2
        assert metrics.counters["gen_ai.client.operation.duration.sum"] > 0
        assert adapter.get_metrics().counters == metrics.counters
        await writer.side.call(manager, "close")

    writer.side.run(main())


def test_tokens_are_counted_by_threads_at_once(server: str) -> None:
    adapter = LLMResourceAdapter("writer", model="m", base_url=f"{server}/key/ok/v1")
    llm = adapter.acquire()
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        for _ in range(5):
            llm.complete("one two")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    adapter.close()
    assert adapter.counters()["gen_ai.client.inference.usage.input_tokens"] == 80


@pytest.mark.parametrize(
    ("way", "health"),
    [
        ("ok", ResourceHealth.HEALTHY),
        ("listless", ResourceHealth.UNKNOWN),
        ("status/401", ResourceHealth.UNHEALTHY),
        ("status/500", ResourceHealth.UNHEALTHY),
        ("html", ResourceHealth.UNHEALTHY),
        ("status/429", ResourceHealth.DEGRADED),
        ("slow/1.1", ResourceHealth.DEGRADED),
    ],
)
def test_health_is_what_the_list_of_models_says(server: str, side: Side, way: str, health: ResourceHealth) -> None:
    adapter = LLMResourceAdapter("writer", model="m", base_url=f"{server}/key/{way}/v1", api_key=SECRET)
    assert side.run(side.call(adapter, "health_check")) is health
    assert "pl4nted" not in str(adapter.trouble)
    assert (adapter.trouble is None) == (way in ("ok", "slow/1.1"))
    assert adapter.counters()["gen_ai.client.operation.duration.count"] == 0
    adapter.close()
    assert adapter.health_check() is ResourceHealth.UNHEALTHY


def test_a_service_that_cannot_be_reached_is_unhealthy_in_time(dead_server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for url in (dead_server, f"http://127.0.0.1:{silent.getsockname()[1]}"):
            adapter = LLMResourceAdapter("writer", model="m", base_url=url, timeout=0.2)
            began = monotonic()
            assert adapter.health_check() is ResourceHealth.UNHEALTHY
            assert monotonic() - began < 4
            adapter.close()


def test_a_probe_neither_stops_a_loop_nor_waits_in_line(server: str) -> None:
    adapter = LLMResourceAdapter("writer", model="m", base_url=f"{server}/key/ok/v1", pool=PoolConfig(max_size=1))

    async def main() -> None:
        with pytest.raises(BlockingWaitError, match="ahealth_check"):
            adapter.health_check()
        async with adapter.acquire().astream("one two") as stream:
            await anext(stream)
            assert await adapter.ahealth_check() is ResourceHealth.HEALTHY
        await adapter.aclose()

    asyncio.run(main())


# --- the end ----------------------------------------------------------------------------------------


def test_an_adapter_is_closed_once_and_for_all(writer: Writer) -> None:
    async def work(llm: LLM) -> None:
        assert writer.adapter.validate(llm)
        writer.adapter.release(llm)
        for _ in range(2):
            await writer.side.call(writer.adapter, "close")
        assert not writer.adapter.validate(llm)
        with pytest.raises(ResourceClosedError):
            writer.adapter.acquire()
        with pytest.raises(ResourceClosedError):
            await writer.side.call(llm, "complete", "x")

    writer.run(work)


def test_an_event_loop_that_ends_closes_its_connections(server: str, recwarn: pytest.WarningsRecorder) -> None:
    adapter = LLMResourceAdapter("writer", model="m", base_url=f"{server}/key/ok/v1")
    llm = adapter.acquire()
    clients = []

    async def main() -> None:
        assert (await llm.acomplete("x")).text == "echo: x"
        clients.append(adapter._clients._of_loops.get().client)
        assert adapter.needs_loop

    for _ in range(2):
        asyncio.run(main())
        assert clients[-1].is_closed()
        assert not adapter.needs_loop
    assert clients[0] is not clients[1]
    adapter.close()
    clients.clear()
    gc.collect()
    assert not [str(it.message) for it in recwarn if issubclass(it.category, ResourceWarning)]


def test_what_an_open_loop_holds_is_closed_there(server: str) -> None:
    adapter = LLMResourceAdapter("writer", model="m", base_url=f"{server}/key/ok/v1")
    llm = adapter.acquire()

    async def asked() -> Any:
        await llm.acomplete("x")
        return adapter._clients._of_loops.get().client

    async def main(theirs: Any) -> None:
        mine = await asked()
        with pytest.raises(AsyncResourceError, match="aclose"):
            adapter.close()
        assert not mine.is_closed()
        await adapter.aclose()
        assert mine.is_closed()
        assert not theirs.is_closed()

    with asyncio.Runner() as other:
        theirs = other.run(asked())
        asyncio.run(main(theirs))
        other.run(asyncio.sleep(0.01))
        assert theirs.is_closed()


def test_a_manager_closes_it_in_the_world_in_which_it_was_asked(server: str) -> None:
    def registered() -> tuple[ResourceManager, LLM]:
        manager = ResourceManager()
        manager.register_provider("writer", LLMResourceAdapter("writer", model="m", base_url=f"{server}/key/ok/v1"))
        return manager, manager.acquire("writer", "me")

    async def main() -> None:
        manager, llm = registered()
        await llm.acomplete("x")
        with pytest.raises(AsyncResourceError, match="'writer'"):
            manager.close()
        assert (await llm.acomplete("still open")).text == "echo: still open"
        await manager.aclose()
        with pytest.raises(ResourceClosedError):
            await llm.acomplete("x")

    asyncio.run(main())
    manager, llm = registered()
    asyncio.run(llm.acomplete("x"))  # type: ignore[arg-type]  # a coroutine
    llm.complete("x")
    manager.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_connects_anew(server: str) -> None:
    adapter = LLMResourceAdapter("writer", model="m", base_url=f"{server}/key/ok/v1", pool=PoolConfig(max_size=1))
    llm = adapter.acquire()
    stream = llm.stream("one two")
    next(stream)  # it holds the only place
    mine = adapter._clients.blocking()
    reading, writing = os.pipe()
    adapter._service.tally._lock.acquire()  # as another thread may at that moment
    if (child := os.fork()) == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            text = llm.complete("child", timeout=10).text
            os.write(writing, f"{text} {adapter._clients.blocking() is mine}".encode())
        finally:
            os._exit(0)
    adapter._service.tally._lock.release()
    os.waitpid(child, 0)
    os.close(writing)
    assert os.read(reading, 100) == b"echo: child False"
    os.close(reading)
    assert list(stream) == [" one", " two"]
    adapter.close()


def test_it_is_had_without_an_event_loop() -> None:
    adapter = LLMResourceAdapter("writer", model="m", base_url="http://127.0.0.1/v1")
    assert not ProviderCalls.of(adapter).is_async
    with pytest.raises(InvalidSettingError, match="takes no options"):
        adapter.acquire(model="other")
    adapter.close()


# --- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": " "}, "model must be named"),
        ({"base_url": None}, "OpenAI wants an api_key"),
        ({"base_url": "ftp://example.com"}, "http:// or https://"),
        ({"base_url": "https://"}, "and a host"),
        ({"base_url": "https://example.com:sesame/v1"}, "cannot be read"),
        ({"base_url": "https://exam ple\x00.com/v1"}, "cannot be read"),
        ({"base_url": "https://me:sesame@example.com/v1"}, "headers="),
        ({"base_url": "https://example.com/v1?key=sesame"}, "api_key="),
        ({"base_url": "https://example.com/v1#sesame"}, "api_key="),
        ({"api_key": "sesame\n"}, "api_key is empty, or holds"),
        ({"api_key": ""}, "api_key is empty, or holds"),
        ({"headers": {"X-Key": "sesame\r\nX-Other: 1"}}, "headers: 'X-Key'"),
        ({"headers": {"Authorization": "sesame"}, "api_key": "sesame"}, "one setting"),
        ({"timeout": 0}, "timeout must be a number, more than 0"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"retry_count": -1}, "retry_count must be a whole number, 0 or more"),
        ({"retry_count": 1.5}, "retry_count must be a whole number"),
        ({"retry_pause": -1}, "retry_pause must be"),
        ({"retry_after_max": -1}, "retry_after_max must be"),
        ({"breaker_failures": 0}, "breaker_failures must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"options": {"messages": []}}, "'messages', which belongs to each call"),
        ({"pool": PoolConfig(min_size=1)}, "'min_size' cannot be honoured"),
        ({"pool": PoolConfig(max_size=1001)}, "at most 1000"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words) as caught:
        LLMResourceAdapter("writer", **{"model": "m", "base_url": "https://example.com/v1", **settings})
    assert "sesame" not in "".join(traceback.format_exception(caught.value))


def test_its_pool_is_sized_before_it_is_used(server: str) -> None:
    adapter = LLMResourceAdapter("writer", model="m", base_url=f"{server}/key/ok/v1")
    adapter.configure_pool(PoolConfig(max_size=3))
    assert adapter.gate.snapshot().limit == 3
    adapter.acquire().complete("x")
    with pytest.raises(InvalidSettingError, match="in use"):
        adapter.configure_pool(PoolConfig(max_size=4))
    adapter.close()


def variables(monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"WIRESTATE_RESOURCES__WRITER__{name}", value)


def test_variables_make_a_model_that_a_machine_uses(
    server: str, key: str, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables(
        monkeypatch,
        KIND="llm",
        MODEL="m",
        BASE_URL=f"{server}/{key}/ok/v1",
        API_KEY=SECRET,
        TEMPERATURE="0.5",
        OPTIONS='{"top_p": 0.25}',
        POOL__MAX_SIZE="3",
    )

    @inject
    def answered(record: Any, llm: LLM = Provide["writer"]) -> Any:
        return {"answer": llm.complete(record["question"]).text}

    @inject
    async def aanswered(record: Any, llm: LLM = Provide["writer"]) -> Any:
        return {"answer": (await llm.acomplete(record["question"])).text}

    async def main() -> None:
        container = container_from_settings()
        machine = {"states": {"answered": {"transform": "answered"}}}
        functions = {"answered": aanswered if side.is_async else answered}
        fsm = SimpleFSM(machine, container=container, functions=functions)
        result = await side.call(fsm, "process", {"question": "why"})
        assert result.data == {"answer": "echo: why"}
        status = manager_of(container).get_resource_status("writer")
        assert status["lifetime"] == "singleton"
        assert "pl4nted" not in repr(result) + repr(container.settings()) + repr(status)
        await side.call(fsm, "close")
        pending = container.shutdown_resources()
        if pending is not None:
            await pending

    side.run(main())
    (request,) = told(server, key)
    assert request["headers"]["authorization"] == f"Bearer {SECRET}"
    assert (request["body"]["temperature"], request["body"]["top_p"]) == (0.5, 0.25)


def test_the_size_of_the_pool_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    variables(monkeypatch, KIND="llm", MODEL="m", BASE_URL="http://127.0.0.1:1/v1", POOL__MAX_SIZE="3")
    with container_from_settings() as container:
        container.writer()
        (recipe,) = [step.source for entry in manager_of(container).entries.values() for step in entry.steps()]
        assert recipe.provider.gate.snapshot().limit == 3


def test_a_model_must_be_named_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    variables(monkeypatch, KIND="llm", BASE_URL="http://127.0.0.1:1/v1", MODLE="m")
    with pytest.raises(SettingsError, match="WIRESTATE_RESOURCES__WRITER__MODEL is not set"):
        container_from_settings()


def test_a_lacking_key_is_told_when_the_machine_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    variables(monkeypatch, KIND="llm", MODEL="m")
    machine = {"states": {"asked": {"resources": ["writer"]}}}
    with container_from_settings() as container, pytest.raises(BuildError, match="OpenAI wants an api_key") as refused:
        SimpleFSM(machine, container=container)
    assert "Setting: WIRESTATE_RESOURCES__WRITER__API_KEY (not set)" in str(refused.value)


def test_a_missing_client_is_told_when_the_machine_is_built() -> None:
    program = (
        "import sys; sys.modules['openai'] = None\n"
        "from wirestate import SimpleFSM\n"
        "writer = {'kind': 'llm', 'model': 'm', 'base_url': 'http://127.0.0.1:1/v1'}\n"
        "SimpleFSM({'states': {'asked': {'resources': ['writer']}}}, resources={'writer': writer})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingDriver [D001]" in done.stderr, done.stderr
    assert "needs openai: pip install 'wirestate[llm]'" in done.stderr


def test_the_client_is_not_imported_before_it_is_needed() -> None:
    program = "import sys, wirestate, wirestate.testing; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
