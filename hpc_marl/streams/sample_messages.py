"""What sample senders and receivers say to each other by ZMQ: msgpack headers, batches as raw bytes behind them.

sender   -> receiver   Hello, Commit + the batch, Ping, Goodbye
receiver -> sender     Welcome | Refused | Unknown, Credit, Pong, Farewell

Where memory is shared, a `SampleLane` takes the place of Commit and Credit.
"""

from __future__ import annotations

import struct
from typing import Annotated, cast

import msgspec

from hpc_marl.base import serialization
from hpc_marl.base.doorbell import DoorbellHandle
from hpc_marl.base.shared_memory import SharedMemoryHandle
from hpc_marl.data import SampleLayout
from hpc_marl.streams.ledger import Tally
from hpc_marl.streams.sample_credits import Grant

PROTOCOL_VERSION = 4
COPIED_BYTES = 2**17
"""Batches up to this follow the header in its frame: that costs less than frames of their own that are not copied."""
_HEADER_SIZE = struct.Struct(">I")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
SlotCount = Annotated[int, msgspec.Meta(ge=1, le=2**16)]


class SampleMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an actor says about a batch besides its arrays."""

    env_steps: Count
    agent_steps: Count
    group: Count = 0
    """Environment group of the actor that it was sampled in."""
    episodes: list[tuple[float, Count]] = []
    """(return, length in env_steps) of the episodes that ended in it."""
    policy_epoch: Count = 0
    """Epoch of the trainer whose parameters acted."""


class _SenderMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=True):
    stream: Name
    """Id of the SampleSender; a later one of the same process has another."""
    serial: Count
    """Grows with every message: one that was overtaken, on an older connection, is ignored."""
    heard: Count
    """Number of the newest grant that the sender knows."""
    limit: Count
    """The most batches that it may have under way: that grant, or what it was using before."""
    produced: Tally
    """All that the sender has committed before this message."""


class SharedParts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a receiver on the same node needs to read batches in place."""

    slots: SharedMemoryHandle
    lane: SharedMemoryHandle
    """Made for this receiver; see `SampleLane`."""
    bell: DoorbellHandle
    """Wakes the sender."""


class Hello(_SenderMessage, frozen=True, kw_only=True):
    """Asks to be let in."""

    protocol: int
    worker_name: Name
    incarnation: Name
    epoch: Count
    """Of the actor: a hello with a lower one than its worker_name had before is from a zombie."""
    host_identity: str
    layout: SampleLayout
    num_slots: SlotCount
    num_groups: SlotCount
    shared: SharedParts | None


class Commit(_SenderMessage, frozen=True, kw_only=True):
    """One batch: `seq` is `produced.batches`, its bytes follow in the same frame, or in others if they are many."""

    slot: Count
    metadata: SampleMetadata


class Ping(_SenderMessage, frozen=True, kw_only=True):
    """Asks what has arrived and what is still held: makes up for messages lost on a broken connection."""


class Goodbye(_SenderMessage, frozen=True, kw_only=True):
    """The stream ends."""


class _ReceiverMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=True):
    stream: Name


class Welcome(_ReceiverMessage, frozen=True, kw_only=True):
    """Let in."""

    grant: Grant
    first_seq: Count
    """Number of the first batch that counts: those before it were for another receiver, or are lost."""
    bell: DoorbellHandle | None
    """Wakes the receiver, which reads the sender's slots in place; None where batches must come by ZMQ."""


class Refused(_ReceiverMessage, frozen=True, kw_only=True):
    """Not let in, for good."""

    message: str


class Unknown(_ReceiverMessage, frozen=True, kw_only=True):
    """The receiver does not know the stream: say hello first."""


class Credit(_ReceiverMessage, frozen=True, kw_only=True):
    """Batches were consumed or dropped, or the grant has changed."""

    released: list[Count]
    grant: Grant


class Pong(_ReceiverMessage, frozen=True, kw_only=True):
    """Answer to Ping, and to a batch that comes before its predecessor.

    Of the batches below `next_seq`, all but those in `held` are released; those from there on have not arrived.
    """

    answers: Count
    """Serial of the message that it answers: what was sent later may still arrive."""
    next_seq: Count
    held: list[Count]
    grant: Grant


class Farewell(_ReceiverMessage, frozen=True, kw_only=True):
    """Answer to Goodbye: everything before it has arrived."""


SenderMessage = Hello | Commit | Ping | Goodbye
ReceiverMessage = Welcome | Refused | Unknown | Credit | Pong | Farewell
_decode_sender_message = serialization.decoder(cast("type[SenderMessage]", SenderMessage))
_decode_receiver_message = serialization.decoder(cast("type[ReceiverMessage]", ReceiverMessage))


class CommitEncoder:
    """Makes frames of commits with their batches: size of the header, header, bytes of the batch.

    They are put together in one buffer, which is valid until the next: new memory for each costs as much as the copy.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(2**12))

    def encode(self, commit: Commit, content: memoryview | bytes) -> memoryview:
        """Return the frame of a batch."""
        header = serialization.encode(commit)
        start = _HEADER_SIZE.size + len(header)
        end = start + len(content)
        if end > len(self._buffer):
            self._buffer = memoryview(bytearray(2 * end))
        _HEADER_SIZE.pack_into(self._buffer, 0, len(header))
        self._buffer[_HEADER_SIZE.size : start] = header
        self._buffer[start:end] = content
        return self._buffer[:end]


def decode_sender_message(frame: memoryview) -> tuple[SenderMessage, memoryview | None]:
    """Return the message in a first frame, and the bytes of a batch where they follow in the same one.

    Raises:
        ProtocolError: it is not one.
    """
    content = None
    # The size of a header is far below 2^24, so it begins with 0; no header does, each is a msgpack map.
    if len(frame) >= _HEADER_SIZE.size and frame[0] == 0:
        end = _HEADER_SIZE.size + _HEADER_SIZE.unpack_from(frame)[0]
        frame, content = frame[_HEADER_SIZE.size : end], frame[end:]
    return _decode_sender_message(frame), content


def decode_receiver_message(data: bytes | memoryview) -> ReceiverMessage:
    """Return the message in a header frame.

    Raises:
        ProtocolError: it is not one.
    """
    return _decode_receiver_message(data)


def layout_problem(layout: SampleLayout) -> str | None:
    """Return what makes a layout that came over the wire unusable, None where it is sound."""
    spec = layout.spec
    sizes = {
        "num_steps": layout.num_steps,
        "num_envs": layout.num_envs,
        "chunk_length": layout.chunk_length,
        "observation_size": spec.observation_size,
        "num_agents": spec.num_agents,
        "num_actions + action_size": spec.num_actions + spec.action_size,
    }
    for name, size in sizes.items():
        if not 1 <= size <= 2**31:
            return f"{name}={size} is out of range"
    if min(layout.memory_size, spec.state_size, spec.num_actions, spec.action_size) < 0:
        return "a size is negative"
    if layout.memory_size and layout.num_steps % layout.chunk_length:
        return f"num_steps={layout.num_steps} is no multiple of chunk_length={layout.chunk_length}"
    return None


def layout_difference(ours: SampleLayout, theirs: SampleLayout) -> str | None:
    """Return where two layouts differ besides num_envs, which is each actor's own; None where they agree."""
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in _EQUAL_IN_LAYOUTS]
    pairs += [(name, getattr(ours.spec, name), getattr(theirs.spec, name)) for name in _EQUAL_IN_SPECS]
    differing = [
        f"{name} is {theirs!r} instead of {ours!r}" for name, ours, theirs in pairs if ours != theirs
    ]
    return "; ".join(differing) or None


_EQUAL_IN_LAYOUTS = ("num_steps", "memory_size", "chunk_length")
_EQUAL_IN_SPECS = (
    "agent_names",
    "observation_size",
    "image_shape",
    "state_size",
    "num_actions",
    "action_size",
    "has_action_mask",
    "episode_limit",
)
