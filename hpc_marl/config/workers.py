"""How many workers of each kind, what each may use, and how they are watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hpc_marl.config.durations import check_duration
from hpc_marl.config.fields import setting
from hpc_marl.errors import ConfigError

Precision = Literal["float32", "tf32", "bf16"]
"""What numbers networks are computed in."""


@dataclass(frozen=True, kw_only=True)
class ResourceConfig:
    """What one worker of a group may use, and where its job goes."""

    cpus: int = setting(1, "CPU cores of one worker, which are also its numeric threads", unit="cores", low=1)
    gpus: float | None = setting(
        None, "GPUs of one worker; 0.5 lets two share one; null: 1 where its device is cuda, else 0", low=0
    )
    memory_mb: int | None = setting(
        None, "memory of one worker; null leaves it to the partition", unit="MB", low=1
    )
    time_limit: str | None = setting(
        None, "wall time of the group's job, as Slurm writes it; null: cluster.time_limit"
    )
    partition: str | None = setting(
        None, "where its job goes; null: cluster.gpu_partition with GPUs, else cluster.cpu_partition"
    )
    constraint: str | None = setting(None, "features that its nodes must have, as for sbatch --constraint")

    def __post_init__(self) -> None:
        """Check what a type alone cannot."""
        check_duration("time_limit", self.time_limit)


@dataclass(frozen=True, kw_only=True)
class ActorGroupConfig(ResourceConfig):
    """The actor workers."""

    count: int = setting(2, "actor workers", low=1)
    num_envs: int = setting(16, "environments of one actor", low=1)
    num_groups: int = setting(
        1, "groups that an actor's environments are split into; one steps while another waits", low=1
    )
    per_task: int | None = setting(
        None,
        "actors that share one Slurm task (one element of the job array) and what they have imported; null: 8, "
        "without Slurm 64",
        low=1,
    )
    min_actors: int = setting(1, "training starts and goes on with at least this many", low=1)
    max_restarts: int = setting(100, "respawns of one actor before it is given up", low=0)

    def __post_init__(self) -> None:
        """Check that groups are equal and the quorum can be reached."""
        super().__post_init__()
        if self.num_envs % self.num_groups:
            raise ConfigError(f"num_envs={self.num_envs} must be a multiple of num_groups={self.num_groups}")
        if self.min_actors > self.count:
            raise ConfigError(f"min_actors={self.min_actors} must be <= count={self.count}")


@dataclass(frozen=True, kw_only=True)
class PolicyGroupConfig(ResourceConfig):
    """The policy workers; they exist only with inference=remote."""

    count: int = setting(1, "policy workers", low=1)
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    max_batch_rows: int = setting(
        4096, "most agent rows answered in one forward pass", unit="agent rows", low=1
    )
    max_restarts: int = setting(20, "respawns of one policy worker before the run fails", low=0)


@dataclass(frozen=True, kw_only=True)
class TrainerGroupConfig(ResourceConfig):
    """The trainer workers; several of them train one policy data-parallel."""

    count: int = setting(1, "trainer workers; actor i sends to trainer i % count", low=1)
    device: str = setting("cpu", "cpu, cuda or cuda:N")
    precision: Precision = setting(
        "float32",
        "tf32: GPUs round what they multiply; bf16: networks in bfloat16, weights, optimiser and loss in float32",
    )
    cuda_graph: bool = setting(
        False,
        "GPUs: launch each minibatch's step as one CUDA graph; for networks that compute faster than that",
    )
    batches_per_update: int | None = setting(
        None, "sample batches of one update; null: one of every environment group", low=1
    )
    checkpoint_interval_s: float = setting(30.0, "time between checkpoints", unit="s", low=0.1)
    keep_checkpoints: int = setting(3, "newest checkpoints to keep", low=1)
    max_restarts: int = setting(20, "respawns of the trainer before the run fails", low=0)

    def __post_init__(self) -> None:
        """Check that the device can do what is wanted of it."""
        super().__post_init__()
        is_gpu = self.device.startswith("cuda")
        if self.precision == "tf32" and not is_gpu:
            raise ConfigError(
                f"precision=tf32: only GPUs have TF32, and device={self.device}; use device=cuda, or float32 or bf16"
            )
        if self.cuda_graph and not is_gpu:
            raise ConfigError(
                f"cuda_graph=true needs a GPU, and device={self.device}; use device=cuda or leave it out"
            )
        if self.cuda_graph and self.count > 1:
            raise ConfigError(
                f"cuda_graph=true is for one trainer, and count={self.count}: a graph cannot hold what trainers "
                "exchange; use count=1 or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class ExtraGroupConfig(ResourceConfig):
    """Workers of a kind of the user's own; `config` is what their `configure` receives."""

    worker_class: str = setting("", "where the Worker subclass is: package.module:Class")
    count: int = setting(1, "workers of this kind", low=1)
    config: dict[str, Any] = setting({}, "their own settings")
    max_restarts: int = setting(20, "respawns of one of them before the run fails", low=0)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Samples, inference and parameters between workers."""

    transport: Literal["auto", "zmq"] = setting(
        "auto", "auto: shared memory between workers of one node, ZMQ across nodes; zmq: ZMQ always"
    )
    sample_slots: int = setting(4, "batches an environment group may have under way", low=1)
    sample_buffer_bytes: int = setting(
        512 * 2**20,
        "most bytes of samples under way to the trainer, all actors together",
        unit="bytes",
        low=2**16,
    )
    inference_timeout_s: float = setting(
        5.0, "re-send an inference request after this long", unit="s", low=0.05
    )
    max_message_bytes: int = setting(
        256 * 2**20, "largest message a data socket accepts", unit="bytes", low=2**16
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The evaluation after training."""

    episodes: int = setting(100, "episodes to play", low=1)
    num_envs: int = setting(20, "environments played side by side", low=1)
    greedy: bool = setting(False, "take the most likely action instead of a sampled one")


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """How the controller watches the workers."""

    heartbeat_interval_s: float = setting(0.5, "time between two heartbeats of a worker", unit="s", low=0.05)
    heartbeat_timeout_s: float = setting(15.0, "a worker silent for this long is lost", unit="s", low=0.2)
    connect_timeout_s: float = setting(120.0, "a worker must register within this time", unit="s", low=1)
    hang_timeout_s: float = setting(
        120.0, "a worker whose loop stands still for this long is replaced", unit="s", low=1
    )
    request_timeout_s: float = setting(60.0, "deadline of one command to a worker", unit="s", low=0.1)
    orphan_grace_s: float = setting(
        60.0, "a worker that no controller speaks to for this long ends itself", unit="s", low=1
    )
    stop_timeout_s: float = setting(
        10.0, "a stopping worker may take this long before it is killed", unit="s", low=0.1
    )

    def __post_init__(self) -> None:
        """Check that a heartbeat or two may be late without harm."""
        if self.heartbeat_timeout_s < 3 * self.heartbeat_interval_s:
            raise ConfigError(
                f"heartbeat_timeout_s={self.heartbeat_timeout_s} must be >= 3 * heartbeat_interval_s"
                f"={3 * self.heartbeat_interval_s}"
            )
