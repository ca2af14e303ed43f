"""The dry run shows what would be submitted and what Slurm says to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.launch import make_plan
from hpc_marl.launch.slurm_dry_run import dry_run, job_table
from tests.unit.launch.slurm_fakes import FakeSlurm, experiment

TABLE = """\
job  role            slots  workers of one slot  CPUs  GPUs  memory   time      partition
1    core            0      1 trainer            4     1     4000 MB  24:00:00  gpu
2    actors (array)  1-3    2 actor              4     0     1000 MB  24:00:00  Slurm's default
in all 16 CPUs and 1 GPUs"""


def test_every_script_is_shown_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    accept = "cat > script; echo 'sbatch: Job 23 to start at 2026-01-01T10:00:00 on nodes gpu1' >&2"
    slurm.says("sbatch", accept)
    config = experiment()
    run = RunDirectory(tmp_path / "runs", "lab", "seed1")
    text, is_ok = dry_run(config, make_plan(config), run)
    assert is_ok and TABLE in text and "lab/seed1" in text
    assert text.count("#!/bin/bash") == 2 and "#SBATCH --dependency=after:CORE_JOB" in text
    assert text.count("sbatch --test-only: Job 23 to start at 2026-01-01T10:00:00 on nodes gpu1") == 2
    assert slurm.calls("sbatch") == ["--test-only"] * 2
    checked = (tmp_path / "slurm" / "sbatch" / "script").read_text()
    assert "--array=0-2" in checked and "dependency" not in checked
    assert text.endswith("Nothing was submitted.\n") and not run.path.exists()


def test_a_refusal_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    slurm.says("sbatch", "echo 'allocation failure: Invalid account' >&2; exit 1", "")
    config = experiment("hetjob")
    text, is_ok = dry_run(config, make_plan(config), RunDirectory(tmp_path / "runs", "lab", "seed1"))
    assert not is_ok and "sbatch --test-only: allocation failure: Invalid account" in text
    assert "submission 1 of 1: core and actors, heterogeneous job" in text


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = experiment()
    text, is_ok = dry_run(config, make_plan(config), RunDirectory(tmp_path / "runs", "lab", "seed1"))
    assert not is_ok and "there is no sbatch on PATH" in text and text.count("#!/bin/bash") == 2


def test_the_table_leaves_open_what_the_site_decides() -> None:
    config = experiment("packed", gpu_partition=None)
    assert "1 trainer, 6 actor" in job_table(make_plan(config))
    assert job_table(make_plan(config)).count("Slurm's default") == 1
