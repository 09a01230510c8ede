"""A store that speaks S3, in a process of its own: moto, behind connections that stay open as real stores keep them.

Run as a program it serves until its standard input ends, and prints its port; :func:`object_store` starts it once.
"""

from __future__ import annotations

import atexit
import importlib.util
import io
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from wirestate.resources.filesystem.adapter import FileSystemResourceAdapter

SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=me/20260101/us-east-1/s3/aws4_request, Signature=0"}
REFUSE = "/-/refuse"  # PUT here: refuse requests of which "METHOD path?query" contains the body
REFUSED = b"<Error><Code>AccessDenied</Code><Message>refused by the test</Message></Error>"
INSIDE = ("HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_TRANSFER_ENCODING")  # told to moto in another form


class ObjectStore:
    """One running store, where every test makes a bucket of its own."""

    def __init__(self, *, checks_credentials: bool = False) -> None:
        # moto lets this many requests in without credentials: those by which buckets are made.
        environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "1"} if checks_credentials else None
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._client = httpx.Client(headers=SIGNED, trust_env=False)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def options(self, **more: Any) -> dict[str, Any]:
        """Return ``storage_options`` of the adapter for this store."""
        return {"key": "me", "secret": "sesame", "endpoint_url": self.url, **more}

    def new_bucket(self) -> str:
        """Make a bucket, and return its name."""
        name = f"bucket-{secrets.token_hex(4)}"
        self.put(f"/{name}")
        return name

    def adapter(self, base: str, **options: Any) -> FileSystemResourceAdapter:
        """Return an adapter for a folder in one of its buckets."""
        return FileSystemResourceAdapter("files", base_path=f"s3://{base}", storage_options=self.options(**options))

    def put(self, path: str, content: bytes = b"") -> None:
        """Store something without the adapter."""
        assert self._client.put(self.url + path, content=content).status_code < 300

    def get(self, path: str) -> str:
        """Read something, or a listing, without the adapter."""
        return self._client.get(self.url + path).text

    @contextmanager
    def refusing(self, containing: str) -> Iterator[None]:
        """Refuse some requests for as long as the block takes: ``PUT /bucket/file?partNumber=2``."""
        self.put(REFUSE, containing.encode())
        try:
            yield
        finally:
            self.put(REFUSE)

    def freeze(self) -> None:
        """Let it say nothing more, with all its connections open."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # it may say something until the signal arrives

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self._client.close()
        self._process.kill()
        self._process.communicate()


@cache
def object_store() -> ObjectStore:
    """Return the store of this test run; skip the test without moto, or fail it where servers are required."""
    return private_object_store(atexit.register)


def private_object_store(at_end: Any, **options: Any) -> ObjectStore:
    """Return a store that one test may freeze and stop; ``at_end`` is told how."""
    from tests.services import absent

    missing = [name for name in ("moto", "s3fs") if importlib.util.find_spec(name) is None]
    if missing:
        absent(f"no S3 store: {', '.join(missing)} not installed")
    store = ObjectStore(**options)
    at_end(store.stop)
    return store


def place(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Return a base path on a ``disk``, in ``memory`` or in ``s3``, and the options that lead there."""
    if kind == "s3":
        store = object_store()
        return f"s3://{store.new_bucket()}/base", store.options()
    return (str(folder) if kind == "disk" else f"memory:/{folder}"), {}


class Handler(BaseHTTPRequestHandler):
    """Calls moto; its own server closes each connection, and with them what the tests are about."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    moto: Any  # an application of WSGI
    refused = b""

    def answer(self) -> None:
        """Serve one request."""
        content = self._content()
        if self.path == REFUSE:
            type(self).refused = content
            return self._send(204, [], b"")
        if self.refused and self.refused in f"{self.command} {self.path}".encode():
            return self._send(403, [("Content-Type", "application/xml")], REFUSED)
        said: list[Any] = []
        parts = self.moto(self._environment(content), lambda status, headers, *_: said.extend((status, headers)))
        return self._send(int(said[0].split()[0]), said[1], b"".join(parts))

    def handle_expect_100(self) -> bool:
        """Let the client go on, at once."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def _content(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _environment(self, content: bytes) -> dict[str, Any]:
        url = urlsplit(self.path)
        sent = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in self.headers.items()}
        return {
            **{name: value for name, value in sent.items() if name not in INSIDE},
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(url.path, "latin-1"),
            "RAW_URI": self.path,
            "QUERY_STRING": url.query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(content)),
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(self.server.server_address[1]),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(content),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        if all(name.lower() != "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    Handler.moto = DomainDispatcherApplication(create_backend_app)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()  # ends with the tests, however they end
    os._exit(0)


if __name__ == "__main__":
    serve()
