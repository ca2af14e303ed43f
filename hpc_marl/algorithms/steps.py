"""Steps: how a learner evaluates a batch and goes down the gradient of PPO's loss on it.

    AutogradSteps   by torch: every network and device
    FlatSteps       by hand, in numpy: feed-forward networks on the CPU, where torch's calls cost more than the sums

Both do the same to float32 rounding, from the same checkpoints and the same random numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hpc_marl.algorithms.ranks import Ranks
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.data.samples import SampleBatch, concatenate

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
        self.meanwhile: Callable[[], object] = lambda: None
        """Called once in every `fit` of steps that a device makes, while it makes them."""

    @property
    def copies_batches(self) -> bool:
        """Whether what `stage` returns is in memory of its own, which the given batches may leave at once."""
        return False

    def stage(self, batches: Sequence[SampleBatch]) -> SampleBatch:
        """Join batches into one that `read` takes; where there is a GPU begin to copy it there."""
        return concatenate(batches)

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
        made: list[Any] = []
        num_before_last = 0
        for epoch in range(self.config.num_epochs):
            watch = epoch == self.config.num_epochs - 1
            num_before_last = len(made)
            made += [self._step(minibatch, watch, learning_rate) for minibatch in self._minibatches(own)]
        found = self._found(made)
        good = [step for step in found if step.is_finite]
        self.optimizer_steps += len(good)
        last = [step for step in found[num_before_last:] if step.is_finite]
        return {"skipped_minibatches": float(len(found) - len(good)), **_means(good, last)}

    def device_metrics(self) -> dict[str, float]:
        """Return how a GPU was used in the update whose `fit` has returned; {} without one."""
        return {}

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
    def _step(self, minibatch: Minibatch, watch: bool, learning_rate: float) -> Any:
        """Make a step down the gradient of a minibatch's loss, clipped; return what `_found` reads.

        Args:
            minibatch: this rank's share.
            watch: whether `kl` and `clipped` are wanted.
            learning_rate: of the step.
        """

    @abstractmethod
    def _found(self, made: list[Any]) -> list[Found]:
        """Return what the steps were like; devices may do them while this waits."""


class StepsOnHost(Steps[Minibatch]):
    """Steps of which the CPU knows at once what they were like."""

    def _step(self, minibatch: Minibatch, watch: bool, learning_rate: float) -> Found:
        found = self._gradient(minibatch, watch)
        if found.is_finite:
            self._descend(found.grad_norm, learning_rate)
        return found

    def _found(self, made: list[Found]) -> list[Found]:
        return made

    @abstractmethod
    def _gradient(self, minibatch: Minibatch, watch: bool) -> Found:
        """Compute loss and gradient; their means over the ranks. `kl` and `clipped` are 0 unless `watch`."""

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
