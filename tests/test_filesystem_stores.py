"""Files in an S3 store: whole files only, health that tells the truth, and nothing left open."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractFileSystem
from pydantic import SecretStr

from tests.object_store import ObjectStore, object_store, private_object_store
from wirestate import container_from_settings
from wirestate.errors import InvalidSettingError, LeaseReleasedError, PathOutsideBaseError, ResourceClosedError
from wirestate.resources.base import ResourceHealth
from wirestate.resources.filesystem.adapter import FileSystemResourceAdapter
from wirestate.resources.filesystem.files import Files
from wirestate.resources.filesystem.replacing import BLOCK
from wirestate.settings import WirestateSettings

pytestmark = pytest.mark.usefixtures("invariant")

SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture
def store() -> ObjectStore:
    return object_store()


@pytest.fixture
def bucket(store: ObjectStore) -> str:
    return store.new_bucket()


@pytest.fixture
def adapter(store: ObjectStore, bucket: str) -> Iterator[FileSystemResourceAdapter]:
    adapter = store.adapter(f"{bucket}/base")
    yield adapter
    adapter.close()


@pytest.fixture
def fs(adapter: FileSystemResourceAdapter) -> Files:
    return adapter.acquire()


# --- whole files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("refused", ["partNumber=1", "partNumber=2", "POST", "PUT"])
def test_an_upload_that_fails_leaves_the_old_file_whole(
    store: ObjectStore, bucket: str, fs: Files, refused: str
) -> None:
    fs.write("x.bin", b"old")
    with store.refusing(refused), pytest.raises(PermissionError, match="refused by the test"):
        fs.write("x.bin", b"n" * (2 * BLOCK + 1))
    gc.collect()  # the file that failed is closed at the latest now
    assert fs.read("x.bin", "bytes") == b"old"
    assert "<Upload>" not in store.get(f"/{bucket}?uploads")  # no part is paid for


def test_a_small_file_that_is_refused_leaves_the_old_one(store: ObjectStore, fs: Files) -> None:
    fs.write("x.txt", "old")
    with store.refusing("PUT"), pytest.raises(PermissionError):
        fs.write("x.txt", "new")
    assert fs.read("x.txt") == "old"


def test_keys_that_no_path_leads_to_are_not_listed(store: ObjectStore, bucket: str, fs: Files) -> None:
    fs.write("a/x.txt", "x")
    for key in ("a/", "empty/", "a//y", "a/%2e%2e/z"):
        store.put(f"/{bucket}/base/{key}")
    assert fs.list(recursive=True) == ["a/x.txt"]
    assert fs.list("a") == ["a/x.txt"]
    assert fs.list() == ["a", "empty"]


def test_the_object_that_is_called_like_the_base_is_not_in_it(store: ObjectStore, bucket: str, fs: Files) -> None:
    store.put(f"/{bucket}/base", b"beside")
    for call in (fs.read, fs.delete):
        with pytest.raises(IsADirectoryError):
            call(".")
    assert fs.list() == []
    assert store.get(f"/{bucket}/base") == "beside"


# --- buckets and credentials -----------------------------------------------------------------------


def test_a_bucket_that_does_not_exist_is_not_made(store: ObjectStore) -> None:
    adapter = store.adapter("a-bucket-with-a-typo/base")
    fs = adapter.acquire()
    for call in (lambda: fs.write("a/x.txt", "x"), lambda: fs.read("x.txt"), fs.list):
        with pytest.raises(FileNotFoundError):
            call()
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert adapter.trouble == "bucket 'a-bucket-with-a-typo' does not exist"
    assert "NoSuchBucket" in store.get("/a-bucket-with-a-typo")
    adapter.close()


def test_a_base_without_a_bucket_is_refused_when_the_adapter_is_made() -> None:
    for url in ("s3://", "s3:///", "simplecache::s3://"):
        with pytest.raises(InvalidSettingError, match="names no bucket"):
            FileSystemResourceAdapter("files", base_path=url)


def test_wrong_credentials_are_told_without_them(request: pytest.FixtureRequest) -> None:
    store = private_object_store(request.addfinalizer, checks_credentials=True)
    adapter = store.adapter(f"{store.new_bucket()}/base")
    with pytest.raises(PermissionError) as caught:
        adapter.acquire().write("x.txt", "x")
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert adapter.trouble is not None
    assert "PermissionError" in adapter.trouble
    assert "sesame" not in adapter.trouble + "".join(traceback.format_exception(caught.value))
    adapter.close()


# --- health ----------------------------------------------------------------------------------------


def test_a_store_that_answers_is_healthy_with_files_and_without(fs: Files, adapter: FileSystemResourceAdapter) -> None:
    assert adapter.health_check() is ResourceHealth.HEALTHY
    fs.write("x.txt", "x")
    with suppress(FileNotFoundError):
        fs.read("missing.txt")
    assert adapter.health_check() is ResourceHealth.HEALTHY
    assert adapter.trouble is None


def test_a_store_that_says_nothing_is_unhealthy_in_bounded_time(request: pytest.FixtureRequest) -> None:
    store = private_object_store(request.addfinalizer)
    adapter = store.adapter(f"{store.new_bucket()}/base")
    adapter.acquire().write("x.txt", "x")
    store.freeze()
    began = time.monotonic()
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert adapter.trouble is not None
    assert adapter.trouble.endswith("did not answer in time")
    store.thaw()
    assert adapter.health_check() is ResourceHealth.HEALTHY
    assert adapter.trouble is None
    store.freeze()
    adapter.close()
    assert time.monotonic() - began < 30


# --- nothing is left open --------------------------------------------------------------------------


def sockets() -> int:
    with_links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(link) and os.readlink(link).startswith("socket:") for link in with_links)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system has no /proc")
def test_a_closed_adapter_leaves_no_connection(store: ObjectStore, bucket: str) -> None:
    def use() -> int:
        adapter = store.adapter(f"{bucket}/base")
        adapter.acquire().write("x.txt", "x")
        assert adapter.acquire().read("x.txt") == "x"
        while_open = sockets()
        adapter.close()
        adapter.close()
        with pytest.raises(ResourceClosedError):
            adapter.acquire()
        return while_open

    gc.disable()  # close() does it, not a collection that comes by chance
    try:
        use()
        before = sockets()
        assert use() > before
        deadline = time.monotonic() + 10
        while sockets() > before and time.monotonic() < deadline:
            time.sleep(0.01)  # the loop of fsspec closes sockets in its next round
        assert sockets() <= before
    finally:
        gc.enable()


def test_closing_and_the_end_of_a_program_warn_of_nothing(store: ObjectStore, bucket: str) -> None:
    program = f"""
import gc
from wirestate import ResourceManager
from wirestate.resources.filesystem.adapter import FileSystemResourceAdapter
for close in (True, False):
    manager = ResourceManager()
    options = {store.options()!r}
    manager.register_provider(
        "files", FileSystemResourceAdapter("files", base_path="s3://{bucket}/base", storage_options=options)
    )
    with manager.resource_context("files", "me") as fs:
        fs.write("x.txt", "x")
        print(fs.read("x.txt"))
    if close:
        manager.close()
        del manager, fs
        gc.collect()
"""
    done = run("-W", "error", "-c", program)
    assert (done.stdout.split(), done.stderr) == (["x", "x"], "")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=50, check=False
    )


def test_a_missing_library_names_its_extra() -> None:
    program = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from wirestate.errors import MissingDriverError\n"
        "from wirestate.resources.filesystem.adapter import FileSystemResourceAdapter\n"
        "try: FileSystemResourceAdapter('files', base_path='s3://bucket/folder')\n"
        "except MissingDriverError as error: print(error)"
    )
    assert run("-c", program).stdout == "'s3://' needs s3fs: pip install 'wirestate[s3]'\n"


# --- threads, tasks, forks -------------------------------------------------------------------------


def test_threads_share_one_adapter(adapter: FileSystemResourceAdapter) -> None:
    ready = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            ready.wait(20)
            fs = adapter.acquire()  # the first connects; the others wait for it
            for round_ in range(5):
                fs.write(f"{number}.txt", f"{number} {round_}")
                assert fs.read(f"{number}.txt") == f"{number} {round_}"
            adapter.release(fs)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert adapter.acquire().list() == [f"{number}.txt" for number in range(8)]


def test_a_call_in_a_coroutine_blocks_its_loop_and_one_in_a_thread_does_not(request: pytest.FixtureRequest) -> None:
    store = private_object_store(request.addfinalizer)
    adapter = store.adapter(f"{store.new_bucket()}/base")

    async def work() -> tuple[int, int]:
        fs = adapter.acquire()
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0.001)

        heart = asyncio.create_task(beat())
        await asyncio.sleep(0)
        before = beats
        fs.write("x.txt", "x")  # works, and nothing else runs meanwhile
        blocked = beats - before
        store.freeze()
        reading = asyncio.create_task(asyncio.to_thread(fs.read, "x.txt"))
        before = beats
        while beats < before + 20:
            await asyncio.sleep(0.001)
        assert not reading.done()
        store.thaw()
        assert await reading == "x"
        heart.cancel()
        return blocked, beats - before

    blocked, alive = asyncio.run(work())
    assert blocked == 0
    assert alive >= 20
    adapter.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the library of the store has a thread
def test_a_forked_child_uses_a_connection_of_its_own(adapter: FileSystemResourceAdapter, fs: Files) -> None:
    fs.write("x.txt", "parent")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            warnings.simplefilter("ignore")
            signal.alarm(40)
            with pytest.raises(LeaseReleasedError):
                fs.read("x.txt")
            fs.close()
            mine = adapter.acquire()
            assert mine.read("x.txt") == "parent"
            mine.write("y.txt", "child")
            adapter.release(mine)
            adapter.close()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert fs.read("y.txt") == "child"
    assert fs.read("x.txt") == "parent"


# --- settings and secrets --------------------------------------------------------------------------


def test_a_bucket_from_the_environment(store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"key": "me", "client_kwargs": {"endpoint_url": store.url, "aws_secret_access_key": "sesame"}}
    monkeypatch.setenv("WIRESTATE_RESOURCES__FILES__BASE_PATH", f"s3://{bucket}/base")
    monkeypatch.setenv("WIRESTATE_RESOURCES__FILES__STORAGE_OPTIONS", json.dumps(options))
    container = container_from_settings(WirestateSettings())
    manager = container.manager  # type: ignore[attr-defined]
    with manager.resource_context("files", "me") as fs:
        fs.write("x.txt", "x")
    assert "<Key>base/x.txt</Key>" in store.get(f"/{bucket}")
    container.shutdown_resources()


def test_no_secret_is_shown_anywhere(store: ObjectStore, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    planted = "planted-open-sesame"
    wrapped = {"endpoint_url": store.url, "aws_secret_access_key": SecretStr(planted)}
    said: list[str] = []
    for base in (f"{bucket}/base", "a-bucket-with-a-typo/base"):
        adapter = FileSystemResourceAdapter(
            "files", base_path=f"s3://{base}", storage_options={"key": "me", "client_kwargs": wrapped}
        )
        fs = adapter.acquire()
        for verb, arguments in (("write", ("x.txt", "x")), ("read", ("missing.txt",)), ("read", ("../x",))):
            with store.refusing("x.txt"), pytest.raises((OSError, PathOutsideBaseError)) as caught:
                getattr(fs, verb)(*arguments)
            said.append("".join(traceback.format_exception(caught.value)))
        adapter.health_check()
        said += [repr(adapter), str(adapter.trouble), repr(fs), repr(vars(adapter)), repr(fs._root)]
        adapter.close()
    assert "put_object" in caplog.text.lower().replace("putobject", "put_object")  # the library logs all that it does
    assert [text for text in (*said, caplog.text) if planted in text] == []


def test_what_a_store_says_of_its_secrets_is_not_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Talkative(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "talkative"

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            raise OSError(f"no such account: {self.storage_options}")

    monkeypatch.setitem(_registry, "talkative", Talkative)
    options = {"account_key": "sesame-1", "nested": {"sas": SecretStr("sesame-2")}, "region": "north"}
    adapter = FileSystemResourceAdapter("files", base_path="talkative://x", storage_options=options)
    assert adapter.health_check() is ResourceHealth.UNHEALTHY
    assert adapter.trouble is not None
    assert "north" in adapter.trouble
    assert "sesame" not in adapter.trouble
