"""Objects given as functions: a marker or provider in an attribute is a fault with the line to write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, Provider, inject

from tests.conftest import Side
from tests.stores import process
from wirestate import BuildError, SimpleFSM, lifetimes
from wirestate.errors import Fault
from wirestate.testing import injected


class Shop(containers.DeclarativeContainer):
    db = lifetimes.PerState(list)
    plain = providers.Factory(dict)


MACHINE = {"states": {"work": {"transform": "f", "arcs": ["end"]}, "end": {}}}


def faults_of(function: Any) -> tuple[Fault, ...]:
    with pytest.raises(BuildError) as caught:
        SimpleFSM(MACHINE, container=Shop(), functions={"f": function})
    return tuple(caught.value.faults)


@dataclass
class Marked:
    db: Any = Provide["db"]

    def __call__(self, record: Any) -> Any:
        return {"type": type(self.db).__name__}


@dataclass(slots=True)
class Slotted:
    db: Any = Provide["db"]

    def __call__(self, record: Any) -> None: ...


@dataclass
class ByFactory:
    db: Any = field(default_factory=lambda: Provide["db"])

    def __call__(self, record: Any) -> None: ...


@dataclass
class WithProvider:
    db: Any = Shop.db

    def __call__(self, record: Any) -> None: ...


@dataclass(slots=True)
class SlottedProvider:
    db: Any = Shop.db

    def __call__(self, record: Any) -> None: ...


class ByConstructor:
    def __init__(self, db: Any = Provide["db"]) -> None:
        self.db = db

    def __call__(self, record: Any) -> None: ...


class Injected:
    @inject
    def __init__(self, *, db: Any = Closing[Provide["db"]]) -> None:
        self._db = db

    def __call__(self, record: Any) -> None: ...


class ProviderByConstructor:
    def __init__(self, *, db: Any = Shop.db) -> None:
        self.__db = db

    def __call__(self, record: Any) -> None: ...


class OfClass:
    db = Provide["db"]

    def __call__(self, record: Any) -> None: ...


class Inherited(OfClass):
    pass


class Transforms:
    db = Provide["db"]

    def transform(self, record: Any) -> None: ...


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(record: Any) -> Any:
        return function(record)

    return call


class Wrapping:
    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)

    def __call__(self, record: Any) -> Any:
        return self.__wrapped__(record)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "meant"),
    [
        (Marked(), '"db"'),
        (Slotted(), '"db"'),
        (ByFactory(), '"db"'),
        (WithProvider(), "Shop.db"),
        (SlottedProvider(), "Shop.db"),
        (ByConstructor(), '"db"'),
        (Injected(), '"db"'),
        (ProviderByConstructor(), "Shop.db"),
        (OfClass(), '"db"'),
        (Inherited(), '"db"'),
        (OfClass().__call__, '"db"'),
        (functools.partial(OfClass()), '"db"'),
        (decorated(OfClass()), '"db"'),
        (Wrapping(ByConstructor()), '"db"'),
    ],
)
def test_an_object_that_holds_a_marker_or_provider_is_a_fault_with_the_line_to_write(function: Any, meant: str) -> None:
    (fault,) = faults_of(function)
    assert (fault.code, fault.kind) == ("I007", "ForgottenMarker")
    assert "db', where nothing replaces it" in fault.message
    assert fault.help == (f"Take it as a parameter: def __call__(self, record, db=Provide[{meant}]).",)
    with pytest.raises(BuildError, match="where nothing replaces it"):
        injected(Shop(), function)


def test_the_method_that_gets_the_record_is_named() -> None:
    for function in (Transforms(), Transforms().transform, Transforms):
        (fault,) = faults_of(function)
        assert fault.help == ('Take it as a parameter: def transform(self, record, db=Provide["db"]).',)


class GivenOne:
    """Holds a factory or a container on purpose, and covers the default of its class."""

    db: Any = Provide["db"]

    def __init__(self, make: Any, container: Any) -> None:
        self.db, self.make, self.container = None, make, container

    def __call__(self, record: Any) -> Any:
        return {"made": self.make(), "of": self.container.plain()}


class Silent:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("asked")


class Touchy:
    """Raises wherever its attributes are asked for."""

    __slots__ = ("unset",)
    silent = Silent()

    @property
    def db(self) -> Any:
        raise RuntimeError("asked")

    def __call__(self, record: Any) -> Any:
        return {"ok": True}


class Answering:
    """Answers to every name, and says that it is a provider."""

    def __init__(self) -> None:
        self.other = Mock(spec=providers.Factory)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Provide["db"]

    def __call__(self, record: Any) -> Any:
        return {"ok": True}


def test_what_an_object_was_given_on_purpose_is_its_own(side: Side) -> None:
    shop = Shop()
    for make in (shop.plain, dict):
        with SimpleFSM(MACHINE, container=shop, functions={"f": GivenOne(make, shop)}) as fsm:
            assert process(side, fsm, {}).data == {"made": {}, "of": {}}
    with SimpleFSM(MACHINE, container=Shop(), functions={"f": Marked(db=3)}) as fsm:
        assert process(side, fsm, {}).data == {"type": "int"}


def test_no_code_of_an_object_runs_to_look_at_its_attributes(side: Side) -> None:
    doubles = (Mock(return_value={"ok": True}), MagicMock(return_value={"ok": True}))
    for function in (Touchy(), Answering(), *doubles):
        with SimpleFSM(MACHINE, container=Shop(), functions={"f": function}) as fsm:
            assert process(side, fsm, {}).data == {"ok": True}


class Wired:
    make: Any = Provider["plain"]

    def __call__(self, record: Any) -> Any:
        return {"made": self.make()}


def test_an_attribute_that_wire_filled_is_no_forgotten_one(side: Side) -> None:
    shop, module = Shop(), ModuleType("steps")
    module.Wired = Wired  # type: ignore[attr-defined]
    shop.wire(modules=[module])
    try:
        with SimpleFSM(MACHINE, container=shop, functions={"f": Wired()}) as fsm:
            assert process(side, fsm, {}).data == {"made": {}}
    finally:
        shop.unwire()
