"""Pictures are deterministic text that Mermaid and Graphviz can read."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from typing import Any

import pytest
from dependency_injector.wiring import Provide, inject

from wirestate import ResourceContainer, SimpleFSM, lifetimes
from wirestate.machine.builders import arc, machine, state
from wirestate.machine.definition import Arc, Machine, Network, State
from wirestate.machine.graph import render

SHOP = machine(
    state(
        "take",
        resources=["db"],
        arcs=[arc("big", when="data.amount > 100", transforms="strip", priority=2), "done"],
        on_error="dead",
    ),
    state("big", resources={"store": "db"}, arcs=["done"]),
    "done",
    state("dead", outcome="failure"),
    resources={"db": {"type": "database", "lifetime": "per_state"}},
)
AWKWARD = 'a "q"; <b> [x] | {y} \\ #35; é'


def test_mermaid_shows_what_the_machine_is() -> None:
    assert render(SHOP) == (
        "flowchart TD\n"
        '  begin0((" ")):::begin\n'
        '  s0["take<br/>db (per state)"]\n'
        '  s1["big<br/>db (per state)"]\n'
        '  s2((("done")))\n'
        '  s3((("dead")))\n'
        "  begin0 --> s0\n"
        '  s0 -->|"2: data.amount #62; 100 #91;strip#93;"| s1\n'
        "  s0 --> s2\n"
        '  s0 -.->|"error"| s3\n'
        "  s1 --> s2\n"
        "  classDef begin fill:#333,stroke:#333\n"
    )


def test_dot_shows_what_the_machine_is() -> None:
    text = render(SHOP, "dot", resources=False)
    assert '  s0 [label="take"]\n' in text
    assert '  s2 [label="done" peripheries=2]\n' in text
    assert '  s0 -> s1 [label="2: data.amount > 100 [strip]"]\n' in text
    assert '  s0 -> s3 [label="error" style=dashed]\n' in text


def test_the_way_taken_is_marked() -> None:
    mermaid = render(SHOP, path=["take", "done"])
    assert 's2((("done"))):::taken' in mermaid
    assert "linkStyle 2 " in mermaid
    assert "take" in render(SHOP, "dot", path=["take", "done"])
    assert 's0 -> s2 [color="#2a7d4f" penwidth=3]' in render(SHOP, "dot", path=["take", "done"])


def test_given_lifetimes_are_written_behind_the_resources() -> None:
    assert "db (singleton)" in render(SHOP, lifetimes={"db": "singleton"})


def pushing() -> Machine:
    """Return a machine with a sub-network, as a later version will read it."""
    push = Arc("a", None, target_network="sub", return_state="b")
    main = Network("main", {"a": State("a", is_start=True, arcs=(push,)), "b": State("b", is_end=True)}, "a")
    sub = Network("sub", {"x": State("x", is_end=True)}, "x")
    return replace(SHOP, networks={"main": main, "sub": sub}, main_network="main")


def test_sub_networks_are_groups_with_thick_and_dashed_arcs() -> None:
    mermaid = render(pushing(), path=["a", "sub:x", "b"])
    assert 'subgraph g1["sub"]' in mermaid
    assert "s0 ==> s2" in mermaid
    assert "s2 -.-> s1" in mermaid
    assert "linkStyle 2,3 " in mermaid
    assert "s0 -> s2 [penwidth=3]" in render(pushing(), "dot")


def test_no_name_can_break_a_picture() -> None:
    awkward = machine(state(AWKWARD, arcs=[arc("end\nline", when="data['\"#|'] == 1")]), "end\nline")
    mermaid = render(awkward)
    assert "#34;q#34;" in mermaid
    assert "#35;35#59;" in mermaid
    assert '"q"' not in mermaid
    assert all(line.count('"') % 2 == 0 for line in mermaid.splitlines())
    assert '\\"q\\"' in render(awkward, "dot")


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("awkward", [False, True])
def test_graphviz_reads_the_dot_text(awkward: bool) -> None:
    made = machine(state(AWKWARD, arcs=["end\nline"]), "end\nline") if awkward else pushing()
    text = render(made, "dot", path=["a", "sub:x"])
    done = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True, text=True, check=True)
    assert "<svg" in done.stdout


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'mermaid' or 'dot'"):
        render(SHOP, "png")  # type: ignore[arg-type]


def test_what_functions_inject_stands_below_their_state_unless_nobody_wants_it() -> None:
    class Shop(ResourceContainer):
        db = lifetimes.PerState(list)
        report = lifetimes.PerOwner(dict)

    @inject
    def store(record: Any, rows: Any = Provide[Shop.db]) -> Any:
        return record

    @inject
    def is_new(record: Any, report: Any = Provide["report"]) -> bool:
        return True

    arcs = [{"target": "end", "condition": "is_new"}]
    machine = {"states": {"begin": {"transform": "store", "resources": ["report"], "arcs": arcs}, "end": {}}}
    with Shop() as shop, SimpleFSM(machine, container=shop, functions={"store": store, "is_new": is_new}) as fsm:
        assert 's0["begin<br/>report (per owner), db (per state)"]' in fsm.graph()
        assert 's0["begin"]' in fsm.graph(resources=False)
