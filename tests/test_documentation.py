"""The documentation: every example in it runs, and every fault code is explained."""

from __future__ import annotations

import doctest
import importlib
import linecache
import pkgutil
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import wirestate

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)``` *$", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')
CODE = re.compile(r"\b[RSIDM]\d{3}\b")

# What a block may be in; python runs, a block with a title is written to a file that later blocks may use.
LANGUAGES = {"python", "bash", "yaml", "toml", "json", "csv", "text", "mermaid"}
# Commands that pages show; those that a test runs elsewhere, or that no test can run.
COMMANDS = {"make", "pip", "wirestate", "python", "export", "docker", "cd", "git"}


@dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    code: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        info, indent = match["info"].strip(), match["indent"]
        code = "".join(line.removeprefix(indent) for line in match["body"].splitlines(keepends=True))
        title = TITLE.search(info)
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(info.split(" ")[0], title[1] if title else None, code, line))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_is_known_and_its_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(page.parent)  # a package explains itself
    monkeypatch.syspath_prepend(tmp_path)
    blocks = blocks_of(page)
    namespace = vars(ModuleType("__main__"))
    ran = 0
    for block in blocks:
        place = f"{page.name}:{block.line}"
        assert block.language in LANGUAGES, f"{place}: a block in {block.language or 'no language'}"
        if block.title:
            (tmp_path / block.title).write_text(block.code, "utf-8")
        if block.language == "bash":
            assert not unknown_commands(block.code), place
        if block.language == "python":
            run(block.code, f"{page}:{block.line}", namespace)
            ran += 1
    assert ran == Counter(re.findall(r"^ *```(\w*)", page.read_text("utf-8"), re.MULTILINE))["python"]
    assert 2 * len(blocks) == len(re.findall(r"^ *```", page.read_text("utf-8"), re.MULTILINE))


def run(code: str, name: str, namespace: dict[str, object]) -> None:
    """Run one block; functions that are defined in it can be shown in tracebacks and read by inspect."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    exec(compile(code, name, "exec"), namespace)


def unknown_commands(code: str) -> list[str]:
    lines = code.replace("\\\n", " ").splitlines()
    words = [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [word for word in words if word not in COMMANDS and "=" not in word]


def test_a_block_that_fails_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        test_every_block_of_a_page_is_known_and_its_python_runs(page, tmp_path, monkeypatch)


MODULES = [module.name for module in pkgutil.walk_packages(wirestate.__path__, "wirestate.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_every_fault_code_is_explained_and_no_other() -> None:
    used = {code for file in (ROOT / "src").rglob("*.py") for code in CODE.findall(file.read_text("utf-8"))}
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert set(re.findall(r"^### ([RSIDM]\d{3})$", page, re.MULTILINE)) == used
