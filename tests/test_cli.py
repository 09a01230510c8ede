"""The command, run as a person runs it: what it prints, what it leaves behind, how it ends."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import wirestate

ROOT = Path(__file__).parents[1]
PACKAGE = Path(wirestate.__file__).parents[1]
PATIENCE = 30.0  # seconds; a test that needs them fails anyway

MACHINE = """\
name: shop
states:
  - name: received
    transform: read_order
    arcs:
      - {target: stored, condition: data.amount > 0}
      - {target: dropped}
  - name: stored
    transform: store
  - name: dropped
"""
FUNCTIONS = """\
from dependency_injector.wiring import Provide, inject
from wirestate import Reject

def read_order(order):
    if not order["id"]:
        raise Reject("is missing", field="id")
    return {"id": int(order["id"]), "amount": float(order["amount"])}

@inject
def store(order, db=Provide["database"]):
    db.query("INSERT INTO orders VALUES (:id, :amount)", **order)
"""
CONTAINERS = """\
from dependency_injector import providers
from pydantic_settings import BaseSettings, SettingsConfigDict
from wirestate import DatabaseResourceAdapter, HTTPResourceAdapter, ResourceContainer, lifetimes

class ShopSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SHOP_")
    database_url: str
    port: int = 80

class Shop(ResourceContainer):
    settings = providers.Singleton(ShopSettings)
    database = lifetimes.PerState(DatabaseResourceAdapter, url=settings.provided.database_url)

class Mixed(ResourceContainer):
    database = lifetimes.PerState(DatabaseResourceAdapter, url="memory")
    report = lifetimes.Singleton(dict, database)

class Misspelt(ResourceContainer):
    databse = lifetimes.PerState(DatabaseResourceAdapter, url="memory")

class Other(ResourceContainer):
    files = lifetimes.PerState(list)

class Spare(ResourceContainer):
    database = lifetimes.PerState(DatabaseResourceAdapter, url="memory")
    service = lifetimes.Singleton(HTTPResourceAdapter, base_url="http://127.0.0.1:9")

MACHINE = "shop.yaml"

def made():
    raise RuntimeError("no container today")
"""
ORDERS = "id,amount\n1,5.5\n2,0\n,7\n5,2\n"
SLOW = """\
import asyncio, os, time
from pathlib import Path

def begin(record):
    Path("began").touch()
    time.sleep(float(os.environ.get("NAP", "0.005")))
    return record

async def abegin(record):
    Path("began").touch()
    await asyncio.sleep(float(os.environ.get("NAP", "0.005")))
    return record
"""

# A process that has imported everything, and forks for each command: a start from nothing takes half a second.
WARM = """\
import json, os, sys
from wirestate.cli import main
import wirestate.cli.app, sqlalchemy.orm, httpx, ruamel.yaml

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        for number, name in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["wirestate", *order["arguments"]]
        sys.path[0] = ""
        try:
            main()
        finally:
            sys.stdout.flush()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


# Tests may be run where Ctrl-C is ignored, and a child inherits that.
HEARING = """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from wirestate.cli import main
main()
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    arguments = [sys.executable, "-c", WARM]
    with subprocess.Popen(
        arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


class Shell:
    """Runs the command in a folder of its own, without the settings of the one who runs the tests."""

    def __init__(self, folder: Path, warm: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.warm = warm
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(("WIRESTATE_", "SHOP_")) and name not in ("COLUMNS", "FORCE_COLOR")
        } | {"PYTHONPATH": str(PACKAGE), "NO_COLOR": "1", "PYTHONWARNINGS": "default"}

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name.replace("_", ".")).write_text(text, "utf-8")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a fork of the warm process, to its end."""
        assert self.warm.stdin is not None
        assert self.warm.stdout is not None
        files = {"stdout": self.folder / ".stdout", "stderr": self.folder / ".stderr"}
        order = {"folder": self.folder, "environment": self.environment | environment, "arguments": arguments, **files}
        self.warm.stdin.write(json.dumps(order, default=str) + "\n")
        self.warm.stdin.flush()
        code = int(self.warm.stdout.readline())
        told = {name: file.read_text("utf-8") for name, file in files.items()}
        return subprocess.CompletedProcess(arguments, code, **told)

    def run_cold(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command as a shell does."""
        return subprocess.run(
            [sys.executable, "-m", "wirestate", *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def json(self, *arguments: str, **environment: str) -> dict[str, Any]:
        return dict(json.loads(self.run(*arguments, "--json", **environment).stdout))

    @contextmanager
    def start(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Start the command, wait until its first function was called, and see to its end."""
        process = subprocess.Popen(
            [sys.executable, "-c", HEARING, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: process.poll() is not None or (self.folder / "began").exists())
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            process.kill()
            process.communicate()

    def on_terminal(self, columns: int, *arguments: str, **environment: str) -> str:
        """Run the command on a terminal; return what it showed, without colours and movements."""
        master, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "wirestate", *arguments],
            cwd=self.folder,
            env=self.environment | environment | {"TERM": "xterm", "COLUMNS": str(columns)},
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        with process:
            shown = "".join(_read(master))
        os.close(master)
        assert process.returncode == 0, shown
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "")

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


def _read(master: int) -> Iterator[str]:
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux ends a terminal whose other side is closed in this way
            return
        if not piece:
            return
        yield piece.decode("utf-8", "replace")


def without_parts(errors: str) -> str:
    """Return what stands on the error stream behind the names that files have until they are whole."""
    return re.sub(r"(?m)\A(writing .+ as .+\.[0-9a-f]{8}\.part until it is whole\n)+", "", errors)


def first_signal_heard(process: subprocess.Popen[str]) -> None:
    """Read the error stream until the command says that it is stopping."""
    assert process.stderr is not None
    assert any(line.startswith("stopping: ") for line in process.stderr)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


@pytest.fixture
def shell(tmp_path: Path, warm: subprocess.Popen[str]) -> Shell:
    shell = Shell(tmp_path, warm)
    shell.write(shop_yaml=MACHINE, functions_py=FUNCTIONS, containers_py=CONTAINERS, orders_csv=ORDERS, slow_py=SLOW)
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("CREATE TABLE orders (id INTEGER, amount REAL)")
    database.close()
    return shell


SHOP = ("shop.yaml", "--functions", "functions", "--container", "containers:Shop")
DATABASE = {"SHOP_DATABASE_URL": "sqlite:///shop.db"}
ORDER_FILES = ("--input", "orders.csv", "--output", "done.csv", "--rejects", "rejects.jsonl")


# --- run -----------------------------------------------------------------------------------


def test_run_writes_what_succeeded_and_what_did_not_and_tells_the_counts(shell: Shell) -> None:
    done = shell.run_cold("run", *SHOP, *ORDER_FILES, **DATABASE)
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in shell.rows("done.csv")] == ["1", "2", "5"]
    reject = json.loads((shell.folder / "rejects.jsonl").read_text())
    assert (reject["line"], reject["reason"]) == (4, "id: is missing")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:3] == ["shop", "4", "records"]
    assert ["done", "3", "75.0%", "done.csv"] in lines
    assert ["rejected", "1", "25.0%", "rejects.jsonl"] in lines
    assert ["failed", "0", "0.0%"] in lines
    assert ["stored", "2"] in lines
    assert "line 4 (state 'received'): id: is missing" in done.stdout
    assert without_parts(done.stderr) == ""


def test_a_failed_record_makes_the_exit_code_1(shell: Shell) -> None:
    shell.write(orders_csv="id,amount\n1,5\n2,much\n")
    done = shell.run("run", *SHOP, *ORDER_FILES, **DATABASE)
    assert done.returncode == 1
    assert "ValueError: could not convert string to float: 'much'" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_report_of_a_run_for_machines(shell: Shell) -> None:
    shell.write(functions_py="print('imported')\n" + FUNCTIONS.replace("    if not", "    print(order)\n    if not"))
    report = shell.json("run", *SHOP, *ORDER_FILES, "--limit", "2", "--workers", "2", **DATABASE)
    summary = report.pop("summary")
    assert report == {
        "report": "run",
        "version": 1,
        "ok": True,
        "exit_code": 0,
        "machine": "shop",
        "input": "orders.csv",
        "output": "done.csv",
        "rejects": "rejects.jsonl",
        "error": None,
    }
    assert summary.pop("duration") > 0
    assert summary.pop("rate") > 0
    assert summary == {
        "total_processed": 2,
        "successful": 2,
        "failed": 0,
        "rejected": 0,
        "skipped": 0,
        "emitted": 2,
        "by_state": {"stored": 1, "dropped": 1},
        "stopped": False,
        "run_id": None,
        "errors": [],
        "unsuccessful_by_state": {},
        "parts": {},
    }


def test_without_a_container_the_environment_and_the_profile_declare_the_resources(shell: Shell) -> None:
    shell.write(prod_toml='[resources.database]\nurl = "sqlite:///shop.db"\n')
    run = ("run", "shop.yaml", "--functions", "functions", *ORDER_FILES)
    assert shell.run(*run, "--profile", "prod.toml").returncode == 0
    assert shell.run(*run, WIRESTATE_PROFILE="prod.toml").returncode == 0
    assert shell.run(*run, WIRESTATE_RESOURCES__DATABASE__URL="sqlite:///shop.db").returncode == 0


def test_a_container_that_reads_settings_gets_the_profile(shell: Shell) -> None:
    shell.write(
        prod_toml='[resources.database]\nurl = "sqlite:///shop.db"\n',
        containers_py="from wirestate import container_from_settings\n",
    )
    run = ("run", "shop.yaml", "--functions", "functions", *ORDER_FILES)
    declared = ("--container", "containers:container_from_settings")
    assert shell.run(*run, *declared, "--profile", "prod.toml").returncode == 0
    missing = shell.run(*run, *declared, "--profile", "prd.toml")
    assert missing.returncode == 2
    assert missing.stderr == "--profile: prd.toml does not exist; profiles beside it: prod.toml\n"


def test_modules_beside_the_machine_are_found(shell: Shell) -> None:
    elsewhere = shell.folder / "elsewhere"
    elsewhere.mkdir()
    away = Shell(elsewhere, shell.warm)
    away.write(orders_csv=ORDERS)
    done = away.run("check", "../shop.yaml", *SHOP[1:], SHOP_DATABASE_URL="memory")
    assert done.returncode == 0, done.stderr


def test_an_asynchronous_machine_runs(shell: Shell) -> None:
    slow_machine(shell, "abegin")
    done = shell.run("run", "slow.yaml", "--functions", "slow", "-i", "many.csv", "-o", "done.csv", "--limit", "9")
    assert done.returncode == 0, done.stderr
    assert len(shell.rows("done.csv")) == 9


def test_the_closing_table_tells_an_error_once_and_where_records_stayed(shell: Shell) -> None:
    shell.write(
        functions_py=FUNCTIONS.replace("INSERT INTO orders", "INSERT INTO ordres"),
        orders_csv="id,amount\n1,5\n2,0\n3,5\n4,5\n",
    )
    done = shell.run("run", *SHOP, *ORDER_FILES, **DATABASE)
    assert done.returncode == 1
    assert re.search(r"^last state\n  stored +3 +3 of them not done\n  dropped +1$", done.stdout, re.MULTILINE)
    told = r"no such table: ordres; of resource 'database' at sqlite:///shop\.db"
    assert re.search(rf"^  line 2 \(state 'stored'\): .*{told}  \(3 times\)$", done.stdout, re.MULTILINE)
    assert done.stdout.count("no such table") == 1
    assert "SQL:" not in done.stdout
    assert "Background" not in done.stdout


def test_the_format_can_be_said_where_the_suffix_says_nothing(shell: Shell) -> None:
    (shell.folder / "orders.csv").rename(shell.folder / "orders.data")
    done = shell.run("run", *SHOP, "--input", "orders.data", "--format", "csv", **DATABASE)
    assert done.returncode == 0
    assert done.stdout.startswith("shop  4 records")


@pytest.mark.parametrize("options", [("-i", "{}"), ("-i", "orders.csv", "-o", "{}"), ("-i", "orders.csv", "-r", "{}")])
def test_the_password_of_a_url_is_printed_nowhere(shell: Shell, options: tuple[str, ...]) -> None:
    url = "ftp://me:hidden@127.0.0.1:1/x.csv"
    for extra in ((), ("--json",), ("--trace",)):
        done = shell.run("run", *SHOP, *(option.format(url) for option in options), *extra, **DATABASE)
        assert done.returncode == 2
        assert "ftp://127.0.0.1:1/x.csv" in done.stdout + done.stderr
        assert "hidden" not in done.stdout + done.stderr


def test_a_source_that_breaks_off_leaves_what_was_done(shell: Shell) -> None:
    shell.write(orders_json='[{"id": 1, "amount": 2}, {"id": 2, "amount": 2}, oops')
    done = shell.run("run", *SHOP, "--input", "orders.json", "--output", "done.csv", **DATABASE)
    assert done.returncode == 1
    assert "orders.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(shell.rows("done.csv")) == 2
    assert ["done", "2"] in [line.split()[:2] for line in done.stdout.splitlines()]


def test_the_output_is_never_the_input(shell: Shell) -> None:
    for option in ("--output", "--rejects"):
        done = shell.run("run", *SHOP, "--input", "orders.csv", option, "./orders.csv", **DATABASE)
        assert done.returncode == 2
        assert done.stderr == f"{option}: ./orders.csv is the input too; name another file\n"
    assert (shell.folder / "orders.csv").read_text() == ORDERS


def test_what_a_record_holds_cannot_steer_the_terminal(shell: Shell) -> None:
    shell.write(orders_csv='id,amount\n1,"\x1b[31m\x07red"\n')
    done = shell.run("run", *SHOP, "--input", "orders.csv", **DATABASE)
    assert "\x1b" not in done.stdout
    assert "\x07" not in done.stdout


STEERING = r"""
name: "[red]shop\e[2J\n\nno faults"
states:
  "\e[31mreceived[/red]\u009b1m\nno faults": {arcs: ["[bold]end\n\e]0;title\a"]}
  "[bold]end\n\e]0;title\a": {transforms: [steer]}
"""


def test_no_name_and_no_error_can_steer_the_terminal_or_forge_a_line(shell: Shell) -> None:
    steer = "def steer(order):\n    raise ValueError('[red]\\x1b[2J\\r\\nno faults')\n"
    shell.write(functions_py=steer)
    file = shell.folder / "sh\nop\x1b[2J.yaml"
    file.write_text(STEERING)
    wrong = shell.folder / "wrong\nno faults\n.yaml"
    wrong.write_text(STEERING.replace("transforms", "transfroms"))
    functions = ("--functions", "functions")
    for arguments in (
        ("check", file.name, *functions),
        ("check", file.name, *functions, "--json"),
        ("check", wrong.name, *functions),
        ("run", file.name, *functions, "-i", "orders.csv", "-o", "done\x1b[2J\nno faults.csv"),
        ("run", wrong.name, *functions, "-i", "orders.csv"),
        ("run", file.name, *functions, "-i", "no\x1b[2J\nno faults.csv"),
        ("graph", file.name, "--format", "dot"),
        ("graph", file.name),
    ):
        done = shell.run(*arguments)
        for line in [*done.stdout.split("\n"), *done.stderr.split("\n")]:
            assert line.isprintable(), (arguments, line)
        forged = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() == "no faults"]
        assert len(forged) == (arguments == ("check", file.name, *functions))
        assert done.stdout or done.stderr


# --- faults --------------------------------------------------------------------------------

FAULTS = {
    "misspelt": (
        "containers:Misspelt",
        {},
        "UnknownResource [R001]: state 'stored' (shop.yaml:9:16, function functions.store) needs resource 'database', "
        "which is not declared.\n  Did you mean 'databse'?  Declared: databse (per state)\n",
    ),
    "missing": (
        "containers:Other",
        {},
        "UnknownResource [R001]: state 'stored' (shop.yaml:9:16, function functions.store) needs resource 'database', "
        "which is not declared.\n  Declared: files (per state)\n",
    ),
    "per-state in singleton": ("containers:Mixed", {}, "report ─> database"),
    "missing variable": (
        "containers:Shop",
        {"SHOP_DATABASE_ULR": "hidden-value"},
        "SHOP_DATABASE_URL is not set.\n  Looked in: environment.  Close name that is set: SHOP_DATABASE_ULR\n",
    ),
    "wrong variable": (
        "containers:Shop",
        {**DATABASE, "SHOP_PORT": "hidden-value"},
        "InvalidSetting [S003]: SHOP_PORT (environment): ",
    ),
    "missing driver": (
        "containers:Shop",
        {"SHOP_DATABASE_URL": "postgresql+pg8000://me:hidden-value@localhost/shop"},
        "'postgresql+pg8000://' needs the package 'pg8000', which is not installed",
    ),
}


@pytest.mark.parametrize(("container", "environment", "text"), FAULTS.values(), ids=FAULTS)
def test_a_build_fault_is_told_in_words_and_nothing_runs(
    shell: Shell, container: str, environment: dict[str, str], text: str
) -> None:
    if "report" in text:
        shell.write(functions_py=FUNCTIONS.replace('db=Provide["database"]', 'db=Provide["report"]'))
    arguments = ("shop.yaml", "--functions", "functions", "--container", container)
    done = shell.run("run", *arguments, *ORDER_FILES, **environment)
    assert done.returncode == 1
    assert text in done.stderr
    assert "1 fault, nothing was run\n" in done.stderr
    assert not (shell.folder / "done.csv").exists()
    for told in (done.stdout, done.stderr):
        assert "Traceback" not in told
        assert "hidden-value" not in told
    assert done.stdout == ""


def test_a_resource_of_another_container_is_told(shell: Shell) -> None:
    foreign = FUNCTIONS.replace('Provide["database"]', "Provide[Spare.database]")
    shell.write(functions_py=f"from containers import Spare\n{foreign}")
    done = shell.run("run", *SHOP, *ORDER_FILES, **DATABASE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ForeignProvider [R002]: state 'stored'" in done.stderr


def test_a_setting_of_the_environment_is_told_by_its_name(shell: Shell) -> None:
    run = ("run", "shop.yaml", "--functions", "functions", *ORDER_FILES)
    done = shell.run(*run, WIRESTATE_RESOURCES__DATABASE__KIND="database", WIRESTATE_RESOURCES__DATABASE__ULR="x")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "MissingSetting [S001]: resource 'database' needs a url; WIRESTATE_RESOURCES__DATABASE__URL is not set.\n"
        "  Looked in: environment, .env (not found).  "
        "Close name that is set: WIRESTATE_RESOURCES__DATABASE__ULR\n"
    ) in done.stderr


@pytest.mark.parametrize("variables", [{}, {"WIRESTATE_RESOURCES__DATABSE__URL": "memory"}])
def test_a_resource_that_no_variable_declares_is_told_with_its_variables(
    shell: Shell, variables: dict[str, str]
) -> None:
    for command in (("run", *ORDER_FILES), ("check",)):
        done = shell.run(command[0], "shop.yaml", "--functions", "functions", *command[1:], **variables)
        said = done.stdout + done.stderr
        near = "".join(f"  Close name that is set: {name}" for name in variables)
        assert done.returncode == 1
        assert "UnknownResource [R001]: state 'stored'" in said
        looked = "No variable WIRESTATE_RESOURCES__DATABASE__… is set.  Looked in: environment, .env (not found)."
        assert " ".join((looked + near).split()) in " ".join(said.split())


def test_faults_for_machines(shell: Shell) -> None:
    report = shell.json("run", *SHOP[:3], "--container", "containers:Misspelt", *ORDER_FILES)
    (fault,) = report.pop("faults")
    assert report == {
        "report": "run",
        "version": 1,
        "ok": False,
        "exit_code": 1,
        "error": "shop.yaml: 1 fault, nothing was run",
    }
    assert fault.pop("message").endswith("needs resource 'database', which is not declared.")
    assert fault == {
        "code": "R001",
        "kind": "UnknownResource",
        "help": ["Did you mean 'databse'?  Declared: databse (per state)"],
        "file": "shop.yaml",
        "line": 9,
        "column": 16,
    }


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--container", "containers:Shp"), "--container: module 'containers' has no 'Shp'; did you mean 'Shop'?"),
        (("--container", "containers"), "--container: 'containers': write it as package.module:Class"),
        (("--container", "containers:made"), "--container: making 'containers:made' raised RuntimeError: no container"),
        (("--container", "functions:read_order"), "--container: making 'functions:read_order' raised TypeError"),
        (("--container", "containers:ORDER"), "--container: module 'containers' has no 'ORDER'"),
        (("--functions", "functoins"), "--functions: no module 'functoins' in the working directory"),
        (("--functions", "broken"), "--functions: importing 'broken' raised ZeroDivisionError: division by zero"),
        (("--container", "containers:MACHINE"), "--container: 'containers:MACHINE' is no container, but a str"),
        (("--functions", "needy"), "--functions: 'needy' imports 'nowhere_at_all', which is not there"),
    ],
)
def test_an_option_that_names_nothing_is_told_and_ends_with_2(
    shell: Shell, options: tuple[str, str], text: str
) -> None:
    shell.write(broken_py="1 / 0\n", needy_py="import nowhere_at_all\n")
    done = shell.run("check", "shop.yaml", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(text)
    assert done.stderr.count("\n") == 1


def test_trace_shows_where_an_error_comes_from_without_its_values(shell: Shell) -> None:
    done = shell.run("check", *SHOP, "--trace", SHOP_DATABASE_URL="memory", SHOP_PORT="hidden-value")
    assert done.returncode == 1
    assert "hidden-value" not in done.stdout + done.stderr
    shell.write(broken_py="def fail():\n    return 1 / 0\n\nfail()\n")
    done = shell.run("check", "shop.yaml", "--functions", "broken", "--trace")
    assert "ZeroDivisionError, raised at:" in done.stderr
    assert 'broken.py", line 2, in fail' in done.stderr


# --- check ---------------------------------------------------------------------------------


def test_check_shows_each_resource_who_set_it_and_who_uses_it(shell: Shell) -> None:
    done = shell.run("check", *SHOP, **DATABASE)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert lines[0] == "shop  3 states, received → stored, dropped"
    assert re.split(r"  +", lines[2].strip()) == [
        "resource", "kind", "lifetime", "set by", "driver", "health", "used by"
    ]  # fmt: skip
    row = re.split(r"  +", lines[3].strip())
    assert row[:5] == ["database", "database", "per state", "SHOP_DATABASE_URL (environment)", "sqlite3"]
    assert re.fullmatch(r"healthy \d+\.\d ms", row[5])
    assert row[6] == "stored"
    assert lines[-1] == "no faults"
    assert done.stderr == ""


def test_check_for_machines_tells_notes_which_strict_makes_faults(shell: Shell) -> None:
    spare = (*SHOP[:3], "--container", "containers:Spare", "--no-health")
    report = shell.json("check", *spare)
    assert (report["report"], report["version"], report["ok"], report["faults"]) == ("check", 1, True, [])
    assert (report["machine"], report["start"], report["ends"]) == ("shop", "received", ["stored", "dropped"])
    (note,) = report["notes"]
    assert (note["code"], note["message"]) == ("M102", "no state uses resource 'service'")
    database, service = report["resources"]
    assert database == {
        "name": "database",
        "kind": "database",
        "lifetime": "per state",
        "set_by": "containers:Spare",
        "driver": "sqlite3",
        "health": None,
        "health_ms": None,
        "trouble": None,
        "used_by": ["stored"],
    }
    assert (service["kind"], service["used_by"]) == ("http", [])
    strict = shell.run("check", *spare, "--strict")
    assert strict.returncode == 1
    assert "UnusedResource [M102]: no state uses resource 'service'" in strict.stdout


def test_check_shows_a_resource_of_the_configuration_with_its_place(shell: Shell) -> None:
    shell.write(shop_yaml=f"resources:\n  database: {{backend: memory}}\n{MACHINE}")
    (resource,) = shell.json("check", "shop.yaml", "--functions", "functions")["resources"]
    assert (resource["kind"], resource["set_by"], resource["used_by"]) == ("database", "shop.yaml:2:3", ["stored"])


def test_check_probes_asynchronous_resources_and_names_functions(shell: Shell) -> None:
    pytest.importorskip("aiosqlite")
    shell.write(
        containers_py="from wirestate import DatabaseResourceAdapter, ResourceContainer, lifetimes\n"
        "def opened(database):\n    yield database\n"
        "class Shop(ResourceContainer):\n"
        "    source = lifetimes.PerState(DatabaseResourceAdapter, url='sqlite+aiosqlite:///shop.db')\n"
        "    database = lifetimes.PerState(opened, source)\n"
    )
    done = shell.run("check", *SHOP, "--json")
    database, source = sorted(json.loads(done.stdout)["resources"], key=lambda resource: resource["name"])
    assert (database["kind"], database["health"], database["used_by"]) == ("opened", None, ["stored"])
    assert (source["kind"], source["health"], source["used_by"]) == ("database", "healthy", ["stored"])
    assert done.stderr == ""


def test_an_unhealthy_resource_fails_the_check_and_says_why(shell: Shell) -> None:
    unhealthy = ("check", *SHOP[:3], "--container", "containers:Spare")
    done = shell.run(*unhealthy)
    assert done.returncode == 1
    assert re.search("^service: ConnectError: .*refused$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "service is unhealthy, 1 note"
    troubles = {one["name"]: one["trouble"] for one in shell.json(*unhealthy)["resources"]}
    assert troubles["database"] is None
    assert troubles["service"].startswith("ConnectError: ")


TELLING = """\
import pathlib
from dependency_injector import providers
from pydantic_settings import BaseSettings
from wirestate import BaseResourceProvider, DatabaseResourceAdapter, ResourceContainer, ResourceHealth, lifetimes

def ran(what):
    with pathlib.Path("ran.txt").open("a") as file:
        file.write(what + "\\n")

class Provider(BaseResourceProvider):
    def __init__(self, name="provider", url="none"):
        super().__init__(name)
        ran("constructor")
    def acquire(self, **options):
        return 1
    def release(self, resource):
        pass
    def health_check(self):
        ran("health check")
        return ResourceHealth.HEALTHY

class Held(Provider):
    def __init__(self):
        BaseResourceProvider.__init__(self, "held")

class Database(DatabaseResourceAdapter):
    def __init__(self, **settings):
        ran("adapter")
        super().__init__(**settings)

class Step:
    def __new__(cls, *args, **kwargs):
        ran("__new__")
        return super().__new__(cls)
    def __init__(self, by=1):
        ran("step")
    def __del__(self):
        ran("__del__")
    def transform(self, record, database, *, shop=None):
        return record

class Made:
    def __init__(self):
        ran("made")
        self.transform = lambda record: record

class OwnSettings(BaseSettings):
    database_url: str = "memory"

def url():
    ran("argument")
    return "memory"

def chosen():
    ran("chosen")
    return list

class Own(ResourceContainer):
    settings = providers.Singleton(OwnSettings)
    database = lifetimes.PerState(DatabaseResourceAdapter, url=settings.provided.database_url)
    provider = lifetimes.PerState(Provider, url=settings.provided.database_url)
    held = lifetimes.PerState(Held())
    derived = lifetimes.PerState(Database, url="memory")
    argument = lifetimes.PerState(DatabaseResourceAdapter, url=providers.Callable(url))
    factory = lifetimes.PerState(providers.Callable(chosen))
    plain = lifetimes.Singleton(ran, "plain")

class Wrong(ResourceContainer):
    database = lifetimes.PerState(Provider, ulr="memory")
"""
TOLD = """\
resources:
  mine: {class: "own:Provider", url: memory}
states:
  received: {transforms: [read_order, {name: "own:Made"}, store], resources: [mine], arcs: [dropped]}
  dropped:
"""


def test_what_only_looks_at_a_machine_runs_nothing_of_its_user(shell: Shell) -> None:
    shell.write(own_py=TELLING, told_yaml=TOLD)
    ran = shell.folder / "ran.txt"
    own = ("told.yaml", "--functions", "functions", "--container", "own:Own")
    report = shell.json("check", *own)
    assert report["faults"] == []
    health = {one["name"]: one["health"] for one in report["resources"]}
    assert {name for name, answer in health.items() if answer} == {"database"}
    assert shell.run("graph", *own).returncode == 0
    custom = {"WIRESTATE_RESOURCES__MINE__CLASS": "own:Provider", "WIRESTATE_RESOURCES__MINE__URL": "memory"}
    assert shell.run("resources", **custom).returncode == 0
    assert not ran.exists()

    health = {one["name"]: one["health"] for one in shell.json("check", *own, "--probe")["resources"]}
    assert health["mine"] == health["provider"] == health["held"] == health["derived"] == "healthy"
    assert {"constructor", "health check", "adapter", "argument", "chosen", "made"} <= set(ran.read_text().split("\n"))
    assert "plain" not in ran.read_text()  # it is made at its first use


def test_a_check_reads_the_signatures_of_what_it_does_not_make(shell: Shell) -> None:
    params = TOLD.replace('name: "own:Made"', 'name: "own:Made", params: {b: 2}')
    shell.write(own_py=TELLING, told_yaml=TOLD.replace("own:Made", "own:Step"), params_yaml=params)
    wrong = ("--functions", "functions", "--container", "own:Wrong")
    provider, step = shell.json("check", "told.yaml", *wrong)["faults"]
    assert (provider["code"], step["code"]) == ("R003", "I005")
    assert "Provider takes no 'ulr'; did you mean 'url'?" in provider["message"]
    assert step["help"] == ['Write database=Provide["database"].']
    _, made = shell.json("check", "params.yaml", *wrong)["faults"]
    assert (made["code"], "has no parameter 'b'" in made["message"]) == ("M035", True)
    assert not (shell.folder / "ran.txt").exists()


def test_a_property_of_the_settings_is_told_by_the_variable_behind_it(shell: Shell) -> None:
    check = ("check", "shop.yaml", "--container", "containers.flights:FlightsContainer", "--no-health")
    path = {"PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT)])}
    (shell.folder / "containers.py").unlink()
    told = {
        one["name"]: one["set_by"] for one in json.loads(shell.run_cold(*check, "--json", **path).stdout)["resources"]
    }
    assert told["database"] == "FLIGHTS_RESOURCES__DATABASE__URL (not set)"


def test_a_password_is_printed_nowhere(shell: Shell) -> None:
    url = {"SHOP_DATABASE_URL": "postgresql://me:hidden-value@127.0.0.1:1/shop"}
    for arguments in (("check", *SHOP), ("run", *SHOP, *ORDER_FILES)):
        done = shell.run(*arguments, "--trace", **url)
        assert done.returncode == 1
        assert "hidden-value" not in done.stdout + done.stderr
    assert "hidden-value" not in (shell.folder / "rejects.jsonl").read_text()


def test_check_tells_every_fault_of_the_machine_and_shows_the_resources(shell: Shell) -> None:
    shell.write(shop_yaml=MACHINE.replace("transform: store", "transfrom: store").replace("dropped}", "droped}"))
    done = shell.run("check", *SHOP, **DATABASE)
    assert done.returncode == 1
    assert "UnknownKey [M003]" in done.stdout
    assert "Did you mean 'transform'?" in done.stdout
    assert "UnknownState [M010]" in done.stdout
    assert "database  database  per state" in done.stdout
    assert re.search(r"^\d faults$", done.stdout.splitlines()[-1])


MISSING = {
    "machine": (("shp.yaml",), "MACHINE: shp.yaml does not exist; did you mean 'shop.yaml'?"),
    "profile": (("shop.yaml", "--profile", "prod.toml"), "--profile: prod.toml does not exist; profiles beside it: no"),
}
MISSING_OF_RUN = {
    "input": (("-i", "nope.csv"), "source 'nope.csv' cannot be opened: No such file or directory"),
    "suffix": (("-i", "shop.csvv"), "'shop.csvv': suffix '.csvv' names no known format; did you mean '.csv'? Or"),
    "format": (("-i", "orders.csv", "--format", "cvs"), "'orders.csv': format 'cvs' is not known; did you mean 'csv'?"),
    "output": (("-i", "orders.csv", "-o", "no/x.csv"), "sink 'no/x.csv' cannot be written: its folder 'no' does not"),
    "folder": (("-i", "."), "'.': suffix '' names no known format"),
}


@pytest.mark.parametrize(("arguments", "told"), MISSING.values(), ids=MISSING)
@pytest.mark.parametrize("command", ["check", "run", "graph"])
def test_a_file_that_is_not_there_is_wrong_usage(
    shell: Shell, command: str, arguments: tuple[str, ...], told: str
) -> None:
    done = shell.run(command, *arguments, *(("-i", "orders.csv") if command == "run" else ()))
    assert (done.returncode, done.stderr[: len(told)]) == (2, told)


@pytest.mark.parametrize(("arguments", "told"), MISSING_OF_RUN.values(), ids=MISSING_OF_RUN)
def test_what_cannot_be_opened_is_wrong_usage_and_told_in_one_line(
    shell: Shell, arguments: tuple[str, ...], told: str
) -> None:
    done = shell.run("run", *SHOP, *arguments, **DATABASE)
    assert (done.returncode, done.stderr[: len(told)]) == (2, told)
    assert done.stderr.count("\n") == 1
    assert shell.run("resources", "--profile", "nope.toml").returncode == 2


# --- resources and graph -------------------------------------------------------------------


def test_resources_tells_what_set_each_setting_and_no_value(shell: Shell) -> None:
    shell.write(prod_toml='[resources.database]\nlifetime = "per_owner"\n')
    settings = {"WIRESTATE_RESOURCES__DATABASE__URL": "sqlite:///hidden-value.db", "WIRESTATE_PROFILE": "prod.toml"}
    done = shell.run("resources", **settings)
    assert done.returncode == 0
    assert "hidden-value" not in done.stdout
    assert done.stdout.splitlines()[0] == "database  database, per owner, sqlite3"
    (resource,) = shell.json("resources", **settings)["resources"]
    assert resource == {
        "name": "database",
        "kind": "database",
        "lifetime": "per owner",
        "driver": "sqlite3",
        "settings": {
            "lifetime": "resources.database.lifetime (prod.toml)",
            "url": "WIRESTATE_RESOURCES__DATABASE__URL (environment)",
        },
    }
    for setting, origin in resource["settings"].items():
        assert re.search(rf"^  {setting} +{re.escape(origin)}$", done.stdout, re.MULTILINE)


def test_a_declared_resource_lives_as_long_as_its_kind_says(shell: Shell) -> None:
    declared = {"WIRESTATE_RESOURCES__FILES__BASE_PATH": "."}
    told = shell.json("resources", **declared)["resources"] + shell.json("check", "shop.yaml", **declared)["resources"]
    assert [resource["lifetime"] for resource in told] == ["per owner", "per owner"]


def test_resources_without_any_says_how_to_declare_one(shell: Shell) -> None:
    done = shell.run("resources")
    assert done.returncode == 0
    assert "WIRESTATE_RESOURCES__DATABASE__URL" in done.stdout


def test_graph_draws_mermaid_and_dot(shell: Shell) -> None:
    mermaid = shell.run("graph", "shop.yaml")
    assert (mermaid.returncode, mermaid.stderr) == (0, "")
    assert mermaid.stdout.startswith("flowchart TD\n")
    shell.write(shop_yaml=MACHINE.replace("transform: store", "transform: store\n    resources: [database]"))
    dot = shell.run("graph", *SHOP, "--format", "dot", SHOP_DATABASE_URL="memory")
    assert dot.stdout.startswith("digraph machine {\n")
    assert "database (per state)" in dot.stdout


def test_graph_shows_what_functions_inject_if_they_are_found(shell: Shell) -> None:
    text = 's1((("stored<br/>database (per state)")))'
    assert text in shell.run("graph", *SHOP, **DATABASE).stdout
    assert text not in shell.run("graph", "shop.yaml").stdout
    assert text not in shell.run("graph", *SHOP, "--no-resources", **DATABASE).stdout


# --- stopping ------------------------------------------------------------------------------


def slow_machine(shell: Shell, function: str) -> None:
    shell.write(
        slow_yaml=f"states:\n  - {{name: begin, transform: {function}, arcs: [{{target: end}}]}}\n  - {{name: end}}\n",
        many_csv="id\n" + "\n".join(map(str, range(20_000))) + "\n",
    )


SLOW_RUN = ("run", "slow.yaml", "--functions", "slow", "--input", "many.csv", "--output", "done.csv")
STOPS = {
    "inline, SIGTERM": ("begin", (), signal.SIGTERM, 143),
    "inline, Ctrl-C": ("begin", (), signal.SIGINT, 130),
    "threads, Ctrl-C": ("begin", ("--workers", "3"), signal.SIGINT, 130),
    "tasks, SIGTERM": ("abegin", (), signal.SIGTERM, 143),
    "inline, SIGHUP": ("begin", (), signal.SIGHUP, 129),
    "tasks, SIGHUP": ("abegin", (), signal.SIGHUP, 129),
}


@pytest.mark.parametrize(("function", "options", "number", "code"), STOPS.values(), ids=STOPS)
def test_the_first_signal_lets_records_finish_and_the_output_holds_what_the_summary_says(
    shell: Shell, function: str, options: tuple[str, ...], number: int, code: int
) -> None:
    slow_machine(shell, function)
    with shell.start(*SLOW_RUN, *options, "--json") as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, errors
    report = json.loads(output)
    assert (report["ok"], report["exit_code"], report["error"]) == (False, code, None)
    assert report["summary"]["stopped"]
    rows = [int(row["id"]) for row in shell.rows("done.csv")]
    assert rows == list(range(report["summary"]["emitted"]))
    assert 0 < len(rows) < 20_000
    assert not list(shell.folder.glob("*.part"))
    assert without_parts(errors) == "stopping: what is under way will finish; once more to interrupt it\n"


@pytest.mark.parametrize("function", ["begin", "abegin"])
def test_the_second_signal_interrupts_and_still_tells_what_was_done(shell: Shell, function: str) -> None:
    slow_machine(shell, function)
    with shell.start(*SLOW_RUN, "--limit", "5", NAP="60") as process:
        process.send_signal(signal.SIGINT)
        first_signal_heard(process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors == ""
    assert output.startswith("slow  0 records in ")
    assert "stopped" in output
    assert shell.rows("done.csv") == []


def test_a_signal_while_records_run_rolls_back_what_was_not_done(shell: Shell) -> None:
    shell.write(
        functions_py="import time\nfrom pathlib import Path\n"
        + FUNCTIONS
        + "    if order['id'] == 2:\n        Path('began').touch()\n        time.sleep(60)\n",
        orders_csv="id,amount\n1,5\n2,5\n3,5\n",
    )
    with shell.start("run", *SHOP, *ORDER_FILES, **DATABASE) as process:
        process.send_signal(signal.SIGTERM)
        first_signal_heard(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert [row["id"] for row in shell.rows("done.csv")] == ["1"]
    assert stored_ids(shell.folder / "shop.db") == [1]


def test_threads_finish_their_records_even_after_the_second_signal(shell: Shell) -> None:
    slow_machine(shell, "begin")
    with shell.start(*SLOW_RUN, "--workers", "2", NAP="0.5") as process:
        process.send_signal(signal.SIGINT)
        first_signal_heard(process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert 1 <= len(shell.rows("done.csv")) <= 4
    assert "stopped" in output


def stored_ids(file: Path) -> list[int]:
    database = sqlite3.connect(file)
    try:
        return [row[0] for row in database.execute("SELECT id FROM orders ORDER BY id")]
    finally:
        database.close()


# --- progress ------------------------------------------------------------------------------


def test_where_no_terminal_is_progress_comes_in_lines(shell: Shell) -> None:
    slow_machine(shell, "begin")
    done = shell.run(*SLOW_RUN, "--limit", "2", NAP="1.1")
    assert re.fullmatch(r"1 of 2 · 1/s · 0:01 left\n", without_parts(done.stderr))


def test_on_a_terminal_a_bar_shows_progress_and_the_table_stays(shell: Shell) -> None:
    slow_machine(shell, "begin")
    shown = shell.on_terminal(100, *SLOW_RUN, "--limit", "60")
    assert "━" in shown
    assert " of 60" in shown
    assert shown.split()[-2:] == ["end", "60"]


def test_a_narrow_terminal_gets_narrow_tables(shell: Shell) -> None:
    wide = shell.on_terminal(120, "check", *SHOP, **DATABASE).splitlines()
    assert [line.split() for line in wide[2:4]] == [
        ["resource", "kind", "lifetime", "set", "by", "driver", "health", "used", "by"],
        wide[3].split(),
    ]
    narrow = shell.on_terminal(80, "check", *SHOP, **DATABASE).splitlines()
    assert max(map(len, narrow)) <= 80
    assert narrow[2].split() == ["resource", "kind", "lifetime", "driver", "health", "used", "by"]
    assert narrow[5].split() == ["resource", "set", "by"]
    assert narrow[6] == "database  SHOP_DATABASE_URL (environment)"


# --- the command itself --------------------------------------------------------------------


def test_the_version_is_the_package_s(shell: Shell) -> None:
    assert shell.run_cold("--version").stdout == f"wirestate {wirestate.__version__}\n"


def test_without_its_extra_the_command_says_what_to_install(shell: Shell) -> None:
    program = "import sys; sys.modules['typer'] = None; from wirestate.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "wirestate: the command needs typer: pip install 'wirestate[cli]'\n"


# --- the page ------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
CHANGING = re.compile(r"in \d+\.\d+ s, [\d,]+/s")


def test_the_examples_of_the_page_run_and_print_what_it_says(shell: Shell) -> None:
    (shell.folder / "shop.db").unlink()
    environment: dict[str, str] = {}
    printed = None
    ran = 0
    for language, title, text in BLOCK.findall(PAGE):
        if title:
            (shell.folder / title).write_text(text, "utf-8")
        elif language == "bash":
            program, *arguments = shlex.split(text.replace("\\\n", " "))
            if program == "export":
                environment.update([arguments[0].split("=", 1)])
            elif program == "wirestate":
                printed = shell.run(*arguments, **environment).stdout
        elif printed is not None:
            assert _steady(printed) == _steady(text), text
            printed, ran = None, ran + 1
    assert ran == 6
    shell.write(orders_csv="id,amount\n" + "".join(f"{number},1\n" for number in range(300)))
    many = ("--input", "orders.csv", "--workers", "4")
    summary = shell.json("run", "shop.yaml", "--functions", "functions", *many, **environment)["summary"]
    assert (summary["successful"], summary["errors"]) == (300, [])


def test_the_files_of_the_page_are_in_the_examples() -> None:
    titled = {title: text for _, title, text in BLOCK.findall(PAGE) if title}
    assert sorted(titled) == ["functions.py", "orders.csv", "settings.toml", "shop.yaml"]
    for title, text in titled.items():
        assert (ROOT / "examples" / "shop" / title).read_text("utf-8") == text


def test_the_commands_of_the_readme_run_as_they_are_written(shell: Shell) -> None:
    (commands,) = [
        text for _, _, text in BLOCK.findall((ROOT / "README.md").read_text("utf-8")) if "wirestate run" in text
    ]
    home = shell.folder / "checkout"
    shutil.copytree(ROOT / "examples" / "shop", home / "examples" / "shop")
    program = home / ".venv" / "bin" / "wirestate"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m wirestate "$@"\n')
    program.chmod(0o755)
    before = files_in(home)
    done = subprocess.run(
        ["sh", "-e", "-c", commands], cwd=home, env=shell.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, without_parts(done.stderr)) == (0, "")
    assert "rejected             1" in done.stdout
    assert "stored<br/>database (per state)" in done.stdout
    assert files_in(home) == before, "something stays in the reader's folder"


def files_in(folder: Path) -> set[Path]:
    """Return all that lies below *folder*, compiled code aside."""
    return {file for file in folder.rglob("*") if "__pycache__" not in file.parts}


def _steady(text: str) -> str:
    return CHANGING.sub("in a moment", text)


@pytest.mark.parametrize("command", ["run", "check", "resources", "graph"])
def test_the_page_names_every_option_and_the_help_every_exit_code(shell: Shell, command: str) -> None:
    told = shell.run(command, "--help", COLUMNS="200").stdout
    options = set(re.findall(r"(?<![\w-])--[a-z-]+", told)) - {"--help", "--resources", "--health"}
    assert {option for option in options if option not in PAGE} == set()
    assert "130 stopped by Ctrl-C" in told
