"""Secrets: whatever holds one shows it nowhere, and what looks for them in the whole suite finds one that is shown."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from dependency_injector.wiring import Provide, inject
from pydantic import SecretStr

from tests.conftest import Side
from tests.secrets_net import texts_of
from tests.secrets_planted import API_KEY, DSN_PASSWORD, HEADER, MARK, MARKS, PASSWORD, STORAGE_SECRET, TOKEN
from tests.services import url_of
from wirestate import (
    BaseResourceProvider,
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    HTTPResourceAdapter,
    LLMResourceAdapter,
    PoolConfig,
    ResourceContainer,
    ResourceError,
    ResourceHealth,
    ResourceManager,
    SimpleFSM,
    WirestateSettings,
    container_from_settings,
    lifetimes,
    manager_of,
)
from wirestate.errors import InvalidSettingError, SettingsError
from wirestate.resources.health import Probe

ROOT = Path(__file__).parent.parent


def assert_silent(*shown: object) -> None:
    for one in shown:
        for text in (str(one), repr(one)):
            assert not any(mark in text for mark in MARKS), f"{type(one).__name__} shows a secret"


@pytest.fixture
def nowhere() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


Factory = Callable[[int, bool], BaseResourceProvider]


def database(url: str, **settings: Any) -> Factory:
    """Return what makes a database of which nobody is there."""

    def make(port: int, is_async: bool) -> BaseResourceProvider:
        driver = {"postgresql": "psycopg", "mariadb": "aiomysql" if is_async else "pymysql"}[url.partition(":")[0]]
        if is_async and driver == "psycopg":
            driver = "asyncpg"
        address = url.format(port=port).replace("://", f"+{driver}://")
        return DatabaseResourceAdapter("held", url=SecretStr(address), connect_timeout=2, **settings)

    return make


def parts(port: int, is_async: bool) -> BaseResourceProvider:
    backend = "postgresql+asyncpg" if is_async else "postgresql"
    place = {"host": "127.0.0.1", "port": port, "database": "d", "user": "me"}
    return DatabaseResourceAdapter("held", backend=backend, password=SecretStr(PASSWORD), connect_timeout=2, **place)


def service(port: int, is_async: bool) -> BaseResourceProvider:
    return HTTPResourceAdapter(
        "held",
        base_url=f"http://127.0.0.1:{port}/v1",
        headers={"X-Api-Key": SecretStr(API_KEY), "X-Plain": HEADER},
        token=SecretStr(TOKEN),
        async_client=is_async,
        retry_count=1,
        retry_pause=0.01,
    )


def service_with_a_password(port: int, is_async: bool) -> BaseResourceProvider:
    return HTTPResourceAdapter(
        "held",
        base_url=f"http://127.0.0.1:{port}",
        auth=("me", SecretStr(PASSWORD)),
        async_client=is_async,
        retry_count=0,
    )


def store(port: int, is_async: bool) -> BaseResourceProvider:
    options = {
        "key": "me",
        "secret": SecretStr(STORAGE_SECRET),
        "endpoint_url": f"http://127.0.0.1:{port}",
        "config_kwargs": {"connect_timeout": 0.5, "retries": {"max_attempts": 1}},
    }
    return FileSystemResourceAdapter("held", base_path="s3://bucket/base", storage_options=options)


def ftp(port: int, is_async: bool) -> BaseResourceProvider:
    url = f"ftp://me:{quote(DSN_PASSWORD, safe='')}@127.0.0.1:{port}/x"
    return FileSystemResourceAdapter("held", base_path=url, storage_options={"timeout": 2})


QUOTED = quote(DSN_PASSWORD, safe="")
HOLDERS: dict[str, Factory] = {
    "postgresql": database(f"postgresql://me:{QUOTED}@127.0.0.1:{{port}}/d"),
    "postgresql parts": parts,
    "mariadb": database(f"mariadb://me:{QUOTED}@127.0.0.1:{{port}}/d"),
    "http token": service,
    "http password": service_with_a_password,
    "s3": store,
    "ftp": ftp,
}


@pytest.fixture(params=HOLDERS)
def holder(request: pytest.FixtureRequest, side: Side, nowhere: int) -> BaseResourceProvider:
    """Give an adapter that holds a secret and cannot reach what is behind it."""
    return HOLDERS[request.param](nowhere, side.is_async)


def used(resource: Any) -> Any:
    """Use a resource of any kind, which may be where it finds out that nobody is there."""
    if hasattr(resource, "query"):
        return resource.query("SELECT 1")
    return resource.get("/x") if hasattr(resource, "get") else resource.read("x")


# --- adapters ------------------------------------------------------------------------------


def test_no_picture_of_an_adapter_and_its_manager_shows_a_secret(side: Side, holder: BaseResourceProvider) -> None:
    manager = ResourceManager()
    manager.register_provider("held", holder)
    recipe = manager.entry("held").steps()[-1]

    async def scenario() -> None:
        assert_silent(holder, recipe, manager, recipe.pool_snapshot(), recipe.pool_config, recipe.breaker)
        assert await side.call(manager, "health_check") == {"held": ResourceHealth.UNHEALTHY}
        status = manager.get_resource_status("held")
        assert status["trouble"]
        assert_silent(status, manager.get_all_resources(), manager.get_metrics(), manager.holders())
        assert_silent(json.dumps(manager.snapshot()), recipe.probe.last if recipe.probe else None)
        await side.call(manager, "close")
        assert_silent(holder)

    side.run(scenario())


def test_what_a_debugger_shows_of_an_adapter_has_no_secret(side: Side, holder: BaseResourceProvider) -> None:
    if not isinstance(holder, HTTPResourceAdapter):
        assert_silent(vars(holder))
    assert_silent(holder.config, holder.metrics)


def test_the_error_of_a_resource_that_cannot_be_had_or_used_shows_no_secret_to_its_last_cause(
    side: Side, holder: BaseResourceProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    manager = ResourceManager()
    manager.register_provider("held", holder)

    async def scenario() -> None:
        try:
            resource = await side.call(manager, "acquire", "held", "owner")
            answer = used(resource)
            if hasattr(answer, "__await__"):
                await answer
        except Exception as error:
            return check(error)
        finally:
            await side.call(manager, "release_all", "owner")
            await side.call(manager, "close")
        raise AssertionError("somebody was there")

    def check(error: BaseException) -> None:
        assert_silent(*texts_of(error), "".join(traceback.format_exception(error)))
        assert_silent(*(record.getMessage() for record in caplog.records))

    side.run(scenario())


@pytest.mark.parametrize("scheme", ["mariadb+pymysql", "mariadb+aiomysql"])
def test_a_password_that_a_server_refuses_is_not_shown(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    place = urlsplit(url_of("mariadb"))
    url = f"{scheme}://nobody:{QUOTED}@{place.hostname}:{place.port}/test"
    adapter = DatabaseResourceAdapter("db", url=url)
    probe = Probe("db", adapter)
    assert probe.ask() is ResourceHealth.UNHEALTHY
    assert "nobody" in (probe.trouble or "")
    assert_silent(probe.trouble, adapter, *(record.getMessage() for record in caplog.records))


def test_a_run_that_fails_for_its_resource_tells_no_secret(side: Side, nowhere: int) -> None:
    @inject
    def load(record: dict[str, Any], db: Any = Provide["db"]) -> dict[str, Any]:
        return record

    class App(ResourceContainer):
        db = lifetimes.PerState(
            DatabaseResourceAdapter, url=f"postgresql://me:{QUOTED}@127.0.0.1:{nowhere}/d", connect_timeout=2
        )

    machine = {"states": {"s": {"transform": "load"}}}
    app = App()
    with SimpleFSM(machine, container=app, functions={"load": load}) as fsm:
        result = side.run(side.call(fsm, "process", {"id": 1}))
        assert not result.success
        assert isinstance(result.error, ResourceError)
        assert_silent(result, result.data, result.reasons, result.caught, *texts_of(result.error), fsm, app.db)
    side.run(side.call(app.manager, "close"))


# --- settings ------------------------------------------------------------------------------


PLANTED = {
    "url": f"postgresql://me:{QUOTED}@h/d",
    "password": PASSWORD,
    "token": TOKEN,
    "api_key": API_KEY,
    "headers": {"Authorization": HEADER},
    "storage_options": {"secret": STORAGE_SECRET},
}


class Keeper(BaseResourceProvider):
    """Takes all of them."""

    def __init__(self, name: str = "keeper", **settings: Any) -> None:
        super().__init__(name, settings)

    def acquire(self, **options: Any) -> object:
        return object()


def test_a_container_made_from_settings_shows_none_of_their_secrets() -> None:
    resources = {"keeper": {"class": f"{__name__}:Keeper", **PLANTED}}
    settings = WirestateSettings(_env_file=None, resources=resources)
    with container_from_settings(settings) as container:
        manager = manager_of(container)
        with manager.resource_context("keeper", "a"):
            recipe = manager.entry("keeper").steps()[-1]
            assert_silent(settings, settings.resources, container, container.keeper, recipe, manager.holders())
            assert_silent(recipe.provider, manager.get_metrics(), manager.snapshot())  # type: ignore[attr-defined]
        assert MARK in str(recipe.provider.config)  # type: ignore[attr-defined]  # it did get them


@pytest.mark.parametrize(
    "wrong",
    [{"pool": {"max_size": TOKEN}}, {"port": PASSWORD}, {"headers": API_KEY}, {"kind": TOKEN}],
    ids=["pool", "port", "headers", "kind"],
)
def test_a_fault_of_the_settings_shows_no_secret(wrong: dict[str, Any]) -> None:
    given = {"class": f"{__name__}:Keeper", **PLANTED, **wrong}
    with pytest.raises(SettingsError) as caught:
        WirestateSettings(_env_file=None, resources={"keeper": given})
    assert_silent(*texts_of(caught.value), "".join(traceback.format_exception(caught.value)))


def test_a_pool_whose_resources_fail_or_leak_tells_no_secret_of_its_provider(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Keeper):
        failing = False

        def acquire(self, **options: Any) -> object:
            if self.failing:
                raise ConnectionError("no route")
            return object()

    provider = Failing("keeper", **PLANTED)
    with ResourceManager() as manager:
        manager.register_provider("keeper", provider, PoolConfig(max_size=2, breaker_failures=1))
        recipe = manager.entry("keeper").steps()[-1]
        pool = recipe.pool  # type: ignore[attr-defined]
        lease = pool.acquire(owner="a")
        assert_silent(lease, pool)
        provider.failing = True
        for _ in range(2):
            with pytest.raises(ResourceError) as caught:
                pool.acquire(owner="b")
            assert_silent(*texts_of(caught.value))
        lease.release()
        assert_silent(pool, pool.breaker, pool.snapshot(), manager.get_resource_status("keeper"))


# --- what looks for them in the whole suite ------------------------------------------------

SHOWING = """
import logging, sys, warnings
import pytest
from tests.secrets_planted import PASSWORD

log = logging.getLogger("shop")

def test_silent():
    log.warning("nothing")
    print("nothing")
    with pytest.raises(ValueError):
        raise ValueError("nothing")

def test_log():
    log.debug("connecting with %s", PASSWORD)

def test_log_of_an_error():
    try:
        raise ValueError(PASSWORD)
    except ValueError:
        log.exception("it failed")

def test_message():
    with pytest.raises(ValueError):
        raise ValueError(PASSWORD)

def test_cause():
    with pytest.raises(KeyError):
        try:
            raise ValueError(PASSWORD)
        except ValueError as error:
            raise KeyError("x") from error

def test_note():
    error = ValueError("x")
    error.add_note(PASSWORD)
    with pytest.raises(ValueError):
        raise error

def test_group():
    with pytest.raises(ExceptionGroup):
        raise ExceptionGroup("x", [ValueError(PASSWORD)])

def test_output():
    print(PASSWORD)

def test_error_output():
    sys.stderr.write(PASSWORD)

def test_failure():
    assert PASSWORD == "x"

@pytest.fixture
def late():
    yield
    log.warning(PASSWORD)

def test_teardown(late):
    pass
"""


def test_a_secret_that_is_shown_fails_the_test_that_shows_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.secrets_net import spread\n\ndef pytest_configure(config):\n    spread(config)\n"
    )
    (tmp_path / "test_showing.py").write_text(SHOWING)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:randomly", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    outcomes: dict[str, set[str]] = {}
    for outcome, name in re.findall(r"^(PASSED|FAILED|ERROR) \S*::test_(\w+)", done.stdout, re.MULTILINE):
        outcomes.setdefault(outcome, set()).add(name)
    names = set(re.findall(r"def test_(\w+)", SHOWING))
    assert outcomes["PASSED"] - {"teardown"} == {"silent"}, done.stdout
    assert outcomes["FAILED"] | outcomes["ERROR"] == names - {"silent"}, done.stdout
    assert done.stdout.count("a planted secret is shown in") >= len(names) - 1


def test_a_look_that_sees_nothing_would_be_noticed() -> None:
    for shown in ({"a": PASSWORD}, ValueError(TOKEN)):
        try:
            assert_silent(shown)
        except AssertionError:
            continue
        raise AssertionError("a secret was overlooked")


@pytest.mark.parametrize(
    "adapter",
    [
        DatabaseResourceAdapter,
        lambda url: HTTPResourceAdapter(url, base_url="https://example.com"),
        lambda url: LLMResourceAdapter(url, model="small"),
        lambda url: FileSystemResourceAdapter(url, base_path="."),
        lambda url: lifetimes.PerState(DatabaseResourceAdapter, url)(),
    ],
)
def test_an_address_that_is_given_as_the_name_is_refused_and_not_shown(adapter: Callable[[str], Any]) -> None:
    with pytest.raises(InvalidSettingError, match="is the resource's name, and this is a URL") as caught:
        adapter(f"postgresql://app:{PASSWORD}@db.example/app")
    assert_silent(caught.value)
    assert "db.example" not in str(caught.value)
