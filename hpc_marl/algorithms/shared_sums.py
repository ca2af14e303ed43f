"""SharedSums: sums over the ranks of one host, through memory that they share.

    own values -> own lane, own word = number of the sum, ring -> wait until all words say so -> lanes added in order

Gloo hands a sum from thread to thread and from socket to socket; on a host every hand-over wakes somebody, which takes
longer than to learn from a small minibatch. Here a rank wakes each other one once, and does not sleep at first.

Every rank has two lanes, which take turns: whoever is at sum n has read all of sum n - 1, so nobody overwrites what is
still to be read. All add the lanes in the same order, so they get the same bits.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from hpc_marl.base.doorbell import Doorbell, DoorbellButton, DoorbellHandle
from hpc_marl.base.eager_poll import EagerPoll
from hpc_marl.base.network import host_identity
from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle, fence
from hpc_marl.errors import StreamError

LANE_BYTES = 1 << 20
"""Larger tensors go another way: what gloo loses by waking does not matter for them."""
_LINE_WORDS = 8  # a cache line of 64 bytes: words of different writers do not share one
_LONGEST_WAIT_S = 0.1


class _Seat(msgspec.Struct, frozen=True):
    """What a rank tells the others; the memory is that of rank 0. Empty where nobody can reach it."""

    host: str = ""
    bell: DoorbellHandle | None = None
    memory: SharedMemoryHandle | None = None


class SharedSums:
    """One rank's end; use `open`. All ranks must make the same calls in the same order."""

    def __init__(
        self,
        rank: int,
        memory: SharedMemory,
        bell: Doorbell,
        buttons: Sequence[DoorbellButton],
        timeout_s: float,
    ) -> None:
        size = len(buttons) + 1
        self._rank, self._memory, self._bell, self._buttons = rank, memory, bell, buttons
        self._timeout_s = timeout_s
        self._words = np.frombuffer(memory.buffer[: _words_bytes(size)], np.int64)[::_LINE_WORDS]
        lanes = np.frombuffer(memory.buffer[_words_bytes(size) :], np.uint8)
        self._lanes = torch.from_numpy(lanes).view(2, size, LANE_BYTES)
        self._number = 0
        self._poll = EagerPoll()
        self._poll.register(bell.fileno(), select.POLLIN)
        for button in buttons:
            self._poll.register(button.fileno(), 0)  # in error once its rank is gone

    @classmethod
    def open(
        cls, rank: int, size: int, gather: Callable[[Any], list[Any]], timeout_s: float
    ) -> SharedSums | None:
        """Return this rank's end; None, on all ranks, where they are not of one host or cannot reach one another.

        Args:
            rank: this one.
            size: ranks in all.
            gather: `Ranks.gather`.
            timeout_s: how long a sum waits for another rank.
        """
        with ExitStack() as stack:
            bell, seat, sums = stack.enter_context(Doorbell()), _Seat(), None
            memory: SharedMemory | None = None
            with contextlib.suppress(StreamError):
                if rank == 0:
                    num_bytes = _words_bytes(size) + 2 * size * LANE_BYTES
                    memory = stack.enter_context(SharedMemory.create(num_bytes, "hpc_marl sums"))
                seat = _Seat(host_identity(), bell.handle(), None if memory is None else memory.handle())
            seats: list[_Seat] = gather(seat)
            with contextlib.suppress(StreamError):
                if (first := seats[0].memory) and all(one.host == seats[0].host for one in seats):
                    others = [one.bell for one in seats if one is not seats[rank] and one.bell is not None]
                    buttons = [stack.enter_context(DoorbellButton(other)) for other in others]
                    memory = memory or stack.enter_context(SharedMemory.attach(first))
                    sums = cls(rank, memory, bell, buttons, timeout_s)
            if not all(gather(sums is not None)):
                return None
            stack.pop_all()  # the sums close it
            return sums

    def takes(self, tensor: Tensor) -> bool:
        """Return whether a tensor fits; it does on all ranks or on none."""
        return tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() <= LANE_BYTES

    def add(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum over the ranks.

        Raises:
            RuntimeError: another rank is gone, or lets this one wait for longer than the timeout.
        """
        self._number += 1
        num_bytes = tensor.numel() * tensor.element_size()
        lanes = self._lanes[self._number % 2, :, :num_bytes].view(tensor.dtype)
        lanes = lanes.view(len(lanes), *tensor.shape)
        lanes[self._rank].copy_(tensor)
        fence()
        self._words[self._rank] = self._number
        fence()
        for button in self._buttons:
            button.ring()
        self._wait()
        fence()
        total = lanes[0].clone()
        for lane in lanes[1:]:
            total += lane
        return total

    def close(self) -> None:
        """Let go of the others."""
        for button in self._buttons:
            button.close()
        self._bell.close()
        del self._words, self._lanes
        self._memory.close()

    def _wait(self) -> None:
        """Return once all ranks have written their lanes."""
        deadline = time.monotonic() + self._timeout_s
        while (late := self._words < self._number).any():
            for fd, _ in self._poll.poll(_LONGEST_WAIT_S):
                if fd == self._bell.fileno():
                    self._bell.clear()
                elif (self._words < self._number).any():
                    raise RuntimeError("another trainer is gone in mid-sum")
            if time.monotonic() > deadline:
                names = ", ".join(f"trainer/{rank}" for rank in np.flatnonzero(late))
                raise RuntimeError(f"timed out: {names} did not join a sum within {self._timeout_s:g} s")


def _words_bytes(size: int) -> int:
    return 8 * _LINE_WORDS * size
