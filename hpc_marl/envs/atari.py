"""Atari 2600 games as agents see them since Mnih et al. 2015, stepped together by ale-py's own vector environment.

    frame, frame, [frame, frame] ──max of the last two──► grey ──► 84 x 84 ──► newest of 4 stacked frames

The preprocessing is that of gymnasium's AtariPreprocessing and FrameStackObservation, in C++ and without OpenCV's
package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray

from hpc_marl.data.spaces import EnvSpec
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays
from hpc_marl.errors import ConfigError, EnvContractError

_FRAME_LIMIT = 108_000
"""30 minutes of play, the usual limit (Machado et al. 2018)."""


class AtariEnv(BatchedEnv):
    """E copies of one game, one agent each; needs ale-py, which comes with the games.

    Observations are stored as they are seen: all stacked frames, so each frame is stored `stack` times.

    Args:
        game: as ale-py spells it: pong, breakout, ms_pacman, ...
        num_envs: E.
        frame_skip: frames that an action is held for.
        stack: newest frames that an observation shows.
        size: height and width of the images, in pixels.
        noop_max: most idle frames at the start of an episode, a random number of them.
        fire_reset: press fire at the start of an episode, in games that wait for it.
        episodic_life: end an episode where a life is lost.
        clip_rewards: to -1, 0 or 1; the returns that are reported are of these.
        repeat_action_probability: of holding the last action instead of taking the new one ("sticky actions").
        frame_limit: truncate episodes after this many frames.
        num_threads: of the emulators; more than the actor has cores makes nothing faster.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        frame_skip: int = 4,
        stack: int = 4,
        size: int = 84,
        noop_max: int = 30,
        fire_reset: bool = True,
        episodic_life: bool = False,
        clip_rewards: bool = True,
        repeat_action_probability: float = 0.0,
        frame_limit: int = _FRAME_LIMIT,
        num_threads: int = 1,
    ) -> None:
        if game not in roms.get_all_rom_ids():
            raise ConfigError(
                f"env.make.game={game!r}: choose one of {', '.join(sorted(roms.get_all_rom_ids()))}"
            )
        self._env = AtariVectorEnv(
            game,
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=frame_limit,
            repeat_action_probability=repeat_action_probability,
            img_height=size,
            img_width=size,
            stack_num=stack,
            frameskip=frame_skip,
            noop_max=noop_max,
            episodic_life=episodic_life,
            reward_clipping=clip_rewards,
            use_fire_reset=fire_reset,
        )
        self.num_envs = num_envs
        self.spec = EnvSpec(
            observation_size=stack * size * size,
            image_shape=(stack, size, size),
            num_actions=int(self._env.single_action_space.n),  # type: ignore[attr-defined]
            episode_limit=-(-frame_limit // frame_skip),
        )
        self._over = np.zeros(num_envs, np.bool_)

    def reset(self, seeds: Sequence[int], out: EnvArrays) -> None:
        """Begin an episode in every environment; environment e gets seeds[e]."""
        if len(seeds) != self.num_envs:
            raise EnvContractError(f"reset got {len(seeds)} seeds for {self.num_envs} environments")
        observation, _ = self._env.reset(seed=np.array([int(seed) % 2**31 for seed in seeds]))
        self._over.fill(False)
        out.observation[:, 0] = observation.reshape(self.num_envs, -1)
        out.alive.fill(True)
        out.is_first.fill(True)

    def step(self, action: NDArray[Any], result: StepArrays, out: EnvArrays) -> None:
        """Step every environment, or reset it where its episode is over."""
        played = np.where(self._over, 0, action[:, 0])
        observation, reward, terminated, truncated, _ = self._env.step(played)
        out.observation[:, 0] = observation.reshape(self.num_envs, -1)
        result.reward[:, 0] = reward
        result.terminated[:, 0] = terminated
        np.greater(truncated, terminated, out=result.truncated[:, 0])
        out.is_first[:] = self._over
        np.logical_or(terminated, truncated, out=self._over)
        np.logical_not(self._over, out=out.alive[:, 0])

    def close(self) -> None:
        """Stop the emulators' threads."""
        self._env.close()
