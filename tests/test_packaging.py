"""The package: what its import loads, and that the built wheel works by itself."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import wirestate

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)]+)\)")
AT_FIRST_USE = ("sqlalchemy", "httpx", "fsspec", "tenacity", "ruamel", "typer", "rich", "aiosqlite")


def output_of(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def loaded_by(program: str) -> str:
    """Return which modules of ours, and of those that are only needed later, *program* loads."""
    names = f"[n for n in sys.modules if n.startswith('wirestate') or n in {AT_FIRST_USE}]"
    return output_of(sys.executable, "-c", f"import sys; {program}; print(*sorted({names}))")


def test_import_loads_nothing_of_ours_before_a_name_is_used() -> None:
    assert loaded_by("import wirestate; wirestate.__version__; hasattr(wirestate, '__wrapped__')") == "wirestate"


def test_the_first_name_loads_nothing_that_is_needed_later() -> None:
    found = loaded_by("from wirestate import SimpleFSM").split()
    assert "wirestate.fsm" in found
    assert not set(AT_FIRST_USE) & set(found)


@pytest.mark.parametrize(
    "program",
    [
        "import wirestate; wirestate.resources.database.DatabaseResourceAdapter",
        "import wirestate; wirestate.SimpleFSM; wirestate.errors.BuildError; wirestate.running.stream",
        "from wirestate import *; SimpleFSM, lifetimes.PerState, manager_of",
        "from wirestate import testing, errors, pytest_plugin; testing.override",
        "import wirestate; assert {*wirestate.__all__, '__version__'} <= {*dir(wirestate)}",
        "import wirestate, pickle; assert pickle.loads(pickle.dumps(wirestate.Reject)) is wirestate.Reject",
        "from unittest.mock import patch; import wirestate; patch('wirestate.SimpleFSM', 1).start();"
        "assert wirestate.SimpleFSM == 1; patch.stopall(); wirestate.SimpleFSM.process",
    ],
)
def test_every_form_of_import_finds_the_names(program: str) -> None:
    output_of(sys.executable, "-c", program)


def test_a_name_that_does_not_exist_is_told() -> None:
    with pytest.raises(AttributeError, match="module 'wirestate' has no attribute 'Nothing'"):
        wirestate.Nothing  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'Nothing' from 'wirestate'"):
        from wirestate import Nothing  # type: ignore[attr-defined]  # noqa: F401


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    output_of(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_one_import_name_and_the_templates(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in names} == {"wirestate"}
    assert "wirestate/py.typed" in names
    for folder in ("containers", "settings"):
        here = {
            file.name for file in (ROOT / folder).iterdir() if file.is_file() and "examples." not in file.read_text()
        }
        prefix = f"wirestate/templates/{folder}/"
        assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == here


@pytest.mark.slow
def test_the_page_of_the_package_links_to_nothing_that_is_not_there(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        page = email.message_from_bytes(file.read(name))
    assert page["Description-Content-Type"] == "text/markdown"
    text = page.get_payload()
    assert isinstance(text, str)
    assert text.startswith("# Wirestate\n")
    assert "make demo" in text
    assert [link for link in LINK.findall(text) if not link.startswith("https://")] == []
    assert LINK.findall((ROOT / "README.md").read_text("utf-8")), "the README has links, so some were taken out"
    assert {"Framework :: Pytest", "Framework :: AsyncIO", "Typing :: Typed"} <= {*page.get_all("Classifier", [])}


def lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """Return the lowest version of each package; one without a lower bound is left out."""
    parsed = (Requirement(text) for text in requirements)
    return {
        canonicalize_name(one.name): bound.version
        for one in parsed
        for bound in one.specifier
        if bound.operator == ">="
    }


PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))[
    "project"
]  # Any: of several types
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def test_the_lowest_versions_are_those_that_the_package_declares() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    declared = lower_bounds(PROJECT["dependencies"])
    for extra, requirements in EXTRAS.items():
        if extra != "dev":
            assert requirements, extra
            declared |= lower_bounds(requirements)
    assert len(declared) > 15
    assert {name: pinned.get(name) for name in declared} == declared


def test_make_test_lowest_installs_every_extra() -> None:
    (line,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert sorted(line.split(",")) == sorted(EXTRAS.keys() - {"dev"})


def test_every_extra_brings_something_that_a_module_imports() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    sources = "\n".join(file.read_text("utf-8") for file in files)
    drivers = {"psycopg", "pymysql", "asyncpg", "aiomysql"}  # SQLAlchemy imports them
    brought = {name for extra in EXTRAS.keys() - {"dev"} for name in lower_bounds(EXTRAS[extra])}
    assert [name for name in brought - drivers if not re.search(rf"\b{name}\b", sources)] == []


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    output_of(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(output_of(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    # The dependencies of this environment, without its own wirestate: a .pth is not followed from a .pth.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    program = (
        "import wirestate, wirestate.settings as s; from importlib.resources import files;"
        "profile = files('wirestate') / 'templates' / 'settings' / 'test.toml';"
        "assert 'memory' in profile.read_text();"
        "s.WirestateSettings(resources={'limits': {'data': {'a': 1}}});"
        "print(wirestate.__file__)"
    )
    assert Path(output_of(python, "-c", program, cwd=tmp_path, PYTHONPATH="")).is_relative_to(home)
    assert (home / "bin" / "wirestate").is_file()
