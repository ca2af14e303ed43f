"""What inference clients and servers say to each other.

Over ZMQ: one frame, which begins with all arrays, packed, and ends with a msgpack head and its length. On one node,
once the client is attached, only numbers through two pipes; the arrays lie in the client's slots:

    client -> server   line, group, id, min_policy_version   a request is in this group's slot
    server -> client   id, policy_version, group             its answer is there
"""

from __future__ import annotations

import struct
from typing import Annotated, cast

import msgspec

from hpc_marl.base import serialization
from hpc_marl.base.doorbell import DoorbellHandle
from hpc_marl.base.serialization import Buffer
from hpc_marl.base.shared_memory import SharedMemoryHandle
from hpc_marl.errors import ProtocolError

Count = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

ASK = struct.Struct("=IIqq8x")
"""line, group, id, min_policy_version; 32 bytes, so that a full read of a pipe holds whole messages only."""
ANSWER = struct.Struct("=qqI12x")
"""id, policy_version, group; 32 bytes."""

_LENGTH = struct.Struct("<I")


class RequestHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="request"):
    """Behind the packed arrays."""

    client: Name
    id: Count
    group: Count
    min_policy_version: int
    layout: bytes
    """Of the arrays, and of the answer; `InferenceLayout.encoded`."""


class ReplyHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="reply"):
    """Behind the packed arrays."""

    id: Count
    group: Count
    policy_version: int


class Attach(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="attach"):
    """A client offers its slots."""

    client: Name
    host_identity: str
    layout: bytes
    num_groups: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    memory: SharedMemoryHandle
    bell: DoorbellHandle
    """Hears of answers."""


class Attached(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="attached"):
    """The server reads the slots that `token` names; the client's requests may go through the bell."""

    token: bytes
    line: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    bell: DoorbellHandle


class Refused(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="refused"):
    """The server does not; requests go on by ZMQ."""

    token: bytes
    reason: str


ClientMessage = RequestHead | Attach
ServerMessage = ReplyHead | Attached | Refused

_as_client_message = serialization.decoder(cast("type[ClientMessage]", ClientMessage))
_as_server_message = serialization.decoder(cast("type[ServerMessage]", ServerMessage))


def to_frame(head: ClientMessage | ServerMessage, *arrays: Buffer) -> bytes:
    """Return a message: arrays, head, length of the head; so the arrays are as aligned as the frame."""
    encoded = serialization.encode(head)
    return b"".join((*arrays, encoded, _LENGTH.pack(len(encoded))))


def from_client(frame: Buffer) -> tuple[ClientMessage, memoryview]:
    """Return head and arrays of a client's message.

    Raises:
        ProtocolError: it is not one.
    """
    head, arrays = _split(frame)
    return _as_client_message(head), arrays


def from_server(frame: Buffer) -> tuple[ServerMessage, memoryview]:
    """Return head and arrays of a server's message.

    Raises:
        ProtocolError: it is not one.
    """
    head, arrays = _split(frame)
    return _as_server_message(head), arrays


def _split(frame: Buffer) -> tuple[memoryview, memoryview]:
    end = len(frame) - _LENGTH.size
    start = end - _LENGTH.unpack_from(frame, end)[0] if end >= 0 else -1
    if start < 0:
        raise ProtocolError(f"a message of {len(frame)} bytes, which do not hold what they announce")
    whole = memoryview(frame)
    return whole[start:end], whole[:start]
