"""Staging: sample batches on their way to a GPU, the next one while the present one is learned from.

    slots in shared memory ──► pinned memory ──(copy stream)──► device     batch k+1, into the one pair of buffers
                                                                device ──► learner, on batch k in the other pair

Both ends are buffers that stay where they are, so that nothing is allocated or pinned anew, and nothing is freed that
another stream still reads. Images travel and stay as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_marl.data.samples import SampleBatch

STAGED = ("observation", "state", "action_mask", "memory", "is_first")
"""Arrays that the networks read as they are; all else is small, or read by the CPU."""

_NUM_PAIRS = 2


def to_device(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Return values on the device; the CPU does not wait for the copy, nor for what the device does before it.

    On the CPU they are copied only where they are read-only, as views of shared memory may be: torch warns of those.
    """
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values if values.flags.writeable else values.copy())
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@dataclass(eq=False)
class _Pair:
    """Host memory for one batch and its counterpart on the device."""

    host: SampleBatch | None = None
    sources: dict[str, Tensor] = field(default_factory=dict)
    """Of STAGED, the host's memory."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """Of STAGED, the device's memory."""
    copied: Any = None
    """Event: all is on the device."""
    used: Any = None
    """Event: the device has done with it."""


class Staging:
    """Two pairs of buffers that batches take turns in. One thread at a time.

    On a CPU the same buffers serve as both ends, and nothing is pinned or waited for.

    Args:
        device: where batches go.
        cuda: what offers streams and events as torch.cuda does; None: there are none, as the device is no GPU.
        pin: whether host memory is pinned, without which a copy makes the CPU wait.
    """

    def __init__(self, device: torch.device, cuda: Any = None, *, pin: bool = True) -> None:
        self._device, self._cuda, self._pin = device, cuda, pin
        self._pairs = [_Pair() for _ in range(_NUM_PAIRS)]
        self._present: _Pair | None = None
        if cuda is not None:
            self._stream = cuda.Stream(device)
            for pair in self._pairs:
                pair.copied, pair.used = cuda.Event(), cuda.Event()

    def stage(self, batches: Sequence[SampleBatch]) -> SampleBatch:
        """Join batches as `concatenate` does, in memory of its own, and begin to copy what the networks read.

        The batches' own arrays are not needed any more when this returns. The result stands until the second batch
        after it is staged; one that `tensors` was asked for, until it is asked for another.
        """
        pair = next(pair for pair in self._pairs if pair is not self._present)
        if self._cuda is not None:
            pair.copied.synchronize()  # the copy of what was here before; over long ago
        is_new = self._make_room(pair, batches)
        assert pair.host is not None
        for name, target in pair.host.arrays().items():
            parts = [getattr(batch, name) for batch in batches]
            if name == "policy_version":
                np.minimum.reduce(parts, out=target)
            else:
                np.concatenate(parts, axis=1, out=target)
        if self._cuda is not None:
            self._send(pair, is_new)
        self._pairs.remove(pair)
        self._pairs.append(pair)  # the other one's turn
        return pair.host

    def tensors(self, batch: SampleBatch) -> dict[str, Tensor]:
        """Return those arrays of STAGED that the batch has, on the device; a batch not staged is staged now.

        What is launched from now on waits for the copies. The CPU does not.
        """
        pair = self._pair_of(batch)
        if pair is None:
            self.stage([batch])
            pair = self._pairs[-1]
        if self._cuda is not None:
            stream = self._cuda.current_stream(self._device)
            if self._present is not None and self._present is not pair:
                self._present.used.record(stream)
            stream.wait_event(pair.copied)
        self._present = pair
        return pair.targets

    def _pair_of(self, batch: SampleBatch) -> _Pair | None:
        return next((pair for pair in self._pairs if pair.host is batch), None)

    def _make_room(self, pair: _Pair, batches: Sequence[SampleBatch]) -> bool:
        """Give the pair a host batch of its own, and new buffers where shapes are not as before; return whether so."""
        shapes = {
            name: (_joined(name, [getattr(batch, name).shape for batch in batches]), array.dtype)
            for name, array in batches[0].arrays().items()
        }
        before = {} if pair.host is None else pair.host.arrays()
        if shapes == {name: (array.shape, array.dtype) for name, array in before.items()}:
            pair.host = SampleBatch(
                **vars(pair.host)
            )  # another batch: who holds the former one must not find it here
            return False
        sources = {name: self._host_memory(*shape) for name, shape in shapes.items()}
        absent = {"state": None, "action_mask": None, "memory": None}
        arrays: dict[str, Any] = {name: source.numpy() for name, source in sources.items()}
        pair.host = SampleBatch(**{**absent, **arrays})
        pair.sources = {name: sources[name] for name in STAGED if name in sources}
        pair.targets = pair.sources
        if self._cuda is not None:
            pair.targets = {
                name: torch.empty_like(source, device=self._device) for name, source in pair.sources.items()
            }
        return True

    def _host_memory(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        return torch.empty(shape, dtype=kind, pin_memory=self._cuda is not None and self._pin)

    def _send(self, pair: _Pair, is_new: bool) -> None:
        if is_new:  # the allocator may have given memory that what was launched before still uses
            self._stream.wait_stream(self._cuda.current_stream(self._device))
        else:
            self._stream.wait_event(pair.used)
        with self._cuda.stream(self._stream):
            for name, target in pair.targets.items():
                target.copy_(pair.sources[name], non_blocking=True)
        pair.copied.record(self._stream)


def _joined(name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of arrays joined along the environment axis."""
    first = shapes[0]
    return first if name == "policy_version" else (first[0], sum(shape[1] for shape in shapes), *first[2:])
