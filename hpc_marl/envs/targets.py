"""What `env.make` names: dotted paths to callables, with errors that say which part is wrong."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from hpc_marl.errors import ConfigError

_TARGET = "env.make._target_"


def resolve(path: str) -> Callable[..., Any]:
    """Return the class or function that a dotted path, or `module:name`, names.

    Raises:
        ConfigError: it names nothing, or nothing that can be called.
    """
    parts = path.replace(":", ".").split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{_TARGET}={path!r}: expected a dotted path such as package.module.ClassName")
    module, rest = _longest_module(parts, path)
    found: Any = module
    for name in rest:
        if not hasattr(found, name):
            raise ConfigError(f"{_TARGET}={path!r}: {_has_no(found, name)}")
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(f"{_TARGET}={path!r} is a {type(found).__name__}; it must be a class or a function")
    made: Callable[..., Any] = found
    return made


def _longest_module(parts: list[str], path: str) -> tuple[ModuleType, list[str]]:
    """Import as many parts as are modules; the others are names inside the last one."""
    where = f"{_TARGET}={path!r}"
    for count in range(len(parts) - 1, 1, -1):
        name = ".".join(parts[:count])
        try:
            return importlib.import_module(name), parts[count:]
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):  # it is there, but something it imports is not
                raise _missing(error, where) from error
    return import_module(parts[0], where), parts[1:]


def import_module(name: str, where: str) -> ModuleType:
    """Import a module.

    Args:
        name: its full name.
        where: the setting that names it, for the message.

    Raises:
        ConfigError: it is not there, or a module that it imports itself.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _missing(error, where) from error


def _missing(error: ModuleNotFoundError, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: there is no module {error.name!r}; install the package that has it, "
        "or put the directory of a module of your own on PYTHONPATH"
    )


def _has_no(found: Any, name: str) -> str:
    names = {known for known in dir(found) if not known.startswith("_")}
    if isinstance(found, ModuleType):
        names |= {module.name for module in pkgutil.iter_modules(getattr(found, "__path__", None) or [])}
    close = difflib.get_close_matches(name, sorted(names), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{getattr(found, '__name__', found)} has no {name!r}{hint}"


def has_num_envs(target: Callable[..., Any]) -> bool:
    """Whether `target` has a parameter `num_envs`."""
    try:
        return "num_envs" in inspect.signature(target).parameters
    except (TypeError, ValueError):  # classes written in C may have no signature
        return False


def call(target: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call the target with the arguments of env.make.

    Raises:
        ConfigError: it does not take them.
    """
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return target(**arguments)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        name = getattr(target, "__qualname__", str(target))
        raise ConfigError(
            f"env.make: {name}{signature} cannot be called with {arguments}: {error}"
        ) from error
    return target(**arguments)
