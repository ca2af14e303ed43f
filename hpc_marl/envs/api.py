"""What an environment is: `BatchedEnv` to the actor, `MultiAgentEnv` to somebody who writes one.

    MultiAgentEnv        one environment, a few lines     --+
    gymnasium.Env        one agent, or Tuple spaces         +--> LoopedEnv --+
    pettingzoo Parallel  dictionaries by agent            --+                +--> BatchedEnv
    gymnasium.vector     natively vectorised, one agent   -------------------+
    your BatchedEnv      natively vectorised, any agents  -------------------+

A BatchedEnv steps E environments of N agents at once and writes into arrays that its caller owns; episodes
follow each other by next-step autoreset (see `hpc_marl.data.samples`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.errors import EnvContractError

MultiAgentStep: TypeAlias = "tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]"
"""observation [N, D], reward, terminated, truncated: the last three one per agent [N], or one for all."""


@dataclass
class EnvArrays:
    """What the agents see: written by `reset` and `step`, owned by the caller."""

    observation: NDArray[Any]
    """[E, N, D] float32, or uint8 for images; zeros for agents whose episode ended before the newest step."""
    state: NDArray[np.float32] | None
    """[E, S] global state; None where the environment has none."""
    action_mask: NDArray[np.bool_] | None
    """[E, N, A] True where the action is allowed, all True where alive is False; None without masks."""
    alive: NDArray[np.bool_]
    """[E, N] whether the agent acts on this observation."""
    is_first: NDArray[np.bool_]
    """[E] whether this observation begins an episode."""

    @classmethod
    def allocate(cls, spec: EnvSpec, num_envs: int) -> EnvArrays:
        """Return zeroed arrays for `num_envs` environments."""
        e, n = num_envs, spec.num_agents
        return cls(
            observation=np.zeros((e, n, spec.observation_size), spec.observation_dtype),
            state=np.zeros((e, spec.state_size), np.float32) if spec.state_size else None,
            action_mask=np.zeros((e, n, spec.num_actions), np.bool_) if spec.has_action_mask else None,
            alive=np.zeros((e, n), np.bool_),
            is_first=np.zeros(e, np.bool_),
        )


@dataclass
class StepArrays:
    """What one step did: written by `step`, owned by the caller."""

    reward: NDArray[np.float32]
    """[E, N] each agent's own reward."""
    terminated: NDArray[np.bool_]
    """[E, N] the agent's episode ended for good at this step."""
    truncated: NDArray[np.bool_]
    """[E, N] it was cut off at this step; never together with terminated."""

    @classmethod
    def allocate(cls, spec: EnvSpec, num_envs: int) -> StepArrays:
        """Return zeroed arrays for `num_envs` environments."""
        shape = (num_envs, spec.num_agents)
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_))


class BatchedEnv(ABC):
    """E environments of N agents, stepped together and written in place.

    What `check_env` tests, beyond shapes:

    - Every call writes every entry of its arrays; whatever they held before is overwritten.
    - An agent that is alive acts; at the step that ends its episode, terminated or truncated is True, and
      `out` holds its final observation with alive False. From the next step on its observation is zeros and
      its reward 0.
    - When no agent of an environment is alive any more, the following step resets it: the actions are
      ignored, the reward is 0, terminated and truncated are False, is_first and alive are True.
    - Equal seeds and actions give equal arrays.
    """

    spec: EnvSpec
    num_envs: int

    @abstractmethod
    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        """Begin an episode in every environment.

        Args:
            seeds: E seeds; whatever is random from here on follows from them alone.
            out: where the first observations go.
        """

    @abstractmethod
    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        """Step every environment, or reset it where its episode is over.

        Args:
            action: [E, N] int32, or [E, N, A] float32 that is clipped to [-1, 1] and scaled to the
                environment's bounds; ignored where the agent is not alive.
            result: where rewards and endings go.
            out: where the next observations go.
        """

    def close(self) -> None:  # noqa: B027  (most environments hold nothing)
        """Release what the environments hold."""


class MultiAgentEnv(ABC):
    """One environment of N agents, as its author writes it; `LoopedEnv` makes a BatchedEnv of several.

    Set `spec` in `__init__`, then write `reset` and `step`. Where spec has a state_size or an action mask,
    also `state` or `action_mask`. Where it has an image_shape, observations are images flattened to rows of bytes.
    Agents may end their episodes one by one; when the last one has, or at the time limit, `reset` is called.

    >>> class Countdown(MultiAgentEnv):
    ...     '''Two agents see how many steps are left.'''
    ...     spec = EnvSpec(agent_names=("left", "right"), observation_size=1, num_actions=2)
    ...     def reset(self, seed=None):
    ...         self.left = 3
    ...         return [[self.left], [self.left]]
    ...     def step(self, action):
    ...         self.left -= 1
    ...         return [[self.left], [self.left]], action, self.left == 0, False
    >>> env = Countdown()
    >>> env.reset(seed=1)
    [[3], [3]]
    """

    spec: EnvSpec

    @abstractmethod
    def reset(self, seed: int | None = None) -> ArrayLike:
        """Begin an episode and return the observation [N, D].

        Args:
            seed: seed of everything random; None: go on with the generator that the last seed began.
        """

    @abstractmethod
    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Step once and return (observation [N, D], reward, terminated, truncated).

        Args:
            action: [N] int32, or [N, A] float32 within [-1, 1]; 0 for agents whose episode has ended. The
                array is used again for the next step: copy what is to be kept.

        Returns:
            observation and, for each agent or once for all, reward, terminated and truncated. What is
            returned for agents whose episode ended at an earlier step is ignored.
        """

    def state(self) -> ArrayLike:
        """Return the global state [S] after the last reset or step; needed where spec.state_size > 0."""
        raise EnvContractError(
            f"{type(self).__name__}.spec.state_size is not 0, so it needs a method state() -> [S]"
        )

    def action_mask(self) -> ArrayLike:
        """Return the allowed actions [N, A] after the last reset or step; needed where spec has a mask."""
        raise EnvContractError(
            f"{type(self).__name__}.spec.has_action_mask is True, so it needs action_mask() -> [N, A]"
        )

    def close(self) -> None:  # noqa: B027  (most environments hold nothing)
        """Release what the environment holds."""
