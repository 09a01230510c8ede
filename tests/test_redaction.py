"""What is quoted of texts that others wrote: their secrets are taken out, in every place that quotes them."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import wirestate
from tests.secrets_planted import MARKS, PASSWORD, TOKEN
from wirestate import (
    BaseResourceProvider,
    DatabaseResourceAdapter,
    FileSystemResourceAdapter,
    HTTPResourceAdapter,
    LLMResourceAdapter,
    PoolConfig,
    ResourceManager,
    SimpleFSM,
    WirestateSettings,
    lifetimes,
)
from wirestate.errors import ReleaseFailedError, ResourceUnavailableError, WirestateError
from wirestate.redaction import quoted, without_secrets
from wirestate.resources.reports import tell

if TYPE_CHECKING:
    from tests.conftest import Side

P = PASSWORD

HIDDEN = {
    f"http://me:{P}@h:80/x is gone": "http://h:80/x is gone",
    f"redis://:{P}@h/0": "redis://h/0",
    f"postgresql://me:{P}/w#x@h/d": "postgresql://h/d",
    f"GET 'https://h/x?key={P}' failed": "GET 'https://h/x failed",
    f"https://h/x#{P}": "https://h/x",
    f"Max retries exceeded with url: /v1?key={P} (refused)": "Max retries exceeded with url: /v1 (refused)",
    f"me:{P}@host refused it": "…@host refused it",
    f"host=h password={P} user=me": "host=h password=… user=me",
    f"PGPASSWORD = {P}": "PGPASSWORD = …",
    f"connect(host='h', password='{P} two')": "connect(host='h', password='…')",
    f'password="{P}\\" x"': 'password="…"',
    f"token={P}": "token=…",
    f"aws_secret_access_key={P}": "aws_secret_access_key=…",
    f"AccountKey={P}==;Suffix=x": "AccountKey=…",
    f"api_key=SecretStr('{P}')": "api_key=…",
    f"auth=('me', '{P}')": "auth=…",
    f'{{"password":"{P}","user":"me"}}': '{"password":"…","user":"me"}',
    f'{{\\"password\\": \\"{P}\\"}}': '{\\"password\\": \\"…\\"}',
    f"{{'Authorization': 'Bearer {P}', 'X': 'y'}}": "{'Authorization': '…', 'X': 'y'}",
    f"[(b'authorization', b'Basic {P}')]": "[(b'authorization', '…')]",
    f"authorization=Bearer {P}": "authorization=…",
    f"token=Bearer {P}, x": "token=… x",
    "auth=Basic dXNlcjpwYXNz": "auth=…",
    f"password=b{P}": "password=…",
    f"password=b'{P}'": "password='…'",
    f"bearer={P}": "bearer=…",
    f"curl -s -u me:{P} http://h": "curl -s -u … http://h",
    f"['curl', '--user', 'me:{P}']": "['curl', '--user', '…']",
    f"see //me:{P}@h/x": "see //h/x",
    f"https:\\/\\/me:{P}@h\\/x?key={P} gone": "https:\\/\\/h\\/x gone",
    f"Key (token)=({P}) already exists.": "Key (token)=… already exists.",
    f"Key (shop, token, day)=(1, {P}, 2) already exists.": "Key (shop, token, day)=… already exists.",
    f"Authorization: Bearer {P}\nHost: h": "Authorization: …\nHost: h",
    f'authorization: Digest username="me", response="{P}"': "authorization: …",
    f"Cookie: a={P}; b={P}": "Cookie: …",
    f"X-Api-Key: {P}": "X-Api-Key: …",
    f"the bearer {P} is bad": "the bearer … is bad",
    "Basic bWU6cGw0bnRlZA== is bad": "Basic … is bad",
    f"bad password: {P}": "bad password: …",
    f"Incorrect API key provided: {P}.": "Incorrect API key provided: …",
    f"refresh_token: '{P}'": "refresh_token: '…'",
    f"mysql --password {P} -h x": "mysql --password … -h x",
    f"['mysql', '--password', '{P}']": "['mysql', '--password', '…']",
    f"CREATE USER me PASSWORD '{P}'": "CREATE USER me PASSWORD '…'",
    f"CREATE USER me IDENTIFIED BY '{P}'": "CREATE USER me IDENTIFIED BY …",
    f"<password>{P}</password>": "<password>…</password>",
    "the key sk-live-0123456789abcdef": "the key …",
    "it is eyJhbGciOi.eyJzdWIi.c2ln": "it is …",
    f"-----BEGIN RSA PRIVATE KEY-----\n{P}\n-----END RSA PRIVATE KEY----- x": "… x",
}

KEPT = [
    'password authentication failed for user "me"',
    "Access denied for user 'me'@'host' (using password: YES)",
    'unrecognized token: "#"',
    "password: Field required",
    "token: Input should be a valid string",
    "password=None, host='x'",
    "Bearer token is missing",
    "Basic authentication failed",
    "max_tokens=100 is too many",
    "expected token 'end of print statement', got 'foo'",
    "KeyError: 'token'",
    "No such file or directory: '/data/in#1.csv'",
    "http://h:8080/x cannot be reached",
    "mail me@example.com at 10:30",
    "bypass=1, author: me",
    "Key (shop, day)=(1, 2) already exists.",
    "docker run -u 1000:1000 shop",
    "curl -s http://h:80/x",
    "// see a:b, me@h",
    "a//b:c/d@e",
    "it is http:\\/\\/h:80\\/x",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_what_looks_like_a_secret_is_taken_out(text: str) -> None:
    assert without_secrets(text) == HIDDEN[text]
    assert without_secrets(HIDDEN[text]) == HIDDEN[text]


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_a_known_secret_is_taken_out_wherever_it_stands() -> None:
    assert without_secrets("it said a/b, a%2Fb", "a/b", "") == "it said …, …"


def test_an_error_whose_text_cannot_be_made_is_told_by_its_kind() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert quoted(Broken()) == "Broken"


# --- where texts of others are quoted ------------------------------------------------------

LEAKING = f"no route: postgresql://me:{P}@h/d#{P} password={P} Authorization: Bearer {TOKEN}"


def assert_silent(*texts: object) -> None:
    for text in texts:
        assert not any(mark in str(text) for mark in MARKS), "a secret is shown"


class Leaky(BaseResourceProvider):
    """A provider whose library quotes what it was given, in whatever it cannot do."""

    failing = "acquire"

    def _fail(self, verb: str) -> None:
        if self.failing == verb:
            raise OSError(LEAKING)

    def acquire(self, **options: Any) -> object:
        self._fail("acquire")
        return object()

    def release(self, resource: object) -> None:
        self._fail("release")

    def reset(self, resource: object) -> None:
        self._fail("reset")

    def health_check(self) -> Any:
        self._fail("health_check")

    def close(self) -> None:
        self._fail("close")


def leaky(verb: str) -> Leaky:
    provider = Leaky("leaky")
    provider.failing = verb
    return provider


def raised_by(work: Callable[[], object]) -> BaseException:
    """Return what *work* raises; ``pytest.raises`` would look at its cause, too, which is the provider's own."""
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_resource_that_cannot_be_had_is_told_without_secrets() -> None:
    with ResourceManager() as manager:
        manager.register_provider("leaky", leaky("acquire"))
        error = raised_by(lambda: manager.acquire("leaky", "me"))
        assert isinstance(error, ResourceUnavailableError)
        assert "no route: postgresql://h/d password=…" in str(error)
        assert_silent(error, repr(error))


def test_a_pool_tells_without_secrets_why_it_has_nothing() -> None:
    with ResourceManager() as manager:
        config = PoolConfig(max_size=1, acquire_timeout=0.05, breaker_failures=None)
        manager.register_provider("leaky", leaky("acquire"), config)
        assert_silent(raised_by(lambda: manager.acquire("leaky", "me", timeout=0.05)))


@pytest.mark.parametrize("verb", ["reset", "release"])
def test_the_log_of_a_pool_tells_without_secrets_what_failed(verb: str, caplog: pytest.LogCaptureFixture) -> None:
    manager = ResourceManager()
    manager.register_provider("leaky", leaky(verb), PoolConfig(max_size=1))
    manager.acquire("leaky", "me")
    manager.release("leaky", "me")
    manager.close()
    assert "no route" in caplog.text
    assert_silent(caplog.text)


def test_what_a_release_raises_is_noted_without_secrets() -> None:
    manager = ResourceManager()
    manager.register_provider("leaky", leaky("release"))

    def work() -> None:
        with manager.resource_context("leaky", "me"):
            raise LookupError("mine")

    error = raised_by(work)
    assert isinstance(error, LookupError)
    assert "no route" in str(error.__notes__)
    assert_silent(error.__notes__)
    manager.acquire("leaky", "you")
    error = raised_by(lambda: manager.release("leaky", "you"))
    assert isinstance(error, ReleaseFailedError)
    assert_silent(error)


def test_a_probe_tells_without_secrets_what_is_wrong() -> None:
    with ResourceManager() as manager:
        manager.register_provider("leaky", leaky("health_check"))
        manager.health_check()
        status = manager.get_resource_status("leaky")
        assert "no route" in status["trouble"]
        assert_silent(status)


def test_a_listener_that_fails_is_logged_with_its_place_and_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    def listens() -> None:
        raise OSError(LEAKING)

    tell(listens)
    assert "no route" in caplog.text
    assert "in listens" in caplog.text
    assert_silent(caplog.text)


def fails(record: Any) -> Any:
    raise OSError(LEAKING)


def refuses(record: Any) -> Any:
    raise ValueError(LEAKING)


def test_results_and_rejects_quote_without_secrets(side: Side, tmp_path: Path) -> None:
    entries: list[Any] = []
    for role in ("fails", "refuses"):
        state = {"transform": role} if role == "fails" else {"validator": role}
        machine = {"states": {"s": state}}
        with SimpleFSM(machine, functions={"fails": fails, "refuses": refuses}) as fsm:
            result = side.run(side.call(fsm, "process", {"id": 1}))
            assert not result.success
            assert "no route" in str(result.to_dict())
            assert_silent(result, result.reasons, json.dumps(result.to_dict()["error"]), result.to_dict()["reasons"])
            rejects = tmp_path / f"{role}-{side}.jsonl"
            summary = side.run(side.call(fsm, "process_stream", [{"id": 1}], lambda record: None, rejects=rejects))
            assert_silent(rejects.read_text(), summary, summary.errors)
            entries.append(rejects.read_text())
    assert all("no route" in entry for entry in entries)


def test_a_fault_quotes_a_constructor_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaking_module.py").write_text(f"raise OSError({LEAKING!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = raised_by(lambda: SimpleFSM({"states": {"s": {"transform": "leaking_module:f"}}}))
    assert "no route" in str(error)
    assert_silent(error)


# --- tracebacks with locals ----------------------------------------------------------------


def kinds() -> Iterator[type]:
    """Yield every class of the library that makes its own picture, and is not made at once."""
    for found in pkgutil.walk_packages(wirestate.__path__, "wirestate."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for _, kind in inspect.getmembers(module, inspect.isclass):
            at_once = hasattr(kind, "__dataclass_fields__") or issubclass(kind, BaseException | tuple | dict | str)
            if kind.__module__ == module.__name__ and "__repr__" in vars(kind) and not at_once:
                yield kind


@pytest.mark.parametrize("kind", list(kinds()))
def test_what_is_half_made_has_a_picture(kind: type) -> None:
    assert repr(kind.__new__(kind))


def frames_of(error: BaseException | None) -> Iterator[str]:
    """Yield the locals of the library's own frames in a traceback, as a debugger shows them."""
    package = str(Path(wirestate.__file__).parent)
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename.startswith(package):
                yield from (f"{frame.f_code.co_qualname}: {name} = {value!r}" for name, value in frame.f_locals.items())
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


URL = f"postgresql://me:{PASSWORD}@h/d"
REFUSED: dict[str, Callable[[], object]] = {
    "http scheme": lambda: HTTPResourceAdapter(base_url=f"ftp://me:{P}@h", token=TOKEN),
    "http query": lambda: HTTPResourceAdapter(base_url=f"http://h/?key={P}", token=TOKEN),
    "http number": lambda: HTTPResourceAdapter(base_url="http://h", headers={"X-Key": P}, timeout=-1),
    "http headers": lambda: HTTPResourceAdapter(base_url="http://h", headers=P),  # type: ignore[arg-type]
    "http header": lambda: HTTPResourceAdapter(base_url="http://h", headers={"X-Key": f"{P}\n"}),
    "http token": lambda: HTTPResourceAdapter(base_url="http://h", token=f"{P}\n"),
    "http pair": lambda: HTTPResourceAdapter(base_url="http://h", auth=("me", P, "x")),
    "http bytes": lambda: HTTPResourceAdapter(base_url="http://h", auth=("me", P.encode())),
    "http auth": lambda: HTTPResourceAdapter(base_url="http://h", auth=P),
    "http file": lambda: HTTPResourceAdapter(base_url="http://h", auth=("me", P), verify="/nowhere"),
    "llm model": lambda: LLMResourceAdapter(model="", api_key=P, options={"extra_headers": {"X": P}}),
    "llm key": lambda: LLMResourceAdapter(model="m", api_key=f"{P} "),
    "llm header": lambda: LLMResourceAdapter(model="m", headers={"X-Key": f"{P}\n"}),
    "llm address": lambda: LLMResourceAdapter(model="m", base_url=f"https://me:{P}@h"),
    "database twice": lambda: DatabaseResourceAdapter(url=URL, connection_string=URL),
    "database scheme": lambda: DatabaseResourceAdapter(url=f"nope://me:{P}@h/d"),
    "database port": lambda: DatabaseResourceAdapter(url=f"postgresql://me:{P}@h:x/d"),
    "database parts": lambda: DatabaseResourceAdapter(url=URL, host="h"),
    "database number": lambda: DatabaseResourceAdapter(url=URL, statement_timeout=-1, connect_args={"password": P}),
    "database bytes": lambda: DatabaseResourceAdapter(url=URL.encode()),  # type: ignore[arg-type]
    "database password": lambda: DatabaseResourceAdapter(password=P),
    "file system query": lambda: FileSystemResourceAdapter(base_path=f"s3://b?x={P}"),
    "file system scheme": lambda: FileSystemResourceAdapter(base_path=f"nope://me:{P}@h/"),
    "file system options": lambda: FileSystemResourceAdapter(base_path="s3://", storage_options={"secret": P}),
    "file system text": lambda: FileSystemResourceAdapter(base_path="x", storage_options=P),  # type: ignore[arg-type]
    "lifetime": lifetimes.PerState(DatabaseResourceAdapter, url=f"nope://me:{P}@h/d"),
    "lifetime argument": lifetimes.Singleton(HTTPResourceAdapter, base_url="http://h", tokn=P),
    "settings": lambda: WirestateSettings(
        _env_file=None, resources={"db": {"kind": "database", "url": URL, "prt": 1, "password": P}}
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_traceback_with_locals_shows_no_secret_in_our_frames(case: str) -> None:
    error = raised_by(REFUSED[case])
    assert isinstance(error, WirestateError)
    assert_silent(error, *frames_of(error))


def unreachable() -> object:
    options = {"username": "me", "password": P}
    return FileSystemResourceAdapter(base_path="ftp://127.0.0.1:1/x", storage_options=options).acquire()


HIDING: dict[str, Callable[[], object]] = {
    "http port": lambda: HTTPResourceAdapter(base_url=f"http://me:{P}@h:bad/"),
    "llm port": lambda: LLMResourceAdapter(model="m", base_url=f"http://me:{P}@h:bad/"),
    "database port": REFUSED["database port"],
    "database scheme": REFUSED["database scheme"],
    "file system scheme": REFUSED["file system scheme"],
    "file system connection": unreachable,
}


@pytest.mark.parametrize("case", HIDING)
def test_an_error_keeps_nothing_of_one_that_it_hides(case: str) -> None:
    error = raised_by(HIDING[case])
    assert isinstance(error, WirestateError)
    assert traceback.TracebackException.from_exception(error, capture_locals=True).exc_type is type(error)
    assert error.__context__ is None
    assert_silent(error, *frames_of(error))


def test_a_connection_that_fails_shows_no_secret_in_our_frames(side: Side) -> None:
    driver = "asyncpg" if side.is_async else "psycopg"
    manager = ResourceManager()
    adapter = DatabaseResourceAdapter(url=f"postgresql+{driver}://me:{P}@127.0.0.1:1/d", connect_timeout=2)
    manager.register_provider("db", adapter)

    async def work() -> None:
        session = await side.call(manager, "acquire", "db", "me")
        answer = session.query("SELECT 1")
        if side.is_async:
            await answer

    error = raised_by(lambda: side.run(work()))
    assert "could not be had" in str(error)
    assert_silent(*frames_of(error))
    side.run(side.call(manager, "release_all", "me"))
    side.run(side.call(manager, "close"))
