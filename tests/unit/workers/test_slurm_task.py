"""What a process reads from the environment of its Slurm task."""

from __future__ import annotations

import pytest

from hpc_marl.workers.slurm_task import NO_LIMIT_S, SlurmTask

JOB = {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1"}


@pytest.mark.parametrize(
    ("environment", "job_id"),
    [
        ({}, ""),
        (JOB, "12"),
        (JOB | {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"}, "11_3"),
        ({"HPC_MARL_JOB_ID": "7"}, "7"),
    ],
)
def test_the_job_is_named_as_scancel_takes_it(environment: dict[str, str], job_id: str) -> None:
    assert SlurmTask.of_this_process(environment).job_id == job_id


@pytest.mark.parametrize(
    ("limit_s", "lead_s", "is_due", "reason"),
    [
        (3600, 120, False, "PREEMPTED"),  # what comes far from the end is no notice of the end
        (170, 120, False, "TIMEOUT"),  # Slurm sends it up to a minute early
        (100, 120, True, "TIMEOUT"),
    ],
)
def test_why_a_job_ends_says_the_time_that_is_left(
    limit_s: int, lead_s: int, is_due: bool, reason: str
) -> None:
    limits = {"HPC_MARL_TIME_LIMIT_S": str(limit_s), "HPC_MARL_SIGNAL_LEAD_S": str(lead_s)}
    task = SlurmTask.of_this_process(JOB | limits)
    assert (task.ends_soon(), task.reason_to_end()) == (is_due, reason)
    assert limit_s - 60 < task.time_left_s() <= limit_s


def test_without_a_limit_every_notice_is_a_preemption() -> None:
    task = SlurmTask.of_this_process(JOB)
    assert (task.ends_soon(), task.reason_to_end(), task.time_left_s()) == (False, "PREEMPTED", NO_LIMIT_S)
