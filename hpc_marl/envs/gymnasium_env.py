"""Gymnasium environments with one agent, or with Tuple spaces and one entry per agent (LBF, RWARE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import MultiAgentStep
from hpc_marl.envs.gym_spaces import ActionCodec, AgentRows, ObservationCodec
from hpc_marl.envs.plain import PlainEnv, PlainStep
from hpc_marl.errors import EnvContractError

_MASK_KEY = "action_mask"


class GymnasiumEnv(PlainEnv):
    """A gymnasium.Env with one agent.

    Actions are masked where reset() returns info["action_mask"], or observations are {"observation",
    "action_mask"}.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Take over `env`; it is reset once to see whether it masks actions.

        Raises:
            EnvContractError: a space is of a kind that is not supported.
        """
        self._env = env
        name = str(env.unwrapped)
        self._observation = ObservationCodec.of(env.observation_space, name)
        self._action = ActionCodec.of(env.action_space, name)
        self._rows = AgentRows([self._observation], [self._action], name)
        _, self._info = env.reset(seed=0)
        self._mask_in_info = _MASK_KEY in self._info
        self.spec = EnvSpec(
            agent_names=("agent",),
            observation_size=self._rows.observation_size,
            image_shape=self._rows.image_shape,
            num_actions=self._rows.num_actions,
            action_size=self._rows.action_size,
            has_action_mask=bool(self._rows.num_actions)
            and (self._observation.has_mask or self._mask_in_info),
            episode_limit=_episode_limit(env),
        )
        if self._rows.are_equal_vectors and not self.spec.has_action_mask:
            self.plain_step = _single_step(env, self._action)

    def reset(self, seed: int | None = None) -> ArrayLike:
        """Begin an episode."""
        observation, self._info = self._env.reset(seed=seed)
        return self._written(observation)

    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Step once."""
        observation, reward, terminated, truncated, self._info = self._env.step(
            self._action.decode(action[0])
        )
        return self._written(observation), float(reward), terminated, truncated

    def action_mask(self) -> ArrayLike:
        """Return the allowed actions [1, A]."""
        return self._rows.mask

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _written(self, observation: Any) -> ArrayLike:
        if self.spec.has_action_mask:
            self._rows.write_mask(0, self._info[_MASK_KEY] if self._mask_in_info else observation[_MASK_KEY])
        return self._rows.write((observation,))


class GymnasiumMultiAgentEnv(PlainEnv):
    """A gymnasium.Env whose observation and action spaces are Tuples with one entry per agent.

    reward, terminated and truncated may be one per agent, or one for all. Actions are masked where reset()
    returns info["action_mask"] [N, A], or observations are {"observation", "action_mask"}, or agents have
    different numbers of them.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Take over `env`; it is reset once to see whether it masks actions.

        Raises:
            EnvContractError: the spaces are not Tuples of equal length, or of a kind that is not supported.
        """
        self._env = env
        name = str(env.unwrapped)
        observations, actions = env.observation_space, env.action_space
        if not isinstance(observations, spaces.Tuple) or not isinstance(actions, spaces.Tuple):
            raise EnvContractError(
                f"{name}: a multi-agent gymnasium environment has a Tuple of spaces, one per agent, for "
                f"observations and actions; found {observations} and {actions}"
            )
        if len(observations) != len(actions):
            raise EnvContractError(
                f"{name}: found {len(observations)} observation spaces but {len(actions)} action spaces; "
                "there must be one per agent"
            )
        names = tuple(f"agent_{n}" for n in range(len(actions)))
        self._observations = [ObservationCodec.of(*pair) for pair in zip(observations, names, strict=True)]
        self._actions = [ActionCodec.of(*pair) for pair in zip(actions, names, strict=True)]
        self._rows = AgentRows(self._observations, self._actions, name)
        _, self._info = env.reset(seed=0)
        self._mask_in_info = _MASK_KEY in self._info
        self._has_plain_actions = all(codec.num_actions and not codec.start for codec in self._actions)
        in_observation = any(codec.has_mask for codec in self._observations)
        masks = in_observation or self._mask_in_info or self._rows.action_sets_differ
        self.spec = EnvSpec(
            agent_names=names,
            observation_size=self._rows.observation_size,
            image_shape=self._rows.image_shape,
            num_actions=self._rows.num_actions,
            action_size=self._rows.action_size,
            has_action_mask=bool(self._rows.num_actions) and masks,
            episode_limit=_episode_limit(env),
        )
        self._has_plain_observations = self._rows.are_equal_vectors and not self.spec.has_action_mask
        if self._has_plain_observations and self._has_plain_actions:
            self.plain_step = _team_step(env)

    def reset(self, seed: int | None = None) -> ArrayLike:
        """Begin an episode."""
        observations, self._info = self._env.reset(seed=seed)
        return self._written(observations)

    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Step once."""
        if self._has_plain_actions:
            actions = tuple(action.tolist())
        else:
            actions = tuple(codec.decode(one) for codec, one in zip(self._actions, action, strict=True))
        observations, reward, terminated, truncated, self._info = self._env.step(actions)
        return self._written(observations), reward, terminated, truncated  # type: ignore[return-value]

    def action_mask(self) -> ArrayLike:
        """Return the allowed actions [N, A]."""
        return self._rows.mask

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _written(self, observations: Any) -> ArrayLike:
        if self._has_plain_observations:
            return observations  # type: ignore[no-any-return]
        if self.spec.has_action_mask:
            in_info = self._info[_MASK_KEY] if self._mask_in_info else [None] * len(observations)
            for n, (codec, observation) in enumerate(zip(self._observations, observations, strict=True)):
                self._rows.write_mask(n, observation[_MASK_KEY] if codec.has_mask else in_info[n])
        return self._rows.write(observations)


def _single_step(env: gymnasium.Env[Any, Any], codec: ActionCodec) -> PlainStep:
    """Return the step of an environment with one agent."""
    step, decode, start = env.step, codec.decode, codec.start

    def discrete(actions: Sequence[Any]) -> tuple[Sequence[Any], Any, Any, Any]:
        observation, reward, terminated, truncated, _ = step(actions[0] + start)
        return (observation,), float(reward), terminated, truncated

    def continuous(actions: Sequence[Any]) -> tuple[Sequence[Any], Any, Any, Any]:
        observation, reward, terminated, truncated, _ = step(decode(actions[0]))
        return (observation,), float(reward), terminated, truncated

    return discrete if codec.num_actions else continuous


def _team_step(env: gymnasium.Env[Any, Any]) -> PlainStep:
    """Return the step of an environment with Tuple spaces."""
    step = env.step

    def team(actions: Sequence[Any]) -> tuple[Sequence[Any], Any, Any, Any]:
        observations, reward, terminated, truncated, _ = step(tuple(actions))
        return observations, reward, terminated, truncated

    return team


def _episode_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    return env.spec.max_episode_steps if env.spec is not None else None
