"""A small HTTP service with scripted paths, run in a process of its own; prints its port.

/ok  /status/<n>  /flaky/<key>/<failures>?status=503&retry_after=1  /slow/<seconds>  /redirect?to=<url>  /echo
/count/<key> (how often was /flaky/<key> asked)  /connections (how many were accepted)
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

asked: Counter[str] = Counter()
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # type: ignore[assignment]  # else a kept connection waits 40 ms for each answer

    def setup(self) -> None:
        super().setup()
        with lock:
            asked["connections"] += 1

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        verb, *rest = url.path.strip("/").split("/")
        match verb, rest:
            case "status", [status]:
                self.reply(int(status))
            case "flaky", [key, failures]:
                with lock:
                    asked[key] += 1
                    failing = asked[key] <= int(failures)
                headers = {"Retry-After": query["retry_after"]} if failing and "retry_after" in query else {}
                self.reply(int(query.get("status", 503)) if failing else 200, headers=headers)
            case "count", [key]:
                self.reply(200, asked[key])
            case "connections", []:
                self.reply(200, asked["connections"])
            case "slow", [seconds]:
                time.sleep(float(seconds))
                self.reply(200)
            case "redirect", []:
                self.reply(302, headers={"Location": query["to"]})
            case _:
                self.reply(200, {"path": url.path, "headers": {k.lower(): v for k, v in self.headers.items()}})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

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
