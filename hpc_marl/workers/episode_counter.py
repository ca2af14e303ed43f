"""EpisodeCounter: returns and lengths of the episodes that end in a batch, counted once per batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_marl.data import SampleBatch


class Counted(NamedTuple):
    """What is in one batch."""

    episodes: list[tuple[float, int]]
    """(return, length) of the episodes that ended in it, in the order in which they did.

    A return is the sum of the environment's own rewards over agents and steps.
    """
    env_steps: int
    """Those in which at least one agent acted."""
    agent_steps: int
    """Entries that can be learned from."""


class EpisodeCounter:
    """Carries what has begun in one batch of E environments on to the next.

    Args:
        num_envs: E.
    """

    def __init__(self, num_envs: int) -> None:
        self._return = np.zeros(num_envs, np.float64)
        self._length = np.zeros(num_envs, np.int64)

    def count(self, batch: SampleBatch) -> Counted:
        """Count a full batch; its rewards must not have been shared between agents yet."""
        alive = batch.alive
        acted = alive[..., 0] if alive.shape[2] == 1 else np.logical_or.reduce(alive, axis=2)
        # environment by environment, so that what belongs to one episode lies together
        stepped = np.ascontiguousarray(acted[:-1].T)
        ended = stepped & ~acted[1:].T
        reward = np.ascontiguousarray(batch.reward.sum(axis=2).T, np.float64)
        episodes = self._episodes(reward, stepped, ended)
        return Counted(episodes, int(np.count_nonzero(stepped)), int(np.count_nonzero(alive[:-1])))

    def _episodes(
        self, reward: NDArray[np.float64], stepped: NDArray[np.bool_], ended: NDArray[np.bool_]
    ) -> list[tuple[float, int]]:
        num_envs, num_steps = ended.shape
        begins = np.zeros(ended.shape, np.bool_)
        begins[:, 0] = True
        begins[:, 1:] = ended[:, :-1]
        starts = np.flatnonzero(begins)
        returns = np.add.reduceat(reward.ravel(), starts)
        lengths = np.add.reduceat(stepped.ravel(), starts, dtype=np.int64)
        parts = np.cumsum(np.count_nonzero(begins, axis=1))  # where the next environment's begin
        first, last = parts - np.count_nonzero(begins, axis=1), parts - 1
        returns[first] += self._return
        lengths[first] += self._length
        is_whole = np.zeros(len(starts), np.bool_)
        stops = np.append(starts[1:], num_envs * num_steps) - 1
        np.take(ended.ravel(), stops, out=is_whole)
        self._return = np.where(is_whole[last], 0.0, returns[last])
        self._length = np.where(is_whole[last], 0, lengths[last])
        env, t = np.divmod(stops[is_whole], num_steps)
        order = np.lexsort((env, t))
        return list(zip(returns[is_whole][order].tolist(), lengths[is_whole][order].tolist(), strict=True))
