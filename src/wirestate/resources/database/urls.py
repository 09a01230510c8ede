"""Where a database is: from the ways to write it down to one checked SQLAlchemy URL."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from wirestate.errors import InvalidSettingError, MissingDriverError, listed, nearest
from wirestate.resources.secrets import revealed, title_of

ALIASES = {"postgres": "postgresql", "file": "sqlite", "memory": "sqlite"}
DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
EXTRAS = {"psycopg": "postgresql", "pymysql": "mysql", **{name: name for name in ("aiosqlite", "asyncpg", "aiomysql")}}
MODULES = {"pysqlite": "sqlite3", "mysqldb": "MySQLdb"}
OURS = (*DRIVERS.values(), "postgresql+asyncpg", "mysql+aiomysql", "mariadb+aiomysql")
KNOWN = ("sqlite", "postgresql", "mysql", "mariadb", "memory", "file")


@dataclass(frozen=True, slots=True)
class Address:
    """A database as an adapter was told to find it: by *url*, or part by part."""

    url: str | SecretStr | URL | None = field(default=None, repr=False)
    backend: str | None = None
    host: str | None = None
    port: int | None = None
    database: str | None = None
    user: str | None = None
    password: str | SecretStr | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Target:
    """A database that can be connected to by the module *driver*; an in-memory one gets its file when it is opened."""

    url: URL = field(repr=False)
    is_memory: bool
    is_async: bool
    dialect: str
    driver: str

    @property
    def is_sqlite(self) -> bool:
        return self.dialect == "sqlite"

    def check_isolation(self, name: str, level: str) -> None:
        """Refuse an isolation level that the database does not know.

        Raises:
            InvalidSettingError: with those that it knows.
        """
        try:
            known = list(self.url.get_dialect()().get_isolation_level_values(None))  # type: ignore[arg-type]  # no dialect looks at the connection
        except NotImplementedError:  # this dialect does not say
            return
        if level.upper().replace("_", " ") not in known:
            raise _wrong(name, f"isolation_level is {level!r}; it must be one of {listed(known)}")

    @property
    def file(self) -> Path | None:
        """The SQLite file; None where there is none, or where a ``file:`` URI says more than its path."""
        database = self.url.database
        if not self.is_sqlite or self.is_memory or database is None or database.startswith("file:"):
            return None
        return Path(database).absolute()

    @property
    def shown(self) -> str:
        """The URL as messages may show it: no password, and no query or fragment, which may hold one too."""
        if self.is_memory:
            return "memory"
        text = self.url.set(query={}).render_as_string(hide_password=True)
        if self.file is not None:  # whose name may hold a '#'
            return text
        # SQLAlchemy knows no fragments: they are the end of a user, host or database.
        return re.split("#|%23", text, maxsplit=1)[0]


def target_of(name: str, address: Address) -> Target:
    """Check where a database is and that its driver is installed; connect to nothing.

    Raises:
        InvalidSettingError: the address is missing, contradicts itself or cannot be read.
        MissingDriverError: the driver is not installed.
    """
    url = _read(name, address)
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    try:
        dialect = url.get_dialect()
    except (NoSuchModuleError, ArgumentError):
        near = nearest(url.drivername, [*KNOWN, *DRIVERS.values()])
        other = f"known: {', '.join(KNOWN)}; for another kind of resource set kind or class"
        hint = f"did you mean {near!r}?" if near else other
        raise _wrong(name, f"no database is called {url.drivername!r}; {hint}") from None
    driver = MODULES.get(dialect.driver, dialect.driver)
    _require_driver(name, url, driver)
    is_sqlite = dialect.name == "sqlite"
    if is_sqlite:
        _refuse_shared_memory(name, url)
    is_memory = is_sqlite and url.database in (None, "", ":memory:")
    return Target(url, is_memory, bool(dialect.is_async), dialect.name, driver)


def _read(name: str, address: Address) -> URL:
    if address.url is None:
        return _assembled(name, address)
    parts = [part for part in ("host", "port", "database", "user", "password") if getattr(address, part) is not None]
    if parts:
        raise _wrong(name, f"the url says where it is already; leave out {', '.join(parts)}")
    url = _parsed(name, address.url)
    if address.backend is not None:
        said = ALIASES.get(address.backend, address.backend).partition("+")[0]
        if said != url.get_backend_name():
            raise _wrong(name, f"backend is {address.backend!r} and the url begins with {url.drivername!r}")
    return url


def _parsed(name: str, given: str | SecretStr | URL) -> URL:
    if isinstance(given, URL):
        return given
    text = revealed(given)
    if not isinstance(text, str):
        raise _wrong(name, f"its url is a {title_of(text)}; give a text, or a URL of SQLAlchemy's")
    text = text.strip()
    if text in ("memory", "memory://", ":memory:"):
        return URL.create("sqlite")
    unreadable = _wrong(
        name,
        "its url cannot be read; it has to look like scheme://user:password@host:port/database, "
        "with special characters of the password as %xx",
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # from None: their texts quote parts of the URL, hence of a password
        raise unreadable from None
    backend, plus, driver = url.drivername.partition("+")
    if ALIASES.get(backend, backend) == "sqlite" and url.host:
        raise _wrong(name, "its url has two slashes, behind which a host would stand; write sqlite:///path/to/file.db")
    # A password that holds an '@' would show its end as the host.
    if ALIASES.get(backend, backend) != "sqlite" and text.count("@") > 1:
        raise unreadable
    return url.set(drivername=ALIASES.get(backend, backend) + plus + driver)


def _assembled(name: str, address: Address) -> URL:
    if address.backend is None:
        hint = "give url= (or connection_string=), or backend= with host=, database=, user= and password="
        raise _wrong(name, f"nothing says where it is; {hint}")
    if not isinstance(address.backend, str):
        raise _wrong(name, f"backend is a {type(address.backend).__name__}; it must be one of {listed(KNOWN)}")
    backend = ALIASES.get(address.backend, address.backend)
    if backend.partition("+")[0] == "sqlite":
        if address.backend == "memory":
            return URL.create(backend)
        if not address.database:
            raise _wrong(name, "sqlite needs database='path/to/file.db', or backend='memory'")
    if isinstance(address.port, bool) or not isinstance(address.port, int | None):
        raise _wrong(name, f"port is a {type(address.port).__name__}; it must be a whole number")
    password = None if address.password is None else revealed(address.password)
    return URL.create(backend, address.user, password, address.host, address.port, address.database)


def _require_driver(name: str, url: URL, module: str) -> None:
    if importlib.util.find_spec(module) is not None:
        return
    scheme = f"'{url.drivername}://'"
    if module in EXTRAS:
        raise MissingDriverError(scheme, module, EXTRAS[module], name)
    ours = [kind for kind in OURS if kind.partition("+")[0] == url.get_backend_name()]
    instead = f"; or write {' or '.join(f'{kind}://' for kind in ours)}" if ours else ""
    raise _wrong(name, f"{scheme} needs the package {module!r}, which is not installed{instead}")


def _refuse_shared_memory(name: str, url: URL) -> None:
    in_memory = url.query.get("mode") == "memory" or (url.database or "").startswith("file::memory:")
    if in_memory:
        # Connections that share a cache see each other's uncommitted rows.
        raise _wrong(
            name, "an in-memory database cannot be shared between leases; 'memory' gives a private temporary file"
        )


def _wrong(name: str, what: str) -> InvalidSettingError:
    return InvalidSettingError(f"database {name!r}: {what}", name, "build")
