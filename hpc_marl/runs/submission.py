"""controller=job, --dry-run, --prepare: hand a trial to Slurm, show what would be, or fit out a job of one's own."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from hpc_marl.base.launch_record import JobRecord, add_job, read_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.control.lease import ControllerLease
from hpc_marl.errors import ConfigError
from hpc_marl.launch import make_plan
from hpc_marl.runs.run_parts import make_job_service
from hpc_marl.runs.session import Outcome, prepare, root_flag, run_root


@dataclass(frozen=True)
class Submitted:
    """A trial in the queue.

    Attributes:
        outcome: without a verdict.
        core_job_id: the job that ends last.
    """

    outcome: Outcome
    core_job_id: str


def submit_experiment(config: ExperimentConfig, after: str = "") -> Submitted:
    """Submit all jobs of a trial, print its handle and return; its controller runs inside the core job.

    Args:
        config: the experiment.
        after: a job that must have ended before this trial begins; "" for none.

    Raises:
        ConfigError: the trial cannot be started as asked for.
        LaunchError: the queue refused a job; those it has accepted are cancelled.
    """
    config, directory, record = prepare(config)
    plan = make_plan(config)
    with RunContext.open(directory, record.run_uuid, interface=None) as context:
        lease = ControllerLease(context, "session")
        lease.acquire(0.0)  # the deputy of a core job that starts at once waits until everything is submitted
        dependency = f"afterany:{after}" if after else ""
        jobs = make_job_service(config, plan, directory, core_dependency=dependency)
        slots = [slot.index for job in plan.jobs for slot in job.slots]
        is_submitted = False
        try:
            jobs.submit(slots)
            is_submitted = True
        finally:
            if not is_submitted:
                jobs.cancel(slots)
            jobs.close()
            lease.release()
    records = read_launch_record(directory).jobs
    _print_handle(directory, [f"{one.job_id} ({one.role})" for one in records])
    return Submitted(Outcome(None, directory, None), records[0].job_id.split("+")[0])


def dry_run_experiment(config: ExperimentConfig) -> Outcome:
    """Print the plan and every sbatch script, each checked by `sbatch --test-only`; submit and write nothing.

    Raises:
        ConfigError: the cluster is not a Slurm cluster.
    """
    if config.cluster.kind != "slurm":
        raise ConfigError("--dry-run shows what would be submitted: choose a Slurm cluster by cluster=<site>")
    from hpc_marl.launch.slurm_dry_run import dry_run

    name = config.trial_name or f"seed{config.seed}"
    root = run_root(config)
    config = dataclasses.replace(config, trial_name=name, root=root)
    directory = RunDirectory(root, config.experiment_name, name)
    text, is_accepted = dry_run(config, make_plan(config), directory)
    sys.stdout.write(text)
    if not is_accepted:
        raise ConfigError("sbatch would refuse a job: see above")
    return Outcome(None, directory, None)


def prepare_in_job(config: ExperimentConfig, environment: Mapping[str, str] = os.environ) -> Outcome:
    """Make the run directory of a job that the user wrote and that runs now; print what its script needs.

    The script starts the host processes itself: `... -m hpc_marl.workers host --run-dir DIR --slots SLOTS`. A requeued
    job gets the same run again.

    Args:
        config: the experiment; its trial_name must not change when the job is requeued.
        environment: of the job.

    Raises:
        ConfigError: this is not a job, or its placement is not one that a single job can have.
    """
    job_id, name = environment.get("SLURM_JOB_ID"), environment.get("SLURM_JOB_NAME", "")
    if job_id is None or config.cluster.kind != "slurm" or config.trial_name is None:
        raise ConfigError(
            "--prepare is for a script of your own inside a Slurm job: give cluster=<site> and trial_name=NAME"
        )
    if config.cluster.placement == "split":
        raise ConfigError("--prepare: choose cluster.placement=hetjob or packed; split has several jobs")
    plan = make_plan(config)
    directory = RunDirectory(run_root(config), config.experiment_name, config.trial_name)
    if not (int(environment.get("SLURM_RESTART_COUNT", 0)) and directory.launch_file.exists()):
        _, directory, _ = prepare(dataclasses.replace(config, controller="job"))
        for component, job in enumerate(plan.jobs):
            component_id = f"{job_id}+{component}" if len(plan.jobs) > 1 else job_id
            slots = [slot.index for slot in job.slots]
            add_job(directory, JobRecord(job_id=component_id, role=job.role, slots=slots, name=name))
    lines = [f"RUN_DIR={shlex.quote(str(directory.path))}"]
    for job in plan.jobs:
        lines.append(f"{job.role.upper()}_SLOTS={','.join(str(slot.index) for slot in job.slots)}")
    sys.stdout.write("\n".join(lines) + "\n")
    return Outcome(None, directory, None)


def _print_handle(directory: RunDirectory, jobs: list[str]) -> None:
    name, root = f"{directory.experiment_name}/{directory.trial_name}", root_flag(directory)
    sys.stdout.write(
        f"{name}: submitted {', '.join(jobs)}\n"
        f"  directory   {directory.path}\n"
        f"  look        hpc-marl status {name}{root}\n"
        f"  follow      hpc-marl logs -f {name}{root}\n"
        f"  drive       hpc-marl attach {name}{root}\n"
        f"  end         hpc-marl stop {name}{root}\n"
    )
