"""How a configuration names functions -> ``FunctionRef``; nothing is imported and nothing is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from wirestate.errors import nearest
from wirestate.machine.builtins import BUILTINS
from wirestate.machine.definition import FunctionRef, Place, Role
from wirestate.machine.faults import (
    BAD_EXPRESSION,
    MISSING_KEY,
    REFUSED,
    UNKNOWN_FUNCTION,
    WRONG_PARAMS,
    WRONG_VALUE,
    Report,
    did_you_mean,
)
from wirestate.machine.guards import MAX_CHARACTERS, NAMES, ExpressionError, compile_expression
from wirestate.machine.keys import FUNCTION_KEYS, Fields
from wirestate.machine.reading import Node
from wirestate.machine.refusals import PYTHON_CODE, SHORTHAND, other_builtin
from wirestate.machine.variables import joined

IMPORT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_NAME = re.compile(r"\w[\w.\-]*")
_LITERALS = {"True", "False", "None"}
_TYPES = ("registered", "builtin", "custom", "expression", "inline")


@dataclass(slots=True)
class References:
    """Reads references; ``known`` are the names of functions that were given or registered."""

    report: Report
    known: Collection[str] = ()
    allow_inline_code: bool = False

    def one(self, fields: Fields, key: str, role: Role, names: frozenset[str] = NAMES) -> FunctionRef | None:
        """Return the reference in a field, or None."""
        node = fields.node(key)
        return None if node is None else self.read(node, role, f"{fields.what}: {key!r}", names)

    def several(self, fields: Fields, key: str, role: Role, names: frozenset[str] = NAMES) -> tuple[FunctionRef, ...]:
        """Return the references in a field that holds one or a list."""
        found = (self.read(node, role, f"{fields.what}: {key!r}", names) for node in fields.items(key))
        return tuple(ref for ref in found if ref is not None)

    def read(self, node: Node, role: Role, what: str, names: frozenset[str] = NAMES) -> FunctionRef | None:
        """Return one reference, or None after a fault."""
        value = node.value
        if callable(value):
            return FunctionRef("call", getattr(value, "__qualname__", type(value).__qualname__), call=value)
        if isinstance(value, bool) and role == "condition":
            return self._expression(replace(node, value=str(value)), what, names)
        if isinstance(value, str):
            return self._text(node, role, what, names)
        if isinstance(value, dict) and set(value) == {"test"} and role == "condition":
            return self.read(value["test"], role, what, names)
        if isinstance(value, dict):
            return self._mapping(node, role, what, names)
        self.report.fault(WRONG_VALUE, f"{what} must name a function, not be {node.kind}", node.place)
        return None

    def _text(self, node: Node, role: Role, what: str, names: frozenset[str]) -> FunctionRef | None:
        text = node.value.strip()
        if text in self.known or text in BUILTINS:
            return FunctionRef("name", text, place=node.place)
        if IMPORT.fullmatch(text):
            return FunctionRef("import", text, place=node.place)
        if role == "condition":
            return self._condition(node, text, what, names)
        if not _NAME.fullmatch(text):
            return self._python(node, role, what)
        return None if self._is_other_builtin(text, node.place, what) else FunctionRef("name", text, place=node.place)

    def _condition(self, node: Node, text: str, what: str, names: frozenset[str]) -> FunctionRef | None:
        if text in SHORTHAND:
            self.report.fault(REFUSED, f"{what}: {text!r} is no condition: {SHORTHAND[text]}", node.place)
            return None
        if text.isidentifier() and text not in _LITERALS:
            return FunctionRef("name", text, place=node.place)
        return self._expression(node, what, names)

    def _mapping(self, node: Node, role: Role, what: str, names: frozenset[str]) -> FunctionRef | None:
        fields = Fields(node, FUNCTION_KEYS, what, self.report)
        kind = fields.choice("type", _TYPES)
        if "type" in fields and kind is None:
            return None
        if "code" not in fields and kind not in {"expression", "inline"}:
            return self._named(fields, kind, what)
        code = fields.node("code")
        if code is None or not isinstance(code.value, str):
            self.report.fault(MISSING_KEY, f"{what}: 'code' must be a text", fields.place_of("code"))
            return None
        if "params" in fields:
            self.report.fault(WRONG_PARAMS, f"{what}: code takes no 'params'", fields.place_of("params"))
        if kind == "expression" and role != "transform":
            return self._expression(code, what, names)
        return self._inline(code, role, what, names)

    def _named(self, fields: Fields, kind: str | None, what: str) -> FunctionRef | None:
        name, module = fields.text("name"), fields.text("module")
        if not fields.need("name") or name is None:
            return None
        place, params = fields.place_of("name"), fields.free("params")
        if kind == "builtin":
            return self._builtin(name, place, what, params)
        if module is not None:
            return FunctionRef("import", joined(module, ":", name), params=params, place=place)
        if kind is None and self._is_other_builtin(name, place, what):
            return None
        return FunctionRef("import" if IMPORT.fullmatch(name) else "name", name, params=params, place=place)

    def _builtin(self, name: str, place: Place, what: str, params: dict[str, object]) -> FunctionRef | None:
        if name in BUILTINS:
            return FunctionRef("name", name, params=params, place=place)
        if not self._is_other_builtin(name, place, what):
            message = f"{what}: there is no built-in function {name!r}"
            self.report.fault(UNKNOWN_FUNCTION, message, place, did_you_mean(nearest(name, BUILTINS)))
        return None

    def _is_other_builtin(self, name: str, place: Place, what: str) -> bool:
        ours = None if name in self.known else other_builtin(name, BUILTINS)
        if ours is None:
            return False
        instead = f"the nearest of ours is {ours!r}" if ours else "write a function of your own"
        self.report.fault(REFUSED, f"{what}: {name!r} is no built-in function here; {instead}", place)
        return True

    # --- code ----------------------------------------------------------------

    def _expression(self, node: Node, what: str, names: frozenset[str]) -> FunctionRef | None:
        text = node.value.strip()
        try:
            compile_expression(node.value, names=names)
        except ExpressionError as error:
            self._bad_expression(node, error, what)
            return None
        return FunctionRef("expression", text, code=text, place=node.place)

    def _bad_expression(self, node: Node, error: ExpressionError, what: str) -> None:
        place, column = node.place, error.column
        if node.written is not None:  # the error may quote what came from the environment
            message = f"{what}: with its variables filled in, {node.shown} is no safe expression"
            self.report.fault(BAD_EXPRESSION, message, place)
            return
        pointed: tuple[str, ...] = ()
        if "\n" not in node.value:
            pointed = (node.value, " " * (column - 1) + "^")
            if place.column is not None and node.quoted is not None:
                place = replace(place, column=place.column + node.quoted + column - 1)
        self.report.fault(BAD_EXPRESSION, f"{what}: column {column}: {error}", place, *pointed)

    def _inline(self, node: Node, role: Role, what: str, names: frozenset[str]) -> FunctionRef | None:
        body, bound = _unwrapped(node.value)
        if role != "transform" and _is_safe(body, frozenset() if bound else names, bound):
            return FunctionRef("expression", body.strip(), code=body.strip(), bound=bound, place=node.place)
        return self._python(node, role, what)

    def _python(self, node: Node, role: Role, what: str) -> FunctionRef | None:
        text = node.value.strip()
        if not self.allow_inline_code:
            safe = role != "transform" and _is_safe(text, NAMES)
            instead = "As a safe expression it is written {type: expression, code: …}." if safe else None
            self.report.fault(REFUSED, f"{what}: {PYTHON_CODE}", node.place, instead)
            return None
        try:
            ast.parse(text, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            message = f"{what}: inline code is one expression or one lambda; move more than that to a function"
            self.report.fault(REFUSED, message, node.place)
            return None
        return FunctionRef("expression", text, code=text, inline=True, place=node.place)


def _is_safe(text: str, names: frozenset[str], bound: tuple[str, ...] = ()) -> bool:
    try:
        compile_expression(text, names=names, bound=bound)
    except ExpressionError:
        return False
    return True


def _unwrapped(code: str) -> tuple[str, tuple[str, ...]]:
    """Return the body of ``lambda x, y: body`` and its names, or the code as it is."""
    text = code.strip()
    try:
        tree = ast.parse(text if len(text) <= MAX_CHARACTERS else "", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code, ()
    if not isinstance(tree, ast.Lambda):
        return code, ()
    names = tuple(argument.arg for argument in tree.args.args)
    body = ast.get_source_segment(text, tree.body)
    plain = ast.unparse(tree.args) == ", ".join(names) and 1 <= len(names) <= 2
    return (body, names) if plain and body is not None else (code, ())
