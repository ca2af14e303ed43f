"""What a process reads of the task that it is, and which slot it fills."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from hpc_marl.errors import ConfigError
from hpc_marl.workers.__main__ import own_slot
from hpc_marl.workers.slurm_task import NO_LIMIT_S, SlurmTask


def test_outside_any_queue_there_is_no_job() -> None:
    task = SlurmTask.of_this_process({})
    assert (task.job_id, task.is_slurm, task.restarts, task.is_first) == ("", False, 0, True)
    assert task.node == socket.gethostname() and task.cpus == len(os.sched_getaffinity(0))
    assert task.time_left_s() == NO_LIMIT_S and not task.ends_soon()


def test_a_task_of_an_array_of_slurm() -> None:
    task = SlurmTask.of_this_process(
        {
            "SLURM_JOB_ID": "812",
            "SLURM_ARRAY_JOB_ID": "810",
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURMD_NODENAME": "cpu7",
            "SLURM_RESTART_COUNT": "3",
            "SLURM_PROCID": "1",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_JOB_END_TIME": str(int(time.time()) + 3600),
        }
    )
    assert task.job_id == "810_2" and task.is_slurm and task.node == "cpu7"
    assert task.restarts == 3 and not task.is_first and task.cpus == 4
    assert 3500 < task.time_left_s() <= 3601 and not task.ends_soon()
    assert task.reason_to_end() == "PREEMPTED"


def test_a_job_ends_soon_when_less_than_the_lead_is_left() -> None:
    environment = {"SLURM_JOB_ID": "812", "SLURM_JOB_END_TIME": str(time.time() + 100)}
    assert SlurmTask.of_this_process(environment | {"HPC_MARL_SIGNAL_LEAD_S": "120"}).ends_soon()
    assert not SlurmTask.of_this_process(environment | {"HPC_MARL_SIGNAL_LEAD_S": "20"}).ends_soon()
    late = SlurmTask.of_this_process({"SLURM_JOB_ID": "812", "SLURM_JOB_END_TIME": "1"})
    assert late.time_left_s() == 0.0 and late.reason_to_end() == "TIMEOUT"


def test_the_local_executor_says_the_same_by_variables_of_its_own() -> None:
    task = SlurmTask.of_this_process(
        {"HPC_MARL_JOB_ID": "local-2_1", "HPC_MARL_NODE": "node1", "HPC_MARL_TIME_LIMIT_S": "60"}
    )
    assert (task.job_id, task.is_slurm, task.node) == ("local-2_1", False, "node1")
    assert 0 < task.time_left_s() <= 60


def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int = 0) -> Path:
    """Put an scontrol on the PATH that notes what it was told."""
    script = tmp_path / "scontrol"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/told\necho "Invalid job id" >&2\nexit {exit_code}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path / "told"


def test_only_the_first_task_of_a_job_of_slurm_has_it_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = commands(tmp_path, monkeypatch)
    SlurmTask.of_this_process({"SLURM_JOB_ID": "812", "SLURM_PROCID": "1"}).requeue()
    SlurmTask.of_this_process({"HPC_MARL_JOB_ID": "local-1"}).requeue()
    assert not told.exists()
    SlurmTask.of_this_process({"SLURM_JOB_ID": "812"}).requeue()
    assert told.read_text() == "requeue 812\n"


def test_a_refused_requeue_is_only_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commands(tmp_path, monkeypatch, exit_code=1)
    SlurmTask.of_this_process({"SLURM_JOB_ID": "812"}).requeue()
    assert "812 was not requeued: Invalid job id" in caplog.text
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    SlurmTask.of_this_process({"SLURM_JOB_ID": "813"}).requeue()
    assert "813 was not requeued" in caplog.text


@pytest.mark.parametrize(
    ("environment", "slot"),
    [
        ({}, 2),
        ({"SLURM_PROCID": "1"}, 5),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_PROCID": "0"}, 7),
    ],
)
def test_array_index_or_rank_say_which_slot_a_task_fills(environment: dict[str, str], slot: int) -> None:
    assert own_slot("2,5,7", environment) == slot


def test_a_task_without_a_slot_says_so() -> None:
    with pytest.raises(ConfigError, match="at least 4 of them"):
        own_slot("2,5,7", {"SLURM_PROCID": "3"})
    with pytest.raises(ConfigError, match="expected numbers"):
        own_slot("2,x", {})
