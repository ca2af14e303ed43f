"""A cluster without accounting whose queue forgets ended jobs at once: nothing is waited for in vain."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.leaks import SESSION_VARIABLE
from tests.slurm.faulty_runs import PACED, stop_and_check
from tests.slurm.lab_runs import CLUSTER, SlurmLab, SlurmRun, run_to_end, runs_in

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def poor_lab(cluster_lab: SlurmLab) -> Iterator[SlurmLab]:
    """A second lab: two nodes, no accounting, no cgroups; a job is out of the queue seconds after its end."""
    directory = cluster_lab.shared.parent.parent / f"{cluster_lab.shared.parent.name}-poor"
    sizes = {"SLURMLAB_NCPU": "1", "SLURMLAB_NGPU": "1", "SLURMLAB_NUML": "0"}
    environment = {**os.environ, "SLURMLAB": str(directory), **sizes}
    del environment[SESSION_VARIABLE]
    directory.mkdir(exist_ok=True)
    (directory / "slurm.conf.extra").write_text("MinJobAge=2\n")
    started = run_to_end([str(CLUSTER), "up", "--no-acct", "--no-cgroup"], environment)
    try:
        assert started.returncode == 0, f"the lab does not start: {started.stdout}{started.stderr}"
        yield SlurmLab(directory / "shared", directory / "net")
    finally:
        run_to_end([str(CLUSTER), "down"], environment)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def poor_run(poor_lab: SlurmLab) -> Iterator[SlurmRun]:
    """Runs of one test in that lab."""
    yield from runs_in(poor_lab)


def host_pids(run: SlurmRun, role: str) -> set[int]:
    """Return the host processes of the core or of the actors, as this machine counts."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        is_host = "python" in words[0] and words[-4:-2] == ["--run-dir", str(run.directory)]
        if is_host and (words[-1].split(",")[0] == "0") == (role == "core"):
            found.add(process.pid)
    return found


def test_a_run_completes(poor_run: SlurmRun) -> None:
    run = poor_run.train("trainer.gpus=1")
    assert run.session.wait() == 0
    run.finish_well()
    assert run.sacct(run.job_ids("core")[0]) == [], "there is no accounting"
    assert "CPU" in run.cli("report", run.name)


def test_jobs_whose_processes_die_are_submitted_again(poor_run: SlurmRun) -> None:
    run = poor_run.train(*PACED, "control.orphan_grace_s=5")
    run.wait_until(run.trained(1))
    for role in ("actors", "core"):
        pids, ids = host_pids(run, role), run.job_ids(role)
        os.kill(min(pids), signal.SIGKILL)
        run.wait_until(lambda: len(run.job_ids(role)) > len(ids))  # noqa: B023
        run.wait_until(lambda: len(host_pids(run, role) - pids) == 1)  # noqa: B023
        run.wait_until(lambda: all_run(run))
        run.wait_until(run.trained_further())
    stop_and_check(run)
    assert run.session.wait() == 130


def all_run(run: SlurmRun) -> bool:
    """Whether every worker runs."""
    workers = run.snapshot().get("workers", [])
    return bool(workers) and {worker["status"] for worker in workers} == {"RUNNING"}
