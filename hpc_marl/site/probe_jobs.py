"""The jobs of a doctor's visit: one probe on a node of each kind, submitted as a run's jobs are."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ClusterConfig
from hpc_marl.errors import LaunchError
from hpc_marl.launch.plan import Job, Plan, Slot
from hpc_marl.launch.sbatch_script import Submission, make_submissions, script_text
from hpc_marl.launch.slurm_commands import run_command, user_name
from hpc_marl.launch.slurm_queue import SQUEUE_FORMAT, QueueRow, parse_squeue
from hpc_marl.launch.slurm_submit import submit_script
from hpc_marl.site.exchange import LOGIN

_EXTRA_S = 180.0  # the visit itself, once the last probe runs
_MARGIN_S = 60.0  # Slurm counts in minutes
_FIRST_QUERY_S, _LAST_QUERY_S = 2.0, 15.0
_GONE_S = 20.0


@dataclass(frozen=True)
class Kind:
    """A kind of node that runs use.

    Attributes:
        name: of the probe, such as `cpu`.
        role: `core` or `actors`: whose directives its job gets.
        partition: None for Slurm's default.
        constraint: features of its nodes.
        gpus: to ask for: 0 or 1.
    """

    name: str
    role: str
    partition: str | None
    constraint: str | None
    gpus: int


def node_kinds(plan: Plan, cluster: ClusterConfig) -> list[Kind]:
    """Return the kinds of node that the plan's jobs and the profile name, each once."""
    wanted = [(job.role, job.partition, job.constraint, min(job.gpus, 1)) for job in plan.jobs]
    # Placement and devices change from run to run; the profile is right for all, or it is not.
    if not any(gpus for *_, gpus in wanted) and cluster.gpu_partition:
        wanted.append(("core", cluster.gpu_partition, None, 1))
    if all(gpus for *_, gpus in wanted) and cluster.cpu_partition:
        wanted.append(("actors", cluster.cpu_partition, None, 0))
    kinds: dict[tuple[str | None, str | None, int], Kind] = {}
    for role, partition, constraint, gpus in wanted:
        name = (partition or "default").split(",")[0] + ("-gpu" if gpus and not partition else "")
        names = [kind.name for kind in kinds.values()]
        while name in names:
            name += "2"
        kinds.setdefault((partition, constraint, gpus), Kind(name, role, partition, constraint, gpus))
    return list(kinds.values())


class ProbeJobs:
    """Submits probes, tells what becomes of them, and ends them all.

    Args:
        cluster: the site.
        directory: of the visit.
        patience_s: how long probes may wait in the queue.
    """

    def __init__(self, cluster: ClusterConfig, directory: RunDirectory, patience_s: float) -> None:
        self._cluster = cluster
        self._directory = directory
        self._patience_s = patience_s
        self._ids: dict[str, str] = {}
        self._unnumbered = ""
        self._rows: dict[str, QueueRow] = {}
        self._ask_at = 0.0
        self._interval_s = _FIRST_QUERY_S

    def submit(self, kind: Kind, peers: Sequence[str], exclude: str, longest_s: float) -> None:
        """Submit the probe of a kind of node.

        Args:
            kind: where to.
            peers: further probes, which it calls.
            exclude: a node that it must not run on; "": any will do.
            longest_s: the partition's time limit.

        Raises:
            LaunchError: Slurm refused the job.
            ConfigError: a directive of the site's cannot stand in a script.
        """
        cluster = self._cluster
        seconds = max(_MARGIN_S, min(self._patience_s + _EXTRA_S, longest_s - _MARGIN_S))
        if exclude:
            cluster = dataclasses.replace(cluster, directives={**cluster.directives, "exclude": exclude})
        job = Job(
            role=kind.role,
            slots=(Slot(0, ()),),
            is_array=False,
            task_per_node=True,
            cpus=1,
            gpus=kind.gpus,
            memory_mb=None,
            time_limit=str(int(seconds // 60) + 1),
            partition=kind.partition,
            constraint=kind.constraint,
        )
        arguments = [
            "-m",
            "hpc_marl.site.probe",
            "--run-dir",
            str(self._directory.path),
            "--name",
            kind.name,
        ]
        arguments += ["--peers", ",".join([LOGIN, *peers]), "--seconds", f"{seconds:g}"]
        # The same null as in a run of this site: all but loopback.
        arguments += ["--interface", cluster.interface or "all"]
        if cluster.port_range:
            arguments += ["--ports", *map(str, cluster.port_range)]
        text = script_text(
            Submission((job,)), cluster, self._directory, working_directory=os.getcwd(), arguments=arguments
        )
        # An interrupt may come when sbatch has submitted the job and nobody knows its number yet.
        self._unnumbered = f"{self._directory.experiment_name}.{self._directory.trial_name}.{kind.role}"
        self._ids[kind.name] = submit_script(text, self._directory.job_scripts)
        self._unnumbered = ""

    def row(self, name: str) -> QueueRow | None:
        """Return what the queue says of a probe's job, asking it when it is time to; None: it does not know it."""
        if time.monotonic() >= self._ask_at:
            self._query()
        return self._rows.get(self._ids[name])

    def _query(self) -> None:
        ids = ",".join(self._ids.values())
        answer = run_command(["squeue", "-h", "-t", "all", "-j", ids, "-o", SQUEUE_FORMAT])
        if answer.is_ok or "Invalid job id" in answer.error:
            self._rows = parse_squeue(answer.output)
        self._ask_at = time.monotonic() + self._interval_s
        self._interval_s = min(1.5 * self._interval_s, _LAST_QUERY_S)

    def output_of(self, name: str) -> str | None:
        """Return what a probe's job has printed, None where its output file is not to be seen."""
        job_id = self._ids[name]
        for path in _listed(self._directory.logs / "jobs"):
            if path.name.endswith(f".{job_id}.out"):
                return path.read_text(encoding="utf-8", errors="replace").strip()
        return None

    def cancel(self) -> None:
        """End all jobs of the visit and wait until the queue agrees, for some seconds at most."""
        if self._unnumbered:
            run_command(["scancel", f"--user={user_name()}", f"--name={self._unnumbered}"])
        if not self._ids:
            return
        run_command(["scancel", *self._ids.values()])
        deadline = time.monotonic() + _GONE_S
        self._interval_s = 1.0
        while time.monotonic() < deadline:
            self._query()
            if all(row.state is None or row.state.is_final for row in self._rows.values()):
                return
            time.sleep(self._interval_s)


def checked_scripts(
    plan: Plan, cluster: ClusterConfig, directory: RunDirectory, max_array_size: int
) -> Iterable[tuple[str, str]]:
    """Have sbatch check the scripts that the run itself would submit; yield (roles, what sbatch said or "")."""
    slots = [slot.index for job in plan.jobs for slot in job.slots]
    for submission in make_submissions(plan, slots, max_array_size):
        roles = "+".join(job.role for job in submission.jobs)
        text = script_text(submission, cluster, directory, working_directory=os.getcwd())
        answer = run_command(["sbatch", "--test-only"], script=text)
        yield roles, "" if answer.is_ok else (answer.error or "it said nothing")


def _listed(directory: Path) -> list[Path]:
    """List a directory anew: on NFS, opening it is what makes new files appear."""
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in entries]
    except OSError as error:
        raise LaunchError(f"cannot list {directory}: {error.strerror}") from error
