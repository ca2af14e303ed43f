"""ActorWeights: an actor's weights in the form in which `NumpyPass` multiplies them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.policies.spec import PolicySpec

Array = NDArray[np.float32]

_SAFE_LOGIT = 60.0
"""exp() of logits within +-60 neither overflows nor vanishes in float32, nor do sums of 10^10 of them."""
_HALF = np.float32(0.5)


class ActorWeights:
    """Arrays that stay the same ones while `load` writes new numbers into them.

    Matrices are [in, out], which products of rows like better than torch's [out, in].
    """

    def __init__(self, spec: PolicySpec) -> None:
        env, sizes = spec.env, spec.policy.hidden_sizes
        self._spec = spec
        self.loads = 0
        """How often `load` was called."""
        widths = (env.observation_size, *sizes)
        self.torso: list[Array] = [
            np.zeros(shape, np.float32) for shape in zip(widths[:-1], sizes, strict=True)
        ]
        self.torso_bias: list[Array] = [np.zeros((1, size), np.float32) for size in sizes]
        if spec.agent_id_size:
            self.torso_bias[0] = np.zeros((env.num_agents, sizes[0]), np.float32)
        width, size = sizes[-1], spec.memory_size
        self.gates_input: Array = np.zeros((3, width, size), np.float32)
        self.gates_memory: Array = np.zeros((3, size, size), np.float32)
        self.gates_bias: Array = np.zeros((3, 1, size), np.float32)
        self.candidate_bias: Array = np.zeros((1, size), np.float32)
        self.head: Array = np.zeros((size or width, spec.output_size), np.float32)
        self.head_bias: Array = np.zeros((1, spec.output_size), np.float32)
        self.std: Array = np.zeros((1, env.action_size), np.float32)
        self.log_prob_constant = np.float32(0.0)
        """Of a continuous action, what of its log-probability is the same for all."""
        self.is_safe = False
        """exp() of the logits can neither overflow nor vanish, whatever the observation."""
        self._is_bounded = (
            spec.policy.activation == "tanh" and not spec.memory_size and not env.has_action_mask
        )

    def load(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Copy weights in, by the names and shapes of `actor_shapes`."""
        for index, (own, bias) in enumerate(zip(self.torso, self.torso_bias, strict=True)):
            matrix = weights[f"torso.{index}.weight"]
            # a one-hot agent id picks one column of the first layer: a bias per agent says the same at no cost
            np.copyto(own, matrix[:, : len(own)].T)
            np.copyto(bias, weights[f"torso.{index}.bias"])
            if matrix.shape[1] > len(own):
                np.add(bias, matrix[:, len(own) :].T, out=bias)
        if self._spec.memory_size:
            self._load_gates(weights)
        np.copyto(self.head, weights["head.weight"].T)
        np.copyto(self.head_bias, weights["head.bias"])
        if self._spec.env.is_continuous:
            log_std = weights["log_std"].astype(np.float32)
            np.exp(log_std, out=self.std[0])
            self.log_prob_constant = np.float32(
                -log_std.sum() - np.float32(0.5 * math.log(2 * math.pi) * log_std.size)
            )
        self.is_safe = self._is_bounded and bool(self._largest_logit() <= _SAFE_LOGIT)
        self.loads += 1

    def _largest_logit(self) -> float:
        """Return a bound of what tanh features, which are within +-1, can lead to."""
        bounds = np.abs(self.head).sum(axis=0) + np.abs(self.head_bias[0])
        return float(bounds.max())

    def _load_gates(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Load a GRU's, in torch's order: reset, update, candidate.

        sigmoid(x) = (tanh(x / 2) + 1) / 2 needs no guard against overflow; the halves are taken here, where it is
        exact: of both gates' inputs, and of what the reset gate is multiplied with.
        """
        size = self._spec.memory_size
        for index in range(3):
            rows = slice(index * size, (index + 1) * size)
            np.copyto(self.gates_input[index], weights["gru.weight_input"][rows].T)
            np.copyto(self.gates_memory[index], weights["gru.weight_memory"][rows].T)
            np.copyto(self.gates_bias[index], weights["gru.bias_input"][rows])
            if index < 2:
                self.gates_bias[index] += weights["gru.bias_memory"][rows]
        np.copyto(self.candidate_bias, weights["gru.bias_memory"][2 * size :])
        self.gates_input[:2] *= _HALF
        self.gates_bias[:2] *= _HALF
        self.gates_memory *= _HALF
        self.candidate_bias *= _HALF
