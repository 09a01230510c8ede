"""A service that speaks the protocol of chat completions, in a process of its own; prints its port.

The path begins with a key of the caller and how the service behaves; ``/v1/chat/completions`` or ``/v1/models`` follow:

/ok  /status/<n>  /flaky/<failures>/<status>[/<retry-after>]  /slow/<seconds>  /redirect
/stall/<seconds> (a stream that stops in the middle)  /murmur/<seconds> (it says there that it is not dead)
/cut (its connection ends)  /unended (it ends, and not well)
/garbled (no JSON)  /broken (an error in a stream)  /html  /choiceless  /uncounted (no usage)  /listless (no models)
/used_up (a quota)  /cookie (sets one)
A GET of /<key>/seen gives what was asked under that key, a list of {headers, body}; of /<key>/most how many at once.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

seen: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
inside: Counter[str] = Counter()
most: Counter[str] = Counter()
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # type: ignore[assignment]  # else a kept connection waits 40 ms for each answer

    def answer(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.body: dict[str, Any] = json.loads(text) if text else {}
        self.key, *behaviour = self.path.strip("/").partition("/v1/")[0].split("/")
        if behaviour == ["seen"]:
            return self.reply(200, seen[self.key])
        if behaviour == ["most"]:
            return self.reply(200, most[self.key])
        headers = {name.lower(): value for name, value in self.headers.items()}
        with lock:
            seen[self.key].append({"headers": headers, "body": self.body})
            inside[self.key] += 1
            most[self.key] = max(most[self.key], inside[self.key])
        try:
            self.behave(*behaviour)
        finally:
            with lock:
                inside[self.key] -= 1

    do_GET = do_POST = answer

    def behave(self, verb: str, *rest: str) -> None:
        match verb, rest:
            case "status", [status]:
                # The worst service: it says what it got.
                self.fail(int(status), f"no: {self.headers.get('Authorization')} {self.headers.get('X-Api-Key')}")
            case "flaky", [failures, status, *pause]:
                if len(seen[self.key]) <= int(failures):
                    self.fail(int(status), "later", {"Retry-After": pause[0]} if pause else {})
                else:
                    self.complete()
            case "used_up", []:
                self.fail(429, "your quota is used up", code="insufficient_quota")
            case "slow", [seconds]:
                time.sleep(float(seconds))
                self.complete()
            case "redirect", []:
                self.reply(307, headers={"Location": f"/{self.key}/ok/v1/chat/completions"})
            case "cookie", []:
                self.complete(headers={"Set-Cookie": "session=cookie-of-the-service; Path=/"})
            case "html", []:
                self.reply(200, "<html>", kind="text/html")
            case "choiceless", []:
                self.reply(200, {"model": "m", "choices": None})
            case "listless", [] if self.command == "GET":
                self.fail(404, "no such page")
            case _:
                self.complete(verb, *rest)

    def complete(self, verb: str = "ok", *rest: str, headers: dict[str, str] | None = None) -> None:
        if self.command == "GET":
            return self.reply(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})
        prompt = self.body["messages"][-1]["content"]
        words = f"echo: {prompt}".split(" ")
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(words), "total_tokens": 0}
        head = {"id": "1", "created": 1, "model": self.body["model"], "object": "chat.completion"}
        if self.body.get("stream"):
            return self.stream(head, words, usage if "stream_options" in self.body else None, verb, *rest)
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        counted = {} if verb == "uncounted" else {"usage": usage}
        return self.reply(200, {**head, "choices": [choice], **counted}, headers)

    def stream(self, head: dict[str, Any], words: list[str], usage: object, verb: str, *rest: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head["object"] = "chat.completion.chunk"
        for number, word in enumerate(words):
            delta = {"content": word if number == 0 else f" {word}"}
            self.send({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            if number == 0 and verb == "stall":
                time.sleep(float(rest[0]))
            elif number == 0 and verb == "murmur":
                end = time.monotonic() + float(rest[0])
                while time.monotonic() < end:
                    self.chunk(b": not dead\n\n")
                    time.sleep(0.05)
            elif number == 0 and verb == "cut":
                self.close_connection = True
                return
            elif number == 0 and verb == "garbled":
                self.chunk(b"data: {no JSON\n\n")
            elif number == 0 and verb == "broken":
                self.send({"error": {"message": f"worn out: {self.headers.get('Authorization')}"}})
        if verb != "unended":
            self.send({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            if usage is not None and verb != "uncounted":
                self.send({**head, "choices": [], "usage": usage})
            self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def send(self, data: object) -> None:
        self.chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    def chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def fail(self, status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None) -> None:
        self.reply(status, {"error": {"message": message, "type": "test", "code": code}}, headers)

    def reply(
        self,
        status: int,
        body: object = None,
        headers: dict[str, str] | None = None,
        kind: str = "application/json",
    ) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
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
