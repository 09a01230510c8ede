"""S7: the work of S6 with a pooled per-state resource injected into each of the five functions.

The unit is the plain loop of S6. No peer offers this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dependency_injector.wiring import Provide, inject

from benchmarks.peers.steps import NAMES, Record, aplain_loop, aprocessing, plain_loop, processing
from benchmarks.s6_machine import machine
from benchmarks.timing import Contender, Group
from wirestate import BaseResourceProvider, PoolConfig, ResourceContainer, RunResult, lifetimes

PEERS: tuple[str, ...] = ()


class Token:
    """What the pool lends."""


class TokenProvider(BaseResourceProvider):
    def acquire(self, **_: object) -> Token:
        return Token()

    def release(self, resource: Token) -> None:
        """Do nothing: a token needs no end."""


class Tokens(ResourceContainer):
    token = lifetimes.PerState(TokenProvider, pool=PoolConfig(max_size=4))


def groups() -> list[Group]:
    process = machine({name: marking(name) for name in NAMES}, "direct", Tokens()).process
    aprocess = machine({name: amarking(name) for name in NAMES}, "direct", Tokens()).aprocess
    return [
        Group(
            "S7 sync",
            plain_loop(),
            (Contender("wirestate", processing(process, injected_marks), "wirestate", 25),),
        ),
        Group(
            "S7 async",
            aplain_loop(),
            (Contender("wirestate", aprocessing(aprocess, injected_marks), "wirestate", 18),),
        ),
    ]


def marking(name: str) -> Callable[..., Record]:
    @inject
    def step(record: Record, token: Token = Provide[Tokens.token]) -> Record:
        record[name] = token
        return record

    return step


def amarking(name: str) -> Callable[..., Any]:
    @inject
    async def step(record: Record, token: Token = Provide[Tokens.token]) -> Record:
        record[name] = token
        return record

    return step


def injected_marks(result: RunResult) -> Record:
    """Return the marks that were left with a token: one that was not injected is missing."""
    return {name: mark for name, mark in result.data.items() if isinstance(mark, Token)}
