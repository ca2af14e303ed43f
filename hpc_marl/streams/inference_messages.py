"""What inference clients and servers say to each other.

Over ZMQ: a msgpack head, then all arrays packed in one frame. On one node, once the client is attached, only numbers
through two pipes; the arrays lie in the client's slots:

    client -> server   line, group, id, min_policy_version   a request is in this group's slot
    server -> client   id, policy_version, group             its answer is there
"""

from __future__ import annotations

import struct
from typing import Annotated, cast

import msgspec

from hpc_marl.base import serialization
from hpc_marl.base.doorbell import DoorbellHandle
from hpc_marl.base.shared_memory import SharedMemoryHandle

Count = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

ASK = struct.Struct("=IIqq8x")
"""line, group, id, min_policy_version; 32 bytes, so that a full read of a pipe holds whole messages only."""
ANSWER = struct.Struct("=qqI12x")
"""id, policy_version, group; 32 bytes."""


class RequestHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="request"):
    """Followed by the packed arrays."""

    client: Name
    id: Count
    group: Count
    min_policy_version: int
    layout: bytes
    """Of the arrays that follow, and of the answer; `InferenceLayout.encoded`."""


class ReplyHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="reply"):
    """Followed by the packed arrays."""

    id: Count
    group: Count
    policy_version: int


class Attach(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="attach"):
    """A client offers its slots."""

    client: Name
    host_identity: str
    layout: bytes
    num_groups: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    memory: SharedMemoryHandle
    bell: DoorbellHandle
    """Hears of answers."""


class Attached(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="attached"):
    """The server reads the slots that `token` names; the client's requests may go through the bell."""

    token: bytes
    line: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    bell: DoorbellHandle


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """The server does not; requests go on by ZMQ."""

    token: bytes
    reason: str


ClientMessage = RequestHead | Attach
ServerMessage = ReplyHead | Attached | Refused


def decode_client_message(data: bytes | memoryview) -> ClientMessage:
    """Return the message in a head frame.

    Raises:
        ProtocolError: it is not one.
    """
    return serialization.decode(data, cast("type[ClientMessage]", ClientMessage))


def decode_server_message(data: bytes | memoryview) -> ServerMessage:
    """Return the message in a head frame.

    Raises:
        ProtocolError: it is not one.
    """
    return serialization.decode(data, cast("type[ServerMessage]", ServerMessage))
