"""GroupRollout: one environment group filling one sample batch after another, in place.

    begin(batch) -> [ inputs() -> act -> apply(action, ...) ] x T -> finish() -> Counted

What the agents saw after the last step of a batch is the first entry of the next one, so episodes and recurrent memory
run on across batches; only whole batches are ever committed. What can wait for the end of a batch does: rewards are
shared and episodes counted there, all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.base.time_use import TimeUse
from hpc_marl.config import EnvConfig
from hpc_marl.data import SampleBatch
from hpc_marl.envs.api import BatchedEnv, EnvArrays
from hpc_marl.workers.batch_views import ActInputs, BatchViews, ViewCache
from hpc_marl.workers.episode_counter import Counted, EpisodeCounter


class GroupRollout:
    """The environments of one group and the batch that they are filling.

    Args:
        env: E environments, not yet reset.
        config: says how rewards are shared between agents.
        seed: entropy of this group: everything random in it follows from these numbers.
        memory_size: H, 0 for feed-forward policies.
        chunk_length: steps between two stored memories.
        views: shared by groups that take turns in the same slots.
        time_use: with the activities env and write; is at write when a method returns.
    """

    def __init__(
        self,
        env: BatchedEnv,
        config: EnvConfig,
        seed: Sequence[int],
        memory_size: int = 0,
        chunk_length: int = 1,
        *,
        views: ViewCache | None = None,
        time_use: TimeUse | None = None,
    ) -> None:
        self.env = env
        self._sharing = config.reward_sharing
        self._chunk_length = chunk_length
        env_stream, noise_stream = np.random.SeedSequence(list(seed)).spawn(2)
        self._noise_rng = np.random.Generator(np.random.PCG64(noise_stream))
        spec, num_envs = env.spec, env.num_envs
        self._carried = EnvArrays.allocate(spec, num_envs)
        self._carried_memory = np.zeros((num_envs, spec.num_agents, memory_size), np.float32)
        self._counter = EpisodeCounter(num_envs)
        self._cache = views or ViewCache()
        self._time_use = time_use or TimeUse("write", "env")
        self._views: BatchViews | None = None
        self._t = 0
        env.reset([int(word) for word in env_stream.generate_state(num_envs)], self._carried)

    @property
    def is_full(self) -> bool:
        """Whether the batch has all its T steps."""
        return self._views is not None and self._t == len(self._views.inputs)

    def begin(self, batch: SampleBatch) -> None:
        """Start filling `batch` where the previous one left off."""
        views = self._views = self._cache.of(batch, self.env.spec)
        self._t = 0
        _copy(self._carried, views.seen[0])
        if views.memory is not None:
            np.copyto(views.memory, self._carried_memory)
        # the same numbers as `make_noise` draws step by step
        draw = self._noise_rng.standard_normal if self.env.spec.is_continuous else self._noise_rng.random
        draw(dtype=np.float32, out=views.noise)

    def inputs(self) -> ActInputs:
        """Return what the policy sees now; recurrent memory is zero at the start of an episode."""
        views, t = self._filling(), self._t
        memory, stored = views.memory, views.batch.memory
        if memory is not None and stored is not None:
            is_first = views.seen[t].is_first
            if np.count_nonzero(is_first):
                memory[is_first] = 0.0
            if t % self._chunk_length == 0:
                stored[t // self._chunk_length] = memory
        return views.inputs[t]

    def apply(
        self,
        action: NDArray[Any],
        log_prob: NDArray[np.float32],
        memory: NDArray[np.float32] | None,
        policy_version: int,
    ) -> None:
        """Take one step with these actions ([E, N] or [E, N, A]) and write it into the batch.

        What was written into `inputs()` in place is handed in as it is and not copied again.
        """
        views, t = self._filling(), self._t
        inputs = views.inputs[t]
        if action is not inputs.action:
            np.copyto(inputs.action, action)
        if log_prob is not inputs.log_prob:
            np.copyto(inputs.log_prob, log_prob)
        if memory is not None and memory is not views.memory:
            assert views.memory is not None, "a feed-forward policy has no memory"
            np.copyto(views.memory, memory)
        views.batch.policy_version[t] = policy_version
        self._time_use.begin("env")
        self.env.step(inputs.action, views.results[t], views.seen[t + 1])
        self._time_use.begin("write")
        self._t = t + 1

    def finish(self) -> Counted:
        """Let go of the full batch; return what is in it."""
        views = self._filling()
        batch = views.batch
        _copy(views.seen[-1], self._carried)
        if views.memory is not None:
            np.copyto(self._carried_memory, views.memory)
        counted = self._counter.count(batch)
        if self._sharing != "individual" and self.env.spec.num_agents > 1:
            batch.reward[...] = share_reward(batch.reward, self._sharing)
        self._views = None
        return counted

    def _filling(self) -> BatchViews:
        assert self._views is not None, "begin() comes first"
        return self._views


def share_reward(reward: NDArray[np.float32], sharing: str) -> NDArray[np.float32]:
    """Return what each agent is trained on, [..., N]: its own reward, or the team's sum or mean."""
    if sharing == "individual":
        return reward
    team = reward.sum(axis=-1, keepdims=True)
    if sharing == "mean":
        team /= reward.shape[-1]
    return np.broadcast_to(team, reward.shape)


def _copy(source: EnvArrays, target: EnvArrays) -> None:
    target.observation[...] = source.observation
    target.alive[...] = source.alive
    target.is_first[...] = source.is_first
    for name in ("state", "action_mask"):
        if (array := getattr(source, name)) is not None:
            getattr(target, name)[...] = array
