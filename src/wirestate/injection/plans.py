"""What one function needs from one container: compiled once, checked for overrides at every use."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dependency_injector import providers
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from wirestate.errors import BuildError, Fault, LifetimeMismatchError, ResourceError, nearest
from wirestate.injection.attributes import Held, held_by
from wirestate.injection.closures import Closure, closure_of, label_of, level_of, refuse_shorter
from wirestate.injection.edges import AnyProvider, Watch, member_of, members_of, provides_of, unchanged
from wirestate.injection.entries import ProviderEntry
from wirestate.injection.home import Home, Lifetime
from wirestate.injection.options import OPTIONS, unreadable, value_of
from wirestate.injection.parameters import Parameter, markers_of, parameters_of
from wirestate.injection.setting_paths import lost_paths
from wirestate.injection.wiring import Marker, Resolver, is_container, is_marker
from wirestate.resources import inherited
from wirestate.resources.manager import ResourceManager
from wirestate.resources.recipes import LIFETIME_WORDS, Recipe
from wirestate.resources.scopes import MISSING, Scope
from wirestate.settings import WirestateSettings
from wirestate.settings.foreign import faults_of


class Plan(NamedTuple):
    """How to call one function: what to open before, and what to hand in."""

    steps: tuple[Recipe, ...]
    own: tuple[tuple[str, Recipe], ...]  # parameters that get a per-state object of the visit
    longer: tuple[tuple[str, Recipe], ...]  # parameters that get what lives longer than the visit
    others: tuple[tuple[str, Callable[[], Any]], ...]  # parameters whose providers are called
    watch: Watch
    suspends: bool  # a provider among the others may give an awaitable
    blocking: bool  # a step can wait in its thread
    manager: ResourceManager | None

    @property
    def is_async(self) -> bool:
        return self.suspends or any(step.is_async for step in self.steps)

    def injected(self, scope: Scope) -> dict[str, Any]:
        """Return the injected arguments; the steps are open in *scope*, and it is the current one."""
        held = scope.held
        ready = {name: held[recipe] for name, recipe in self.own}
        for name, recipe in self.longer:
            value = scope.opened(recipe)
            if value is MISSING:  # it was reset in this instant, or its container closed
                scope.open_blocking((recipe,))
                value = scope.find(recipe)
            ready[name] = value
        for name, provider in self.others:
            try:
                ready[name] = provider()
            except Exception as error:  # of a user's class or conversion
                unread = unreadable(f"parameter {name!r}", [met for met, _ in self.watch])
                if unread is None:
                    raise
                raise unread from error
        return ready

    async def injected_waiting(self, scope: Scope) -> dict[str, Any]:
        """As :meth:`injected`, awaiting what the library's asynchronous providers give."""
        ready = self.injected(scope)
        for name, _ in self.others:
            if inspect.isawaitable(ready[name]):
                ready[name] = await ready[name]
        return ready


class KeptPlans:
    """Plans by the identity of their functions, kept as long as these live.

    Functions are compared by nobody: a callable object need have no hash, and equal ones may inject differently.
    For an object that cannot be referred to weakly no plan is kept; it is compiled at each build.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[Any], Plan]] = {}  # Any: functions of any type

    def get(self, function: Any) -> Plan | None:
        """Return the plan of *function*, if one is kept."""
        found = self._kept.get(id(function))
        return found[1] if found is not None and found[0]() is function else None

    def keep(self, function: Any, plan: Plan) -> None:
        """Keep the plan of *function* until that goes."""
        kept, key = self._kept, id(function)

        def forget(gone: weakref.ref[Any]) -> None:
            if (found := kept.get(key)) is not None and found[0] is gone:
                del kept[key]

        with contextlib.suppress(TypeError):  # a tuple, or an object whose slots have no place for a reference
            kept[key] = weakref.ref(function, forget), plan

    def clear(self) -> None:
        """Keep none of them."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)


EMPTY = Plan((), (), (), (), (), False, False, None)
UNKNOWN = "..."  # what stands between the brackets of a marker where nobody can tell
CODES = {"MissingDriver": "D001", "MissingSetting": "S001", "LifetimeMismatch": "R004", "UnknownSetting": "S004"}


class Planner:
    """Make and keep the plans of one container.

    A plan belongs to (container, function): one function may serve two containers at once, and is
    never bound to either. Plans never refer to their function, so they go when it goes.
    """

    def __init__(self, container: Any, home: Home, *, local: Any = None) -> None:
        self.container = container  # Any: declarative or dynamic
        self.home = home
        self.local = local  # Any: a container whose names shadow the string ids of this one
        self._plans = KeptPlans()
        inherited.forget_at_fork(self)

    def forget_parent(self) -> None:
        """Make every plan anew, in a forked child."""
        self._plans.clear()

    def plan(self, function: Callable[..., Any]) -> Plan:
        """Return the plan for *function* under the overrides of now.

        Raises:
            BuildError: an injection cannot be resolved; all its faults are in the report.
        """
        key = function_key(function)
        found = self._plans.get(key)
        if found is None or not self.is_fresh(found):
            found = self._compile(key)
            self._plans.keep(key, found)
        return found

    def is_fresh(self, plan: Plan) -> bool:
        """Tell whether *plan* is true still: nothing it uses was overridden, restored or closed since."""
        return unchanged(plan.watch) and (plan.manager is None or not plan.manager.closed)

    def _compile(self, function: Callable[..., Any]) -> Plan:
        needs = [(marker, provider) for marker, provider in self.needs(function) if provider is not None]
        closure = closure_of((provider for _, provider in needs), self.home)
        refuse_shorter(closure)
        overridings = dict(closure.watch)  # not those of now: another thread may have changed them
        own: list[tuple[str, Recipe]] = []
        longer: list[tuple[str, Recipe]] = []
        others: list[tuple[str, Callable[[], Any]]] = []
        for marker, provider in needs:
            found = provider
            while (overriding := overridings.get(found)) is not None:
                found = overriding
            if isinstance(found, Lifetime):
                recipe = found.compiled().recipe
                if recipe not in closure.steps:
                    return self._compile(function)
                (own if found.level == 2 else longer).append((marker.parameter, recipe))
            else:
                call = partial(value_of, provider) if isinstance(provider, OPTIONS) else provider
                others.append((marker.parameter, call))
        manager = self.home.manager if closure.steps else None
        blocking = any(step.blocking for step in closure.steps)
        return Plan(
            closure.steps,
            tuple(own),
            tuple(longer),
            tuple(others),
            closure.watch,
            closure.suspends,
            blocking,
            manager,
        )

    def needs(self, function: Callable[..., Any]) -> list[tuple[Marker, AnyProvider | None]]:
        """Return each marker of *function* with the provider it means, None where there is none."""
        main = Resolver(self.container)
        local = None if self.local is None else Resolver(self.local)
        found = []
        for marker in markers_of(function):
            provider = local.provider(marker) if local is not None and isinstance(marker.target, str) else None
            found.append((marker, provider if provider is not None else main.provider(marker)))
        return found

    def later_steps(self, function: Callable[..., Any]) -> tuple[Recipe, ...]:
        """Return what *function* would open by calling the providers that ``Provider[...]`` hands it."""
        found = [provider for marker, provider in self.needs(function) if marker.kind == "Provider"]
        behind = [one.provides for one in found if isinstance(one, providers.Delegate)]
        return closure_of((one for one in behind if isinstance(one, providers.Provider)), self.home).steps

    # --- checks ------------------------------------------------------------------------

    def faults(self, function: Callable[..., Any], where: Where) -> list[Fault]:
        """Return everything that would keep *function* from being called as it is declared."""
        found = [fault for parameter in parameters_of(function) or () for fault in self._unmarked(parameter, where)]
        found += [self._held(held, where) for held in held_by(function)]
        for marker, provider in self.needs(function):
            if marker.positional_only:
                found.append(
                    where.fault(
                        "I003",
                        "PositionalOnly",
                        f"injects {marker.parameter!r}, which is positional-only",
                        f"Take the '/' behind {marker.parameter!r} away: injected values are passed by keyword.",
                    )
                )
            if provider is None:
                found.append(self._unknown(marker, where))
                continue
            found += self._provider_faults(marker, provider, where)
        return found

    def _unmarked(self, parameter: Parameter, where: Where) -> Iterable[Fault]:
        """Yield a fault where a marker was forgotten, stands in the wrong place, or cannot be read."""
        name, unread = parameter.name, parameter.unread
        if parameter.marker is not None:
            return
        if (misplaced := parameter.misplaced) is not None:
            what = "a container" if is_container(misplaced) else "a provider"
            if parameter.collected:
                what = "a marker" if is_marker(misplaced) else what
                text = f"has {what} within the default of {name!r}, where nothing reads it."
            elif is_marker(misplaced):
                text = f"has a marker in the annotation of {name!r}, in a place where nothing reads it."
            elif isinstance(misplaced, type) and not is_container(misplaced):
                text = f"has a marker for {name!r} that names no resource."
            elif misplaced is parameter.declared.default:
                text = f"has {what} as the default of {name!r}, which would be handed in itself."
            else:
                text = f"has {what} in the annotation of {name!r}, which injects nothing."
            meant = self.spelled(misplaced, name)
            help = f"Write {name}=Provide[{meant}], or {name}: Annotated[..., Provide[{meant}]]."
            yield where.fault("I007", "ForgottenMarker", text, help)
        elif unread is not None and unread.marked:
            yield self.unreadable(parameter, where)

    def _held(self, held: Held, where: Where) -> Fault:
        """Return the fault for an attribute that the function would work with as a marker or provider."""
        what = "a marker" if is_marker(held.value) else "a provider"
        meant = self.spelled(held.value, held.parameter)
        return where.fault(
            "I007",
            "ForgottenMarker",
            f"holds {what} in its attribute {held.attribute!r}, where nothing replaces it.",
            f"Take it as a parameter: def {held.method}(self, record, {held.parameter}=Provide[{meant}]).",
        )

    def unreadable(self, parameter: Parameter, where: Where) -> Fault:
        """Return the fault for an annotation that decides what is handed in and that cannot be evaluated."""
        name, unread = parameter.name, parameter.unread
        assert unread is not None, "asked only for an annotation that cannot be read"
        return where.fault(
            "I008",
            "UnreadableAnnotation",
            f"annotates {name!r} with {unread.text!r}, which cannot be read: {unread.why}.",
            "Import what it names at run time, too, not for type checkers only; "
            f"or write {name}=Provide[{self.spelled(None, name)}].",
        )

    def named(self, name: str) -> str | None:
        """Return the string id of the resource that is called *name*, in the container or in one within it."""
        return next((known for known in sorted(self.names(), key=len) if known.rpartition(".")[2] == name), None)

    def spelled(self, meant: Any, parameter: str) -> str:
        """Return what to write between the brackets of a marker for *meant*, as far as that can be known.

        Args:
            meant: a provider, a container, or a marker.
            parameter: the name of its parameter, which may be that of a resource.
        """
        if is_marker(meant):
            meant = meant.provider
        if isinstance(meant, str):
            return f'"{meant}"'
        if is_container(meant):
            return _container_name(meant)
        if isinstance(meant, providers.Delegate) and (of := self.spelled(meant.provides, parameter)) != UNKNOWN:
            return of if of.startswith('"') else f"{of}.provider"
        if not isinstance(meant, providers.Provider):
            known = self.named(parameter)
            return UNKNOWN if known is None else f'"{known}"'
        for part in self.containers:
            if (path := Resolver(part).path_of(meant)) is not None:
                return f'"{path}"' if "." in path or _is_nameless(part) else f"{_container_name(part)}.{path}"
        return UNKNOWN

    def _unknown(self, marker: Marker, where: Where) -> Fault:
        if isinstance(marker.target, str):
            return where.fault(
                "R001",
                "UnknownResource",
                f"needs resource {marker.target!r}, which is not declared.",
                *self.help_for(marker.target),
            )
        return where.fault(
            "R002",
            "ForeignProvider",
            f"injects {marker.parameter!r} from a provider ({label_of(marker.target)}) that is not in "
            f"{_container_name(self.container)}",
            f"Declared: {self.declared()}",
        )

    def _provider_faults(self, marker: Marker, provider: AnyProvider, where: Where) -> list[Fault]:
        try:
            closure = closure_of([provider], self.home)
        except ValidationError as error:
            return faults_of(error, self.settings_models())
        except BuildError as error:
            return list(error.faults)
        except ResourceError as error:
            return [where.fault(*code_of(error), str(error), *self.blame(error))]
        found = list(settings_faults(closure, where))
        if marker.kind == "Closing" and closure.steps:
            found.append(
                where.fault(
                    "I004",
                    "ClosingScoped",
                    f"injects {marker.parameter!r} with Closing[...], but it is scoped",
                    "Write Provide[...]: a scope closes what it opened.",
                )
            )
        try:
            refuse_shorter(closure)
        except LifetimeMismatchError as error:
            found.append(where.fault(*code_of(error), str(error)))
        return found

    def entry(self, name: str) -> ProviderEntry | None:
        """Return what the containers have under a dotted *name*, with a lifetime or without, as it is asked for."""
        for part in self.containers:
            found: Any = part  # Any: a container, then providers in it
            for step in name.split("."):
                found = None if found is None else member_of(found, step)
            if found is not None and name != "__self__":
                return ProviderEntry(name, found, 2, self.home)
        return None

    def help_for(self, name: str, known: Iterable[str] = ()) -> tuple[str, ...]:
        """Return what to say of a resource *name* that is neither in a container nor among those *known* beside."""
        near = nearest(name, [*known, *self.names()])
        line = (f"Did you mean {near!r}?  " if near else "") + f"Declared: {self.declared()}"
        settings = (settings_of(part) for part in self.containers)
        return (line, *(way for found in settings if found is not None for way in found.ways_to_declare(name)))

    def blame(self, error: ResourceError) -> tuple[str, ...]:
        """Return which setting *error* is about, where settings declare its resource."""
        name = error.resource_name
        found = (settings_of(part) for part in self.containers)
        return tuple(
            f"Setting: {settings.setting_to_blame(name, error)}"
            for settings in found
            if settings is not None and name is not None and name in settings.resources
        )

    def names(self) -> list[str]:
        """Return every name that would resolve."""
        return [name for part in self.containers for name in Resolver(part).names()]

    def declared(self) -> str:
        """Return the names that exist, with their lifetimes, for messages."""
        return ", ".join(text for part in self.containers if (text := declared_names(part))) or "none"

    def settings_models(self) -> list[type]:
        """Return the settings models whose providers stand in the containers."""
        made = (provides_of(provider) for part in self.containers for provider in part.traverse())
        return [kind for kind in made if isinstance(kind, type) and issubclass(kind, BaseSettings)]

    @property
    def containers(self) -> list[Any]:
        """Where names are looked up, first one first."""
        return [self.container] if self.local is None else [self.local, self.container]


@dataclass(frozen=True, slots=True)
class Where:
    """Whose injection it is, for messages: ``state 'load' (flights.yaml:5:5, function steps.load)``."""

    who: str
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def fault(self, code: str, kind: str, message: str, *help: str) -> Fault:
        return Fault(code, kind, f"{self.who} {message}", help, self.file, self.line, self.column)


def settings_faults(closure: Closure, where: Where) -> Iterable[Fault]:
    """Yield a fault for each ``settings.provided.a.b`` whose path the settings model does not have."""
    for text, near in lost_paths(closure.direct):
        yield where.fault("S004", "UnknownSetting", f"{text}.", *([f"Did you mean {near!r}?"] if near else []))


def declared_names(container: Any) -> str:
    """Return ``database (per state), api (singleton)`` for *container*."""
    found = []
    for name in Resolver(container).names():
        provider = container
        for part in name.split("."):
            provider = members_of(provider)[part]
        if gives_settings(provider):
            continue
        level = level_of(provider)
        found.append(f"{name} ({LIFETIME_WORDS[level]})" if level is not None else name)
    return ", ".join(found)


def gives_settings(provider: AnyProvider) -> bool:
    """Tell whether *provider* gives settings, which are no resource."""
    given = provides_of(provider)
    return isinstance(given, BaseSettings) or (isinstance(given, type) and issubclass(given, BaseSettings))


def settings_of(container: Any) -> WirestateSettings | None:
    """Return the settings that made *container*, if some did."""
    held = (provider.provides for provider in container.providers.values() if isinstance(provider, providers.Object))
    return next((settings for settings in held if isinstance(settings, WirestateSettings)), None)


def code_of(error: ResourceError) -> tuple[str, str]:
    """Return the code and the name of the fault that *error* is in a build."""
    kind = type(error).__name__.removesuffix("Error")
    return CODES.get(kind, "R003"), kind


def _container_name(container: Any) -> str:
    parent = getattr(container, "declarative_parent", None) or container
    return getattr(parent, "__name__", None) or type(parent).__name__


def _is_nameless(container: Any) -> bool:
    """Tell whether a person has no class to write for *container*: it was made without one, or by us."""
    parent = container if isinstance(container, type) else getattr(container, "declarative_parent", None)
    return parent is None or parent.__module__.startswith("wirestate.")


def function_key(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a plan is kept under: a method's function, a partial's, else itself."""
    return getattr(function, "__func__", function)


def raise_faults(faults: list[Fault], what: str) -> None:
    """Raise all *faults* in one report, if there are any."""
    if faults:
        raise BuildError(faults, what)
