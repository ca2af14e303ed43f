"""Ranks: what the trainers of one policy must do together, so that they stay copies of one learner.

    Ranks              one trainer alone: every sum is its own
    DistributedRanks   several, by torch.distributed: gradients are averaged, sums taken over all, words passed round
                       (on the CPUs of one host small tensors go through shared memory, see `shared_sums`)

All ranks must make the same calls in the same order. Whatever decides (a sum, a gradient) comes out equal, bit for
bit, on all of them. Words travel as msgpack in byte tensors, never as pickle. Where a rank dies, the others' call
raises RuntimeError: at once where its connections break, else after the process group's timeout. Calls of nccl return
before they are done; there torch's watchdog ends the process (SIGABRT) after that time.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from hpc_marl.algorithms.shared_sums import SharedSums
from hpc_marl.base import serialization

T = TypeVar("T")


class Moments(NamedTuple):
    """Of some numbers."""

    mean: float
    variance: float


class Ranks:
    """One trainer alone.

    Attributes:
        rank: of this trainer.
        size: trainers in all.
    """

    rank = 0
    size = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module that computes what `module` does and whose backward averages gradients over the ranks.

        All ranks begin with the parameters of rank 0.
        """
        return module

    def copy_from_first(self, tensor: Tensor) -> None:
        """Overwrite a tensor with that of rank 0."""

    def add(self, tensor: Tensor) -> Tensor:
        """Return the elementwise sum over the ranks."""
        return tensor

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the elementwise mean over the ranks."""
        return self.add(tensor) / self.size if self.size > 1 else tensor

    def sums(self, *values: float) -> list[float]:
        """Return the sums over the ranks, in float64."""
        return list(values)

    def largest(self, value: float) -> float:
        """Return the largest of the ranks' values."""
        return value

    def moments(self, *series: NDArray[np.float64]) -> list[Moments]:
        """Return mean and variance of all ranks' values together (NaN where there are none), series by series."""
        sizes = [float(values.size) for values in series]
        totals = self.sums(*sizes, *(float(values.sum()) for values in series))
        counts = [count or math.nan for count in totals[: len(series)]]
        means = [total / count for total, count in zip(totals[len(series) :], counts, strict=True)]
        deviations = (values - mean for values, mean in zip(series, means, strict=True))
        squares = self.sums(*(float(np.dot(values, values)) for values in deviations))
        return [Moments(*found) for found in zip(means, map(operator.truediv, squares, counts), strict=True)]

    def gather(self, word: T) -> list[T]:
        """Return what the ranks have to say, by rank: Structs or plain values."""
        return [word]

    def broadcast(self, word: T) -> T:
        """Return what rank 0 has to say: plain values and arrays; the others' `word` is ignored.

        Tuples arrive as lists.
        """
        return word

    def generator(self, shared: torch.Generator) -> torch.Generator:
        """Return random numbers of this rank's own; `shared` is in the same state on all ranks, before and after."""
        return shared

    def close(self, *, in_order: bool = True) -> None:
        """Leave the others.

        Args:
            in_order: all have come to their end; else this one has failed, and others may be waiting for it.
        """


class DistributedRanks(Ranks):
    """Several trainers, one process each; the default process group of torch.distributed must be there.

    Args:
        device: where tensors are; nccl knows only those of its GPU.
        store: what the process group was made with. nccl asks it again at the first collective, when torch itself
            keeps only the C++ half of a store written in Python; without this reference its methods would be gone.
    """

    def __init__(self, device: torch.device, store: object = None) -> None:
        self._device, self._store = device, store
        self._shared: SharedSums | None = None
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def share_memory(self, timeout_s: float) -> None:
        """Sum small tensors through shared memory from now on, if all ranks are of one host and learn on its CPUs."""
        if self._device.type == "cpu":
            self._shared = SharedSums.open(self.rank, self.size, self.gather, timeout_s)

    def wrap(self, module: nn.Module) -> nn.Module:
        """See Ranks."""
        return nn.parallel.DistributedDataParallel(module)

    def copy_from_first(self, tensor: Tensor) -> None:
        """See Ranks."""
        dist.broadcast(tensor, src=0)

    def add(self, tensor: Tensor) -> Tensor:
        """See Ranks."""
        if self._shared is not None and self._shared.takes(tensor):
            return self._shared.add(tensor)
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def sums(self, *values: float) -> list[float]:
        """See Ranks."""
        total: list[float] = self.add(torch.tensor(values, dtype=torch.float64, device=self._device)).tolist()
        return total

    def largest(self, value: float) -> float:
        """See Ranks."""
        return float(self._spread(torch.tensor(value, dtype=torch.float64)).max())

    def gather(self, word: T) -> list[T]:
        """See Ranks."""
        own = self._packed(serialization.encode(word))
        sizes = [int(size) for size in self._spread(torch.tensor(len(own)))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=self._device)
        padded[: len(own)] = own
        parts = self._spread(padded)
        return [_unpacked(part[:size], type(word)) for part, size in zip(parts, sizes, strict=True)]

    def broadcast(self, word: T) -> T:
        """See Ranks."""
        content = self._packed(serialization.encode(word) if self.rank == 0 else b"")
        length = torch.tensor([len(content)], device=self._device)
        dist.broadcast(length, src=0)
        if self.rank:
            content = torch.empty(int(length), dtype=torch.uint8, device=self._device)
        dist.broadcast(content, src=0)
        result: T = _unpacked(content, Any)
        return result

    def generator(self, shared: torch.Generator) -> torch.Generator:
        """See Ranks."""
        seed = int(torch.randint(2**48, (), generator=shared))
        return torch.Generator().manual_seed(seed + self.rank)

    def close(self, *, in_order: bool = True) -> None:
        """See Ranks.

        Where gloo closes its connections the others fail at once. nccl would wait here for them, who wait for this
        rank: it is left to the end of the process.
        """
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        if dist.is_initialized() and (in_order or self._device.type == "cpu"):
            dist.destroy_process_group()

    def _spread(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, [rank, ...]: a sum to which each adds zeros in the others' places."""
        rows = torch.zeros((self.size, *tensor.shape), dtype=tensor.dtype, device=self._device)
        rows[self.rank] = tensor
        return self.add(rows)

    def _packed(self, content: bytes) -> Tensor:
        return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).to(self._device)


def _unpacked(content: Tensor, expected: Any) -> Any:
    return serialization.decode(content.cpu().numpy().data, expected)
