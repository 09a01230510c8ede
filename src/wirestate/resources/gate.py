"""Admission: at most so many at once, first come, first served."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from dataclasses import dataclass
from time import monotonic

from wirestate.observing import Listener
from wirestate.redaction import half_made_too
from wirestate.resources.line import Line
from wirestate.resources.places import NOBODY, Place
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.upkeep import UPKEEP
from wirestate.waiting import World

__all__ = ["Gate", "GateSnapshot", "Place"]


@dataclass(frozen=True, slots=True)
class GateSnapshot:
    """What a gate holds and has counted at one moment; times are total float seconds."""

    used: int
    limit: int
    waiting: int
    acquisitions: int
    timeouts: int
    refused: int
    leaks: int
    hold_time: float
    wait_time: float
    idle: int = 0  # connections that rest in the pool behind it, as far as that pool tells

    @property
    def size(self) -> int:
        """Connections that exist: idle and used."""
        return self.idle + self.used

    @property
    def available(self) -> int:
        """Connections that rest."""
        return self.idle


class Gate(Line[Place]):
    """Let at most *limit* owners in at once: what stands in front of a library's own pool.

    Args:
        limit: how many may be inside.
        name: the resource behind it, for messages.
        timeout: longest wait in seconds (0: do not wait, None: no limit).
        max_waiting: how many may wait (None: no limit).
        leak_threshold: seconds after which a place that is still held is reported, once (None: never).
        listener: hears of leaks.

    Example:
        >>> gate = Gate(1, name="api")
        >>> place = gate.enter_now("run-1")
        >>> gate.enter_now("run-2") is None
        True
        >>> gate.leave(place)
    """

    def __init__(
        self,
        limit: int,
        *,
        name: str,
        timeout: float | None = 30.0,
        max_waiting: int | None = None,
        leak_threshold: float | None = None,
        listener: Listener | None = None,
    ) -> None:
        super().__init__(
            name,
            limit,
            timeout=timeout,
            max_waiting=max_waiting,
            leak_threshold=leak_threshold,
            listener=listener,
        )

    @classmethod
    def of(cls, name: str, limits: PoolConfig) -> Gate:
        """Make the gate in front of the pool that *limits* describe."""
        return cls(
            limits.max_size,
            name=name,
            timeout=limits.acquire_timeout,
            max_waiting=limits.max_waiting,
            leak_threshold=limits.leak_threshold,
        )

    def enter_now(self, owner: object = None) -> Place | None:
        """Return a place if one is free and nobody waits for it."""
        if self._waiting or self._closed:
            return None
        try:
            place = self._idle.pop()
        except IndexError:
            with self._lock:
                if self._lost:
                    self._recover()
                found = None if self._waiting else self._pick(None)
            if found is None:
                return None
            place = found
        place.since = monotonic()
        place.owner = owner
        if self._depth:
            self._keep_stack(place)
            self._watch()
        return place

    async def enter(self, owner: object, timeout: float | None, world: World) -> Place:
        """Wait for a place; *timeout* None means the gate's own."""
        self._watch()
        return await self.take(owner, timeout, world)

    def leave(self, place: Place) -> None:
        """Give *place* to the next in line."""
        if place.owner is NOBODY or place.line is not self:
            self._not_held(place)
            return
        now = monotonic()
        place.owner = NOBODY
        place.uses += 1
        place.held_time += now - place.since
        place.since = now
        self._pass_on(place)

    def _pick(self, loop: AbstractEventLoop | None) -> Place | None:
        try:
            return self._idle.pop()
        except IndexError:
            if not self._spare:
                return None
        place = Place(self)
        self._places.add(place)
        self._spare -= 1
        place.alive = True  # no call in between: an interrupt cannot split the two
        return place

    def close(self) -> None:
        """Let nobody in any more; who is inside may stay."""
        UPKEEP.forget(self)
        self._stop()

    def snapshot(self) -> GateSnapshot:
        """Return what is held and counted now."""
        with self._lock:
            self._recover()
            uses, held, waited = self._uses()
            return GateSnapshot(
                used=self._limit - self._spare - len(self._idle),
                limit=self._limit,
                waiting=self._waiters(),
                acquisitions=uses,
                timeouts=self._timeouts,
                refused=self._refused,
                leaks=self._leaks,
                hold_time=held,
                wait_time=waited,
            )

    @half_made_too
    def __repr__(self) -> str:
        state = self.snapshot()
        closed = " closed" if self._closed else ""
        counts = f"{state.used} of {state.limit} inside, {state.waiting} waiting"
        return f"<Gate {self.name!r}{closed}: {counts}{self._longest()}>"
