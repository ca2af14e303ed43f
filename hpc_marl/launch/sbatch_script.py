"""The sbatch scripts of a run: pure text. Nothing secret stands in them, only where the run's directory is.

Plan + slots --make_submissions--> Submission (one call of sbatch each) --script_text--> #!/bin/bash ...
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ClusterConfig
from hpc_marl.config.durations import duration_s, is_duration
from hpc_marl.errors import ConfigError, LaunchError
from hpc_marl.launch.plan import Job, Plan
from hpc_marl.launch.sbatch_directives import directive_lines, job_directives

# An array's slots stand in one argument of the command line, which Linux limits to 128 KiB.
_MAX_ARRAY_ELEMENTS = 10_000
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What sbatch leaves in the job's environment and srun would take for options of its own.
_UNSET = (
    "SLURM_CPU_BIND SLURM_CPU_BIND_LIST SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_VERBOSE",
    "SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE",
)


@dataclass(frozen=True)
class Submission:
    """What one call of sbatch submits.

    Attributes:
        jobs: one job or job array, or the components of a heterogeneous job; with the slots to be filled.
        parallelism: most elements of the job array that run at once; None: all.
    """

    jobs: tuple[Job, ...]
    parallelism: int | None = None

    @property
    def is_heterogeneous(self) -> bool:
        """Whether the jobs are components of one."""
        return len(self.jobs) > 1

    @property
    def slots(self) -> list[int]:
        """All slots that it fills."""
        return [slot.index for job in self.jobs for slot in job.slots]


def make_submissions(
    plan: Plan, slots: Iterable[int], max_array_size: int, array_parallelism: int | None = None
) -> list[Submission]:
    """Bundle slots into as few submissions as possible, the core job's first.

    Args:
        plan: which job a slot belongs to.
        slots: to be filled.
        max_array_size: Slurm's MaxArraySize: most elements of one job array.
        array_parallelism: most elements that run at once, which several arrays share; None: all.

    Raises:
        LaunchError: the plan has no such slot, or Slurm takes no job arrays.
    """
    wanted = set(slots)
    if unknown := wanted - {slot.index for job in plan.jobs for slot in job.slots}:
        raise LaunchError(f"the plan has no slots {sorted(unknown)}")
    jobs = [
        dataclasses.replace(job, slots=chosen)
        for job in plan.jobs
        if (chosen := tuple(slot for slot in job.slots if slot.index in wanted))
    ]
    if plan.placement == "hetjob":
        return [Submission(tuple(jobs))] if jobs else []
    return [submission for job in jobs for submission in _split_array(job, max_array_size, array_parallelism)]


def _split_array(job: Job, max_array_size: int, parallelism: int | None) -> list[Submission]:
    if not job.is_array:
        return [Submission((job,))]
    if max_array_size < 1:
        raise LaunchError(
            "this Slurm takes no job arrays (MaxArraySize=0): use cluster.placement=packed or hetjob"
        )
    size = min(max_array_size, _MAX_ARRAY_ELEMENTS)
    starts = range(0, len(job.slots), size)
    share = None if parallelism is None else max(1, parallelism // len(starts))
    return [
        Submission((dataclasses.replace(job, slots=job.slots[start : start + size]),), share)
        for start in starts
    ]


def script_text(
    submission: Submission,
    cluster: ClusterConfig,
    directory: RunDirectory,
    *,
    working_directory: str,
    dependency: str = "",
    arguments: Sequence[str] = (),
) -> str:
    """Return the script that `sbatch` gets.

    Args:
        submission: the jobs and slots.
        cluster: the site.
        directory: of the run.
        working_directory: the jobs' working directory, where user modules are found.
        dependency: as for `sbatch --dependency`; "" for none.
        arguments: of the interpreter in every task; empty: those that make it the host process of its slot.

    Raises:
        ConfigError: a directive or variable of the site's cannot stand in a script.
    """
    directives = [
        job_directives(
            job,
            cluster,
            directory,
            working_directory=working_directory,
            dependency=dependency,
            parallelism=submission.parallelism,
            component=i if submission.is_heterogeneous else None,
        )
        for i, job in enumerate(submission.jobs)
    ]
    lines = ["#!/bin/bash", *directive_lines(directives[0])]
    for component in directives[1:]:
        lines += ["#SBATCH hetjob", *directive_lines(component)]
    times = [str(component["time"]) for component in directives if "time" in component]
    lines += ["", *cluster.setup, *_environment_lines(cluster, times), ""]
    commands = [
        _srun(
            job,
            cluster,
            arguments or _host_arguments(job, directory),
            directives[i].get("cpus-per-task"),
            i if len(directives) > 1 else None,
        )
        for i, job in enumerate(submission.jobs)
    ]
    if not submission.is_heterogeneous:
        return "\n".join([*lines, *commands, ""])
    lines += [f"{commands[0]} &", "first=$!", *(f"{command} &" for command in commands[1:])]
    return "\n".join([*lines, 'wait "$first"', "status=$?", "wait", 'exit "$status"', ""])


def _environment_lines(cluster: ClusterConfig, times: Iterable[str]) -> list[str]:
    lines = ["export PYTHONUNBUFFERED=1"]
    lines.append(f"export {' '.join(f'{name}=1' for name in _THREAD_VARIABLES)}")
    # The host process goes by the clock too, because a signal can get lost; only since 23.11 Slurm tells the job's end.
    lines.append(f"export HPC_MARL_SIGNAL_LEAD_S={cluster.signal_lead_s}")
    if limits := [duration_s(time) for time in times if is_duration(time)]:
        lines.append(f"export HPC_MARL_TIME_LIMIT_S={min(limits):.0f}")
    lines += [_export(name, value) for name, value in cluster.environment.items()]
    return [*lines, *(f"unset {names}" for names in _UNSET)]


def _export(name: str, value: Any) -> str:
    if not _VARIABLE.fullmatch(str(name)):
        raise ConfigError(
            f"cluster.environment: {name!r} cannot name a variable; use letters, digits and _, and begin with no digit"
        )
    return f"unset {name}" if value is None else f"export {name}={shlex.quote(str(value))}"


def _host_arguments(job: Job, directory: RunDirectory) -> list[str]:
    slots = ",".join(str(slot.index) for slot in job.slots)
    return ["-m", "hpc_marl.workers", "host", "--run-dir", str(directory.path), "--slots", slots]


def _srun(
    job: Job,
    cluster: ClusterConfig,
    arguments: Sequence[str],
    cpus: str | bool | None,
    het_group: int | None,
) -> str:
    options = [] if het_group is None else [f"--het-group={het_group}"]
    # Not --unbuffered: it makes the output a terminal, which programs then draw on. PYTHONUNBUFFERED does without.
    options.append("--cpu-bind=none")
    if len(job.slots) > 1 and not job.is_array:
        # Only whole jobs can be filled anew: a core that has lost a task ends and is submitted again. Actors that are
        # left go on without.
        options.append(f"--kill-on-bad-exit={int(job.role == 'core')}")
    prefix = ""
    if cpus is not None:
        # Since 22.05 srun does not inherit it from sbatch; the variable is for those that a task starts itself.
        prefix = f"SRUN_CPUS_PER_TASK={cpus} "
        options.append(f"--cpus-per-task={cpus}")
    if het_group and not job.gpus:
        # Else its tasks inherit the numbers of the first component's GPUs, which are others' on their nodes.
        prefix += "CUDA_VISIBLE_DEVICES= "
    # A site's interpreter may be a command, such as `apptainer exec image.sif python`.
    python = cluster.python or shlex.quote(sys.executable)
    command = shlex.join(["srun", *options, *cluster.srun_args])
    return f"{prefix}{command} \\\n    {python} {shlex.join(arguments)}"
