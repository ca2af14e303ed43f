"""The actor's forward pass in numpy: for small networks faster than torch, and importable without it.

The maths is that of `hpc_marl.policies.actor_critic.ActorCritic`; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.errors import ConfigError, WorkerError
from hpc_marl.policies.spec import MASKED_LOGIT, ActResult, PolicySpec, actor_shapes

Array = NDArray[np.float32]

_MAX_BATCH_SIZES = 64  # work arrays are kept for this many different batch sizes


class NumpyActor:
    """A policy on the CPU: `load` weights, then `act`.

    `act` is a pure function of its arguments and the loaded weights, but uses work arrays of the instance:
    one thread at a time. It does not reset memory: hand in zeros where an observation begins an episode.

    Example:
        >>> from hpc_marl.config import PolicyConfig
        >>> from hpc_marl.data import EnvSpec
        >>> spec = PolicySpec(env=EnvSpec(observation_size=4, num_actions=2), policy=PolicyConfig())
        >>> actor = NumpyActor(spec)
        >>> weights = {name: np.zeros(shape, np.float32) for name, shape in actor_shapes(spec).items()}
        >>> actor.load(weights, policy_version=7)
        >>> observation, noise = np.zeros((3, 1, 4), np.float32), np.full((3, 1, 1), 0.6, np.float32)
        >>> result = actor.act(observation, action_mask=None, memory=None, noise=noise)
        >>> result.action.ravel().tolist(), result.policy_version
        ([1, 1, 1], 7)
    """

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec
        self.policy_version = -1
        # kept as [in, out], which products of rows like better; logits are made as [A, rows], the other way round
        shapes = actor_shapes(spec)
        self._transposed = {name for name, shape in shapes.items() if len(shape) == 2}
        if not spec.env.is_continuous:
            self._transposed.remove("head.weight")
        self._weights = {
            name: np.zeros(shape[::-1] if name in self._transposed else shape, np.float32)
            for name, shape in shapes.items()
        }
        self._first_bias: Array = np.zeros((spec.env.num_agents, spec.policy.hidden_sizes[0]), np.float32)
        self._work: dict[int, dict[str, Array]] = {}

    def load(self, weights: Mapping[str, NDArray[Any]], policy_version: int) -> None:
        """Copy new weights in.

        Args:
            weights: by the names and shapes of `actor_shapes`.
            policy_version: what `act` will report.

        Raises:
            ConfigError: names or shapes are those of another policy; the old weights stay.
        """
        check_weights(self.spec, weights)
        for name, own in self._weights.items():
            np.copyto(own, weights[name].T if name in self._transposed else weights[name])
        if self.spec.memory_size:
            # sigmoid(x) = tanh(x / 2) / 2 + 1/2 needs no guard against overflow; halving is exact
            for name in ("weight_input", "weight_memory", "bias_input", "bias_memory"):
                self._weights[f"gru.{name}"][..., : 2 * self.spec.memory_size] *= np.float32(0.5)
        # a one-hot input picks one column of the first layer: a bias per agent says the same at no cost
        self._first_bias[:] = self._weights["torso.0.bias"]
        if self.spec.agent_id_size:
            self._first_bias += self._weights["torso.0.weight"][self.spec.env.observation_size :]
        self.policy_version = policy_version

    def act(
        self,
        observation: Array,
        action_mask: NDArray[np.bool_] | None,
        memory: Array | None,
        noise: Array,
        greedy: bool = False,
    ) -> ActResult:
        """Choose actions.

        Args:
            observation: [E, N, D].
            action_mask: [E, N, A] True where allowed, with at least one True in each row; None allows all.
            memory: [E, N, H] as the last call returned it; None for feed-forward policies.
            noise: [E, N, K] as `make_noise` draws it.
            greedy: take the most likely action; the noise is not used.

        Returns:
            Arrays of their own, not views of work space.

        Raises:
            WorkerError: no weights were loaded yet.
        """
        if self.policy_version < 0:
            raise WorkerError("this policy has no weights yet; call load() before act()")
        num_envs, num_agents = observation.shape[:2]
        rows = num_envs * num_agents
        work = self._work.get(rows)
        if work is None:
            work = self._allocate(rows)
        features = self._torso(observation, work)
        next_memory = None
        if self.spec.memory_size:
            assert memory is not None, "a recurrent policy needs memory"
            features = self._gru(features, memory.reshape(rows, -1), work)
            next_memory = features.reshape(memory.shape)
        action: NDArray[Any]
        if self.spec.env.is_continuous:
            action, log_prob = self._continuous(features, noise, greedy, work)
        else:
            action, log_prob = self._discrete(features, action_mask, noise, greedy, work)
        action = action.reshape(num_envs, num_agents, *action.shape[1:])
        return ActResult(action, log_prob.reshape(num_envs, num_agents), next_memory, self.policy_version)

    def _allocate(self, rows: int) -> dict[str, Array]:
        if len(self._work) >= _MAX_BATCH_SIZES:
            self._work.clear()
        spec, sizes = self.spec, self.spec.policy.hidden_sizes
        shapes = {f"torso.{index}": (rows, size) for index, size in enumerate(sizes)}
        shapes["output"] = (rows, spec.output_size) if spec.env.is_continuous else (spec.output_size, rows)
        if spec.memory_size:
            shapes["gates"] = (rows, 3 * spec.memory_size)
            shapes["memory_gates"] = (rows, 3 * spec.memory_size)
        shapes["cdf"] = (spec.output_size, rows)
        self._work[rows] = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        return self._work[rows]

    def _torso(self, observation: Array, work: dict[str, Array]) -> Array:
        size = self.spec.env.observation_size
        features = observation.reshape(-1, size)
        for index in range(len(self.spec.policy.hidden_sizes)):
            out, weight = work[f"torso.{index}"], self._weights[f"torso.{index}.weight"]
            if index == 0:
                np.matmul(features, weight[:size], out=out)
                by_agent = out.reshape(-1, *self._first_bias.shape)
                by_agent += self._first_bias
            else:
                np.matmul(features, weight, out=out)
                out += self._weights[f"torso.{index}.bias"]
            if self.spec.policy.activation == "tanh":
                np.tanh(out, out=out)
            else:
                np.maximum(out, 0.0, out=out)
            features = out
        return features

    def _gru(self, features: Array, memory: Array, work: dict[str, Array]) -> Array:
        weights, gates, memory_gates = self._weights, work["gates"], work["memory_gates"]
        np.matmul(features, weights["gru.weight_input"], out=gates)
        gates += weights["gru.bias_input"]
        np.matmul(memory, weights["gru.weight_memory"], out=memory_gates)
        memory_gates += weights["gru.bias_memory"]
        size = self.spec.memory_size
        reset_update, candidate = gates[:, : 2 * size], gates[:, 2 * size :]
        reset_update += memory_gates[:, : 2 * size]
        np.tanh(reset_update, out=reset_update)
        reset_update *= 0.5
        reset_update += 0.5
        reset, update = reset_update[:, :size], reset_update[:, size:]
        reset *= memory_gates[:, 2 * size :]
        candidate += reset
        np.tanh(candidate, out=candidate)
        next_memory = memory - candidate
        next_memory *= update
        next_memory += candidate
        return next_memory

    def _discrete(
        self,
        features: Array,
        action_mask: NDArray[np.bool_] | None,
        noise: Array,
        greedy: bool,
        work: dict[str, Array],
    ) -> tuple[NDArray[np.int32], Array]:
        # [A, rows]: reductions over few actions are fast along the first axis only
        logits, cdf = work["output"], work["cdf"]
        np.matmul(self._weights["head.weight"], features.T, out=logits)
        logits += self._weights["head.bias"][:, None]
        if action_mask is not None:
            np.copyto(logits, MASKED_LOGIT, where=~action_mask.reshape(logits.shape[1], -1).T)
        # the ufuncs' own reductions skip a few microseconds of wrapper each
        logits -= np.maximum.reduce(logits, axis=0)
        np.exp(logits, out=cdf)
        np.add.accumulate(cdf, axis=0, out=cdf)
        total = cdf[-1]
        if greedy:
            action = logits.argmax(axis=0).astype(np.int32)
        else:
            # u <= 1 - 2^-24, the largest float32 below 1: u * total < total even when rounded, so that no
            # action past the last one that is allowed can be drawn
            action = np.add.reduce(cdf <= noise.reshape(-1) * total, axis=0, dtype=np.int32)
        return action, logits[action, np.arange(action.size)] - np.log(total)

    def _continuous(
        self, features: Array, noise: Array, greedy: bool, work: dict[str, Array]
    ) -> tuple[Array, Array]:
        mean, log_std = work["output"], self._weights["log_std"]
        np.matmul(features, self._weights["head.weight"], out=mean)
        mean += self._weights["head.bias"]
        constant = -log_std.sum() - np.float32(0.5 * math.log(2 * math.pi) * log_std.size)
        if greedy:
            return mean.copy(), np.full(mean.shape[0], constant, np.float32)
        normal = noise.reshape(mean.shape)
        action = normal * np.exp(log_std)
        action += mean
        return action, np.float32(-0.5) * np.einsum("ij,ij->i", normal, normal) + constant


def check_weights(spec: PolicySpec, weights: Mapping[str, NDArray[Any]]) -> None:
    """Check names and shapes of an actor's weights.

    Raises:
        ConfigError: says which weight does not fit.
    """
    expected = actor_shapes(spec)
    if weights.keys() != expected.keys():
        odd = sorted(weights.keys() ^ expected.keys())
        raise ConfigError(
            f"these are weights of another policy: {', '.join(odd)} found in only one of the two"
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise ConfigError(f"weight {name!r} has shape {weights[name].shape}, this policy's is {shape}")
