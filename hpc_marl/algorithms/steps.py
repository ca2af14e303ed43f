"""Steps: how a learner evaluates a batch and goes down the gradient of PPO's loss on it.

    AutogradSteps   by torch: every network and device
    FlatSteps       by hand, in numpy: feed-forward networks on the CPU, where torch's calls cost more than the sums

Both do the same to float32 rounding, from the same checkpoints and the same random numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.data.samples import SampleBatch

Array = NDArray[np.float32]
Minibatch = TypeVar("Minibatch")


class Scalars(NamedTuple):
    """What an update knows about every agent at every step, [T, E, N] each."""

    old_log_prob: Array
    advantage: Array
    value_target: Array
    old_value: Array
    alive: Array


class Found(NamedTuple):
    """What one minibatch was like, over all ranks."""

    loss: float
    policy_loss: float
    value_loss: float
    entropy: float
    kl: float
    clipped: float
    grad_norm: float
    """Before clipping."""

    @property
    def is_finite(self) -> bool:
        """Whether a step may be made."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Steps(ABC, Generic[Minibatch]):
    """One learner's networks, optimiser, and the batch at hand.

    Args:
        config: hyper-parameters.
        ranks: the trainers that learn together.

    Attributes:
        optimizer_steps: steps made since the beginning of training.
    """

    def __init__(self, config: PPOConfig, ranks: Ranks) -> None:
        self.optimizer_steps = 0
        self.config = config
        self.ranks = ranks

    @abstractmethod
    def read(self, batch: SampleBatch) -> None:
        """Arrange a batch: the one that `evaluate` and `fit` speak of until the next."""

    @abstractmethod
    def evaluate(self, *, with_log_prob: bool) -> tuple[Array, Array | None]:
        """Return values [T+1, E, N] and, if wanted, log-probabilities [T, E, N] of the actions.

        Values are as the critic says them; what it says of agents that are not there has no meaning.
        """

    def fit(self, scalars: Scalars, generator: torch.Generator, learning_rate: float) -> dict[str, float]:
        """Go over the batch, epoch by epoch, one step per minibatch; return metrics.

        A step is left out, and counted, where its loss or gradient is not finite.

        Args:
            scalars: of the batch that was read.
            generator: in the same state on all ranks; where the order of minibatches comes from.
            learning_rate: of all these steps.
        """
        self._begin(scalars)
        own = self.ranks.generator(generator)
        found: list[Found] = []
        last: list[Found] = []
        skipped = 0
        for epoch in range(self.config.num_epochs):
            watch = epoch == self.config.num_epochs - 1
            for minibatch in self._minibatches(own):
                step = self._gradient(minibatch, watch)
                if not step.is_finite:
                    skipped += 1
                    continue
                self._descend(step.grad_norm, learning_rate)
                self.optimizer_steps += 1
                found.append(step)
                if watch:
                    last.append(step)
        return {"skipped_minibatches": float(skipped), **_means(found, last)}

    @abstractmethod
    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the optimiser's state: `step`, `exp_avg` and `exp_avg_sq` `.NAME` of each parameter."""

    @abstractmethod
    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what any implementation's `state` returned; other names are ignored."""

    @abstractmethod
    def _begin(self, scalars: Scalars) -> None:
        """Make ready for going over the batch."""

    @abstractmethod
    def _minibatches(self, generator: torch.Generator) -> Iterator[Minibatch]:
        """Yield one epoch's minibatches; with several ranks as many on each, some maybe empty."""

    @abstractmethod
    def _gradient(self, minibatch: Minibatch, watch: bool) -> Found:
        """Compute loss and gradient; their means over the ranks.

        Args:
            minibatch: this rank's share.
            watch: whether `kl` and `clipped` are wanted; they are 0 if not.
        """

    @abstractmethod
    def _descend(self, grad_norm: float, learning_rate: float) -> None:
        """Make a step down the gradient just computed, clipped to `max_grad_norm`."""


def _means(found: list[Found], last: list[Found]) -> dict[str, float]:
    """Return metrics of all steps, and of the last epoch's (KL by mean of r - 1 - log r); {} where there were none."""
    if not found:
        return {}
    mean = Found(*np.mean(found, axis=0).tolist())
    metrics = {
        "policy_loss": mean.policy_loss,
        "value_loss": mean.value_loss,
        "entropy": mean.entropy,
        "grad_norm": mean.grad_norm,
    }
    if last:
        of_last = Found(*np.mean(last, axis=0).tolist())
        metrics |= {"approx_kl": of_last.kl, "clip_fraction": of_last.clipped}
    return metrics
