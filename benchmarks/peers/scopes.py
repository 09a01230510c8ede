"""S1 by the peers: each in the cheapest of its documented forms that opens and closes around one call."""

# Annotations stay objects here: the peers read them.
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager

import dishka
import svcs
import that_depends
import wireup
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, inject

from benchmarks.peers.visit import (
    A,
    B,
    C,
    Record,
    acalling,
    aopen_a,
    aopen_b,
    aopen_c,
    ause,
    calling,
    open_a,
    open_b,
    open_c,
    outcome,
    use,
)
from benchmarks.timing import Contender, awaited

# --- the unit: the standard library ---------------------------------------------------------


def exit_stack() -> Contender:
    manage_a, manage_b, manage_c = contextmanager(open_a), contextmanager(open_b), contextmanager(open_c)

    def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            with ExitStack() as stack:
                a = stack.enter_context(manage_a())
                b = stack.enter_context(manage_b(a))
                use(record, a, b, stack.enter_context(manage_c(b)))
        return outcome(record)

    return Contender("contextlib ExitStack", run)


def async_exit_stack() -> Contender:
    manage_a, manage_b = asynccontextmanager(aopen_a), asynccontextmanager(aopen_b)
    manage_c = asynccontextmanager(aopen_c)

    async def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            async with AsyncExitStack() as stack:
                a = await stack.enter_async_context(manage_a())
                b = await stack.enter_async_context(manage_b(a))
                await ause(record, a, b, await stack.enter_async_context(manage_c(b)))
        return outcome(record)

    return Contender("contextlib AsyncExitStack", awaited(run))


# --- dishka: a request scope; asking it costs less than its wrapped functions --------------


def dishka_sync() -> Contender:
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    for source in (open_a, open_b, open_c):
        provider.provide(source)
    container = dishka.make_container(provider)

    def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            with container() as request:
                use(record, request.get(A), request.get(B), request.get(C))
        return outcome(record)

    return Contender("dishka", run, "dishka")


def dishka_async() -> Contender:
    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    for source in (aopen_a, aopen_b, aopen_c):
        provider.provide(source)
    container = dishka.make_async_container(provider)

    async def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            async with container() as request:
                await ause(record, await request.get(A), await request.get(B), await request.get(C))
        return outcome(record)

    return Contender("dishka", awaited(run), "dishka")


# --- wireup: a function that opens a scope around each of its calls ------------------------


def wireup_sync() -> Contender:
    scoped = wireup.injectable(lifetime="scoped")
    container = wireup.create_sync_container(injectables=[scoped(source) for source in (open_a, open_b, open_c)])

    @wireup.inject_from_container(container)
    def visit(record: Record, a: wireup.Injected[A], b: wireup.Injected[B], c: wireup.Injected[C]) -> None:
        record["seen"] = a, b, c

    return Contender("wireup", calling(visit), "wireup")


def wireup_async() -> Contender:
    scoped = wireup.injectable(lifetime="scoped")
    container = wireup.create_async_container(injectables=[scoped(source) for source in (aopen_a, aopen_b, aopen_c)])

    @wireup.inject_from_container(container)
    async def visit(record: Record, a: wireup.Injected[A], b: wireup.Injected[B], c: wireup.Injected[C]) -> None:
        record["seen"] = a, b, c

    return Contender("wireup", acalling(visit), "wireup")


# --- svcs: a container for each call; its factories take what they need from it ------------


def svcs_b(svcs_container: svcs.Container) -> Iterator[B]:
    b = B(svcs_container.get(A))
    try:
        yield b
    finally:
        b.closed = True


def svcs_c(svcs_container: svcs.Container) -> Iterator[C]:
    c = C(svcs_container.get(B))
    try:
        yield c
    finally:
        c.closed = True


async def svcs_ab(svcs_container: svcs.Container) -> AsyncIterator[B]:
    b = B(await svcs_container.aget(A))
    try:
        yield b
    finally:
        b.closed = True


async def svcs_ac(svcs_container: svcs.Container) -> AsyncIterator[C]:
    c = C(await svcs_container.aget(B))
    try:
        yield c
    finally:
        c.closed = True


def svcs_sync() -> Contender:
    registry = svcs.Registry()
    for kind, factory in ((A, open_a), (B, svcs_b), (C, svcs_c)):
        registry.register_factory(kind, factory)

    def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            with svcs.Container(registry) as container:
                use(record, *container.get(A, B, C))
        return outcome(record)

    return Contender("svcs", run, "svcs")


def svcs_async() -> Contender:
    registry = svcs.Registry()
    for kind, factory in ((A, aopen_a), (B, svcs_ab), (C, svcs_ac)):
        registry.register_factory(kind, factory)

    async def run(n: int) -> object:
        record: Record = {}
        for _ in range(n):
            async with svcs.Container(registry) as container:
                await ause(record, *await container.aget(A, B, C))
        return outcome(record)

    return Contender("svcs", awaited(run), "svcs")


# --- dependency-injector: Resource providers closed by the function's markers --------------


class Closed(containers.DeclarativeContainer):
    a = providers.Resource(open_a)
    b = providers.Resource(open_b, a)
    c = providers.Resource(open_c, b)


class AClosed(containers.DeclarativeContainer):
    a = providers.Resource(aopen_a)
    b = providers.Resource(aopen_b, a)
    c = providers.Resource(aopen_c, b)


@inject
def closing_visit(
    record: Record,
    a: A = Closing[Provide[Closed.a]],
    b: B = Closing[Provide[Closed.b]],
    c: C = Closing[Provide[Closed.c]],
) -> None:
    record["seen"] = a, b, c


@inject
async def aclosing_visit(
    record: Record,
    a: A = Closing[Provide[AClosed.a]],
    b: B = Closing[Provide[AClosed.b]],
    c: C = Closing[Provide[AClosed.c]],
) -> None:
    record["seen"] = a, b, c


def closing_sync() -> Contender:
    Closed().wire(modules=[sys.modules[__name__]])
    return Contender("dependency-injector Closing", calling(closing_visit), "dependency-injector")


def closing_async() -> Contender:
    AClosed().wire(modules=[sys.modules[__name__]])
    return Contender("dependency-injector Closing", acalling(aclosing_visit), "dependency-injector")


# --- that-depends: context resources that live for one call of an injected function --------


class Context(that_depends.BaseContainer):
    default_scope = that_depends.ContextScopes.INJECT
    a = that_depends.providers.ContextResource(open_a)
    b = that_depends.providers.ContextResource(open_b, a.cast)
    c = that_depends.providers.ContextResource(open_c, b.cast)


class AContext(that_depends.BaseContainer):
    default_scope = that_depends.ContextScopes.INJECT
    a = that_depends.providers.ContextResource(aopen_a)
    b = that_depends.providers.ContextResource(aopen_b, a.cast)
    c = that_depends.providers.ContextResource(aopen_c, b.cast)


@that_depends.inject
def context_visit(
    record: Record,
    a: A = that_depends.Provide[Context.a],
    b: B = that_depends.Provide[Context.b],
    c: C = that_depends.Provide[Context.c],
) -> None:
    record["seen"] = a, b, c


@that_depends.inject
async def acontext_visit(
    record: Record,
    a: A = that_depends.Provide[AContext.a],
    b: B = that_depends.Provide[AContext.b],
    c: C = that_depends.Provide[AContext.c],
) -> None:
    record["seen"] = a, b, c


def that_depends_sync() -> Contender:
    return Contender("that-depends", calling(context_visit), "that-depends")


def that_depends_async() -> Contender:
    return Contender("that-depends", acalling(acontext_visit), "that-depends")
