"""Training over real NFS: actors on nodes with kernels, and so NFS caches, of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.lab_runs import SlurmLab, SlurmRun, runs_in

pytestmark = pytest.mark.slurm

# Two nodes of one slow CPU, which learn of new files up to a minute late.
SLOW_S = 280.0


@pytest.fixture
def nfs_run(slurm_lab: SlurmLab) -> Iterator[SlurmRun]:
    """Runs of one test whose directory is on NFS; this machine sees it as its server does."""
    export = slurm_lab.net.parent.with_name("net.export") / slurm_lab.net.name
    yield from runs_in(slurm_lab, export / "training", slurm_lab.net / "training")


@pytest.mark.timeout(600)
def test_a_run_directory_on_nfs(nfs_run: SlurmRun) -> None:
    run = nfs_run.train(
        "trainer.gpus=1",
        "actors.partition=nfs",
        "actors.per_task=1",
        "cluster.actor_directives={exclusive: true}",
    )
    assert run.session.wait(SLOW_S) == 0, run.story()
    run.finish_well(SLOW_S)
    assert not any(run.lives().values()), run.story()
    assert {host["node"][:-1] for host in run.usage() if host["role"] == "core"} == {"gpu"}
    assert {host["node"] for host in run.usage() if host["role"] == "actors"} == {"nfs1", "nfs2"}
