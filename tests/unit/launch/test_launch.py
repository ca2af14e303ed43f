"""Plans are values."""

from __future__ import annotations

from hpc_marl.config import (
    ActorGroupConfig,
    ClusterConfig,
    ExperimentConfig,
    ExtraGroupConfig,
    PolicyGroupConfig,
)
from hpc_marl.launch import make_plan


def test_the_plan_names_every_worker() -> None:
    config = ExperimentConfig(
        inference="remote",
        actors=ActorGroupConfig(count=3, cpus=2, max_restarts=7),
        policies=PolicyGroupConfig(count=2),
        extra_workers={"monitor": ExtraGroupConfig(worker_class="a.b:C")},
    )
    plan = make_plan(config)
    assert plan.worker_names == [
        "trainer/0", "policy/0", "policy/1", "actor/0", "actor/1", "actor/2", "monitor/0",
    ]  # fmt: skip
    assert plan.group_of("actor/2").cpus == 2 and plan.group_of("actor/2").max_restarts == 7
    assert not any(name.startswith("policy") for name in make_plan(ExperimentConfig()).worker_names)


def test_without_slurm_many_actors_share_a_task_and_what_they_have_imported() -> None:
    def sizes(cluster: ClusterConfig, **actors: int) -> list[int]:
        plan = make_plan(ExperimentConfig(cluster=cluster, actors=ActorGroupConfig(count=100, **actors)))
        return [len(slot.workers) for slot in plan.jobs[1].slots]

    assert sizes(ClusterConfig()) == [64, 36]
    assert sizes(ClusterConfig(kind="slurm")) == sizes(ClusterConfig(node_cpus=16)) == 12 * [8] + [4]
    assert (
        sizes(ClusterConfig(), per_task=40) == sizes(ClusterConfig(kind="slurm"), per_task=40) == [40, 40, 20]
    )
