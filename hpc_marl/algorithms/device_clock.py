"""DeviceClock: how long a GPU was at work on an update, and how long the trainer waited for it.

    host    |read|launch evaluation|wait|    estimates    |launch steps ......|wait|
    device         |== evaluation ==|                      |===== steps =====|

The device's time is between CUDA events before the first and after the last kernel of each part. Where kernels come
slower than the device does them, it idles between them, unseen by events; then the host hardly ever waits. So a share
near 1 with little waiting means that launching is what takes the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class DeviceClock:
    """A stopwatch on the device's own time line. Reading it waits for nothing that was not waited for already.

    Args:
        device: whose time; nothing is measured but on GPUs.
        make_event: of what is recorded on the time line.
    """

    def __init__(self, device: torch.device, make_event: Callable[[], Any] = _event) -> None:
        self._device = device
        self._is_on = device.type == "cuda"
        self._make_event = make_event
        self._events: tuple[list[Any], list[Any]] = ([], [])
        self._wait_s = 0.0
        self._began_s = time.perf_counter()

    def begin_update(self) -> None:
        """Forget what was measured; an update begins now."""
        self._events, self._wait_s, self._began_s = ([], []), 0.0, time.perf_counter()

    def begin(self) -> None:
        """What is launched from now on is a part of the update."""
        self._record(0)

    def end(self) -> None:
        """What is launched from now on is not."""
        self._record(1)

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Measure the time in which the host waits for the device, within."""
        since_s = time.perf_counter()
        yield
        self._wait_s += time.perf_counter() - since_s

    def metrics(self) -> dict[str, float]:
        """Return what is known of this update, whose device work must be over; {} without a GPU.

        `device_s`: seconds of its parts. `device_share`: of the update's time so far. `device_wait_share`: share of
        it in which the host waited. `device_memory_mb`: most memory that tensors have taken since the start.
        """
        if not self._is_on:
            return {}
        update_s = max(time.perf_counter() - self._began_s, 1e-9)
        device_s = sum(begin.elapsed_time(end) for begin, end in zip(*self._events, strict=False)) / 1e3
        return {
            "device_s": device_s,
            "device_share": min(device_s / update_s, 1.0),
            "device_wait_share": self._wait_s / update_s,
            "device_memory_mb": torch.cuda.max_memory_allocated(self._device) / 2**20,
        }

    def _record(self, side: int) -> None:
        if self._is_on:
            event = self._make_event()
            event.record()
            self._events[side].append(event)
