"""Settings: where they come from, what is said when they are wrong, and that no value is ever printed."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from pydantic import SecretStr

from wirestate import (
    BaseResourceProvider,
    BuildError,
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    FunctionContext,
    HTTPResourceAdapter,
    LLMResourceAdapter,
    SimpleFSM,
    container_from_settings,
)
from wirestate.errors import InvalidSettingError, SettingsError
from wirestate.resources.pool import PoolConfig
from wirestate.settings import ResourceSettings, WirestateSettings, kind_of, resource_from_mapping, schema_text

ROOT = Path(__file__).parents[1]
PROFILES = ROOT / "settings"

SHOP = """
from __future__ import annotations
from typing import TYPE_CHECKING
from pydantic import SecretStr
if TYPE_CHECKING:
    from nowhere import Strange

class Cache:
    def __init__(self, name: str, host: str, port: int = 6379, *, tags: list[str] | None = None, ready: bool = False,
                 token: SecretStr | None = None, odd: str | Strange = "", options: dict | None = None):
        self.given = (host, port)

def anything(**settings): ...
"""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder that holds a module ``shop`` with providers."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "shop", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_variables(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"WIRESTATE_RESOURCES__{name}", value)


def refusal(**settings: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        WirestateSettings(**settings)
    return str(caught.value)


CACHE = {"class": "shop:Cache", "host": "here"}

# --- where settings come from ------------------------------------------------------------


def test_a_stronger_source_wins(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["argument", "variable", "dotenv", "secret", "profile", "base"]
    (shop / "secrets").mkdir()
    layers: dict[str, dict[str, Any]] = {name: {**CACHE, "host": name} for name in names}
    values: dict[str, Any] = {}
    for strongest in reversed(names):  # add one source after the other, the weakest first
        if strongest == "base":
            (shop / "base.toml").write_text('[resources.cache]\nclass = "shop:Cache"\nhost = "base"')
            (shop / "one.toml").write_text("")
        elif strongest == "profile":
            (shop / "one.toml").write_text('[resources.cache]\nhost = "profile"')
        elif strongest == "secret":
            (shop / "secrets" / "wirestate_resources__cache__host").write_text("secret\n")
        elif strongest == "dotenv":
            (shop / ".env").write_text("WIRESTATE_RESOURCES__CACHE__HOST=dotenv\nOTHER=1\n")
        elif strongest == "variable":
            set_variables(monkeypatch, CACHE__HOST="variable")
        else:
            values = {"resources": {"cache": layers["argument"]}}
        settings = WirestateSettings(_profile="one.toml", _secrets_dir="secrets", **values)
        assert settings.resources["cache"].arguments() == {"host": strongest}


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_a_variable_names_the_profile_and_the_secrets_folder(
    where: str, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "one.toml").write_text('[resources.cache]\nclass = "shop:Cache"')
    (shop / "hidden").mkdir()
    (shop / "hidden" / "WIRESTATE_RESOURCES__CACHE__HOST").write_text("secret")
    variables = {"WIRESTATE_PROFILE": "one.toml", "WIRESTATE_SECRETS_DIR": "hidden"}
    if where == ".env":
        (shop / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    else:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    assert WirestateSettings().resources["cache"].arguments() == {"host": "secret"}


def test_json_objects_and_single_variables_are_laid_over_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "WIRESTATE_RESOURCES", '{"cache": {"class": "shop:Cache", "host": "a", "pool": {"min_size": 1}}}'
    )
    set_variables(monkeypatch, CACHE__HOST="b", CACHE__POOL__MAX_SIZE="7", CACHE__OPTIONS='{"deep": 1}')
    cache = WirestateSettings().resources["cache"]
    assert cache.pool == PoolConfig(min_size=1, max_size=7)
    assert cache.arguments() == {"host": "b", "options": {"deep": 1}, "pool": cache.pool}


def test_a_part_of_a_setting_that_has_no_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, CACHE__HOST="b", CACHE__HOST__NAME="c", CACHE__POOL='{"min_size": 1}')
    set_variables(monkeypatch, CACHE__POOL__MAX_SIZE="7", CACHE__CLASS="shop:Cache")
    assert "WIRESTATE_RESOURCES__CACHE__HOST__NAME (environment) matches no setting" in refusal()
    monkeypatch.delenv("WIRESTATE_RESOURCES__CACHE__HOST__NAME")
    assert WirestateSettings().resources["cache"].pool == PoolConfig(min_size=1, max_size=7)


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, CACHE__HOST="", CACHE__CLASS="shop:Cache")
    assert "WIRESTATE_RESOURCES__CACHE__HOST is empty" in refusal()


def test_where_a_setting_came_from_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, CACHE__PORT="1")
    settings = WirestateSettings(resources={"cache": CACHE})
    assert settings.set_by("resources", "cache", "port") == "WIRESTATE_RESOURCES__CACHE__PORT (environment)"
    assert settings.set_by("resources", "cache", "host") == "resources.cache.host (arguments)"


def test_a_subclass_reads_its_own_fields_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flights(WirestateSettings):
        airports: list[str]
        database_url: SecretStr

    monkeypatch.setenv("WIRESTATE_AIRPORTS", '["JFK", "LGA"]')
    monkeypatch.setenv("WIRESTATE_DATABASE_URL", "sqlite:///x")
    assert Flights().airports == ["JFK", "LGA"]
    monkeypatch.delenv("WIRESTATE_AIRPORTS")
    monkeypatch.setenv("WIRESTATE_AIRPROTS", "[]")
    with pytest.raises(SettingsError, match=r"needs an airports.*\n.*Close name that is set: WIRESTATE_AIRPROTS"):
        Flights()


def test_settings_can_be_sent_to_another_process() -> None:
    settings = WirestateSettings(resources={"cache": CACHE | {"token": "hunter2"}})
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings
    assert copy.set_by("resources", "cache", "host") == "resources.cache.host (arguments)"


# --- what a resource is -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"backend": "postgresql", "host": "db"}, "database"),
        ({"url": "sqlite:///x"}, "database"),
        ({"connection_string": "sqlite:///x"}, "database"),
        ({"base_url": "https://example.com"}, "http"),
        ({"base_path": "/data"}, "filesystem"),
        ({"data": {"a": 1}}, "values"),
        (CACHE, "custom"),
    ],
)
def test_a_kind_is_told_by_what_is_given(given: dict[str, Any], kind: str) -> None:
    assert resource_from_mapping("it", given, where="here").kind == kind


@pytest.mark.parametrize(
    ("kind", "lifetime"),
    [
        ("database", "per_state"),
        ("async_database", "per_state"),
        ("custom", "per_state"),
        ("filesystem", "per_owner"),
        ("http", "singleton"),
        ("llm", "singleton"),
        ("values", "singleton"),
    ],
)
def test_each_kind_has_its_own_lifetime(kind: str, lifetime: str) -> None:
    info = kind_of(kind)
    assert info is not None
    assert info.default_lifetime == lifetime
    assert ResourceSettings(kind=kind).effective_lifetime == lifetime


def test_the_spellings_of_a_configuration_mean_the_same() -> None:
    plain = {"kind": "custom", "class": "shop:Cache", "host": "a", "pool": {"max_size": 3, "acquire_timeout": 2}}
    other = {
        "name": "cache",
        "type": "custom",
        "config": {"class": "shop:Cache", "host": "a", "connection_pool_size": 3, "timeout_seconds": 2},
    }
    read = [resource_from_mapping("cache", given, where="flights.yaml:5:5") for given in (plain, other)]
    assert read[0] == read[1]


def test_texts_become_what_the_provider_annotates() -> None:
    given = {"port": "1", "tags": '["a"]', "token": "t", "ready": "true", "odd": "1", "options": '{"a": 1}'}
    arguments = resource_from_mapping("cache", CACHE | given, where="here").arguments()
    assert arguments.pop("token").get_secret_value() == "t"
    assert arguments == {"host": "here", "port": 1, "tags": ["a"], "ready": True, "odd": "1", "options": {"a": 1}}


def test_a_setting_that_is_none_reaches_the_provider_as_none() -> None:
    assert resource_from_mapping("cache", CACHE | {"tags": None}, where="here").arguments()["tags"] is None


def test_a_class_of_the_users_own_says_what_it_needs() -> None:
    with pytest.raises(SettingsError) as caught:
        resource_from_mapping("api", {"kind": "http", "class": "shop:Cache"}, where="here")
    assert [fault.message for fault in caught.value.faults] == [
        "resource 'api' needs a host; resources.api.host is not set."
    ]


def test_an_asynchronous_database_gets_an_asynchronous_driver() -> None:
    database = resource_from_mapping("db", {"type": "async_database", "url": "postgresql://u:p@h/d"}, where="here")
    assert database.arguments() == {"url": "postgresql+psycopg_async://u:p@h/d"}


def test_a_password_of_digits_stays_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, STORE__CLASS="shop:anything", STORE__PASSWORD="0123", STORE__SECRET='{"x"')
    assert WirestateSettings().resources["store"].arguments() == {"password": "0123", "secret": '{"x"'}


def test_another_package_brings_a_kind(shop: Path) -> None:
    (shop / "shop-1.dist-info").mkdir()
    (shop / "shop-1.dist-info" / "METADATA").write_text("Name: shop\nVersion: 1\n")
    (shop / "shop-1.dist-info" / "entry_points.txt").write_text("[wirestate.resources]\nredis = shop:Cache\n")
    cache = resource_from_mapping("cache", {"type": "redis", "host": "localhost"}, where="resources=")
    assert (cache.provider_class().__name__, cache.effective_lifetime, cache.arguments()) == (
        "Cache",
        "per_state",
        {"host": "localhost"},
    )


# --- what is said when they are wrong -----------------------------------------------------


def test_a_missing_setting_is_told_with_its_variable_the_places_and_the_name_that_is_close(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / ".env").write_text("")
    (shop / "one.toml").write_text('[resources.api]\nkind = "http"')
    set_variables(monkeypatch, API__BASE_ULR="https://example.com")
    assert refusal(_profile="one.toml") == (
        "settings: 1 fault, nothing was run\n"
        "MissingSetting [S001]: resource 'api' needs a base_url; WIRESTATE_RESOURCES__API__BASE_URL is not set.\n"
        "  Looked in: environment, .env (found), one.toml (found)."
        "  Close name that is set: WIRESTATE_RESOURCES__API__BASE_ULR"
    )


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("WIRESTATE_RESOURCES__CACHE__HSOT", "Did you mean 'host'?"),
        ("WIRESTATE_RESOURCES__CACHE__POOL__MAX_SIZ", "Did you mean 'max_size'?"),
        ("WIRESTATE_RESSOURCES__CACHE__HOST", "Did you mean 'resources'?"),
        ("WIRESTATE_RESOURCES_CACHE_HOST", "two underscores"),
    ],
)
def test_a_variable_that_matches_nothing_is_refused(variable: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "hunter2")
    text = refusal(resources={"cache": CACHE})
    assert f"UnmatchedSetting [S002]: {variable} (environment) matches no setting" in text
    assert hint in text


def test_a_misspelt_setting_tells_the_kind_too(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, DATABASE__ULR="sqlite:///hunter2")
    assert refusal(_env_file=None).splitlines() == [
        "settings: 1 fault, nothing was run",
        "MissingSetting [S001]: resource 'database' needs a url; WIRESTATE_RESOURCES__DATABASE__URL is not set.",
        "  Looked in: environment.  Close name that is set: WIRESTATE_RESOURCES__DATABASE__ULR",
        "  Instead of it you may set: WIRESTATE_RESOURCES__DATABASE__CONNECTION_STRING, "
        "WIRESTATE_RESOURCES__DATABASE__BACKEND",
    ]


@pytest.mark.parametrize(
    ("written", "line"),
    [
        (b"A=1\n\nB=\xff\n", "line 3 is not UTF-8 text"),
        (b"A=1\n\n# why\nhunter2\n", "line 4 has not the form NAME=value"),
        (b"A='one\ntwo'\nhunter2 x\n", "line 3 has not the form NAME=value"),
    ],
)
def test_a_wrong_line_of_an_env_file_is_told_with_its_number(shop: Path, written: bytes, line: str) -> None:
    (shop / ".env").write_bytes(written)
    text = refusal()
    assert f"UnreadableSource [S006]: .env cannot be read: {line}" in text
    assert "hunter2" not in text


def test_an_env_file_may_begin_with_a_mark_and_hold_empty_lines(shop: Path) -> None:
    text = (
        "export WIRESTATE_RESOURCES__CACHE__CLASS='shop:Cache'\n# why\n\nWIRESTATE_RESOURCES__CACHE__HOST=h\nEMPTY=\n"
    )
    (shop / ".env").write_text(text, "utf-8-sig")
    assert WirestateSettings().resources["cache"].arguments() == {"host": "h"}


def test_all_faults_come_in_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, A__KIND="htp", B__BASE_PATH="", B__KIND="filesystem", C__CLASS="shop:Nothing")
    set_variables(monkeypatch, D__LIFETIME="for_ever", D__DATA="{}", E__CLASS="shop:Cache", E__HOST="e", E__PORT="x")
    with pytest.raises(SettingsError) as caught:
        WirestateSettings(_profile="nowhere.toml", surprise=1)
    assert sorted(fault.code for fault in caught.value.faults) == [
        "S001",
        "S002",
        "S003",
        "S003",
        "S005",
        "S006",
        "S008",
    ]


def test_the_limits_of_a_pool_are_told_with_their_numbers() -> None:
    text = refusal(resources={"cache": CACHE | {"pool": {"min_size": 5, "max_size": 2}}})
    assert "min_size is 5 and max_size is 2" in text


def test_each_wrong_setting_of_a_pool_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, CACHE__POOL__MAX_SIZE="0", CACHE__POOL__MIN_SIZE="-1", CACHE__CONNECTION_POOL_SIZE="")
    lines = refusal(resources={"cache": CACHE}).splitlines()
    where = "InvalidSetting [S003]: WIRESTATE_RESOURCES__CACHE__POOL__"
    assert f"{where}MAX_SIZE (environment): max_size is 0; it must be more than 0" in lines
    assert f"{where}MIN_SIZE (environment): min_size is -1; it must be 0 or more" in lines


@pytest.mark.parametrize(
    "given", [{"type": "custom", "kind": "custom"}, {"pool": {"max_size": 1}, "connection_pool_size": 2}]
)
def test_one_value_has_one_spelling(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="is given twice"):
        resource_from_mapping("cache", CACHE | given, where="flights.yaml:5:5")


def test_what_this_release_does_not_do_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"NotAvailable \[S007\]: resources.cache.commit .*this release"):
        resource_from_mapping("cache", CACHE | {"commit": "run"}, where="flights.yaml:5:5")
    resource_from_mapping("cache", {"class": "shop:anything", "commit": "run"}, where="flights.yaml:5:5")


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(
        SettingsError, match=r"UnknownKind \[S008\]: resources.cache.type \(resources=\).*\n.*'database', "
    ):
        resource_from_mapping("cache", {"type": "redis", "host": "localhost"}, where="resources=")


def test_a_database_for_all_must_be_an_engine() -> None:
    given = {"url": "sqlite:///x", "lifetime": "singleton"}
    with pytest.raises(SettingsError, match="hands out its engine"):
        resource_from_mapping("db", given, where="here")
    assert resource_from_mapping("db", given | {"resource": "engine"}, where="here").lifetime == "singleton"


@pytest.mark.parametrize("name", ["Upper", "two__parts", "_first", "last_", "1st", "a-b"])
def test_a_resource_has_a_name_that_a_variable_can_say(name: str) -> None:
    assert "single underscores" in refusal(resources={name: CACHE})


def test_a_profile_that_cannot_be_read_says_why(shop: Path) -> None:
    (shop / "broken.toml").write_text('[resources\npassword = "hunter2"')
    assert "broken.toml cannot be read: " in refusal(_profile="broken.toml")
    assert "beside it: broken.toml" in refusal(_profile="brken.toml")


# --- secrets -------------------------------------------------------------------------------

SECRET = "hunter2-do-not-print"


@pytest.mark.parametrize(
    "place",
    [
        "KIND",
        "LIFETIME",
        "POOL",
        "POOL__MAX_SIZE",
        "POOL__NO",
        "PORT",
        "TAGS",
        "HEADERS",
        "DATA",
        "CLASS",
        "NO",
        "READY",
    ],
)
def test_a_value_in_the_wrong_place_is_not_printed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (SECRET, "{" + SECRET, "[" + SECRET, f"postgresql://user:{SECRET}@host/db"):
        set_variables(monkeypatch, **{f"CACHE__{place}": value})
        with pytest.raises(SettingsError) as caught:
            WirestateSettings(
                resources={"cache": {"host": "here"} if place == "CLASS" else CACHE | {place.lower(): value}}
            )
        shown: BaseException | None = caught.value
        while shown is not None:
            assert SECRET not in f"{shown}{shown!r}"
            shown = shown.__cause__ or shown.__context__


def test_secrets_show_in_no_picture_of_the_settings_and_reach_the_provider() -> None:
    given = {
        "class": "shop:anything",
        "url": f"postgresql://u:{SECRET}@h/d",
        "headers": {"Authorization": SECRET},
        "storage_options": {"secret": SECRET, "endpoint_url": SECRET},
        "redis_password": SECRET,
        "data": {"api_key": SECRET},
    }
    settings = WirestateSettings(resources={"store": given})
    store = settings.resources["store"]
    for picture in (repr(settings), str(settings), repr(store), store.model_dump_json(), str(store.model_dump())):
        assert SECRET not in picture
    assert store.arguments() == {key: value for key, value in given.items() if key != "class"}


# --- the files of the project --------------------------------------------------------------


def test_the_schema_is_not_stale() -> None:
    assert (PROFILES / "schema.json").read_text("utf-8") == schema_text(), "run: make schema"


@pytest.mark.parametrize("profile", ["base", "development", "test", "production"])
def test_a_profile_follows_the_schema_and_holds_no_secret(profile: str) -> None:
    values = tomllib.loads((PROFILES / f"{profile}.toml").read_text("utf-8"))
    jsonschema.validate(values, json.loads((PROFILES / "schema.json").read_text("utf-8")))
    assert not {"password", "token", "api_key"} & set(values["resources"]["database"])


@pytest.mark.parametrize("profile", ["development", "test", "production"])
def test_a_profile_can_be_used(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if profile == "production":
        assert "WIRESTATE_RESOURCES__DATABASE__URL is not set" in refusal(_profile=PROFILES / "production.toml")
        set_variables(monkeypatch, DATABASE__URL="sqlite:///x")
    settings = WirestateSettings(_profile=PROFILES / f"{profile}.toml")
    assert set(settings.resources) == {"database", "workdir"}
    for resource in settings.resources.values():
        assert callable(resource.provider_class())
        resource.arguments()


def test_a_resource_that_cannot_be_had_is_asked_for_as_often_as_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[int] = []

    class Shy(BaseResourceProvider):
        def acquire(self, **kwargs: object) -> str:
            tries.append(len(tries))
            if len(tries) < 3:
                raise OSError("not yet")
            return "here"

    def work(record: dict[str, object], context: FunctionContext) -> dict[str, object]:
        return {"got": context.resources["shy"]}

    module = ModuleType("shy_module")
    module.Shy = Shy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shy_module", module)
    machine = {
        "resources": [
            {
                "name": "shy",
                "class": "shy_module:Shy",
                "config": {"name": "shy"},
                "retry_attempts": 3,
                "retry_delay_seconds": 0,
            }
        ],
        "states": {"s": {"transform": "work", "resources": ["shy"]}},
    }
    with SimpleFSM(machine, functions={"work": work}) as fsm:
        assert fsm.process({}).data == {"got": "here"}
    assert len(tries) == 3


def test_a_resource_that_is_not_declared_is_missed_with_the_way_to_declare_it() -> None:
    settings = WirestateSettings(_env_file=None, resources={"files": {"base_path": "memory://"}})
    assert "database" not in settings.resources
    assert settings.resources.get("database") is None
    with pytest.raises(SettingsError, match=r"\[S001\]: the settings declare no resource 'database'"):
        settings.resources["database"]
    assert pickle.loads(pickle.dumps(settings.resources)) == copy.deepcopy(settings.resources) == settings.resources


def test_a_missing_driver_is_told_with_its_setting_when_a_machine_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    monkeypatch.setenv("WIRESTATE_RESOURCES__MAIN__URL", "postgresql://h/x")
    machine = {"states": {"work": {"resources": ["main"]}}}
    with container_from_settings(WirestateSettings(_env_file=None)) as container:
        with pytest.raises(BuildError) as refused:
            SimpleFSM(machine, container=container)
        assert "MissingDriver [D001]: resource 'main': 'postgresql+psycopg://' needs psycopg" in str(refused.value)
        assert "Setting: WIRESTATE_RESOURCES__MAIN__URL (environment)" in str(refused.value)
        with SimpleFSM(machine, container=container, resources={"main": BaseResourceProvider("fake")}):
            pass  # nobody needs the driver


@pytest.mark.parametrize(
    ("resource", "blamed", "words"),
    [
        ({"KIND": "http", "BASE_URL": "http://x", "POOL__MIN_SIZE": "3"}, "POOL__MIN_SIZE", "'min_size'"),
        ({"KIND": "database", "URL": "http//nonsense:pw"}, "URL", "cannot be read"),
        ({"KIND": "database", "URL": "oracle+oracledb://scott:tiger@h/x"}, "URL", "'oracledb'"),
        ({"KIND": "database", "CONNECTION_STRING": "nodb://h/x"}, "CONNECTION_STRING", "no database is called"),
        ({"KIND": "http", "BASE_URL": "ftp://x"}, "BASE_URL", "http://"),
        ({"KIND": "filesystem", "BASE_PATH": "nope://x"}, "BASE_PATH", "fsspec knows no"),
        ({"URL": "memory", "STATEMENT_TIMEOUT": "-1"}, "STATEMENT_TIMEOUT", "statement_timeout is -1"),
        ({"URL": "memory", "LOCK_TIMEOUT": "0"}, "LOCK_TIMEOUT", "lock_timeout is 0"),
        ({"URL": "memory", "CONNECT_TIMEOUT": "0"}, "CONNECT_TIMEOUT", "connect_timeout is 0"),
        ({"URL": "memory", "ISOLATION_LEVEL": "SERIALIZABLE"}, "ISOLATION_LEVEL", "nothing that SQLite knows"),
        ({"BASE_URL": "http://x", "TIMEOUT": "0"}, "TIMEOUT", "timeout is 0"),
        ({"BASE_URL": "http://x", "TOKEN": "a b\n"}, "TOKEN", "token must be plain text"),
        ({"KIND": "llm", "MODEL": "m", "BASE_URL": "ftp://x"}, "BASE_URL", "http://"),
        ({"KIND": "llm", "MODEL": "m", "BASE_URL": "http://x", "TIMEOUT": "0"}, "TIMEOUT", "timeout must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_adapter_refuses_is_told_when_the_container_is_made(
    monkeypatch: pytest.MonkeyPatch, resource: dict[str, str], blamed: str, words: str
) -> None:
    for key, value in resource.items():
        monkeypatch.setenv(f"WIRESTATE_RESOURCES__MAIN__{key}", value)
    with pytest.raises(SettingsError) as refused:
        container_from_settings(WirestateSettings(_env_file=None))
    assert f"WIRESTATE_RESOURCES__MAIN__{blamed} (environment): " in str(refused.value)
    assert words in str(refused.value)
    assert "tiger" not in str(refused.value)


def test_all_that_an_adapter_refuses_comes_in_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "BASE_URL": "ftp://x",
        "TIMEOUT": "0",
        "RETRY_COUNT": "-1",
        "POOL__MIN_SIZE": "3",
        "POOL__MAX_CREATING": "2",
    }
    set_variables(monkeypatch, **{f"MAIN__{key}": value for key, value in wrong.items()}, FILES__BASE_PATH="nope://x")
    with pytest.raises(SettingsError) as refused:
        container_from_settings(WirestateSettings(_env_file=None))
    blamed = re.findall(r"WIRESTATE_RESOURCES__(\w+) \(environment\): ", str(refused.value))
    assert sorted(blamed) == ["FILES__BASE_PATH", "MAIN__BASE_URL", "MAIN__RETRY_COUNT", "MAIN__TIMEOUT"]

    monkeypatch.setenv("WIRESTATE_RESOURCES__MAIN__BASE_URL", "http://x")
    with pytest.raises(SettingsError) as refused:
        container_from_settings(WirestateSettings(_env_file=None))
    assert "MAIN__POOL__MIN_SIZE (environment): resource 'main': pool setting 'min_size'" in str(refused.value)
    assert "MAIN__POOL__MAX_CREATING (environment): resource 'main': pool setting 'max_creating'" in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"POOL_SIZE": "1"}, "Did you mean 'WIRESTATE_RESOURCES__MAIN__POOL__MAX_SIZE'"),
        ({"MAX_SIZE": "1"}, "Did you mean 'WIRESTATE_RESOURCES__MAIN__POOL__MAX_SIZE'"),
        ({"POOL__TIMEOUT": "1"}, "matches no setting of a pool\n  Did you mean 'acquire_timeout'"),
        ({"BASE_URL": "http://x"}, "matches no setting of a resource of kind 'database'"),
        ({"XYZ": "1"}, "'kind', 'lifetime', 'pool', 'class', 'creation_attempts', 'creation_delay', 'health_check_int"),
        ({"URL": "sqlite://shop.db"}, "write sqlite:///path/to/file.db"),
        ({"URL": "redis://h"}, "for another kind of resource set kind or class"),
        ({"URL": "postgresql+psycopg2://h/x"}, "or write postgresql+psycopg:// or postgresql+asyncpg://"),
        ({"URL": "postgresql://h/x", "JOURNAL_MODE": "OFF"}, "journal_mode is for SQLite only"),
        ({"URL": "postgresql://h/x", "ISOLATION_LEVEL": "FOO"}, "must be one of 'AUTOCOMMIT', 'READ COMMITTED'"),
        ({"URL": "memory", "BUSY_TIMEOUT": "-1"}, "MAIN__BUSY_TIMEOUT (environment): database 'main': busy_timeout is"),
    ],
)
def test_a_mistake_is_told_with_its_way_out(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], words: str) -> None:
    if "psycopg2" in wrong.get("URL", "") and find_spec("psycopg2"):
        pytest.skip("psycopg2 is installed: its URL is right")
    set_variables(monkeypatch, **{f"MAIN__{key}": value for key, value in {"URL": "memory", **wrong}.items()})
    with pytest.raises(SettingsError) as refused:
        container_from_settings(WirestateSettings(_env_file=None))
    assert words in str(refused.value)


def test_what_settings_and_what_adapters_refuse_comes_in_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, MAIN__URL="memory", MAIN__LOCK_TIMEOUT="0", API__BASE_URL="http://x", API__NO="1")
    told = refusal()
    assert "settings: 2 faults" in told
    assert "WIRESTATE_RESOURCES__API__NO (environment) matches no setting of a resource of kind 'http'" in told
    assert "WIRESTATE_RESOURCES__MAIN__LOCK_TIMEOUT (environment): database 'main': lock_timeout is 0" in told


def test_a_resource_that_says_no_kind_is_told_the_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, NEW__POOL__MAX_SIZE="3")
    assert "A kind is one of 'database', 'async_database', 'filesystem', 'http', 'llm'" in refusal()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DatabaseResourceAdapter(url=5), "its url is a int"),
        (lambda: DatabaseResourceAdapter(backend=5), "backend is a int"),
        (lambda: DatabaseResourceAdapter(backend="postgresql", port="abc"), "port is a str"),
        (lambda: DatabaseResourceAdapter(url="memory", connect_timeout="a"), "connect_timeout is 'a'"),
        (lambda: DatabaseResourceAdapter(url="memory", pool=5), "pool is a int; give a PoolConfig, or its fields"),
        (lambda: DatabaseResourceAdapter(url="memory", pool={"size": 5}), "no setting is called 'size'"),
        (lambda: HTTPResourceAdapter(base_url="http://x", pool={"max_size": 0}), "max_size is 0"),
        (lambda: LLMResourceAdapter(model="m", base_url=5), "its base_url cannot be read"),
        (lambda: LLMResourceAdapter(model="m", api_key=5), "its api_key is empty, or holds"),
        (lambda: FileSystemResourceAdapter(base_path=5), "base_path is a int"),
        (lambda: FileSystemResourceAdapter(base_path=""), "base_path is empty"),
        (lambda: DatabaseResourceAdapter(5, url="memory"), "the first argument of DatabaseResourceAdapter is a int"),
        (lambda: DatabaseResourceAdapter(url="memory", connect_args=5), "connect_args is a int"),
        (lambda: FileSystemResourceAdapter(base_path=".", storage_options=4), "storage_options is a int"),
        (lambda: HTTPResourceAdapter(base_url="http://x", headers=[("a", "b")]), "headers is a list"),
        (lambda: LLMResourceAdapter(model="m", base_url="http://x", headers=4), "headers is a int"),
        (lambda: LLMResourceAdapter(model="m", base_url="http://x", options=4), "options is a int"),
    ],
)
def test_an_adapter_in_code_refuses_a_value_of_another_kind(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidSettingError, match=words):
        make()


def test_a_pool_may_be_given_as_its_fields() -> None:
    assert DatabaseResourceAdapter(url="memory", pool={"max_size": 3}).pool_config == PoolConfig(max_size=3)
    assert HTTPResourceAdapter(base_url="http://x", pool={"max_size": 2}).pool_config == PoolConfig(max_size=2)
    assert LLMResourceAdapter(model="m", base_url="http://x", pool={"max_size": 2}).pool_config.max_size == 2
