"""SenderSlots: which of a sender's slots is free, being written, or under way."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Collection
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
    COMMITTED = enum.auto()


@dataclass(eq=False)
class Slot:
    """One place for one batch."""

    index: int
    batch: SampleBatch
    buffer: memoryview
    state: _State = _State.FREE
    group: int = 0
    before: Tally = NOTHING
    """What had been produced before the batch in it; `before.batches` is its sequence number."""
    metadata: SampleMetadata | None = None
    serial: int = 0
    """Of the message that it was sent with last."""
    tracker: zmq.MessageTracker | None = None
    """Says when ZMQ has let go of the memory, which may be after the receiver has."""

    @property
    def seq(self) -> int:
        """Number of the batch in it."""
        return self.before.batches

    @property
    def is_free(self) -> bool:
        """Whether it can be written."""
        return self.state is _State.FREE and (self.tracker is None or self.tracker.done)


class SenderSlots:
    """The slots of one sender, shared by its groups; no input or output.

    free --take--> writing --commit--> under way (unsent, then sent) --release | lose--> free
                      '---give back--> free
    """

    def __init__(self, memory: SampleSlots, num_groups: int) -> None:
        parts = zip(memory.batches, memory.buffers, strict=True)
        self._slots = [Slot(i, batch, buffer) for i, (batch, buffer) in enumerate(parts)]
        self._num_groups = num_groups
        self._used = [0] * num_groups
        """Slots of each group that are not free."""
        self.num_writing = 0
        """Slots that are being written."""
        self.num_under_way = 0
        """Slots whose batch was committed and not yet released."""
        self.unsent: deque[Slot] = deque()
        """Under way, but not handed to ZMQ yet; oldest first."""

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def num_in_use(self) -> int:
        """Slots that count against the grant."""
        return self.num_writing + self.num_under_way

    def take(self, group: int, granted: int) -> SampleBatch | None:
        """Return a batch to be written by `group`, None where it may not have one more now."""
        if not self._may_take(group, granted):
            return None
        slot = next((slot for slot in self._slots if slot.is_free), None)
        if slot is None:
            return None
        slot.state, slot.group = _State.WRITING, group
        self._used[group] += 1
        self.num_writing += 1
        return slot.batch

    def give_back(self, batch: SampleBatch) -> None:
        """Free a batch that was taken and will not be committed.

        Raises:
            StreamError: it is not being written.
        """
        slot = self._written(batch)
        slot.state = _State.FREE
        self._used[slot.group] -= 1
        self.num_writing -= 1

    def commit(self, batch: SampleBatch, metadata: SampleMetadata, before: Tally) -> Slot:
        """Put a batch that was taken under way; return its slot.

        Raises:
            StreamError: it is not being written, or by another group.
        """
        slot = self._written(batch)
        if metadata.group != slot.group:
            raise StreamError(
                f"a batch acquired for group {slot.group} was committed for group {metadata.group}"
            )
        slot.state, slot.before, slot.metadata, slot.tracker = _State.COMMITTED, before, metadata, None
        self.num_writing -= 1
        self.num_under_way += 1
        self.unsent.append(slot)
        return slot

    def sent_seqs(self) -> set[int]:
        """Return the numbers of the batches that were handed to ZMQ and not yet released."""
        unsent = set(self.unsent)
        return {slot.seq for slot in self._slots if slot.state is _State.COMMITTED and slot not in unsent}

    def release(self, seqs: Collection[int]) -> int:
        """Free the slots of these batches; return how many there were."""
        freed = self.sent_seqs().intersection(seqs)
        return self.release_if(lambda _, seq: seq in freed)

    def release_if(self, is_released: Callable[[int, int], bool]) -> int:
        """Free the slots that are under way and for which this holds, by index and sequence number; return how many."""
        freed = 0
        for slot in self._slots:
            if slot.state is _State.COMMITTED and is_released(slot.index, slot.seq):
                slot.state = _State.FREE
                self._used[slot.group] -= 1
                freed += 1
        self.num_under_way -= freed
        if freed and self.unsent:
            self.unsent = deque(slot for slot in self.unsent if slot.state is _State.COMMITTED)
        return freed

    def send_again(self, next_seq: int, last_serial: int) -> int:
        """Line up again what was sent and has not arrived; return how many batches these are.

        Args:
            next_seq: all batches below it have arrived.
            last_serial: of the newest message that counts: what was sent after it may still arrive.
        """
        unsent = set(self.unsent)
        swallowed = [
            slot
            for slot in self._slots
            if slot.state is _State.COMMITTED
            and slot not in unsent
            and slot.seq >= next_seq
            and slot.serial <= last_serial
        ]
        self.unsent = deque(sorted((*swallowed, *self.unsent), key=lambda slot: slot.seq))
        return len(swallowed)

    def lose(self) -> int:
        """Free all slots that are under way; return how many there were."""
        return self.release_if(lambda _, __: True)

    def clear(self) -> None:
        """Let go of all memory."""
        self._slots.clear()
        self.unsent.clear()
        self._used = [0] * self._num_groups
        self.num_writing = self.num_under_way = 0

    def _may_take(self, group: int, granted: int) -> bool:
        used = self._used
        credit = granted - self.num_in_use
        # A group without a batch comes first: an update may be waiting for one batch of every group.
        promised = used.count(0) if used[group] else 0
        return credit > promised and used[group] < len(self._slots) // self._num_groups

    def _written(self, batch: SampleBatch) -> Slot:
        for slot in self._slots:
            if slot.batch is batch and slot.state is _State.WRITING:
                return slot
        raise StreamError(
            "this batch was not acquired from this sender, or was committed or abandoned before"
        )
