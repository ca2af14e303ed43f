"""PPO's loss and its gradient with respect to the networks' outputs, by hand, in numpy.

The maths is that of `hpc_marl.algorithms.losses` and `hpc_marl.policies.distributions`; a test holds them together.
Subscripts: C columns (agents at steps), A actions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_marl.algorithms.flat_rows import Chunk
from hpc_marl.algorithms.work_memory import WorkMemory
from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.policies.spec import MASKED_LOGIT, PolicySpec

Array = NDArray[np.float32]


class LossSums(NamedTuple):
    """Weighted sums over the columns of a chunk."""

    policy_loss: float = 0.0
    value_loss: float = 0.0
    entropy: float = 0.0
    kl: float = 0.0
    """0 unless asked for, as the next."""
    clipped: float = 0.0


class LossWork:
    """Work arrays for C columns: three [A, C] and several [C].

    Args:
        memory: where they lie.
        num_outputs: A.
        columns: C.
    """

    def __init__(self, memory: WorkMemory, num_outputs: int, columns: int) -> None:
        self.first, self.second, self.third = memory.array("loss", 3, num_outputs, columns)
        self.lines: list[Array] = list(memory.array("lines", 8, columns))


class FlatLoss:
    """The loss of one policy.

    Args:
        config: clip ranges, coefficients, and forms.
        spec: the policy.
        log_std: [A] the parameter, where actions are continuous.
    """

    def __init__(self, config: PPOConfig, spec: PolicySpec, log_std: Array | None) -> None:
        self._config = config
        self._log_std = log_std
        self._numbers = np.arange(spec.output_size, dtype=np.float32)[:, None]

    def log_prob(self, work: LossWork, chunk: Chunk, output: Array) -> Array:
        """Return the actions' log-probability [C], a work array, under `output` [A, C], which is overwritten."""
        if self._log_std is not None:
            self._gaussian(chunk, output, self._log_std, work)
        else:
            self._categorical(chunk, output, work)
        return work.lines[0]

    def gradient(
        self,
        work: LossWork,
        chunk: Chunk,
        output: Array,
        value: Array,
        log_std_gradient: Array | None,
        *,
        scale: float,
        watch: bool,
    ) -> LossSums:
        """Turn the networks' outputs into the loss's gradient.

        Args:
            work: for as many columns.
            chunk: what was done and what is known of it.
            output: [A, C] logits or means; overwritten.
            value: [C]; overwritten.
            log_std_gradient: [A] written, where actions are continuous.
            scale: weight of each agent that is alive.
            watch: sum up what tells how far the policy has come, too.
        """
        config = self._config
        old_log_prob, advantage, target, old_value, alive = chunk.scalars
        weight = np.multiply(alive, scale, out=work.lines[7])
        log_ratio = self.log_prob(work, chunk, output)
        log_ratio -= old_log_prob
        ratio = np.exp(log_ratio, out=work.lines[1])
        kl, clipped = self._distance(log_ratio, ratio, weight) if watch else (0.0, 0.0)
        gain = np.multiply(ratio, advantage, out=work.lines[2])
        np.maximum(ratio, 1.0 - config.clip_eps, out=ratio)
        np.minimum(ratio, 1.0 + config.clip_eps, out=ratio)
        ratio *= advantage
        policy_loss = -float(np.dot(weight, np.minimum(gain, ratio, out=work.lines[0])))
        # where the clipped ratio is the smaller one, nothing is to be gained
        pull = np.less_equal(gain, ratio, out=work.lines[3])
        pull *= gain
        pull *= weight
        if log_std_gradient is not None:
            entropy = self._backward_gaussian(output, pull, weight, log_std_gradient, work)
        else:
            entropy = self._backward_categorical(chunk, output, pull, weight, work)
        value_loss = self._value(value, target, old_value, weight, work)
        return LossSums(policy_loss, value_loss, entropy, kl, clipped)

    def _categorical(self, chunk: Chunk, output: Array, work: LossWork) -> None:
        """Leave probabilities in `work.first`, the log-probabilities in `output`, and actions in `work.second`."""
        if chunk.action_mask is not None:
            np.copyto(output, MASKED_LOGIT, where=np.less(chunk.action_mask, 0.5))
        probability, line = work.first, work.lines[0]
        output -= np.maximum.reduce(output, axis=0, out=line)
        np.exp(output, out=probability)
        np.add.reduce(probability, axis=0, out=line)
        probability /= line
        output -= np.log(line, out=line)
        chosen = np.equal(self._numbers, chunk.action, out=work.second)
        np.multiply(chosen, output, out=work.third)
        np.add.reduce(work.third, axis=0, out=line)

    def _backward_categorical(
        self, chunk: Chunk, output: Array, pull: Array, weight: Array, work: LossWork
    ) -> float:
        """Turn log-probabilities into the logits' gradient; return the entropy."""
        probability, chosen, coefficient = work.first, work.second, self._config.entropy_coef
        np.multiply(probability, output, out=work.third)
        negentropy = work.lines[4]
        np.add.reduce(work.third, axis=0, out=negentropy)
        entropy = -float(np.dot(weight, negentropy))
        output -= negentropy
        output *= np.multiply(weight, coefficient, out=work.lines[5])
        output += pull
        output *= probability
        chosen *= pull
        output -= chosen
        if chunk.action_mask is not None:
            output *= chunk.action_mask
        return entropy

    def _gaussian(self, chunk: Chunk, output: Array, log_std: Array, work: LossWork) -> None:
        """Leave the actions' standard normals in `output` and their squares in `work.first`."""
        normal, line = output, work.lines[0]
        np.subtract(chunk.action, output, out=normal)
        normal *= np.exp(-log_std)[:, None]
        np.multiply(normal, normal, out=work.first)
        np.add.reduce(work.first, axis=0, out=line)
        line *= -0.5
        line -= float(log_std.sum()) + 0.5 * log_std.size * math.log(2 * math.pi)

    def _backward_gaussian(
        self, output: Array, pull: Array, weight: Array, gradient: Array, work: LossWork
    ) -> float:
        """Turn standard normals into the means' gradient, write log_std's; return the entropy."""
        assert self._log_std is not None, "actions are not continuous"
        log_std = self._log_std
        total, coefficient = float(np.add.reduce(weight)), self._config.entropy_coef
        np.matmul(work.first, pull, out=gradient)
        np.subtract(float(np.add.reduce(pull)) - coefficient * total, gradient, out=gradient)
        output *= pull
        output *= -np.exp(-log_std)[:, None]
        return total * (float(log_std.sum()) + 0.5 * log_std.size * (1 + math.log(2 * math.pi)))

    def _value(self, value: Array, target: Array, old_value: Array, weight: Array, work: LossWork) -> float:
        """Turn values into the loss's gradient; return the value loss."""
        clip_eps = self._config.value_clip_eps
        error = np.subtract(value, target, out=work.lines[0])
        if clip_eps is None:
            slope, loss = self._regression(error, work.lines[1], work.lines[2])
            np.multiply(slope, weight, out=value)
        else:
            change = np.subtract(value, old_value, out=work.lines[3])
            kept = np.minimum(np.maximum(change, -clip_eps), clip_eps)
            is_free = kept == change
            kept += old_value
            kept -= target
            slope, loss = self._regression(error, work.lines[1], work.lines[2])
            _, kept_loss = self._regression(kept, work.lines[4], work.lines[5])
            # a value held back by the clip learns only while the unclipped loss is the larger one
            np.multiply(slope, weight, out=value)
            value *= is_free | (loss > kept_loss)
            loss = np.maximum(loss, kept_loss, out=loss)
        value *= self._config.value_coef
        return float(np.dot(weight, loss))

    def _regression(self, error: Array, slope: Array, loss: Array) -> tuple[Array, Array]:
        """Return the loss of each error, and its derivative."""
        if self._config.value_loss == "huber":
            delta = self._config.huber_delta
            np.minimum(np.maximum(error, -delta, out=slope), delta, out=slope)
        else:
            np.copyto(slope, error)
        np.multiply(slope, -0.5, out=loss)
        loss += error
        loss *= slope
        return slope, loss

    def _distance(self, log_ratio: Array, ratio: Array, weight: Array) -> tuple[float, float]:
        """Return sums of r - 1 - log r, and of whether |r - 1| is beyond the clip range."""
        change = ratio - 1.0
        clipped = float(np.dot(weight, (np.abs(change) > self._config.clip_eps).astype(np.float32)))
        change -= log_ratio
        return float(np.dot(weight, change)), clipped
