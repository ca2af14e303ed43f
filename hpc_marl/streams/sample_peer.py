"""Peer: one sender as its receiver knows it, and the batches that came from it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from hpc_marl.base.doorbell import DoorbellButton
from hpc_marl.base.network import host_identity
from hpc_marl.data import SampleBatch
from hpc_marl.errors import ProtocolError, StreamError
from hpc_marl.streams.frames import from_frames
from hpc_marl.streams.sample_credits import Grant
from hpc_marl.streams.sample_lane import Record, SampleLane
from hpc_marl.streams.sample_messages import Hello, SampleMetadata, SharedParts
from hpc_marl.streams.sample_slots import SampleSlots

NOT_SEEN = (-1, -1)
"""What no lane says."""

_logger = logging.getLogger(__name__)


class ReceivedBatch(msgspec.Struct, frozen=True, eq=False):
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
        """Tell the sender its grant, and what was released in its lane."""
        self.lane.give(grant)
        self.publish()

    def publish(self) -> None:
        """Tell the sender what was released in its lane."""
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
    seen: tuple[int, int] = NOT_SEEN
    """What its lane said when it was looked at last."""
    held: dict[int, int] = field(default_factory=dict)
    """Slot of each batch that has not been released, by sequence number."""
    stream: str = field(init=False)
    nbytes: int = field(init=False)
    """Of each batch."""
    transport: str = field(init=False)
    """How its batches come: shared_memory or zmq."""
    places: dict[int, tuple[NDArray[np.uint8], SampleBatch]] = field(default_factory=dict)
    """What comes by ZMQ is copied to; made once for each slot, for new memory and new arrays cost more than a copy."""

    def __post_init__(self) -> None:
        """Work out once what is needed for every batch."""
        self.stream, self.nbytes = self.hello.stream, self.hello.layout.nbytes
        self.transport = "zmq" if self.shared is None else "shared_memory"

    def has_news(self) -> bool:
        """Return whether its lane says what it did not say before."""
        return self.shared is not None and self.shared.lane.sender_state() != self.seen

    def unpack(
        self, record: Record, content: memoryview | None = None, frames: Sequence[zmq.Frame] = ()
    ) -> ReceivedBatch:
        """Return the batch that a record announces.

        Args:
            record: of the batch.
            content: its bytes, where they came by ZMQ in the frame of the message.
            frames: its bytes, where they came by ZMQ in frames of their own.

        Raises:
            ProtocolError: the slot is not one that the sender can have used, or the bytes are not one batch.
        """
        hello, slot = self.hello, record.slot
        if slot >= hello.num_slots or slot in self.held.values():
            raise ProtocolError(f"{hello.worker_name} committed slot {slot}, which it cannot have")
        if self.shared is not None:
            batch = self.shared.slots.batches[slot]
        else:
            flat, batch = self._place(slot)
            if content is None:
                from_frames(frames, flat)
            elif frames or len(content) != self.nbytes:
                raise ProtocolError(f"a batch of {hello.worker_name} is not {self.nbytes} bytes")
            else:
                flat.data[:] = content
        return ReceivedBatch(
            batch=batch,
            worker_name=hello.worker_name,
            incarnation=hello.incarnation,
            stream=self.stream,
            seq=record.seq,
            metadata=record.metadata,
            nbytes=self.nbytes,
            transport=self.transport,
        )

    def _place(self, slot: int) -> tuple[NDArray[np.uint8], SampleBatch]:
        """Return the place of a slot, as bytes and as arrays."""
        if slot not in self.places:
            flat = np.zeros(self.nbytes, np.uint8)
            self.places[slot] = flat, self.hello.layout.view(flat)
        return self.places[slot]

    def close(self) -> None:
        """Let go of its memory; batches in hand keep what they view."""
        if self.shared is not None:
            self.shared.close()
