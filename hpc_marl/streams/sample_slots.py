"""The memory that sample batches are written in: counters and equal slots, shared on one node.

    | batches | - | env_steps, agent_steps (even) | env_steps, agent_steps (odd) | slot 0 | slot 1 | ...

The counters are what the sender has committed. A receiver reads them when the sender has died: what was
committed and never arrived is lost, and is known to be. The two pairs of step counters are written in turn
and the number of batches last, so whenever the sender is killed the pair that the number selects is whole.
"""

from __future__ import annotations

import numpy as np

from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle
from hpc_marl.data import SampleBatch, SampleLayout
from hpc_marl.errors import StreamError
from hpc_marl.streams.ledger import Tally

_COUNTER_BYTES = 64  # a cache line, so that slots are aligned as SampleLayout wants them


class SampleSlots:
    """`num_slots` batches of one layout in one block of memory."""

    def __init__(
        self, layout: SampleLayout, num_slots: int, memory: SharedMemory | None, buffer: memoryview
    ) -> None:
        """Use `create` or `attach`."""
        self._memory = memory
        self._counters = np.frombuffer(buffer[:_COUNTER_BYTES], np.uint64)
        size = layout.nbytes
        starts = [_COUNTER_BYTES + slot * size for slot in range(num_slots)]
        self.buffers = [buffer[start : start + size] for start in starts]
        """The flat bytes of each slot."""
        self.batches: list[SampleBatch] = [layout.view(part) for part in self.buffers]
        """The same as arrays."""

    @classmethod
    def create(cls, layout: SampleLayout, num_slots: int, *, shared: bool, label: str) -> SampleSlots:
        """Return zeroed slots; private memory where `shared` is False or the kernel grants no shared one."""
        size = _COUNTER_BYTES + num_slots * layout.nbytes
        if shared:
            try:
                memory = SharedMemory.create(size, label)
            except StreamError:
                return cls.create(layout, num_slots, shared=False, label=label)
            return cls(layout, num_slots, memory, memory.buffer)
        return cls(layout, num_slots, None, np.zeros(size, np.uint8).data)

    @classmethod
    def attach(cls, layout: SampleLayout, num_slots: int, handle: SharedMemoryHandle) -> SampleSlots:
        """Return a sender's slots, to be read in place.

        Raises:
            StreamError: they are out of reach, or their size is not that of the layout.
        """
        size = _COUNTER_BYTES + num_slots * layout.nbytes
        if handle.size != size:
            raise StreamError(f"slots of {handle.size} bytes where the layout needs {size}")
        memory = SharedMemory.attach(handle)
        return cls(layout, num_slots, memory, memory.buffer)

    @property
    def handle(self) -> SharedMemoryHandle | None:
        """What a receiver needs to attach; None where the memory is private."""
        return None if self._memory is None else self._memory.handle()

    def count(self, produced: Tally) -> None:
        """Write the counters: before the message of a batch is sent, so that they are never behind it."""
        bank = 2 + 2 * (produced.batches % 2)
        self._counters[bank] = produced.env_steps
        self._counters[bank + 1] = produced.agent_steps
        self._counters[0] = produced.batches

    def counted(self) -> Tally:
        """Read the counters."""
        batches = int(self._counters[0])
        bank = 2 + 2 * (batches % 2)
        return Tally(batches, int(self._counters[bank]), int(self._counters[bank + 1]))

    def close(self) -> None:
        """Let go of the memory; batches that are still in use keep it alive."""
        self.batches = []
        self.buffers = []
        self._counters = np.zeros(_COUNTER_BYTES // 8, np.uint64)
        if self._memory is not None:
            self._memory.close()
