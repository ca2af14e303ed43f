"""Plays an environment into a SampleBatch, as an actor does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from hpc_marl.data.samples import SampleBatch, SampleLayout
from hpc_marl.envs import BatchedEnv, EnvArrays, StepArrays


def env_arrays(batch: SampleBatch, t: int) -> EnvArrays:
    """Return the views of what is written at time t."""
    return EnvArrays(
        observation=batch.observation[t],
        state=None if batch.state is None else batch.state[t],
        action_mask=None if batch.action_mask is None else batch.action_mask[t],
        alive=batch.alive[t],
        is_first=batch.is_first[t],
    )


def play(env: BatchedEnv, actions: NDArray[Any], seeds: Sequence[int] | None = None) -> SampleBatch:
    """Play the given actions [T, E, N] or [T, E, N, A]; actions that are masked become the first allowed one."""
    batch = SampleLayout(env.spec, len(actions), env.num_envs).allocate()
    env.reset(range(env.num_envs) if seeds is None else seeds, env_arrays(batch, 0))
    for t, wanted in enumerate(actions):
        batch.action[t] = wanted
        if batch.action_mask is not None:
            allowed = np.take_along_axis(batch.action_mask[t], wanted[..., None], axis=2)[..., 0]
            batch.action[t] = np.where(allowed, wanted, batch.action_mask[t].argmax(axis=2))
        result = StepArrays(batch.reward[t], batch.terminated[t], batch.truncated[t])
        env.step(batch.action[t], result, env_arrays(batch, t + 1))
    return batch


class RecordingEnv(gymnasium.Env[Any, Any]):
    """A gymnasium environment with any spaces: shows what a script says and records what it is given."""

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        num_agents: int | None = None,
        length: int = 3,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.actions: list[Any] = []
        self.seeds: list[int | None] = []
        self._num_agents = num_agents
        self._length = length
        self._info = info or {}
        self._step = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._step = 0
        return self.observation_space.sample(), self._info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.actions.append(action)
        self._step += 1
        over = self._step == self._length
        if self._num_agents is None:
            return self.observation_space.sample(), float(self._step), over, False, self._info
        rewards = [float(self._step + 10 * n) for n in range(self._num_agents)]
        flags = [over] * self._num_agents
        return self.observation_space.sample(), rewards, flags, [False] * self._num_agents, self._info
