"""What a GPU did during a piece of work, by torch.profiler: how long it was busy, which copies ran beside kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Interval = tuple[float, float]
"""Begin and end in microseconds."""


@dataclass(frozen=True)
class DeviceTimeline:
    """One piece of work.

    Attributes:
        wall_us: from its begin to the device's end.
        kernels: when the device computed, on any stream.
        copies: when something was copied to it.
    """

    wall_us: float
    kernels: Sequence[Interval]
    copies: Sequence[Interval]

    @property
    def busy_share(self) -> float | None:
        """Share of the time in which it computed or copied; None where nothing was seen.

        Some versions of CUPTI, by which torch.profiler watches, do not show the kernels of graphs.

        >>> DeviceTimeline(10.0, [(0.0, 2.0), (1.0, 4.0)], [(6.0, 7.0)]).busy_share
        0.5
        """
        return _length(merged([*self.kernels, *self.copies])) / self.wall_us if self.kernels else None

    @property
    def overlap_share(self) -> float | None:
        """Share of the copies' time in which it also computed; None where there were none.

        >>> DeviceTimeline(10.0, [(0.0, 2.0), (1.0, 4.0)], [(3.0, 5.0)]).overlap_share
        0.5
        """
        copies, kernels = merged(self.copies), merged(self.kernels)
        if not copies:
            return None
        both = _length(copies) + _length(kernels) - _length(merged([*copies, *kernels]))
        return both / _length(copies)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same time as intervals that do not touch.

    >>> merged([(4.0, 5.0), (0.0, 2.0), (1.0, 3.0)])
    [(0.0, 3.0), (4.0, 5.0)]
    """
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def watch_device(work: Callable[[], None]) -> DeviceTimeline:
    """Do the work once under the profiler, which makes the CPU slower: shares are lower bounds."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began_s = time.perf_counter()
        work()
        torch.cuda.synchronize()
        wall_us = 1e6 * (time.perf_counter() - began_s)
    events: list[Any] = [event for event in profile.events() or () if "CUDA" in str(event.device_type)]
    is_copy = [event.name.startswith("Memcpy HtoD") for event in events]
    spans = [(float(event.time_range.start), float(event.time_range.end)) for event in events]
    return DeviceTimeline(
        wall_us,
        [span for span, copies in zip(spans, is_copy, strict=True) if not copies],
        [span for span, copies in zip(spans, is_copy, strict=True) if copies],
    )


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)
