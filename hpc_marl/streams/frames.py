"""Large messages in frames of moderate size, not copied on the way out and once on the way in.

A frame of `FRAME_BYTES` is written to the socket while it is in the processor's cache, and the other end decrypts it
while the next is encrypted. One large frame is encrypted as a whole before any of it leaves, which takes longer and
needs another copy of the whole message for each reader.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zmq
from numpy.typing import NDArray

from hpc_marl.errors import ProtocolError

FRAME_BYTES = 2**20
"""Largest frame of a message that is sent `in_frames`."""


def in_frames(buffer: memoryview) -> list[memoryview]:
    """Return the bytes of a message as frames, which are views of it.

    >>> [len(frame) for frame in in_frames(memoryview(bytes(2**21 + 1)))]
    [1048576, 1048576, 1]
    """
    return [buffer[start : start + FRAME_BYTES] for start in range(0, len(buffer), FRAME_BYTES)] or [buffer]


def from_frames(frames: Sequence[zmq.Frame], into: NDArray[np.uint8]) -> None:
    """Copy the bytes of a message that was sent `in_frames` into an array.

    Raises:
        ProtocolError: they are more or fewer than it holds; nothing is copied.
    """
    found = sum(map(len, frames))
    if found != into.nbytes:
        raise ProtocolError(f"{found} bytes in {len(frames)} frames; expected {into.nbytes}")
    start = 0
    for frame in frames:
        into[start : start + len(frame)] = np.frombuffer(frame.buffer, np.uint8)
        start += len(frame)
