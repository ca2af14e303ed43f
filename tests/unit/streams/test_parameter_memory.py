"""ParameterMemory: whole versions only, whoever is in the middle of what."""

from __future__ import annotations

import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest

from hpc_marl.base.shared_memory import SharedMemoryHandle
from hpc_marl.errors import StreamError
from hpc_marl.streams.parameter_memory import ParameterLayout, ParameterMemory
from tests.unit.streams import parameter_writer

SHAPES = {"w": (2, 3), "scale": (), "b": (4,)}


def weights(value: float) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}


@pytest.fixture
def memory():
    memory = ParameterMemory.create(ParameterLayout(SHAPES), "test")
    yield memory
    memory.close()


@pytest.fixture
def attached(memory):
    attached = ParameterMemory.attach(ParameterLayout(SHAPES), memory.handle)
    yield attached
    attached.close()


def test_reader_takes_the_newest_version_once(memory, attached):
    assert attached.read(0) is None
    for version in (5, 3, 9):  # versions may go back; generations do not
        memory.write(version, weights(version))
    found = attached.read(0)
    assert (found.generation, found.policy_version) == (3, 9)
    views = ParameterLayout(SHAPES).views(found.flat)
    assert {name: array.shape for name, array in views.items()} == SHAPES
    assert all((array == 9).all() for array in views.values())
    assert attached.read(3) is None
    memory.write(10, weights(10))
    assert (found.flat == 9).all()  # a private copy
    assert attached.read(3).policy_version == 10


def test_an_interrupted_write_is_never_seen(memory, attached):
    memory.write(1, weights(1))
    memory.write(2, weights(2))
    # The writer dies in the middle of version 3: its slot is that of version 1.
    memory._heads[1][0] = 0
    memory._flats[1][:2] = 3
    found = attached.read(0)
    assert found.policy_version == 2 and (found.flat == 2).all()


class WrittenMeanwhile:
    """Stands for the flat array of slot 1: while version 1 is copied from it, others are published."""

    def __init__(self, memory, flat, count):
        self._memory, self._flat, self._count = memory, flat, count

    def copy(self):
        if self._memory.generation > 1:
            return self._flat.copy()
        first = self._flat[:5].copy()
        for version in range(2, 2 + self._count):
            self._memory.write(version, weights(version))
        return np.concatenate([first, self._flat[5:]])


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (2, 3), (3, 4)])
def test_a_copy_that_was_disturbed_is_made_again(memory, attached, count, taken):
    """One publication meanwhile goes to the other slot; the second overwrites what is being copied."""
    memory.write(1, weights(1))
    attached._flats[1] = WrittenMeanwhile(memory, attached._flats[1], count)
    found = attached.read(0)
    assert found.policy_version == taken and (found.flat == taken).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.zeros((3, 2), np.float32)}, r"w is float32\[3, 2\], announced was float32\[2, 3\]"),
        ({"w": np.zeros((2, 3))}, r"w is float64"),
        ({"other": np.zeros(1, np.float32)}, "differ from the announced ones in other"),
    ],
)
def test_other_weights_are_refused_and_the_last_version_stays(memory, change, message):
    memory.write(1, weights(1))
    with pytest.raises(StreamError, match=message):
        memory.write(2, weights(2) | change)
    assert memory.read(0).policy_version == 1


def test_memory_of_other_shapes_is_refused(memory):
    with pytest.raises(StreamError, match="do not fit"):
        ParameterMemory.attach(ParameterLayout({"w": (100,)}), memory.handle)
    with pytest.raises(StreamError, match="no weights"):
        ParameterLayout({})


def test_readers_see_that_a_publisher_is_done(memory, attached):
    assert attached.is_live()
    memory.mark_closed()
    assert not attached.is_live()


@pytest.fixture
def writer():
    with subprocess.Popen([sys.executable, parameter_writer.__file__], stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_no_version_is_torn_while_another_process_writes(writer):
    handle = msgspec.json.decode(writer.stdout.readline(), type=SharedMemoryHandle)
    memory = ParameterMemory.attach(ParameterLayout(parameter_writer.SHAPES), handle)
    generation = versions = 0
    start = time.monotonic()
    while time.monotonic() < start + 0.5 or versions < 20:
        assert time.monotonic() < start + 60, f"only {versions} versions could be read"
        found = memory.read(generation)
        if found is not None:
            assert found.generation == found.policy_version > generation
            assert (found.flat == found.policy_version % 1_000_000).all()
            generation, versions = found.generation, versions + 1
    writer.kill()
    writer.wait()
    assert not memory.is_live()
    memory.close()
