"""The public face of a machine: build it, run records through it, ask it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, Self

from wirestate.errors import AsyncInSyncRunError, MachineClosedError, RecordInUseError
from wirestate.injection.container import settings_of
from wirestate.machine.build import build
from wirestate.machine.config import load_machine
from wirestate.machine.definition import DataMode, Machine
from wirestate.machine.engine import NO_OPTIONS, Options
from wirestate.machine.graph import render
from wirestate.machine.results import RunResult
from wirestate.observing import Listener
from wirestate.redaction import half_made_too
from wirestate.resources.lending import refuse_names
from wirestate.resources.manager import ResourceManager
from wirestate.resources.recipes import LIFETIME_WORDS
from wirestate.running.batch import run_batch
from wirestate.running.progress import OnProgress
from wirestate.running.rows import Row, StopSignal, unstarted
from wirestate.running.sinks import Receiver
from wirestate.running.stream import StreamSummary, run_stream
from wirestate.waiting import BLOCKING, SUSPENDING, World, drive

Function = Callable[..., Any]  # Any: users' functions have any signature


class SimpleFSM:
    """A machine, built and checked, ready to run records.

    Args:
        config: a YAML or JSON file, a mapping, or a :class:`Machine` from the builders.
        container: any dependency-injector container; states take their resources from it. It stays open
            when the machine is closed.
        resources: name -> resource provider, settings, generator or context manager function, or plain object;
            wins over the configuration's.
        functions: name -> function, or a module: what its ``__all__`` names, else the public functions it defines.
        data_mode: ``copy`` (the caller's record never changes), ``reference`` or ``direct``.
        imports: prefixes of the modules that the configuration, and settings in *resources*, may name things of;
            what is named must be defined in one of them. None allows all.
        allow_inline_code: let the configuration hold single Python expressions.
        config_root: folder that ``$include`` may reach besides the configuration's own.
        environ: where ``${VAR}`` in the configuration is looked up; None is the process's environment.
        listener: hears of leases, leaks, breakers and health; set on a *container* that is handed in, too.

    Raises:
        BuildError: everything that is wrong, in one report; nothing was opened.

    Example:
        >>> machine = {"states": {"greet": {"transform": "greet"}}}
        >>> with SimpleFSM(machine, functions={"greet": lambda record: {"text": "Hi " + record["name"]}}) as fsm:
        ...     fsm.process({"name": "Ada"}).data
        {'text': 'Hi Ada'}
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | Machine,
        *,
        container: Any = None,  # Any: the library's containers share no typed base
        resources: Mapping[str, Any] | None = None,
        functions: Mapping[str, Function] | ModuleType | None = None,
        data_mode: DataMode | None = None,
        imports: Sequence[str] | None = None,
        allow_inline_code: bool = False,
        config_root: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
        listener: Listener | None = None,
    ) -> None:
        given = functions_of(functions)
        self.machine = load_machine(
            config, allow_inline_code=allow_inline_code, config_root=config_root, environ=environ, given=given
        )
        self._built = build(
            self.machine,
            container=container,
            resources=resources or {},
            functions=given,
            imports=imports,
            data_mode=data_mode,
        )
        if listener is not None:
            self._built.listen(listener)
        self._engine = self._built.engine
        self._reads = _files_read(self.machine, container)
        self._asynchronous = self._built.asynchronous

    # --- running -------------------------------------------------------------------------

    def process(
        self,
        record: Any,
        *,
        initial_state: str | None = None,
        timeout: float | None = None,
        owner_id: str | None = None,
        raise_on_error: bool = False,
    ) -> RunResult:
        """Run one record.

        Args:
            record: a mapping.
            initial_state: where to begin instead of the start.
            timeout: seconds for the whole run.
            owner_id: the owner of what the run holds; by default ``run-<id>``.
            raise_on_error: raise the error of a run that does not succeed.

        Raises:
            AsyncInSyncRunError: a function or resource is asynchronous; use :meth:`aprocess`.
            UnknownStateError: *initial_state* does not exist.
            OwnerInUseError: *owner_id* has an open scope.
            RecordInUseError: another run works on this very object (``reference``, ``direct``).
        """
        self._check_runnable(BLOCKING)
        result = self._engine.run_blocking(record, _options(initial_state, timeout, owner_id))
        if raise_on_error:
            result.raise_error()
        return result

    async def aprocess(
        self,
        record: Any,
        *,
        initial_state: str | None = None,
        timeout: float | None = None,
        owner_id: str | None = None,
        raise_on_error: bool = False,
    ) -> RunResult:
        """Asynchronous twin of :meth:`process`; runs asynchronous functions and plain ones."""
        self._check_runnable(SUSPENDING)
        result = await self._engine.run(record, SUSPENDING, _options(initial_state, timeout, owner_id))
        if raise_on_error:
            result.raise_error()
        return result

    def process_batch(
        self,
        records: Iterable[Any],
        *,
        max_workers: int | None = None,
        executor: Executor | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> list[RunResult]:
        """Run many records; results come in the order of *records*, a record's failure is its result.

        Args:
            records: mappings.
            max_workers: threads that run at once; None is one, in the caller's thread.
            executor: a thread pool to use instead of own threads.
            on_progress: called with a Progress, or with ``(done, total)``, at most ten times a second.
            timeout: seconds for the whole batch.
        """
        self._check_runnable(BLOCKING)
        return drive(
            run_batch(
                self._run_one,
                records,
                world=BLOCKING,
                max_workers=max_workers,
                executor=executor,
                on_progress=on_progress,
                timeout=timeout,
            )
        )

    async def aprocess_batch(
        self,
        records: Iterable[Any],
        *,
        max_workers: int | None = None,
        executor: Executor | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> list[RunResult]:
        """Asynchronous twin of :meth:`process_batch`: 10 tasks unless *max_workers* says otherwise."""
        self._check_runnable(SUSPENDING)
        return await run_batch(
            self._run_one,
            records,
            world=SUSPENDING,
            max_workers=max_workers,
            executor=executor,
            on_progress=on_progress,
            timeout=timeout,
        )

    def process_stream(
        self,
        source: str | Path | Iterable[Any],
        sink: Receiver | None = None,
        *,
        max_in_flight: int | None = None,
        ordered: bool = True,
        workers: int | None = None,
        rejects: Receiver | None = None,
        on_progress: OnProgress | None = None,
        max_failures: int | None = None,
        stop: StopSignal | None = None,
        limit: int | None = None,
        **later: Any,
    ) -> StreamSummary:
        """Run the records of a file or iterable, in flat memory.

        Args:
            source: a path or URL (``.csv .tsv .jsonl .json .txt``, compressed too), or an iterable of mappings.
            sink: a path, or a callable ``sink(record)`` or ``sink(record, result)``; gets successful records.
            max_in_flight: records that may be read and not yet handed over.
            ordered: hand over in the order of the source.
            workers: threads that run at once; None is one, in the caller's thread.
            rejects: a path or callable for what was rejected or failed.
            on_progress: called with a Progress, or with ``(done, total)``.
            max_failures: stop reading when so many records have failed.
            stop: an Event; once set, no new record begins.
            limit: read no more records than this.
            later: ``commit``, ``run_id``, ``ledger``, ``key``: refused by name, a later release brings them.

        Raises:
            SourceError: the source failed; ``summary`` says what had been done.
            MachineClosedError: the machine was closed meanwhile; ``summary`` says what had been done.
            SinkError: sink or rejects cannot be written, or are another's file too; ``summary`` as above.
        """
        self._check_runnable(BLOCKING)
        return drive(
            run_stream(
                self._run_one,
                source,
                sink,
                world=BLOCKING,
                max_in_flight=max_in_flight,
                ordered=ordered,
                workers=workers,
                rejects=rejects,
                on_progress=on_progress,
                max_failures=max_failures,
                stop=stop,
                limit=limit,
                also_read=self._reads,
                refusal=self._engine.refusal,
                **later,
            )
        )

    async def aprocess_stream(
        self,
        source: str | Path | Iterable[Any] | AsyncIterable[Any],
        sink: Receiver | None = None,
        *,
        max_in_flight: int | None = None,
        ordered: bool = True,
        workers: int | None = None,
        rejects: Receiver | None = None,
        on_progress: OnProgress | None = None,
        max_failures: int | None = None,
        stop: StopSignal | None = None,
        limit: int | None = None,
        **later: Any,
    ) -> StreamSummary:
        """Asynchronous twin of :meth:`process_stream`; takes asynchronous sources and sinks too.

        Paths, URLs, generators and other iterators are read in a thread, since they may wait; lists and the like here.
        A generator that is left before its end is closed in that thread, but not behind a *limit*.
        Files are written and plain functions called in another thread, many records at a time; only methods of lists
        and the like, and those of asyncio's own things such as queues, are called here. A stream that is cancelled
        waits for the call that it makes.
        """
        self._check_runnable(SUSPENDING)
        return await run_stream(
            self._run_one,
            source,
            sink,
            world=SUSPENDING,
            max_in_flight=max_in_flight,
            ordered=ordered,
            workers=workers,
            rejects=rejects,
            on_progress=on_progress,
            max_failures=max_failures,
            stop=stop,
            limit=limit,
            also_read=self._reads,
            refusal=self._engine.refusal,
            **later,
        )

    async def _run_one(self, record: Any, position: int | None, line: int | None, world: World) -> RunResult:
        try:
            return await self._engine.run(record, world, Options(position=position, line=line))
        except (MachineClosedError, RecordInUseError) as error:  # one record among many, and it did not begin
            if isinstance(error, MachineClosedError) and self._engine.refusal() is None:  # another machine's
                raise
            return unstarted(Row(record, line, position or 0), "failed", "limit", error)

    def _check_runnable(self, world: World) -> None:
        if (refusal := self._engine.refusal()) is not None:
            raise refusal
        if self._asynchronous and not world.is_async:
            # An override may have changed it since the machine was built.
            parts = self._built.asynchronous_now()
            if parts:
                raise AsyncInSyncRunError(
                    f"a synchronous run cannot run {', '.join(parts)}: asynchronous. "
                    "Use the a-twin: process -> aprocess, process_batch -> aprocess_batch, …"
                )

    # --- asking --------------------------------------------------------------------------

    @property
    def is_async(self) -> bool:
        """True if only the a-twins can run this machine: a function or resource is asynchronous."""
        return bool(self._asynchronous)

    @property
    def manager(self) -> ResourceManager:
        """The manager behind this machine's resources: its container's, else its own."""
        return self._built.manager

    @property
    def containers(self) -> list[Any]:  # Any: the library's containers share no typed base
        """Where names are looked up: in what this machine declares, then in the container that was handed in."""
        return self._built.planner.containers

    def graph(
        self,
        format: Literal["mermaid", "dot"] = "mermaid",
        *,
        resources: bool = True,
        path: Sequence[str] | None = None,
    ) -> str:
        """Draw the machine as Mermaid or DOT text; *path* marks the way of one run."""
        words = {name: LIFETIME_WORDS[entry.level] for name, entry in self._built.entries.items()}
        used = self._built.used() if resources else None
        return render(self.machine, format, resources=resources, lifetimes=words, injected=used, path=path)

    @half_made_too
    def __repr__(self) -> str:
        states = len(self.machine.main.states)
        return f"<SimpleFSM {self.machine.name!r}: {states} states, starts in {self.machine.start!r}>"

    # --- the end -------------------------------------------------------------------------

    def close(self) -> None:
        """End the runs of this machine, and close what it made; a container that was handed in stays open.

        No further record of a batch or stream begins, and no further state of a run: what a run holds at this moment
        is rolled back. A stream raises :exc:`MachineClosedError`, as do later calls.

        Raises:
            AsyncResourceError: something asynchronous is open; nothing was closed, use :meth:`aclose`.
        """
        drive(self._close(BLOCKING))

    async def aclose(self) -> None:
        """Asynchronous twin of :meth:`close`."""
        await self._close(SUSPENDING)

    async def _close(self, world: World) -> None:
        own, engine = self._built.own, self._engine
        if not world.is_async:
            names = [] if own is None or own.closed else own.async_names()
            refuse_names(engine.async_names() + names, "close()", "aclose()")
        engine.close()
        try:
            if own is not self.manager:  # else their end is its end
                await engine.end_runs(world)
        except BaseException:
            await _close_manager(own, world)
            raise
        await _close_manager(own, world)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


async def _close_manager(manager: ResourceManager | None, world: World) -> None:
    if manager is not None:
        await manager.aclose() if world.is_async else manager.close()


def _options(initial_state: str | None, timeout: float | None, owner_id: str | None) -> Options:
    if initial_state is None and timeout is None and owner_id is None:
        return NO_OPTIONS
    return Options(initial_state, timeout, owner_id)


def _files_read(machine: Machine, container: Any) -> dict[str, str]:
    """Return the files that no run may write, as they are named now: the machine's, and those of the settings."""
    settings = settings_of(container) if container is not None else None
    profiles = [os.environ.get("WIRESTATE_PROFILE"), *(settings.profiles() if settings is not None else ())]
    named = {"machine": machine.file, **{f"profile {path}": path for path in profiles}}
    return {name: os.path.abspath(path) for name, path in named.items() if path}


def functions_of(functions: Mapping[str, Function] | ModuleType | None) -> dict[str, Function]:
    """Return functions by name: those given, or of a module those in ``__all__``, else its own public callables."""
    if functions is None:
        return {}
    if not isinstance(functions, ModuleType | Mapping):
        raise TypeError(
            f"functions= takes a mapping of names to functions, or a module, not {type(functions).__name__}"
        )
    if isinstance(functions, ModuleType):
        listed = getattr(functions, "__all__", None)
        if listed is not None:
            return {name: value for name in listed if callable(value := getattr(functions, name))}
        return {
            name: value
            for name, value in vars(functions).items()
            if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == functions.__name__
        }
    return dict(functions)
