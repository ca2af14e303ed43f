"""Peer: one sender as its receiver knows it, and the batches that came from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpc_marl.data import SampleBatch
from hpc_marl.errors import ProtocolError
from hpc_marl.streams.ledger import Tally
from hpc_marl.streams.links import aligned
from hpc_marl.streams.sample_messages import Commit, Hello, SampleMetadata
from hpc_marl.streams.sample_slots import SampleSlots


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


@dataclass
class Peer:
    """One sender that was let in."""

    hello: Hello
    routing_id: bytes
    slots: SampleSlots | None
    """None where its memory is not shared."""
    serial: int
    """Of its newest message."""
    held: dict[int, int] = field(default_factory=dict)
    """Slot of each batch that has not been released, by sequence number."""

    @property
    def transport(self) -> str:
        """How its batches come: shared_memory or zmq."""
        return "zmq" if self.slots is None else "shared_memory"

    def unpack(self, commit: Commit, payload: list[Any]) -> ReceivedBatch:
        """Return the batch that a commit announces; the frames of `payload` hold it where memory is not shared.

        Raises:
            ProtocolError: the slot is not one that the sender can have used, or the frames are not one batch.
        """
        hello = self.hello
        if commit.slot >= hello.num_slots or commit.slot in self.held.values():
            raise ProtocolError(f"{hello.worker_name} committed slot {commit.slot}, which it cannot have")
        if self.slots is not None:
            if payload:
                raise ProtocolError(f"{hello.worker_name} sent the bytes of a batch in shared memory")
            batch = self.slots.batches[commit.slot]
        else:
            if len(payload) != 1 or len(payload[0]) != hello.layout.nbytes:
                raise ProtocolError(f"a batch of {hello.worker_name} is not {hello.layout.nbytes} bytes")
            batch = hello.layout.view(aligned(payload[0].buffer))
        return ReceivedBatch(
            batch=batch,
            worker_name=hello.worker_name,
            incarnation=hello.incarnation,
            stream=hello.stream,
            seq=commit.produced.batches,
            metadata=commit.metadata,
            nbytes=hello.layout.nbytes,
            transport=self.transport,
        )

    def counted(self) -> Tally | None:
        """Return what it has committed by its shared counters, which outlive it; None where it has none."""
        return None if self.slots is None else self.slots.counted()

    def close(self) -> None:
        """Let go of its memory; batches in hand keep what they view."""
        if self.slots is not None:
            self.slots.close()
