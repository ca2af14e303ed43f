"""Large messages in frames of moderate size, neither copied on the way out nor more often than once on the way in.

A frame of `FRAME_BYTES` stays in the processor's cache while it is encrypted and written, and the other end decrypts it
meanwhile. One large frame is encrypted as a whole before any of it leaves: that takes twice the CPU time, a copy of the
whole message for each reader, and two to four times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zmq

from hpc_marl.errors import ProtocolError
from hpc_marl.streams.links import aligned

FRAME_BYTES = 2**18
"""Largest frame of a message that is sent `in_frames`."""


def in_frames(buffer: memoryview) -> list[memoryview]:
    """Return the bytes of a message as frames, which are views of it.

    >>> [len(frame) for frame in in_frames(memoryview(bytes(2**19 + 1)))]
    [262144, 262144, 1]
    """
    return [buffer[start : start + FRAME_BYTES] for start in range(0, len(buffer), FRAME_BYTES)] or [buffer]


def from_frames(frames: Sequence[zmq.Frame], num_bytes: int) -> memoryview:
    """Return the bytes of a message that was sent `in_frames`, fit for views of 8-byte numbers.

    Raises:
        ProtocolError: they are not so many.
    """
    found = sum(map(len, frames))
    if found != num_bytes:
        raise ProtocolError(f"{found} bytes in {len(frames)} frames; expected {num_bytes}")
    if len(frames) == 1:
        return aligned(frames[0].buffer)
    flat = np.empty(num_bytes, np.uint8)
    start = 0
    for frame in frames:
        flat[start : start + len(frame)] = np.frombuffer(frame.buffer, np.uint8)
        start += len(frame)
    return flat.data
