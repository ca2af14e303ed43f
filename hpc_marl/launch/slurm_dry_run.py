"""What a run would submit, as text, and what Slurm would say to it. Nothing is submitted and no file is written."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.launch.plan import Job, Plan
from hpc_marl.launch.sbatch_script import Submission, make_submissions, script_text
from hpc_marl.launch.slurm_commands import run_command
from hpc_marl.launch.slurm_jobs import max_array_size

_HEADER = ("job", "role", "slots", "workers of one slot", "CPUs", "GPUs", "memory", "time", "partition")


def dry_run(config: ExperimentConfig, plan: Plan, directory: RunDirectory) -> tuple[str, bool]:
    """Describe the jobs of a run and have `sbatch --test-only` check each.

    Args:
        config: of the experiment.
        plan: its jobs.
        directory: where the run would lie; need not exist.

    Returns:
        The text for the user, and whether Slurm would take every job; False also without Slurm.

    Raises:
        ConfigError: a directive or variable of the site's cannot stand in a script.
        LaunchError: Slurm takes no job arrays, and the plan has one.
    """
    has_slurm = shutil.which("sbatch") is not None
    answer = run_command(["scontrol", "show", "config"]) if has_slurm else None
    limit = max_array_size(answer.output if answer else "")
    slots = [slot.index for job in plan.jobs for slot in job.slots]
    submissions = make_submissions(plan, slots, limit, config.cluster.array_parallelism)
    parts = [
        f"{directory.experiment_name}/{directory.trial_name} in {directory.path}, placement {plan.placement}",
        job_table(plan),
    ]
    is_ok = has_slurm
    for number, submission in enumerate(submissions, 1):
        text = _script(submission, config, directory)
        parts.append(f"--- submission {number} of {len(submissions)}: {_title(submission)}\n{text}".rstrip())
        if has_slurm:
            said, is_accepted = _test_only(_script(submission, config, directory, with_dependency=False))
            parts.append(f"sbatch --test-only: {said}")
            is_ok = is_ok and is_accepted
    if not has_slurm:
        parts.append(
            "Slurm was not asked: there is no sbatch on PATH. On a login node each script is checked."
        )
    parts.append("Nothing was submitted.")
    return "\n\n".join(parts) + "\n", is_ok


def job_table(plan: Plan) -> str:
    """Return the plan's jobs as a table, with the sum of what they ask for."""
    rows = [_HEADER, *(_row(number, job) for number, job in enumerate(plan.jobs, 1))]
    cpus = sum(job.cpus * len(job.slots) for job in plan.jobs)
    gpus = sum(job.gpus * len(job.slots) for job in plan.jobs)
    return f"{_aligned(rows)}\nin all {cpus} CPUs and {gpus} GPUs"


def _row(number: int, job: Job) -> tuple[str, ...]:
    first, last = job.slots[0].index, job.slots[-1].index
    kinds = Counter(name.partition("/")[0] for name in job.slots[0].workers)
    return (
        str(number),
        job.role + (" (array)" if job.is_array else ""),
        str(first) if first == last else f"{first}-{last}",
        ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
        str(job.cpus),
        str(job.gpus),
        "partition's" if job.memory_mb is None else f"{job.memory_mb} MB",
        job.time_limit,
        job.partition or "Slurm's default",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _title(submission: Submission) -> str:
    roles = " and ".join(job.role for job in submission.jobs)
    kind = "heterogeneous job" if submission.is_heterogeneous else "job"
    if submission.jobs[0].is_array:
        kind = f"array of {len(submission.slots)} jobs"
    return f"{roles}, {kind}"


def _script(
    submission: Submission, config: ExperimentConfig, directory: RunDirectory, with_dependency: bool = True
) -> str:
    depends = with_dependency and submission.jobs[0].role == "actors"
    return script_text(
        submission,
        config.cluster,
        directory,
        working_directory=os.getcwd(),
        # Which id the core job gets is not known before.
        dependency="after:CORE_JOB" if depends else "",
    )


def _test_only(script: str) -> tuple[str, bool]:
    answer = run_command(["sbatch", "--test-only"], script=script)
    said = (answer.error or answer.output.strip() or "nothing").replace("sbatch: ", "")
    return said, answer.is_ok
