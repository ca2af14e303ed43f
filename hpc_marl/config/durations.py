"""Durations as Slurm writes them: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""

from __future__ import annotations

import re

from hpc_marl.errors import ConfigError

_DURATION = re.compile(r"(?:\d+-\d{1,2}(?::\d{2}){0,2}|\d+(?::\d{2}){0,2})")


def is_duration(text: str) -> bool:
    """Whether `text` is a duration that ends."""
    return _DURATION.fullmatch(text) is not None


def check_duration(name: str, text: str | None) -> None:
    """Return if `text` is a duration, or None. Raises ConfigError."""
    if text is not None and not is_duration(text):
        raise ConfigError(f"{name}={text!r}: write a duration as Slurm does: 12:00:00 or 2-00:00:00")


def duration_s(text: str) -> float:
    """Return a duration in seconds; what is none, such as UNLIMITED, never ends.

    >>> duration_s("90"), duration_s("1:30"), duration_s("7-00:00:00"), duration_s("1-12"), duration_s("UNLIMITED")
    (5400.0, 90.0, 604800.0, 129600.0, inf)
    """
    if not is_duration(text.strip()):
        return float("inf")
    days, dash, rest = text.strip().rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return 86400.0 * int(days) + 3600.0 * hours + 60.0 * minutes + seconds
    if len(numbers) == 1:
        return 60.0 * numbers[0]
    hours, minutes, seconds = [0, *numbers][-3:]
    return 3600.0 * hours + 60.0 * minutes + seconds
