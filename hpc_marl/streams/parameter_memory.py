"""ParameterMemory: the newest parameters in shared memory, written and read without locks or waiting.

    | generation | closed |   slot 0: | generation | policy_version | flat float32 ... |   slot 1: ...

Publication number g (1, 2, ...) goes to slot g % 2; `|` is a fence, which keeps what is before it before it:

    writer   slot.generation = 0 | weights; policy_version | slot.generation = g | generation = g
    reader   g = generation | slot.generation == g? | copy | slot.generation == g?

A reader holds a *private copy*, and takes it for version g only if both answers are yes: nothing was written to the
slot between the two looks. Because the slots alternate, a copy is disturbed only if the writer publishes twice while it
is made; then the reader tries again.

The fences are what makes this right on every processor, ARM and POWER included, and they cost nothing next to the copy.
A checksum over the copy would cost four times as much as the copy itself, at each end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_marl.base.shared_memory import SharedMemory, SharedMemoryHandle, fence
from hpc_marl.errors import StreamError

_LINE = 64  # bytes; a cache line: what the writer writes often does not share one with what is read often
_GENERATION, _VERSION = 0, 1
_CLOSED = 1
_MAX_TRIALS = 8

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FlatParameters:
    """A private copy of one version."""

    generation: int
    """How many versions had been published, this one included."""
    policy_version: int
    flat: NDArray[np.float32]


class ParameterLayout:
    """Where each named array lies in the flat one; both ends derive it from the shapes.

    Raises:
        StreamError: there are no shapes.
    """

    def __init__(self, shapes: Shapes) -> None:
        if not shapes:
            raise StreamError("there are no weights to publish: the shapes are empty")
        self.shapes = {name: tuple(int(size) for size in shape) for name, shape in shapes.items()}
        self._places: dict[str, slice] = {}
        start = 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            self._places[name] = slice(start, start + size)
            start += size
        self.size = start
        """Of the flat array, in numbers."""

    def views(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the named arrays as views of the flat one."""
        return {name: flat[place].reshape(self.shapes[name]) for name, place in self._places.items()}

    def write(self, weights: Mapping[str, NDArray[np.float32]], flat: NDArray[np.float32]) -> None:
        """Copy named arrays into the flat one.

        Raises:
            StreamError: a name, shape or dtype is not as announced; nothing is written.
        """
        if weights.keys() != self.shapes.keys():
            odd = sorted(weights.keys() ^ self.shapes.keys())
            raise StreamError(f"the weights differ from the announced ones in {', '.join(odd[:5])}")
        for name, array in weights.items():
            if array.dtype != np.float32 or array.shape != self.shapes[name]:
                raise StreamError(
                    f"weight {name} is {array.dtype}{list(array.shape)}, "
                    f"announced was float32{list(self.shapes[name])}"
                )
        for name, place in self._places.items():
            flat[place] = weights[name].reshape(-1)


class ParameterMemory:
    """Two slots of one layout; one writer, any number of readers."""

    def __init__(self, layout: ParameterLayout, memory: SharedMemory) -> None:
        """Use `create` or `attach`."""
        self._layout = layout
        self._memory = memory
        stride = _slot_bytes(layout)
        buffer = memory.buffer
        self._control = buffer[:_LINE].cast("q")
        self._heads: list[memoryview] = []
        self._flats: list[NDArray[np.float32]] = []
        for slot in range(2):
            start = _LINE + slot * stride
            self._heads.append(buffer[start : start + _LINE].cast("q"))
            flat = buffer[start + _LINE : start + _LINE + 4 * layout.size]
            self._flats.append(np.frombuffer(flat, np.float32))

    @classmethod
    def create(cls, layout: ParameterLayout, label: str) -> ParameterMemory:
        """Return an empty memory for the publisher.

        Raises:
            StreamError: the kernel grants none.
        """
        return cls(layout, SharedMemory.create(_LINE + 2 * _slot_bytes(layout), label))

    @classmethod
    def attach(cls, layout: ParameterLayout, handle: SharedMemoryHandle) -> ParameterMemory:
        """Return a publisher's memory, mapped read-only.

        Raises:
            StreamError: it is out of reach, or its size is not that of the layout.
        """
        if handle.size != _LINE + 2 * _slot_bytes(layout):
            raise StreamError(f"parameters of {handle.size} bytes, which do not fit the announced shapes")
        return cls(layout, SharedMemory.attach(handle, writable=False))

    @property
    def handle(self) -> SharedMemoryHandle:
        """What a reader needs to attach."""
        return self._memory.handle()

    @property
    def generation(self) -> int:
        """How many versions have been published."""
        return self._control[_GENERATION]

    def is_live(self) -> bool:
        """Return whether the publisher may still publish here."""
        return not self._control[_CLOSED] and self._memory.creator_holds()

    def write(self, policy_version: int, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Publish; for the one writer only.

        Raises:
            StreamError: the weights are not as announced; the last version stays.
        """
        generation = self.generation + 1
        head, flat = self._heads[generation % 2], self._flats[generation % 2]
        head[_GENERATION] = 0
        fence()
        self._layout.write(weights, flat)
        head[_VERSION] = policy_version
        fence()
        head[_GENERATION] = generation
        fence()
        self._control[_GENERATION] = generation

    def read(self, newer_than: int) -> FlatParameters | None:
        """Return a private copy of the newest version.

        Args:
            newer_than: generation that the reader has already.

        Returns:
            None where there is nothing newer, or the writer was faster `_MAX_TRIALS` times in a row.
        """
        for _ in range(_MAX_TRIALS):
            generation = self.generation
            if generation <= newer_than:
                return None
            fence()
            head = self._heads[generation % 2]
            if head[_GENERATION] != generation:
                continue
            fence()
            flat, version = self._flats[generation % 2].copy(), head[_VERSION]
            fence()
            if head[_GENERATION] == generation:
                return FlatParameters(generation, version, flat)
        return None

    def mark_closed(self) -> None:
        """Tell the readers that nothing more will come; for the one writer only."""
        self._control[_CLOSED] = 1

    def close(self) -> None:
        """Let go of the memory."""
        self._control.release()
        self._heads.clear()
        self._flats.clear()
        self._memory.close()


def _slot_bytes(layout: ParameterLayout) -> int:
    return _LINE + -(-4 * layout.size // _LINE) * _LINE
