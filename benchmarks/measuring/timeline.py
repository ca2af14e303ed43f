"""Rates from how far a training was at which time, start-up and end left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_MIDDLE = (0.25, 0.9)


class Point(NamedTuple):
    """How far a training was.

    Attributes:
        time_s: on any one clock.
        env_steps: done by then.
        cpu_s: CPU seconds used by then, by part of the system.
    """

    time_s: float
    env_steps: float
    cpu_s: Mapping[str, float]


class Rates(NamedTuple):
    """What a system reached.

    Attributes:
        env_steps_per_s: environment steps per second of wall-clock time.
        cores: CPU seconds per second, by part of the system.
    """

    env_steps_per_s: float
    cores: Mapping[str, float]


def whole_rates(points: Sequence[Point]) -> Rates:
    """Return the rates from the first point to the last, start-up and end included.

    Raises:
        ValueError: they are not apart.
    """
    if len(points) < 2 or points[-1].time_s <= points[0].time_s:
        raise ValueError("no update to measure a rate of")
    return _between(points[0], points[-1])


def middle_rates(points: Sequence[Point]) -> Rates:
    """Return the rates between a quarter and nine tenths of the environment steps.

    Parts that appear only later, such as an evaluator, count from when they appear.

    Raises:
        ValueError: fewer than two points lie there.
    """
    total = points[-1].env_steps if points else 0
    low, high = (share * total for share in _MIDDLE)
    inside = [point for point in points if low <= point.env_steps <= high]
    if len(inside) < 2 or inside[-1].env_steps == inside[0].env_steps:
        raise ValueError(f"too few updates to measure a rate: {len(points)} in all; take more env_steps")
    return _between(inside[0], inside[-1])


def _between(first: Point, last: Point) -> Rates:
    elapsed_s = last.time_s - first.time_s
    return Rates(
        (last.env_steps - first.env_steps) / elapsed_s,
        {part: (cpu_s - first.cpu_s.get(part, 0.0)) / elapsed_s for part, cpu_s in last.cpu_s.items()},
    )
