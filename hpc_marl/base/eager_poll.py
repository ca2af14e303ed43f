"""Waiting awake for a moment before sleeping: `EagerPoll` for descriptors, `EagerLook` for anything else.

To wake a process that sleeps costs its waker a few microseconds and itself tens of them, on a virtual machine a
hundred. Two processes with a core each that answer each other within that time are faster if one of them does not
sleep. Where they share one core, or nothing comes, staying awake is in vain: after every failure it is tried more
seldom.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from functools import partial
from math import ceil, inf
from time import perf_counter
from typing import Generic, TypeVar

_AWAKE_S = 0.0001
_MOST_SKIPPED = 63
"""Waits in a row that go to sleep at once after failures; so a 64th of the moment per wait is in vain then."""

Found = TypeVar("Found")


class EagerLook(Generic[Found]):
    """Looks for something again and again for a moment, where that was not in vain lately. Not thread-safe.

    Args:
        look: returns what is there, falsy for nothing, without waiting.
        awake_s: the moment, in seconds.
        num_cores: that this process may use; None asks the system. With one it never looks.
    """

    def __init__(
        self, look: Callable[[], Found], *, awake_s: float | None = None, num_cores: int | None = None
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if num_cores is None else num_cores
        self._look = look
        self._awake_s = _AWAKE_S if awake_s is None else awake_s
        self._may_stay_awake = cores > 1
        self._skipped_next = self._skipped_after_failure = 0

    def look(self, at_most_s: float = inf) -> Found | None:
        """Return what is found within `at_most_s` seconds, None if nothing is or it is not worth looking now."""
        if not self._may_stay_awake:
            return None
        if self._skipped_next:
            self._skipped_next -= 1
            return None
        until = perf_counter() + min(self._awake_s, at_most_s)
        while perf_counter() < until:
            os.sched_yield()  # what brings the answer (a thread of libzmq, the peer) may be queued for this core
            if found := self._look():
                self._skipped_after_failure //= 2
                return found
        self._skipped_after_failure = min(2 * self._skipped_after_failure + 1, _MOST_SKIPPED)
        self._skipped_next = self._skipped_after_failure
        return None


class EagerPoll:
    """`select.poll` with a timeout in seconds. Not thread-safe.

    Args:
        num_cores: that this process may use; None asks the system. With one it sleeps at once.
    """

    def __init__(self, num_cores: int | None = None) -> None:
        self._poll = select.poll()
        self._eager: EagerLook[list[tuple[int, int]]] = EagerLook(
            partial(self._poll.poll, 0), num_cores=num_cores
        )

    def register(self, fd: int, events: int) -> None:
        """Wait for `events` (such as select.POLLIN) of a descriptor too; 0 stands for errors only."""
        self._poll.register(fd, events)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Return (descriptor, events) of those that have any, as soon as there is one; empty after `timeout_s`."""
        found = self._poll.poll(0)
        if found or timeout_s <= 0:
            return found
        return self._eager.look(timeout_s) or self._poll.poll(ceil(1000 * timeout_s))
