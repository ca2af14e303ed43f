"""GroupRollout: one environment group filling one sample batch after another, in place.

    begin(batch) -> [ inputs() -> act -> apply(action, ...) ] x T -> finish() -> SampleMetadata

What the agents saw after the last step of a batch is the first entry of the next one, so episodes and recurrent memory
run on across batches; only whole batches are ever committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.config import EnvConfig
from hpc_marl.data import SampleBatch
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays
from hpc_marl.policies.spec import make_noise


@dataclass(frozen=True)
class ActInputs:
    """What the policy needs to act for one group at one step; views, valid until the next `apply`."""

    observation: NDArray[np.float32]
    action_mask: NDArray[np.bool_] | None
    memory: NDArray[np.float32] | None
    noise: NDArray[np.float32]


class GroupRollout:
    """The environments of one group and the batch that they are filling.

    Args:
        env: E environments, not yet reset.
        config: says how rewards are shared between agents.
        seed: entropy of this group: everything random in it follows from these numbers.
        memory_size: H, 0 for feed-forward policies.
        chunk_length: steps between two stored memories.
    """

    def __init__(
        self,
        env: BatchedEnv,
        config: EnvConfig,
        seed: Sequence[int],
        memory_size: int = 0,
        chunk_length: int = 1,
    ) -> None:
        self.env = env
        self._sharing = config.reward_sharing
        self._chunk_length = chunk_length
        env_stream, noise_stream = np.random.SeedSequence(list(seed)).spawn(2)
        self._noise_rng = np.random.Generator(np.random.PCG64(noise_stream))
        spec, num_envs = env.spec, env.num_envs
        self._carried = EnvArrays.allocate(spec, num_envs)
        self._step = StepArrays.allocate(spec, num_envs)
        self._memory = np.zeros((num_envs, spec.num_agents, memory_size), np.float32) if memory_size else None
        self._episode_return = np.zeros(num_envs, np.float64)
        self._episode_length = np.zeros(num_envs, np.int64)
        self._episodes: list[tuple[float, int]] = []
        self._batch: SampleBatch | None = None
        self._t = 0
        env.reset([int(word) for word in env_stream.generate_state(num_envs)], self._carried)

    @property
    def in_progress(self) -> bool:
        """Whether a batch has been begun and is not yet finished."""
        return self._batch is not None

    @property
    def is_full(self) -> bool:
        """Whether the batch has all its T steps."""
        return self._batch is not None and self._t == self._batch.num_steps

    def begin(self, batch: SampleBatch) -> None:
        """Start filling `batch` where the previous one left off."""
        self._batch, self._t = batch, 0
        _copy(self._carried, _at(batch, 0))

    def inputs(self) -> ActInputs:
        """Return what the policy sees now; recurrent memory is zero at the start of an episode."""
        batch, t = self._filling(), self._t
        if self._memory is not None:
            self._memory[batch.is_first[t]] = 0.0
            if batch.memory is not None and t % self._chunk_length == 0:
                batch.memory[t // self._chunk_length] = self._memory
        return ActInputs(
            observation=batch.observation[t],
            action_mask=None if batch.action_mask is None else batch.action_mask[t],
            memory=self._memory,
            noise=make_noise(self.env.spec, self._noise_rng, self.env.num_envs),
        )

    def apply(
        self,
        action: NDArray[Any],
        log_prob: NDArray[np.float32],
        memory: NDArray[np.float32] | None,
        policy_version: int,
    ) -> None:
        """Take one step with these actions ([E, N] or [E, N, A]) and write it into the batch."""
        batch, t = self._filling(), self._t
        batch.action[t] = action
        batch.log_prob[t] = log_prob
        batch.policy_version[t] = policy_version
        if self._memory is not None and memory is not None:
            self._memory[...] = memory
        step = self._step
        self.env.step(batch.action[t], step, _at(batch, t + 1))
        batch.terminated[t] = step.terminated
        batch.truncated[t] = step.truncated
        batch.reward[t] = share_reward(step.reward, self._sharing)
        self._count(batch.alive[t], batch.alive[t + 1])
        self._t += 1

    def finish(self) -> list[tuple[float, int]]:
        """Let go of the full batch; return (return, length) of the episodes that ended in it.

        An episode's return is the sum of the environment's own rewards over agents and steps, before sharing.
        """
        batch = self._filling()
        _copy(_at(batch, batch.num_steps), self._carried)
        self._batch = None
        episodes, self._episodes = self._episodes, []
        return episodes

    def abandon(self) -> None:
        """Forget the batch in progress, when its place is lost; the environments go on from where they are."""
        if self._batch is not None:
            _copy(_at(self._batch, self._t), self._carried)
            self._batch = None

    def _filling(self) -> SampleBatch:
        assert self._batch is not None, "begin() comes first"
        return self._batch

    def _count(self, acted: NDArray[np.bool_], acts_next: NDArray[np.bool_]) -> None:
        stepped = acted.any(axis=1)
        self._episode_return += self._step.reward.sum(axis=1)
        self._episode_length += stepped
        ended = stepped & ~acts_next.any(axis=1)
        for e in np.flatnonzero(ended):
            self._episodes.append((float(self._episode_return[e]), int(self._episode_length[e])))
            self._episode_return[e] = 0.0
            self._episode_length[e] = 0


def share_reward(reward: NDArray[np.float32], sharing: str) -> NDArray[np.float32]:
    """Return what each agent is trained on, [E, N]: its own reward, or the team's sum or mean."""
    if sharing == "individual":
        return reward
    team = reward.sum(axis=1, keepdims=True)
    if sharing == "mean":
        team /= reward.shape[1]
    return np.broadcast_to(team, reward.shape)


def _at(batch: SampleBatch, t: int) -> EnvArrays:
    """Return the views of `batch` that an environment writes its observation of time t into."""
    return EnvArrays(
        observation=batch.observation[t],
        state=None if batch.state is None else batch.state[t],
        action_mask=None if batch.action_mask is None else batch.action_mask[t],
        alive=batch.alive[t],
        is_first=batch.is_first[t],
    )


def _copy(source: EnvArrays, target: EnvArrays) -> None:
    target.observation[...] = source.observation
    target.alive[...] = source.alive
    target.is_first[...] = source.is_first
    for name in ("state", "action_mask"):
        if (array := getattr(source, name)) is not None:
            getattr(target, name)[...] = array
