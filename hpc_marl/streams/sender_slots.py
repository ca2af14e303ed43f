"""SenderSlots: which of a sender's slots is free, being written, or under way."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import zmq

from hpc_marl.data import SampleBatch
from hpc_marl.errors import StreamError
from hpc_marl.streams.ledger import NOTHING, Tally
from hpc_marl.streams.sample_messages import SampleMetadata
from hpc_marl.streams.sample_slots import SampleSlots


class _State(enum.Enum):
    FREE = enum.auto()
    WRITING = enum.auto()
    UNSENT = enum.auto()
    SENT = enum.auto()


_FREE, _WRITING, _UNSENT, _SENT = _State  # plain names: these are asked for every batch


@dataclass(eq=False)
class Slot:
    """One place for one batch."""

    index: int
    batch: SampleBatch
    buffer: memoryview
    state: _State = _FREE
    group: int = 0
    before: Tally = NOTHING
    """What had been produced before the batch in it."""
    seq: int = 0
    """Number of the batch in it: `before.batches`."""
    metadata: SampleMetadata | None = None
    serial: int = 0
    """Of the message that it was sent with last."""
    tracker: zmq.MessageTracker | None = None
    """Says when ZMQ has let go of the memory, which may be after the receiver has."""


class SenderSlots:
    """The slots of one sender, shared by its groups; no input or output.

    free --take--> writing --commit--> under way (unsent, then sent) --release | lose--> free
                      '---give back--> free
    """

    def __init__(self, memory: SampleSlots, num_groups: int) -> None:
        parts = zip(memory.batches, memory.buffers, strict=True)
        slots = [Slot(i, batch, buffer) for i, (batch, buffer) in enumerate(parts)]
        self._slots = {id(slot.batch): slot for slot in slots}
        self._free = slots[::-1]
        """The one released last, which is most likely in the processor's cache, comes last and is taken first."""
        self._under_way: dict[int, Slot] = {}
        """By sequence number, oldest first."""
        self._num_groups = num_groups
        self._most_per_group = len(slots) // num_groups
        self._used = [0] * num_groups
        """Slots of each group that are not free."""
        self.num_writing = 0
        """Slots that are being written."""
        self.unsent: deque[Slot] = deque()
        """Under way, but not handed to ZMQ yet; oldest first."""

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def num_under_way(self) -> int:
        """Slots whose batch was committed and not yet released."""
        return len(self._under_way)

    @property
    def num_in_use(self) -> int:
        """Slots that count against the grant."""
        return self.num_writing + len(self._under_way)

    def take(self, group: int, granted: int) -> SampleBatch | None:
        """Return a batch to be written by `group`, None where it may not have one more now."""
        used = self._used[group]
        credit = granted - self.num_writing - len(self._under_way)
        # A group without a batch comes first: an update may be waiting for one batch of every group.
        if credit <= (self._used.count(0) if used else 0) or used >= self._most_per_group:
            return None
        slot = self._next_free()
        if slot is None:
            return None
        slot.state, slot.group = _WRITING, group
        self._used[group] += 1
        self.num_writing += 1
        return slot.batch

    def give_back(self, batch: SampleBatch) -> None:
        """Free a batch that was taken and will not be committed.

        Raises:
            StreamError: it is not being written.
        """
        slot = self._written(batch)
        self.num_writing -= 1
        self._put_back(slot)

    def commit(self, batch: SampleBatch, metadata: SampleMetadata, before: Tally, *, is_sent: bool) -> Slot:
        """Put a batch that was taken under way; return its slot.

        Args:
            batch: is full.
            metadata: of the batch.
            before: all that was produced before it.
            is_sent: whether it need not be handed to ZMQ.

        Raises:
            StreamError: it is not being written, or by another group.
        """
        slot = self._written(batch)
        if metadata.group != slot.group:
            raise StreamError(
                f"a batch acquired for group {slot.group} was committed for group {metadata.group}"
            )
        slot.before, slot.metadata, slot.tracker = before, metadata, None
        slot.seq = before.batches
        self.num_writing -= 1
        self._under_way[slot.seq] = slot
        if is_sent:
            slot.state = _SENT
        else:
            slot.state = _UNSENT
            self.unsent.append(slot)
        return slot

    def note_sent(self, serial: int) -> None:
        """Take note that the oldest one that was not sent has left with a message."""
        slot = self.unsent.popleft()
        slot.state, slot.serial = _SENT, serial

    def note_all_sent(self) -> None:
        """Take note that none needs to be handed to ZMQ any more."""
        for slot in self.unsent:
            slot.state = _SENT
        self.unsent.clear()

    def release(self, seqs: Iterable[int]) -> int:
        """Free the slots of these batches, as far as they were sent; return how many there were."""
        slots = (self._under_way.get(seq) for seq in seqs)
        return self._free_all([slot for slot in slots if slot is not None and slot.state is _SENT])

    def release_arrived(self, next_seq: int, held: Collection[int]) -> int:
        """Free what was sent and is below `next_seq`, but for those `held`; return how many there were."""
        return self.release([seq for seq in self._under_way if seq < next_seq and seq not in held])

    def release_stamped(self, stamps: Sequence[int]) -> int:
        """Free the slots that bear the stamp of their batch in a lane; return how many there were."""
        slots = self._under_way.values()
        return self._free_all([slot for slot in slots if stamps[slot.index] == slot.seq + 1])

    def lose(self, before: int | None = None) -> int:
        """Free what is under way, or only the batches `before` this number; return how many there were."""
        slots = self._under_way.values()
        return self._free_all([slot for slot in slots if before is None or slot.seq < before])

    def send_again(self, next_seq: int, last_serial: int) -> int:
        """Line up again what was sent and has not arrived; return how many batches these are.

        Args:
            next_seq: all batches below it have arrived.
            last_serial: of the newest message that counts: what was sent after it may still arrive.
        """
        swallowed = [
            slot
            for slot in self._under_way.values()
            if slot.state is _SENT and slot.seq >= next_seq and slot.serial <= last_serial
        ]
        for slot in swallowed:
            slot.state = _UNSENT
        self.unsent = deque(slot for slot in self._under_way.values() if slot.state is _UNSENT)
        return len(swallowed)

    def clear(self) -> None:
        """Let go of all memory."""
        self._slots.clear()
        self._free.clear()
        self._under_way.clear()
        self.unsent.clear()
        self._used = [0] * self._num_groups
        self.num_writing = 0

    def _next_free(self) -> Slot | None:
        free = self._free
        for at in range(len(free) - 1, -1, -1):
            tracker = free[at].tracker
            if tracker is None or tracker.done:
                return free.pop(at)
        return None

    def _free_all(self, slots: list[Slot]) -> int:
        for slot in slots:
            del self._under_way[slot.seq]
            if slot.state is _UNSENT:
                self.unsent.remove(slot)
            self._put_back(slot)
        return len(slots)

    def _put_back(self, slot: Slot) -> None:
        slot.state = _FREE
        self._used[slot.group] -= 1
        self._free.append(slot)

    def _written(self, batch: SampleBatch) -> Slot:
        slot = self._slots.get(id(batch))
        if slot is None or slot.batch is not batch or slot.state is not _WRITING:
            raise StreamError(
                "this batch was not acquired from this sender, or was committed or abandoned before"
            )
        return slot
