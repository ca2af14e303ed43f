"""The evaluator worker: plays whole episodes with the newest checkpoint and writes evaluation.json.

Every environment plays the same number of episodes from start to end, so that short episodes do not count more often
than long ones.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from hpc_marl.base.checkpoints import Checkpoint, latest_checkpoint
from hpc_marl.base.epoch_fence import EpochFence
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.config import EnvConfig, EvaluatorAssignment, build
from hpc_marl.control.worker_base import PollResult, Worker, WorkerServer
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.envs import make_env
from hpc_marl.envs.api import BatchedEnv, EnvArrays, StepArrays
from hpc_marl.errors import CheckpointError
from hpc_marl.policies.making import PolicyActor, make_actor
from hpc_marl.policies.spec import PolicySpec, actor_shapes, make_noise

_STEPS_PER_POLL = 50


class EpisodePlayer:
    """Plays `episodes` episodes (rounded up to the same number in every environment).

    Attributes:
        returns: per finished episode, the sum of the environment's rewards over agents and steps.
        lengths: per finished episode, its environment steps.
    """

    def __init__(
        self, env: BatchedEnv, actor: PolicyActor, seed: tuple[int, ...], episodes: int, greedy: bool
    ) -> None:
        self._env, self._actor, self._greedy = env, actor, greedy
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seed))))
        self._arrays, self._step = (
            EnvArrays.allocate(env.spec, env.num_envs),
            StepArrays.allocate(env.spec, env.num_envs),
        )
        size = actor.spec.memory_size
        self._memory = np.zeros((env.num_envs, env.spec.num_agents, size), np.float32) if size else None
        self._left = np.full(env.num_envs, math.ceil(episodes / env.num_envs))
        self._return = np.zeros(env.num_envs)
        self._length = np.zeros(env.num_envs, np.int64)
        self.returns: list[float] = []
        self.lengths: list[int] = []
        env.reset([int(word) for word in self._rng.integers(2**31, size=env.num_envs)], self._arrays)

    @property
    def finished(self) -> bool:
        """Whether every environment has played its episodes."""
        return not self._left.any()

    def close(self) -> None:
        """Close the environments."""
        self._env.close()

    def step(self) -> None:
        """Take one step in every environment."""
        arrays = self._arrays
        if self._memory is not None:
            self._memory[arrays.is_first] = 0.0
        noise = make_noise(self._env.spec, self._rng, self._env.num_envs)
        result = self._actor.act(
            arrays.observation, arrays.action_mask, self._memory, noise, greedy=self._greedy
        )
        if self._memory is not None:
            self._memory[...] = result.memory
        acted = arrays.alive.any(axis=1)
        self._env.step(result.action, self._step, arrays)
        self._return += self._step.reward.sum(axis=1)
        self._length += acted
        for e in np.flatnonzero(acted & ~arrays.alive.any(axis=1)):
            if self._left[e]:
                self._left[e] -= 1
                self.returns.append(float(self._return[e]))
                self.lengths.append(int(self._length[e]))
            self._return[e], self._length[e] = 0.0, 0


class EvaluatorWorker(Worker):
    """Evaluates the newest checkpoint once."""

    def __init__(
        self,
        server: WorkerServer,
        context: RunContext,
        run_directory: RunDirectory,
        *,
        orphan_grace_s: float | None = None,
    ) -> None:
        super().__init__(server, orphan_grace_s=orphan_grace_s)
        self._directory = run_directory
        self._player: EpisodePlayer | None = None

    def _configure(self, config: dict[str, Any]) -> None:
        assigned = build(EvaluatorAssignment, config)
        checkpoint = latest_checkpoint(self._directory.checkpoints)
        if checkpoint is None:
            raise CheckpointError(
                f"nothing to evaluate: no valid checkpoint in {self._directory.checkpoints}"
            )
        self._checkpoint = checkpoint
        self._fence = EpochFence(self._directory.epoch_file, assigned.epoch)
        self._greedy = assigned.evaluation.greedy
        num_envs = min(assigned.evaluation.num_envs, assigned.evaluation.episodes)
        self._player = make_player(
            checkpoint,
            assigned.env,
            num_envs,
            assigned.seed,
            episodes=assigned.evaluation.episodes,
            greedy=self._greedy,
        )

    def _poll(self) -> PollResult:
        assert self._player is not None, "configure() comes before start()"
        for _ in range(_STEPS_PER_POLL):
            if self._player.finished:
                if not self._fence.holds():
                    self.request_exit()
                    return PollResult(idle=True)
                self._write(self._player)
                return PollResult(completed=True)
            self._player.step()
        return PollResult(num_samples=_STEPS_PER_POLL)

    def _write(self, player: EpisodePlayer) -> None:
        mean, half_width = mean_and_interval(player.returns)
        result = {
            "return_mean": mean,
            "return_interval_95": [mean - half_width, mean + half_width],
            "episodes": len(player.returns),
            "length_mean": float(np.mean(player.lengths)),
            "greedy": self._greedy,
            "checkpoint": str(self._checkpoint.path),
            "policy_version": self._checkpoint.step,
            "env_steps": self._checkpoint.state["progress"]["env_steps"],
            "returns": player.returns,
        }
        atomic_write(self._directory.evaluation_file, json.dumps(result, indent=1).encode())

    def _on_exit(self, status: WorkerStatus) -> None:
        if self._player is not None:
            self._player.close()

    def _metrics(self) -> dict[str, float | int | str]:
        return {"episodes": len(self._player.returns) if self._player else 0}


def make_player(
    checkpoint: Checkpoint,
    config: EnvConfig,
    num_envs: int,
    seed: tuple[int, ...],
    *,
    episodes: int,
    greedy: bool,
) -> EpisodePlayer:
    """Return a player of `checkpoint`'s policy in `num_envs` new environments."""
    spec: PolicySpec = build(PolicySpec, checkpoint.state["policy_spec"])
    tensors = checkpoint.tensors("model")
    actor = make_actor(spec)
    actor.load({name: tensors[f"actor.{name}"] for name in actor_shapes(spec)}, checkpoint.step)
    return EpisodePlayer(make_env(config, num_envs), actor, seed, episodes, greedy)


def mean_and_interval(returns: list[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval (normal approximation of the mean's distribution)."""
    count = len(returns)
    deviation = float(np.std(returns, ddof=1)) if count > 1 else 0.0
    return float(np.mean(returns)), 1.96 * deviation / math.sqrt(count)
