"""``imports=`` limits what a text may become: in every place, and to what is defined below an allowed prefix."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wirestate import BuildError, SimpleFSM
from wirestate.errors import Fault

WORK = """
import functools, json, math, os, subprocess, types, xml
from os import system
from subprocess import Popen, run as shell

from pydantic import BaseModel
from sqlalchemy.exc import OperationalError

from allowed_here.other import deep

def price(record): return {**record, "price": 1}
def source(): yield 1
def decorated(function):
    @functools.wraps(function)
    def call(*args): return function(*args)
    return call

class Step:
    leak = os.system
    def transform(self, record): return record
    def __call__(self, record): return record
    @classmethod
    def of_class(cls, record): return record
    @staticmethod
    def static(record): return record

class Memoized:
    def __init__(self, function): functools.update_wrapper(self, function)
    def __call__(self, record): return self.__wrapped__(record)

class Shell(subprocess.Popen): pass
class Order(BaseModel):
    n: int
class Refused(Exception): pass
class Provider:
    def acquire(self): return 1
    def release(self, resource): pass

step = Step()
bound = step.transform
partly = functools.partial(price)
partly_foreign = functools.partial(os.system)
cached = functools.lru_cache(price)
wrapped = decorated(price)
memoized = Memoized(price)
wrapped_foreign = functools.wraps(os.system)(lambda record: record)
nameless = lambda record: record
schema = {"type": "object"}
holder = types.SimpleNamespace(price=price)
environ = os.environ
sqrt = math.sqrt
"""
INSTALLED = {"METADATA": "Metadata-Version: 2.1\nName: of-others\nVersion: 1\n",
             "entry_points.txt": "[wirestate.resources]\nof_others = never_imported:Provider\n"}  # fmt: skip
LIMIT = ["allowed_here."]


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "allowed_here"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "work.py").write_text(WORK)
    (package / "other.py").write_text("def deep(record): return record\n")
    (tmp_path / "allowed_here_too.py").write_text("def price(record): return record\n")
    (tmp_path / "never_imported.py").write_text("raise SystemExit('imported')\n")
    installed = tmp_path / "of_others-1.dist-info"
    installed.mkdir()
    for name, text in INSTALLED.items():
        (installed / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith(("allowed_here", "never_imported"))]:
        del sys.modules[name]


def built(state: dict[str, Any], *, resources: Any = None, imports: Any = LIMIT, **machine: Any) -> None:
    states = {"work": {**state, "arcs": state.get("arcs", ["end"])}, "end": {}}
    SimpleFSM({"states": states, **machine}, resources=resources, imports=imports).close()


def fault_of(state: dict[str, Any], **how: Any) -> Fault:
    with pytest.raises(BuildError) as caught:
        built(state, **how)
    (fault,) = caught.value.faults
    return fault


# Each place, with a path in it.
STATES: dict[str, Any] = {
    "transform": lambda path: {"transform": path},
    "validator": lambda path: {"validators": [path]},
    "end test": lambda path: {"end_test": path},
    "condition": lambda path: {"arcs": [{"target": "end", "condition": path}, "end"]},
    "arc transform": lambda path: {"arcs": [{"target": "end", "transform": path}]},
    "catch arc": lambda path: {"on_error": {"target": "end", "transform": path}},
    "class with params": lambda path: {"transform": {"name": path, "params": {"args": "ls"}}},
    "module and name": lambda path: {"transform": dict(zip(("module", "name"), path.split(":"), strict=True))},
    "schema": lambda path: {"schema": path},
    "retry": lambda path: {"retry": {"attempts": 2, "on": [path]}},
}
MACHINES: dict[str, Any] = {
    "functions": lambda path: ({"transform": "f"}, {"functions": {"f": path}}),
    "class of a resource": lambda path: ({}, {"machine_resources": {"x": {"class": path}}}),
    "class, dotted": lambda path: ({}, {"machine_resources": {"x": {"class": path.replace(":", ".")}}}),
    "class under config": lambda path: ({}, {"machine_resources": {"x": {"config": {"class": path}}}}),
    "class in a list": lambda path: ({}, {"machine_resources": [{"name": "x", "type": "custom", "class": path}]}),
    "class beside a kind": lambda path: ({}, {"machine_resources": {"x": {"url": "sqlite://", "class": path}}}),
    "resources=": lambda path: ({}, {"resources": {"x": {"class": path}}}),
}


def in_place(place: str, path: str) -> Fault:
    if place in STATES:
        return fault_of(STATES[place](path))
    state, how = MACHINES[place](path)
    declared = how.pop("machine_resources", None)
    if declared is not None:
        with pytest.raises(BuildError) as caught:
            SimpleFSM({"resources": declared, "states": {"work": {"arcs": ["end"]}, "end": {}}}, imports=LIMIT)
        (fault,) = caught.value.faults
        return fault
    return fault_of(state, **how)


@pytest.mark.parametrize("place", [*STATES, *MACHINES])
def test_no_place_imports_what_is_not_allowed(place: str) -> None:
    fault = in_place(place, "never_imported:Anything")
    assert (fault.code, fault.kind) == ("M032", "ImportRefused")
    assert "may not be imported; allowed: 'allowed_here.'" in fault.message
    assert "never_imported" not in sys.modules


@pytest.mark.parametrize("place", [*STATES, *MACHINES])
def test_no_place_walks_through_an_allowed_module_to_another(place: str) -> None:
    way = "Popen" if place == "class, dotted" else "subprocess.Popen"  # dots before the last one are modules
    fault = in_place(place, f"allowed_here.work:{way}")
    assert (fault.code, fault.kind) == ("M032", "ImportRefused")
    assert "leads to what is defined in 'subprocess'; allowed: 'allowed_here.'" in fault.message


@pytest.mark.parametrize(
    "name",
    ["price", "deep", "Step", "step", "bound", "step.transform", "Step.of_class", "Step.static", "partly", "cached",
     "wrapped", "memoized", "nameless"],
)  # fmt: skip
def test_what_is_defined_below_a_prefix_may_be_used(name: str) -> None:
    built({"transform": f"allowed_here.work:{name}"})


def test_classes_schemas_and_exceptions_that_are_defined_below_a_prefix_may_be_used() -> None:
    built({"schema": "allowed_here.work:Order"})
    built({"schema": "allowed_here.work:schema"})
    built({"retry": {"attempts": 2, "on": ["allowed_here.work.Refused", "ValueError"]}})
    for path in ("allowed_here.work:Provider", "allowed_here.work.source"):
        built({}, resources={"x": {"class": path}})


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("os.system", "'os'"),  # an attribute of another module
        ("xml.etree", "'xml'"),  # it might be imported by asking for it
        ("system", "'posix'" if sys.platform != "win32" else "'nt'"),  # another name for it
        ("shell", "'subprocess'"),
        ("Popen", "'subprocess'"),
        ("sqrt", "'math'"),  # written in C
        ("OperationalError", "'sqlalchemy.exc'"),
        ("partly_foreign", "'posix'" if sys.platform != "win32" else "'nt'"),
        ("wrapped_foreign", "'posix'" if sys.platform != "win32" else "'nt'"),
        ("Step.leak", "'posix'" if sys.platform != "win32" else "'nt'"),
        ("Shell.communicate", "'subprocess'"),  # inherited
        ("environ", "'os'"),  # an instance
        ("environ.pop", "'os'"),  # a bound method of it
        ("holder.price", "'types'"),
        ("price.__globals__", "'builtins'"),
        ("price.__globals__.get", "'builtins'"),
        ("price.__class__", "'builtins'"),
        ("price.__call__", "in no module"),
        ("Step.__init__.__globals__", "in no module"),
        ("schema.get", "in no module"),
    ],
)
def test_what_is_defined_elsewhere_is_refused_on_whatever_way(name: str, home: str) -> None:
    fault = fault_of({"transform": f"allowed_here.work:{name}"})
    assert fault.kind == "ImportRefused"
    assert home in fault.message


def test_a_kind_of_another_package_is_code_too() -> None:
    fault = fault_of({}, resources={"x": {"kind": "of_others"}})
    assert fault.kind == "ImportRefused"
    built({}, resources={"x": {"url": "sqlite://"}}, imports=[])


@pytest.mark.parametrize("imports", [[], [""], ["."], ["allowed"], ["allowed_here.w"], ["allowed_here.work.price"]])
def test_a_prefix_ends_at_a_dot(imports: list[str]) -> None:
    assert fault_of({"transform": "allowed_here.work:price"}, imports=imports).kind == "ImportRefused"


@pytest.mark.parametrize("imports", [["allowed_here"], ["allowed_here.work"], ("other", "allowed_here.work.")])
def test_a_prefix_is_a_package_or_a_module(imports: Any) -> None:
    built({"transform": "allowed_here.work:price"}, imports=imports)
    assert fault_of({"transform": "allowed_here_too:price"}, imports=imports).kind == "ImportRefused"


def test_a_text_is_no_list_of_prefixes() -> None:
    with pytest.raises(TypeError, match=r"such as \['allowed_here'\], not a text"):
        built({}, imports="allowed_here")


def test_what_the_caller_gives_and_what_is_built_in_is_not_limited() -> None:
    machine = {"states": {"work": {"transforms": ["f", {"name": "keep", "params": {"fields": ["n"]}}], "arcs": ["end"]},
                          "end": {}}}  # fmt: skip
    SimpleFSM(machine, functions={"f": len}, imports=[]).close()
