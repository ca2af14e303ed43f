"""The placement plan: which workers a run has and what each may use. A value; making one starts nothing."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_marl.config import ExperimentConfig


@dataclass(frozen=True)
class WorkerGroup:
    """Workers of one kind and resource shape.

    Attributes:
        kind: such as `actor`.
        count: how many.
        cpus: CPU cores of each, which are also its numeric libraries' threads.
        max_restarts: respawns of one of them.
    """

    kind: str
    count: int
    cpus: int
    max_restarts: int

    @property
    def worker_names(self) -> list[str]:
        """Names of the workers, such as actor/0, actor/1."""
        return [f"{self.kind}/{index}" for index in range(self.count)]


@dataclass(frozen=True)
class Plan:
    """All worker groups of a run, in the order in which they are started."""

    groups: tuple[WorkerGroup, ...]

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
    """
    trainer, actors, policies = config.trainer, config.actors, config.policies
    groups = [WorkerGroup("trainer", 1, trainer.cpus, trainer.max_restarts)]
    if config.inference == "remote":
        groups.append(WorkerGroup("policy", policies.count, policies.cpus, policies.max_restarts))
    groups.append(WorkerGroup("actor", actors.count, actors.cpus, actors.max_restarts))
    groups += [
        WorkerGroup(kind, extra.count, 1, extra.max_restarts) for kind, extra in config.extra_workers.items()
    ]
    return Plan(tuple(groups))
