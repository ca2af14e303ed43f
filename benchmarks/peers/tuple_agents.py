"""Gymnasium environments with Tuple spaces, one entry per agent, as environments of stable-baselines3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv


class AgentsAsEnvs(VecEnv):
    """Row e * N + n is agent n of environment e; every agent is paid the team's sum."""

    def __init__(self, envs: Sequence[Any], seed: int) -> None:
        observations, actions = envs[0].observation_space, envs[0].action_space
        if not (
            isinstance(observations, gymnasium.spaces.Tuple) and isinstance(actions, gymnasium.spaces.Tuple)
        ):
            raise TypeError(f"Tuple spaces are needed, not {observations} and {actions}")
        self.num_agents = len(observations)
        self._envs, self._first_seed = list(envs), seed
        self._row_shape: tuple[int, ...] = observations[0].shape or ()
        self._actions: list[list[int]] = []
        super().__init__(len(envs) * self.num_agents, observations[0], actions[0])

    def reset(self) -> NDArray[Any]:
        """Begin an episode everywhere."""
        first = [env.reset(seed=self._first_seed + e)[0] for e, env in enumerate(self._envs)]
        return np.concatenate([np.stack(rows) for rows in first])

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions."""
        self._actions = actions.reshape(-1, self.num_agents).tolist()

    def step_wait(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """Step every environment; one whose episode is over begins another."""
        shape = (len(self._envs), self.num_agents)
        observations = np.empty((*shape, *self._row_shape), np.float32)
        rewards, dones = np.empty(shape, np.float32), np.zeros(shape, np.bool_)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for e, env in enumerate(self._envs):
            observation, reward, terminated, truncated, _ = env.step(tuple(self._actions[e]))
            rewards[e] = sum(reward)
            if terminated or truncated:
                dones[e] = True
                for n in range(self.num_agents):
                    infos[e * self.num_agents + n] = {
                        "terminal_observation": observation[n],
                        "TimeLimit.truncated": truncated and not terminated,
                    }
                observation, _ = env.reset()
            observations[e] = observation
        flat = observations.reshape(self.num_envs, *self._row_shape)
        return flat, rewards.ravel(), dones.ravel(), infos

    def close(self) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of each row's environment."""
        return [getattr(self._envs[row // self.num_agents], attr_name) for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: PPO does not need it."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: PPO does not need it."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No row is wrapped."""
        return [False for _ in self._get_indices(indices)]
