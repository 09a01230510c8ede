"""How the resources of a pool are checked before they are handed out, and reset when they come back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from wirestate.errors import ResourceError, ResourceUnavailableError, printable
from wirestate.observing import Listener
from wirestate.redaction import quoted
from wirestate.resources.calls import ProviderCalls
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.pool_store import ALWAYS, Entry, Store
from wirestate.resources.reports import logger
from wirestate.resources.threaded import ThreadedCall
from wirestate.resources.upkeep import INF
from wirestate.waiting import BLOCKING, SUSPENDING, ExpiredError, World, drive, running_loop


class Checking(Store):
    """A store that hands out no resource that is dead, and none that its last owner left untidy."""

    def __init__(self, calls: ProviderCalls, config: PoolConfig, name: str, listener: Listener | None) -> None:
        self._window = INF if calls.validate is None else config.validate_after
        self._resets = calls.reset is not None
        self._dead_before = -INF  # what rested since before then is dead, like one that was checked
        self._last_failure: ResourceError | None = None
        super().__init__(calls, config, name, listener)

    # --- before it is handed out -----------------------------------------------------------------

    async def _usable(self, entry: Entry, until: float, world: World) -> bool:
        """Tell whether the resource of *entry* may be handed out; else say why not on it."""
        now = monotonic()
        entry.doomed = "expired" if now >= entry.expires else "suspect" if entry.since <= self._dead_before else ""
        validate = self._calls.validate
        if entry.doomed or validate is None:
            return not entry.doomed
        entry.doomed = "invalid"  # until it has answered
        # What rested longer than one that died of resting is not worth a probe.
        dead_before = entry.since if entry.check_at != ALWAYS else -INF
        try:
            if await self._ask(validate, entry, until, world, is_async=self._calls.validate_is_async):
                entry.doomed = ""
                return True
        except ExpiredError:
            if self.config.validation_timeout is None or until <= now + self.config.validation_timeout:
                dead_before = -INF  # only its caller's time was over: that says nothing of others
            error = TimeoutError(f"its check gave no answer in {monotonic() - now:.2f} s")
            self._last_failure = ResourceUnavailableError(self.name, error, "validate")
        except Exception as error:  # whatever it is, this resource is not handed out
            self._last_failure = ResourceUnavailableError(self.name, error, "validate")
        except BaseException:  # interrupted in between: nobody knows what it would answer now
            self.abandon(entry, "interrupted")
            raise
        self._doubt(dead_before)
        return False

    def _doubt(self, dead_before: float = -INF) -> None:
        """Have what rests checked before its next use; one resource was found dead."""
        self._dead_before = max(self._dead_before, dead_before)
        with self._lock:
            for entry in list(self._idle):
                entry.check_at = ALWAYS

    async def _ask(
        self,
        verb: Callable[[Any], Any],  # Any: see Entry
        entry: Entry,
        until: float,
        world: World,
        *,
        is_async: bool,
    ) -> Any:  # Any: what the provider answers
        """Call *verb* with the resource of *entry*, for as long as is allowed; raise ExpiredError after that."""
        limit = self.config.validation_timeout
        seconds = max(0.0, min(limit or INF, until - monotonic()))
        if is_async:
            return await world.bounded(verb(entry.resource), None if seconds == INF else seconds)
        if limit is None or not self._may_thread(entry, world):
            return verb(entry.resource)
        call = ThreadedCall(partial(verb, entry.resource), partial(self._answered_late, entry), world)
        try:
            return await call.wait(seconds)
        finally:
            entry.stuck = call.left

    def _answered_late(self, entry: Entry, *answer: object) -> None:
        """Destroy what was at work while its place was given on."""
        drive(self._destroy(entry, None, BLOCKING, INF))

    # --- when it comes back ----------------------------------------------------------------------

    async def give_back_later(self, entry: Entry, world: World, error: BaseException | None = None) -> None:
        """Do what ``give_back()`` could not: reset the resource of *entry*, or destroy it, on its loop."""
        if entry.loop is not None and entry.loop is not running_loop():
            self._finish_at_home(entry, error)
            return
        if self._closed:
            entry.doomed = entry.doomed or "closed"
        if not entry.doomed and await self._was_reset(entry, world):
            self._pass_on(entry)
            if not self._closed or not self._came_late(entry):
                return
        await self.discard(entry, world, error)

    def finish(self, entry: Entry, error: BaseException | None) -> None:
        """Do what ``give_back()`` could not, where nothing can be awaited: here, or later on its loop."""
        if self._calls.release_is_async or self._calls.reset_is_async:
            self._finish_at_home(entry, error)
        else:
            drive(self.give_back_later(entry, BLOCKING, error))

    def _finish_at_home(self, entry: Entry, error: BaseException | None) -> None:
        if not self._send_home(entry, partial(self.give_back_later, entry, SUSPENDING, error)):
            entry.doomed = entry.doomed or "loop closed"
            self._drop(entry)

    async def _was_reset(self, entry: Entry, world: World) -> bool:
        """Reset the resource of *entry*; False if it must not be used again. Its borrower's result is not touched."""
        reset = self._calls.reset
        if reset is None:
            return True
        entry.doomed = "reset"  # until it is done
        # Who gives back has no deadline of their own.
        until = monotonic() + (self.config.validation_timeout or self.config.destroy_timeout or INF)
        try:
            await self._ask(reset, entry, until, world, is_async=self._calls.reset_is_async)
        except Exception as failure:  # whatever it is, nobody gets this resource any more
            logger.warning("pool %r: resetting a resource failed: %s", self.name, printable(quoted(failure)))
            return False
        except BaseException:
            self.abandon(entry, "interrupted")
            raise
        entry.doomed = ""
        return True
