"""The layers: imports point down, in every module, wherever in it they stand."""

from __future__ import annotations

import ast
import shutil
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src" / "wirestate"
LAYERS: list[list[str]] = tomllib.loads((HERE / "layers.toml").read_text("utf-8"))["layers"]
ONLY_IN_INJECTION = "dependency_injector"


def test_imports_point_down() -> None:
    assert not violations(SOURCE, LAYERS)


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("errors.py", "def late():\n    import wirestate.waiting", "errors imports waiting"),
        ("waiting.py", "if TYPE_CHECKING:\n    from wirestate.settings import kinds", "waiting imports settings.kinds"),
        ("waiting.py", "from wirestate import SimpleFSM", "waiting imports the root"),
        ("waiting.py", "from . import observing", "waiting imports observing"),
        ("resources/base.py", "from .calls import ProviderCalls", "resources.base imports resources.calls"),
        (
            "settings/model.py",
            "from dependency_injector import providers",
            "settings.model imports dependency_injector",
        ),
        ("stray.py", "", "stray is listed in no layer"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, module: str, line: str, complaint: str) -> None:
    copy = shutil.copytree(SOURCE, tmp_path / "wirestate", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / module).open("a") as file:
        file.write(f"\n{line}\n")
    assert set(violations(copy, LAYERS)) - set(violations(SOURCE, LAYERS)) == {complaint}


def test_a_listed_module_that_is_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    assert violations(tmp_path, [["errors"]]) == ["errors is listed and does not exist"]


def violations(source: Path, layers: list[list[str]]) -> list[str]:
    """Return every breach of the rule in the package that lies at *source*."""
    place = {module: (level, order) for level, layer in enumerate(layers) for order, module in enumerate(layer)}
    found = {_name(file, source): file for file in source.rglob("*.py")}
    root = found.pop("")  # the index: it may import everything, and nothing may import it
    unlisted = sorted(f"{module} is listed in no layer" for module in found.keys() - place.keys())
    gone = sorted(f"{module} is listed and does not exist" for module in place.keys() - found.keys())
    wrong = [
        f"{module} imports {imported or 'the root'}"
        for module in sorted(found.keys() & place.keys())
        for imported in _imports(found[module], module, found.keys())
        if not _allowed(module, imported, place)
    ]
    index = [f"the root imports {name}" for name in _imports(root, "", found.keys()) if name == ONLY_IN_INJECTION]
    return unlisted + gone + wrong + index


def _allowed(module: str, imported: str, place: dict[str, tuple[int, int]]) -> bool:
    if imported == ONLY_IN_INJECTION:
        return module.partition(".")[0] == "injection"
    if imported not in place:
        return imported != ""  # an unlisted module is reported by itself
    (level, order), (its_level, its_order) = place[module], place[imported]
    same_package = module.partition(".")[0] == imported.partition(".")[0]
    return its_level < level or (its_level == level and same_package and its_order < order)


def _imports(file: Path, module: str, known: Collection[str]) -> Iterator[str]:
    """Yield our modules that *file* imports anywhere in it; the index of the package is the empty name."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["wirestate", *filter(None, package.split("."))][: -node.level + 1 or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == ONLY_IN_INJECTION:
                yield ONLY_IN_INJECTION
            elif target.split(".")[0] == "wirestate":
                yield _longest_known(target.removeprefix("wirestate").lstrip("."), known)


def _longest_known(target: str, known: Collection[str]) -> str:
    while target and target not in known:
        target = target.rpartition(".")[0]
    return target


def _name(file: Path, source: Path) -> str:
    parts = file.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
