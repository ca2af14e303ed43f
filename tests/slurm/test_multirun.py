"""Sweeps and submissions in the lab: trials side by side, from the login node, from a job, by scripts of a user."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.lab_runs import DEADLINE_S, REPOSITORY, SlurmRun

pytestmark = pytest.mark.slurm

TRIALS = ("seed=1", "seed=2", "seed=3")
# What the launcher got back from its jobs: what a sweeper would maximise.
OBJECTIVES = """
import json, sys
from submitit.slurm.slurm import SlurmJob
print([SlurmJob(folder, job_id).results()[0].return_value for folder, job_id in json.loads(sys.argv[1])])
"""


def sbatch(run: SlurmRun, *arguments: str) -> str:
    """Submit a script from the clone's directory, as user of its environment; return the job's id."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # `slurm/env.sh` takes an active environment as it is.
    variables = {"PATH": path, "VIRTUAL_ENV": str(Path(sys.executable).parents[1])}
    output = run.home / "%x.%j.out"
    done = run.lab.run(
        "sbatch", "--parsable", f"--job-name={run.experiment}.script", f"--output={output}", *arguments,
        environment=run.environment | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def said(run: SlurmRun, job_id: str) -> str:
    """Return what a job of `sbatch` has printed."""
    return (run.home / f"{run.experiment}.script.{job_id}.out").read_text()


def finish_all(run: SlurmRun, trials: tuple[str, ...]) -> int:
    """Wait for the end of all trials; return how many core jobs were seen to run at once."""
    most, deadline = 0, time.monotonic() + 2 * DEADLINE_S
    while set(run.verdicts()) != set(trials) and time.monotonic() < deadline:
        running = [job for job in run.jobs() if job.name.endswith(".core") and job.state == "RUNNING"]
        most = max(most, len(running))
        time.sleep(1.0)
    assert run.verdicts() == dict.fromkeys(trials, "COMPLETED"), run.story()
    run.wait_until(run.no_jobs, interval_s=1.0)
    return most


def test_a_sweep_of_which_two_trials_run_at_once(slurm_run: SlurmRun) -> None:
    run = slurm_run
    told = run.cli("train", "--multirun", *run.settings("seed=1,2,3", "controller=job", "max_concurrent=2"))
    assert len(run.verdicts()) < 2, "it does not wait for the trials"
    for trial in TRIALS:
        assert re.search(rf"{run.experiment}/{trial}: submitted \d+ \(core\), \d+ \(actors\)", told), told
    assert finish_all(run, TRIALS) == 2
    table = run.cli("status", run.experiment)
    assert "3 trials: 3 completed" in table and all(trial in table for trial in TRIALS), table
    run.cli("plot", run.experiment)
    pictures = list((run.root / run.experiment).glob("*.png"))
    assert [picture.read_bytes()[:4] for picture in pictures] == [b"\x89PNG"]
    report = run.cli("report", f"{run.experiment}/seed=3")
    assert "CPU" in report and "wait" in report, report


def test_a_sweep_by_the_submitit_launcher_of_hydra(slurm_run: SlurmRun) -> None:
    run = slurm_run
    arguments = (
        "train", "--multirun", "hydra/launcher=submitit_slurm", f"hydra.launcher.name={run.experiment}.sweep",
        "hydra.launcher.partition=cpu", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=2",
        "seed=1,2", "cluster=local", "experiment=matrix_game", f"experiment_name={run.experiment}", f"root={run.root}",
    )  # fmt: skip
    run.cli(*arguments)
    assert run.verdicts() == dict.fromkeys(TRIALS[:2], "COMPLETED")
    folder = run.root / run.experiment / ".submitit"
    array = next(folder.glob("*/*_submission.sh")).parent.name
    jobs = [(str(folder / f"{array}_{i}"), f"{array}_{i}") for i in range(2)]
    objectives = run.lab.run(sys.executable, "-c", OBJECTIVES, json.dumps(jobs)).stdout
    means = [run.state_of(trial, "evaluation.json")["return_mean"] for trial in TRIALS[:2]]
    assert json.loads(objectives) == means
    # What fails there is told here: these trials exist.
    again = run.lab.run(sys.executable, "-m", "hpc_marl.cli", *arguments, environment=run.environment)
    assert again.returncode == 1 and f"trial {run.experiment}/seed=1 exists" in again.stderr


def test_jobs_that_submit_and_train_themselves(slurm_run: SlurmRun) -> None:
    run = slurm_run
    script = run.home / "submit.sh"
    command = f"{sys.executable} -m hpc_marl.cli train {' '.join(run.settings('controller=job', 'seed=1'))}"
    # Options of sbatch by the environment, and a job's own variables, must not reach the jobs that it submits.
    script.write_text(
        f"#!/bin/bash\nexport SBATCH_PARTITION=nope SRUN_CPUS_PER_TASK=7\ncd {REPOSITORY}\n{command}\n"
    )
    sbatch(run, "--ntasks=3", "--mem=500M", str(script))
    # The project's own scripts: all in one job; a driver in a job of its own.
    small = ("experiment=matrix_game", f"experiment_name={run.experiment}", f"root={run.root}", "seed=2")
    packed = sbatch(run, "--cpus-per-task=4", "slurm/packed.sbatch", *small)
    driver = sbatch(run, "slurm/train.sbatch", *run.settings("seed=3"))
    finish_all(run, ("seed1", f"job{packed}", "seed3"))
    for job_id in (packed, driver):
        assert "training and evaluation are complete" in said(run, job_id)
        assert [state for (state,) in run.sacct(job_id, "State")] == ["COMPLETED"]
