"""S6 by the peers: each machine is built once, and set back for a new record where that costs less than a new one."""

# Annotations stay objects here: the peers read them.
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypedDict

import statemachine
from burr.core import Application, ApplicationBuilder, State, action
from dataknobs_fsm.api.async_simple import AsyncSimpleFSM
from dataknobs_fsm.api.simple import SimpleFSM
from dataknobs_fsm.core.data_modes import DataHandlingMode
from langgraph.graph import END, START, StateGraph
from transitions import Machine
from transitions.extensions.asyncio import AsyncMachine

from benchmarks.peers.steps import ASTEPS, NAMES, STEPS, Record, aprocessing, processing
from benchmarks.timing import Contender

MOVES = tuple(pairwise(("new", *NAMES)))  # "new" stands before the first state, since these work on entering one

# --- transitions ----------------------------------------------------------------------------


class Order:
    """The model of a transitions machine."""

    record: Record
    advance: Callable[[], Any]  # Any: True, or a coroutine of it


def transitions_machine(kind: type[Machine], order: Order, steps: Mapping[str, Callable[[Record], Any]]) -> Machine:
    states = ["new", *({"name": name, "on_enter": _on_order(order, step)} for name, step in steps.items())]
    moves = [["advance", *move] for move in MOVES]
    return kind(order, states=states, initial="new", transitions=moves, auto_transitions=False)


def _on_order(order: Order, step: Callable[[Record], Any]) -> Callable[[], Any]:
    return lambda: step(order.record)


def transitions_sync() -> Contender:
    order = Order()
    machine = transitions_machine(Machine, order, STEPS)

    def process(record: Record) -> Record:
        order.record = record
        machine.set_state("new")
        for _ in NAMES:
            order.advance()
        return record

    return Contender("transitions", processing(process), "transitions")


def transitions_async() -> Contender:
    order = Order()
    machine = transitions_machine(AsyncMachine, order, ASTEPS)

    async def process(record: Record) -> Record:
        order.record = record
        machine.set_state("new")
        for _ in NAMES:
            await order.advance()
        return record

    return Contender("transitions", aprocessing(process), "transitions")


# --- Burr -----------------------------------------------------------------------------------


def burr_action(name: str) -> Callable[..., Any]:
    @action(reads=[], writes=[name])
    def run(state: State) -> State:
        return state.update(**STEPS[name]({}))

    return run


def aburr_action(name: str) -> Callable[..., Any]:
    @action(reads=[], writes=[name])
    async def run(state: State) -> State:
        return state.update(**await ASTEPS[name]({}))

    return run


def burr_application(make_action: Callable[[str], Callable[..., Any]]) -> Application:
    builder = ApplicationBuilder().with_actions(**{name: make_action(name) for name in NAMES})
    return builder.with_transitions(*pairwise(NAMES)).with_entrypoint(NAMES[0]).build()


def burr_sync() -> Contender:
    application = burr_application(burr_action)

    def process(record: Record) -> Record:
        application.update_state(State(record))
        application.reset_to_entrypoint()
        return application.run(halt_after=[NAMES[-1]])[2].get_all()

    return Contender("Burr", processing(process), "apache-burr")


def burr_async() -> Contender:
    application = burr_application(aburr_action)

    async def process(record: Record) -> Record:
        application.update_state(State(record))
        application.reset_to_entrypoint()
        return (await application.arun(halt_after=[NAMES[-1]]))[2].get_all()

    return Contender("Burr", aprocessing(process), "apache-burr")


# --- dataknobs-fsm --------------------------------------------------------------------------


def dataknobs_configuration() -> dict[str, Any]:
    states = [
        {
            "name": name,
            "is_start": name == NAMES[0],
            "is_end": name == NAMES[-1],
            "functions": {"transform": {"type": "registered", "name": name}},
            "arcs": [{"target": after} for before, after in pairwise(NAMES) if before == name],
        }
        for name in NAMES
    ]
    return {"name": "steps", "main_network": "main", "networks": [{"name": "main", "states": states}]}


def dataknobs_sync() -> Contender:
    fsm = SimpleFSM(dataknobs_configuration(), data_mode=DataHandlingMode.DIRECT, custom_functions=dict(STEPS))
    return Contender("dataknobs-fsm", processing(fsm.process, lambda result: result["data"]), "dataknobs-fsm")


def dataknobs_async() -> Contender:
    fsm = AsyncSimpleFSM(dataknobs_configuration(), data_mode=DataHandlingMode.DIRECT, custom_functions=dict(ASTEPS))
    return Contender("dataknobs-fsm", aprocessing(fsm.process, lambda result: result["data"]), "dataknobs-fsm")


# --- python-statemachine: going around from the last state costs less than a new machine ----


class Round(statemachine.StateMachine):
    record: Record
    new = statemachine.State(initial=True)
    a, b, c, d, e = (statemachine.State() for _ in NAMES)
    advance = new.to(a) | a.to(b) | b.to(c) | c.to(d) | d.to(e) | e.to(a)

    def on_enter_a(self) -> None:
        STEPS["a"](self.record)

    def on_enter_b(self) -> None:
        STEPS["b"](self.record)

    def on_enter_c(self) -> None:
        STEPS["c"](self.record)

    def on_enter_d(self) -> None:
        STEPS["d"](self.record)

    def on_enter_e(self) -> None:
        STEPS["e"](self.record)


class ARound(statemachine.StateMachine):
    record: Record
    new = statemachine.State(initial=True)
    a, b, c, d, e = (statemachine.State() for _ in NAMES)
    advance = new.to(a) | a.to(b) | b.to(c) | c.to(d) | d.to(e) | e.to(a)

    async def on_enter_a(self) -> None:
        await ASTEPS["a"](self.record)

    async def on_enter_b(self) -> None:
        await ASTEPS["b"](self.record)

    async def on_enter_c(self) -> None:
        await ASTEPS["c"](self.record)

    async def on_enter_d(self) -> None:
        await ASTEPS["d"](self.record)

    async def on_enter_e(self) -> None:
        await ASTEPS["e"](self.record)


def statemachine_sync() -> Contender:
    machine = Round()

    def process(record: Record) -> Record:
        machine.record = record
        for _ in NAMES:
            machine.advance()
        return record

    return Contender("python-statemachine", processing(process), "python-statemachine")


def statemachine_async() -> Contender:
    machine = ARound()

    async def process(record: Record) -> Record:
        machine.record = record
        for _ in NAMES:
            await machine.advance()
        return record

    return Contender("python-statemachine", aprocessing(process), "python-statemachine")


# --- LangGraph ------------------------------------------------------------------------------


class Marks(TypedDict, total=False):
    a: str
    b: str
    c: str
    d: str
    e: str


def compiled_graph(steps: Mapping[str, Any]) -> Any:
    graph = StateGraph(Marks)
    for name, step in steps.items():
        graph.add_node(f"node_{name}", step)  # a node may not have the name of a key of the state
    nodes = [START, *(f"node_{name}" for name in NAMES), END]
    for before, after in pairwise(nodes):
        graph.add_edge(before, after)
    return graph.compile()


def langgraph_sync() -> Contender:
    return Contender("LangGraph", processing(compiled_graph(STEPS).invoke), "langgraph")


def langgraph_async() -> Contender:
    return Contender("LangGraph", aprocessing(compiled_graph(ASTEPS).ainvoke), "langgraph")
