"""Where the workers run: this machine, or a site's Slurm with its own partitions, directives and paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hpc_marl.config.durations import check_duration
from hpc_marl.config.fields import setting
from hpc_marl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """A site profile: `conf/cluster/<site>.yaml` holds one."""

    kind: Literal["local", "slurm"] = setting(
        "local", "local: processes of this machine; slurm: jobs that submitit submits"
    )
    placement: Literal["split", "packed", "hetjob"] = setting(
        "split",
        "split: core job and actor job array, elastic; packed: one allocation; hetjob: both, started together",
    )
    core_nodes: int = setting(
        1, "nodes that trainers and policy workers (packed: all workers) are dealt out to", low=1
    )
    shared_root: str | None = setting(
        None, "directory on the shared filesystem that a relative `root` lies in; null: the current directory"
    )
    interface: str | None = setting(
        None,
        "network interface, address or network that workers bind, or all; null: loopback on local, all on slurm",
    )
    port_range: tuple[int, ...] = setting(
        (), "first and last port that workers may bind, as in [50000,50999]; empty: any", low=1, high=65535
    )
    name_resolve: Literal["file"] = setting("file", "backend of the name service")
    python: str | None = setting(None, "interpreter on the nodes; null: the one that submits")
    setup: tuple[str, ...] = setting((), "shell lines that jobs run first: module load, activate")
    environment: dict[str, Any] = setting({}, "further environment variables of jobs")
    cpu_partition: str | None = setting(None, "partition of jobs without GPUs; null: Slurm's default")
    gpu_partition: str | None = setting(None, "partition of jobs with GPUs; null: Slurm's default")
    gpu_request: str = setting(
        "gres=gpu:{gpus}",
        "the directive that asks for {gpus} GPUs of a node, such as gpus-per-node=a100:{gpus}",
    )
    time_limit: str = setting("24:00:00", "wall time of a job, as Slurm writes it")
    total_time: str | None = setting(
        None, "wall time of the whole experiment, over all requeues of its core job; null: no limit"
    )
    max_resubmissions: int = setting(20, "how often a job that ended early is submitted again", low=0)
    directives: dict[str, Any] = setting(
        {}, "directives of every job; null removes one, true makes a flag: {account: marl, mem: null}"
    )
    core_directives: dict[str, Any] = setting({}, "the same for the core job alone")
    actor_directives: dict[str, Any] = setting({}, "the same for the actors' jobs alone")
    srun_args: tuple[str, ...] = setting((), "further arguments of srun inside jobs")
    array_parallelism: int | None = setting(
        None, "most elements of the actor job array that run at once; null: all", low=1
    )
    signal_lead_s: int = setting(
        120, "how long before its time limit a job saves and makes room", unit="s", low=1
    )
    actor_grace_s: float = setting(
        600.0, "actors wait this long for a core job that is away, then free their CPUs", unit="s", low=1
    )
    query_interval_s: float = setting(60.0, "time between two queries of Slurm's queue", unit="s", low=1)
    on_interrupt: Literal["ask", "detach", "stop", "cancel"] = setting(
        "ask",
        "Ctrl-C in a session: ask (no terminal: detach), detach (the run goes on), stop (checkpoint first), cancel",
    )
    nodes: int = setting(1, "local: simulated nodes", low=1)
    node_cpus: int | None = setting(
        None,
        "local: CPU slots of a simulated node; jobs wait for free ones; null: no limit",
        unit="cores",
        low=1,
    )
    node_gpus: int = setting(0, "local: GPU slots of a simulated node", low=0)
    preempt_interval_s: float | None = setting(
        None, "local: time between two simulated preemptions of some job; null: none", unit="s", low=1
    )

    def __post_init__(self) -> None:
        """Check what a type alone cannot."""
        check_duration("time_limit", self.time_limit)
        check_duration("total_time", self.total_time)
        if self.port_range and (len(self.port_range) != 2 or self.port_range[0] > self.port_range[1]):
            raise ConfigError(
                f"port_range={list(self.port_range)}: write the first and the last, as in [50000,50999]"
            )
        if "{gpus}" not in self.gpu_request or "=" not in self.gpu_request:
            raise ConfigError(f"gpu_request={self.gpu_request!r}: write DIRECTIVE=VALUE with {{gpus}} in it")
