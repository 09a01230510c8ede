"""Machines written in Python; they pass through the same reader as files, so the same rules hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias  # Any: users' functions, schemas and metadata, of any type

from wirestate.machine.config import load_machine
from wirestate.machine.definition import Machine

Written: TypeAlias = dict[str, Any]
Function: TypeAlias = Callable[..., Any] | str | Mapping[str, Any]
Functions: TypeAlias = Function | Sequence[Function]
Resources: TypeAlias = Sequence[str | Mapping[str, Any]] | Mapping[str, Any]


def arc(
    target: str,
    *,
    source: str | None = None,
    when: Function | None = None,
    transforms: Functions | None = None,
    resources: Resources | None = None,
    priority: int | None = None,
    catch: str | Sequence[str] | None = None,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Written:
    """Write an arc; one that stands beside the states needs its *source*."""
    return _said(
        target=target,
        condition=when,
        transforms=transforms,
        resources=resources,
        priority=priority,
        catch=catch,
        name=name,
        metadata=metadata,
        **{"from": source},
    )


def state(
    name: str,
    *,
    start: bool | None = None,
    end: bool | None = None,
    schema: Mapping[str, Any] | str | None = None,
    pre_validators: Functions | None = None,
    validators: Functions | None = None,
    post_validators: Functions | None = None,
    transforms: Functions | None = None,
    end_test: Function | None = None,
    arcs: Sequence[Written | str] | None = None,
    on_error: Sequence[Written | str] | Written | str | None = None,
    on_reject: Sequence[Written | str] | Written | str | None = None,
    on_timeout: Sequence[Written | str] | Written | str | None = None,
    resources: Resources | None = None,
    data_mode: str | None = None,
    retry: int | Mapping[str, Any] | None = None,
    timeout: float | None = None,
    offload: bool | None = None,
    emit_output: bool | None = None,
    outcome: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Written:
    """Write a state; arguments mean what the keys of the same names mean in a file."""
    return _said(
        name=name,
        is_start=start,
        is_end=end,
        schema=schema,
        pre_validators=pre_validators,
        validators=validators,
        post_validators=post_validators,
        transforms=transforms,
        end_test=end_test,
        arcs=arcs,
        on_error=on_error,
        on_reject=on_reject,
        on_timeout=on_timeout,
        resources=resources,
        data_mode=data_mode,
        retry=_retry(retry),
        timeout=timeout,
        offload=offload,
        emit_output=emit_output,
        outcome=outcome,
        metadata=metadata,
    )


def machine(
    *states: Written | str,
    name: str = "machine",
    arcs: Sequence[Written] | None = None,
    start: str | None = None,
    version: str | None = None,
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    resources: Resources | None = None,
    functions: Mapping[str, Function] | None = None,
    data_mode: str | None = None,
    max_transitions: int | None = None,
    timeout: float | None = None,
) -> Machine:
    """Build a machine of one network from what `state` and `arc` wrote.

    Example:
        >>> lights = machine(
        ...     state("red", arcs=[arc("green", when="data.cars > 0"), arc("dark")]),
        ...     state("green", end=True),
        ...     state("dark", end=True),
        ... )
        >>> lights.start
        'red'

    Raises:
        BuildError: with everything that is wrong.
    """
    written = _said(
        name=name,
        states=list(states),
        arcs=arcs,
        initial_state=start,
        version=version,
        description=description,
        metadata=metadata,
        resources=resources,
        functions=functions,
        data_mode=data_mode,
        max_transitions=max_transitions,
        timeout=timeout,
    )
    return load_machine(written)


def _said(**keys: Any) -> Written:
    return {key: value for key, value in keys.items() if value is not None}


def _retry(retry: int | Mapping[str, Any] | None) -> int | Mapping[str, Any] | None:
    if not isinstance(retry, Mapping) or "on" not in retry:
        return retry
    kinds = [retry["on"]] if isinstance(retry["on"], (str, type)) else retry["on"]
    paths = [f"{kind.__module__}:{kind.__qualname__}" if isinstance(kind, type) else kind for kind in kinds]
    return {**retry, "on": paths}
