"""What squeue and sacct print, read."""

from __future__ import annotations

from datetime import datetime

import pytest

from hpc_marl.base.jobs import JobState
from hpc_marl.launch.slurm_jobs import max_array_size
from hpc_marl.launch.slurm_queue import (
    expand_job_id,
    expand_nodes,
    job_state,
    parse_active,
    parse_sacct,
    parse_squeue,
)


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("PENDING PREEMPTED REQUEUED REQUEUE_HOLD SPECIAL_EXIT", JobState.PENDING),
        ("RUNNING CONFIGURING COMPLETING COMPLETI+ SUSPENDED STAGE_OUT", JobState.RUNNING),
        ("COMPLETED COMPLETED+", JobState.COMPLETED),
        ("FAILED OUT_OF_MEMORY OUT_OF_ME+", JobState.FAILED),
        ("CANCELLED CANCELLED+ REVOKED", JobState.CANCELLED),
        ("TIMEOUT DEADLINE", JobState.TIMEOUT),
        ("NODE_FAIL BOOT_FAIL", JobState.NODE_FAIL),
        ("COMPLET+ ELSEWHERE +", None),
    ],
)
def test_states(words: str, state: JobState | None) -> None:
    assert {word: job_state(word) for word in words.split()} == dict.fromkeys(words.split(), state)
    assert job_state("CANCELLED by 0") is JobState.CANCELLED and job_state("") is None


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("123", ["123"]),
        ("123_4", ["123_4"]),
        ("123_[5-7%2]", ["123_5", "123_6", "123_7"]),
        ("123_[0,2-3]", ["123_0", "123_2", "123_3"]),
        ("123+1", ["123+1"]),
        ("123.batch", []),
        ("JOBID", []),
        ("123_[0-", []),
    ],
)
def test_job_ids(text: str, ids: list[str]) -> None:
    assert expand_job_id(text) == ids


def test_nodes() -> None:
    assert expand_nodes("a[01-03,7],b-ib[1-2],c") == ["a01", "a02", "a03", "a7", "b-ib1", "b-ib2", "c"]
    assert expand_nodes("") == [] and expand_nodes("cpu1") == ["cpu1"]


def test_squeue() -> None:
    rows = parse_squeue(
        "slurm_load_jobs error: something\n"
        "16_0|RUNNING|None|cpu1|2026-01-01T10:00:00|lab|exp.seed1.actors\n"
        "16_[1-2%1]|PENDING|JobArrayTaskLimit||N/A|lab|exp.seed1.actors\n"
        "21+1|PENDING|Resources||2026-01-02T10:00:00|lab|odd|name\n"
        "22|COMPLETED|None|gpu[1-2]|2026-01-01T10:00:00|lab|x\n"
    )
    assert sorted(rows) == ["16_0", "16_1", "16_2", "21+1", "22"]
    assert rows["16_0"].nodes == "cpu1" and rows["16_0"].reason == rows["16_0"].expected_start == ""
    assert rows["16_2"].state is JobState.PENDING and rows["16_2"].reason == "JobArrayTaskLimit"
    assert rows["16_2"].expected_start == ""
    assert rows["21+1"].expected_start == "2026-01-02T10:00:00" and rows["21+1"].name == "odd|name"
    assert rows["22"].nodes == "gpu[1-2]" and rows["22"].state is JobState.COMPLETED
    assert parse_squeue("") == {}


def test_sacct() -> None:
    rows = parse_sacct(
        "15|CANCELLED by 0|gpu1|lab|exp.seed1.core\n"
        "16_[1-2%1]|PENDING|None assigned|lab|exp.seed1.actors\n"
        "21+0|OUT_OF_MEMORY|gpu1|lab|exp.seed1.core\n"
        "half|line\n"
    )
    assert {job_id: row.state for job_id, row in rows.items()} == {
        "15": JobState.CANCELLED,
        "16_1": JobState.PENDING,
        "16_2": JobState.PENDING,
        "21+0": JobState.FAILED,
    }
    assert rows["16_1"].nodes == "" and rows["15"].nodes == "gpu1"


def test_jobs_that_came_into_the_queue_since() -> None:
    listed = (
        "7_[0-3]|2026-01-01T10:00:00|a.b.actors\n"
        "8+0|2026-01-01T10:00:00|a.b.core\n"
        "6|2026-01-01T09:00:00|a.b.core\n"
        "9|N/A|a.b.core\n"
    )
    assert parse_active(listed, "a.b.core", datetime(2026, 1, 1, 10, 0, 30)) == {"8"}
    assert parse_active(listed, "a.b.actors", datetime(2026, 1, 1, 10, 0, 30)) == {"7"}


def test_max_array_size() -> None:
    assert max_array_size("A = 1\nMaxArraySize            = 2001\n") == 2001
    assert max_array_size("") == max_array_size("MaxArraySize = (null)") == 1001
