"""Nodes vanish, and networks split: what was isolated writes nothing that its successor also writes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm.faulty_runs import (
    PACED,
    SLOW_S,
    Stopwatch,
    actors_at_work,
    assert_no_step_back,
    processes,
    stop_and_check,
)
from tests.slurm.lab_runs import SlurmLab, SlurmRun

pytestmark = pytest.mark.slurm


@contextmanager
def patient_slurm(lab: SlurmLab) -> Iterator[None]:
    """Have slurmctld wait for silent nodes longer than a test lasts, as a real one does."""
    path = lab.shared.parent / "run" / "etc" / "slurm" / "slurm.conf"
    before = path.read_text()
    try:
        path.write_text(re.sub(r"(?m)^SlurmdTimeout=.*$", "SlurmdTimeout=300", before))
        assert lab.run("scontrol", "reconfigure").returncode == 0
        yield
    finally:
        path.write_text(before)
        lab.run("scontrol", "reconfigure")


def node_of_core(run: SlurmRun) -> str:
    """Return where the core job runs."""
    return next(job.node for job in run.jobs() if job.name.endswith(".core"))


def epochs(run: SlurmRun) -> set[int]:
    """Return the epochs of all checkpoints."""
    return {int(path.name.rpartition("e")[2]) for path in run.directory.glob("checkpoints/step-*")}


def epoch(run: SlurmRun) -> int:
    """Return the trainers' newest right to write."""
    return int((run.directory / "state" / "epoch").read_text())


def write_times(directory: Path, pattern: str) -> dict[str, float]:
    """Return when the files of a trial were written last."""
    return {path.name: path.stat().st_mtime for path in directory.glob(pattern)}


def test_the_cores_node_crashes_and_the_controller_with_it(slurm_run: SlurmRun) -> None:
    run, watch = slurm_run, Stopwatch("crash")
    run.train(*PACED, "controller=job", "trainer.gpus=1", "actors.count=2")
    run.wait_until(run.trained(3000))
    first, node = epoch(run), node_of_core(run)
    watch.lap("until trained")
    try:
        run.lab.control("crash", node)
        before = run.env_steps()
        run.wait_until(lambda: epoch(run) > first, SLOW_S)
        watch.lap("until a new epoch")
        run.wait_until(run.trained(before + 3000), SLOW_S)
        watch.lap("until training had made up for what was lost")
        assert node_of_core(run) != node
    finally:
        run.lab.control("boot", node)
    stop_and_check(run)
    assert_no_step_back(run, lost_updates=100)
    assert epochs(run) <= {first, first + 1} and epoch(run) == first + 1
    watch.lap("to stop")


def test_a_short_partition_costs_only_time(slurm_run: SlurmRun) -> None:
    run, watch = slurm_run, Stopwatch("short partition")
    run.train(
        *PACED,
        "control.orphan_grace_s=60",
        "inference=remote",
        "trainer.gpus=1",
        "actors.count=2",
        "cluster.actor_directives={exclusive: true}",
    )
    run.wait_until(run.trained(3000))
    first, node = epoch(run), node_of_core(run)
    actor = next(job.node for job in run.jobs() if job.name.endswith(".actors"))
    with patient_slurm(run.lab):
        for isolated, seconds in ((node, 30.0), (actor, 20.0)):
            before = run.env_steps()
            run.lab.control("partition", isolated)
            try:
                watch.lap(f"to isolate {isolated}")
                time.sleep(seconds)  # what the fault lasts; connections are given up after fifteen
                during = run.env_steps()
            finally:
                run.lab.control("heal")
            watch.lap(f"isolated; {during - before} env_steps meanwhile")
            run.wait_until(run.trained(during + 1))
            watch.lap("until the first update after it")
            run.wait_until(lambda: actors_at_work(run) == 2)
            run.wait_until(run.trained_further(3000))
            watch.lap("for 3000 env_steps more")
    assert epoch(run) == first and not any(run.lives().values()), run.story()
    stop_and_check(run)
    assert_no_step_back(run)
    print(run.state("state/ledger.json"))


@pytest.mark.parametrize("controller", ["session", "job"])
def test_a_partition_longer_than_the_lease_leaves_one_writer(slurm_run: SlurmRun, controller: str) -> None:
    run, watch = slurm_run, Stopwatch(f"long partition, {controller}")
    run.train(*PACED, f"controller={controller}", "trainer.gpus=1", "actors.count=2")
    run.wait_until(run.trained(3000))
    first, node, job_ids = epoch(run), node_of_core(run), run.job_ids()
    old = {line.partition(":")[0] for line in processes(run) if "--slots 0" in line or "trainer" in line}
    watch.lap("until trained")
    run.lab.control("partition", node)
    try:
        run.wait_until(lambda: epoch(run) > first, SLOW_S)
        granted_s = (run.directory / "state" / "epoch").stat().st_mtime
        watch.lap("until a new epoch")
        before = run.env_steps()
        run.wait_until(run.trained(before + 3000), SLOW_S)
        watch.lap("until training went on elsewhere")
        assert node_of_core(run) != node
        left = [line for line in processes(run) if line.partition(":")[0] in old and "trainer" in line]
        assert not left, "the isolated trainer ends by itself"
    finally:
        run.lab.control("heal")
    run.wait_until(lambda: not any(line.partition(":")[0] in old for line in processes(run)), SLOW_S)
    watch.lap("until the old host had ended")
    run.wait_until(run.trained_further(2000), SLOW_S)
    watch.lap("for 2000 env_steps more")
    assert run.job_ids() == job_ids, "the job was requeued, and left alone after that"
    stop_and_check(run)
    assert_no_step_back(run, lost_updates=100)
    # An isolated deputy may grant one more, to a trainer that is never started.
    assert first < epoch(run) <= first + 2
    late = {
        name: at_s - granted_s
        for name, at_s in write_times(run.directory, f"checkpoints/*.e{first:04d}/*").items()
        if at_s > granted_s
    }
    assert not late, f"written under the old epoch after the new one was granted: {late}"
    print(run.state("state/ledger.json"))
