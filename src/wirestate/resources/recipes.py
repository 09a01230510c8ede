"""How one thing is opened in a scope and ended with its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeVar

from wirestate.errors import InvalidSettingError, ResourceError
from wirestate.redaction import half_made_too
from wirestate.resources.base import BaseResourceProvider, ResourceMetrics
from wirestate.resources.breaker import CircuitBreaker
from wirestate.resources.calls import is_async_callable, takes_error
from wirestate.resources.gate import GateSnapshot
from wirestate.resources.health import Probe
from wirestate.resources.meter import Meter
from wirestate.resources.pool_config import PoolConfig
from wirestate.resources.threads import Threads
from wirestate.waiting import World

Lifetime = Literal["singleton", "per_owner", "per_state"]
LEVELS: dict[Lifetime, int] = {"singleton": 0, "per_owner": 1, "per_state": 2}
LIFETIME_WORDS = ("singleton", "per owner", "per state")
T = TypeVar("T")
END = object()  # what an ended generator gives instead of a value


class HoldingScope(Protocol):
    """What a recipe may know of the scope that it is opened in."""

    held: dict[Any, Any]  # Any: recipe -> what it handed out
    slots: dict[Any, Any] | None  # Any: recipe -> capacity that was reserved for it

    @property
    def owner_id(self) -> str: ...


Make = Callable[[HoldingScope], Any]  # calls the user's function with its arguments; Any: whatever it gives
Opened = tuple[Any, Any]  # (what is handed out, what is needed to end it); Any: both are the user's or a driver's


class Recipe:
    """One thing that scopes can open; the level says in which of them it lives.

    ``start`` and ``finish`` are plain; they return None and False where something must be awaited,
    and only then the coroutines ``astart`` and ``afinish`` are called.
    """

    __slots__ = ("blocking", "is_async", "level", "manager", "meter", "name")
    metered = True  # False: what lends it counts for itself

    @property
    def source(self) -> Recipe:
        """What answers the questions about it: itself, or what it has made."""
        return self

    @property
    def probe(self) -> Probe | None:
        """What asks for the health of what is behind it, if that can be asked."""
        return None

    @property
    def breaker(self) -> CircuitBreaker | None:
        """The circuit breaker of its pool or service, if it has one."""
        return None

    @property
    def pool_config(self) -> PoolConfig | None:
        """How its pool is sized, None without a pool."""
        return None

    @property
    def counts_creations(self) -> bool:
        """Whether its metrics tell how many resources were made, and how long that took."""
        return False

    @property
    def requests(self) -> GateSnapshot | None:
        """What is counted of its uses where these are not its leases."""
        return None

    @property
    def measured_as(self) -> str:
        """What the names of its measurements begin with."""
        return BaseResourceProvider.measured_as

    def __init__(self, name: str, level: int, *, is_async: bool = False, blocking: bool = False) -> None:
        self.name = name
        self.level = level
        self.is_async = is_async
        self.blocking = blocking  # opening, using or ending it can wait in the thread
        self.meter = Meter()
        self.manager: Any = None  # the manager whose root holds it if it is a singleton; set when it is registered

    @property
    def must_end(self) -> bool:
        """Whether its end does anything."""
        return True

    @property
    def longest_wait(self) -> float | None:
        """Seconds for which its pool lets one wait in line; None without such a line."""
        return None

    @property
    def threads(self) -> Threads:
        """Where tasks open and end it if it is blocking."""
        threads: Threads = self.manager.call_threads
        return threads

    def waits_in(self, world: World) -> bool:
        """Return True if opening or ending it in *world* needs a thread."""
        return self.blocking and world.is_async

    async def call(self, world: World, call: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
        """Call *call*, in a thread where it could stop an event loop; see :meth:`Threads.run`."""
        if not self.waits_in(world):
            return call()
        return await self.threads.run(call, undo=undo, required=undo is None)  # an end must come, an opening need not

    def start(self, scope: HoldingScope) -> Opened | None:
        """Open at once, or return None: somebody has to wait."""
        return None

    async def astart(self, scope: HoldingScope, world: World, timeout: float | None, options: dict[str, Any]) -> Opened:
        """Open, waiting where it must be."""
        opened = await self.call(world, lambda: self.start(scope), undo=self._taken_back)
        assert opened is not None, f"{type(self).__name__} can neither open at once nor wait"
        return opened

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        """End with the outcome; False: it must be awaited and nothing was done."""
        return True

    def _taken_back(self, opened: Opened | None) -> None:
        """End what was opened for a task that has been cancelled meanwhile."""
        if opened is not None:
            self.finish(opened[1], asyncio.CancelledError())

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        """End with the outcome, waiting where it must be."""
        await self.call(world, lambda: self.finish(handle, error))

    def renew(self) -> Recipe | None:
        """Forget what was made once for all openings, and return what must be closed of it."""
        return None

    def metrics(self) -> ResourceMetrics:
        """Return the counters as they are now."""
        return self.meter.read()

    def pool_snapshot(self) -> object | None:
        """Return what its pool holds and has counted, None without a pool."""
        return None

    @half_made_too
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {LIFETIME_WORDS[self.level]}>"


class FunctionRecipe(Recipe):
    """Something that a call makes, with arguments that the scope gives."""

    __slots__ = ("awaits", "make")
    asynchronous = False
    ended_by: str | None = None  # the verb that what was made must have

    def __init__(
        self,
        name: str,
        level: int,
        make: Make,
        *,
        close: Callable[..., Any] | None = None,
        awaits: bool = False,
        blocking: bool = False,
    ) -> None:
        super().__init__(name, level, is_async=self.asynchronous or awaits, blocking=blocking)
        self.awaits = awaits
        self.make = make  # with ``awaits`` it gives a coroutine, since arguments must be awaited first

    def begin(self, made: Any) -> Opened:
        """Begin what the call gave; return what is handed out and what ends it."""
        raise NotImplementedError

    async def abegin(self, made: Any) -> Opened:
        """Begin what the call gave, where that must be awaited."""
        return self.begin(made)

    def start(self, scope: HoldingScope) -> Opened | None:
        if self.is_async:
            return None
        return self.begin(self._checked(self.make(scope)))

    async def astart(self, scope: HoldingScope, world: World, timeout: float | None, options: dict[str, Any]) -> Opened:
        if not self.waits_in(world):
            return await self.abegin(
                self._checked(await settled(self.make(scope)) if self.awaits else self.make(scope))
            )
        made = await self.make(scope) if self.awaits else None
        return await self.call(
            world,
            lambda: self.begin(self._checked(made if self.awaits else self.make(scope))),
            undo=self._taken_back,
        )

    def _checked(self, made: Any) -> Any:
        if self.ended_by is not None and not hasattr(made, self.ended_by):
            raise self.otherwise(made)
        return made

    def otherwise(self, made: Any) -> InvalidSettingError:
        """Make the error for a decorator that changed what the function below it gives."""
        return InvalidSettingError(
            f"resource {self.name!r}: a decorator of its function returns {type(made).__name__}, which has no "
            f"{self.ended_by}(); declare the function without it, or a lambda around it to hand that out",
            self.name,
            "acquire",
        )


def never_entered(made: Any) -> str | None:
    """Return what *made* is if it is of no use before somebody has entered or awaited it, else None."""
    if inspect.isgenerator(made) or inspect.isasyncgen(made):
        return "a generator" if inspect.isgenerator(made) else "an asynchronous generator"
    if inspect.iscoroutine(made):
        return "a coroutine"
    if type(made).__module__ != contextlib.__name__:  # objects that can be used both ways, such as files, are others'
        return None
    if hasattr(made, "__enter__"):
        return "a context manager"
    return "an asynchronous context manager" if hasattr(made, "__aenter__") else None


async def settled(value: Any) -> Any:
    """Await *value* if it must be."""
    return await value if inspect.isawaitable(value) else value


class GeneratorRecipe(FunctionRecipe):
    """A generator function: what it yields is handed out, what follows is its clean-up."""

    __slots__ = ()
    ended_by = "throw"

    def begin(self, made: Any) -> Opened:
        value = next(made, END)
        if value is END:
            raise self.without_yield()
        return value, made

    def without_yield(self) -> ResourceError:
        """Make the error for a generator function that ended before it handed anything out."""
        return ResourceError(f"generator function of {self.name!r} ended without a yield", self.name, "acquire")

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        if error is None:
            if next(handle, END) is not END:
                raise self.second_yield(handle)
            return True
        traceback = error.__traceback__
        try:
            handle.throw(error)
        except StopIteration:
            return True  # it wanted to swallow the error: the body's error stays the error
        except BaseException as raised:
            if raised is error or _is_error_in_disguise(raised, error):
                return True
            raise
        finally:
            error.with_traceback(traceback)  # without the generator's own frames
        raise self.second_yield(handle)

    def second_yield(self, handle: Any) -> ResourceError:
        """Close a generator that went on, and make the error for it."""
        error = ResourceError(f"generator function of {self.name!r} yielded twice", self.name, "release")
        try:
            handle.close()
        except Exception as failure:  # it ignores its end, too
            error.__cause__ = failure
        return error


def _is_error_in_disguise(raised: BaseException, error: BaseException) -> bool:
    """A StopIteration thrown into a generator leaves it as a RuntimeError (PEP 479)."""
    return isinstance(error, StopIteration | StopAsyncIteration) and raised.__cause__ is error


class AsyncGeneratorRecipe(FunctionRecipe):
    """An async generator function."""

    __slots__ = ()
    ended_by = "athrow"
    asynchronous = True

    async def abegin(self, made: Any) -> Opened:
        value = await anext(made, END)
        if value is END:
            raise ResourceError(f"generator function of {self.name!r} ended without a yield", self.name, "acquire")
        return value, made

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        return False

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        if error is None:
            if await anext(handle, END) is END:
                return
        else:
            traceback = error.__traceback__
            try:
                await handle.athrow(error)
            except StopAsyncIteration:
                return
            except BaseException as raised:
                if raised is error or _is_error_in_disguise(raised, error):
                    return
                raise
            finally:
                error.with_traceback(traceback)
        yielded_twice = ResourceError(f"generator function of {self.name!r} yielded twice", self.name, "release")
        try:
            await handle.aclose()
        except Exception as failure:  # it ignores its end, too
            raise yielded_twice from failure
        raise yielded_twice


class ContextRecipe(FunctionRecipe):
    """A class of context managers, or a function of ``contextlib``'s; what ``__enter__`` returns is handed out."""

    __slots__ = ()
    ended_by = "__exit__"

    def begin(self, made: Any) -> Opened:
        return made.__enter__(), made

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        if error is None:
            handle.__exit__(None, None, None)
        else:
            try:
                handle.__exit__(type(error), error, error.__traceback__)
            except BaseException as raised:
                if raised is not error:
                    raise
        return True


class AsyncContextRecipe(FunctionRecipe):
    """A class or function that gives an asynchronous context manager."""

    __slots__ = ()
    ended_by = "__aexit__"
    asynchronous = True

    async def abegin(self, made: Any) -> Opened:
        return await made.__aenter__(), made

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        return False

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        try:
            await handle.__aexit__(None if error is None else type(error), error, error and error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                raise


class CallRecipe(FunctionRecipe):
    """A plain or coroutine function; ``close`` (plain or coroutine function) ends what it returned."""

    __slots__ = ("close", "close_is_async", "close_takes_error")

    def __init__(
        self,
        name: str,
        level: int,
        make: Make,
        *,
        close: Callable[..., Any] | None = None,
        awaits: bool = False,
        blocking: bool = False,
        call_is_async: bool = False,
    ) -> None:
        super().__init__(name, level, make, awaits=awaits, blocking=blocking)
        self.close = close
        self.close_is_async = is_async_callable(close)
        self.close_takes_error = close is not None and takes_error(close)
        self.is_async = awaits or call_is_async or self.close_is_async

    @property
    def must_end(self) -> bool:
        return self.close is not None

    def begin(self, made: Any) -> Opened:
        if self.close is None and (kind := never_entered(made)) is not None:
            if inspect.iscoroutine(made):
                made.close()  # it would warn that nobody has awaited it
            raise InvalidSettingError(
                f"resource {self.name!r}: its function returned {kind}, and nothing would enter and end it; declare "
                f"what makes it as it is, a generator, coroutine or context manager function or a functools.partial "
                f"of one; or give close= to hand it out raw",
                self.name,
                "acquire",
            )
        return made, made

    async def abegin(self, made: Any) -> Opened:
        return self.begin(await settled(made))

    def _end(self, handle: Any, error: BaseException | None) -> Awaitable[None] | None:
        assert self.close is not None
        return self.close(handle, error=error) if self.close_takes_error else self.close(handle)  # type: ignore[no-any-return]

    def finish(self, handle: Any, error: BaseException | None) -> bool:
        if self.close is not None:
            if self.close_is_async:
                return False
            self._end(handle, error)
        return True

    async def afinish(self, handle: Any, error: BaseException | None, world: World) -> None:
        if not self.close_is_async:
            await super().afinish(handle, error, world)
        elif self.close is not None and (pending := self._end(handle, error)) is not None:
            await pending
