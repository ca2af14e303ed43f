"""What parameter publishers and readers say to each other, and what a publisher's name entry says."""

from __future__ import annotations

from typing import Any

import msgspec

from hpc_marl.base.shared_memory import SharedMemoryHandle


class ParameterOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a publisher's name entry says besides its address."""

    epoch: int
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, Any]
    shared_memory: SharedMemoryHandle | None


class Want(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="want"):
    """From a reader: one version with a generation above this."""

    newer_than: int


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="version"):
    """From the publisher; the flat float32 array is in the frames that follow."""

    generation: int
    policy_version: int
