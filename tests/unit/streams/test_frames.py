"""Messages in frames: all bytes in their order, or none."""

from __future__ import annotations

import numpy as np
import pytest
import zmq

from hpc_marl.errors import ProtocolError
from hpc_marl.streams.frames import FRAME_BYTES, from_frames, in_frames


@pytest.mark.parametrize("size", [1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES + 7])
def test_what_was_put_into_frames_comes_out_of_them(size):
    sent = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    frames = in_frames(sent.data)
    assert max(map(len, frames)) <= FRAME_BYTES and all(np.shares_memory(sent, np.asarray(f)) for f in frames)
    received = np.zeros(size, np.uint8)
    from_frames([zmq.Frame(frame) for frame in frames], received)
    assert np.array_equal(received, sent)


@pytest.mark.parametrize("sizes", [[], [9], [11], [5, 4], [5, 5, 1]], ids=str)
def test_more_or_fewer_bytes_are_refused_untouched(sizes):
    into = np.zeros(10, np.uint8)
    with pytest.raises(ProtocolError, match="expected 10"):
        from_frames([zmq.Frame(b"x" * size) for size in sizes], into)
    assert not into.any()
