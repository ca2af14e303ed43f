"""Peer: one sender as its receiver knows it, and the batches that came from it."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field

from hpc_marl.base.doorbell import DoorbellButton
from hpc_marl.base.network import host_identity
from hpc_marl.data import SampleBatch
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.links import aligned
from hpc_marl.streams.sample_credits import Grant
from hpc_marl.streams.sample_lane import Record, SampleLane
from hpc_marl.streams.sample_messages import COPIED_BYTES, Hello, SampleMetadata, SharedParts
from hpc_marl.streams.sample_slots import SampleSlots

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ReceivedBatch:
    """One batch in the trainer's hands, until it is consumed or dropped; after that its arrays may change."""

    batch: SampleBatch
    worker_name: str
    incarnation: str
    """Of the actor's process."""
    stream: str
    """Id of its sender, by which the ledger knows it."""
    seq: int
    """Number in its stream."""
    metadata: SampleMetadata
    nbytes: int
    transport: str
    """shared_memory or zmq."""


@dataclass(eq=False)
class Shared:
    """What a receiver maps of one sender of the same node."""

    slots: SampleSlots
    lane: SampleLane
    button: DoorbellButton

    @classmethod
    def of(cls, hello: Hello) -> Shared | None:
        """Map what a hello announces; return None where that is nothing, or out of reach."""
        if hello.shared is None or hello.host_identity != host_identity():
            return None
        try:
            return cls._attach(hello, hello.shared)
        except StreamError as error:
            _logger.info("samples of %s come by ZMQ: %s", hello.worker_name, error)
            return None

    @classmethod
    def _attach(cls, hello: Hello, parts: SharedParts) -> Shared:
        with contextlib.ExitStack() as opened:
            slots = SampleSlots.attach(hello.layout, hello.num_slots, parts.slots)
            opened.callback(slots.close)
            lane = SampleLane.attach(hello.layout, hello.num_slots, parts.lane)
            opened.callback(lane.close)
            button = DoorbellButton(parts.bell)
            opened.pop_all()
        return cls(slots, lane, button)

    def give(self, grant: Grant) -> None:
        """Tell the sender its grant and what was released in its lane."""
        self.lane.give(grant)
        if self.lane.publish_news():
            self.button.ring()

    def close(self) -> None:
        """Let go of it; batches in hand keep what they view."""
        self.slots.close()
        self.lane.close()
        self.button.close()


@dataclass(eq=False)
class Peer:
    """One sender that was let in."""

    hello: Hello
    routing_id: bytes
    shared: Shared | None
    """None where its batches come by ZMQ."""
    first_seq: int
    """Number of the first batch that counts."""
    serial: int
    """Of its newest message."""
    seen: tuple[int, int] = (-1, -1)
    """What its lane said when it was looked at last."""
    held: dict[int, int] = field(default_factory=dict)
    """Slot of each batch that has not been released, by sequence number."""
    nbytes: int = field(init=False)
    """Of each batch."""
    slots: SampleSlots | None = field(init=False)
    """Where small batches that come by ZMQ are copied to: that costs less than making arrays for each."""

    def __post_init__(self) -> None:
        """Work out once what is needed for every batch."""
        layout, num_slots = self.hello.layout, self.hello.num_slots
        self.nbytes, self.slots = layout.nbytes, None
        if self.shared is None and self.nbytes <= COPIED_BYTES:
            self.slots = SampleSlots.create(layout, num_slots, shared=False, label="")

    @property
    def transport(self) -> str:
        """How its batches come: shared_memory or zmq."""
        return "zmq" if self.shared is None else "shared_memory"

    def has_news(self) -> bool:
        """Return whether its lane says what it did not say before."""
        return self.shared is not None and self.shared.lane.sender_state() != self.seen

    def unpack(self, record: Record, content: memoryview | None = None) -> ReceivedBatch:
        """Return the batch that a record announces; `content` is what came by ZMQ, where memory is not shared.

        Raises:
            ProtocolError: the slot is not one that the sender can have used, or the bytes are not one batch.
        """
        hello, slot = self.hello, record.slot
        if slot >= hello.num_slots or slot in self.held.values():
            raise ProtocolError(f"{hello.worker_name} committed slot {slot}, which it cannot have")
        if self.shared is not None:
            batch = self.shared.slots.batches[slot]
        elif content is None or len(content) != self.nbytes:
            raise ProtocolError(f"a batch of {hello.worker_name} is not {self.nbytes} bytes")
        elif self.slots is not None:
            self.slots.buffers[slot][:] = content
            batch = self.slots.batches[slot]
        else:
            batch = hello.layout.view(aligned(content))
        return ReceivedBatch(
            batch=batch,
            worker_name=hello.worker_name,
            incarnation=hello.incarnation,
            stream=hello.stream,
            seq=record.seq,
            metadata=record.metadata,
            nbytes=self.nbytes,
            transport=self.transport,
        )

    def close(self) -> None:
        """Let go of its memory; batches in hand keep what they view."""
        if self.shared is not None:
            self.shared.close()
