"""Every placement trains to the end in the lab, on the nodes that it asked for, and leaves no job behind."""

from __future__ import annotations

import pytest

from tests.slurm.lab_runs import SlurmRun

pytestmark = pytest.mark.slurm


def places(run: SlurmRun) -> dict[str, set[tuple[str, str]]]:
    """Return where the workers ran, as the hosts measured it: worker -> {(role, kind of node)}."""
    found: dict[str, set[tuple[str, str]]] = {}
    for host in run.usage():
        for worker in host["workers"]:
            found.setdefault(worker, set()).add((host["role"], host["node"].rstrip("0123456789")))
    return found


def train_to_the_end(run: SlurmRun, *overrides: str) -> dict[str, set[tuple[str, str]]]:
    """Train in a session on head; return where the workers ran."""
    run.train(*overrides)
    assert run.session.wait() == 0, run.story()
    assert run.finish_well()["status"] == "COMPLETED"
    assert {host["ended"] for host in run.usage()} == {"DONE"}
    assert not any(run.lives().values()), run.story()
    # Jobs that a run is done with have ended well, not been cancelled.
    states = [row for job_id in run.job_ids() for row in run.sacct(job_id, "JobID,State")]
    assert states and {state for _, state in states} == {"COMPLETED"}
    return found if (found := places(run)) else {}


def test_split_with_a_gpu_and_directives_of_the_site(slurm_run: SlurmRun) -> None:
    found = train_to_the_end(
        slurm_run,
        "trainer.gpus=1",
        "actors.count=3",
        "actors.min_actors=3",
        "actors.per_task=1",
        "cluster.time_limit=2:00:00",
        "cluster.directives={comment: nightly}",
        "cluster.core_directives={nodelist: gpu2}",
        "cluster.actor_directives={time: null}",
    )
    assert found["trainer/0"] == {("core", "gpu")}
    assert all(found[f"actor/{i}"] == {("actors", "cpu")} for i in range(3))
    core, actors = (slurm_run.show_job(job_id) for job_id in slurm_run.job_ids())
    assert (core["NodeList"], core["Partition"], core["TimeLimit"]) == ("gpu2", "gpu", "02:00:00")
    assert "gres/gpu=1" in slurm_run.sacct(slurm_run.job_ids("core")[0], "AllocTRES")[0][0]
    assert (actors["Partition"], actors["TimeLimit"]) == ("cpu", "01:00:00"), (
        "the partition's, as ours is removed"
    )
    assert core["Comment"] == actors["Comment"] == "nightly"
    host = next(host for host in slurm_run.usage() if host["role"] == "core")
    assert (host["node"], host["gpus"]) == ("gpu2", 1)


def test_packed(slurm_run: SlurmRun) -> None:
    actors = ("actors.count=3", "actors.min_actors=3")
    found = train_to_the_end(slurm_run, "cluster.placement=packed", "cluster.core_nodes=2", *actors)
    assert len(slurm_run.job_ids()) == 1
    assert {place for places in found.values() for place in places} == {("core", "cpu")}
    assert len({host["node"] for host in slurm_run.usage()}) == 2


def test_hetjob(slurm_run: SlurmRun) -> None:
    actors = ("actors.per_task=1", "actors.min_actors=2")
    found = train_to_the_end(slurm_run, "cluster.placement=hetjob", "trainer.gpus=1", *actors)
    core, actors = slurm_run.job_ids()
    assert (core, actors) == (f"{core[:-2]}+0", f"{core[:-2]}+1")
    assert found["trainer/0"] == {("core", "gpu")} and found["actor/1"] == {("actors", "cpu")}


def test_trainers_and_policy_workers_on_two_nodes(slurm_run: SlurmRun) -> None:
    found = train_to_the_end(
        slurm_run,
        "cluster.core_nodes=2",
        "trainer.count=2",
        "inference=remote",
        "policies.count=2",
        "actors.count=2",
        "total_env_steps=30_000",
    )
    assert {f"{kind}/{i}" for kind in ("trainer", "policy", "actor") for i in (0, 1)} <= set(found)
    core = {host["node"]: set(host["workers"]) for host in slurm_run.usage() if host["role"] == "core"}
    assert len(core) == 2 and all(
        {"trainer", "policy"} <= {w[:-2] for w in workers} for workers in core.values()
    )


def test_a_dry_run_submits_nothing(slurm_run: SlurmRun) -> None:
    settings = slurm_run.settings("trainer.gpus=1", "actors.count=20")
    text = slurm_run.cli("train", "--dry-run", *settings)
    for line in ("#SBATCH --gres=gpu:fake:1", "#SBATCH --array=0-2", "Nothing was submitted."):
        assert line in text, text
    assert text.count("sbatch --test-only: ") == 2
    assert not slurm_run.root.exists() and slurm_run.no_jobs()
    text = slurm_run.cli("train", "--dry-run", *settings, "cluster.cpu_partition=nope", check=False)
    assert "invalid partition" in text and "error: sbatch would refuse a job" in text
