"""Event files: what we write by hand is what the protocol buffers of tensorboardX write, byte for byte."""

from __future__ import annotations

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from hpc_marl.base.event_file import framed, start_event, values_event, version_event

TIME = 1_700_000_000.25


def test_the_first_event_names_the_version():
    assert version_event(TIME) == Event(wall_time=TIME, file_version="brain.Event:2").SerializeToString()


@pytest.mark.parametrize("step", [0, 1, 127, 128, 300, 2**31, 2**62])
def test_a_start_hides_what_came_later(step: int):
    log = SessionLog(status=SessionLog.START)
    assert start_event(TIME, step) == Event(wall_time=TIME, step=step, session_log=log).SerializeToString()


@pytest.mark.parametrize(
    "values",
    [
        [],
        [("train/entropy", 0.1)],
        [("train/zero", 0.0), ("train/number", 7), ("train/large", 1e300), ("train/small", -1e300)],
        [("train/ü", -2.5), *((f"train/{'x' * 200}{i}", float(i)) for i in range(100))],
    ],
    ids=len,
)
def test_values_of_a_row(values: list[tuple[str, float]]):
    event = Event(wall_time=TIME, step=1000)
    event.summary.SetInParent()
    for tag, value in values:
        event.summary.value.add(tag=tag, simple_value=value)
    assert values_event(TIME, 1000, values) == event.SerializeToString()


@pytest.mark.parametrize("content", [b"", b"\0", bytes(range(256)) * 5])
def test_a_record_carries_its_length_and_checksums(content: bytes):
    length = struct.pack("<Q", len(content))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    assert framed(content) == length + sums[0] + content + sums[1]
