"""References -> callables: names are looked up, modules imported, parameters bound, once per build."""

from __future__ import annotations

import builtins
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn  # Any: users' functions and objects, of any type

from pydantic import TypeAdapter, ValidationError

from wirestate.errors import BuildError, listed, nearest
from wirestate.injection.making import may_make
from wirestate.injection.parameters import parameters_of
from wirestate.injection.wiring import is_wired
from wirestate.machine.builtins import BUILTINS
from wirestate.machine.definition import FunctionRef, Machine, Place, Role, State
from wirestate.machine.faults import (
    BAD_EXPRESSION,
    IMPORT_FAILED,
    IMPORT_REFUSED,
    UNKNOWN_FUNCTION,
    WRONG_PARAMS,
    Code,
    did_you_mean,
    fault_at,
)
from wirestate.machine.guards import CATCH_NAMES, Expression, ExpressionError, compile_expression
from wirestate.machine.variables import Filled
from wirestate.redaction import quoted
from wirestate.settings.imports import ImportRefusedError, Prefixes, attribute_of, import_module
from wirestate.settings.signature import accepted_by

METHODS: Mapping[Role, str] = {
    "transform": "transform",
    "validator": "validate",
    "condition": "test",
    "end_test": "should_end",
}


def resolve_function(
    ref: FunctionRef,
    *,
    given: Mapping[str, Callable[..., Any]],
    machine: Machine,
    imports: Prefixes = None,
    role: Role = "transform",
) -> Callable[..., Any] | Expression | None:
    """Return what *ref* names, with its parameters bound by keyword; None if only making its object could tell.

    Args:
        given: functions of the caller, which are looked at first; then come those of the machine, then built-ins.
        imports: prefixes of the modules that may be imported; None allows all.
        role: which method of a class or object is used.

    Raises:
        BuildError: with one fault that says what is missing, where, and what is near.
    """
    target, params = _found(ref, given, machine, imports, ())
    _check_params(target, params, ref)
    if inspect.isclass(target):
        _refuse_injected_constructor(target, params, ref)
    if any(target is builtin for builtin in BUILTINS.values()):
        params = {name: _fitting(name, value, _types_of(target)[name], ref) for name, value in params.items()}
    if inspect.isclass(target):
        return _by_role(_made(target, params, ref), ref, role) if may_make(target) else _unmade(target, role)
    found = _by_role(target, ref, role)
    return functools.partial(found, **params) if params else found


def resolve_exceptions(state: State, *, imports: Prefixes = None) -> tuple[type[Exception], ...]:
    """Return the exceptions of a state's ``retry.on``: ``pkg.mod:Class``, ``pkg.mod.Class`` or a built-in name."""
    found: list[type[Exception]] = []
    for path in state.retry.on if state.retry else ():
        kind = getattr(builtins, path, None)
        if kind is None:
            dotted = path if ":" in path else ":".join(path.rsplit(".", 1))
            dotted = Filled(dotted, path.written) if isinstance(path, Filled) else dotted
            kind = import_object(dotted, place=state.place, imports=imports)
        if not (inspect.isclass(kind) and issubclass(kind, Exception)):
            _fail(IMPORT_FAILED, f"state {state.name!r}: 'retry.on' {path!r} is no Exception class", state.place)
        found.append(kind)
    return tuple(found)


def import_object(path: str, *, place: Place, imports: Prefixes = None) -> Any:
    """Return what ``pkg.mod:attr`` or ``pkg.mod:Class.method`` names."""
    module_name, _, attributes = path.partition(":")
    try:
        found: Any = import_module(module_name, imports)
        for name in attributes.split("."):
            if not hasattr(found, name):
                _nothing_of_that_name(path, found, name, place)
            found = attribute_of(found, name, imports)
    except BuildError:
        raise
    except ImportRefusedError as error:
        _fail(IMPORT_REFUSED, f"{path!r} {error}", place)
    except Exception as error:
        if isinstance(path, Filled):  # the error names the module, which came from the environment
            _fail(IMPORT_FAILED, f"{path!r}: {type(error).__name__}", place)
        fault = fault_at(IMPORT_FAILED, f"{path!r}: {quoted(error)}", place)
        raise BuildError([fault]) from error
    return found


def _nothing_of_that_name(path: str, found: Any, name: str, place: Place) -> NoReturn:
    if isinstance(path, Filled):
        _fail(IMPORT_FAILED, f"{path!r}: there is nothing of that name", place)
    owner = getattr(found, "__qualname__", None) or getattr(found, "__name__", type(found).__name__)
    near = did_you_mean(nearest(name, [other for other in dir(found) if not other.startswith("_")]))
    _fail(IMPORT_FAILED, f"{path!r}: {owner!r} has no {name!r}", place, near)


def _fail(code: Code, message: str, place: Place, *help_lines: str | None) -> NoReturn:
    raise BuildError([fault_at(code, message, place, *help_lines)]) from None


def _found(
    ref: FunctionRef,
    given: Mapping[str, Callable[..., Any]],
    machine: Machine,
    imports: Prefixes,
    seen: tuple[str, ...],
) -> tuple[Any, Mapping[str, Any]]:
    """Return the object behind a reference, and the parameters that were said on the way to it."""
    if ref.kind == "call":
        return ref.call, ref.params
    if ref.kind == "expression":
        return _expression(ref), ref.params
    if ref.kind == "import":
        return import_object(ref.name, place=ref.place, imports=imports), ref.params
    if ref.name in given:
        return given[ref.name], ref.params
    if ref.name in machine.functions and ref.name not in seen:
        target, params = _found(machine.functions[ref.name], given, machine, imports, (*seen, ref.name))
        return target, {**params, **ref.params}
    if ref.name not in BUILTINS:
        _unknown(ref, [*given, *machine.functions, *BUILTINS], seen)
    return BUILTINS[ref.name], ref.params


def _unknown(ref: FunctionRef, known: Sequence[str], seen: tuple[str, ...]) -> NoReturn:
    near = nearest(ref.name, [name for name in known if name not in seen])
    advice = None if near else "Pass it with functions=, name it as 'pkg.mod:attr', or write an expression over data."
    why = "names itself" if ref.name in seen else "is not known"
    _fail(UNKNOWN_FUNCTION, f"function {ref.name!r} {why}", ref.place, did_you_mean(near), advice)


def _expression(ref: FunctionRef) -> Callable[..., Any]:
    code = ref.code or ""
    if ref.inline:
        return _inline(ref, code)
    try:
        return compile_expression(code, names=frozenset() if ref.bound else CATCH_NAMES, bound=ref.bound)
    except ExpressionError as error:
        _fail(BAD_EXPRESSION, f"{ref.name!r}: column {error.column}: {error}", ref.place)


def _inline(ref: FunctionRef, code: str) -> Callable[..., Any]:
    """Return the function of Python code that ``allow_inline_code=True`` let in: one lambda or one expression."""
    try:
        compiled = compile(code, ref.place.file or "<config>", "eval")
        if code.lstrip().startswith("lambda"):
            function: Callable[..., Any] = eval(compiled, {})
            return function
    except Exception as error:
        fault = fault_at(BAD_EXPRESSION, f"inline code: {quoted(error)}", ref.place)
        raise BuildError([fault]) from error
    return lambda data, context: eval(compiled, {}, {"data": data, "context": context})


def _made(kind: type, params: Mapping[str, Any], ref: FunctionRef) -> Any:
    try:
        return kind(**params)
    except Exception as error:  # it is a user's constructor, which may raise anything
        fault = fault_at(WRONG_PARAMS, f"{ref.name!r} cannot be made: {quoted(error)}", ref.place)
        raise BuildError([fault]) from error


def _unmade(kind: type, role: Role) -> Callable[..., Any] | None:
    """Return what has the signature of the method of an object that was not made; nothing calls it."""
    for name in (METHODS[role], "__call__"):
        method: Any = inspect.getattr_static(kind, name, None)
        if isinstance(method, staticmethod | classmethod):
            return getattr(kind, name)  # type: ignore[no-any-return]  # a function of a user's, of any signature
        if inspect.isfunction(method) or hasattr(method, "__wrapped__"):
            return functools.partial(method, None)
    return None


def _check_params(target: Any, params: Mapping[str, Any], ref: FunctionRef) -> None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some callables of C have none
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY]
    for name in params:
        if name not in known:
            message = f"{ref.name!r} has no parameter {name!r}"
            _fail(WRONG_PARAMS, message, ref.place, did_you_mean(nearest(name, known)), f"It has: {listed(known)}")


def _refuse_injected_constructor(kind: type, params: Mapping[str, Any], ref: FunctionRef) -> None:
    """Refuse a class whose constructor wants resources: it is called once, at the build, when nothing is open."""
    constructor = kind.__init__  # type: ignore[misc]  # asked about, not called
    for parameter in parameters_of(kind) or ():
        wanted = parameter.marker is not None or parameter.meant
        if wanted and parameter.name not in params and not is_wired(constructor, parameter.name):
            message = f"{ref.name!r} is made when the machine is built, and its constructor injects {parameter.name!r}"
            _fail(WRONG_PARAMS, message, ref.place, "Inject it in the method that gets the record.")


@functools.cache
def _types_of(builtin: Callable[..., Any]) -> Mapping[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(kind) for name, kind in accepted_by(builtin).types.items()}


def _fitting(name: str, value: Any, kind: TypeAdapter[Any], ref: FunctionRef) -> Any:
    """Return a parameter of a built-in as it is annotated; a text may stand for a number, as what a variable gives."""
    try:
        made = kind.validate_python(value, strict=not isinstance(value, str))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where, text = ".".join(map(str, (name, *wrong["loc"]))), wrong["msg"].removeprefix("Input ")
        _fail(WRONG_PARAMS, f"{ref.name!r}: parameter {where!r}: {text}", ref.place)
    return made if isinstance(value, str) else value


def _by_role(target: Any, ref: FunctionRef, role: Role) -> Callable[..., Any]:
    # Looked for without asking: a mock would make the method up.
    has_method = not inspect.isroutine(target) and inspect.getattr_static(target, METHODS[role], None) is not None
    method = getattr(target, METHODS[role], None) if has_method else None
    found: Callable[..., Any] = method if callable(method) else target
    if not callable(found):
        message = f"{ref.name!r} is {type(target).__name__}, which has neither {METHODS[role]}() nor __call__()"
        _fail(UNKNOWN_FUNCTION, message, ref.place)
    return found
