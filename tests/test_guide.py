"""The resource management guide: every call of each of its sections, in its order, with a fresh manager for each."""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.server import ThreadingHTTPServer
from pathlib import Path
from time import monotonic, sleep
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text

from tests.servers.http_server import Handler, Server
from wirestate import FunctionContext
from wirestate.api.simple import SimpleFSM
from wirestate.functions.base import ResourceConfig, ResourceError
from wirestate.resources.base import (
    BaseResourceProvider,
    IResourceProvider,
    ResourceHealth,
    ResourceMetrics,
    ResourceStatus,
)
from wirestate.resources.database import DatabaseResourceAdapter
from wirestate.resources.filesystem import FileSystemResourceAdapter
from wirestate.resources.http import HTTPResourceAdapter
from wirestate.resources.manager import ResourceManager
from wirestate.resources.pool import PoolConfig, ResourcePool

POSTGRESQL = {"host": "127.0.0.1", "port": 5432, "database": "test", "user": "postgres", "password": "ignored"}
MARIADB = {"host": "127.0.0.1", "port": 3306, "database": "test", "user": "root"}


def needs(server: Mapping[str, Any]) -> pytest.MarkDecorator:
    """Return the mark that skips a test where nobody listens at the place of *server*."""
    reason = ""
    try:
        socket.create_connection((server["host"], server["port"]), timeout=1).close()
    except OSError as error:
        reason = f"no server answers on port {server['port']}: {error}"
    return pytest.mark.skipif(bool(reason), reason=reason)


class Users:
    """A database with an empty table of users, which the guide's calls work on."""

    def __init__(self, backend: str, **parts: Any) -> None:
        self.parts = {"backend": backend, **parts}
        self.table = f"users_{uuid4().hex}"  # the server is shared
        self._run(f"CREATE TABLE {self.table} (name varchar(20))")

    def adapter(self, name: str = "main_db") -> DatabaseResourceAdapter:
        return DatabaseResourceAdapter(name=name, **self.parts)

    @property
    def url(self) -> str:
        """The address in one text, as the guide's connection strings are."""
        part = self.parts
        if part["backend"] == "sqlite":
            return f"sqlite:///{part['database']}"
        return f"postgresql://{part['user']}:{part['password']}@{part['host']}:{part['port']}/{part['database']}"

    def add(self, db: Any, name: str) -> None:
        db.query(f"INSERT INTO {self.table} VALUES (:name)", name=name)

    def names(self, db: Any) -> list[str]:
        return [row["name"] for row in db.query(f"SELECT name FROM {self.table} ORDER BY name")]

    @property
    def committed(self) -> list[str]:
        """What everybody sees."""
        return [row[0] for row in self._run(f"SELECT name FROM {self.table} ORDER BY name")]

    def drop(self) -> None:
        self._run(f"DROP TABLE {self.table}")

    def _run(self, statement: str) -> list[Any]:
        engine = create_engine(self.url.replace("postgresql://", "postgresql+psycopg://"))
        try:
            with engine.begin() as connection:
                done = connection.execute(text(statement))
                return list(done) if done.returns_rows else []
        finally:
            engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs(POSTGRESQL))])
def users(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Users]:
    """Give a database of either kind."""
    parts = POSTGRESQL if request.param == "postgresql" else {"database": str(tmp_path / "users.db")}
    made = Users(request.param, **parts)
    yield made
    made.drop()


@pytest.fixture
def manager() -> Iterator[ResourceManager]:
    with ResourceManager() as made:
        yield made


@pytest.fixture
def service() -> Iterator[str]:
    """Serve the scripted paths of the test server; give its address."""
    server: ThreadingHTTPServer = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def nowhere() -> int:
    """Give a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Counted(BaseResourceProvider):
    """Hands out one object for each lease, and counts them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.acquired = self.released = 0

    def acquire(self, **kwargs: Any) -> SimpleNamespace:
        self.acquired += 1
        return SimpleNamespace(**kwargs)

    def release(self, resource: Any) -> None:
        self.released += 1

    def health_check(self) -> ResourceHealth:
        return ResourceHealth.HEALTHY


class Broken(Counted):
    """Cannot hand out anything."""

    def acquire(self, **kwargs: Any) -> SimpleNamespace:
        raise ConnectionError("nobody there")

    def health_check(self) -> ResourceHealth:
        return ResourceHealth.UNHEALTHY


# --- Resource Interface ------------------------------------------------------------------


class FromNothing:
    """Follows the protocol without deriving from anything."""

    def acquire(self, **kwargs: Any) -> Any:
        return kwargs

    def release(self, resource: Any) -> None:
        resource.clear()

    def validate(self, resource: Any) -> bool:
        return bool(resource)

    def health_check(self) -> ResourceHealth:
        return ResourceHealth.DEGRADED

    def get_metrics(self) -> ResourceMetrics:
        return ResourceMetrics()


def test_resource_interface(manager: ResourceManager, tmp_path: Path) -> None:
    ours = (
        DatabaseResourceAdapter("db", backend="memory"),
        FileSystemResourceAdapter("files", base_path=tmp_path),
        HTTPResourceAdapter("api", base_url="https://api.example.com"),
        manager.create_simple_provider("values", {}),
        FromNothing(),
    )
    assert all(isinstance(provider, IResourceProvider) for provider in ours)
    assert not isinstance(object(), IResourceProvider)
    for provider in ours:
        assert isinstance(provider.get_metrics(), ResourceMetrics)

    manager.register_provider("plain", FromNothing())
    resource = manager.acquire("plain", "owner", colour="red")
    assert resource == {"colour": "red"}
    assert manager.health_check("plain") == {"plain": ResourceHealth.DEGRADED}
    manager.release("plain", "owner")
    assert resource == {}


# --- Resource Manager --------------------------------------------------------------------


def test_resource_manager(manager: ResourceManager, users: Users) -> None:
    adapter = DatabaseResourceAdapter(name="main_db", backend=users.parts["backend"], connection_string=users.url)
    manager.register_provider("database", adapter)

    resource = manager.acquire("database", owner_id="state_123")
    users.add(resource, "Ada")
    assert users.committed == []
    manager.release("database", owner_id="state_123")
    assert users.committed == ["Ada"]

    with manager.resource_context("database", owner_id="state_456") as db:
        assert manager.get_resource_owners("database") == ["state_456"]
        assert users.names(db) == ["Ada"]
    assert manager.get_resource_owners("database") == []


def test_resource_status_and_metrics(manager: ResourceManager, users: Users) -> None:
    manager.register_provider("database", users.adapter())
    manager.acquire("database", owner_id="state_1")
    manager.acquire("database", owner_id="state_2")
    status = manager.get_resource_status("database")
    assert status["active_count"] == 2
    assert status["owners"] == ["state_1", "state_2"]

    manager.release("database", owner_id="state_1")
    metrics = manager.get_metrics("database")
    assert metrics["database"].total_acquisitions == 2
    assert metrics["database"].active_connections == 1
    assert metrics["database"].average_hold_time > 0

    assert manager.health_check("database")["database"] is ResourceHealth.HEALTHY
    manager.release_all("state_2")


# --- Built-in Resource Adapters ----------------------------------------------------------

ONE_STATE = {"states": {"load": {"resources": ["database"], "transform": "load"}}}


def test_database_resource(manager: ResourceManager, users: Users) -> None:
    manager.register_provider("database", users.adapter("users_db"))
    with manager.resource_context("database", "job") as db:
        users.add(db, "Ada")

    def load(record: dict[str, Any], context: FunctionContext) -> None:
        users.add(context.resources["database"], record["name"])

    with SimpleFSM({"states": ["only"]}) as fsm:
        assert fsm.process({"name": "nobody"}).success
    with SimpleFSM(ONE_STATE, resources={"database": users.parts}, functions={"load": load}) as fsm:
        assert fsm.process({"name": "Grace"}).success
    with SimpleFSM(ONE_STATE, resources={"database": users.adapter()}, functions={"load": load}) as fsm:
        assert fsm.process({"name": "Mary"}).success
    assert users.committed == ["Ada", "Grace", "Mary"]


@pytest.mark.parametrize(
    ("backend", "parts"),
    [
        pytest.param("postgresql", POSTGRESQL, marks=needs(POSTGRESQL)),
        pytest.param("mysql", MARIADB, marks=needs(MARIADB)),
        ("sqlite", {"database": "some.db"}),
        ("file", {"database": "other.db"}),
        ("memory", {}),
    ],
)
def test_supported_backends(
    manager: ResourceManager,
    backend: str,
    parts: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    manager.register_provider("database", DatabaseResourceAdapter(name="any", backend=backend, **parts))
    with manager.resource_context("database", "owner") as db:
        assert db.query("SELECT 1 + :more AS total", more=1) == [{"total": 2}]
    assert [path.name for path in tmp_path.glob("*.db")] == [name for name in parts.values() if ".db" in str(name)]


def test_a_backend_alone_is_an_address() -> None:
    for adapter in (
        DatabaseResourceAdapter(name="db", backend="postgresql"),
        DatabaseResourceAdapter("db", backend="postgresql"),
    ):
        assert (adapter.name, adapter.driver) == ("db", "psycopg")


def test_file_system_resource(manager: ResourceManager, tmp_path: Path) -> None:
    base, temporary = tmp_path / "data", tmp_path / "temporary"
    base.mkdir()
    (base / "input.csv").write_text("name\nAda\n")
    adapter = FileSystemResourceAdapter(name="data_fs", base_path=str(base), temp_dir=str(temporary), auto_cleanup=True)
    manager.register_provider("filesystem", adapter)

    with manager.resource_context("filesystem", "state_123") as fs:
        assert fs.read("input.csv") == "name\nAda\n"
        fs.write("output.json", {"names": ["Ada"]})
        temp_path = fs.create_temp()
        fs.write(temp_path, "draft")
        assert temp_path.read_text() == "draft"
        assert temp_path.is_relative_to(temporary)
    assert (base / "output.json").read_text() == '{"names": ["Ada"]}'
    assert not temp_path.exists()


def test_http_service_resource(manager: ResourceManager, service: str) -> None:
    adapter = HTTPResourceAdapter(
        name="api_service",
        base_url=f"{service}/v1",
        timeout=30,
        headers={"Authorization": "Bearer token"},
        retry_count=3,
    )
    manager.register_provider("api", adapter)
    with manager.resource_context("api", "state_123") as api:
        data = api.get("/users/123").json()
        assert data["path"] == "/v1/users/123"
        assert data["headers"]["authorization"] == "Bearer token"

    again = HTTPResourceAdapter(name="flaky", base_url=service, retry_count=3, retry_pause=0.001)
    manager.register_provider("flaky", again)
    key = uuid4().hex
    with manager.resource_context("flaky", "state_124") as api:
        assert api.get(f"/flaky/{key}/3").status_code == 200
        assert api.get(f"/count/{key}").json() == 4


# --- Resource Pooling --------------------------------------------------------------------


def test_resource_pooling(manager: ResourceManager, users: Users) -> None:
    pool_config = PoolConfig(min_size=2, max_size=10, max_idle_time=300, acquire_timeout=30)
    manager.register_provider("database", users.adapter("db"), pool_config=pool_config)
    with manager.resource_context("database", "owner"):
        end = monotonic() + 10
        while manager.get_metrics("database_pool")["database_pool"].size < 2 and monotonic() < end:
            sleep(0.002)  # the second connection is opened in the background
        pool_metrics = manager.get_metrics("database_pool")
        assert pool_metrics["database_pool"].size == 2
        assert pool_metrics["database_pool"].available == 1
    assert manager.get_metrics("database_pool")["database_pool"].available == 2


def test_a_provider_without_a_pool_of_its_own_gets_ours(manager: ResourceManager) -> None:
    counted = Counted("plain")
    manager.register_provider("plain", counted, pool_config=PoolConfig(max_size=1, acquire_timeout=0.01))
    for number in range(3):
        with manager.resource_context("plain", f"job-{number}"):
            pass
    assert (counted.acquired, counted.released) == (1, 0)
    assert manager.get_metrics("plain_pool")["plain_pool"].available == 1
    with closing(ResourcePool(Counted("alone"), PoolConfig(max_size=1))) as pool, pool.acquire() as resource:
        assert resource == SimpleNamespace()


# --- Resource Requirements in FSM --------------------------------------------------------

REQUIREMENTS = """
networks:
  - name: main
    resources:
      - database
      - filesystem
    states:
      - name: process_data
        resources:
          - database
        functions:
          transform:
            type: custom
            name: process_with_db
"""


def test_configuration_based_requirements(tmp_path: Path) -> None:
    file = tmp_path / "machine.yaml"
    file.write_text(REQUIREMENTS)
    database, filesystem = Counted("database"), Counted("filesystem")

    def process_with_db(record: dict[str, Any], context: FunctionContext) -> dict[str, Any]:
        assert list(context.resources) == ["database"]
        return {**record, "had": type(context.resources["database"]).__name__}

    given = {"database": database, "filesystem": filesystem}
    with SimpleFSM(file, resources=given, functions={"process_with_db": process_with_db}) as fsm:
        result = fsm.process({"id": 1})
    assert result.success
    assert result.path == ["process_data"]
    assert result.data == {"id": 1, "had": "SimpleNamespace"}
    assert (database.acquired, database.released) == (1, 1)
    assert filesystem.acquired == 0


def test_code_based_requirements(manager: ResourceManager) -> None:
    database = Counted("database")
    manager.register_provider("database", database)
    requirements = [
        ResourceConfig(name="database", required=True, timeout=30),
        ResourceConfig(name="cache", required=False),
    ]
    resources = manager.configure_from_requirements(requirements, owner_id="state_123")
    assert resources == {"database": SimpleNamespace(), "cache": None}
    assert manager.has_resource("database", "state_123")
    manager.release_all("state_123")

    with pytest.raises(ResourceError, match="no resource is called 'cache'"):
        manager.configure_from_requirements([*requirements, ResourceConfig(name="cache")], owner_id="state_124")
    assert (database.acquired, database.released) == (2, 2)


# --- Resource Lifecycle ------------------------------------------------------------------


class StateExecution:
    """Runs one state by hand, as the guide shows what an engine does."""

    def __init__(self, manager: ResourceManager) -> None:
        self.manager = manager

    def execute(self, state: Any, context: Any) -> Any:
        owner_id = f"state_{state.name}_{context.id}"
        for name in state.resources:
            context.resources[name] = self.manager.acquire(name, owner_id)
        try:
            result = state.transform(context.data, context.resources)
            for name in state.resources:
                self.manager.release(name, owner_id)
        except Exception:
            self.manager.release_all(owner_id)
            raise
        return result


def test_acquisition_and_release_flow(manager: ResourceManager, users: Users) -> None:
    manager.register_provider("database", users.adapter())
    manager.register_provider("counted", Counted("counted"))

    def transform(data: str, resources: dict[str, Any]) -> str:
        users.add(resources["database"], data)
        if not data[0].isupper():
            raise ValueError(data)
        return data

    state = SimpleNamespace(name="load", resources=["database", "counted"], transform=transform)
    execution = StateExecution(manager)
    assert execution.execute(state, SimpleNamespace(id=1, data="Ada", resources={})) == "Ada"
    with pytest.raises(ValueError, match="grace"):
        execution.execute(state, SimpleNamespace(id=2, data="grace", resources={}))
    assert users.committed == ["Ada"]
    assert manager.holders() == []


def test_owner_tracking(manager: ResourceManager) -> None:
    for name in ("database", "cache"):
        manager.register_provider(name, Counted(name))
    db = manager.acquire("database", "state_123")
    manager.acquire("cache", "state_123")
    manager.acquire("database", "state_456")

    assert manager.has_resource("database", "state_123")
    assert manager.get_resource("database", "state_123") is db
    assert not manager.has_resource("cache", "state_456")
    assert manager.get_resource("cache", "state_456") is None
    assert manager.get_resource_owners("database") == ["state_123", "state_456"]

    manager.release_all("state_123")
    assert manager.get_resource_owners("database") == ["state_456"]
    assert manager.get_resource_owners("cache") == []
    manager.release_all("state_123")  # nothing held is no error


# --- Custom Resources --------------------------------------------------------------------


class RedisClient:
    """Stands in for the client of the package ``redis``."""

    made: ClassVar[list[RedisClient]] = []

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.is_open = True
        RedisClient.made.append(self)

    def ping(self) -> bool:
        return self.is_open

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def redis_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("redis")
    module.Redis = RedisClient  # type: ignore[attr-defined]  # what the stub is for
    monkeypatch.setitem(sys.modules, "redis", module)
    monkeypatch.setattr(RedisClient, "made", [])


class RedisResourceProvider(BaseResourceProvider):
    """A provider of the user's own: one client, kept between leases."""

    def __init__(self, name: str, host: str, port: int = 6379) -> None:
        super().__init__(name, {"host": host, "port": port})
        self.host = host
        self.port = port
        self.client: Any = None

    def acquire(self, **kwargs: Any) -> Any:
        redis = importlib.import_module("redis")
        if not self.client:
            self.client = redis.Redis(host=self.host, port=self.port)
        self.status = ResourceStatus.ACTIVE
        return self.client

    def release(self, resource: Any) -> None:
        self.status = ResourceStatus.IDLE

    def validate(self, resource: Any) -> bool:
        try:
            return bool(resource.ping())
        except Exception:
            return False

    def health_check(self) -> ResourceHealth:
        return ResourceHealth.HEALTHY if self.validate(self.client) else ResourceHealth.UNHEALTHY

    def close(self) -> None:
        if self.client:
            self.client.close()
            self.client = None


@pytest.mark.usefixtures("redis_installed")
def test_custom_resources() -> None:
    with ResourceManager() as manager:
        provider = RedisResourceProvider("cache", "localhost")
        assert provider.config == {"host": "localhost", "port": 6379}
        manager.register_provider("redis", provider)
        assert manager.health_check("redis")["redis"] is ResourceHealth.UNHEALTHY
        with manager.resource_context("redis", "state_123") as first:
            assert first.address == ("localhost", 6379)
            assert provider.status is ResourceStatus.ACTIVE
        assert provider.status is ResourceStatus.IDLE
        with manager.resource_context("redis", "state_124") as second:
            assert second is first
        assert manager.health_check("redis")["redis"] is ResourceHealth.HEALTHY
    assert len(RedisClient.made) == 1
    assert not first.is_open


def test_simple_resource_provider(manager: ResourceManager) -> None:
    manager.register_from_dict("config", {"data": {"api_key": "k", "endpoint": "https://api.example.com"}})
    with manager.resource_context("config", "state_123") as config:
        assert config == {"api_key": "k", "endpoint": "https://api.example.com"}

    simple = manager.create_simple_provider("settings", {"timeout": 30})
    manager.register_provider("settings", simple)
    manager.acquire("settings", "state_123")["timeout"] = 60
    assert manager.acquire("settings", "state_124") == {"timeout": 30}


# --- Resource Health Monitoring ----------------------------------------------------------


def test_health_checks(manager: ResourceManager, users: Users) -> None:
    manager.register_provider("database", users.adapter())
    manager.register_provider("broken", Broken("broken"))
    assert manager.health_check("broken")["broken"] == ResourceHealth.UNHEALTHY
    all_health = manager.health_check()
    assert all_health == {"database": ResourceHealth.HEALTHY, "broken": ResourceHealth.UNHEALTHY}


def test_resource_metrics(manager: ResourceManager) -> None:
    manager.register_provider("database", Counted("database"))
    manager.register_provider("broken", Broken("broken"))
    for number in range(3):
        manager.acquire("database", f"state_{number}")
    manager.release("database", "state_0")
    with pytest.raises(ResourceError):
        manager.acquire("broken", "state_0")

    db_metrics = manager.get_metrics("database")["database"]
    assert isinstance(db_metrics, ResourceMetrics)
    assert db_metrics.total_acquisitions == 3
    assert db_metrics.active_connections == 2
    assert db_metrics.failed_acquisitions == 0
    assert db_metrics.average_hold_time > 0
    assert db_metrics.average_acquisition_time > 0

    all_metrics = manager.get_metrics()
    assert list(all_metrics) == ["database", "broken"]
    assert all_metrics["broken"].failed_acquisitions == 1
    assert all_metrics["broken"].total_acquisitions == 0


def test_async_cleanup(users: Users) -> None:
    manager, counted = ResourceManager(), Counted("counted")
    manager.register_provider("database", users.adapter())
    manager.register_provider("counted", counted)
    with manager.resource_context("database", "state_122") as database:
        users.add(database, "Ada")
    users.add(manager.acquire("database", "state_123"), "Bob")
    manager.acquire("counted", "state_123")

    async def cleanup_resources() -> None:
        await manager.cleanup()

    asyncio.run(cleanup_resources())
    assert (counted.released, counted.status) == (1, ResourceStatus.CLOSED)
    assert users.committed == ["Ada"]  # nobody said that what is still lent went well
    with pytest.raises(ResourceError, match="closed"):
        manager.acquire("database", "state_124")


# --- Resource Patterns -------------------------------------------------------------------


def test_resource_manager_as_context_manager(users: Users) -> None:
    counted = Counted("counted")
    with ResourceManager() as manager:
        manager.register_provider("db", users.adapter())
        manager.register_provider("counted", counted)
        with manager.resource_context("db", "owner1") as db:
            users.add(db, "Ada")
            assert db.query(f"SELECT * FROM {users.table}") == [{"name": "Ada"}]
        manager.acquire("counted", "owner2")
    assert (counted.released, counted.status) == (1, ResourceStatus.CLOSED)


def test_shared_resource_manager(users: Users) -> None:
    class SharedResources:
        _manager: ClassVar[ResourceManager | None] = None

        @classmethod
        def get_manager(cls) -> ResourceManager:
            if cls._manager is None:
                cls._manager = ResourceManager()
                cls._manager.register_provider("database", DatabaseResourceAdapter("db", **users.parts))
            return cls._manager

    with SharedResources.get_manager() as manager:
        assert SharedResources.get_manager() is manager
        with SharedResources.get_manager().resource_context("database", "state_123") as db:
            assert users.names(db) == []


@pytest.fixture
def redis_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_installed: None) -> None:
    """Install a distribution that offers this module's provider as the kind ``redis``."""
    offering = tmp_path / "offering-1.0.dist-info"
    offering.mkdir()
    (offering / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    path = f"{RedisResourceProvider.__module__}:{RedisResourceProvider.__qualname__}"
    (offering / "entry_points.txt").write_text(f"[wirestate.resources]\nredis = {path}\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("redis_offered")
def test_resource_with_fsm(users: Users) -> None:
    def load(record: dict[str, Any], context: FunctionContext) -> dict[str, Any]:
        users.add(context.resources["database"], record["name"])
        return {"cached_at": context.resources["cache"].address}

    config = {"states": {"load": {"resources": ["database", "cache"], "transform": "load"}}}
    resources = {"database": users.parts, "cache": {"type": "redis", "host": "localhost"}}
    with SimpleFSM(config, resources=resources, functions={"load": load}) as fsm:
        result = fsm.process({"name": "Ada"}, raise_on_error=True)
        assert result.data == {"cached_at": ("localhost", 6379)}
        assert set(fsm.manager.get_all_resources()) == {"database", "cache"}
    assert users.committed == ["Ada"]
    assert not RedisClient.made[0].is_open


# --- Best Practices ----------------------------------------------------------------------


def test_always_release_resources(manager: ResourceManager, users: Users) -> None:
    manager.register_provider("database", users.adapter())
    owner_id = "state_load_1"
    with manager.resource_context("database", owner_id) as db:
        users.add(db, "Ada")

    def fail() -> None:
        with manager.resource_context("database", owner_id) as db:
            users.add(db, "Grace")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    resource = manager.acquire("database", owner_id)
    try:
        users.add(resource, "Mary")
    finally:
        manager.release("database", owner_id)
    assert users.committed == ["Ada", "Mary"]
    assert manager.holders() == []


def test_use_owner_ids(manager: ResourceManager) -> None:
    manager.register_provider("database", Counted("database"), pool_config=PoolConfig(max_size=2, acquire_timeout=0.01))
    state_name, execution_id = "charge", "8f"
    manager.acquire("database", f"state_{state_name}_{execution_id}")
    shared = manager.acquire("database", "state")
    assert manager.acquire("database", "state") is shared  # whoever else calls itself that shares it
    with pytest.raises(ResourceError, match=r"longest held .* by state_charge_8f"):
        manager.acquire("database", "state_refund_90")


def test_monitor_resource_health(manager: ResourceManager, caplog: pytest.LogCaptureFixture) -> None:
    manager.register_provider("database", Counted("database"))
    manager.register_provider("api", Broken("api"))
    logger = logging.getLogger("guide")
    stop, looked = threading.Event(), threading.Semaphore(0)

    def monitor_resources() -> None:
        while not stop.is_set():
            for name, status in manager.health_check().items():
                if status != ResourceHealth.HEALTHY:
                    logger.warning("Resource %s is %s", name, status)
            looked.release()
            stop.wait(0.001)

    monitor_thread = threading.Thread(target=monitor_resources, daemon=True)
    monitor_thread.start()
    for _ in range(2):
        assert looked.acquire(timeout=5)
    stop.set()
    monitor_thread.join()
    assert set(caplog.messages) == {"Resource api is ResourceHealth.UNHEALTHY"}


@pytest.mark.parametrize(
    "pool_config",
    [PoolConfig(min_size=5, max_size=20, acquire_timeout=10), PoolConfig(min_size=1, max_size=5, max_idle_time=600)],
    ids=["high throughput", "low throughput"],
)
def test_configure_appropriate_pools(manager: ResourceManager, pool_config: PoolConfig, users: Users) -> None:
    manager.register_provider("database", users.adapter(), pool_config=pool_config)
    owners = [f"state_{number}" for number in range(pool_config.max_size)]
    for owner in owners:
        manager.acquire("database", owner)
    assert manager.get_metrics("database_pool")["database_pool"].size == pool_config.max_size
    with pytest.raises(ResourceError, match=f"none of its {pool_config.max_size} "):
        manager.acquire("database", "one_too_many", timeout=0)
    for owner in owners:
        manager.release("database", owner)


def test_handle_resource_errors(manager: ResourceManager, users: Users, nowhere: int) -> None:
    closed = DatabaseResourceAdapter("database", backend="postgresql", host="127.0.0.1", port=nowhere)
    manager.register_provider("database", closed)
    with pytest.raises(ResourceError) as caught:
        manager.acquire("database", "state_123", timeout=30)
    assert (caught.value.resource_name, caught.value.operation) == ("database", "acquire")
    assert not manager.has_resource("database", "state_123")

    manager.register_provider("fallback", users.adapter())
    users.add(manager.acquire("fallback", "state_123", timeout=30), "Ada")
    manager.release("fallback", "state_123")
    assert users.committed == ["Ada"]


# --- Common Pitfalls ---------------------------------------------------------------------


def test_resource_leaks() -> None:
    counted = Counted("database")
    with ResourceManager() as manager:
        manager.register_provider("database", counted)
        manager.acquire("database", "forgotten")  # and nobody releases it
        with manager.resource_context("database", "careful"):
            pass
        assert [(holder.resource, holder.owner_id) for holder in manager.holders()] == [("database", "forgotten")]
    assert (counted.acquired, counted.released) == (2, 2)


def test_not_tracking_owners(manager: ResourceManager, users: Users) -> None:
    db_resource = users.adapter()
    manager.register_provider("database", db_resource)
    untracked = db_resource.acquire()
    assert users.names(untracked) == []
    assert manager.get_resource_owners("database") == []
    db_resource.release(untracked)

    db = manager.acquire("database", "state_123")
    assert users.names(db) == []
    assert manager.get_resource_owners("database") == ["state_123"]
    manager.release("database", "state_123")


def test_ignoring_health_checks(manager: ResourceManager, service: str, nowhere: int) -> None:
    manager.register_provider("api", HTTPResourceAdapter("api", base_url=service))
    manager.register_provider("gone", HTTPResourceAdapter("gone", base_url=f"http://127.0.0.1:{nowhere}"))
    assert not manager.validate_resource("gone")
    assert manager.validate_resource("api")
    resource = manager.acquire("api", "state_123")
    assert resource.get("/ok").status_code == 200
    manager.release("api", "state_123")


# --- Troubleshooting ---------------------------------------------------------------------


def test_debug_resource_status(manager: ResourceManager) -> None:
    manager.register_provider("database", Counted("database"), pool_config=PoolConfig(max_size=2))
    manager.register_from_dict("config", {"data": {"a": 1}})
    manager.acquire("database", "state_123")
    all_resources = manager.get_all_resources()
    shown = {
        name: (status["provider_exists"], status["has_pool"], status["active_count"], status["owners"])
        for name, status in all_resources.items()
    }
    assert shown == {"database": (True, True, 1, ["state_123"]), "config": (True, False, 0, [])}


def test_common_issues(manager: ResourceManager, tmp_path: Path) -> None:
    config = PoolConfig(max_size=1, acquire_timeout=0.02)
    manager.register_provider("database", Counted("database"), pool_config=config)
    manager.acquire("database", "slow")
    with pytest.raises(TimeoutError, match=r"in 0\.02 s .* raise max_size or hold them for less time"):
        manager.acquire("database", "late")
    manager.release("database", "slow")
    with manager.resource_context("database", "late"):
        assert len(manager.holders()) == 1
    assert manager.get_metrics("database")["database"].timeouts == 1

    manager.register_provider("files", FileSystemResourceAdapter("files", base_path=tmp_path / "missing"))
    assert manager.health_check("files")["files"] is ResourceHealth.UNHEALTHY
    with pytest.raises(ResourceError, match="does not exist; create it first"):
        manager.acquire("files", "state_123")
    assert manager.holders() == []
