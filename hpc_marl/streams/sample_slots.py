"""The memory that sample batches are written in: equal slots, shared on one node."""

from __future__ import annotations

import numpy as np

from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle
from hpc_marl.data import SampleBatch, SampleLayout
from hpc_marl.errors import StreamError


class SampleSlots:
    """`num_slots` batches of one layout in one block of memory."""

    def __init__(
        self, layout: SampleLayout, num_slots: int, memory: SharedMemory | None, buffer: memoryview
    ) -> None:
        """Use `create` or `attach`."""
        self._memory = memory
        size = layout.nbytes
        self.buffers = [buffer[slot * size : (slot + 1) * size] for slot in range(num_slots)]
        """The flat bytes of each slot."""
        self.batches: list[SampleBatch] = [layout.view(part) for part in self.buffers]
        """The same as arrays."""

    @classmethod
    def create(cls, layout: SampleLayout, num_slots: int, *, shared: bool, label: str) -> SampleSlots:
        """Return zeroed slots; private memory where `shared` is False or the kernel grants no shared one."""
        size = num_slots * layout.nbytes
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
        size = num_slots * layout.nbytes
        if handle.size != size:
            raise StreamError(f"slots of {handle.size} bytes where the layout needs {size}")
        memory = SharedMemory.attach(handle)
        return cls(layout, num_slots, memory, memory.buffer)

    @property
    def handle(self) -> SharedMemoryHandle | None:
        """What a receiver needs to attach; None where the memory is private."""
        return None if self._memory is None else self._memory.handle()

    def close(self) -> None:
        """Let go of the memory; batches that are still in use keep it alive."""
        self.batches = []
        self.buffers = []
        if self._memory is not None:
            self._memory.close()
