"""The actor's forward pass in numpy: for small networks faster than torch, and importable without it.

The maths is that of `hpc_marl.policies.actor_critic.ActorCritic`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.errors import ConfigError, WorkerError
from hpc_marl.policies.act_rows import ActRows
from hpc_marl.policies.numpy_pass import NumpyPass
from hpc_marl.policies.numpy_weights import ActorWeights
from hpc_marl.policies.spec import ActResult, PolicySpec, actor_shapes

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
        if spec.env.has_images:
            raise ConfigError("NumpyActor has no convolutions; a TorchActor acts on images, see make_actor")
        self.spec = spec
        self.policy_version = -1
        self._weights = ActorWeights(spec)
        self._passes: dict[int, NumpyPass] = {}

    def load(self, weights: Mapping[str, NDArray[Any]], policy_version: int) -> None:
        """Copy new weights in.

        Args:
            weights: by the names and shapes of `actor_shapes`.
            policy_version: what `act` will report.

        Raises:
            ConfigError: names or shapes are those of another policy; the old weights stay.
        """
        check_weights(self.spec, weights)
        self._weights.load(weights)
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
        shape, env = observation.shape[:2], self.spec.env
        rows = shape[0] * shape[1]
        next_memory = None if memory is None else np.array(memory, np.float32)
        actions = (env.action_size,) if env.is_continuous else ()
        action = np.empty((*shape, *actions), np.float32 if actions else np.int32)
        log_prob = np.empty(shape, np.float32)
        flat = ActRows(
            observation.reshape(rows, -1),
            None if action_mask is None else action_mask.reshape(rows, -1),
            None if next_memory is None else next_memory.reshape(rows, -1),
            noise.reshape(rows, *actions),
            action.reshape(rows, *actions),
            log_prob.reshape(rows),
        )
        self.act_rows(flat, greedy)
        return ActResult(action, log_prob, next_memory, self.policy_version)

    def act_rows(self, rows: ActRows, greedy: bool = False) -> None:
        """Choose actions and write them into `rows`: `act` without its allocations.

        Raises:
            WorkerError: no weights were loaded yet.
        """
        if self.policy_version < 0:
            raise WorkerError("this policy has no weights yet; call load() before act()")
        number = len(rows.log_prob)
        forward = self._passes.get(number)
        if forward is None:
            if len(self._passes) >= _MAX_BATCH_SIZES:
                self._passes.clear()
            forward = self._passes[number] = NumpyPass(self.spec, self._weights, number)
        forward.act(rows, greedy)


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
