"""InferenceSlots: one slot per environment group, where requests and answers are written in place.

    | group 0: request | reply | group 1: request | reply | ...

Who writes what: the client the request, the server the reply. Neither looks into the other's part before it was told to
by a message through a pipe (see `Doorbell`), which says also which request it is about. The kernel orders what was
written before a write to a pipe before what is read after the read of it, so this holds on processors that reorder
stores too; and should a client overwrite a request that is being read, the answer is to the old one and is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle
from hpc_marl.errors import StreamError
from hpc_marl.streams.inference_layout import InferenceLayout


class InferenceSlots:
    """The slots of one client.

    Attributes:
        layout: of every group.
        requests: request arrays of every group, views.
        replies: reply arrays of every group, views.
        request_bytes: the flat bytes behind the request arrays of every group.
        reply_bytes: the flat bytes behind the reply arrays of every group.
    """

    def __init__(
        self, layout: InferenceLayout, num_groups: int, memory: SharedMemory | None, buffer: memoryview
    ) -> None:
        """Use `create` or `attach`."""
        self.layout = layout
        self._memory = memory
        self._buffer = buffer
        self.request_bytes: list[memoryview] = []
        self.reply_bytes: list[memoryview] = []
        start = 0
        for _ in range(num_groups):
            middle = start + layout.request.nbytes
            stop = middle + layout.reply.nbytes
            self.request_bytes.append(buffer[start:middle])
            self.reply_bytes.append(buffer[middle:stop])
            start = stop
        self.requests = [layout.request.views(part) for part in self.request_bytes]
        self.replies = [layout.reply.views(part) for part in self.reply_bytes]

    @classmethod
    def create(
        cls, layout: InferenceLayout, num_groups: int, *, shared: bool, label: str = ""
    ) -> InferenceSlots:
        """Return zeroed slots; private memory where `shared` is False or the kernel grants no shared one."""
        size = slots_bytes(layout, num_groups)
        if shared:
            try:
                memory = SharedMemory.create(size, label)
            except StreamError:
                return cls.create(layout, num_groups, shared=False)
            return cls(layout, num_groups, memory, memory.buffer)
        return cls(layout, num_groups, None, np.zeros(size, np.uint8).data)

    @classmethod
    def attach(cls, layout: InferenceLayout, num_groups: int, handle: SharedMemoryHandle) -> InferenceSlots:
        """Return a client's slots.

        Raises:
            StreamError: they are out of reach, or their size is not that of the layout.
        """
        size = slots_bytes(layout, num_groups)
        if handle.size != size:
            raise StreamError(f"slots of {handle.size} bytes where the layout needs {size}")
        memory = SharedMemory.attach(handle)
        slots = cls(layout, num_groups, memory, memory.buffer)
        for arrays in slots.requests:
            for array in arrays.values():
                array.flags.writeable = False
        return slots

    @property
    def handle(self) -> SharedMemoryHandle | None:
        """What the server needs to attach; None where the memory is private."""
        return None if self._memory is None else self._memory.handle()

    def write_request(self, group: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a request; for the client only.

        Raises:
            StreamError: the arrays are not those of the layout; nothing is written.
        """
        self.layout.request.check(arrays)
        views = self.requests[group]
        for name, array in arrays.items():
            views[name][...] = array

    def write_reply(self, group: int, arrays: Mapping[str, NDArray[Any]], place: slice) -> None:
        """Write an answer; for the server only.

        Args:
            group: environment group.
            arrays: of a whole batch.
            place: this group's environments in it.
        """
        for name, view in self.replies[group].items():
            view[...] = arrays[name][place]

    def renewed(self, *, shared: bool, label: str = "") -> InferenceSlots:
        """Return other memory with the same contents: nobody who has the old one can write to it."""
        slots = InferenceSlots.create(self.layout, len(self.requests), shared=shared, label=label)
        slots._buffer[:] = self._buffer
        return slots

    def creator_holds(self) -> bool:
        """Return whether the client is alive and uses these slots."""
        return self._memory is not None and self._memory.creator_holds()

    def close(self) -> None:
        """Let go of the memory; arrays that still view it stay valid."""
        for views in (self.requests, self.replies, self.request_bytes, self.reply_bytes):
            views.clear()
        self._buffer = memoryview(b"")
        if self._memory is not None:
            self._memory.close()


def slots_bytes(layout: InferenceLayout, num_groups: int) -> int:
    """Return the size of all slots together."""
    return num_groups * (layout.request.nbytes + layout.reply.nbytes)
