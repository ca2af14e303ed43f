"""What inference clients and servers say to each other: a msgpack head, then the arrays as raw frames."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class RequestHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="request"):
    """Followed by the header of the arrays and one frame for each of them."""

    client: Name
    id: Count
    group: Count
    min_policy_version: int


class ReplyHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="reply"):
    """Followed by the header of the arrays and one frame for each of them."""

    id: Count
    group: Count
    policy_version: int
