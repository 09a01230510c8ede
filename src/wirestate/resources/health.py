"""Bounded health probes with cached answers."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from time import monotonic
from typing import Any

from wirestate.resources.base import ResourceHealth
from wirestate.resources.secrets import trouble_of
from wirestate.waiting import run_in_thread

log = logging.getLogger("wirestate.health")


class Probe:
    """Ask one provider for its health, in a daemon thread and for no longer than ``bound`` seconds.

    An answer younger than ``max_age`` seconds is given again without asking.
    """

    def __init__(self, name: str, provider: Any, *, bound: float = 5.0, max_age: float = 0.0) -> None:
        self.name = name
        self.provider = provider  # Any: whatever follows IResourceProvider
        self.bound = bound
        self.max_age = max_age
        self.answer = ResourceHealth.UNKNOWN
        self.answered_at: float | None = None
        self.took = 0.0
        self.trouble: str | None = None  # why the answer is not HEALTHY, as far as the provider tells
        self._running = threading.Lock()

    @property
    def age(self) -> float | None:
        """Seconds since the last answer, None before the first."""
        return None if self.answered_at is None else monotonic() - self.answered_at

    def ask(self) -> ResourceHealth:
        """Probe now, unless the last answer is young enough."""
        age = self.age
        if age is not None and age < self.max_age:
            return self.answer
        if not self._running.acquire(blocking=False):
            return self.answer  # another caller's probe is under way: never two at once
        done = threading.Event()
        threading.Thread(
            target=run_in_thread(self._work, done), name=f"wirestate-health-{self.name}", daemon=True
        ).start()
        if not done.wait(self.bound):
            self.trouble = f"no answer within {self.bound:g} s"
            self._keep(ResourceHealth.UNHEALTHY, self.bound)
        return self.answer

    def _work(self, done: threading.Event) -> None:
        began = monotonic()
        trouble = None
        try:
            answer = self._call()
            if answer is not ResourceHealth.HEALTHY:
                trouble = getattr(self.provider, "trouble", None)
        except Exception as error:  # a probe that raises has answered
            log.debug("health probe of %r raised %s", self.name, type(error).__name__)
            answer, trouble = ResourceHealth.UNHEALTHY, trouble_of(error)
        finally:
            self._running.release()
        self.trouble = trouble
        self._keep(answer, monotonic() - began)
        done.set()

    def _call(self) -> ResourceHealth:
        probe = getattr(self.provider, "ahealth_check", None) or self.provider.health_check
        answer = probe()
        if inspect.isawaitable(answer):
            answer = asyncio.run(_awaited(answer))  # this thread is the probe's own: no loop runs in it
        return answer if isinstance(answer, ResourceHealth) else ResourceHealth.UNKNOWN

    def _keep(self, answer: ResourceHealth, took: float) -> None:
        self.answer, self.answered_at, self.took = answer, monotonic(), took


async def _awaited(answer: Any) -> Any:
    return await answer
