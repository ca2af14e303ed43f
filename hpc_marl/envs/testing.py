"""Small, fast environments for tests: one whose every number is known, two that are learned in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import MultiAgentEnv, MultiAgentStep
from hpc_marl.errors import EnvContractError

SEED_RANGE = 2**20
"""CountingEnv shows its seed modulo this, so that it is exact in float32."""


class CountingEnv(MultiAgentEnv):
    """Counts: every observation says where it belongs, so that trajectories can be audited number by number.

    Agent n's observation is `[seed, episode, step, n, last_action]`: the seed of the last `reset` that had
    one (modulo SEED_RANGE), the episode since then, the step within the episode, and the (first component of
    the) action that led here, -1 at an episode's beginning. Its reward for the step that leads to step k is
    `100 * n + k`. The state is `[seed, episode, step]`.

    Agent n's episode ends at step `length - min(n * early_steps, length - 1)`, so agent 0 is the last; length
    is `episode_length + (seed + episode) % (length_spread + 1)`.

    >>> env = CountingEnv(num_agents=1, episode_length=2)
    >>> env.reset(seed=7)
    array([[ 7.,  0.,  0.,  0., -1.]], dtype=float32)
    >>> observation, reward, terminated, truncated = env.step(np.array([1]))
    >>> observation, reward, terminated
    (array([[7., 0., 1., 0., 1.]], dtype=float32), array([1.], dtype=float32), array([False]))
    """

    def __init__(
        self,
        num_agents: int = 2,
        *,
        episode_length: int = 5,
        length_spread: int = 0,
        ending: Literal["terminated", "truncated"] = "terminated",
        early_steps: int = 0,
        num_actions: int = 3,
        continuous: bool = False,
        masked: bool = False,
        has_state: bool = False,
    ) -> None:
        """Choose what it has.

        Args:
            num_agents: N.
            episode_length: steps of the shortest episode.
            length_spread: how many steps longer others may be.
            ending: how episodes end.
            early_steps: how much sooner agent n+1 ends than agent n; 0: all together.
            num_actions: A, discrete or continuous.
            continuous: actions are vectors.
            masked: agent n may not take action `(step + n) % A`.
            has_state: write the global state.
        """
        self.spec = EnvSpec(
            agent_names=tuple(f"counter_{n}" for n in range(num_agents)),
            observation_size=5,
            state_size=3 if has_state else 0,
            num_actions=0 if continuous else num_actions,
            action_size=num_actions if continuous else 0,
            has_action_mask=masked,
            episode_limit=episode_length + length_spread,
        )
        self._episode_length = episode_length
        self._length_spread = length_spread
        self._ending = ending
        self._early_steps = early_steps
        self._agents = np.arange(num_agents)
        self._seed = 0
        self._episode = -1
        self._step = 0

    def reset(self, seed: int | None = None) -> ArrayLike:
        """Begin the first episode of a seed, or the next one."""
        if seed is not None:
            self._seed, self._episode = seed % SEED_RANGE, -1
        self._episode += 1
        self._step = 0
        length = self._episode_length + (self._seed + self._episode) % (self._length_spread + 1)
        self._last_steps = length - np.minimum(self._agents * self._early_steps, length - 1)
        return self._observation(np.full(len(self._agents), -1.0))

    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Count on.

        Raises:
            EnvContractError: an agent that is alive took a masked action.
        """
        playing = self._step < self._last_steps
        if self.spec.has_action_mask:
            allowed = self.action_mask()[self._agents, action]
            if not allowed[playing].all():
                raise EnvContractError(
                    f"step {self._step}: actions {action} were masked by {self.action_mask()}"
                )
        self._step += 1
        ended = self._step >= self._last_steps
        never = np.zeros_like(ended)
        flags = (ended, never) if self._ending == "terminated" else (never, ended)
        taken = action[:, 0] if self.spec.is_continuous else action
        return self._observation(taken), (100.0 * self._agents + self._step).astype(np.float32), *flags

    def state(self) -> ArrayLike:
        """Return [seed, episode, step]."""
        return np.array([self._seed, self._episode, self._step], np.float32)

    def action_mask(self) -> NDArray[np.bool_]:
        """Forbid one action to each agent, another one at each step."""
        mask = np.ones((len(self._agents), self.spec.num_actions), np.bool_)
        mask[self._agents, (self._step + self._agents) % self.spec.num_actions] = False
        return mask

    def _observation(self, last_action: NDArray[Any]) -> NDArray[np.float32]:
        observation = np.empty((len(self._agents), 5), np.float32)
        observation[:, :3] = self._seed, self._episode, self._step
        observation[:, 3] = self._agents
        observation[:, 4] = last_action
        return observation


class MatrixGame(MultiAgentEnv):
    """Two agents choose a row and a column of a matrix, both are paid its entry; repeated.

    With the default payoffs the best return of each agent is `episode_length`, a random one about 0.17 times
    that. Observations are constant.
    """

    def __init__(
        self,
        payoff: Sequence[Sequence[float]] = ((1.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.0)),
        episode_length: int = 4,
    ) -> None:
        """Choose the matrix and how often it is played.

        Args:
            payoff: [A, A] what both agents get for (row, column).
            episode_length: steps of an episode.
        """
        self._payoff = np.asarray(payoff, np.float32)
        if self._payoff.ndim != 2 or self._payoff.shape[0] != self._payoff.shape[1]:
            raise EnvContractError(f"payoff must be a square matrix, found shape {self._payoff.shape}")
        self.spec = EnvSpec(
            agent_names=("row", "column"),
            observation_size=1,
            num_actions=len(self._payoff),
            episode_limit=episode_length,
        )
        self._episode_length = episode_length
        self._observation = np.ones((2, 1), np.float32)
        self._left = 0

    def reset(self, seed: int | None = None) -> ArrayLike:
        """Begin an episode; nothing is random."""
        self._left = self._episode_length
        return self._observation

    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Pay both agents."""
        self._left -= 1
        return self._observation, self._payoff[action[0], action[1]], self._left == 0, False


class BrightSide(MultiAgentEnv):
    """Every agent sees a dark image, one side of which is bright; 1 is paid for naming that side: 0 left, 1 right.

    The brightness of each pixel is random, so that neither a single pixel nor the sum of all tells. The best return of
    each agent is `episode_length`, a random one half of it.
    """

    def __init__(self, num_agents: int = 1, side: int = 12, episode_length: int = 8) -> None:
        """Choose the sizes.

        Args:
            num_agents: N.
            side: height and width of the images, in pixels.
            episode_length: steps of an episode.
        """
        self.spec = EnvSpec(
            agent_names=tuple(f"viewer_{n}" for n in range(num_agents)),
            observation_size=side * side,
            image_shape=(1, side, side),
            num_actions=2,
            episode_limit=episode_length,
        )
        self._side = side
        self._episode_length = episode_length
        self._rng = np.random.default_rng(0)
        self._left = 0
        self._answer = np.zeros(num_agents, np.int64)

    def reset(self, seed: int | None = None) -> ArrayLike:
        """Begin an episode."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._left = self._episode_length
        return self._draw()

    def step(self, action: NDArray[Any]) -> MultiAgentStep:
        """Pay who was right, and show the next image."""
        self._left -= 1
        reward = (action == self._answer).astype(np.float32)
        return self._draw(), reward, self._left == 0, False

    def _draw(self) -> NDArray[np.uint8]:
        agents, side = len(self._answer), self._side
        self._answer = self._rng.integers(2, size=agents)
        images = self._rng.integers(0, 100, (agents, side, side), np.uint8)
        for image, is_right in zip(images, self._answer, strict=True):
            half = image[:, side // 2 :] if is_right else image[:, : side // 2]
            half += self._rng.integers(60, 156, dtype=np.uint8)
        return images.reshape(agents, -1)
