"""The placement plan: which workers a run has, what each may use, and which jobs carry them. Values only.

    workers  --dealt out-->  slots  --bundled-->  jobs
    trainer/0, actor/3 ...   one host process     one submission: a job of N nodes, a job array, or one component of a
                             each: a Slurm task   heterogeneous job

Slots are numbered through the whole plan; the process that fills slot 3 is the worker `host/3`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpc_marl.config import ExperimentConfig, ResourceConfig


@dataclass(frozen=True)
class WorkerGroup:
    """Workers of one kind and resource shape.

    Attributes:
        kind: such as `actor`.
        count: how many.
        cpus: CPU cores of each, which are also its numeric libraries' threads.
        gpus: GPUs of each; a fraction where several share one.
        max_restarts: respawns of one of them.
        resources: as configured.
    """

    kind: str
    count: int
    cpus: int
    gpus: float
    max_restarts: int
    resources: ResourceConfig

    @property
    def worker_names(self) -> list[str]:
        """Names of the workers, such as actor/0, actor/1."""
        return [f"{self.kind}/{index}" for index in range(self.count)]


@dataclass(frozen=True)
class Slot:
    """One host process and the workers it runs: a Slurm task, or one element of a job array.

    Attributes:
        index: of the host process: `host/<index>`.
        workers: by name.
    """

    index: int
    workers: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What is submitted at once; every slot of it has the same resources.

    Attributes:
        role: `core` (trainers, policy workers, and with placement=packed everything) or `actors`.
        slots: in order of array index, or of task rank.
        is_array: each slot is an element of a job array; else each is a task of one job.
        task_per_node: each task has a node of its own.
        cpus: of one slot.
        gpus: of one slot.
        memory_mb: of one slot; None leaves it to the partition.
        time_limit: as Slurm writes it.
        partition: None: Slurm's default.
        constraint: features of its nodes; None: any.
    """

    role: str
    slots: tuple[Slot, ...]
    is_array: bool
    task_per_node: bool
    cpus: int
    gpus: int
    memory_mb: int | None
    time_limit: str
    partition: str | None
    constraint: str | None


@dataclass(frozen=True)
class Plan:
    """All worker groups of a run, in the order in which they are started, and the jobs that carry them."""

    placement: str
    groups: tuple[WorkerGroup, ...]
    jobs: tuple[Job, ...]

    @property
    def worker_names(self) -> list[str]:
        """Names of all workers that train."""
        return [name for group in self.groups for name in group.worker_names]

    def group_of(self, worker_name: str) -> WorkerGroup:
        """Return the group that a worker belongs to."""
        kind = worker_name.partition("/")[0]
        return next(group for group in self.groups if group.kind == kind)


def make_plan(config: ExperimentConfig) -> Plan:
    """Return the plan of an experiment.

    >>> make_plan(ExperimentConfig()).worker_names
    ['trainer/0', 'actor/0', 'actor/1']
    >>> [(job.role, [slot.workers for slot in job.slots]) for job in make_plan(ExperimentConfig()).jobs]
    [('core', [('trainer/0',)]), ('actors', [('actor/0', 'actor/1')])]
    """
    groups = _groups(config)
    actors = [name for group in groups if group.kind == "actor" for name in group.worker_names]
    core = [name for group in groups if group.kind != "actor" for name in group.worker_names]
    placement = config.cluster.placement
    if placement == "packed":
        dealt = _deal([*core, *actors], config.cluster.core_nodes)
        return Plan(placement, groups, (_job(config, groups, "core", _slots(dealt, 0), is_array=False),))
    core_slots = _slots(_deal(core, config.cluster.core_nodes), 0)
    per_task = config.actors.per_task or _default_per_task(config)
    chunks = [tuple(actors[i : i + per_task]) for i in range(0, len(actors), per_task)]
    return Plan(
        placement,
        groups,
        (
            _job(config, groups, "core", core_slots, is_array=False),
            _job(config, groups, "actors", _slots(chunks, len(core_slots)), is_array=placement == "split"),
        ),
    )


def _default_per_task(config: ExperimentConfig) -> int:
    """Return how many actors share a task: what they have imported lies in memory, and in caches, once for all."""
    has_limits = config.cluster.kind == "slurm" or config.cluster.node_cpus is not None
    return 8 if has_limits else 64


def _groups(config: ExperimentConfig) -> tuple[WorkerGroup, ...]:
    trainer, actors, policies = config.trainer, config.actors, config.policies
    groups = [_group("trainer", trainer.count, trainer, trainer.max_restarts, trainer.device)]
    if config.inference == "remote":
        groups.append(_group("policy", policies.count, policies, policies.max_restarts, policies.device))
    groups.append(_group("actor", actors.count, actors, actors.max_restarts))
    groups += [
        _group(kind, extra.count, extra, extra.max_restarts) for kind, extra in config.extra_workers.items()
    ]
    return tuple(groups)


def _group(
    kind: str, count: int, resources: ResourceConfig, max_restarts: int, device: str = "cpu"
) -> WorkerGroup:
    gpus = resources.gpus if resources.gpus is not None else float(device.startswith("cuda"))
    return WorkerGroup(kind, count, resources.cpus, gpus, max_restarts, resources)


def _deal(names: Sequence[str], num_slots: int) -> list[tuple[str, ...]]:
    """Deal workers out in turn, so that every slot gets its share of each kind."""
    dealt = [tuple(names[i::num_slots]) for i in range(num_slots)]
    return [hand for hand in dealt if hand]


def _slots(dealt: Iterable[tuple[str, ...]], first: int) -> tuple[Slot, ...]:
    return tuple(Slot(first + i, workers) for i, workers in enumerate(dealt))


def _job(
    config: ExperimentConfig,
    groups: Sequence[WorkerGroup],
    role: str,
    slots: tuple[Slot, ...],
    *,
    is_array: bool,
) -> Job:
    """Bundle slots: what one of them needs is the most that any of them needs."""
    group_of = {group.kind: group for group in groups}
    needs = [[group_of[name.split("/")[0]] for name in slot.workers] for slot in slots]
    gpus = math.ceil(max(sum(group.gpus for group in need) for need in needs))
    memories = [[group.resources.memory_mb for group in need] for need in needs]
    stated = [sum(m for m in memory if m is not None) for memory in memories if None not in memory]
    kinds = dict.fromkeys(group.kind for need in needs for group in need)
    chosen = [group_of[kind].resources for kind in kinds]
    cluster = config.cluster
    return Job(
        role=role,
        slots=slots,
        is_array=is_array,
        task_per_node=role == "core",
        cpus=max(sum(group.cpus for group in need) for need in needs),
        gpus=gpus,
        memory_mb=max(stated) if len(stated) == len(slots) else None,
        time_limit=next((r.time_limit for r in chosen if r.time_limit), cluster.time_limit),
        partition=next((r.partition for r in chosen if r.partition), None)
        or (cluster.gpu_partition if gpus else cluster.cpu_partition),
        constraint=next((r.constraint for r in chosen if r.constraint), None),
    )
