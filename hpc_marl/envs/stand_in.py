"""StandInEnv: takes time and does nothing, to see what the system around an environment costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays


class StandInEnv(BatchedEnv):
    """E environments whose joint step sleeps, and costs next to no CPU; each plays episodes of equal length.

    Observations are the step within the episode, rewards are 1; actions change nothing.

    Args:
        num_envs: E.
        step_s: how long one step of all E environments takes [s]; 0 does not sleep.
        num_agents: N.
        observation_size: D.
        num_actions: A.
        episode_length: steps until all agents terminate.

    Example:
        >>> import numpy as np
        >>> env = StandInEnv(num_envs=2, step_s=0.0, episode_length=3)
        >>> arrays, result = EnvArrays.allocate(env.spec, 2), StepArrays.allocate(env.spec, 2)
        >>> env.reset([0, 1], arrays)
        >>> for _ in range(3):
        ...     env.step(np.zeros((2, 1), np.int32), result, arrays)
        >>> result.terminated.ravel().tolist(), arrays.observation[:, 0, 0].tolist(), arrays.alive.any().item()
        ([True, True], [3.0, 3.0], False)
    """

    def __init__(
        self,
        num_envs: int,
        *,
        step_s: float = 0.001,
        num_agents: int = 1,
        observation_size: int = 4,
        num_actions: int = 2,
        episode_length: int = 100,
    ) -> None:
        self.num_envs = num_envs
        self.spec = EnvSpec(
            agent_names=tuple(f"agent_{n}" for n in range(num_agents)),
            observation_size=observation_size,
            num_actions=num_actions,
            episode_limit=episode_length,
        )
        self._step_s, self._episode_length = step_s, episode_length
        self._step = 0

    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        """Begin an episode in every environment; nothing is random here."""
        self._begin(out)

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        """Sleep, then count."""
        if self._step_s:
            time.sleep(self._step_s)
        result.truncated.fill(False)
        if self._step == self._episode_length:
            result.reward.fill(0.0)
            result.terminated.fill(False)
            self._begin(out)
            return
        self._step += 1
        ends = self._step == self._episode_length
        result.reward.fill(1.0)
        result.terminated.fill(ends)
        out.observation.fill(self._step)
        out.alive.fill(not ends)
        out.is_first.fill(False)

    def _begin(self, out: EnvArrays) -> None:
        self._step = 0
        out.observation.fill(0.0)
        out.alive.fill(True)
        out.is_first.fill(True)
