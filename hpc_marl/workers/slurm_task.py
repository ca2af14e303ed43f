"""What a process knows of the Slurm task that it is: job, node, time left; and how to have the job run again."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

_log = logging.getLogger(__name__)

# Set by the local executor, whose nodes are simulated.
NODE_VARIABLE = "HPC_MARL_NODE"
JOB_VARIABLE = "HPC_MARL_JOB_ID"
TIME_LIMIT_VARIABLE = "HPC_MARL_TIME_LIMIT_S"
LEAD_VARIABLE = "HPC_MARL_SIGNAL_LEAD_S"
_REQUEUE_TIMEOUT_S = 30.0
_NOTICE_EARLY_S = 60.0  # Slurm's notice before a time limit comes up to so much early
NO_LIMIT_S = -1.0


@dataclass(frozen=True)
class SlurmTask:
    """One task of one job of Slurm or of the local executor; outside both, `job_id` is "".

    Attributes:
        job_id: as scancel takes it: `123`, or `123_4` for an element of an array.
        is_slurm: whether Slurm runs it.
        node: its name in the queue.
        restarts: how often the job was requeued.
        is_first: whether it is the task that speaks for the job.
        cpus: given to the task.
        end_s: when the job's time is over, by this machine's monotonic clock; None: no limit known.
        lead_s: how long before that it must save and go.
    """

    job_id: str
    is_slurm: bool
    node: str
    restarts: int
    is_first: bool
    cpus: int
    end_s: float | None
    lead_s: float

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str] = os.environ) -> SlurmTask:
        """Read what Slurm says in the environment."""
        array, element = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        in_slurm = f"{array}_{element}" if array and element else environment.get("SLURM_JOB_ID", "")
        left_s: float | None = None
        if "SLURM_JOB_END_TIME" in environment:
            left_s = float(environment["SLURM_JOB_END_TIME"]) - time.time()
        elif TIME_LIMIT_VARIABLE in environment:
            left_s = float(environment[TIME_LIMIT_VARIABLE])
        return cls(
            job_id=in_slurm or environment.get(JOB_VARIABLE, ""),
            is_slurm=bool(in_slurm),
            node=environment.get("SLURMD_NODENAME") or environment.get(NODE_VARIABLE) or socket.gethostname(),
            restarts=int(environment.get("SLURM_RESTART_COUNT", 0)),
            is_first=int(environment.get("SLURM_PROCID", 0)) == 0,
            cpus=int(environment.get("SLURM_CPUS_PER_TASK", 0)) or len(os.sched_getaffinity(0)),
            end_s=None if left_s is None else time.monotonic() + left_s,
            lead_s=float(environment.get(LEAD_VARIABLE, 60.0)),
        )

    def time_left_s(self) -> float:
        """Return the seconds that the job has left, -1 where no limit is known."""
        return NO_LIMIT_S if self.end_s is None else max(self.end_s - time.monotonic(), 0.0)

    def ends_soon(self) -> bool:
        """Whether it is time to save and go: also where the queue's signal got lost."""
        return self.end_s is not None and self.end_s - time.monotonic() < self.lead_s

    def reason_to_end(self) -> str:
        """Return what a notice from the queue means now: TIMEOUT or PREEMPTED."""
        near_end = self.end_s is not None and self.time_left_s() < self.lead_s + _NOTICE_EARLY_S
        return "TIMEOUT" if near_end else "PREEMPTED"

    def requeue(self) -> None:
        """Have Slurm run the job again, once all it has to do now is done; it may end this process at once."""
        if not self.is_slurm or not self.is_first:
            return
        try:
            done = subprocess.run(
                ["scontrol", "requeue", self.job_id],
                capture_output=True,
                text=True,
                timeout=_REQUEUE_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.error("job %s was not requeued: %s", self.job_id, error)
            return
        if done.returncode:
            _log.error("job %s was not requeued: %s", self.job_id, done.stderr.strip())
