"""What a built machine promises: checked before any record, all faults in one report; and builds that leave nothing."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from dependency_injector import containers, providers, wiring
from dependency_injector.wiring import Closing, Provide, Provider, inject
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from tests import postponed
from tests.conftest import Side
from tests.stores import Diary, Store, insert, process, work_machine
from wirestate import (
    DatabaseResourceAdapter,
    PoolConfig,
    ResourceContainer,
    SimpleFSM,
    WirestateSettings,
    container_from_settings,
    lifetimes,
)
from wirestate.errors import AsyncInSyncRunError, BuildError, Fault, MissingDriverError, NotInjectedError
from wirestate.injection.container import planner_of
from wirestate.resources.managed import ManagedRecipe


class Database(BaseSettings):
    url: str = "memory"


class Settings(BaseSettings):
    limit: int = 3
    database: Database = Database()


def resource() -> Iterator[str]:
    yield "resource"


class Things(ResourceContainer):
    settings = providers.Singleton(Settings)
    database = lifetimes.PerState(resource)
    workdir = lifetimes.PerOwner(resource)
    api = lifetimes.Singleton(resource)
    plain = providers.Factory(dict)
    limit = providers.Factory(dict, limit=settings.provided.limit)


def faults(work: dict[str, Any], container: Any = None, **functions: Any) -> list[Fault]:
    with pytest.raises(BuildError) as caught:
        SimpleFSM(work_machine(work), container=Things() if container is None else container, functions=functions)
    return list(caught.value.faults)


def only(found: list[Fault]) -> Fault:
    (fault,) = found
    return fault


# --- each fault ----------------------------------------------------------------------------------------------


def test_a_misspelt_name_says_what_is_near_and_what_there_is() -> None:
    @inject
    def load(record: Any, db: Any = Provide["databse"]) -> None: ...

    fault = only(faults({"transform": "load"}, load=load))
    name = f"{__name__}.{load.__qualname__}"
    assert (fault.code, fault.kind) == ("R001", "UnknownResource")
    assert fault.message == f"state 'w' (function {name}) needs resource 'databse', which is not declared."
    assert fault.help == (
        "Did you mean 'database'?  Declared: database (per state), workdir (per owner), api (singleton), plain, limit",
    )


def test_a_fault_names_the_file_the_line_and_the_function(tmp_path: Path) -> None:
    @inject
    def load(record: Any, db: Any = Provide["databse"]) -> None: ...

    path = tmp_path / "flights.yaml"
    path.write_text("states:\n  - name: load\n    transform: load\n    arcs: [end]\n  - name: end\n")
    with pytest.raises(BuildError) as caught:
        SimpleFSM(path, container=Things(), functions={"load": load})
    fault = only(list(caught.value.faults))
    assert (fault.file, fault.line, fault.column) == (str(path), 3, 16)
    assert fault.message.startswith(f"state 'load' ({path}:3:16, function ")
    assert str(caught.value).splitlines()[0].endswith("flights.yaml: 1 fault, nothing was run")


@pytest.mark.parametrize(
    ("work", "who"),
    [
        ({"validator": "f"}, "state 'w'"),
        ({"post_validator": "f"}, "state 'w'"),
        ({"end_test": "f"}, "state 'w'"),
        ({"arcs": [{"target": "e", "condition": "f"}]}, "arc 'w -> e'"),
        ({"arcs": [{"target": "e", "transform": "f", "name": "onward"}]}, "arc 'onward'"),
        ({"on_error": {"target": "e", "transform": "f"}}, "arc 'w -> e'"),
    ],
)
def test_functions_of_every_role_are_checked(work: dict[str, Any], who: str) -> None:
    @inject
    def f(record: Any, db: Any = Provide["databse"]) -> None: ...

    assert only(faults(work, f=f)).message.startswith(f"{who} (function ")


def test_all_faults_come_in_one_report_each_once() -> None:
    @inject
    def first(record: Any, a: Any = Provide["databse"], b: Any = Provide["apii"]) -> None: ...

    @inject
    def second(record: Any, context: Any, more: Any, c: Any = Provide["nowhere"]) -> None: ...

    found = faults({"transforms": ["first", "second", "first", "third"], "resources": ["workdri"]},
                   first=first, second=second)  # fmt: skip
    assert sorted((fault.code, fault.kind) for fault in found) == [
        ("I005", "UnfilledParameter"), ("M030", "UnknownFunction"), ("R001", "UnknownResource"),
        ("R001", "UnknownResource"), ("R001", "UnknownResource"), ("R001", "UnknownResource"),
    ]  # fmt: skip


def test_a_resource_that_the_configuration_names_must_exist(tmp_path: Path) -> None:
    fault = only(faults({"resources": ["databse"]}))
    assert (fault.code, fault.message) == ("R001", "state 'w' needs resource 'databse', which is not declared.")
    assert fault.help[0].startswith("Did you mean 'database'?")
    fault = only(faults({"arcs": [{"target": "e", "resources": ["x"]}]}))
    assert fault.message == "arc 'w -> e' needs resource 'x', which is not declared."
    for machine in (
        work_machine({}, resources=["gone"]),
        {"networks": [{"name": "main", "states": ["a"], "resources": ["gone"]}]},
    ):
        with pytest.raises(BuildError, match=r"needs resource 'gone', which is not declared"):
            SimpleFSM(machine)


def test_a_provider_of_another_container_is_a_fault() -> None:
    class Others(ResourceContainer):
        thing = lifetimes.PerState(resource)

    @inject
    def f(record: Any, thing: Any = Provide[Others.thing]) -> None: ...

    fault = only(faults({"transform": "f"}, f=f))
    assert (fault.code, fault.kind) == ("R002", "ForeignProvider")
    assert "injects 'thing' from a provider" in fault.message
    assert "not in Things" in fault.message


def test_what_lives_longer_may_not_depend_on_what_lives_shorter() -> None:
    class Wrong(ResourceContainer):
        db = lifetimes.PerState(resource)
        dao = providers.Factory(dict, db=db)
        report = providers.Singleton(dict, dao=dao)
        lazy = providers.Singleton(dict, db=db.provider)

    @inject
    def f(record: Any, report: Any = Provide["report"]) -> None: ...

    @inject
    def fine(record: Any, lazy: Any = Provide["lazy"], dao: Any = Provide["dao"]) -> None: ...

    fault = only(faults({"transforms": ["f", "fine"]}, Wrong(), f=f, fine=fine))
    assert (fault.code, fault.kind) == ("R004", "LifetimeMismatch")
    assert "depends on per state 'db':" in fault.message
    assert fault.message.endswith("or inject `db.provider`.")
    assert fault.message.count("─>") == 2


def test_a_per_owner_resource_on_a_per_state_one_is_a_fault_even_where_nobody_injects_it() -> None:
    class Wrong(ResourceContainer):
        db = lifetimes.PerState(resource)
        audit = lifetimes.PerOwner(dict, db=db)

    fault = only(faults({}, Wrong()))
    assert (fault.code, fault.kind) == ("R004", "LifetimeMismatch")
    assert "per owner 'audit' depends on per state 'db':  audit ─> db." in fault.message
    assert "Make 'audit' per state, or inject `db.provider`." in fault.message


def test_a_positional_only_parameter_cannot_be_injected() -> None:
    def f(record: Any, db: Any = Provide["database"], /) -> None: ...

    fault = only(faults({"transform": "f"}, f=f))
    assert (fault.code, fault.kind) == ("I003", "PositionalOnly")
    assert "injects 'db', which is positional-only" in fault.message


def test_closing_on_something_scoped_is_a_fault() -> None:
    @inject
    def f(record: Any, db: Any = Closing[Provide["database"]]) -> None: ...

    fault = only(faults({"transform": "f"}, f=f))
    assert (fault.code, fault.kind) == ("I004", "ClosingScoped")
    assert "injects 'db' with Closing[...], but it is scoped" in fault.message


def test_a_settings_path_must_exist_in_the_model() -> None:
    class Wrong(Things):
        url = providers.Factory(str, Things.settings.provided.database.ulr)
        store = lifetimes.PerState(dict, limit=Things.settings.provided.limt)

    @inject
    def f(record: Any, url: Any = Provide["url"], store: Any = Provide["store"]) -> None: ...

    found = faults({"transform": "f"}, Wrong(), f=f)
    assert {(fault.code, fault.kind) for fault in found} == {("S004", "UnknownSetting")}
    texts = sorted(" ".join([fault.message.split(") ")[-1], *fault.help]) for fault in found)
    assert texts == [
        "resource 'store' uses settings path 'limt', which Settings does not have; did you mean 'limit'?",
        "uses settings path 'database.ulr', which Database does not have. Did you mean 'url'?",
    ]


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        (lambda settings: settings.resurces["database"].url, "'resurces', which WirestateSettings does not have"),
        (
            lambda settings: settings.resources["database"].ulr,
            """"resources['database'].ulr", which ResourceSettings does not have; did you mean 'url'?""",
        ),
        (
            lambda settings: settings.names["lagre"],
            """"names['lagre']", which dict does not have; did you mean 'large'?""",
        ),
        (lambda settings: settings.pools["a"].max_sze, """"pools['a'].max_sze", which Database does not have."""),
    ],
)
@pytest.mark.parametrize("held", ["made", "given"])
def test_a_settings_path_is_followed_through_its_items(lost: Any, text: str, held: str) -> None:
    given: dict[str, Any] = {"_env_file": None, "resources": {"database": {"url": "memory"}}}

    class Wrong(ResourceContainer):
        settings = providers.Singleton(Shelves, **given) if held == "made" else providers.Object(Shelves(**given))
        database = lifetimes.PerState(DatabaseResourceAdapter, url=lost(settings.provided))

    fault = only(faults({"resources": ["database"]}, Wrong()))
    assert (fault.code, fault.kind) == ("S004", "UnknownSetting")
    assert f"resource 'database' uses settings path {text}".replace("WirestateSettings", "Shelves") in fault.message


class Shelves(WirestateSettings):
    """Settings with mappings."""

    names: dict[str, str] = Field({"large": "x"})
    pools: dict[str, Database] = Field({"a": Database()})


def test_a_provider_that_cannot_be_made_is_a_fault() -> None:
    class Wrong(ResourceContainer):
        db = lifetimes.PerState(DatabaseResourceAdapter, url="nosuchdriver://x")

    def f(record: Any, db: Any = Provide["db"]) -> None: ...

    fault = only(faults({"transform": "f", "resources": ["db"]}, Wrong(), f=f))
    assert fault.message.startswith("resource 'db': no database is called 'nosuchdriver'")


class Broken:
    """A provider that says its secret when it is made."""

    def __init__(self, token: str) -> None:
        raise ValueError(f"bad token {token}")

    def acquire(self) -> None: ...

    def release(self, resource: Any) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uri": "memory"}, "resource 'db': DatabaseResourceAdapter takes no 'uri'; did you mean 'url'?"),
        ({"url": "memory", "pool": {"max_size": "ten"}}, "resource 'db': pool: max_size is 'ten'; it must be"),
        ({"url": "memory", "pool": 10}, "resource 'db': pool= takes a PoolConfig, such as PoolConfig(max_size=10)"),
        (
            {"url": "memory", "resource": "engine", "pool": PoolConfig(max_waiting=3)},
            "resource 'db': pool settings 'max_waiting' cannot",
        ),
    ],
)
def test_a_wrong_argument_of_a_provider_is_one_fault_at_its_resource(arguments: dict[str, Any], message: str) -> None:
    class Wrong(ResourceContainer):
        db = lifetimes.PerState(DatabaseResourceAdapter, **arguments)
        dao = lifetimes.PerState(dict, db=db)

    @inject
    def f(record: Any, db: Any = Provide["dao"]) -> None: ...

    fault = only(faults({"transform": "f", "resources": ["db", "dao"]}, Wrong(), f=f))
    assert (fault.code, fault.kind) == ("R003", "InvalidSetting")
    assert fault.message.startswith(message)


def test_what_a_provider_raises_when_it_is_made_is_a_fault_that_shows_no_value() -> None:
    class Wrong(ResourceContainer):
        api = lifetimes.Singleton(Broken, token="hunter2")
        bare = lifetimes.Singleton(Broken)

    found = faults({}, Wrong())
    assert [(fault.code, fault.message) for fault in found] == [
        ("R003", "resource 'api': making its Broken raised ValueError"),
        ("R003", "resource 'bare': Broken needs 'token'"),
    ]


class Odd(BaseSettings):
    """Settings with a property that fails by itself."""

    @property
    def url(self) -> str:
        return {}["hunter2"]  # type: ignore[no-any-return]


def test_what_a_property_of_the_settings_raises_is_no_lost_path() -> None:
    class Wrong(ResourceContainer):
        settings = providers.Singleton(Odd)
        db = lifetimes.PerState(DatabaseResourceAdapter, url=settings.provided.url)
        far = lifetimes.PerState("nowhere.at.all:Thing")
        near = lifetimes.PerState("builtins.no_such_thing")
        bare = lifetimes.PerState("thing")

    messages = [fault.message for fault in faults({}, Wrong())]
    assert messages[:2] == [
        "resource 'db': getting its arguments raised KeyError",
        "resource 'far': 'nowhere.at.all:Thing' cannot be imported: No module named 'nowhere'",
    ]
    assert len(messages) == 4


def test_a_mapping_sizes_a_pool() -> None:
    class Sized(ResourceContainer):
        db = lifetimes.PerState(DatabaseResourceAdapter, url="memory", pool={"max_size": 3})

    with SimpleFSM(work_machine({}), container=Sized()) as fsm:
        entry = fsm.manager.entry("db").steps()[-1]
        assert isinstance(entry, ManagedRecipe)
        assert entry.provider.pool_config.max_size == 3


def test_a_lifetime_that_is_too_long_is_one_fault() -> None:
    class Wrong(ResourceContainer):
        db = lifetimes.PerState(resource)
        report = lifetimes.Singleton(dict, db=db)

    @inject
    def f(record: Any, report: Any = Provide["report"]) -> None: ...

    fault = only(faults({"transform": "f", "resources": ["report"]}, Wrong(), f=f))
    assert (fault.code, fault.message.partition(":")[0]) == ("R004", "singleton 'report' depends on per state 'db'")


def test_a_missing_driver_is_one_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(ResourceContainer):
        db = lifetimes.PerState(dict, other=lifetimes.PerState(NoDriver))

    @inject
    def f(record: Any, db: Any = Provide["db"]) -> None: ...

    fault = only(faults({"transform": "f", "resources": ["db"]}, Wrong(), f=f))
    assert (fault.code, fault.kind) == ("D001", "MissingDriver")


class NoDriver:
    """A provider whose driver is not installed."""

    def __init__(self) -> None:
        raise MissingDriverError("'x://'", "xdriver", "x", "db")

    def acquire(self) -> None: ...

    def release(self, resource: Any) -> None: ...


def test_a_resource_with_a_fault_of_its_own_is_not_missing_too() -> None:
    def f(record: Any, db: Any = Provide["database"]) -> None: ...

    machine = work_machine(
        {"transform": "f", "resources": ["database"]}, resources={"database": {"url": "memory", "bgin": "x"}}
    )
    with pytest.raises(BuildError) as caught:
        SimpleFSM(machine, functions={"f": f})
    assert [fault.code for fault in caught.value.faults] == ["S002"]
    with pytest.raises(BuildError) as caught:
        SimpleFSM(machine, functions={"f": f}, resources={"database": {"url": "memory", "begn": "x"}})
    assert [fault.code for fault in caught.value.faults] == ["S002"]


@pytest.mark.parametrize("spelling", ["kind", "type"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_declared_resource_says_its_kind_in_either_spelling(spelling: str, inside: bool) -> None:
    said = {spelling: "values", "data": {"a": 1}}

    @inject
    def f(record: Any, numbers: Any = Provide["numbers"]) -> dict[str, Any]:
        return dict(numbers)

    if inside and spelling == "kind":
        said = {"config": said}
    machine = work_machine({"transform": "f"}, resources={"numbers": said})
    with SimpleFSM(machine, functions={"f": f}) as fsm:
        assert fsm.process({}).data == {"a": 1}


# --- containers that settings made ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "close"),
    [
        (None, None),
        ("WIRESTATE_RESOURCES__DATABSE__URL", "WIRESTATE_RESOURCES__DATABSE__URL"),
        ("WIRESTTE_RESOURCES__DATABASE__URL", "WIRESTTE_RESOURCES__DATABASE__URL"),
    ],
)
@pytest.mark.parametrize("how", ["injected", "named"])
def test_a_missing_resource_names_its_variable_where_settings_made_the_container(
    variable: str | None, close: str | None, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @inject
    def f(record: Any, db: Any = Provide["database"]) -> None: ...

    monkeypatch.chdir(tmp_path)
    if variable is not None:
        monkeypatch.setenv(variable, "sqlite:///hunter2")
    work = {"transform": "f"} if how == "injected" else {"resources": ["database"]}
    fault = only(faults(work, container_from_settings(), f=f))
    assert fault.code == "R001"
    assert "settings" not in fault.help[0]
    near = f"  Close name that is set: {close}" if close else ""
    assert fault.help[1] == (
        f"No variable WIRESTATE_RESOURCES__DATABASE__… is set.  Looked in: environment, .env (not found).{near}"
    )
    assert "hunter2" not in str(fault)


class ShopSettings(BaseSettings):
    """A person's own settings, whose variable is not set."""

    model_config = SettingsConfigDict(env_prefix="SHOP_")
    url: str


def test_settings_of_ones_own_that_are_incomplete_are_a_fault_with_their_variable() -> None:
    class Shop(ResourceContainer):
        settings = providers.Singleton(ShopSettings)
        database = lifetimes.PerState(DatabaseResourceAdapter, url=settings.provided.url)

    @inject
    def f(record: Any, db: Any = Provide["database"]) -> None: ...

    fault = only(faults({"transform": "f"}, Shop(), f=f))
    assert (fault.code, fault.kind) == ("S001", "MissingSetting")
    assert "SHOP_URL is not set" in fault.message


def test_settings_in_the_container_and_in_the_configuration_are_a_fault_and_resources_wins_over_both() -> None:
    machine = work_machine({"transform": "f"}, resources=[{"name": "database", "data": {"a": 1}}])

    def f(record: Any, context: Any, database: Any = Provide["database"]) -> dict[str, Any]:
        return {"got": database}

    with pytest.raises(BuildError, match="R005"):
        SimpleFSM(machine, container=Things(), functions={"f": f})
    for given in ({"data": {"b": 2}}, lifetimes.PerState(lambda: {"b": 2})):
        with SimpleFSM(machine, container=Things(), functions={"f": f}, resources={"database": given}) as fsm:
            assert fsm.process({}).data == {"got": {"b": 2}}


def test_an_asynchronous_part_is_refused_by_a_synchronous_run_before_anything_happens() -> None:
    called: list[Any] = []

    async def late() -> Any:
        yield 1

    class Mixed(ResourceContainer):
        adb = lifetimes.PerState(late)

    async def waits(record: Any) -> None: ...

    machine = work_machine({"transform": "waits", "resources": ["adb"]})
    machine["states"]["s"]["transform"] = "first"
    with SimpleFSM(
        machine, container=Mixed(), functions={"waits": waits, "first": lambda record: called.append(1)}
    ) as fsm:
        with pytest.raises(AsyncInSyncRunError, match=r"(?s)state 'w' \(function .*waits\), resource 'adb'.*aprocess"):
            fsm.process({})
        with pytest.raises(AsyncInSyncRunError):
            fsm.process_batch([{}])
        assert called == []
        assert asyncio.run(fsm.aprocess({})).success


def test_a_build_opens_nothing(tmp_path: Path) -> None:
    diary = Diary()
    SimpleFSM(work_machine({"resources": ["r"]}), resources=diary.per_state("r")).close()
    store = Store(tmp_path)
    store.path.unlink()
    SimpleFSM(work_machine({"resources": ["db"]}), container=store.container).close()
    assert diary.lines == []
    assert list(tmp_path.iterdir()) == []


# --- what may be injected --------------------------------------------------------------------------------------


def test_injection_needs_neither_wiring_nor_the_decorator(side: Side) -> None:
    def bare(record: Any, db: Any = Provide["database"]) -> None:
        record["bare"] = db

    @inject
    def decorated(record: Any, *, db: Any = Provide[Things.database]) -> None:
        record["decorated"] = db

    def annotated(record: Any, context: Any, db: Annotated[Any, Provide["database"]]) -> None:
        record["annotated"] = (db, context.state)

    @inject
    def before_the_context(record: Any, db: Any = Provide["database"], context: Any = None) -> None:
        record["before"] = (db, context.state)

    @inject
    def lazily(record: Any, db: Any = Provider["database"], limit: Any = Provide["limit"]) -> None:
        record["lazily"] = (db(), limit)

    functions = {f.__name__: f for f in (bare, decorated, annotated, before_the_context, lazily)}
    with SimpleFSM(work_machine({"transforms": list(functions)}), container=Things(), functions=functions) as fsm:
        assert process(side, fsm, {}).data == {
            "bare": "resource", "decorated": "resource", "annotated": ("resource", "w"), "before": ("resource", "w"),
            "lazily": ("resource", {"limit": 3}),
        }  # fmt: skip


def test_postponed_annotations_work(side: Side, tmp_path: Path) -> None:
    store = Store(tmp_path)
    functions = {"annotated": postponed.annotated, "by_default": postponed.by_default}
    machine = work_machine({"transforms": list(functions)})
    with SimpleFSM(machine, container=store.container, functions=functions) as fsm:
        assert process(side, fsm, {}).data == {"state": "w", "rows": [{"one": 1}], "more": [{"two": 2}]}


def test_methods_and_callable_objects_are_injected(side: Side) -> None:
    class Loader:
        def __init__(self, name: str) -> None:
            self.name = name

        @inject
        def load(self, record: Any, db: Any = Provide["database"]) -> None:
            record[self.name] = db

        @inject
        def __call__(self, record: Any, db: Any = Provide["api"]) -> None:
            record[f"{self.name} called"] = db

        @staticmethod
        @inject
        def static(record: Any, db: Any = Provide["workdir"]) -> None:
            record["static"] = db

        @classmethod
        @inject
        def of_class(cls, record: Any, db: Any = Provide["database"]) -> None:
            record["class"] = (cls, db)

    functions = {
        "one": Loader("one").load, "two": Loader("two").load, "three": Loader("three"), "four": Loader.static,
        "five": Loader.of_class,
    }  # fmt: skip
    with SimpleFSM(work_machine({"transforms": list(functions)}), container=Things(), functions=functions) as fsm:
        result = process(side, fsm, {})
    assert result.error is None
    assert result.data == {
        "one": "resource", "two": "resource", "three called": "resource", "static": "resource",
        "class": (Loader, "resource"),
    }  # fmt: skip


def test_outer_decorators_still_run(side: Side) -> None:
    calls: list[str] = []

    def noting(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return wrapper

    @noting
    @inject
    def uses(record: Any, db: Any = Provide["database"]) -> None:
        record["db"] = db

    with SimpleFSM(work_machine({"transform": "uses"}), container=Things(), functions={"uses": uses}) as fsm:
        assert process(side, fsm, {}).data == {"db": "resource"}
    assert calls == ["uses"]


def test_one_function_serves_two_machines_with_two_containers_at_once(side: Side) -> None:
    class Other(containers.DeclarativeContainer):
        database = lifetimes.PerState(lambda: "other")

    @inject
    def uses(record: Any, db: Any = Provide["database"]) -> dict[str, Any]:
        return {"db": db}

    machine = work_machine({"transform": "uses"})
    with (
        SimpleFSM(machine, container=Things(), functions={"uses": uses}) as first,
        SimpleFSM(machine, container=Other(), functions={"uses": uses}) as second,
        SimpleFSM(
            machine, resources={"database": lifetimes.PerState(lambda: "own")}, functions={"uses": uses}
        ) as third,
    ):
        for _ in range(2):
            found = [process(side, fsm, {}).data["db"] for fsm in (first, second, third)]
            assert found == ["resource", "other", "own"]
    marker = uses({})["db"]  # it was never bound to any of them
    assert type(marker).__name__ == "Provide"


def test_one_function_serves_two_machines_in_two_threads() -> None:
    meeting = threading.Barrier(2)

    class Other(ResourceContainer):
        database = lifetimes.PerState(lambda: "other")

    @inject
    def uses(record: Any, db: Any = Provide["database"]) -> dict[str, Any]:
        meeting.wait(5)
        return {"db": db}

    found: dict[str, set[str]] = {"things": set(), "other": set()}

    def run(name: str, container: Any) -> None:
        with SimpleFSM(work_machine({"transform": "uses"}), container=container, functions={"uses": uses}) as fsm:
            for _ in range(20):
                found[name].add(fsm.process({}).data["db"])

    threads = [threading.Thread(target=run, args=pair) for pair in (("things", Things()), ("other", Other()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {"things": {"resource"}, "other": {"other"}}


# --- nothing grows ------------------------------------------------------------------------------------------------


def test_the_plans_of_a_container_do_not_grow_with_the_machines_built(side: Side) -> None:
    class Loader:
        @inject
        def load(self, record: Any, db: Any = Provide["database"]) -> None: ...

    @inject
    def uses(record: Any, by: int, db: Any = Provide["database"]) -> None: ...

    container = Things()
    machine = work_machine({"transforms": ["load", {"name": "uses", "params": {"by": 1}}]})
    plans = planner_of(container)._plans
    sizes = []
    for _ in range(5):
        with SimpleFSM(machine, container=container, functions={"load": Loader().load, "uses": uses}) as fsm:
            assert process(side, fsm, {}).success
        del fsm
        gc.collect()
        sizes.append(len(plans))
    assert len(set(sizes)) == 1
    assert sizes[0] <= 2


def test_a_plan_does_not_keep_its_function() -> None:
    @inject
    def uses(record: Any, db: Any = Provide["database"]) -> None: ...

    container = Things()
    plain = lambda record, db=Provide["database"]: None  # noqa: E731
    seen = weakref.ref(plain)
    SimpleFSM(work_machine({"transform": "plain"}), container=container, functions={"plain": plain}).close()
    del plain
    gc.collect()
    assert seen() is None


@pytest.mark.slow
def test_a_thousand_builds_leave_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)

    @inject
    def adds(record: Any, db: Any = Provide["db"], tool: Any = Provide["tool"]) -> None:
        insert(db, 1)

    def build(number: int) -> weakref.ref[Any]:
        with SimpleFSM(
            work_machine({"transform": "adds"}, resources=[{"name": "values", "data": {"a": 1}}]),
            container=store.container, functions={"adds": adds}, resources={"tool": lifetimes.PerState(dict)},
        ) as fsm:  # fmt: skip
            assert number % 10 or fsm.process({}).success
        return weakref.ref(fsm)

    def counted() -> tuple[int, ...]:
        gc.collect()
        registry = wiring._patched_registry
        return (
            threading.active_count(),
            len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
            sum(len(part) for part in vars(registry).values()) if hasattr(registry, "__dict__") else 0,
            len(store.container.manager.names),
            len(store.container.manager.owners),
            len(planner_of(store.container)._plans),
        )

    build(0)
    before = counted()
    gone = [build(number) for number in range(1000)]
    assert all(now <= then for now, then in zip(counted(), before, strict=True))  # a thread of before may have ended
    assert not any(ref() for ref in gone)
    store.container.shutdown_resources()


def test_a_helper_that_nobody_wired_is_told_by_its_name_and_parameter() -> None:
    @inject
    def helper(record: Any, db: Any = Provide["database"]) -> None:
        db.query("SELECT 1")

    def work(record: Any) -> None:
        helper(record)

    with SimpleFSM({"states": {"work": {"transform": "work"}}}, functions={"work": work}) as fsm:
        error = fsm.process({}).error
    assert isinstance(error, NotInjectedError)
    assert "NotInjected [I001]" in str(error)
    assert "helper was called with an unresolved marker for 'db'" in str(error)
    assert "container.wire(modules=[…])" in str(error)
    assert isinstance(error.__cause__, AttributeError)
