"""Safe expressions: a small part of Python's syntax, read once and never handed to Python's own evaluator."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple  # Any: records hold whatever their source holds

from wirestate.errors import MissingFieldError, listed, nearest
from wirestate.machine.arithmetic import BINARY, COMPARE, FUNCTIONS, UNARY
from wirestate.redaction import half_made_too

NAMES = frozenset({"data", "variables", "state", "visit", "attempt"})
CATCH_NAMES = NAMES | {"error"}
MAX_CHARACTERS = 1_000
MAX_NODES = 200

TEXT_METHODS = {"lower": (0, 0), "upper": (0, 0), "strip": (0, 1), "startswith": (1, 3), "endswith": (1, 3)}
METHODS = {**TEXT_METHODS, "get": (1, 2)}


class Given(NamedTuple):
    """What an expression can see; expressions read it by index, which is the fastest way."""

    data: Mapping[str, Any]
    variables: Mapping[str, Any]
    state: str
    visit: int
    attempt: int
    error: Mapping[str, Any] | None


Step = Callable[[Given], Any]


class ExpressionError(ValueError):
    """A text is no safe expression; ``column`` counts from one."""

    def __init__(self, message: str, column: int = 1) -> None:
        super().__init__(message)
        self.column = column

    def __reduce__(self) -> tuple[Any, ...]:  # Any: see object.__reduce__
        return type(self), (str(self), self.column), self.__dict__


class Expression:
    """A checked expression, ready to be evaluated many times.

    Example:
        >>> ready = compile_expression("data.amount > 10 and 'vip' in data.tags")
        >>> ready({"amount": 12, "tags": ["vip"]})
        True
    """

    __slots__ = ("_step", "bound", "names", "text")

    def __init__(self, text: str, names: frozenset[str], bound: tuple[str, ...]) -> None:
        self.text = text
        self.names = names
        self.bound = bound
        self._step = _Compiler(text, names, bound).compile()

    def __call__(  # noqa: PLR0917  (one call per condition: positions are the fast way)
        self,
        data: Mapping[str, Any],
        variables: Mapping[str, Any] | None = None,
        state: str = "",
        visit: int = 1,
        attempt: int = 1,
        error: object = None,
    ) -> Any:
        """Evaluate; *error* is an exception, or an object with ``error``, ``kind`` and ``state``."""
        shown = None if error is None else _error_fields(error)
        return self._step(Given(data, {} if variables is None else variables, state, visit, attempt, shown))

    @half_made_too
    def __repr__(self) -> str:
        return f"<Expression {self.text!r}>"

    def __reduce__(self) -> tuple[type[Expression], tuple[str, frozenset[str], tuple[str, ...]]]:
        return type(self), (self.text, self.names, self.bound)


def compile_expression(text: str, *, names: frozenset[str] | None = None, bound: tuple[str, ...] = ()) -> Expression:
    """Check *text* and return it ready to run.

    Args:
        names: what the expression may name; by default all but ``error``.
        bound: names for the record and the context, as an inline ``lambda x, y:`` gives them.

    Raises:
        ExpressionError: with the column of what is not allowed.
    """
    return Expression(text, NAMES if names is None else names, bound)


def _error_fields(error: object) -> Mapping[str, Any]:
    raised = getattr(error, "error", error)
    return {
        "type": type(raised).__name__,
        "message": str(raised),
        "kind": getattr(error, "kind", "error"),
        "state": getattr(error, "state", ""),
    }


def _missing(value: object, name: object, path: str) -> MissingFieldError:
    if isinstance(value, Mapping):
        near = nearest(name, [key for key in value if isinstance(key, str)]) if isinstance(name, str) else None
        hint = f"; did you mean {near!r}?" if near else ""
        return MissingFieldError(f"{path!r}: there is no {name!r}{hint}")
    return MissingFieldError(f"{path!r}: {type(value).__name__} has no {name!r}")


REFUSED: Mapping[type[ast.AST], str] = {
    ast.Pow: "'**' is not allowed; multiply, or compute it in a function",
    ast.LShift: "shifts are not allowed",
    ast.RShift: "shifts are not allowed",
    ast.JoinedStr: "f-strings are not allowed; add texts with '+'",
    ast.Lambda: "lambda is not allowed here",
    ast.ListComp: "comprehensions are not allowed; move this to a function",
    ast.SetComp: "comprehensions are not allowed; move this to a function",
    ast.DictComp: "comprehensions are not allowed; move this to a function",
    ast.GeneratorExp: "comprehensions are not allowed; move this to a function",
    ast.Starred: "stars are not allowed",
    ast.NamedExpr: "assignment is not allowed; '==' compares",
    ast.Set: "sets are not allowed; write a list",
}


class _Compiler:
    """Turns one checked syntax tree into nested plain functions."""

    def __init__(self, text: str, names: Collection[str], bound: tuple[str, ...]) -> None:
        # A text may be folded over lines in its file; columns count in the text as one line.
        self.text = text.replace("\n", " ").rstrip()
        self.start = len(self.text) - len(self.text.lstrip())
        self.names = names
        self.bound = bound

    def compile(self) -> Step:
        return self.step(self.parse())

    def parse(self) -> ast.expr:
        if len(self.text) > MAX_CHARACTERS:
            raise ExpressionError(f"longer than {MAX_CHARACTERS} characters; move it to a function", MAX_CHARACTERS)
        if not self.text:
            raise ExpressionError("an expression is empty")
        try:
            tree = ast.parse(self.text[self.start :], mode="eval").body
        except SyntaxError as error:
            column = self.start + error.offset if error.offset else len(self.text) + 1
            raise ExpressionError(_syntax_message(self.text, error), column) from None
        except (ValueError, RecursionError, MemoryError):
            raise ExpressionError("this cannot be read as an expression") from None
        if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
            raise ExpressionError(f"more than {MAX_NODES} parts; move it to a function")
        return tree

    def refuse(self, node: ast.AST, message: str) -> ExpressionError:
        offset: int = getattr(node, "col_offset", 0)
        if isinstance(node, ast.Attribute):
            offset = (node.end_col_offset or 0) - len(node.attr.encode())
        before = self.text[self.start :].encode()[:offset]  # the parser counts bytes
        return ExpressionError(message, self.start + len(before.decode(errors="ignore")) + 1)

    def step(self, node: ast.expr) -> Step:
        read = getattr(self, f"read_{type(node).__name__.lower()}", None)
        if read is None:
            raise self.refuse(node, REFUSED.get(type(node), f"{type(node).__name__} is not allowed in an expression"))
        found: Step = read(node)
        return found

    def steps(self, nodes: Sequence[ast.expr]) -> tuple[Step, ...]:
        return tuple(self.step(node) for node in nodes)

    def read_constant(self, node: ast.Constant) -> Step:
        value = node.value
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise self.refuse(node, f"a {type(value).__name__} literal is not allowed")
        return lambda _: value

    def read_name(self, node: ast.Name) -> Step:
        if node.id in self.bound:
            return operator.itemgetter(0) if self.bound.index(node.id) == 0 else Given._asdict
        if node.id in self.names:
            return operator.itemgetter(Given._fields.index(node.id))
        known = [*self.names, *self.bound, *FUNCTIONS]
        near = nearest(node.id, known)
        hint = f"did you mean {near!r}?" if near else f"a field of the record is written data.{node.id}"
        raise self.refuse(node, f"unknown name {node.id!r}; {hint}")

    def read_attribute(self, node: ast.Attribute) -> Step:
        name, path = node.attr, ast.unparse(node)
        if name.startswith("_"):
            raise self.refuse(node, f"{name!r} begins with an underscore; write a field of that name as data[{name!r}]")
        if self.bound[:1] == ("state",) and path == "state.data":
            return operator.itemgetter(0)
        inner = self.step(node.value)

        def field(given: Given) -> Any:
            value = inner(given)
            # `in` first: asking a defaultdict for a missing key would write it into the record.
            if (type(value) is dict or isinstance(value, Mapping)) and name in value:
                return value[name]
            raise _missing(value, name, path)

        return field

    def read_subscript(self, node: ast.Subscript) -> Step:
        inner, path = self.step(node.value), ast.unparse(node)
        key = self.read_slice(node.slice) if isinstance(node.slice, ast.Slice) else self.step(node.slice)

        def item(given: Given) -> Any:
            value, wanted = inner(given), key(given)
            if isinstance(value, Mapping) and wanted not in value:
                raise _missing(value, wanted, path)
            try:
                return value[wanted]
            except IndexError:
                raise _missing(value, wanted, path) from None

        return item

    def read_slice(self, node: ast.Slice) -> Step:
        ends = tuple(self.step(end) if end is not None else None for end in (node.lower, node.upper, node.step))
        return lambda given: slice(*[end(given) if end is not None else None for end in ends])

    def read_list(self, node: ast.List) -> Step:
        items = self.steps(node.elts)
        return lambda given: [item(given) for item in items]

    def read_tuple(self, node: ast.Tuple) -> Step:
        items = self.steps(node.elts)
        return lambda given: tuple([item(given) for item in items])

    def read_dict(self, node: ast.Dict) -> Step:
        pairs: list[tuple[Step, Step]] = []
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                raise self.refuse(value, REFUSED[ast.Starred])
            pairs.append((self.step(key), self.step(value)))
        return lambda given: {key(given): value(given) for key, value in pairs}

    def read_boolop(self, node: ast.BoolOp) -> Step:
        *first, last = self.steps(node.values)
        stop_at = isinstance(node.op, ast.Or)

        def combined(given: Given) -> Any:
            for item in first:
                value = item(given)
                if bool(value) is stop_at:
                    return value
            return last(given)

        return combined

    def read_unaryop(self, node: ast.UnaryOp) -> Step:
        apply, inner = UNARY.get(type(node.op)), self.step(node.operand)
        if apply is None:
            raise self.refuse(node, "'~' is not allowed")
        return lambda given: apply(inner(given))

    def read_binop(self, node: ast.BinOp) -> Step:
        apply = BINARY.get(type(node.op))
        if apply is None:
            raise self.refuse(node, REFUSED.get(type(node.op), f"{type(node.op).__name__} is not allowed"))
        if isinstance(node.op, ast.Mod) and isinstance(node.left, (ast.Constant, ast.Tuple, ast.List, ast.Dict)):
            value = getattr(node.left, "value", ())
            if not isinstance(value, (int, float)):
                raise self.refuse(node, "'%' works on numbers only")
        left, right = self.step(node.left), self.step(node.right)
        return lambda given: apply(left(given), right(given))

    def read_compare(self, node: ast.Compare) -> Step:
        for operation, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(operation, (ast.Is, ast.IsNot)) and not _is_singleton(right_node):
                raise self.refuse(right_node, "'is' compares with None, True or False only; use '=='")
        first = self.step(node.left)
        rest = [(COMPARE[type(op)], self.step(right)) for op, right in zip(node.ops, node.comparators, strict=True)]
        if len(rest) == 1:
            compare, second = rest[0]
            return lambda given: compare(first(given), second(given))

        def chain(given: Given) -> Any:
            left, result = first(given), True
            for compare, step in rest:
                right = step(given)
                result = compare(left, right)
                if not result:
                    break
                left = right
            return result

        return chain

    def read_ifexp(self, node: ast.IfExp) -> Step:
        test, yes, no = self.step(node.test), self.step(node.body), self.step(node.orelse)
        return lambda given: yes(given) if test(given) else no(given)

    def read_call(self, node: ast.Call) -> Step:
        if node.keywords:
            raise self.refuse(node.keywords[0].value, "arguments by keyword are not allowed")
        arguments = self.steps(node.args)
        if isinstance(node.func, ast.Attribute):
            return self.method(node.func, arguments)
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise self.refuse(node.func, f"only these functions can be called: {listed(FUNCTIONS)}")
        function = FUNCTIONS[node.func.id]
        return lambda given: function(*[argument(given) for argument in arguments])

    def method(self, node: ast.Attribute, arguments: tuple[Step, ...]) -> Step:
        name, path = node.attr, ast.unparse(node)
        if name not in METHODS:
            raise self.refuse(node, f"method {name!r} is not allowed; these are: {listed(METHODS)}")
        least, most = METHODS[name]
        if not least <= len(arguments) <= most:
            raise self.refuse(node, f"{name}() takes {least} to {most} arguments, not {len(arguments)}")
        inner = self.step(node.value)
        kind: type = str if name in TEXT_METHODS else Mapping

        def called(given: Given) -> Any:
            value = inner(given)
            if not isinstance(value, kind):
                raise TypeError(f"{path!r}: {name}() works on {_KIND_NAMES[kind]}, not on {type(value).__name__}")
            return getattr(value, name)(*[argument(given) for argument in arguments])

        return called


_KIND_NAMES: Mapping[type, str] = {str: "text", Mapping: "mappings"}


def _is_singleton(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool))


def _syntax_message(text: str, error: SyntaxError) -> str:
    try:
        statements = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"this is no expression: {error.msg}"
    if any(isinstance(statement, (ast.Assign, ast.AugAssign, ast.AnnAssign)) for statement in statements):
        return "assignment is not allowed; '==' compares"
    return "only one expression is allowed" if len(statements) > 1 else "a statement is not allowed"
