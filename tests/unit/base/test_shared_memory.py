"""SharedMemory: attach across processes, survive the creator, refuse anything that is not the block."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle, fence
from hpc_marl.errors import StreamError

CREATOR = """
import sys, time, msgspec
from hpc_marl.base.shared_memory import SharedMemory
memory = SharedMemory.create(4096, "test")
memory.buffer[:4] = b"data"
sys.stdout.write(msgspec.msgpack.encode(memory.handle()).hex() + "\\n")
sys.stdout.flush()
time.sleep(60)
"""


@pytest.fixture
def creator():
    with subprocess.Popen([sys.executable, "-c", CREATOR], stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        yield process, msgspec.msgpack.decode(bytes.fromhex(line), type=SharedMemoryHandle)
        process.kill()


def test_two_mappings_share_pages():
    with SharedMemory.create(100, "x") as mine, SharedMemory.attach(mine.handle()) as theirs:
        np.frombuffer(theirs.buffer, np.uint8)[99] = 7
        assert mine.buffer[99] == 7
        assert len(theirs.buffer) == theirs.size == 100
        assert np.frombuffer(mine.buffer, np.uint8).ctypes.data % 64 == 0


def test_mapping_outlives_a_killed_creator(creator):
    process, handle = creator
    memory = SharedMemory.attach(handle)
    assert memory.creator_holds()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not memory.creator_holds()
    assert bytes(memory.buffer[:4]) == b"data"
    with pytest.raises(StreamError, match="gone"):
        SharedMemory.attach(handle)
    memory.close()


def test_read_only_mapping_cannot_be_written(creator):
    _, handle = creator
    with SharedMemory.attach(handle, writable=False) as memory:
        assert bytes(memory.buffer[:4]) == b"data"
        with pytest.raises(TypeError):
            memory.buffer[0] = 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"start_ticks": 1}, "gone"),
        ({"pid": 2**22 + 1}, "gone"),
        ({"pid": -1}, "gone"),
        ({"size": 101}, "announced"),
        ({"size": 0}, "handle of 0 bytes"),
        ({"token": bytes(16)}, "token"),
        ({"token": b"short"}, "token of 5"),
        ({"fd": 99999}, "cannot open"),
    ],
)
def test_handle_that_does_not_fit_is_refused(change, match):
    with SharedMemory.create(100, "x") as memory, pytest.raises(StreamError, match=match):
        SharedMemory.attach(msgspec.structs.replace(memory.handle(), **change))


def test_reused_descriptor_is_refused():
    memory = SharedMemory.create(100, "x")
    handle = memory.handle()
    memory.close()
    read_end, write_end = os.pipe()
    other = SharedMemory.create(100, "y")
    try:
        for fd, match in ((read_end, "not shared memory"), (other.handle().fd, "token")):
            with pytest.raises(StreamError, match=match):
                SharedMemory.attach(msgspec.structs.replace(handle, fd=fd))
        raw = os.memfd_create("unsealed")
        os.ftruncate(raw, 4096 + 100)
        with pytest.raises(StreamError, match="not sealed"):
            SharedMemory.attach(msgspec.structs.replace(handle, fd=raw))
        os.close(raw)
    finally:
        os.close(read_end)
        os.close(write_end)
        other.close()


def test_the_block_cannot_be_resized():
    with SharedMemory.create(100, "x") as memory:
        for size in (10, 10_000):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.handle().fd, size)


def test_close_leaves_views_valid_and_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    memory = SharedMemory.create(100, "x")
    array = np.frombuffer(memory.buffer, np.uint8)
    memory.buffer[3] = 5
    memory.close()
    memory.close()
    assert array[3] == 5
    with pytest.raises(StreamError, match="creator"):
        memory.handle()
    del array, memory
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_block_is_seen_although_its_descriptor_is_used_again():
    memory = SharedMemory.create(100, "x")
    attached = SharedMemory.attach(memory.handle())
    assert attached.creator_holds() and memory.creator_holds()
    fd = memory.handle().fd
    memory.close()
    with SharedMemory.create(100, "x") as later:
        assert later.handle().fd == fd
        assert not attached.creator_holds()
    attached.close()


def test_impossible_sizes_are_stream_errors():
    for size in (0, -1, 2**63):
        with pytest.raises(StreamError):
            SharedMemory.create(size, "x")


WAITER = """
import sys, msgspec
from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle, fence
handle = msgspec.msgpack.decode(bytes.fromhex(sys.argv[1]), type=SharedMemoryHandle)
words = SharedMemory.attach(handle).buffer.cast("Q")
torn = 0
for turn in range(1, int(sys.argv[2]) + 1):
    while words[0] != turn:
        pass
    fence()
    torn += any(word != turn for word in words[1:8])
    fence()
    words[8] = turn
print(torn)
"""


def test_what_was_written_before_a_fence_is_there_before_what_is_written_after():
    num_turns = 500
    with SharedMemory.create(128, "test") as memory:
        words = memory.buffer.cast("Q")
        arguments = [msgspec.msgpack.encode(memory.handle()).hex(), str(num_turns)]
        with subprocess.Popen(
            [sys.executable, "-c", WAITER, *arguments], stdout=subprocess.PIPE, text=True
        ) as waiter:
            for turn in range(1, num_turns + 1):
                for index in range(1, 8):
                    words[index] = turn
                fence()
                words[0] = turn
                while words[8] != turn:
                    assert waiter.poll() is None
            assert waiter.stdout.read() == "0\n"
        words.release()
