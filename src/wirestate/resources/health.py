"""Bounded health probes, each shared by all who ask while it runs."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from _thread import allocate_lock
from collections.abc import Awaitable, Mapping
from time import monotonic
from typing import Any, NamedTuple

from wirestate.errors import BlockingWaitError
from wirestate.observing import Listener
from wirestate.resources.base import BaseResourceProvider, ResourceHealth
from wirestate.resources.calls import is_async_callable
from wirestate.resources.inherited import forget_at_fork
from wirestate.resources.secrets import trouble_of
from wirestate.resources.voice import Voice
from wirestate.waiting import BLOCKING, SUSPENDING, ExpiredError, Waiter, World, drive, running_loop

log = logging.getLogger("wirestate.health")


class Answer(NamedTuple):
    """What a probe found out, when (on the monotonic clock), in how many seconds, and why it is not well."""

    health: ResourceHealth
    at: float
    took: float
    trouble: str | None = None


class Asking:
    """One probe under way, and who waits for it."""

    __slots__ = ("answer", "over", "until", "waiters", "worker")

    def __init__(self, until: float) -> None:
        self.until = until
        self.worker: threading.Thread | asyncio.Task[None] | None = None
        self.over = False
        self.answer: Answer | None = None
        self.waiters: list[Waiter] = []

    @property
    def is_lost(self) -> bool:
        """Whether nobody works on it: an interrupt came before it began, or its loop is gone."""
        if isinstance(self.worker, asyncio.Task):
            return self.worker.get_loop().is_closed()
        return monotonic() > self.until if self.worker is None else not self.worker.is_alive()


class Probe:
    """Ask one provider for its health, for no longer than ``bound`` seconds.

    A blocking probe runs in a daemon thread, an asynchronous one as a task of the loop that asks
    first. Whoever asks meanwhile waits for the same answer. One that does not come is UNHEALTHY; a
    probe that hangs is not started a second time, and what it says in the end counts.

    Closed, it knows nothing: whoever still waits is answered UNKNOWN, and nothing is told any more.
    """

    def __init__(self, name: str, provider: Any, *, bound: float = 5.0) -> None:
        self.name = name
        self.provider = provider  # Any: whatever follows IResourceProvider
        self.bound = bound
        self.interval: float | None = None  # seconds between probes in the background, where settings say so
        self.listener: Listener | None = None
        self.last: Answer | None = None
        self._verb = getattr(provider, "ahealth_check", None) or provider.health_check
        self._suspends = is_async_callable(self._verb) and _is_async(provider)
        self._asking: Asking | None = None
        self._voice = Voice()
        self._lock = allocate_lock()  # guards the answers above; never held while a provider works
        forget_at_fork(self)

    def forget_parent(self) -> None:
        """Wait for no probe of the parent, in a forked child."""
        self._lock, self._asking = allocate_lock(), None

    # --- what is known ---------------------------------------------------------------------

    @property
    def answer(self) -> ResourceHealth:
        """The last answer; UNKNOWN before the first."""
        return ResourceHealth.UNKNOWN if self.last is None else self.last.health

    @property
    def age(self) -> float | None:
        """Seconds since the last answer, None before the first."""
        return None if self.last is None else monotonic() - self.last.at

    @property
    def took(self) -> float:
        """Seconds until the last answer."""
        return 0.0 if self.last is None else self.last.took

    @property
    def trouble(self) -> str | None:
        """Why the last answer is not HEALTHY, as far as the provider tells."""
        return None if self.last is None else self.last.trouble

    @property
    def is_closed(self) -> bool:
        """Whether it asks nothing any more."""
        return self._voice.is_silent

    async def close(self, world: World) -> None:
        """Forget every answer, wait for none any more, and tell nothing: what is asked about is being closed."""
        await self._voice.hush(world)
        with self._lock:
            asking, self._asking, self.last = self._asking, None, None
            if asking is not None:
                self._release(asking, None)

    # --- asking ----------------------------------------------------------------------------

    def ask(self, *, max_age: float = 0.0) -> ResourceHealth:
        """Probe now, unless the last answer is younger than *max_age* seconds."""
        return drive(ask_all({"": self}, BLOCKING, max_age=max_age))[""]

    async def aask(self, *, max_age: float = 0.0) -> ResourceHealth:
        """Asynchronous twin of :meth:`ask`."""
        return (await ask_all({"": self}, SUSPENDING, max_age=max_age))[""]

    def begin(self, world: World) -> Asking:
        """Let a probe run, or join the one that does."""
        with self._lock:
            asking = self._asking
            if asking is not None and not asking.is_lost:
                return asking
            asking = Asking(monotonic() + self.bound)
            asking.over = self.is_closed
            if asking.over:
                return asking
            self._asking = asking
        try:
            if world.is_async and self._suspends:
                # In a context of its own: the scope of the first one who asks is none of the probe's.
                work = self._work_waiting(asking)
                asking.worker = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
            else:
                name = f"wirestate-health-{self.name}"
                thread = threading.Thread(target=self._work, args=(asking,), name=name, daemon=True)
                thread.start()
                asking.worker = thread
        except BaseException:  # no thread can be had: the next one tries again
            self._end(asking, None)
            raise
        return asking

    async def answered(self, asking: Asking, world: World) -> ResourceHealth:
        """Wait for the answer, as long as the probe may take."""
        waiter = world.new_waiter()
        with self._lock:
            waits = not asking.over
            if waits:
                asking.waiters.append(waiter)
        if waits:
            try:
                if not await waiter.wait(max(0.0, asking.until - monotonic())):
                    self._late(asking)
            finally:
                with self._lock:
                    if waiter in asking.waiters:
                        asking.waiters.remove(waiter)
        if asking.over and asking.answer is None and not self.is_closed:  # the loop that it ran in has ended
            return await self.answered(self.begin(world), world)
        return self.answer

    # --- the probe itself ------------------------------------------------------------------

    def _work(self, asking: Asking) -> None:
        began = monotonic()
        try:
            answer = self._call()
            if inspect.isawaitable(answer):
                answer = asyncio.run(self._bounded(answer))  # this thread is the probe's own: no loop runs in it
            found = self._found(answer, began)
        except BaseException as error:  # a probe that raises has answered
            found = self._raised(error, began)
        self._end(asking, found)

    async def _work_waiting(self, asking: Asking) -> None:
        began = monotonic()
        try:
            found = self._found(await self._bounded(self._call()), began)
        except Exception as error:  # a probe that raises has answered
            found = self._raised(error, began)
        except BaseException:  # its loop ends
            self._end(asking, None)
            raise
        self._end(asking, found)

    def _call(self) -> Any:  # Any: the answer, or what must be awaited for it
        if isinstance(self.provider, BaseResourceProvider):
            self.provider.trouble = None
        return self._verb()

    async def _bounded(self, answer: Awaitable[Any]) -> Any:
        return await SUSPENDING.bounded(answer, self.bound)

    def _found(self, answer: Any, began: float) -> Answer:
        health = answer if isinstance(answer, ResourceHealth) else ResourceHealth.UNKNOWN
        now = monotonic()
        trouble = None if health is ResourceHealth.HEALTHY else getattr(self.provider, "trouble", None)
        if trouble is None and health is ResourceHealth.DEGRADED:
            trouble = f"it took {now - began:.2f} s to answer"
        return Answer(health, now, now - began, trouble)

    def _raised(self, error: BaseException, began: float) -> Answer:
        log.debug("health probe of %r raised %s", self.name, type(error).__name__)
        trouble = self._no_answer if isinstance(error, ExpiredError) else trouble_of(error)
        now = monotonic()
        return Answer(ResourceHealth.UNHEALTHY, now, now - began, trouble)

    @property
    def _no_answer(self) -> str:
        return f"no answer within {self.bound:g} s"

    def _end(self, asking: Asking, found: Answer | None) -> None:
        """Hand an answer to all who wait; None: there is none."""
        with self._lock:
            if self._asking is asking:
                self._asking = None
            before = self.answer
            if not self.is_closed:
                self.last = found or self.last
            after = self.answer
            self._release(asking, found)
        self._tell(before, after)

    def _release(self, asking: Asking, found: Answer | None) -> None:
        """Wake all who wait; the lock is held."""
        asking.over, asking.answer = True, found
        for waiter in asking.waiters:
            waiter.fill(None)
        asking.waiters.clear()

    def _late(self, asking: Asking) -> None:
        """Take no answer for one, as long as there is none."""
        with self._lock:
            before = self.answer
            if not (asking.over or self.is_closed):
                self.last = Answer(ResourceHealth.UNHEALTHY, monotonic(), self.bound, self._no_answer)
            after = self.answer
        self._tell(before, after)

    def _tell(self, before: ResourceHealth, after: ResourceHealth) -> None:
        if after is not before and self.listener is not None:
            self._voice.tell(self.listener.on_health, self.name, before.value, after.value)


async def ask_all(probes: Mapping[str, Probe], world: World, *, max_age: float = 0.0) -> dict[str, ResourceHealth]:
    """Let all *probes* run at once and return their answers; those younger than *max_age* seconds are not asked for.

    Raises:
        BlockingWaitError: the blocking world was asked in a thread that runs an event loop.
    """
    if not world.is_async and running_loop() is not None:
        raise BlockingWaitError("waiting for a probe would stop the event loop of this thread; await ahealth_check()")
    old = [name for name, probe in probes.items() if (age := probe.age) is None or age >= max_age]
    begun = {name: probes[name].begin(world) for name in old}
    for name, asking in begun.items():
        await probes[name].answered(asking, world)
    return {name: probe.answer for name, probe in probes.items()}


def _is_async(provider: Any) -> bool:  # Any: see Probe
    """Tell whether the provider itself belongs to event loops; adapters of blocking drivers have both probes."""
    verbs = (getattr(provider, verb, None) for verb in ("acquire", "health_check"))
    return getattr(provider, "is_async", False) is True or any(map(is_async_callable, verbs))
