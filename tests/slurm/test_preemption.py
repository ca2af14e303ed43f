"""The core job is preempted, comes to its time limit, is requeued by hand: the run goes on where it stood."""

from __future__ import annotations

import pytest

from tests.slurm.faulty_runs import (
    PACED,
    SLOW_S,
    Stopwatch,
    assert_no_step_back,
    busy_nodes,
    stop_and_check,
)
from tests.slurm.lab_runs import SlurmRun

pytestmark = pytest.mark.slurm


def ends_of_core(run: SlurmRun) -> list[str]:
    """Return how the core's host processes ended, the earliest first."""
    hosts = [host for host in run.usage() if host["role"] == "core"]
    return [host["ended"] for host in sorted(hosts, key=lambda host: host["started"])]


def restarted(run: SlurmRun, times: int) -> bool:
    """Whether the trainer is in a later life and has trained in it."""
    return run.lives().get("trainer/0", 0) >= times and run.env_steps() > 0


def test_core_preempted_requeued_and_out_of_time(slurm_run: SlurmRun) -> None:
    run, watch = slurm_run, Stopwatch("preemption, session")
    run.train(
        *PACED, "trainer.gpus=1", "trainer.time_limit=0:02:00", "cluster.signal_lead_s=20", "actors.count=2"
    )
    run.wait_until(run.trained(5000))
    watch.lap("until trained")
    with busy_nodes(run.lab, "-p", "gpuhi", "-N2", "--exclusive", "--gres=gpu:4"):
        run.wait_until(lambda: ends_of_core(run) == ["PREEMPTED"])
        before = run.env_steps()
        watch.lap("until the core had left")
    run.wait_until(run.trained(before + 1000), SLOW_S)
    watch.lap("until training went on after a preemption")
    core = run.job_ids("core")[0]
    assert run.lab.run("scontrol", "requeue", core).returncode == 0
    before = run.env_steps()
    run.wait_until(lambda: run.lives().get("trainer/0", 0) >= 2, SLOW_S)
    run.wait_until(run.trained(before + 1000), SLOW_S)
    watch.lap("until training went on after scontrol requeue")
    run.wait_until(lambda: ends_of_core(run)[2:3] == ["TIMEOUT"], SLOW_S)
    before = run.env_steps()
    watch.lap("until the time limit")
    run.wait_until(run.trained(before + 1000), SLOW_S)
    watch.lap("until training went on after the time limit")
    assert len(run.job_ids("core")) == 1, "requeued, not submitted anew"
    stop_and_check(run)
    assert_no_step_back(run)
    print(ends_of_core(run), run.state("state/ledger.json"))
