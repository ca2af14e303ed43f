"""sacct: its odd fields, and all the ways in which it does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_marl.launch.accounting import ask_accounting, parse_sacct

# As Slurm 22.05 prints it with -D: a core job that was requeued, an array, a component of a heterogeneous job.
ANSWER = """\
7|REQUEUED|2026-01-02T00:00:00|2026-01-02T00:02:00|2026-01-02T00:12:00|600|00:00.000|2400||4G|billing=4,cpu=4,gres/gpu=1,mem=4G,node=1
7.0|CANCELLED|2026-01-02T00:02:00|2026-01-02T00:02:00|2026-01-02T00:12:00|600|10:00.000|2400|12345K||cpu=4,gres/gpu=1,mem=4G,node=1
7|COMPLETED|2026-01-02T00:12:00|2026-01-02T00:14:00|2026-01-02T00:24:00|600|1-00:00:30|2400||4G|billing=4,cpu=4,gres/gpu=1,mem=4G,node=1
7.batch|COMPLETED|2026-01-02T00:14:00|2026-01-02T00:14:00|2026-01-02T00:24:00|600|00:01.250|2400|2960K||cpu=4,mem=4G,node=1
7.extern|COMPLETED|2026-01-02T00:14:00|2026-01-02T00:14:00|2026-01-02T00:24:00|600|00:00:00|2400|0||billing=4,cpu=4,gres/gpu=1,mem=4G,node=1
7.0|COMPLETED|2026-01-02T00:14:00|2026-01-02T00:14:00|2026-01-02T00:24:00|600|09:00.000|2400|2G||cpu=4,gres/gpu=1,mem=4G,node=1
8_0|CANCELLED by 0|2026-01-02T00:00:00|2026-01-02T00:01:00|2026-01-02T00:11:00|600|02:00.500|1200||1000Mc|cpu=2,node=1
8_[1-3%2]|PENDING|2026-01-02T00:00:00|Unknown|Unknown|0|00:00:00|0||1000Mc|
123+0|TIMEOUT|2026-01-02T00:00:00|None|Unknown||INVALID|x||?|weird
sacct: something that is no row
"""


def test_lives_steps_and_odd_fields() -> None:
    first, second, element, waiting, component = parse_sacct(ANSWER)
    assert (first.job_id, first.state, first.queue_wait_s, first.cpu_s) == ("7", "REQUEUED", 120.0, 600.0)
    assert first.max_rss_mb == pytest.approx(12345 / 1024) and first.memory_mb == 4096 and first.gpus == 1
    assert (second.state, second.cpu_s, second.max_rss_mb) == ("COMPLETED", 86430.0, 2048.0)
    assert (element.job_id, element.state, element.memory_mb) == ("8_0", "CANCELLED", 1000.0)
    assert element.cpu_s == 120.5 and element.allocated_cpu_s == 1200 and element.max_rss_mb == 0
    assert (waiting.job_id, waiting.started, waiting.queue_wait_s) == ("8_[1-3%2]", None, None)
    assert (component.job_id, component.state, component.elapsed_s) == ("123+0", "TIMEOUT", 0.0)
    assert (component.cpu_s, component.memory_mb, component.gpus) == (0.0, 0.0, 0)


def fake_sacct(path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = path / "sacct"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")


def test_it_is_asked_once_for_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer").write_text(ANSWER)
    fake_sacct(tmp_path, monkeypatch, f'echo "$@" >>{tmp_path}/asked; cat {tmp_path}/answer')
    answer = ask_accounting(["7", "8", "123+0"])
    assert len(answer.lives) == 5 and not answer.problem
    assert (tmp_path / "asked").read_text() == (
        "-j 7,8,123+0 --parsable2 --noheader "
        "--format=JobID,State,Submit,Start,End,ElapsedRaw,TotalCPU,CPUTimeRAW,MaxRSS,ReqMem,AllocTRES -D\n"
    )


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (
            "echo 'Slurm accounting storage is disabled' >&2; exit 1",
            "sacct says: Slurm accounting storage is disabled",
        ),
        ("exit 0", "sacct knows none of the jobs"),
    ],
)
def test_no_accounts_are_a_stated_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    fake_sacct(tmp_path, monkeypatch, script)
    answer = ask_accounting(["7"])
    assert answer.lives == () and answer.problem == problem


def test_a_machine_without_sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_accounting(["7"]).problem == "there is no sacct here"
    assert ask_accounting([]).problem == "no job of Slurm"
