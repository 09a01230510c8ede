"""Servers that one test may stop, kill, restart and freeze: started from installed binaries, on a port of their own.

The shared servers of :mod:`tests.services` are other tests', too; nothing here touches them.
"""

from __future__ import annotations

import atexit
import glob
import os
import pwd
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tests.services import absent

START = 30.0  # seconds in which a server has to answer, on a machine where several suites run
STOP = 10.0
PORTS = range(20000, 32000)  # below those that systems give to clients: nobody takes one while its server is down


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of server is made and run; words in braces are filled in."""

    url: str
    users: tuple[str, ...]  # the first that there is runs it: most servers refuse to be root
    binaries: tuple[str, ...]
    prepare: tuple[str, ...]  # fills the folder {data} once
    run: tuple[str, ...]
    stop: signal.Signals
    greeting: bytes  # what is sent
    answer: Callable[[bytes], bool]


KINDS = {
    "postgresql": Kind(
        url="postgresql://postgres@127.0.0.1:{port}/postgres",
        users=("postgres", "nobody"),
        binaries=("initdb", "postgres"),
        prepare=("{initdb}", "-D", "{data}", "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"),
        run=(
            *("{postgres}", "-D", "{data}", "-p", "{port}", "-c", "listen_addresses=127.0.0.1"),
            *("-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "shared_buffers=16MB"),
        ),
        stop=signal.SIGINT,  # SIGTERM would wait for its clients
        greeting=struct.pack("!ii", 41, 196608) + b"user\0postgres\0database\0postgres\0\0",
        answer=lambda said: said[:1] == b"R",
    ),
    "mariadb": Kind(
        url="mariadb://root@127.0.0.1:{port}/test",
        users=("mysql", "nobody"),
        binaries=("mariadb-install-db", "mariadbd"),
        prepare=(
            *("{mariadb-install-db}", "--no-defaults", "--datadir={data}", "--innodb-log-file-size=4M"),
            "--auth-root-authentication-method=normal",
            # Each server removes what it takes for leftovers from the folder of temporary tables.
            "--tmpdir={folder}",
        ),
        run=(
            *("{mariadbd}", "--no-defaults", "--datadir={data}", "--port={port}", "--bind-address=127.0.0.1"),
            *("--tmpdir={folder}", "--socket={folder}/socket", "--pid-file={folder}/pid", "--skip-name-resolve"),
            *("--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0"),
        ),
        stop=signal.SIGTERM,
        greeting=b"",
        answer=lambda said: said[4:5] == b"\x0a",  # the version of its protocol, where an error says 0xff
    ),
    "redis": Kind(
        url="redis://127.0.0.1:{port}/0",
        users=("redis", "nobody"),
        binaries=("redis-server",),
        prepare=(),
        run=("{redis-server}", "--port", "{port}", "--bind", "127.0.0.1", "--dir", "{data}", "--save", ""),
        stop=signal.SIGTERM,
        greeting=b"PING\r\n",
        answer=lambda said: said.startswith(b"+PONG"),
    ),
}


class PrivateServer:
    """One server in a temporary folder: ``with PrivateServer("postgresql") as server: server.url``.

    Its port stays the same over :meth:`restart`. Where its binaries are missing, the test is skipped, or fails
    where servers are required.
    """

    def __init__(self, kind: str) -> None:
        self.kind = KINDS[kind]
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._words = _words(kind)
        self._end = ExitStack()

    def __enter__(self) -> PrivateServer:
        template = _template(self.kind)
        folder = _folder(self.kind, self._end)
        self._words |= {"folder": folder, "data": f"{folder}/data"}
        _as_user(self.kind, ["cp", "-a", f"{template}/data", f"{folder}/data"])
        self._log = self._end.enter_context(open(f"{folder}/log", "wb"))
        self._end.callback(self.kill)
        with self._end:
            self.start()
            self._end = self._end.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.close()

    @property
    def url(self) -> str:
        """Where it answers, as a user of it who may do everything."""
        return self.kind.url.format(port=self.port)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        end = time.monotonic() + START
        while True:
            port = self.port or _free_port()
            words = [word.format_map(self._words | {"port": port}) for word in self.kind.run]
            self._process = _popen(self.kind, words, self._log)
            self._guard(self._process.pid)
            while self._process.poll() is None and time.monotonic() < end:
                if self._answers(port):
                    self.port = port
                    return
                time.sleep(0.01)
            if time.monotonic() > end:
                log = Path(self._log.name).read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{words[0]} does not answer on port {port} after {START:.0f} s:\n{log}")
            self.kill()
            time.sleep(0.05)  # its port may have been taken meanwhile, or its last life is not quite over

    def stop(self) -> None:
        """Stop it as an operator would: connections are closed."""
        if self._process is not None:
            self._process.send_signal(self.kind.stop)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP)
            self.kill()

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Let all of its processes die at once, as in a crash."""
        if self._process is not None:
            dying = self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
            self._dismiss()
            while any(_is_alive(pid) for pid in dying):
                time.sleep(0.002)

    def freeze(self) -> None:
        """Let it say nothing more, with all its connections open: a black hole."""
        assert self._process is not None, "it does not run"
        family = [self._process.pid, *self._signal(signal.SIGSTOP)]
        while not all(_is_stopped(pid) for pid in family):  # its threads may say something until the signal arrives
            time.sleep(0.002)

    def thaw(self) -> None:
        """Let it go on where it was frozen."""
        self._signal(signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it for as long as the block takes."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _guard(self, pid: int) -> None:
        """Have the server ended with this process, however that ends: its death closes the pipe."""
        self._dismiss()
        script = 'read -r _; kill -STOP "$0"; pkill -KILL -P "$0"; kill -KILL "$0"; rm -rf "$@"'
        words = ["sh", "-c", script, str(pid), self._words["folder"], _template(self.kind)]
        self._guardian = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)

    def _dismiss(self) -> None:
        if self._guardian is not None:
            self._guardian.kill()
            self._guardian.communicate()
            self._guardian = None

    def _signal(self, number: signal.Signals) -> list[int]:
        """Signal the whole family: no process group would do, since PostgreSQL gives each of its children one."""
        assert self._process is not None, "it does not run"
        told: list[int] = []
        family = [self._process.pid]
        while new := [pid for pid in family if pid not in told]:
            for pid in new:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            told += new
            family = _family(self._process.pid)
        return told[1:]

    def _answers(self, port: int) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(self.kind.greeting)
            return self.kind.answer(connection.recv(64))
        return False


def _words(kind: str) -> dict[str, str]:
    """Find the binaries; skip or fail the test without them."""
    if not sys.platform.startswith("linux"):
        absent("private servers need /proc")
    path = os.pathsep.join([*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), os.environ["PATH"]])
    path += os.pathsep + "/usr/sbin"
    found = {binary: shutil.which(binary, path=path) for binary in KINDS[kind].binaries}
    missing = [binary for binary, where in found.items() if where is None]
    if missing:
        absent(f"no private {kind} server: {', '.join(missing)} not installed")
    return {binary: where for binary, where in found.items() if where is not None}


@cache
def _template(kind: Kind) -> str:
    """Prepare one folder for all servers of a kind: that costs seconds, a copy of it does not."""
    end = ExitStack()
    atexit.register(end.close)
    folder = _folder(kind, end)
    words = _words(next(name for name, known in KINDS.items() if known is kind)) | {
        "folder": folder,
        "data": f"{folder}/data",
    }
    _as_user(kind, ["mkdir", "-m", "700", f"{folder}/data"])
    if kind.prepare:
        _as_user(kind, [word.format_map(words) for word in kind.prepare])
    return folder


def _folder(kind: Kind, end: ExitStack) -> str:
    folder = tempfile.mkdtemp(prefix="wirestate-server-")
    end.callback(shutil.rmtree, folder, ignore_errors=True)
    if os.geteuid() == 0:
        user = _user(kind)
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


def _user(kind: Kind) -> pwd.struct_passwd:
    for name in kind.users:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError(f"this system has no user {' or '.join(kind.users)}")


def _popen(kind: Kind, words: list[str], log: IO[bytes] | int) -> subprocess.Popen[bytes]:
    who: dict[str, Any] = {}  # Any: keywords of Popen
    if os.geteuid() == 0:
        user = _user(kind)
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    # A session of its own: Ctrl-C is for the tests, which then stop their servers.
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, **who
    )


def _as_user(kind: Kind, words: list[str]) -> None:
    with tempfile.TemporaryFile() as log:
        code = _popen(kind, words, log.fileno()).wait()
        log.seek(0)
        if code:
            raise RuntimeError(f"{words} failed with {code}: {log.read().decode(errors='replace')[-2000:]}")


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)  # the seed of the tests would choose the same for each suite
        with suppress(OSError), socket.socket() as candidate:
            candidate.bind(("127.0.0.1", port))
            return port


def _family(pid: int) -> list[int]:
    """Return *pid* and all that descends from it."""
    children: dict[int, list[int]] = {}
    for child in map(int, filter(str.isdigit, os.listdir("/proc"))):
        children.setdefault(_parent(child), []).append(child)
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def _stat(pid: int, thread: int | None = None) -> list[str]:
    """Return state, parent, …, as the system knows them; nothing where the process or thread is gone."""
    with suppress(OSError):
        place = f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat"
        return Path(place).read_text().rpartition(")")[2].split()
    return []


def _parent(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[1]) if stat else -1


def _is_stopped(pid: int) -> bool:
    """Tell whether no thread of a process does anything."""
    with suppress(OSError):
        threads = map(int, os.listdir(f"/proc/{pid}/task"))
        return all(_stat(pid, thread)[:1] in ([], ["T"], ["Z"]) for thread in threads)
    return True


def _is_alive(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"])
