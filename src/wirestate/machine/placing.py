"""Where a visit of an asynchronous run does its work: on the event loop, in a thread, or in both."""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from wirestate.errors import WirestateError
from wirestate.injection.edges import unchanged
from wirestate.machine.definition import ResourceUse
from wirestate.machine.failing import attach_failures
from wirestate.machine.plan import Call
from wirestate.machine.visit import Visit
from wirestate.resources.managed_pools import GatedRecipe, PooledRecipe
from wirestate.resources.recipes import Recipe
from wirestate.resources.scopes import Scope
from wirestate.waiting import BLOCKING, World, drive

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]  # Any: what a coroutine yields is its loop's


class Pooled(NamedTuple):
    """A blocking resource with a pool, and the scope in which a visit finds or opens it."""

    recipe: GatedRecipe | PooledRecipe
    place: Scope
    is_open: bool


def may_block(calls: Sequence[Call]) -> bool:
    """Return False if it is sure, in a microsecond, that nothing that *calls* inject is blocking."""
    for call in calls:  # noqa: SIM110  # all() with a generator costs three times as much
        if call.plan.blocking or not unchanged(call.plan.watch):
            return True
    return False


async def in_place(visit: Visit, calls: Sequence[Call], uses: Sequence[ResourceUse], work: Work[T]) -> T:
    """Do the *work* of *visit*, which makes *calls* and opens what these and *uses* need, where it stops nobody.

    Plain functions that use a blocking resource run in a thread. If nothing of the visit must be awaited, it runs
    there as a whole: opening, functions, conditions, end. Not for synchronous runs, nor where a state forbids it.
    The slots of all pools are taken before, in the order of their names, so that no two visits wait for each other.
    """
    offload = visit.state.state.offload
    steps, awaits = _needs(visit, calls, uses)
    blocking = [step for step in steps if step.blocking]
    if not blocking and not offload:
        return await work()
    pools = sorted(_pools(visit, blocking), key=lambda pooled: pooled.recipe.name)
    # Who holds a slot of a pool finds a thread of it, also for the visit that ends what others wait for.
    threads = pools[0].recipe.threads if pools else visit.run.engine.manager.visit_threads
    begun = False

    def begin() -> T:
        nonlocal begun
        begun = True
        return drive(work())

    run, world = visit.run, visit.run.world
    reserved = [pooled for pooled in pools if not pooled.is_open]
    try:
        run.phase = "open"
        for pooled in reserved:
            await _reserve(pooled, world, run.limit)
        if awaits:
            visit.threads, begun = threads, True
            return await work()
        run.world, visit.loop = BLOCKING, get_running_loop()
        return await threads.run(begin, on_cancel=visit.cancel)
    except BaseException as error:
        if not begun and visit.scope is not None:  # cancelled in line: nothing was opened
            attach_failures(error, await visit.scope._leave(error, world))
        raise
    finally:
        run.world = world
        for pooled in reserved:
            await _give_up(pooled, world)


def _needs(visit: Visit, calls: Sequence[Call], uses: Sequence[ResourceUse]) -> tuple[list[Recipe], bool]:
    """Return what would be opened under the overrides of now, and whether something must be awaited."""
    steps: dict[Recipe, None] = {}
    awaits = any(call.is_async for call in calls)
    for call in calls:
        with suppress(WirestateError):  # raised by the phase that opens it
            plan = call.fresh_plan()
            awaits = awaits or plan.suspends
            steps.update(dict.fromkeys(plan.steps))
    for use in uses:
        with suppress(WirestateError):
            steps.update(dict.fromkeys(visit.run.engine.entry(use.name).steps()))
    return list(steps), awaits or any(step.is_async for step in steps)


def _pools(visit: Visit, blocking: Sequence[Recipe]) -> Iterator[Pooled]:
    for step in blocking:
        recipe = step.source
        if visit.scope is not None and step.level > 0 and isinstance(recipe, GatedRecipe | PooledRecipe):
            place = visit.scope.place_of(step)
            yield Pooled(recipe, place, step in place.held)


async def _reserve(pooled: Pooled, world: World, until: float | None) -> None:
    """Wait in line on the loop: a thread that waits there could be the one which the run in front needs to end."""
    recipe, place, _ = pooled
    timeout = None if until is None else min(recipe.longest_wait, max(0.0, until - monotonic()))
    slot: object
    try:
        slot = await recipe.reserve(place, timeout, world)
    except Exception as error:  # raised by the phase that opens it, if the visit comes so far
        slot = error
    if place.slots is None:
        place.slots = {}
    place.slots[recipe] = slot


async def _give_up(pooled: Pooled, world: World) -> None:
    """Give the slot back if nothing was opened with it."""
    recipe = pooled.recipe
    slot = (pooled.place.slots or {}).pop(recipe, None)
    if slot is not None and not isinstance(slot, Exception):
        await recipe.call(world, lambda: recipe.give_up(slot))  # of a pool that was closed, it ends the resource
