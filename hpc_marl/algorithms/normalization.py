"""Value normalisation: the critic learns targets of mean 0 and deviation 1, whatever the reward's scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

_DECAY = 0.99  # per update; until about 1 / (1 - decay) updates the plain average of all so far
_MIN_VARIANCE = 1e-4  # while all targets are equal, noise must not be blown up to unit scale


class RunningMoments:
    """Exponentially weighted mean and standard deviation of a stream of numbers, without start-up bias.

    Example:
        >>> moments = RunningMoments()
        >>> moments.update(np.array([1.0, 3.0]))
        >>> float(moments.mean), float(moments.std)
        (2.0, 1.0)
    """

    def __init__(self) -> None:
        # weighted sums of x, x^2 and 1; their quotients are the unbiased averages (Adam's trick)
        self._sums: NDArray[np.float64] = np.zeros(3)

    @property
    def mean(self) -> float:
        """Mean; 0 before the first update."""
        return float(self._sums[0] / self._sums[2]) if self._sums[2] else 0.0

    @property
    def std(self) -> float:
        """Standard deviation, at least 0.01; 1 before the first update."""
        if not self._sums[2]:
            return 1.0
        return float(np.sqrt(max(self._sums[1] / self._sums[2] - self.mean**2, _MIN_VARIANCE)))

    def update(
        self, values: NDArray[Any], sums: Callable[..., Sequence[float]] = lambda *values: values
    ) -> None:
        """Take in the numbers of one update; none at all change nothing.

        Args:
            values: of this process.
            sums: adds up numbers over all processes that keep these moments.
        """
        exact = values.astype(np.float64)
        count, total, squares = sums(exact.size, float(exact.sum()), float(np.square(exact).sum()))
        if count:
            self._sums *= _DECAY
            self._sums += np.array([total / count, squares / count, 1.0])

    def normalize(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (values - mean) / std."""
        normalized: NDArray[np.float32] = (values - np.float32(self.mean)) / np.float32(self.std)
        return normalized

    def denormalize(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return values * std + mean."""
        denormalized: NDArray[np.float32] = values * np.float32(self.std) + np.float32(self.mean)
        return denormalized

    def state_dict(self) -> dict[str, NDArray[np.float64]]:
        """Return all that there is to keep."""
        return {"sums": self._sums.copy()}

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state_dict` returned."""
        self._sums = np.array(state["sums"], np.float64)


@torch.no_grad()
def rescale_head(head: nn.Linear, old_mean: float, old_std: float, new_mean: float, new_std: float) -> None:
    """Change a linear layer so that its denormalised output stays as it was under new moments (PopArt).

    Reference:
        van Hasselt et al. 2016, proposition 1: https://arxiv.org/abs/1602.07714
    """
    head.weight.mul_(old_std / new_std)
    head.bias.copy_((head.bias.double() * old_std + old_mean - new_mean) / new_std)
