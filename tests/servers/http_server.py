"""A small HTTP service with scripted paths, run in a process of its own; prints its port.

/ok  /status/<n>  /flaky/<key>/<failures>?status=503&retry_after=1  /slow/<seconds>  /redirect?to=<url>  /echo
/count/<key> (how often was /flaky/<key> asked)  /connections (how many were accepted)  /open (how many are open)
/flaky with date=<seconds> says Retry-After by a date, with hang_up=1 it hangs up instead of answering
/stream/<chunks> (of 64 KiB)  /cookie (sets one)  /drip (a header that never ends, byte by byte)
/hold/<key> (answers when somebody asks for /free/<key>)
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

CHUNK = 65536
asked: Counter[str] = Counter()
holds: dict[str, threading.Event] = {}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # type: ignore[assignment]  # else a kept connection waits 40 ms for each answer

    def setup(self) -> None:
        super().setup()
        with lock:
            asked["connections"] += 1
            asked["open"] += 1

    def finish(self) -> None:
        super().finish()
        with lock:
            asked["open"] -= 1

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        verb, *rest = url.path.strip("/").split("/")
        on_verb = getattr(self, f"on_{verb}", None)
        if on_verb is not None:
            on_verb(query, *rest)
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.reply(200, {"path": url.path, "query": url.query, "headers": headers})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def on_status(self, query: dict[str, str], status: str) -> None:
        self.reply(int(status))

    def on_flaky(self, query: dict[str, str], key: str, failures: str) -> None:
        with lock:
            asked[key] += 1
            failing = asked[key] <= int(failures)
        if not failing:
            self.reply(200)
        elif "hang_up" in query:
            self.close_connection = True
        elif "date" in query:
            when = formatdate(math.ceil(time.time()) + float(query["date"]), usegmt=True)
            self.reply(int(query.get("status", 503)), headers={"Retry-After": when})
        else:
            headers = {"Retry-After": query["retry_after"]} if "retry_after" in query else {}
            self.reply(int(query.get("status", 503)), headers=headers)

    def on_count(self, query: dict[str, str], key: str) -> None:
        self.reply(200, asked[key])

    def on_connections(self, query: dict[str, str]) -> None:
        self.reply(200, asked["connections"])

    def on_open(self, query: dict[str, str]) -> None:
        self.reply(200, asked["open"])

    def on_slow(self, query: dict[str, str], seconds: str) -> None:
        time.sleep(float(seconds))
        self.reply(200)

    def on_hold(self, query: dict[str, str], key: str) -> None:
        with lock:
            held = holds.setdefault(key, threading.Event())
        held.wait(20)
        self.reply(200)

    def on_free(self, query: dict[str, str], key: str) -> None:
        with lock:
            holds.setdefault(key, threading.Event()).set()
        self.reply(200)

    def on_stream(self, query: dict[str, str], chunks: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(int(chunks) * CHUNK))
        self.end_headers()
        for _ in range(int(chunks)):
            self.wfile.write(b"x" * CHUNK)

    def on_drip(self, query: dict[str, str]) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)

    def on_cookie(self, query: dict[str, str]) -> None:
        self.reply(200, headers={"Set-Cookie": "session=cookie-of-the-service; Path=/"})

    def on_redirect(self, query: dict[str, str]) -> None:
        self.reply(302, headers={"Location": query["to"]})

    def reply(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to report."""


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
