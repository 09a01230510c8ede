"""``providers.Configuration`` beside, below and above our lifetimes: every source, every place where it is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Provide, as_int, inject
from pydantic_settings import BaseSettings

from tests.conftest import Side
from wirestate import DatabaseResourceAdapter, FileSystemResourceAdapter, PoolConfig, SimpleFSM, lifetimes
from wirestate.errors import BuildError, MissingSettingError
from wirestate.testing import injected, override

MACHINE = {"states": {"s": {"transform": "work"}}}


class Client:
    def __init__(self, host: str, port: Any = None) -> None:
        self.host = host
        self.port = port


class App(containers.DeclarativeContainer):
    config = providers.Configuration()
    client = providers.Factory(Client, host=config.api.host, port=config.api.port.as_int())
    shared = providers.Singleton(Client, config.api.host)
    visit = lifetimes.PerState(Client, config.api.host, port=config.api.port.as_int())
    database = lifetimes.PerState(
        DatabaseResourceAdapter, url=config.db.url, pool=providers.Factory(PoolConfig, max_size=config.db.size.as_int())
    )
    folder = lifetimes.PerOwner(FileSystemResourceAdapter, base_path=config.folder)


def values(tmp_path: Path) -> dict[str, Any]:
    return {
        "api": {"host": "h", "port": "80"},
        "db": {"url": f"sqlite:///{tmp_path / 'a.db'}", "size": "2"},
        "folder": str(tmp_path),
    }


def from_dict(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.from_dict(values(tmp_path))


def from_yaml(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "80")
    (tmp_path / "c.yaml").write_text(
        f"api: {{host: h, port: '${{API_PORT}}'}}\n"
        f"db: {{url: 'sqlite:///{tmp_path}/a.db', size: 2}}\nfolder: {tmp_path}\n"
    )
    config.from_yaml(tmp_path / "c.yaml", required=True)


def from_ini(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.ini").write_text(f"[api]\nhost = h\nport = 80\n[db]\nurl = sqlite:///{tmp_path}/a.db\nsize = 2\n")
    config.from_ini(tmp_path / "c.ini", required=True)
    config.folder.from_value(str(tmp_path))


def from_env(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "h", "PORT": "80", "URL": f"sqlite:///{tmp_path}/a.db", "FOLDER": tmp_path}.items():
        monkeypatch.setenv(f"APP_{name}", str(value))
    config.api.host.from_env("APP_HOST", required=True)
    config.api.port.from_env("APP_PORT")
    config.db.url.from_env("APP_URL")
    config.db.size.from_env("APP_SIZE", default=2)
    config.folder.from_env("APP_FOLDER")


def from_pydantic(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Settings(BaseSettings):
        api: dict[str, str] = {"host": "h", "port": "80"}
        db: dict[str, Any] = {"url": f"sqlite:///{tmp_path}/a.db", "size": 2}
        folder: str = str(tmp_path)

    config.from_pydantic(Settings())


def overridden(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.from_dict({"api": {"host": "wrong"}})
    config.override(values(tmp_path))


SOURCES = [from_dict, from_yaml, from_ini, from_env, from_pydantic, overridden]


@pytest.fixture(params=SOURCES, ids=lambda source: source.__name__)
def container(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = App()
    request.param(made.config, tmp_path, monkeypatch)
    return made


@inject
def plain(record: Any, client: Any = Provide[App.client], shared: Any = Provide["shared"]) -> dict[str, Any]:
    return {"found": [client.host, client.port, shared.host]}


@inject
def scoped(record: Any, visit: Any = Provide[App.visit]) -> dict[str, Any]:
    return {"found": [visit.host, visit.port, "h"]}


@inject
def options(
    record: Any,
    host: Any = Provide[App.config.api.host],
    api: Any = Provide["config.api"],
    *,
    port: Annotated[Any, Provide[App.config.api.port.as_int()]],
) -> dict[str, Any]:
    return {"found": [host, port, api["host"]]}


def by_string(
    record: Any, host: Any = Provide["config.api.host"], *, port: Annotated[Any, Provide["config.api.port", as_int()]]
) -> dict[str, Any]:
    return {"found": [host, port, "h"]}


@inject
def adapters(
    record: Any, db: Any = Provide[App.database], folder: Any = Provide[App.folder], config: Any = Provide[App.config]
) -> dict[str, Any]:
    folder.write("x", "h")
    return {"found": [config["api"]["host"], 79 + db.query("SELECT 1 AS n")[0]["n"], folder.read("x")]}


FUNCTIONS = [plain, scoped, options, by_string, adapters]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions_get_what_the_configuration_says(side: Side, container: Any, function: Callable[..., Any]) -> None:
    with SimpleFSM(MACHINE, container=container, functions={"work": function}) as fsm:
        result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
        assert result.success, result.error
        assert result.data == {"found": ["h", 80, "h"]}
    with injected(container, function) as call:
        assert call({}) == {"found": ["h", 80, "h"]}
    container.shutdown_resources()


def test_a_build_adds_nothing_to_the_configuration(tmp_path: Path) -> None:
    container = App()
    container.config.from_dict(values(tmp_path))

    def names() -> list[str]:
        return sorted(option.get_name() for option in container.config.traverse(types=[providers.ConfigurationOption]))

    before = names()
    for function in FUNCTIONS:
        SimpleFSM(MACHINE, container=container, functions={"work": function}).close()
    assert names() == before
    assert "config.db.url" in before
    container.shutdown_resources()


def test_a_later_override_of_the_configuration_is_seen_at_the_next_visit(side: Side, tmp_path: Path) -> None:
    container = App()
    container.config.from_dict(values(tmp_path))

    def where(record: Any, db: Any = Provide[App.database], host: Any = Provide[App.config.api.host]) -> dict[str, Any]:
        return {"file": Path(db.get_bind().engine.url.database).name, "host": host}

    def found() -> Any:
        return (side.run(fsm.aprocess({})) if side.is_async else fsm.process({})).data

    with SimpleFSM(MACHINE, container=container, functions={"work": where}) as fsm:
        assert found() == {"file": "a.db", "host": "h"}
        with override(container, **{"config.db.url": f"sqlite:///{tmp_path}/b.db", "config.api.host": "i"}):
            assert found() == {"file": "b.db", "host": "i"}
        assert found() == {"file": "a.db", "host": "h"}
        container.config.db.url.override(f"sqlite:///{tmp_path}/c.db")
        assert found() == {"file": "c.db", "host": "h"}
    container.shutdown_resources()


class Part(containers.DeclarativeContainer):
    config = providers.Configuration()
    client = providers.Factory(Client, host=config.host, port=config.port.as_int())
    visit = lifetimes.PerState(Client, config.host, port=config.port.as_int())
    database = lifetimes.PerState(DatabaseResourceAdapter, url=config.url)


class Whole(containers.DeclarativeContainer):
    config = providers.Configuration()
    part = providers.Container(Part, config=config.sub)


def test_a_nested_container_gets_its_part_of_the_configuration(side: Side, tmp_path: Path) -> None:
    container = Whole()
    container.config.from_dict({"sub": {"host": "h", "port": "80", "url": f"sqlite:///{tmp_path}/a.db"}})

    @inject
    def use(
        record: Any,
        client: Any = Provide[Whole.part.client],
        visit: Any = Provide["part.visit"],
        host: Any = Provide[Whole.part.config.host],
        db: Any = Provide[Whole.part.database],
    ) -> dict[str, Any]:
        return {"found": [client.port, visit.host, host, db.query("SELECT 1 AS n")[0]["n"]]}

    with SimpleFSM(MACHINE, container=container, functions={"work": use}) as fsm:
        for host in ("h", "i"):
            container.config.sub.host.override(host)
            result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
            assert result.data == {"found": [80, host, host, 1]}
    container.shutdown_resources()


@pytest.mark.parametrize("typed", [False, True])
def test_a_selector_opens_what_the_configuration_chooses(side: Side, typed: bool) -> None:
    lines: list[str] = []

    async def waiting() -> Any:
        lines.append("waiting")
        return "waiting"

    class C(containers.DeclarativeContainer):
        config = providers.Configuration()
        kind = config.kind.as_(str.lower) if typed else config.kind
        database = providers.Selector(
            kind,
            one=lifetimes.PerState(lambda: "one"),
            two=lifetimes.PerState(lambda: "two"),
            waiting=lifetimes.PerState(waiting),
        )
        service = providers.Factory(Client, database)

    def use(record: Any, service: Any = Provide["service"], direct: Any = Provide["database"]) -> dict[str, Any]:
        return {"found": (service.host, direct)}

    container = C()
    container.config.from_dict({"kind": "one"})
    with SimpleFSM(MACHINE, container=container, functions={"work": use}) as fsm:
        for kind in ("one", "two", "one", *(["waiting"] if side.is_async else [])):
            container.config.kind.override(kind)
            result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
            assert result.data == {"found": (kind, kind)}
    assert lines == (["waiting"] if side.is_async else [])


class Settings:
    url = "u"
    ports: ClassVar = {"http": [80]}

    def plus(self, number: int) -> int:
        return number + 1


class Provided(containers.DeclarativeContainer):
    settings = providers.Singleton(Settings)


def test_provided_of_a_singleton_reaches_a_function(side: Side) -> None:
    def use(
        record: Any,
        url: Any = Provide[Provided.settings.provided.url],
        port: Any = Provide[Provided.settings.provided.ports["http"][0]],
        *,
        more: Annotated[Any, Provide[Provided.settings.provided.plus.call(1)]],
    ) -> dict[str, Any]:
        return {"found": (url, port, more)}

    fsm = SimpleFSM(MACHINE, container=Provided(), functions={"work": use})
    result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
    assert result.data == {"found": ("u", 80, 2)}


def test_delegated_providers_and_aggregates_are_passed_as_the_library_passes_them() -> None:
    class C(containers.DeclarativeContainer):
        factories = providers.FactoryAggregate(a=providers.Factory(list))
        make = providers.DelegatedFactory(dict)
        visit = lifetimes.PerState(lambda *args: args, factories, make)
        service = providers.Factory(lambda *args: args, factories, make)

    container = C()

    def use(record: Any, visit: Any = Provide["visit"], service: Any = Provide["service"]) -> Any:
        return visit, service, visit[0]("a"), visit[1]()

    with injected(container, use) as call:
        expected = (container.factories, container.make)
        assert call({}) == (expected, expected, [], {})


NOT_LOADED = "the configuration 'config' has not been loaded.  Load it before: config.from_yaml"


def database(record: Any, db: Any = Provide["database"]) -> None: ...


def nested(record: Any, db: Any = Provide["part.database"]) -> None: ...


def client(record: Any, client: Any = Provide["client"]) -> dict[str, Any]:
    return {"port": client.port}


def visit(record: Any, visit: Any = Provide["visit"]) -> dict[str, Any]:
    return {"host": visit.host}


def option(record: Any, host: Any = Provide["config.api.host"]) -> dict[str, Any]:
    return {"host": host}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    ("kind", "function", "name"), [(App, database, "config.db.url"), (Whole, nested, "config.sub.url")]
)
def test_a_resource_whose_option_is_not_loaded_is_a_fault_that_names_it(
    kind: Any, function: Any, name: str, loaded: bool, strict: bool
) -> None:
    container = kind()
    container.config.set_strict(strict)
    if loaded:
        container.config.from_dict({"db": {"ulr": "sqlite://"}, "sub": {"ulr": "sqlite://"}})
    with pytest.raises(BuildError) as caught:
        SimpleFSM(MACHINE, container=container, functions={"work": function})
    (fault,) = caught.value.faults
    assert (fault.code, fault.kind) == ("S001", "MissingSetting")
    assert f"needs {name}: " in fault.message
    expected = f"does not have it.  Did you mean {name.replace('url', 'ulr')!r}?" if loaded else NOT_LOADED
    assert expected in fault.message
    with pytest.raises(BuildError, match=re.escape(name)):
        injected(container, function)
    SimpleFSM(MACHINE, container=container, functions={"work": lambda record: None}).close()  # nothing asks for it


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("function", "name"), [(client, "config.api.port"), (visit, "config.api.host"), (option, "config.api.host")]
)
def test_a_configuration_may_be_loaded_after_the_build_and_is_named_if_it_is_not(
    side: Side, function: Any, name: str, strict: bool, tmp_path: Path
) -> None:
    container = App()
    container.config.set_strict(strict)
    with SimpleFSM(MACHINE, container=container, functions={"work": function}) as fsm:
        result = side.run(fsm.aprocess({})) if side.is_async else fsm.process({})
        assert isinstance(result.error, MissingSettingError)
        assert NOT_LOADED in str(result.error)
        assert "config.api." in str(result.error)
        container.config.from_dict(values(tmp_path))
        assert (side.run(fsm.aprocess({})) if side.is_async else fsm.process({})).success


def test_an_option_that_the_configuration_says_to_be_none_is_none(side: Side) -> None:
    container = App()
    container.config.from_dict({"api": {"host": None, "port": 1}})
    for function in (visit, option):
        fsm = SimpleFSM(MACHINE, container=container, functions={"work": function})
        assert (side.run(fsm.aprocess({})) if side.is_async else fsm.process({})).data == {"host": None}


def test_a_conversion_may_stand_for_an_option_that_is_not_there() -> None:
    class C(containers.DeclarativeContainer):
        config = providers.Configuration()
        folder = lifetimes.PerOwner(FileSystemResourceAdapter, base_path=config.folder.as_(lambda value: value or "."))

    with injected(C(), lambda record, folder=Provide["folder"]: folder.exists("nothing")) as call:
        assert call({}) is False


@pytest.mark.parametrize("where", ["pool", "argument"])
def test_a_value_that_cannot_be_converted_is_told_without_it(where: str) -> None:
    class C(containers.DeclarativeContainer):
        config = providers.Configuration()
        database = lifetimes.PerState(
            DatabaseResourceAdapter,
            url="memory",
            **(
                {"pool": providers.Factory(PoolConfig, max_size=config.number.as_int())}
                if where == "pool"
                else {"busy_timeout": config.number.as_float()}
            ),
        )

    container = C()
    container.config.from_dict({"number": "s3cret"})
    with pytest.raises(BuildError, match=r"resource 'database': config\.number has a value that cannot") as caught:
        SimpleFSM(MACHINE, container=container, functions={"work": database})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (None, f"a selector asks config.kind: {NOT_LOADED}"),
        ({"knd": "one"}, "a selector asks config.kind: the configuration does not have it.  Did you mean 'config.knd'"),
        ({"kind": "s3cret"}, "config.kind, which a selector asks, is none of 'one', 'two'"),
    ],
)
@pytest.mark.parametrize("behind", [False, True])
def test_a_selector_that_can_choose_nothing_is_a_fault(loaded: Any, message: str, behind: bool) -> None:
    class C(containers.DeclarativeContainer):
        config = providers.Configuration()
        one = providers.Factory(list)
        chosen = providers.Selector(config.kind, one=one, two=one)
        database = lifetimes.PerState(lambda it: it, chosen) if behind else providers.Factory(dict, it=chosen)

    container = C()
    if loaded is not None:
        container.config.from_dict(loaded)
    with pytest.raises(BuildError) as caught:
        SimpleFSM(MACHINE, container=container, functions={"work": database})
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_singleton_from_the_configuration_comes_back_after_an_override(side: Side) -> None:
    class C(containers.DeclarativeContainer):
        config = providers.Configuration()
        client = lifetimes.Singleton(Client, config.host)

    container = C()
    for host in ("first", "h"):
        container.config.from_dict({"host": host})
        client = container.client()
        assert client.host == host
    with override(container, **{"config.host": "i"}):
        assert container.client().host == "i"
    assert container.client() is client
    container.shutdown_resources()
