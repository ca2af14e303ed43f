"""What each worker is told by `configure`: its own part of the experiment and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.config.build import to_dict
from hpc_marl.config.environment import EnvConfig
from hpc_marl.config.experiment import ExperimentConfig
from hpc_marl.config.fields import setting
from hpc_marl.config.policy import PolicyConfig
from hpc_marl.config.workers import ActorGroupConfig, EvaluationConfig, StreamConfig, TrainerGroupConfig
from hpc_marl.errors import ConfigError

TRAINER = "trainer/0"


@dataclass(frozen=True, kw_only=True)
class ActorAssignment:
    """An actor's part."""

    index: int = setting(0, "which of the actors", low=0)
    seed: tuple[int, ...] = setting((0,), "entropy that no other life of any worker shares")
    life: int = setting(
        0, "how often this actor was started before; a lower one of the same name is a zombie", low=0
    )
    mode: Literal["sync", "async"] = setting("sync", "see ExperimentConfig")
    inference: Literal["inline", "remote"] = setting("inline", "see ExperimentConfig")
    env: EnvConfig = setting(EnvConfig(), "the environment")
    actors: ActorGroupConfig = setting(ActorGroupConfig(), "environments and groups")
    rollout_length: int = setting(128, "T of a sample batch", unit="env_steps", low=1)
    memory_chunk_length: int = setting(16, "steps between two stored memories", unit="env_steps", low=1)
    streams: StreamConfig = setting(StreamConfig(), "data between workers")
    trainer_name: str = setting(TRAINER, "whose parameters to use")
    sample_trainer: str = setting(TRAINER, "whose sample stream to use")


@dataclass(frozen=True, kw_only=True)
class PolicyAssignment:
    """A policy worker's part."""

    mode: Literal["sync", "async"] = setting("sync", "see ExperimentConfig")
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    max_batch_rows: int = setting(4096, "most agent rows of one forward pass", low=1)
    num_threads: int = setting(1, "threads of one forward pass", low=1)
    streams: StreamConfig = setting(StreamConfig(), "data between workers")
    trainer_name: str = setting(TRAINER, "whose parameters to use")


@dataclass(frozen=True, kw_only=True)
class TrainerAssignment:
    """The trainer's part."""

    seed: int = setting(0, "seed of the initial weights and of the minibatches", low=0)
    epoch: int = setting(
        0, "the right to write checkpoints and publish; grows with every life of the trainer", low=0
    )
    mode: Literal["sync", "async"] = setting("sync", "see ExperimentConfig")
    total_env_steps: int = setting(1, "train for this many", unit="env_steps", low=1)
    algorithm: PPOConfig = setting(PPOConfig(), "the learning algorithm")
    policy: PolicyConfig = setting(PolicyConfig(), "the networks")
    trainer: TrainerGroupConfig = setting(TrainerGroupConfig(), "device, threads, checkpoints")
    streams: StreamConfig = setting(StreamConfig(), "data between workers")
    batches_per_update: int = setting(1, "sample batches of one update, of this trainer's share", low=1)
    rank: int = setting(0, "which of the trainers; trainer/0 publishes and writes", low=0)
    world_size: int = setting(1, "trainers that learn this policy together", low=1)


@dataclass(frozen=True, kw_only=True)
class EvaluatorAssignment:
    """The evaluator's part."""

    seed: tuple[int, ...] = setting((0,), "entropy that training does not share")
    epoch: int = setting(0, "the right to write the evaluation; a later epoch takes it away", low=0)
    env: EnvConfig = setting(EnvConfig(), "the environment")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "episodes to play")


def assignment(
    config: ExperimentConfig, worker_name: str, *, epoch: int, life: int, num_actors: int
) -> dict[str, Any]:
    """Return the plain config of one worker.

    Args:
        config: the whole experiment.
        worker_name: such as `actor/3`.
        epoch: the trainer's right to write; also separates the seeds of a resumed run from the first run's.
        life: how often this worker was started before.
        num_actors: actors that take part now, actor/0 and those after it; a synchronous update takes one batch of
            each of their groups.

    Raises:
        ConfigError: there is no such kind of worker.
    """
    kind, index = worker_name.split("/")
    builders: dict[str, Callable[[], Any]] = {
        "actor": lambda: _actor(config, int(index), epoch, life),
        "policy": lambda: PolicyAssignment(
            mode=config.mode,
            device=config.policies.device,
            max_batch_rows=config.policies.max_batch_rows,
            num_threads=config.policies.cpus,
            streams=config.streams,
        ),
        "trainer": lambda: _trainer(config, int(index), epoch, num_actors),
        "evaluator": lambda: EvaluatorAssignment(
            seed=(config.seed, 2**31, int(index)), epoch=epoch, env=config.env, evaluation=config.evaluation
        ),
    }
    if kind in config.extra_workers:
        return dict(config.extra_workers[kind].config)
    if kind not in builders:
        raise ConfigError(
            f"no worker kind {kind!r}; there are {', '.join([*builders, *config.extra_workers])}"
        )
    plain = to_dict(builders[kind]())
    assert isinstance(plain, dict)
    return plain


def sample_trainer(config: ExperimentConfig, actor_index: int) -> str:
    """Return the trainer that learns from an actor's batches.

    >>> sample_trainer(ExperimentConfig(trainer=TrainerGroupConfig(count=2)), 1)
    'trainer/1'
    """
    return f"trainer/{actor_index % config.trainer.count}"


def share_of_update(config: ExperimentConfig, rank: int, actors: Iterable[int]) -> int:
    """Return how many batches one trainer waits for; 0 where none of the actors is its own.

    Args:
        config: the whole experiment.
        rank: of the trainer.
        actors: indices of the actors that take part.
    """
    if config.trainer.batches_per_update is not None:
        return config.trainer.batches_per_update // config.trainer.count
    return sum(index % config.trainer.count == rank for index in actors) * config.actors.num_groups


def _actor(config: ExperimentConfig, index: int, epoch: int, life: int) -> ActorAssignment:
    return ActorAssignment(
        index=index,
        seed=(config.seed, epoch, index, life),
        life=life,
        mode=config.mode,
        inference=config.inference,
        env=config.env,
        actors=config.actors,
        rollout_length=config.algorithm.rollout_length,
        memory_chunk_length=config.algorithm.memory_chunk_length,
        streams=config.streams,
        sample_trainer=sample_trainer(config, index),
    )


def _trainer(config: ExperimentConfig, rank: int, epoch: int, num_actors: int) -> TrainerAssignment:
    return TrainerAssignment(
        seed=config.seed,
        epoch=epoch,
        mode=config.mode,
        total_env_steps=config.total_env_steps,
        algorithm=config.algorithm,
        policy=config.policy,
        trainer=config.trainer,
        streams=config.streams,
        batches_per_update=max(share_of_update(config, rank, range(num_actors)), 1),
        rank=rank,
        world_size=config.trainer.count,
    )
