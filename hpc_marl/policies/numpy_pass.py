"""NumpyPass: the forward pass for a fixed number of rows, with all its work arrays.

With a few dozen rows the number of numpy calls (about 0.4 us each) costs more than the arithmetic. Hence: nothing is
allocated; biases are repeated for every row once per load, because adding equal shapes takes a third of broadcasting;
every array that tanh or exp goes over is contiguous; logits are made [A, R], the other way round, because reductions
over few actions are fast along the first axis only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.policies.act_rows import ActRows
from hpc_marl.policies.numpy_weights import ActorWeights
from hpc_marl.policies.spec import MASKED_LOGIT, PolicySpec

Array = NDArray[np.float32]

_ONE, _HALF, _MINUS_HALF = np.float32(1.0), np.float32(0.5), np.float32(-0.5)


class NumpyPass:
    """Acts on R rows.

    Args:
        spec: the policy.
        weights: read at every call.
        rows: R, a multiple of the number of agents.
    """

    def __init__(self, spec: PolicySpec, weights: ActorWeights, rows: int) -> None:
        def empty(*shape: int) -> Array:
            return np.empty(shape, np.float32)

        self._weights = weights
        self._loads = 0
        self._relu = spec.policy.activation == "relu"
        self._torso = [(matrix, empty(rows, size), empty(rows, size)) for matrix, size in _layers(weights)]
        size, outputs = spec.memory_size, spec.output_size
        self._output = empty(rows, outputs)
        self._head_bias = empty(rows, outputs)
        self._act = self._continuous if spec.env.is_continuous else self._discrete
        if size:
            self._gates, self._of_memory, self._gates_bias = (empty(3, rows, size) for _ in range(3))
            self._candidate_bias = empty(rows, size)
        if spec.env.is_continuous:
            self._std, self._squares = empty(rows, outputs), empty(rows, outputs)
        else:
            self._logits, self._cdf = empty(outputs, rows), empty(outputs, rows)
            self._row, self._masked = empty(rows), np.empty((outputs, rows), np.bool_)
            self._numbers = np.arange(rows)
            self._pairs = list(zip(self._cdf[:-1], self._cdf[1:], strict=True))
            # row by row or column by column is the same sum; which is quicker depends on the shape
            self._accumulates = outputs > 3 + rows // 27

    def act(self, rows: ActRows, greedy: bool) -> None:
        """Choose actions and write them into `rows`."""
        if self._loads != self._weights.loads:
            self._repeat_biases()
        features: Array = rows.observation
        for matrix, bias, out in self._torso:
            np.dot(features, matrix, out)
            np.add(out, bias, out)
            if self._relu:
                np.maximum(out, 0.0, out=out)
            else:
                np.tanh(out, out)
            features = out
        if rows.memory is not None:
            self._recur(features, rows.memory)
            features = rows.memory
        np.dot(features, self._weights.head, self._output)
        self._act(rows, greedy)

    def _repeat_biases(self) -> None:
        weights = self._weights
        for own, (_, bias, _) in zip(weights.torso_bias, self._torso, strict=True):
            np.copyto(bias.reshape(-1, *own.shape), own)
        np.copyto(self._head_bias, weights.head_bias)
        if weights.gates_bias.size:
            np.copyto(self._gates_bias, weights.gates_bias)
            np.copyto(self._candidate_bias, weights.candidate_bias)
        if weights.std.size:
            np.copyto(self._std, weights.std)
        self._loads = weights.loads

    def _recur(self, features: Array, memory: Array) -> None:
        """Overwrite `memory` by the next one: a GRU, gate by gate [3, R, H]."""
        gates, of_memory = self._gates, self._of_memory
        np.matmul(features, self._weights.gates_input, gates)
        np.matmul(memory, self._weights.gates_memory, of_memory)
        np.add(gates, self._gates_bias, gates)
        both, candidate, half = gates[:2], gates[2], of_memory[2]
        np.add(both, of_memory[:2], both)
        np.tanh(both, both)
        np.add(both, _ONE, both)  # twice reset and update, each in [0, 2]
        np.add(half, self._candidate_bias, half)
        np.multiply(half, gates[0], half)
        np.add(candidate, half, candidate)
        np.tanh(candidate, candidate)
        np.subtract(memory, candidate, memory)
        np.multiply(memory, gates[1], memory)
        np.multiply(memory, _HALF, memory)
        np.add(memory, candidate, memory)

    def _discrete(self, rows: ActRows, greedy: bool) -> None:
        logits, cdf, row = self._logits, self._cdf, self._row
        np.add(self._output, self._head_bias, self._output)
        np.copyto(logits, self._output.T)
        if rows.action_mask is not None:
            np.logical_not(rows.action_mask.T, self._masked)
            np.copyto(logits, MASKED_LOGIT, where=self._masked)
        if not self._weights.is_safe:
            np.maximum.reduce(logits, axis=0, out=row)
            np.subtract(logits, row, logits)
        np.exp(logits, cdf)
        if self._accumulates:
            np.add.accumulate(cdf, axis=0, out=cdf)
        else:
            for before, here in self._pairs:
                np.add(before, here, here)
        total, action = cdf[-1], rows.action
        if greedy:
            np.copyto(action, logits.argmax(axis=0), casting="same_kind")
        else:
            # u <= 1 - 2^-24, the largest float32 below 1: u * total < total even when rounded, so that no
            # action past the last one that is allowed can be drawn
            np.multiply(rows.noise, total, row)
            below = self._masked
            np.less_equal(cdf, row, below)
            np.add.reduce(below, axis=0, dtype=np.int32, out=action)
        np.log(total, row)
        np.subtract(logits[action, self._numbers], row, rows.log_prob)

    def _continuous(self, rows: ActRows, greedy: bool) -> None:
        mean, action, log_prob = self._output, rows.action, rows.log_prob
        np.add(mean, self._head_bias, mean)
        if greedy:
            np.copyto(action, mean)
            log_prob.fill(self._weights.log_prob_constant)
            return
        np.multiply(rows.noise, self._std, action)
        np.add(action, mean, action)
        np.multiply(rows.noise, rows.noise, self._squares)
        np.add.reduce(self._squares, axis=1, out=log_prob)
        np.multiply(log_prob, _MINUS_HALF, log_prob)
        np.add(log_prob, self._weights.log_prob_constant, log_prob)


def _layers(weights: ActorWeights) -> list[tuple[Any, int]]:
    return [(matrix, matrix.shape[1]) for matrix in weights.torso]
