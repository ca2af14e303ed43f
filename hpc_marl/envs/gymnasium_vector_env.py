"""Gymnasium's natively vectorised environments: one agent, next-step autoreset, at full speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays
from hpc_marl.envs.gym_spaces import ActionCodec, ObservationCodec
from hpc_marl.errors import EnvContractError


class GymnasiumVectorEnv(BatchedEnv):
    """A gymnasium.vector.VectorEnv, taken as E environments with one agent.

    A class that draws all its random numbers from one generator, as CartPole's does, is seeded with a mixture
    of all E seeds, so no single environment can be replayed from its own seed alone.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        """Take over `env`, which steps E environments with next-step autoreset.

        Raises:
            EnvContractError: another autoreset mode, or spaces of a kind that is not supported.
        """
        name = str(env.unwrapped)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise EnvContractError(
                f"{name}: found autoreset_mode {mode}; only AutoresetMode.NEXT_STEP is supported, where the "
                "step after an episode's end resets the environment"
            )
        observation = env.single_observation_space
        if not isinstance(observation, spaces.Box):
            raise EnvContractError(
                f"{name}: found observations of {observation}; a vector environment's must be a Box. "
                "Use adapter: gymnasium, which flattens the others"
            )
        self._env = env
        self._action = ActionCodec.of(env.single_action_space, name)
        self._codec = ObservationCodec.of(observation, name)
        self.num_envs = env.num_envs
        self.spec = EnvSpec(
            agent_names=("agent",),
            observation_size=self._codec.size,
            image_shape=self._codec.image_shape,
            num_actions=self._action.num_actions,
            action_size=self._action.action_size,
            episode_limit=_episode_limit(env),
        )
        self._over = np.zeros(self.num_envs, np.bool_)

    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        """Begin an episode in every environment."""
        if len(seeds) != self.num_envs:
            raise EnvContractError(f"reset got {len(seeds)} seeds for {self.num_envs} environments")
        seed: Any = [int(seed) for seed in seeds]
        if not isinstance(self._env.unwrapped, (SyncVectorEnv, AsyncVectorEnv)):
            seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        observation, _ = self._env.reset(seed=seed)
        self._over.fill(False)
        self._show(observation, out)
        out.alive.fill(True)
        out.is_first.fill(True)

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        """Step every environment, or reset it where its episode is over."""
        observation, reward, terminated, truncated, _ = self._env.step(self._decoded(action[:, 0]))
        self._show(observation, out)
        result.reward[:, 0] = reward
        result.terminated[:, 0] = terminated
        np.logical_and(truncated, ~terminated, out=result.truncated[:, 0])
        out.is_first[:] = self._over
        np.logical_or(terminated, truncated, out=self._over)
        np.logical_not(self._over, out=out.alive[:, 0])

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _show(self, observation: NDArray[Any], out: EnvArrays) -> None:
        if self._codec.channels_last:
            observation = np.moveaxis(observation, -1, 1)
        out.observation[:, 0] = observation.reshape(self.num_envs, -1)

    def _decoded(self, action: NDArray[Any]) -> NDArray[Any]:
        codec = self._action
        if codec.num_actions:
            # environments ignore the actions with which they reset, but check them all the same
            legal: NDArray[Any] = action.copy()  # what an environment is given it may spoil
            if np.count_nonzero(self._over):
                legal[self._over] = 0
            return legal + codec.start if codec.start else legal
        played = np.clip(np.where(self._over[:, None], 0.0, action), -1.0, 1.0)
        scaled: NDArray[Any] = codec.middle + codec.half_range * played
        return scaled.astype(codec.dtype).reshape(self.num_envs, *codec.shape)


def _episode_limit(env: VectorEnv[Any, Any, Any]) -> int | None:
    """Return what gymnasium.make_vec was given, or else what the id is registered with."""
    if env.spec is None:
        return None
    limit: int | None = env.spec.kwargs.get("max_episode_steps", env.spec.max_episode_steps)
    return limit
