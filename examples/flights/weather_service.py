"""A small weather service over weather.csv, in a process of its own; it answers ``/weather/<origin>/<hour>``."""

from __future__ import annotations

import asyncio
import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PORT = 8571


@contextmanager
def serving(file: Path) -> Iterator[str]:
    """Start the service on a free port, yield its address, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.flights.weather_service", str(file), "0"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the demo, whose last flights still ask for their weather
    )
    with process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"the weather service did not start: exit code {process.wait()}")
        try:
            yield address
        finally:
            assert process.stdin is not None
            process.stdin.close()


class Conversation(asyncio.Protocol):
    """One connection, which stays open from request to request."""

    def __init__(self, answers: Mapping[str, bytes]) -> None:
        self._answers = answers
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._heard = (self._heard + data).split(b"\r\n\r\n")
        for request in requests:
            path = request.split(b" ", 2)[1].decode("ascii", "replace")
            # One write: a second small packet would wait for the client's acknowledgement, 40 ms (Nagle).
            self._transport.write(self._answers.get(path, NOT_FOUND))


async def serve(file: Path, port: int) -> None:
    """Answer until standard input ends, as it does when the process that started this one is gone."""
    answers = read_answers(file)
    server = await asyncio.get_running_loop().create_server(lambda: Conversation(answers), "127.0.0.1", port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


def read_answers(file: Path) -> dict[str, bytes]:
    """Return the answer to each path."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {
        f"/weather/{row['origin']}/{row['time_hour']}": answer("200 OK", {name: measured(row[name]) for name in row})
        for row in rows
    }


def measured(text: str) -> float | str | None:
    if text == "NA":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def answer(status: str, body: object) -> bytes:
    text = json.dumps(body)
    return (f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}").encode(
        "ascii"
    )


NOT_FOUND = answer("404 Not Found", {"error": "nobody measured the weather there and then"})


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else PORT))
