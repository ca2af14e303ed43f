"""ExperimentConfig: the root of a training run's configuration, and the checks that need two branches of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hpc_marl.config.algorithm import PPOConfig
from hpc_marl.config.cluster import ClusterConfig
from hpc_marl.config.environment import EnvConfig
from hpc_marl.config.fields import setting
from hpc_marl.config.policy import PolicyConfig
from hpc_marl.config.workers import (
    ActorGroupConfig,
    ControlConfig,
    EvaluationConfig,
    ExtraGroupConfig,
    PolicyGroupConfig,
    StreamConfig,
    TrainerGroupConfig,
)
from hpc_marl.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that one training run (a trial) is made of."""

    experiment_name: str = setting(
        "default", "first part of the run's name EXP/TRIAL: letters, digits and _.+=-"
    )
    trial_name: str | None = setting(
        None, "second part; null: seed<seed>, with -2, -3 ... for further runs of it"
    )
    seed: int = setting(1, "seed of everything random", low=0, high=2**31 - 1)
    root: str = setting(
        "runs", "directory of all runs; on a shared filesystem when more than one machine takes part"
    )
    resume: bool = setting(False, "go on from the trial's last checkpoint")
    total_env_steps: int = setting(
        1_000_000, "train for this many environment steps", unit="env_steps", low=1
    )
    mode: Literal["sync", "async"] = setting(
        "sync",
        "sync: every batch is of the newest policy, bit-reproducible; async: actors never wait for the trainer",
    )
    inference: Literal["inline", "remote"] = setting(
        "inline",
        "inline: every actor has a copy of the policy; remote: policy workers answer batched requests",
    )
    controller: Literal["session", "job"] = setting(
        "session",
        "session: this command drives the run and shows it; job: it submits, prints the handle and returns",
    )
    profile: bool = setting(
        False, "write where each kind of worker spent its time: profile.md, profile.json, profile.png"
    )
    max_concurrent: int | None = setting(
        None, "controller=job: most trials of one experiment that run at once; null: all", low=1
    )
    env: EnvConfig = setting(EnvConfig(), "the environment")
    policy: PolicyConfig = setting(PolicyConfig(), "the networks")
    algorithm: PPOConfig = setting(PPOConfig(), "the learning algorithm")
    actors: ActorGroupConfig = setting(ActorGroupConfig(), "actor workers")
    policies: PolicyGroupConfig = setting(PolicyGroupConfig(), "policy workers")
    trainer: TrainerGroupConfig = setting(TrainerGroupConfig(), "trainer workers")
    extra_workers: dict[str, ExtraGroupConfig] = setting({}, "further worker kinds: kind -> group")
    streams: StreamConfig = setting(StreamConfig(), "data between workers")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "the evaluation after training")
    control: ControlConfig = setting(ControlConfig(), "the controller")
    cluster: ClusterConfig = setting(ClusterConfig(), "where workers run")

    def __post_init__(self) -> None:
        """Check what one branch alone cannot."""
        for key, name in (("experiment_name", self.experiment_name), ("trial_name", self.trial_name)):
            if name is not None and not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{key}={name!r}: use 1 to 100 letters, digits or _.+=- and begin with a letter or digit"
                )
        length, chunk = self.algorithm.rollout_length, self.algorithm.memory_chunk_length
        if self.policy.recurrent != "none" and length % chunk:
            raise ConfigError(
                f"algorithm.rollout_length={length} must be a multiple of algorithm.memory_chunk_length={chunk}"
            )
        if self.mode == "sync" and self.trainer.batches_per_update not in (None, self.num_sample_groups):
            raise ConfigError(
                f"trainer.batches_per_update={self.trainer.batches_per_update}: with mode=sync one update takes "
                f"one batch of each of the actors.count * actors.num_groups = {self.num_sample_groups} groups; "
                "leave it null"
            )
        if self.controller == "job" and self.cluster.kind == "local":
            raise ConfigError(
                "controller=job needs a cluster whose kind is slurm; with cluster=local leave it out"
            )
        self._check_trainers()
        trainers = self.trainer.count
        most = self.actors.count // trainers * trainers * self.actors.num_groups * self.streams.sample_slots
        if self.batches_per_update > most:
            raise ConfigError(
                f"trainer.batches_per_update={self.batches_per_update} can never be under way at once: at most "
                f"actors.count * actors.num_groups * streams.sample_slots = {most}; raise streams.sample_slots"
            )

    def _check_trainers(self) -> None:
        """Check that every trainer has its share of each update."""
        trainers, actors = self.trainer.count, self.actors.count
        if actors < trainers:
            raise ConfigError(
                f"trainer.count={trainers}: each trainer learns from actors of its own, but actors.count={actors}; "
                "have at least as many actors as trainers"
            )
        if self.mode == "sync" and actors % trainers:
            raise ConfigError(
                f"actors.count={actors} must be a multiple of trainer.count={trainers} with mode=sync, so that every "
                "trainer has an equal share of each update"
            )
        if (self.trainer.batches_per_update or 0) % trainers:
            raise ConfigError(
                f"trainer.batches_per_update={self.trainer.batches_per_update} must be a multiple of "
                f"trainer.count={trainers}: it is the total over all trainers"
            )
        if trainers > 1 and self.trainer.device.startswith("cuda") and (self.trainer.gpus or 1) < 1:
            raise ConfigError(
                f"trainer.gpus={self.trainer.gpus}: NCCL takes no two of the trainer.count={trainers} trainers on one "
                "GPU; give each a whole one"
            )
        if trainers > 1 and self.trainer.device.startswith("cuda:"):
            raise ConfigError(
                f"trainer.device={self.trainer.device} is one GPU, and NCCL takes no two of the "
                f"trainer.count={trainers} trainers on one; use device=cuda, with which each has its own"
            )

    @property
    def num_sample_groups(self) -> int:
        """Environment groups of all actors: the sample batches of one round."""
        return self.actors.count * self.actors.num_groups

    @property
    def batches_per_update(self) -> int:
        """Sample batches that one update consumes."""
        return self.trainer.batches_per_update or self.num_sample_groups
