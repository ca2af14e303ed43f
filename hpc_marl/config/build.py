"""Plain dictionaries to checked dataclasses, and back.

`build(ExperimentConfig, mapping)` is the only door by which a user's values become a config: unknown keys, wrong types
and values out of range end here, each answered with what would have been right.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from hpc_marl.config.fields import constraint_of
from hpc_marl.errors import ConfigError

Config = TypeVar("Config")


def build(cls: type[Config], mapping: Mapping[str, Any], path: str = "") -> Config:
    """Build the dataclass `cls` from nested plain values.

    Args:
        cls: a dataclass whose fields are declared with `setting`.
        mapping: plain nested dicts, lists, strings, numbers and None; missing keys take their defaults.
        path: where `mapping` stands in the whole config, for messages.

    Raises:
        ConfigError: names the key, what was found and what would be right.

    >>> from hpc_marl.config import PPOConfig
    >>> build(PPOConfig, {"clip_eps": 0.1}).clip_eps
    0.1
    >>> build(PPOConfig, {"clip_epss": 0.1})
    Traceback (most recent call last):
        ...
    hpc_marl.errors.ConfigError: unknown key 'clip_epss'; did you mean 'clip_eps'? ...
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{path or cls.__name__}: expected a mapping of settings, found {mapping!r}")
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in known:
            raise ConfigError(unknown_key_message(_join(path, str(key)), str(key), list(known)))
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in mapping.items():
        where = _join(path, name)
        values[name] = _convert(hints[name], value, where)
        constraint = constraint_of(known[name].metadata)
        if (expected := constraint.violation(values[name])) is not None:
            unit = f" [{constraint.unit}]" if constraint.unit else ""
            raise ConfigError(f"{where}={value!r}: must be {expected}{unit} ({constraint.doc})")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from None


def to_dict(config: Any) -> Any:
    """Return the nested plain values of a config dataclass: dicts, lists, strings, numbers, None."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    return config


def unknown_key_message(where: str, key: str, valid: Sequence[str]) -> str:
    """Say that a key is unknown, the nearest right one, and all right ones."""
    near = difflib.get_close_matches(key, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown key {where!r}{hint} valid keys here: {', '.join(sorted(valid))}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _convert(hint: Any, value: Any, where: str) -> Any:  # one branch per kind of type
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{where}={value!r}: choose one of {', '.join(map(str, choices))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r}: expected a list, as in [64,64]")
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, element, f"{where}[{i}]") for i, element in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r}: expected a mapping")
        item = typing.get_args(hint)[1]
        return {str(key): _convert(item, element, _join(where, str(key))) for key, element in value.items()}
    return _convert_scalar(hint, value, where)


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    if value is None and len(members) < len(typing.get_args(hint)):
        return None
    if len(members) != 1:
        raise TypeError(f"{where}: only `X | None` unions are supported, not {hint}")
    return _convert(members[0], value, where)


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # YAML reads 1e6 as a string (it has no dot) and Hydra as a float: both mean the whole number.
    if hint in (int, float) and isinstance(value, (str, float)):
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"{where}={value!r}: expected {_words(hint)}") from None
        if hint is float:
            return number
        if number.is_integer():
            return int(number)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}={value!r}: expected {_words(hint)}")
    return value


def _words(hint: Any) -> str:
    # YAML takes an unquoted 12:00:00 for the number 43200.
    names = {
        int: "a whole number",
        float: "a number",
        str: 'text (in quotes, as "12:00:00")',
        bool: "true or false",
    }
    return names.get(hint, str(hint))
