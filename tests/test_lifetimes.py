"""Lifetimes as providers: what they accept, what they depend on, what is refused."""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest
from dependency_injector import providers
from dependency_injector.wiring import Provide, inject

from tests.conftest import Side
from wirestate import (
    BaseResourceProvider,
    BuildError,
    PoolConfig,
    ResourceContainer,
    ResourceError,
    ResourceHealth,
    SimpleFSM,
    lifetimes,
    manager_of,
)
from wirestate.errors import InvalidSettingError, LifetimeMismatchError, MachineClosedError, NotHeldError
from wirestate.testing import override


class Made(BaseResourceProvider):
    """Counts its instances, leases and closings."""

    instances: list[Made]

    def __init__(self, name: str = "made", url: str = "none", limit: Any = None) -> None:
        super().__init__(name)
        self.url, self.limit = url, limit
        self.closed = 0
        self.out = 0
        type(self).instances.append(self)

    def acquire(self, **options: Any) -> list[str]:
        self.out += 1
        return [self.url]

    def release(self, resource: Any) -> None:
        self.out -= 1

    def health_check(self) -> ResourceHealth:
        return ResourceHealth.HEALTHY

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def made() -> list[Made]:
    Made.instances = []
    return Made.instances


def machine_of(*functions: Any) -> dict[str, Any]:
    names = [function.__name__ for function in functions]
    return {
        "states": {
            name: {"transform": name, "arcs": [{"target": after}]}
            for name, after in zip(names, [*names[1:], "end"], strict=True)
        }
        | {"end": None}
    }


def process(side: Side, fsm: SimpleFSM, record: dict[str, Any], **how: Any) -> Any:
    return side.run(fsm.aprocess(record, **how)) if side.is_async else fsm.process(record, **how)


# --- resource providers ------------------------------------------------------------------------------


def test_a_resource_provider_is_made_once_and_only_its_leases_have_a_lifetime(made: list[Made]) -> None:
    class C(ResourceContainer):
        settings = providers.Singleton(dict, url="sqlite")
        db = lifetimes.PerState(Made, url=settings.provided["url"])
        ready = lifetimes.PerOwner(providers.Singleton(Made, "given"))

    with C() as container:
        assert made == []
        with container.manager.scope() as owner:
            for _ in range(2):
                with owner.state("s"):
                    assert container.db() is container.db()
                    assert container.db() == ["sqlite"]
                    assert container.ready() == ["none"]
        assert [(one.name, one.url, one.out) for one in made] == [("db", "sqlite", 0), ("given", "none", 0)]
    assert [one.closed for one in made] == [1, 1]


def test_an_argument_that_is_a_resource_is_opened_before_its_provider_is_made(made: list[Made]) -> None:
    opened: list[str] = []

    def secret() -> Iterator[str]:
        opened.append("secret")
        yield "token"
        opened.append("end")

    class C(ResourceContainer):
        token = lifetimes.Singleton(secret)
        api = lifetimes.PerState(Made, url=token, pool=PoolConfig(max_size=1))

    with C() as container:
        manager = container.manager
        assert manager.health_check() == {"token": ResourceHealth.UNKNOWN, "api": ResourceHealth.UNKNOWN}
        with manager.scope() as owner, owner.state("s"):
            assert container.api() == ["token"]
        assert manager.health_check("api") == {"api": ResourceHealth.HEALTHY}
        assert manager.get_resource_status("api")["has_pool"]
    assert opened == ["secret", "end"]
    assert made[0].closed == 1


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (lambda: lifetimes.PerState(5), "needs a callable"),
        (lambda: lifetimes.PerState(list, pool=PoolConfig()), "pool= is for resource providers; make list one"),
        (lambda: lifetimes.PerState(Made, pool=3), "pool= takes a PoolConfig"),
        (lambda: lifetimes.PerState(Made, close=print), "close= is for functions"),
        (
            lambda: lifetimes.PerState(functools.partial(Made, url="u")),
            "partial of Made, which would be handed out itself",
        ),
        (lambda: lifetimes.PerState(opened, [], close=print), "clean-up is what follows its yield"),
        (lambda: lifetimes.PerState(entered, [], close=print), "clean-up is what follows its yield"),
        (lambda: lifetimes.PerState(Made, url=providers.Coroutine(asyncio.sleep, 0, "x")), "is asynchronous"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_name(declared: Any, message: str) -> None:
    class C(ResourceContainer):
        thing = declared()

    container = C()
    scope = manager_of(container).scope()
    with scope, scope.state("s"), pytest.raises(InvalidSettingError, match=message) as caught:
        container.thing()
    assert "'thing'" in str(caught.value)


# --- what is entered and ended --------------------------------------------------------------------


def opened(log: list[str], name: str = "it") -> Iterator[str]:
    log.append("open")
    yield name
    log.append("close")


async def opened_waiting(log: list[str], name: str = "it") -> AsyncIterator[str]:
    log.append("open")
    yield name
    log.append("close")


entered, entered_waiting = contextmanager(opened), asynccontextmanager(opened_waiting)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


class Opener:
    def __call__(self, log: list[str]) -> Iterator[str]:
        yield from opened(log)

    @contextmanager
    def method(self, log: list[str]) -> Iterator[str]:
        yield from opened(log)

    @classmethod
    @asynccontextmanager
    async def of_class(cls, log: list[str]) -> AsyncIterator[str]:
        async for name in opened_waiting(log):
            yield name


class Entered:
    @contextmanager
    def __call__(self, log: list[str]) -> Iterator[str]:
        yield from opened(log)


class EnteredWaiting:
    @asynccontextmanager
    async def __call__(self, log: list[str]) -> AsyncIterator[str]:
        async for name in opened_waiting(log):
            yield name


@dataclass
class Unhashable:
    number: int = 1

    def __call__(self, log: list[str]) -> Iterator[str]:
        yield from opened(log)


class Tuple(NamedTuple):
    number: int = 1

    def __call__(self, log: list[str]) -> Iterator[str]:
        yield from opened(log)


class Manager:
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __enter__(self) -> str:
        self.log.append("open")
        return "it"

    def __exit__(self, *error: object) -> None:
        self.log.append("close")


FORMS: dict[str, tuple[Callable[..., Any], bool]] = {
    "partial of a context manager function": (functools.partial(entered, name="it"), False),
    "partial of an async context manager function": (functools.partial(entered_waiting, name="it"), True),
    "partial of a generator function": (functools.partial(opened, name="it"), False),
    "partial of an async generator function": (functools.partial(opened_waiting, name="it"), True),
    "partial of a partial": (functools.partial(functools.partial(entered), name="it"), False),
    "partial of a class": (functools.partial(Manager), False),
    "partial of an object": (functools.partial(Opener()), False),
    "decorated context manager function": (decorated(entered), False),
    "decorated async context manager function": (decorated(entered_waiting), True),
    "decorated partial": (decorated(functools.partial(entered)), False),
    "decorated class": (decorated(Manager), False),
    "object that is a generator function": (Opener(), False),
    "object that is a context manager function": (Entered(), False),
    "object that is an async context manager function": (EnteredWaiting(), True),
    "method": (Opener().method, False),
    "method of a class": (Opener.of_class, True),
    "partial of a method": (functools.partial(Opener().method), False),
    "object without a hash": (Unhashable(), False),
    "named tuple": (Tuple(), False),
}


@pytest.mark.parametrize("lifetime", [lifetimes.Singleton, lifetimes.PerOwner, lifetimes.PerState])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_entered_is_entered_in_whatever_form_it_is_declared(form: str, lifetime: Any, side: Side) -> None:
    function, asynchronous = FORMS[form]
    log: list[str] = []

    class C(ResourceContainer):
        thing = lifetime(function, log)

    def use(record: dict[str, Any], thing: Any = Provide["thing"]) -> dict[str, Any]:
        log.append("use")
        return {"thing": thing}

    container = C()
    with SimpleFSM(machine_of(use), container=container, functions={"use": use}) as fsm:
        assert fsm.is_async is asynchronous
        if asynchronous and not side.is_async:
            return
        assert process(side, fsm, {}).data == {"thing": "it"}
    pending = container.shutdown_resources()
    if pending is not None:
        side.run(pending)
    assert log == ["open", "use", "close"]


def test_what_a_plain_function_returns_is_handed_out_as_it_is_also_where_its_class_can_be_entered() -> None:
    log: list[str] = []

    class C(ResourceContainer):
        made = lifetimes.PerState(lambda: Manager(log))

    def use(record: dict[str, Any], made: Any = Provide["made"]) -> dict[str, Any]:
        return {"made": type(made)}

    with SimpleFSM(machine_of(use), container=C(), functions={"use": use}) as fsm:
        assert fsm.process({}).data == {"made": Manager}
    assert log == []


async def connected(name: str) -> str:
    return name


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda log: opened(log, "it"), "a generator"),
        (lambda log: entered(log, "it"), "a context manager"),
        (lambda log: closing(StringIO()), "a context manager"),
        (lambda log: opened_waiting(log, "it"), "an asynchronous generator"),
        (lambda log: entered_waiting(log, "it"), "an asynchronous context manager"),
        (lambda log: connected("it"), "a coroutine"),
    ],
)
def test_what_nothing_would_enter_is_not_handed_out(function: Any, returned: str, side: Side) -> None:
    log: list[str] = []

    class C(ResourceContainer):
        thing = lifetimes.PerState(function, log)

    def use(record: dict[str, Any], thing: Any = Provide["thing"]) -> None:
        log.append("use")

    with SimpleFSM(machine_of(use), container=C(), functions={"use": use}) as fsm:
        error = process(side, fsm, {}).error
    assert isinstance(error, InvalidSettingError)
    assert str(error).startswith(f"resource 'thing': its function returned {returned}, and nothing would enter")
    assert log == []


@pytest.mark.parametrize("way", ["resources=", "override"])
@pytest.mark.parametrize("function", [opened, entered], ids=["generator function", "context manager function"])
def test_a_function_that_stands_in_for_a_resource_is_entered_as_the_resource_would_be(
    function: Callable[..., Any], way: str, side: Side
) -> None:
    log: list[str] = []
    fake = functools.partial(function, log, "fake")

    class C(ResourceContainer):
        thing = lifetimes.PerState(opened, log)

    def use(record: dict[str, Any], thing: Any = Provide["thing"]) -> dict[str, Any]:
        log.append("use")
        return {"thing": thing}

    container = C()
    with ExitStack() as stack:
        if way == "override":
            stack.enter_context(override(container, thing=fake))
        given = {"thing": fake} if way == "resources=" else {}
        fsm = stack.enter_context(
            SimpleFSM(machine_of(use), container=container, resources=given, functions={"use": use})
        )
        assert process(side, fsm, {}).data == {"thing": "fake"}
    assert log == ["open", "use", "close"]


def test_a_mock_among_the_resources_of_a_machine_is_the_resource_itself(side: Side) -> None:
    double = MagicMock()

    def use(record: dict[str, Any], thing: Any = Provide["thing"], log: Any = Provide["log"]) -> dict[str, Any]:
        return {"same": thing is double}

    given = {"thing": double, "log": lifetimes.PerState(list)}
    with SimpleFSM(machine_of(use), resources=given, functions={"use": use}) as fsm:
        assert process(side, fsm, {}).data == {"same": True}


def test_close_hands_out_a_generator_as_it_is() -> None:
    closed: list[Any] = []

    class C(ResourceContainer):
        thing = lifetimes.PerState(lambda: opened([]), close=closed.append)

    with C() as container, container.manager.scope() as scope, scope.state("s"):
        thing = container.thing()
        assert next(thing) == "it"
    assert closed == [thing]


def test_a_decorator_that_changes_what_a_generator_function_gives_is_named() -> None:
    @functools.wraps(opened)
    def listed(text: str = "whole") -> list[str]:
        return [text]

    class C(ResourceContainer):
        thing = lifetimes.PerState(listed)
        around = lifetimes.PerState(lambda: listed("all"))

    with C() as container, container.manager.scope() as scope, scope.state("s"):
        assert container.around() == ["all"]
        with pytest.raises(InvalidSettingError, match="'thing': a decorator of its function returns list"):
            container.thing()


def test_arguments_at_the_call_are_refused() -> None:
    class C(ResourceContainer):
        thing = lifetimes.Singleton(list)

    with pytest.raises(TypeError, match="'thing' takes its arguments where it is declared"):
        C().thing([1])


def test_a_provider_is_named_by_a_path_too() -> None:
    class C(ResourceContainer):
        there = lifetimes.Singleton("collections:OrderedDict")
        dotted = lifetimes.Singleton("collections.OrderedDict", a=1)

    with C() as container:
        assert (container.there(), container.dotted()) == ({}, {"a": 1})


# --- dependencies ------------------------------------------------------------------------------------


def test_dependencies_open_first_and_end_last() -> None:
    lines: list[str] = []

    def thing(name: str, *needs: Any) -> Iterator[str]:
        lines.append(f"open {name}{list(needs)}")
        yield name
        lines.append(f"end {name}")

    class C(ResourceContainer):
        once = lifetimes.Singleton(thing, "once")
        run = lifetimes.PerOwner(thing, "run", once)
        dao = providers.Factory(dict, x=run)
        visit = lifetimes.PerState(thing, "visit", run, dao, providers.Callable(len, providers.List(once)))

    with C() as container, container.manager.scope() as owner, owner.state("s"):
        assert container.visit() == "visit"
    assert lines == [
        "open once[]",
        "open run['once']",
        "open visit['run', {'x': 'run'}, 1]",
        "end visit",
        "end run",
        "end once",
    ]


def test_a_shorter_life_is_refused_and_the_way_is_drawn_with_the_containers_names() -> None:
    class C(ResourceContainer):
        database = lifetimes.PerState(list)
        dao = providers.Factory(dict, db=database)
        report = lifetimes.Singleton(dict, dao=dao)
        plain = providers.Singleton(dict, dao=dao)

    def use_report(record: Any, x: Any = Provide[C.report]) -> None: ...
    def use_plain(record: Any, x: Any = Provide["plain"]) -> None: ...

    container = C()
    manager_of(container)
    with pytest.raises(LifetimeMismatchError) as caught:
        container.report()
    assert str(caught.value) == (
        "singleton 'report' depends on per state 'database':  report ─> dao ─> database.  "
        "Make 'report' per state, or inject `database.provider`."
    )
    for function in (use_report, use_plain):
        with pytest.raises(BuildError, match=rf"R004.*singleton '{function.__name__[4:]}' .* ─> dao ─> database"):
            SimpleFSM(machine_of(function), container=container, functions={function.__name__: function})


def test_a_delegate_is_the_legal_lazy_escape() -> None:
    class C(ResourceContainer):
        database = lifetimes.PerState(list)
        report = lifetimes.Singleton(dict, db=database.provider)

    def use(record: Any, report: Any = Provide["report"], db: Any = Provide["database"]) -> Any:
        return {"same": report["db"]() is db}

    with C() as container, SimpleFSM(machine_of(use), container=container, functions={"use": use}) as fsm:
        for _ in range(2):
            assert fsm.process({}).data == {"same": True}


def test_a_provider_made_once_cannot_take_what_lives_shorter() -> None:
    class C(ResourceContainer):
        tenant = lifetimes.PerOwner(lambda: "x")
        db = lifetimes.PerState(Made, url=tenant)

    container = C()
    told = "'db' is made once per container, and its argument 'tenant'"
    with container.manager.scope() as owner, owner.state("s"), pytest.raises(LifetimeMismatchError, match=told):
        container.db()


def test_a_circle_is_refused() -> None:
    class C(ResourceContainer):
        a = lifetimes.PerState(dict)
        b = lifetimes.PerState(dict, a=a)

    container = C()
    container.a.kwargs = {"b": container.b}
    with container.manager.scope() as owner, owner.state("s"), pytest.raises(ResourceError, match=r"circle: .*a ─> b"):
        container.a()


# --- copies and containers ---------------------------------------------------------------------------


def test_two_instances_of_one_container_share_nothing_that_is_open() -> None:
    class C(ResourceContainer):
        once = lifetimes.Singleton(list)
        db = lifetimes.PerState(Made)

    one, two = C(), C()
    assert one.once() is not two.once()
    assert one.manager is not two.manager
    with one.manager.scope() as owner, owner.state("s"):
        one.db()
        two.shutdown_resources()
        assert one.db() == ["none"]
    assert one.once() is one.once()
    one.shutdown_resources()


def test_a_deep_copy_of_a_container_is_one_of_its_own(made: list[Made]) -> None:
    class C(ResourceContainer):
        once = lifetimes.Singleton(list)
        db = lifetimes.PerState(Made)

    container = C()
    mine = container.once()
    with container.manager.scope() as owner, owner.state("s"):
        container.db()
        copied = copy.deepcopy(container)
        assert copied.once() is not mine
        with manager_of(copied).scope() as other, other.state("s"):
            assert copied.db() is not container.db()
        copied.shutdown_resources()
        assert [one.closed for one in made] == [0, 1]
    assert container.once() is mine
    container.shutdown_resources()
    assert [one.closed for one in made] == [1, 1]


def test_the_first_use_by_eight_threads_makes_one() -> None:
    for _ in range(20):

        class C(ResourceContainer):
            once = lifetimes.Singleton(Made)
            plain = lifetimes.Singleton(object)

        Made.instances.clear()
        container = C()
        barrier = threading.Barrier(8)
        found: list[Any] = []

        def work(container: Any = container, barrier: threading.Barrier = barrier, found: list[Any] = found) -> None:
            barrier.wait()
            found.append((id(container.once()), container.plain()))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(found)) == len(Made.instances) == 1
        container.shutdown_resources()


def test_after_a_close_the_manager_is_a_new_one_and_an_old_machine_refuses(side: Side, made: list[Made]) -> None:
    class C(ResourceContainer):
        db = lifetimes.PerState(Made)
        once = lifetimes.Singleton(list)

    def work(record: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        return {"db": len(db)}

    container = C()
    first, mine = container.manager, container.once()
    old = SimpleFSM(machine_of(work), container=container, functions={"work": work})
    assert process(side, old, {}).data == {"db": 1}
    container.shutdown_resources()
    assert first.closed
    assert container.manager is not first
    assert not container.manager.closed
    assert container.once() is not mine
    with pytest.raises(MachineClosedError, match="the container of this machine was closed"):
        process(side, old, {})
    with SimpleFSM(machine_of(work), container=container, functions={"work": work}) as fsm:
        assert process(side, fsm, {}).data == {"db": 1}
    container.shutdown_resources()
    assert [one.closed for one in made] == [1, 1]


# --- in the engine -----------------------------------------------------------------------------------


def test_each_lifetime_in_the_engine(side: Side) -> None:
    ended: list[str] = []

    def thing(name: str) -> Iterator[list[str]]:
        yield [name]
        ended.append(name)

    class C(ResourceContainer):
        once = lifetimes.Singleton(thing, "once")
        run = lifetimes.PerOwner(thing, "run")
        visit = lifetimes.PerState(thing, "visit")

    seen: list[tuple[Any, ...]] = []

    def one(record: Any, a: Any = Provide[C.once], b: Any = Provide["run"], c: Any = Provide[C.visit]) -> None:
        seen.append((a, b, c))

    def two(record: Any, *, c: Any = Provide["visit"], a: Any = Provide["once"], b: Any = Provide["run"]) -> None:
        seen.append((a, b, c))

    with C() as container:
        with SimpleFSM(machine_of(one, two), container=container, functions={"one": inject(one), "two": two}) as fsm:
            for _ in range(2):
                assert process(side, fsm, {}).success
                assert ended == ["visit", "visit", "run"]
                ended.clear()
        first, second, third, _ = seen
        assert first[0] is second[0] is third[0]
        assert first[1] is second[1] is not third[1]
        assert first[2] is not second[2]
    assert ended == ["once"]


@pytest.mark.parametrize("kind", ["provider", "generator with dependencies", "per owner", "singleton", "object"])
def test_the_manager_acquires_what_the_container_declares(side: Side, kind: str, made: list[Made]) -> None:
    ended: list[str] = []

    def session(db: Any) -> Iterator[Any]:
        yield {"on": db}
        ended.append("session")

    class C(ResourceContainer):
        db = lifetimes.PerState(Made)
        session_ = lifetimes.PerState(session, db)
        run = lifetimes.PerOwner(list)
        once = lifetimes.Singleton(list)
        faked = lifetimes.PerState(list)

    name = {"provider": "db", "generator with dependencies": "session_", "per owner": "run", "singleton": "once"}.get(
        kind, "faked"
    )
    with C() as container:
        container.faked.override(providers.Factory(dict))
        manager = container.manager

        async def scenario() -> None:
            first = await side.call(manager, "acquire", name, "a")
            assert await side.call(manager, "acquire", name, "a") is first
            assert (await side.call(manager, "acquire", name, "b") is first) == (kind == "singleton")
            assert manager.get_resource(name, "a") is first
            assert sorted(manager.get_resource_owners(name)) == ["a", "b"]
            await side.call(manager, "release", name, "b")
            await side.call(manager, "release", name, "a")
            assert manager.has_resource(name, "a")
            await side.call(manager, "release", name, "a")
            assert not manager.has_resource(name, "a")
            with pytest.raises(NotHeldError):
                await side.call(manager, "release", name, "a")

        side.run(scenario())
        assert manager.owners == {}
        assert [one.out for one in made] == ([0] if kind in ("provider", "generator with dependencies") else [])
        assert len(ended) == (2 if kind.startswith("generator") else 0)
        assert [holder.resource for holder in manager.holders()] == (["once"] if kind == "singleton" else [])


def test_inside_a_run_the_visits_id_gives_the_visits_own_session(side: Side) -> None:
    class C(ResourceContainer):
        db = lifetimes.PerState(Made)

    with C() as container:
        manager = container.manager

        def work(record: Any, context: Any, db: Any = Provide["db"]) -> dict[str, Any]:
            mine = manager.acquire("db", context.owner_id)
            manager.release("db", context.owner_id)
            run = context.owner_id.removesuffix("/work#1")
            other = manager.acquire("db", run)
            assert manager.get_resource("db", run) is other
            return {"same": mine is db, "other": other is not db, "held": manager.has_resource("db", context.owner_id)}

        for owner_id in (None, "job/1#2"):
            with SimpleFSM(machine_of(work), container=container, functions={"work": work}) as fsm:
                result = process(side, fsm, {}, owner_id=owner_id)
                assert result.error is None
                assert result.data == {"same": True, "other": True, "held": True}
            assert manager.owners == {}
            assert manager.holders() == []
