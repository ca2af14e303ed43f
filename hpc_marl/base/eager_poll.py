"""EagerPoll: waits for descriptors, awake for a moment before it sleeps.

To wake a process that sleeps costs its waker a few microseconds and itself tens of them, on a virtual machine a
hundred. Two processes with a core each that answer each other within that time are faster if neither sleeps. Where
they share one core, or nothing comes, staying awake is in vain: after every failure it is tried more seldom.
"""

from __future__ import annotations

import os
import select
from math import ceil
from time import perf_counter

_AWAKE_S = 0.0001
_MOST_SKIPPED = 63
"""Waits in a row that go to sleep at once after failures; so 2 us of a wait are in vain then."""


class EagerPoll:
    """`select.poll` with a timeout in seconds. Not thread-safe.

    Args:
        num_cores: that this process may use; None asks the system. With one it sleeps at once.
    """

    def __init__(self, num_cores: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if num_cores is None else num_cores
        self._may_stay_awake = cores > 1
        self._poll = select.poll()
        self._skipped_next = self._skipped_after_failure = 0

    def register(self, fd: int, events: int) -> None:
        """Wait for `events` (such as select.POLLIN) of a descriptor too; 0 stands for errors only."""
        self._poll.register(fd, events)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Return (descriptor, events) of those that have any, as soon as there is one; empty after `timeout_s`."""
        found = self._poll.poll(0)
        if found or timeout_s <= 0:
            return found
        if self._may_stay_awake:
            if self._skipped_next:
                self._skipped_next -= 1
            elif found := self._stay_awake(min(_AWAKE_S, timeout_s)):
                return found
        return self._poll.poll(ceil(1000 * timeout_s))

    def _stay_awake(self, seconds: float) -> list[tuple[int, int]]:
        until = perf_counter() + seconds
        while perf_counter() < until:
            if found := self._poll.poll(0):
                self._skipped_after_failure //= 2
                return found
        self._skipped_after_failure = min(2 * self._skipped_after_failure + 1, _MOST_SKIPPED)
        self._skipped_next = self._skipped_after_failure
        return []
