"""How the leases of one bracket end: last in, first out, each with the outcome, whatever the others raise."""

from __future__ import annotations

from time import monotonic
from typing import Any, Protocol, TypeAlias

from wirestate.errors import ResourceClosedError
from wirestate.observing import Listener
from wirestate.resources.failures import note, outcome_of
from wirestate.resources.meter import FOLD_AT
from wirestate.resources.recipes import END, GeneratorRecipe, Recipe
from wirestate.resources.reports import tell
from wirestate.waiting import World

Lease: TypeAlias = tuple[Recipe, Any, float]  # Any: whatever ends it; float: open since


class Heard(Protocol):
    """A manager, as far as endings know it."""

    ears: Listener | None  # who hears of leases; read on every visit, hence no property


class Ending:
    """The ending half of a scope."""

    closed = False
    interrupted = False  # its manager was closed while somebody was inside: nothing of it may be committed
    manager: Heard
    held: dict[Recipe, Any]  # Any: the resources themselves
    exits: list[Lease]

    @property
    def owner_id(self) -> str:
        """The public name of this bracket."""
        raise NotImplementedError

    def async_names(self) -> list[str]:
        """Names of what is open here and can only be ended with an event loop."""
        return [recipe.name for recipe, _, _ in list(self.exits) if recipe.is_async]

    def end_now(self, error: BaseException | None, failures: list[BaseException], world: World) -> bool:
        """End everything that needs neither an event loop nor a thread, newest first; False if one is met that does.

        Every release runs; what they raise goes into *failures*, and is the outcome of those that follow.
        """
        self.closed = True
        if error is None and (failures or self.interrupted):
            if not failures:
                failures.append(self.interruption())
            error = failures[0]
        exits = self.exits
        listener = self.manager.ears
        now = monotonic()
        in_task = world.is_async
        while exits:
            try:
                recipe, handle, since = last = exits.pop()
            except IndexError:  # another thread ends this scope too, and was faster
                break
            try:
                in_thread = recipe.blocking and in_task
                if error is None and type(recipe) is GeneratorRecipe and not in_thread:
                    if next(handle, END) is not END:
                        raise recipe.second_yield(handle)
                elif in_thread or not recipe.finish(handle, error):
                    exits.append(last)
                    return False
            except BaseException as raised:  # carried on: the others must be released
                self._note(raised, recipe, error, failures)
                error = outcome_of(error, failures)
            if listener is not None:
                tell(listener.on_close, recipe.name, self.owner_id, now - since, error)
            if recipe.metered:
                holds = recipe.meter.holds  # meter.ended() unrolled
                holds.append(now - since)
                if len(holds) > FOLD_AT:
                    recipe.meter.fold()
        self.held = {}
        if error is None and self.interrupted:  # meanwhile, by another thread, which has ended some of it
            failures.append(self.interruption())
        return True

    def interruption(self) -> ResourceClosedError:
        """Make the error for a scope whose manager was closed while somebody was inside."""
        return ResourceClosedError(
            f"scope {self.owner_id!r} was open when its container or machine was closed; what it held was rolled back",
            None,
            "close",
        )

    async def end(self, error: BaseException | None, world: World) -> list[BaseException]:
        """End everything, newest first; return what the releases raised."""
        failures: list[BaseException] = []
        while not self.end_now(error, failures, world):
            try:
                recipe, handle, since = self.exits.pop()
            except IndexError:  # another thread was faster
                continue
            try:
                await recipe.afinish(handle, outcome_of(error, failures), world)
            except BaseException as raised:  # carried on: the others must be released
                self._note(raised, recipe, error, failures)
            self._over(recipe, since, outcome_of(error, failures))
        return failures

    def _over(self, recipe: Recipe, since: float, outcome: BaseException | None) -> None:
        """Count and tell that a lease is over."""
        seconds = monotonic() - since
        if recipe.metered:
            recipe.meter.ended(seconds)
        listener = self.manager.ears
        if listener is not None:
            tell(listener.on_close, recipe.name, self.owner_id, seconds, outcome)

    def _note(
        self, raised: BaseException, recipe: Recipe, error: BaseException | None, failures: list[BaseException]
    ) -> None:
        if raised is error:  # a release that raises its outcome again says nothing new
            return
        note(raised, f"raised while {recipe.name!r} of {self.owner_id!r} was released")
        failures.append(raised)

    async def end_one(self, recipe: Recipe, error: BaseException | None, world: World) -> None:
        """End one lease before its scope ends."""
        lease = self.take_off(recipe)
        if lease is not None:
            await self.end_lease(lease, error, world)

    def take_off(self, recipe: Recipe) -> Lease | None:
        """Hand *recipe* out no more; return its lease, which the caller must end."""
        found = next((one for one in reversed(self.exits) if one[0] is recipe), None)
        if found is None:
            return None
        try:
            self.exits.remove(found)
        except ValueError:  # somebody else was faster
            return None
        self.held.pop(recipe, None)
        return found

    def take_over(self, recipe: Recipe, stand_in: Any) -> Lease | None:  # Any: what others wait for
        """Hand out *stand_in* for *recipe* from now on; return the lease there was, which the caller must end."""
        found = next((one for one in reversed(self.exits) if one[0] is recipe), None)
        self.held[recipe] = stand_in
        if found is not None:
            try:
                self.exits.remove(found)
            except ValueError:  # somebody else was faster
                return None
        return found

    async def end_lease(self, lease: Lease, error: BaseException | None, world: World) -> None:
        """End a lease that was taken off."""
        recipe, handle, since = lease
        outcome = error
        try:
            if recipe.waits_in(world) or not recipe.finish(handle, error):
                await recipe.afinish(handle, error, world)
        except BaseException as raised:
            outcome = raised if error is None else error
            raise
        finally:
            self._over(recipe, since, outcome)
