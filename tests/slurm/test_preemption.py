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

ALL_GPUS = ("-p", "gpuhi", "-N2", "--exclusive", "--gres=gpu:4")


def ends_of_core(run: SlurmRun) -> list[str]:
    """Return how the core's host processes ended, the earliest first."""
    hosts = [host for host in run.usage() if host["role"] == "core" and host["ended"]]
    return [host["ended"] for host in sorted(hosts, key=lambda host: host["started"])]


def test_core_preempted_requeued_and_out_of_time(slurm_run: SlurmRun) -> None:
    run, watch = slurm_run, Stopwatch("preemption, session")
    run.train(
        *PACED, "trainer.gpus=1", "trainer.time_limit=0:01:00", "cluster.signal_lead_s=15", "actors.count=2"
    )
    run.wait_until(run.trained(3000))
    watch.lap("until trained")
    with busy_nodes(run.lab, *ALL_GPUS):
        run.wait_until(lambda: ends_of_core(run))
        before = run.env_steps()
        watch.lap("until the core had left")
    run.wait_until(run.trained(before + 1000), SLOW_S)
    watch.lap("until training went on after a preemption")
    core = run.job_ids("core")[0]
    before = run.env_steps()
    assert run.lab.run("scontrol", "requeue", core).returncode == 0
    run.wait_until(lambda: run.lives().get("trainer/0", 0) >= 2, SLOW_S)
    run.wait_until(run.trained(before + 1000), SLOW_S)
    watch.lap("until training went on after scontrol requeue")
    run.wait_until(lambda: len(ends_of_core(run)) == 3, SLOW_S)
    before = run.env_steps()
    watch.lap("until the time limit")
    run.wait_until(run.trained(before + 1000), SLOW_S)
    watch.lap("until training went on after the time limit")
    assert ends_of_core(run)[2] == "TIMEOUT"
    assert len(run.job_ids()) == 2, "requeued, not submitted anew, and the actors waited"
    stop_and_check(run)
    assert_no_step_back(run)
    assert not any(life for worker, life in run.lives().items() if "actor" in worker), run.story()
    print(ends_of_core(run), run.state("state/ledger.json"))


def test_actors_free_their_cpus_while_the_core_is_away(slurm_run: SlurmRun) -> None:
    """The controller runs in the core job, goes with it and comes back with it; the actors are submitted anew."""
    run, watch = slurm_run, Stopwatch("preemption, job")
    run.train(
        *PACED, "controller=job", "trainer.gpus=1", "actors.count=2", "cluster.actor_grace_s=15", "mode=async"
    )
    run.wait_until(run.trained(3000))
    watch.lap("until trained")
    with busy_nodes(run.lab, *ALL_GPUS):
        run.wait_until(lambda: ends_of_core(run) == ["PREEMPTED"])
        before = run.env_steps()
        watch.lap("until the core had left")
        run.wait_until(lambda: {job.name.rpartition(".")[2] for job in run.jobs()} == {"core"}, SLOW_S)
        watch.lap("until the actors had left")
    run.wait_until(run.trained(before + 1000), SLOW_S)
    watch.lap("until training went on")
    assert len(run.job_ids("core")) == 1 and len(run.job_ids("actors")) > 1
    assert run.controller()["kind"] == "job"
    stop_and_check(run)
    assert_no_step_back(run)
    ends = [host["ended"] for host in run.usage() if host["role"] == "actors"]
    assert ends.count("ORPHANED") == 2, ends
    print(run.state("state/ledger.json"))
