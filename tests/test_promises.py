"""The page of promises: every promise and every scenario names tests that exist, and that end with the invariant."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "promises.md"
CITED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
SCENARIO = re.compile(r"^\| (\d+) \|", re.MULTILINE)
SCENARIOS = range(1, 44)


@cache
def functions_of(file: str) -> dict[str, set[str]]:
    """Return the functions of a test file, and the fixtures that each of them asks for."""
    path = HERE / file
    if not path.exists():
        return {}
    tree = ast.parse(path.read_text("utf-8"))
    of_all = {name for node in tree.body if isinstance(node, ast.Assign) for name in used_fixtures(node)}
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, functions)]
    return {
        node.name: of_all
        | {arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)}
        | {name for mark in node.decorator_list for name in used_fixtures(mark)}
        for node in nodes
    }


def used_fixtures(node: ast.AST) -> set[str]:
    """Return what ``pytest.mark.usefixtures(…)`` names in *node*."""
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    marks = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "usefixtures"]
    return {arg.value for mark in marks for arg in mark.args if isinstance(arg, ast.Constant)}


def asked_for(file: str, test: str) -> set[str]:
    """Return the fixtures of a test, and those that they ask for in turn."""
    known = functions_of("conftest.py") | functions_of(file)
    found: set[str] = set()
    new = set(known[test])
    while new:
        found |= new
        new = set().union(*(known.get(name, set()) for name in new)) - found
    return found


def rows() -> list[str]:
    """Return the rows of the page's tables that make a promise."""
    lines = PAGE.read_text("utf-8").splitlines()
    heads = {number - 1 for number, line in enumerate(lines) if line.startswith("|--")}
    return [
        line for number, line in enumerate(lines) if line.startswith("|") and number not in heads and line[1] != "-"
    ]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[2:42].strip())
def test_a_promise_names_tests_that_exist(row: str) -> None:
    cited = CITED.findall(row)
    assert cited, f"no test is named for: {row}"
    for file, test in cited:
        assert test in functions_of(file), f"there is no {file}::{test}"


def test_every_scenario_is_there_once_and_ends_with_the_invariant() -> None:
    text = PAGE.read_text("utf-8")
    assert sorted(int(number) for number in SCENARIO.findall(text)) == list(SCENARIOS)
    without = [
        f"{SCENARIO.match(row)[1]}: {file}::{test}"  # type: ignore[index]  # it matched in the line below
        for row in rows()
        if SCENARIO.match(row)
        for file, test in CITED.findall(row)
        if "invariant" not in asked_for(file, test)
    ]
    assert not without, "\n".join(without)
