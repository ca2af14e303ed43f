"""Checks of `key=value` overrides before composing: what is wrong is answered with what would be right."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from hpc_marl.config import ExperimentConfig
from hpc_marl.config.build import unknown_key_message
from hpc_marl.errors import ConfigError


def parse_overrides(overrides: Sequence[str], loader: ConfigLoader) -> list[Override]:
    """Parse overrides by Hydra's grammar.

    Raises:
        ConfigError: one is not of the form `key=value`.
    """
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ConfigError(
            f"cannot read {error.override!r}: settings are written key=value, as in algorithm=ippo or seed=3"
        ) from None


def without_sweeps(overrides: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """Return override lists without sweeps that together try every value of every sweep.

    The product of all sweeps may be thousands of jobs; one list of first values and one per further value
    finds every wrong value and stays quick.
    """
    choices = [_choices(override) for override in parse_overrides(overrides, loader)]
    first = [values[0] for values in choices if values]
    jobs = [first]
    for position, values in enumerate(choices):
        for value in values[1:]:
            jobs.append([*first[:position], value, *first[position + 1 :]])
    return jobs


def swept_keys(overrides: Sequence[str], loader: ConfigLoader) -> list[str]:
    """Return the keys that a sweep varies, in the order given."""
    parsed = parse_overrides(overrides, loader)
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def check_overrides(overrides: Iterable[str], loader: ConfigLoader) -> list[str]:
    """Return one message for each override whose key or group option does not exist."""
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    messages = []
    for override in parse_overrides(list(dict.fromkeys(overrides)), loader):
        key = override.key_or_group
        if key.split("/")[0].split(".")[0] == "hydra" or override.is_delete():
            continue
        if key in groups or "/" in key:
            message = _wrong_option(override, loader.get_group_options(key))
        else:
            message = _wrong_key(key, groups)
        if message and message not in messages:
            messages.append(message)
    return messages


def setting_paths() -> list[str]:
    """Return the dotted path of every setting."""
    return [path for path, _ in _leaves(ExperimentConfig)]


def mapping_paths() -> list[str]:
    """Return the dotted paths of the settings whose keys are the user's own, such as `env.make`."""
    return [path for path, hint in _leaves(ExperimentConfig) if typing.get_origin(hint) is dict]


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, typing.Any]]:
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _choices(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        # An interval has no values until its sweeper draws them; its ends stand for it.
        interval = override.value()
        return [f"{override.get_key_element()}={end}" for end in (interval.start, interval.end)]  # type: ignore[union-attr]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _wrong_option(override: Override, options: Sequence[str]) -> str | None:
    group, value = override.key_or_group, override.get_value_element_as_str()
    if not options:
        return f"unknown group {group!r}"
    # A name with a slash lies in a sub-directory; lists choose several: both are Hydra's to look up.
    if value in options or "/" in value or value.startswith("["):
        return None
    hint = _did_you_mean(value, options)
    return f"unknown {group} {value!r}; {hint}choose one of {', '.join(sorted(options))}"


def _wrong_key(key: str, groups: Sequence[str]) -> str | None:
    cls: type = ExperimentConfig
    parts = key.split(".")
    for depth, part in enumerate(parts):
        hints = typing.get_type_hints(cls)
        if part not in hints:
            same_name = [path for path in setting_paths() if path.split(".")[-1] == parts[-1]]
            if same_name:
                return f"unknown key {key!r}; did you mean {' or '.join(map(repr, same_name))}?"
            valid = [*hints, *(groups if depth == 0 else ())]
            return unknown_key_message(key, part, sorted(set(valid)))
        hint = hints[part]
        if not dataclasses.is_dataclass(hint):
            below, has_own_keys = parts[depth + 1 :], typing.get_origin(hint) is dict
            if below and not has_own_keys:
                return f"unknown key {key!r}: {'.'.join(parts[: depth + 1])} has no settings below it"
            return None
        cls = typing.cast(type, hint)
    return None


def _did_you_mean(value: str, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, options, n=1)
    return f"did you mean {near[0]!r}? " if near else ""
