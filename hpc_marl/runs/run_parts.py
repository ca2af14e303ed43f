"""From an experiment to the parts that drive it: views, places, the job service, limits."""

from __future__ import annotations

import dataclasses

from hpc_marl.base.early_host import EarlyHost
from hpc_marl.base.jobs import JobService
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.control.controller import Controller
from hpc_marl.control.slot_jobs import Patience
from hpc_marl.control.slot_view import SlotSpec
from hpc_marl.control.worker_view import WorkerView
from hpc_marl.errors import ConfigError
from hpc_marl.launch import LocalJobs, Plan

_FOR_EVER = 10**9
_REGISTRATION_S = 300.0  # a cold environment on a busy network file system takes minutes to import


def views_of(plan: Plan) -> list[WorkerView]:
    """Return a view of every worker of the plan, not yet launched."""
    return [
        WorkerView(name, group.max_restarts, group.cpus)
        for group in plan.groups
        for name in group.worker_names
    ]


def slot_specs(plan: Plan) -> list[SlotSpec]:
    """Return the plan's slots as the controller knows them."""
    return [
        SlotSpec(
            index=slot.index,
            role=job.role,
            workers=slot.workers,
            unit=(slot.index,) if job.is_array else tuple(one.index for one in job.slots),
            gpus={name: plan.group_of(name).gpus for name in slot.workers},
        )
        for job in plan.jobs
        for slot in job.slots
    ]


def with_actors(config: ExperimentConfig, count: int) -> ExperimentConfig:
    """Return the experiment with another number of actors.

    Raises:
        ConfigError: fewer than actors.min_actors, or than trainers.
    """
    least = max(config.actors.min_actors, config.trainer.count)
    if not isinstance(count, int) or count < least:
        raise ConfigError(f"actors={count}: at least {least} (actors.min_actors, and one for each trainer)")
    return dataclasses.replace(config, actors=dataclasses.replace(config.actors, count=count))


def make_job_service(
    config: ExperimentConfig,
    plan: Plan,
    directory: RunDirectory,
    *,
    core_dependency: str = "",
    early_host: EarlyHost | None = None,
) -> JobService:
    """Return what fills the slots: this machine's processes, or Slurm."""
    if config.cluster.kind == "local":
        return LocalJobs(config, plan, directory, early_host=early_host)
    from hpc_marl.launch.slurm_jobs import SlurmJobs  # submitit takes a moment to import

    return SlurmJobs(config, plan, directory, core_dependency=core_dependency)


def patience_of(config: ExperimentConfig) -> Patience:
    """Return the launcher's limits. A host counts as lost once its workers must have ended by themselves."""
    control, cluster = config.control, config.cluster
    is_local = cluster.kind == "local"
    return Patience(
        host_silence_s=control.orphan_grace_s * 1.2 + 5.0,
        ping_interval_s=control.orphan_grace_s / 4,
        registration_s=_REGISTRATION_S,
        request_s=control.request_timeout_s,
        max_resubmissions=cluster.max_resubmissions,
        core_away_s=_FOR_EVER if is_local else cluster.actor_grace_s,
        heard_lately_s=max(5.0, 4 * control.heartbeat_interval_s),
        rejoin_s=control.heartbeat_timeout_s,
    )


def all_left(spec: SlotSpec, controller: Controller) -> bool:
    """Whether nobody of a slot takes part any more."""
    views = [controller.workers.get(name) for name in spec.workers]
    return all(view is None or not view.is_wanted for view in views)
