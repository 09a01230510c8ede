"""Options of the library's configuration: their names, and whether they have been loaded.

The library gives None for an option that it does not have, so a typing mistake and a configuration that nobody has
loaded look alike. Any stands for values of the configuration, which are the user's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dependency_injector import providers
from dependency_injector.errors import Error as LibraryError

from wirestate.errors import InvalidSettingError, MissingSettingError, listed, nearest

OPTIONS = (providers.ConfigurationOption, providers.TypedConfigurationOption)
Option = providers.ConfigurationOption | providers.TypedConfigurationOption  # type: ignore[type-arg]


def value_of(option: Option) -> Any:
    """Return the value of *option*, None if the configuration does not have it.

    Raises:
        MissingSettingError: no configuration has been loaded, or what is not there cannot be converted.
    """
    try:
        value = option()
    except Exception as error:  # of strict configurations, and of conversions, which are the user's
        if (text := missing(option)) is not None:
            raise MissingSettingError(f"{name_of(option)} has no value: {text}") from error
        raise
    if value is None and not _origin(_plain(option))[0]():
        raise MissingSettingError(f"{name_of(option)} has no value: {missing(option)}")
    return value


def missing(option: Option) -> str | None:
    """Return why *option* has no value; None if it has one, which may be None."""
    plain = _plain(option)
    try:
        plain.required()()
    except (LibraryError, AttributeError):  # the second: something on the way is no mapping
        return _why(plain)
    return None


def refuse_missing(name: str, values: list[Any]) -> None:
    """Refuse that resource *name* is made with options that the configuration does not have.

    A conversion may give something else in their place, as ``as_(lambda value: value or 5)`` does.
    """
    for option in values:
        if isinstance(option, OPTIONS) and (text := missing(option)) is not None and _gives_nothing(option):
            raise MissingSettingError(f"resource {name!r} needs {name_of(option)}: {text}", name)


def unreadable(
    who: str, used: Iterable[Any], resource: str | None = None
) -> InvalidSettingError | MissingSettingError | None:
    """Return what to say of the first option that cannot be read among those *used* for *who*."""
    for option in used:
        if isinstance(option, OPTIONS):
            try:
                option()
            except Exception as error:  # see value_of()
                if (text := missing(option)) is not None:
                    return MissingSettingError(f"{who} needs {name_of(option)}: {text}", resource)
                text = f"{name_of(option)} has a value that cannot be converted: {type(error).__name__}"
                return InvalidSettingError(f"{who}: {text}", resource, "build")
    return None


def chosen_by(option: Option, names: list[str]) -> str:
    """Return which of *names* a selector takes that asks *option*."""
    try:
        name = value_of(option)
    except MissingSettingError:
        name = None
    if isinstance(name, str) and name in names:
        return name
    if (text := missing(option)) is not None:
        raise MissingSettingError(f"a selector asks {name_of(option)}: {text}")
    raise InvalidSettingError(f"{name_of(option)}, which a selector asks, is none of {listed(names)}", None, "build")


def name_of(option: Option) -> str:
    """Return ``config.db.url``; in a nested container the whole name, from the outermost configuration on."""
    root, path = _origin(_plain(option))
    return f"{root.get_name()}.{path}"


def _plain(option: Option) -> providers.ConfigurationOption:
    return option.option if isinstance(option, providers.TypedConfigurationOption) else option


def _gives_nothing(option: Option) -> bool:
    try:
        return option() is None
    except Exception:  # see value_of()
        return True


def _origin(option: providers.ConfigurationOption) -> tuple[providers.Configuration, str]:
    """Return the outermost configuration, and the path of *option* in it."""
    root: Any = option._get_root()
    path = option._get_self_name()
    while isinstance(above := root.last_overriding, providers.Configuration | providers.ConfigurationOption):
        if isinstance(above, providers.ConfigurationOption):
            path = f"{above._get_self_name()}.{path}"
            above = above._get_root()
        root = above
    return root, path


def _why(option: providers.ConfigurationOption) -> str:
    root, path = _origin(option)
    name, values = root.get_name(), root()
    if not values:
        return f"the configuration {name!r} has not been loaded.  Load it before: {name}.from_yaml(…), from_env(…), …"
    *way, last = path.split(".")
    for step in way:
        values = values.get(step) if isinstance(values, dict) else None
    near = nearest(last, [key for key in values if isinstance(key, str)]) if isinstance(values, dict) else None
    hint = f"Did you mean {'.'.join((name, *way, near))!r}?  " if near else ""
    return f"the configuration does not have it.  {hint}Set it; None is a value, too."
