"""Exchange: what a forward pass reads and writes, between numpy and a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HostExchange:
    """The device is the CPU itself: nothing travels."""

    def send(self, name: str, array: NDArray[Any]) -> Tensor:
        """Return an array on the device; copied here only where it is read-only, which torch would warn of."""
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    def fetch(self, **tensors: Tensor) -> dict[str, NDArray[Any]]:
        """Return tensors as arrays of the caller's own."""
        return {name: tensor.numpy() for name, tensor in tensors.items()}


class DeviceExchange:
    """The device is a GPU: all goes through pinned memory that is kept, and the CPU waits once, in `fetch`.

    Args:
        device: the GPU.
        wait: until it has done all that was asked of it.
        pin: whether memory is pinned, without which every copy makes the CPU wait.
    """

    def __init__(
        self, device: torch.device, wait: Callable[[], None] | None = None, *, pin: bool = True
    ) -> None:
        self._device, self._pin = device, pin
        self._wait = wait or torch.cuda.current_stream(device).synchronize
        self._memory: dict[str, Tensor] = {}

    def send(self, name: str, array: NDArray[Any]) -> Tensor:
        """Return an array on the device, once that gets there; of each name one between two calls of `fetch`."""
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        memory = self._room(f"to {name}", array.shape, dtype)
        np.copyto(memory.numpy(), array)
        return memory.to(self._device, non_blocking=True, copy=True)

    def fetch(self, **tensors: Tensor) -> dict[str, NDArray[Any]]:
        """Return tensors as arrays of the caller's own, when the device has done all that was asked of it."""
        found = {}
        for name, tensor in tensors.items():
            found[name] = self._room(f"from {name}", tuple(tensor.shape), tensor.dtype)
            found[name].copy_(tensor, non_blocking=True)
        self._wait()
        return {name: memory.numpy().copy() for name, memory in found.items()}

    def _room(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return pinned memory, at the beginning of the piece of that name; pieces grow to twice what is wanted."""
        size = math.prod(shape)
        piece = self._memory.get(name)
        if piece is None or piece.dtype != dtype or len(piece) < size:
            piece = self._memory[name] = torch.empty(2 * size, dtype=dtype, pin_memory=self._pin)
        return piece[:size].view(shape)
