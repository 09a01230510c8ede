"""The operators and functions of safe expressions, with bounded results."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sized
from numbers import Number
from typing import Any  # Any: the values of a record, of any type

MAX_LENGTH = 100_000
MAX_DIGITS = 100  # round(x, -n) computes 10 ** n


def _bounded(length: int) -> None:
    if length > MAX_LENGTH:
        raise ValueError(f"a result would be longer than {MAX_LENGTH} characters or items")


def _length(value: object) -> int:
    return len(value) if isinstance(value, Sized) else 0


def _size(value: object) -> int:
    """Return how many characters and items *value* holds at all depths; counting ends above MAX_LENGTH."""
    total, pending = 0, [value]
    while pending and total <= MAX_LENGTH:
        item = pending.pop()
        if isinstance(item, Mapping):
            item = [*item.keys(), *item.values()]
        if isinstance(item, (list, tuple, set, frozenset)):
            total += len(item)
            if total <= MAX_LENGTH:
                pending.extend(item)
        else:
            total += item.bit_length() // 4 if isinstance(item, int) else _length(item)
    return total


def _add(left: Any, right: Any) -> Any:
    _bounded(_length(left) + _length(right))
    return left + right


def _multiply(left: Any, right: Any) -> Any:
    for repeated, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(repeated, Sized):
            _bounded(_size(repeated) * times)  # what stands in it is repeated too, when it is compared or printed
    return left * right


def _text(value: object = "", /) -> str:
    _bounded(_size(value))
    text = str(value)
    _bounded(len(text))
    return text


def _sum(items: Any, start: Any = 0, /) -> Any:
    found = [start, *items]
    for item in found:
        if not isinstance(item, Number):  # adding lists one by one takes as long as its square
            raise TypeError(f"sum() works on numbers, not on {type(item).__name__}")
    return sum(found)


def _on_numbers(sign: str, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def checked(left: Any, right: Any) -> Any:
        # '%' on a text formats it, and '%1000000000d' % 3 takes seconds and a gigabyte.
        if isinstance(left, Number) and isinstance(right, Number):
            return apply(left, right)
        raise TypeError(f"{sign!r} works on numbers, not on {type(left).__name__} and {type(right).__name__}")

    return checked


def _round(value: Any, digits: int = 0, /) -> Any:
    if not -MAX_DIGITS <= digits <= MAX_DIGITS:
        raise ValueError(f"round() takes up to {MAX_DIGITS} digits")
    return round(value, digits) if digits else round(value)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "len": len, "int": int, "float": float, "str": _text, "bool": bool, "abs": abs,
    "min": min, "max": max, "round": _round, "sum": _sum, "any": any, "all": all,
}  # fmt: skip
BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: _add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply,
    ast.Div: _on_numbers("/", operator.truediv),
    ast.FloorDiv: _on_numbers("//", operator.floordiv),
    ast.Mod: _on_numbers("%", operator.mod),
}
UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
