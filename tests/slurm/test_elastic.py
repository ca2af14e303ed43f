"""Actors come and go while training goes on: they start late, lose their nodes, are preempted, and come back."""

from __future__ import annotations

import pytest

from tests.slurm.faulty_runs import (
    PACED,
    SLOW_S,
    Stopwatch,
    actors_at_work,
    assert_no_step_back,
    busy_nodes,
    stop_and_check,
    wait_for_state,
)
from tests.slurm.lab_runs import SlurmRun

pytestmark = pytest.mark.slurm


def lose_a_node(run: SlurmRun, watch: Stopwatch) -> None:
    """Crash a node of an actor, and boot it once training goes on without it."""
    try:
        run.lab.control("crash", "cpu2")
        run.wait_until(lambda: actors_at_work(run) == 3, SLOW_S)
        watch.lap("until an update without the lost actor")
    finally:
        run.lab.control("boot", "cpu2")
    run.wait_until(lambda: actors_at_work(run) == 4, SLOW_S)
    watch.lap("until the lost actor was back")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_actors_start_late_lose_their_node_and_are_preempted(slurm_run: SlurmRun, mode: str) -> None:
    run, watch = slurm_run, Stopwatch(f"elastic, {mode}")
    with busy_nodes(run.lab, "-p", "cpu", "-w", "cpu[2-4]", "-N3", "--exclusive") as blocker:
        wait_for_state(run.lab, blocker, "RUNNING")
        run.train(
            *PACED,
            f"mode={mode}",
            "trainer.gpus=1",
            "actors.count=4",
            "actors.min_actors=1",
            "cluster.actor_directives={exclusive: true}",
        )
        run.wait_until(run.trained(1000))
        assert actors_at_work(run) == 1, "one actor is enough to begin"
        watch.lap("until training began with the first actor")
    run.wait_until(lambda: actors_at_work(run) == 4, SLOW_S)
    watch.lap("until all four took part")
    if mode == "sync":
        lose_a_node(run, watch)
    with busy_nodes(run.lab, "-p", "cpuhi", "-w", "cpu[3-4]", "-N2", "--exclusive") as intruder:
        wait_for_state(run.lab, intruder, "RUNNING")
        watch.lap("to preempt two actors")
        run.wait_until(lambda: actors_at_work(run) == 2, SLOW_S)
        watch.lap("until an update without them")
    run.wait_until(lambda: actors_at_work(run) == 4, SLOW_S)
    watch.lap("until they were back")
    assert run.lives()["trainer/0"] == 0 and len(run.job_ids()) == 2, (
        "Slurm requeues, nothing is submitted anew"
    )
    if mode == "sync":
        assert all(row["policy_lag"] == 0 for row in run.metrics())
    stop_and_check(run)
    assert_no_step_back(run)
    ends = [host["ended"] for host in run.usage() if host["role"] == "actors"]
    assert ends.count("PREEMPTED") == 2, ends
    watch.lap("to stop")
    print(run.state("state/ledger.json"))
