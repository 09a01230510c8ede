"""What each parameter of a function gets: the record, the context, a resource; or a fault with the line to write."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, Provider, inject
from typing_extensions import TypeAliasType

from tests import postponed
from tests.conftest import Side
from tests.stores import process
from wirestate import BuildError, FunctionContext, RunResult, SimpleFSM, lifetimes
from wirestate.errors import Fault
from wirestate.injection.container import planner_of
from wirestate.testing import injected


def opened() -> Iterator[list[str]]:
    yield ["open"]


class Store(containers.DeclarativeContainer):
    inner = lifetimes.PerState(opened)


class Shop(containers.DeclarativeContainer):
    config = providers.Configuration()
    db = lifetimes.PerState(opened)
    ref = lifetimes.Singleton(dict, n=1)
    plain = providers.Factory(dict)
    store = providers.Container(Store)


ROLES: dict[str, Callable[[str], dict[str, Any]]] = {
    "transform": lambda f: {"transform": f, "arcs": ["end"]},
    "pre_validator": lambda f: {"pre_validators": [f], "arcs": ["end"]},
    "validator": lambda f: {"validators": [f], "arcs": ["end"]},
    "post_validator": lambda f: {"post_validators": [f], "arcs": ["end"]},
    "end test": lambda f: {"end_test": f, "arcs": ["end"]},
    "condition": lambda f: {"arcs": [{"target": "end", "condition": f}, {"target": "end"}]},
    "arc transform": lambda f: {"arcs": [{"target": "end", "transform": f}]},
    "catch arc": lambda f: {"transform": "fails", "arcs": ["end"], "on_error": {"target": "end", "transform": f}},
}


def fails(record: Any) -> None:
    raise LookupError("on purpose")


def built(function: Any, role: str = "transform", container: Any = None) -> SimpleFSM:
    machine = {"states": {"work": ROLES[role]("f"), "end": {}}}
    given = {"f": function, "fails": fails}
    return SimpleFSM(machine, container=Shop() if container is None else container, functions=given)


def fault_of(function: Any, role: str = "transform", container: Any = None) -> Fault:
    with pytest.raises(BuildError) as caught:
        built(function, role, container)
    (fault,) = caught.value.faults
    return fault


def run(side: Side, function: Any, role: str = "transform") -> RunResult:
    with built(function, role) as fsm:
        return process(side, fsm, {"n": 1})


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


# --- the marker was forgotten -----------------------------------------------------------------------


def enrich(tx: Any, ref: Any) -> None: ...


class Enriching:
    def method(self, tx: Any, ref: Any) -> None: ...

    @classmethod
    def of_class(cls, tx: Any, ref: Any) -> None: ...

    @staticmethod
    def static(tx: Any, ref: Any) -> None: ...

    def __call__(self, tx: Any, ref: Any) -> None: ...


FORGETFUL: dict[str, Any] = {
    "function": enrich,
    "lambda": lambda tx, ref: None,
    "partial": functools.partial(enrich),
    "decorated": decorated(enrich),
    "method": Enriching().method,
    "class method": Enriching.of_class,
    "static method": Enriching.static,
    "object": Enriching(),
    "class": Enriching,
    "third": lambda tx, context, ref: None,
    "keyword only": lambda tx, *, ref: None,
    "annotated": lambda tx, ref: None,
}


@pytest.mark.parametrize("form", FORGETFUL)
def test_a_parameter_with_the_name_of_a_resource_and_no_marker_is_a_fault_with_the_line_to_write(form: str) -> None:
    fault = fault_of(FORGETFUL[form])
    assert (fault.code, fault.help) == ("I005", ('Write ref=Provide["ref"].',))
    assert "has a parameter 'ref' that nothing fills" in fault.message


@pytest.mark.parametrize("role", ROLES)
def test_a_forgotten_marker_is_a_fault_in_every_role(role: str) -> None:
    assert fault_of(enrich, role).help == ('Write ref=Provide["ref"].',)
    assert fault_of(lambda tx, db=Shop.db: None, role).code == "I007"


def test_a_resource_within_a_container_and_one_of_the_machine_are_found_by_their_names() -> None:
    assert fault_of(lambda tx, inner: None).help == ('Write inner=Provide["store.inner"].',)
    machine = {"resources": {"limits": {"data": {"n": 1}}}, "states": {"work": ROLES["transform"]("f"), "end": {}}}
    with pytest.raises(BuildError) as caught:
        SimpleFSM(machine, functions={"f": lambda tx, limits: None})
    assert caught.value.faults[0].help == ('Write limits=Provide["limits"].',)


def wrong_default(tx: Any, db: Any = Shop.db) -> None: ...


def wrong_annotation(tx: Any, db: Annotated[Any, Shop.db]) -> None: ...


def wrong_annotation_with_default(tx: Any, db: Annotated[Any, Shop.db] = None) -> None: ...


def provider_as_annotation(tx: Any, db: Shop.db = None) -> None: ...  # type: ignore[valid-type]


def marker_as_annotation(tx: Any, db: Provide["db"] = None) -> None: ...  # type: ignore[valid-type]  # noqa: F821, UP037


def marker_in_a_union(tx: Any, db: Annotated[Any, Provide["db"]] | None = None) -> None: ...


Alias = TypeAliasType("Alias", Annotated[Any, Provide["db"]])


def marker_in_an_alias(tx: Any, db: Alias) -> None: ...


def empty_marker(tx: Any, db: Any = Provide) -> None: ...


def empty_marker_in_annotation(tx: Any, db: Annotated[Any, Provide]) -> None: ...


def delegate(tx: Any, db: Any = Shop.db.provider) -> None: ...


def container_itself(tx: Any, db: Any = Shop) -> None: ...


def of_a_sub_container(tx: Any, db: Any = Shop.store.inner) -> None: ...


def option(tx: Any, db: Any = Shop.config.url) -> None: ...


@pytest.mark.parametrize(
    ("function", "meant"),
    [
        (wrong_default, "Shop.db"),
        (wrong_annotation, "Shop.db"),
        (wrong_annotation_with_default, "Shop.db"),
        (provider_as_annotation, "Shop.db"),
        (marker_as_annotation, '"db"'),
        (marker_in_a_union, '"db"'),
        (marker_in_an_alias, '"db"'),
        (empty_marker, '"db"'),
        (empty_marker_in_annotation, '"db"'),
        (delegate, "Shop.db.provider"),
        (container_itself, "Shop"),
        (of_a_sub_container, '"store.inner"'),
        (option, "..."),
        (functools.partial(enrich, ref=Shop.db), "Shop.db"),
    ],
)
def test_a_provider_where_a_marker_belongs_is_a_fault_with_the_line_to_write(function: Any, meant: str) -> None:
    fault = fault_of(function)
    name = "ref" if isinstance(function, functools.partial) else "db"
    assert (fault.code, fault.kind) == ("I007", "ForgottenMarker")
    assert fault.help == (f"Write {name}=Provide[{meant}], or {name}: Annotated[..., Provide[{meant}]].",)
    assert fault_of(decorated(function)).help == fault.help


@pytest.mark.parametrize(
    ("default", "what", "meant"),
    [
        ((Provide["db"],), "a marker", '"db"'),
        ([1, Provide[Shop.db]], "a marker", "Shop.db"),
        ({"a": Shop.db}, "a provider", "Shop.db"),
        ({"a": Closing[Provide["db"]]}, "a marker", '"db"'),
        ({Shop.db}, "a provider", "Shop.db"),
        ((Shop,), "a container", "Shop"),
    ],
    ids=str,
)
@pytest.mark.parametrize("role", ROLES)
def test_a_marker_within_a_collection_that_is_a_default_is_a_fault(
    default: Any, what: str, meant: str, role: str
) -> None:
    def collects(tx: Any, db: Any = default) -> None: ...

    fault = fault_of(collects, role)
    assert fault.code == "I007"
    assert f"has {what} within the default of 'db', where nothing reads it." in fault.message
    assert fault.help[0].startswith(f"Write db=Provide[{meant}], or")


def test_collections_without_a_marker_are_defaults_as_ever(side: Side) -> None:
    class Strange(dict[str, Any]):
        def values(self) -> Any:
            raise RuntimeError("asked")

    def uses(tx: Any, c: Any, a: Any = (1, [2]), b: Any = {"x": None}, d: Any = Strange()) -> Any:  # noqa: B006, B008
        return {"a": a, "b": b}

    assert run(side, uses).data == {"a": (1, [2]), "b": {"x": None}}


def test_a_test_of_one_function_is_told_too() -> None:
    with pytest.raises(BuildError, match=r"Write db=Provide\[Shop\.db\]"):
        injected(Shop(), wrong_default)


def test_a_constructor_that_injects_is_a_fault_since_it_runs_when_nothing_is_open() -> None:
    class Loader:
        def __init__(self, ref: Any = Provide["ref"]) -> None:
            self.ref = ref

        def transform(self, record: Any) -> None: ...

    fault = fault_of(Loader)
    assert (fault.code, "constructor injects 'ref'" in fault.message) == ("M035", True)


# --- annotations that cannot be read ----------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        postponed.hidden,
        functools.partial(postponed.hidden),
        decorated(postponed.hidden),
        postponed.Hidden(),
        postponed.Hidden().method,
        postponed.hidden_with_default,
        postponed.hidden_alias,
    ],
)
def test_an_annotation_that_cannot_be_read_is_a_fault_that_names_it(function: Any) -> None:
    fault = fault_of(function)
    assert (fault.code, fault.kind) == ("I008", "UnreadableAnnotation")
    assert "annotates 'db' with" in fault.message
    assert "is not defined" in fault.message
    assert 'or write db=Provide["db"].' in fault.help[0]


@pytest.mark.parametrize(
    "function", [postponed.Readable(), functools.partial(postponed.Readable()), postponed.readable_in_part]
)
def test_postponed_annotations_of_objects_are_read_and_so_are_those_with_a_text_within(
    function: Any, side: Side
) -> None:
    assert run(side, function).data == {"db": ["open"]}


def test_an_annotation_that_cannot_be_read_matters_only_where_it_decides(side: Side) -> None:
    assert run(side, postponed.of_no_matter).data == {"context": "FunctionContext", "limit": 3}


# --- who gets the context ---------------------------------------------------------------------------


class Session:
    pass


class CanLog(Protocol):
    log: Any


@inject
def underscore(tx: Any, _: Any, db: Any = Provide["db"]) -> Any:
    return {"second": _}


@inject
def annotated(tx: Any, c: FunctionContext, db: Any = Provide["db"]) -> Any:
    return {"second": c}


@inject
def named(tx: Any, ctx: Any, db: Any = Provide["db"]) -> Any:
    return {"second": ctx}


def optional(tx: Any, n: int = 1, c: FunctionContext | None = None) -> Any:
    return {"second": c}


def first(c: FunctionContext, tx: Any) -> Any:
    return {**tx, "second": c}


def as_mapping(tx: Any, c: dict[str, Any]) -> Any:
    return {"second": c}


def as_protocol(tx: Any, c: CanLog) -> Any:
    return {"second": c}


def undeclared(tx: Any, c) -> Any:  # type: ignore[no-untyped-def]
    return {"second": c}


@pytest.mark.parametrize(
    "function", [underscore, annotated, named, optional, first, as_mapping, as_protocol, undeclared]
)
def test_a_parameter_that_says_so_gets_the_context(function: Any, side: Side) -> None:
    assert isinstance(run(side, function).data["second"], FunctionContext)


@inject
def with_inject(tx: Any, c: Any, db: Any = Provide["db"]) -> None: ...


def with_class(tx: Any, session: Session) -> None: ...


def with_error(tx: Any, error: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "name"),
    [(with_inject, "c"), (decorated(with_inject), "c"), (functools.partial(with_inject), "c"),
     (with_class, "session"), (with_error, "error")],
)  # fmt: skip
def test_a_second_parameter_that_means_something_else_never_gets_the_context(function: Any, name: str) -> None:
    fault = fault_of(function)
    assert (fault.code, f"has a parameter {name!r} that nothing fills" in fault.message) == ("I005", True)


def test_what_names_no_parameter_gets_the_record_alone(side: Side) -> None:
    @inject
    def rest(*args: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        return {"args": args, "db": db}

    assert run(side, lambda *args, **kwargs: {"args": args, "kwargs": kwargs}).data == {
        "args": ({"n": 1},),
        "kwargs": {},
    }
    assert run(side, rest).data == {"args": ({"n": 1},), "db": ["open"]}
    for kind in (Mock, MagicMock):
        double = kind(return_value={"ok": True})
        assert run(side, double).data == {"ok": True}
        double.assert_called_once_with({"n": 1})
    double = Mock(spec=undeclared, return_value={"ok": True})
    assert run(side, double).data == {"ok": True}
    if side.is_async:
        assert run(side, AsyncMock(return_value={"ok": True})).data == {"ok": True}


def test_an_alias_that_names_itself_is_read(side: Side) -> None:
    class Endless:
        @property
        def __value__(self) -> Any:
            return list[self]  # type: ignore[valid-type]

    def aliased(tx: Any, context: Any, rows: Any = None) -> dict[str, Any]:
        return {"rows": rows}

    aliased.__annotations__["rows"] = Endless()
    assert run(side, aliased).data == {"rows": None}


def test_a_record_behind_an_injected_parameter_is_handed_in(side: Side) -> None:
    @inject
    def behind(db: Any = Provide["db"], tx: Any = None, context: Any = None) -> dict[str, Any]:
        return {**tx, "db": db, "context": type(context).__name__}

    assert run(side, behind).data == {"n": 1, "db": ["open"], "context": "FunctionContext"}


# --- callables of every kind ------------------------------------------------------------------------


class Uses:
    def __call__(self, tx: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        return {"db": db}


class Slotted(Uses):
    __slots__ = ()


@dataclass(slots=True)
class SlottedData:
    number: int = 1

    def __call__(self, tx: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        return {"db": db}


@dataclass
class Unhashable(Uses):
    number: int = 1


class Tuple(NamedTuple):
    number: int = 1

    def __call__(self, tx: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        return {"db": db}


class Mapped(dict[str, Any]):
    def __call__(self, tx: Any, db: Any = Provide["db"]) -> dict[str, Any]:
        return {"db": db}


class EqualToAll(Uses):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


class WithoutHash(Uses):
    def __hash__(self) -> int:
        raise RuntimeError("no hash")


CALLABLES = [Slotted(), SlottedData(), Unhashable(), Tuple(), Mapped(), EqualToAll(), WithoutHash()]


@pytest.mark.parametrize("function", CALLABLES, ids=lambda function: type(function).__name__)
def test_a_callable_of_any_kind_is_injected(function: Any, side: Side) -> None:
    with built(function) as fsm:
        container = fsm.containers[0]
        assert process(side, fsm, {}).data == {"db": ["open"]}
        with container.db.override(providers.Object("fake")):
            assert process(side, fsm, {}).data == {"db": "fake"}
        assert process(side, fsm, {}).data == {"db": ["open"]}
    with injected(Shop(), function) as call:
        assert call({}) == {"db": ["open"]}


def test_equal_functions_keep_their_own_plans(side: Side) -> None:
    class Db(NamedTuple):
        def __call__(self, tx: Any, db: Any = Provide["db"]) -> dict[str, Any]:
            return {**tx, "db": db}

    class Ref(NamedTuple):
        def __call__(self, tx: Any, ref: Any = Provide["ref"]) -> dict[str, Any]:
            return {**tx, "ref": ref}

    class Twin:
        def __init__(self, call: Any) -> None:
            functools.update_wrapper(self, call)
            self.call = call

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Twin)

        def __hash__(self) -> int:
            return 1

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.call(*args, **kwargs)

    for pair in ((Db(), Ref()), (Twin(Db().__call__), Twin(Ref().__call__))):
        assert pair[0] == pair[1]
        machine = {"states": {"work": {"transforms": ["a", "b"], "arcs": ["end"]}, "end": {}}}
        with SimpleFSM(machine, container=Shop(), functions=dict(zip("ab", pair, strict=True))) as fsm:
            assert process(side, fsm, {}).data == {"db": ["open"], "ref": {"n": 1}}


def test_plans_of_objects_go_with_them() -> None:
    container = Shop()
    plans = planner_of(container)._plans
    function: Any = Uses()
    gone = weakref.ref(function)
    built(function, container=container).close()
    assert len(plans) == 1
    del function
    gc.collect()
    assert gone() is None
    assert len(plans) == 0


# --- markers of the other kinds ---------------------------------------------------------------------


def test_the_other_markers_are_no_forgotten_ones(side: Side) -> None:
    @inject
    def lazily(tx: Any, ref: Any = Provider["ref"], plain: Any = Closing[Provide["plain"]]) -> dict[str, Any]:
        return {"ref": ref(), "plain": plain}

    assert run(side, lazily).data == {"ref": {"n": 1}, "plain": {}}
