"""The types of the public interface, as both type checkers see them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wirestate

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "checker", [["mypy"], ["pyright", "--pythonpath", sys.executable]], ids=lambda command: command[0]
)
def test_what_users_write_has_the_types_they_expect(checker: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *checker, "tests/typing_examples.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_index_lists_what_it_offers() -> None:
    assert len(wirestate.__all__) == len(set(wirestate.__all__)) > 0
    assert all(hasattr(wirestate, name) for name in wirestate.__all__)
