"""Containers shaped like those of real applications: a machine runs on each, in both worlds where it applies."""

from __future__ import annotations

import asyncio
import copy
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from dependency_injector import containers, providers
from dependency_injector.wiring import Closing, Provide, inject
from pydantic_settings import BaseSettings
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from tests.conftest import Side
from wirestate import DatabaseResourceAdapter, FileSystemResourceAdapter, PoolConfig, SimpleFSM, lifetimes, manager_of
from wirestate.errors import BuildError
from wirestate.testing import assert_no_leaks, injected, override

MACHINE = {"states": {"s": {"transform": "work"}}}
seen: list[str] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    seen.clear()


def run(side: Side, fsm: SimpleFSM, record: Any = None) -> Any:
    record = {} if record is None else record
    result = side.run(fsm.aprocess(record)) if side.is_async else fsm.process(record)
    assert result.success, result.error
    return result.data


def opened(name: str, *needs: Any) -> Iterator[str]:
    seen.append(f"+{name}")
    yield name
    seen.append(f"-{name}")


async def awaited(name: str, *needs: Any) -> AsyncIterator[str]:
    seen.append(f"+{name}")
    yield name
    seen.append(f"-{name}")


# --- a shop: core, gateways and services, each with its part of the configuration -------------------------


class Mail:
    def __init__(self, host: str, port: int) -> None:
        self.address = f"{host}:{port}"


class Orders:
    """A service over the session of the visit."""

    def __init__(self, session: Session, mail: Any, limit: int) -> None:
        self.session = session
        self.mail = mail
        self.limit = limit

    def add(self, name: str) -> int:
        self.session.execute(text("CREATE TABLE IF NOT EXISTS orders (name TEXT)"))
        self.session.execute(text("INSERT INTO orders VALUES (:name)"), {"name": name})
        return int(self.session.execute(text("SELECT count(*) FROM orders")).scalar_one())


class Core(containers.DeclarativeContainer):
    config = providers.Configuration()
    log = providers.Resource(opened, "log")
    folder = lifetimes.PerOwner(FileSystemResourceAdapter, base_path=config.folder)


class Gateways(containers.DeclarativeContainer):
    config = providers.Configuration()
    core = providers.DependenciesContainer()
    session = lifetimes.PerState(
        DatabaseResourceAdapter,
        url=config.url,
        pool=providers.Factory(PoolConfig, max_size=config.connections.as_int()),
    )
    smtp = providers.Singleton(Mail, config.mail.host, config.mail.port.as_int())
    dry = providers.Singleton(Mail, "nowhere", 0)
    mail = providers.Selector(config.mail.kind, smtp=smtp, dry=dry)


class Services(containers.DeclarativeContainer):
    config = providers.Configuration()
    gateways = providers.DependenciesContainer()
    orders = providers.Factory(Orders, gateways.session, mail=gateways.mail, limit=config.limit.as_int())


class Shop(containers.DeclarativeContainer):
    config = providers.Configuration(strict=True)
    core = providers.Container(Core, config=config.core)
    gateways = providers.Container(Gateways, config=config.gateways, core=core)
    services = providers.Container(Services, config=config.services, gateways=gateways)


SHOP_YAML = """
core:
  folder: ${SHOP_FOLDER}
gateways:
  url: sqlite:///${SHOP_FOLDER}/shop.db
  connections: ${SHOP_CONNECTIONS:2}
  mail: {kind: smtp, host: mail.example, port: "25"}
services:
  limit: "10"
"""


class ShopSettings(BaseSettings):
    core: dict[str, str]
    gateways: dict[str, Any]
    services: dict[str, int] = {"limit": 10}


def shop_values(folder: Path) -> dict[str, Any]:
    return {
        "core": {"folder": str(folder)},
        "gateways": {
            "url": f"sqlite:///{folder}/shop.db",
            "connections": 2,
            "mail": {"kind": "smtp", "host": "mail.example", "port": 25},
        },
        "services": {"limit": "10"},
    }


@pytest.fixture(params=["yaml and env", "dict", "ini and env", "pydantic", "override", "argument"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("SHOP_FOLDER", str(tmp_path))
    made: Any = Shop()
    config = made.config
    if request.param == "yaml and env":
        (tmp_path / "shop.yaml").write_text(SHOP_YAML)
        config.from_yaml(tmp_path / "shop.yaml")
    elif request.param == "dict":
        config.from_dict(shop_values(tmp_path))
    elif request.param == "ini and env":
        (tmp_path / "shop.ini").write_text("[core]\nfolder = ${SHOP_FOLDER}\n[services]\nlimit = 10\n")
        config.from_ini(tmp_path / "shop.ini")
        monkeypatch.setenv("SHOP_URL", f"sqlite:///{tmp_path}/shop.db")
        config.gateways.from_dict({"connections": "2", "mail": shop_values(tmp_path)["gateways"]["mail"]})
        config.gateways.url.from_env("SHOP_URL", required=True)
    elif request.param == "pydantic":
        values = shop_values(tmp_path)
        config.from_pydantic(ShopSettings(core=values["core"], gateways=values["gateways"]))
    elif request.param == "override":
        config.override(shop_values(tmp_path))
    else:
        made = Shop(config=shop_values(tmp_path))
    yield made
    made.shutdown_resources()
    made.unwire()


@inject
def order(
    record: dict[str, Any],
    orders: Orders = Provide[Shop.services.orders],
    folder: Any = Provide["core.folder"],
    log: str = Provide[Shop.core.log],
    limit: Any = Provide["services.config.limit"],
) -> dict[str, Any]:
    folder.write("last.txt", record["name"])
    return {
        "count": orders.add(record["name"]),
        "mail": orders.mail.address,
        "limits": (orders.limit, int(limit)),
        "log": log,
        "file": folder.read("last.txt"),
    }


EXPECTED = {"count": 1, "mail": "mail.example:25", "limits": (10, 10), "log": "log", "file": "tea"}


def test_nested_containers_with_parts_of_one_configuration(side: Side, shop: Any) -> None:
    with SimpleFSM(MACHINE, container=shop, functions={"work": order}) as fsm:
        assert run(side, fsm, {"name": "tea"}) == EXPECTED
        assert run(side, fsm, {"name": "tea"})["count"] == 2  # the first visit's transaction was committed
        assert fsm.manager.get_metrics("gateways.session_pool")["gateways.session_pool"].limit == 2
    assert_no_leaks(shop)


def test_a_test_replaces_parts_of_nested_containers(side: Side, shop: Any, tmp_path: Path) -> None:
    with SimpleFSM(MACHINE, container=shop, functions={"work": order}) as fsm:
        fakes = {"config.gateways.mail.kind": "dry", "core.log": "silent", "config.services.limit": 3}
        with override(shop, **fakes):
            assert run(side, fsm, {"name": "tea"}) == {
                **EXPECTED,
                "mail": "nowhere:0",
                "limits": (3, 3),
                "log": "silent",
            }
        with override(shop, **{"config.gateways.url": f"sqlite:///{tmp_path}/other.db"}):
            assert run(side, fsm, {"name": "tea"})["count"] == 1
        assert run(side, fsm, {"name": "tea"}) == {**EXPECTED, "count": 2}


def test_a_run_that_fails_rolls_the_session_of_a_nested_container_back(side: Side, shop: Any) -> None:
    def fails(record: dict[str, Any], orders: Orders = Provide[Shop.services.orders]) -> None:
        orders.add(record["name"])
        raise LookupError(record["name"])

    machine = {"states": {"s": {"transform": ["order", "fails"]}}}
    with SimpleFSM(machine, container=shop, functions={"order": order, "fails": fails}) as fsm:
        result = side.run(fsm.aprocess({"name": "tea"})) if side.is_async else fsm.process({"name": "tea"})
        assert isinstance(result.error, LookupError | KeyError)
    with injected(shop, order) as call:
        assert call({"name": "tea"})["count"] == 1


def test_a_part_that_lacks_its_configuration_is_named_from_the_outermost_on(tmp_path: Path) -> None:
    shop: Any = Shop()
    values = shop_values(tmp_path)
    del values["gateways"]["url"]
    shop.config.from_dict(values)
    with pytest.raises(BuildError, match=r"needs config\.gateways\.url: the configuration does not have it"):
        SimpleFSM(MACHINE, container=shop, functions={"work": order})


# --- an engine that one container gives to another by its type --------------------------------------------


class Infrastructure(containers.DeclarativeContainer):
    config = providers.Configuration()
    engine = lifetimes.Singleton(DatabaseResourceAdapter, url=config.url, resource="engine")


class Repository:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine


class Domain(containers.DeclarativeContainer):
    engine = providers.Dependency(instance_of=Engine)
    repository = providers.Singleton(Repository, engine)
    session = lifetimes.PerState(Session, engine)


def count_to_two(
    record: Any, repository: Repository = Provide["repository"], session: Session = Provide["session"]
) -> dict[str, Any]:
    with repository.engine.connect() as connection:
        one = connection.execute(text("SELECT 1")).scalar_one()
    return {"counted": [one, session.execute(text("SELECT 2")).scalar_one()]}


def test_a_dependency_with_a_type_gets_the_native_engine(side: Side, tmp_path: Path) -> None:
    infrastructure: Any = Infrastructure()
    infrastructure.config.from_dict({"url": f"sqlite:///{tmp_path}/a.db"})
    domain: Any = Domain(engine=infrastructure.engine)
    with SimpleFSM(MACHINE, container=domain, functions={"work": count_to_two}) as fsm:
        assert run(side, fsm) == {"counted": [1, 2]}
        assert isinstance(domain.engine(), Engine)
    infrastructure.shutdown_resources()


# --- a container of each request ----------------------------------------------------------------------------


class Site(containers.DeclarativeContainer):
    user = providers.Dependency(instance_of=str, default="nobody")
    pool = lifetimes.Singleton(opened, "pool")
    session = lifetimes.PerState(opened, "session", pool)
    greeting = providers.Factory(lambda session, user: f"{user} in {session}", session, user)


@pytest.mark.parametrize("known", [True, False], ids=["manager known before", "manager unknown"])
def test_a_container_that_was_copied_for_a_request_shares_what_is_open(side: Side, known: bool) -> None:
    site: Any = Site()
    if known:
        run(side, SimpleFSM(MACHINE, container=site, functions={"work": lambda record: None}))
    for user in ("ann", "ben"):
        request = copy.copy(site)
        request.request_id = providers.Object(f"id of {user}")

        def greet(
            record: Any, greeting: str = Provide["greeting"], request_id: str = Provide["request_id"]
        ) -> dict[str, Any]:
            return {"greeting": greeting, "id": request_id}

        with request.user.override(user):
            fsm = SimpleFSM(MACHINE, container=request, functions={"work": greet})
            assert run(side, fsm) == {"greeting": f"{user} in session", "id": f"id of {user}"}
        assert manager_of(request) is manager_of(site)
    assert seen == ["+pool", "+session", "-session", "+session", "-session"]
    site.shutdown_resources()
    assert seen[-1] == "-pool"


def test_a_deep_copy_opens_its_own(side: Side) -> None:
    site: Any = Site()
    for container in (site, copy.deepcopy(site)):
        with injected(container, lambda record, greeting=Provide["greeting"]: greeting) as call:
            assert call({}) == "nobody in session"
    assert seen.count("+pool") == 2
    site.shutdown_resources()
    assert seen.count("-pool") == 1


@containers.copy(Site)
class Mirror(Site):
    user = providers.Object("mirrored")


def test_a_copied_declaration_opens_its_own(side: Side) -> None:
    mirror: Any = Mirror()

    def greet(record: Any, greeting: str = Provide[Mirror.greeting]) -> dict[str, Any]:
        return {"greeting": greeting}

    assert run(side, SimpleFSM(MACHINE, container=mirror, functions={"work": greet})) == {
        "greeting": "mirrored in session"
    }
    mirror.shutdown_resources()


# --- packages that the container wires by itself ---------------------------------------------------------

STEPS = """
from dependency_injector.wiring import Closing, Provide, inject

@inject
def shout(word, greeting=Provide["greeting"]):
    return f"{word}: {greeting}!"

@inject
def work(record, session=Provide["session"]):
    return {"said": shout(record["word"]), "session": session}

@inject
async def awork(record, session=Provide["session"]):
    return {"said": shout(record["word"]), "session": session}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder = tmp_path / "wired_steps"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "inner" / "__init__.py").touch()
    (folder / "inner" / "steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("wired_steps.inner.steps")
    for name in [name for name in sys.modules if name.startswith("wired_steps")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["work", "awork"])
def test_a_package_that_the_container_wires(side: Side, package: ModuleType, name: str) -> None:
    if name == "awork" and not side.is_async:
        pytest.skip("threads run no asynchronous function")

    class Wired(Site):
        wiring_config = containers.WiringConfiguration(packages=["wired_steps"])

    container: Any = Wired()
    try:
        with SimpleFSM(MACHINE, container=container, functions={"work": getattr(package, name)}) as fsm:
            for _ in range(2):
                assert run(side, fsm, {"word": "hey"}) == {"said": "hey: nobody in session!", "session": "session"}
        assert seen.count("+session") == 2  # the helper that the container wired gets the session of the visit
        with manager_of(container).scope() as owner, owner.state("by hand"):
            assert package.shout("ho") == "ho: nobody in session!"
    finally:
        container.unwire()
        container.shutdown_resources()


# --- overrides ----------------------------------------------------------------------------------------------


class Fakes(containers.DeclarativeContainer):
    session = lifetimes.PerState(opened, "fake session")


def greet(record: Any, greeting: str = Provide["greeting"]) -> dict[str, Any]:
    return {"greeting": greeting}


@pytest.mark.usefixtures("_as_declared")
@pytest.mark.parametrize(("level", "before_the_build"), [("class", True), ("instance", True), ("instance", False)])
@pytest.mark.parametrize("kind", ["lifetime", "factory", "object", "resource", "container"])
def test_overrides_at_either_level_before_and_after_the_build(
    side: Side, level: str, kind: str, before_the_build: bool
) -> None:
    def replace(target: Any) -> None:
        if kind == "container":
            target.override(Fakes if level == "class" else Fakes())
            return
        fake: Any = {
            "lifetime": lambda: lifetimes.PerState(opened, "fake session"),
            "factory": lambda: providers.Factory(str, "fake session"),
            "object": lambda: "fake session",
            "resource": lambda: providers.Resource(opened, "fake session"),
        }[kind]()
        target.session.override(fake)

    if level == "class":
        replace(Site)
    container: Any = Site()
    if level == "instance" and before_the_build:
        replace(container)
    fsm = SimpleFSM(MACHINE, container=container, functions={"work": greet})
    if not before_the_build:
        assert run(side, fsm) == {"greeting": "nobody in session"}
        replace(container)
    assert run(side, fsm) == {"greeting": "nobody in fake session"}
    assert run(side, fsm) == {"greeting": "nobody in fake session"}
    container.session.reset_override()
    assert run(side, fsm) == {"greeting": "nobody in session"}
    container.shutdown_resources()


@pytest.fixture
def _as_declared() -> Iterator[None]:
    yield
    Site.session.reset_override()
    Site.reset_override()


# --- the library's own asynchronous resources, and Closing, beside lifetimes --------------------------------


class Mixed(containers.DeclarativeContainer):
    theirs = providers.Resource(awaited, "theirs")
    plain = providers.Resource(opened, "plain")
    session = lifetimes.PerState(opened, "session")
    both = lifetimes.PerState(awaited, "both", theirs, session)
    service = providers.Factory(lambda *parts: list(parts), session, plain)


def test_an_asynchronous_resource_of_the_library_beside_lifetimes() -> None:
    async def use(record: Any, theirs: Any = Provide["theirs"], both: Any = Provide["both"]) -> dict[str, Any]:
        return {"found": [theirs, both]}

    async def scenario() -> None:
        container: Any = Mixed()
        await container.init_resources()
        async with SimpleFSM(MACHINE, container=container, functions={"work": use}) as fsm:
            for _ in range(2):
                assert (await fsm.aprocess({})).data == {"found": ["theirs", "both"]}
        assert seen.count("+theirs") == 1
        assert seen[-2:] == ["-both", "-session"]
        await container.shutdown_resources()
        assert "-theirs" in seen

    asyncio.run(scenario())


@inject
def wired(plain: Any = Closing[Provide[Mixed.plain]], service: Any = Closing[Provide[Mixed.service]]) -> list[str]:
    return [plain, *service]


def test_closing_in_wired_code_ends_nothing_of_the_visit_that_calls_it(side: Side) -> None:
    container: Any = Mixed()
    container.wire(modules=[__name__])

    def use(record: Any, session: Any = Provide["session"]) -> dict[str, Any]:
        found = wired()
        seen.append(f"still {session}")
        return {"found": found}

    try:
        fsm = SimpleFSM(MACHINE, container=container, functions={"work": use})
        for _ in range(2):
            assert run(side, fsm) == {"found": ["plain", "session", "plain"]}
        assert seen == ["+session", "+plain", "-plain", "still session", "-session"] * 2
    finally:
        container.unwire()
        pending = container.shutdown_resources()
        if pending is not None:
            pending.close()


# --- resources that a machine brings along --------------------------------------------------------------------


class Base(containers.DeclarativeContainer):
    config = providers.Configuration()
    engine = lifetimes.Singleton(opened, "engine")
    session = lifetimes.PerState(opened, "session", engine)


def test_what_a_machine_brings_along_uses_what_its_container_holds(side: Side) -> None:
    base: Any = Base()
    base.config.from_dict({"limit": 1})
    brought = {
        "repository": lifetimes.PerState(lambda engine, session: [engine, session], base.engine, base.session),
        "limit": lifetimes.PerState(lambda limit: limit, base.config.limit),
    }

    def use(
        record: Any,
        repository: Any = Provide["repository"],
        limit: int = Provide["limit"],
        session: Any = Provide["session"],
    ) -> dict[str, Any]:
        return {"found": [*repository, session, limit]}

    machines = [SimpleFSM(MACHINE, container=base, resources=brought, functions={"work": use}) for _ in range(2)]
    for fsm in machines:
        assert run(side, fsm) == {"found": ["engine", "session", "session", 1]}
    with override(base, **{"config.limit": 2, "engine": "fake engine"}):
        assert run(side, machines[0]) == {"found": ["fake engine", "session", "session", 2]}
    assert run(side, machines[0])["found"][-1] == 1
    for fsm in machines:
        fsm.close()
    assert base.engine() == "engine"
    assert seen.count("+engine") == 1
    assert "-engine" not in seen  # the container's own, which a machine that it was handed to does not close
    base.shutdown_resources()
    assert seen[-1] == "-engine"


def test_a_provider_of_the_container_that_a_machine_brings_along_is_a_copy(side: Side) -> None:
    base: Any = Base()

    def use(record: Any, mine: Any = Provide["mine"], engine: Any = Provide["engine"]) -> dict[str, Any]:
        return {"found": [mine, engine]}

    with SimpleFSM(MACHINE, container=base, resources={"mine": base.engine}, functions={"work": use}) as fsm:
        assert run(side, fsm) == {"found": ["engine", "engine"]}
    assert seen == ["+engine", "+engine", "-engine"]
    base.shutdown_resources()
