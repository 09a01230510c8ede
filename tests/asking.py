"""Resources that block until the event loop of their test has answered, and machines that use them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dependency_injector.wiring import Provide, inject

from wirestate import (
    BaseResourceProvider,
    PoolConfig,
    ResourceContainer,
)

PATIENCE = 20.0
LOOP: contextvars.ContextVar[asyncio.AbstractEventLoop] = contextvars.ContextVar("loop")
NOTE: contextvars.ContextVar[str] = contextvars.ContextVar("note", default="")


def ask_the_loop() -> None:
    """Wait in this thread until the event loop of the test has answered, as for a server behind it."""
    answered = threading.Event()
    LOOP.get().call_soon_threadsafe(answered.set)
    assert answered.wait(PATIENCE), "the event loop stands still"


def served(scenario: Callable[[], Any]) -> Any:
    """Run a coroutine function whose blocking calls ask the loop that it runs on."""

    async def run() -> Any:
        LOOP.set(asyncio.get_running_loop())
        return await asyncio.wait_for(scenario(), 2 * PATIENCE)

    return asyncio.run(run())


class Asking(BaseResourceProvider):
    """Blocks in each of its verbs until the loop has answered."""

    blocking = True

    def __init__(self, name: str = "asking") -> None:
        super().__init__(name)
        self.verbs: list[str] = []

    def _ask(self, verb: str) -> None:
        ask_the_loop()
        self.verbs.append(verb)

    def acquire(self, **kwargs: Any) -> Any:
        self._ask("acquire")
        return object()

    def release(self, resource: Any, error: BaseException | None = None) -> None:
        self._ask("release" if error is None else f"release {type(error).__name__}")

    def validate(self, resource: Any) -> bool:
        self._ask("validate")
        return True

    def close(self) -> None:
        super().close()
        self._ask("close")


class Pooled(Asking):
    """The same, for a pool of ours: what comes back is reset."""

    def reset(self, resource: Any) -> None:
        self._ask("reset")


def asking_generator() -> Iterator[str]:
    ask_the_loop()
    yield "resource"
    ask_the_loop()


@contextmanager
def asking_context() -> Iterator[str]:
    ask_the_loop()
    yield "resource"
    ask_the_loop()


def asking_call() -> str:
    ask_the_loop()
    return "resource"


def asking_close(resource: str) -> None:
    ask_the_loop()


WAYS: dict[str, Callable[[Any], Any]] = {
    "provider": lambda lifetime: lifetime(Asking),
    "provider with a pool": lambda lifetime: lifetime(Pooled, pool=PoolConfig(max_size=2, validate_after=0)),
    "provider that is declared blocking": lambda lifetime: lifetime(Quiet, blocking=True),
    "generator": lambda lifetime: lifetime(asking_generator, blocking=True),
    "context manager": lambda lifetime: lifetime(asking_context, blocking=True),
    "call": lambda lifetime: lifetime(asking_call, close=asking_close, blocking=True),
}


class Quiet(Asking):
    """Does not say itself that it blocks."""

    blocking = False


def container_with(lifetime: Any, **others: Any) -> Any:
    """Return a container that offers *lifetime* as ``r``."""
    return type("Made", (ResourceContainer,), {"r": lifetime, **others})()


@inject
def uses(record: dict[str, Any], r: Any = Provide["r"]) -> dict[str, Any]:
    ask_the_loop()
    return {**record, "thread": threading.get_ident()}


@inject
def is_ready(record: dict[str, Any], r: Any = Provide["r"]) -> bool:
    ask_the_loop()
    return True


def steps(**work: Any) -> dict[str, Any]:
    """Return a machine whose state ``w`` is as given, between a start and an end."""
    state = {"arcs": [{"target": "e", "condition": "is_ready"}], **work}
    return {"states": {"s": {"arcs": [{"target": "w"}]}, "w": state, "e": {}}}


FUNCTIONS = {"uses": uses, "is_ready": is_ready}
