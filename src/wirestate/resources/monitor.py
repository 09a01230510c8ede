"""Probing in the background: one thread that asks again and again, and tells what has changed."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from types import TracebackType
from typing import Protocol, Self
from weakref import WeakSet, ref

from wirestate.errors import InvalidSettingError, ResourceClosedError
from wirestate.redaction import half_made_too
from wirestate.resources.base import ResourceHealth
from wirestate.resources.health import Probe, ask_all
from wirestate.resources.inherited import forget_at_fork
from wirestate.resources.reports import log_failure
from wirestate.resources.voice import Voice
from wirestate.waiting import BLOCKING, LONGEST_WAIT, World, drive

log = logging.getLogger("wirestate.health")

JITTER = 0.1  # part of an interval by which probes are spread
OnChange = Callable[[str, ResourceHealth, ResourceHealth], object]


class Monitored(Protocol):
    """What a monitor needs of a manager."""

    closed: bool
    monitors: WeakSet[HealthMonitor]  # they stop when it closes

    def probes(self, *, made: bool = False) -> Mapping[str, Probe]:
        """Return what can be asked for its health, by name; or only what was *made* so far."""
        ...


class HealthMonitor:
    """Probe the resources of a manager in one background thread, and call back when health changes.

    It stops with the manager's close. A forked child has none running; ``start()`` it there anew.

    Args:
        manager: whose resources.
        interval: seconds between two probes of one resource, give or take a tenth. None: only those
            whose settings have a ``health_check_interval``, which comes first in any case.
        on_change: called with name, health before and health now, in the monitor's thread; what it raises is logged.

    Raises:
        InvalidSettingError: the interval makes no sense.

    Example:
        >>> import threading
        >>> from wirestate import HealthMonitor, ResourceManager
        >>> seen = threading.Event()
        >>> with ResourceManager() as manager:
        ...     manager.register_from_dict("rates", {"data": {"EUR": 1.1}})
        ...     with HealthMonitor(manager, interval=10, on_change=lambda name, before, after: seen.set()):
        ...         seen.wait(5)
        True
    """

    def __init__(self, manager: Monitored, *, interval: float | None = 30.0, on_change: OnChange | None = None) -> None:
        if interval is not None and not 0 < interval <= LONGEST_WAIT:
            raise InvalidSettingError(f"interval is {interval!r} s; it must be more than 0", None, "monitor")
        self.interval = interval
        self._manager = ref(manager)  # one that was forgotten without a close ends the thread, too
        self._callbacks: list[OnChange] = [] if on_change is None else [on_change]
        self._known: dict[str, ResourceHealth] = {}
        self._thread: threading.Thread | None = None
        self.forget_parent()
        forget_at_fork(self)

    def forget_parent(self) -> None:
        """Begin without a thread: at first, and in a forked child."""
        self._lock = threading.Lock()
        self._voice = Voice()
        self._wake = threading.Event()
        self._thread = None

    def call(self, on_change: OnChange) -> None:
        """Call *on_change*, too."""
        self._callbacks.append(on_change)

    @property
    def is_running(self) -> bool:
        """Whether it probes."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> Self:
        """Probe from now on; where it runs already, look at once for resources that are new.

        Raises:
            ResourceClosedError: the manager is closed.
        """
        manager = self._manager()
        if manager is None or manager.closed:
            raise ResourceClosedError("the manager is closed; there is nothing to probe", None, "monitor")
        with self._lock:
            self._wake.set()
            if not self.is_running:
                self._wake, self._voice = threading.Event(), Voice()
                self._thread = threading.Thread(
                    target=self._run, args=(self._wake,), name="wirestate-monitor", daemon=True
                )
                manager.monitors.add(self)
                self._thread.start()
        return self

    def stop(self) -> None:
        """Probe no more; the thread ends at once, or with the probe that it waits for. Nobody is called any more."""
        drive(self.end(BLOCKING))

    async def end(self, world: World) -> None:
        """Do the same in either world."""
        with self._lock:
            self._thread = None
            self._wake.set()
            voice = self._voice
        await voice.hush(world)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # --- the thread --------------------------------------------------------------------------

    def _run(self, wake: threading.Event) -> None:
        due: dict[str, float] = {}
        while (pause := self._round(due)) is not None:
            wake.wait(pause)
            wake.clear()

    @property
    def _is_mine(self) -> bool:
        return self._thread is threading.current_thread()

    def _round(self, due: dict[str, float]) -> float | None:
        """Probe what is due; return the seconds until the next is, None at the end."""
        voice = self._voice  # before the look at the thread: start() sets another one for another
        manager = self._manager()
        if manager is None or manager.closed or not self._is_mine:
            return None
        try:
            probes = manager.probes(made=self.interval is None)
            every = {name: probe.interval or self.interval for name, probe in probes.items()}
            now = monotonic()
            ready = {name: probe for name, probe in probes.items() if every[name] and due.get(name, 0.0) <= now}
            for name, health in drive(ask_all(ready, BLOCKING)).items():
                due[name] = monotonic() + (every[name] or 0.0) * random.uniform(1 - JITTER, 1 + JITTER)
                self._compare(name, health, voice)
        except Exception as error:  # no thread for a probe, say: the next round may have one
            log_failure(log, error, "a round of background probes failed")
            return self.interval or 1.0
        times = [due[name] for name in due.keys() & probes.keys()]
        return max(0.0, min(times, default=monotonic() + (self.interval or 1.0)) - monotonic())

    def _compare(self, name: str, health: ResourceHealth, voice: Voice) -> None:
        if voice.is_silent:  # stopped meanwhile: the probe was cut off, or says nothing to anybody
            return
        before = self._known.get(name, ResourceHealth.UNKNOWN)
        self._known[name] = health
        if health is not before:
            level = logging.WARNING if health is ResourceHealth.UNHEALTHY else logging.DEBUG
            log.log(level, "%r is %s, and was %s", name, health.value, before.value)
            for callback in list(self._callbacks):
                voice.tell(callback, name, before, health)

    @half_made_too
    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        health = ", ".join(f"{name} {health.value}" for name, health in self._known.items())
        return f"<HealthMonitor {state}{': ' if health else ''}{health}>"
