"""An environment of your own: two agents on a ring that want to meet.

`conf/env/rendezvous.yaml` beside this file names the class in one `_target_` line. From the clone's root, train with

    PYTHONPATH=examples/add_an_environment \\
        hpc-marl train --config-dir examples/add_an_environment/conf env=rendezvous total_env_steps=150_000

and check your own in the same way as this one, with `hpc_marl.envs.check_env`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs import MultiAgentEnv, MultiAgentStep


class Rendezvous(MultiAgentEnv):
    """Agents see where both are, and step left, stay or step right; both are paid 1 when they meet."""

    def __init__(self, size: int = 8) -> None:
        """Choose how many places the ring has."""
        self.spec = EnvSpec(agent_names=("ann", "bob"), observation_size=2 * size, num_actions=3)
        self.size = size
        self.rng = np.random.default_rng()

    def reset(self, seed: int | None = None) -> NDArray[np.float32]:
        """Put the agents on two different places."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.places = self.rng.permutation(self.size)[:2]
        return self._observation()

    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Move both; the time limit stands in the YAML file."""
        self.places = (self.places + action - 1) % self.size
        met = bool(self.places[0] == self.places[1])
        return self._observation(), float(met), met, False

    def _observation(self) -> NDArray[np.float32]:
        mine_and_other = np.eye(self.size, dtype=np.float32)[[self.places, self.places[::-1]]]
        return np.concatenate(mine_and_other, axis=1)
