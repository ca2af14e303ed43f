"""The Slurm lab for tests with the `slurm` marker: started once for the session, stopped at its end."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import SESSION_VARIABLE
from tests.slurm.lab_runs import CLUSTER, REPOSITORY, SlurmLab, SlurmRun, run_to_end, runs_in

__all__ = ["CLUSTER", "REPOSITORY", "SlurmLab"]
HOW_TO_RUN = "run `make test-slurm` as root on Debian or Ubuntu"


class LabUnavailable(Exception):
    """The lab cannot run here, for a reason that is no fault of the project."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Skip what needs a lab that cannot be had; from one place, so that pytest tells it in one line."""
    try:
        yield
    except LabUnavailable as reason:
        pytest.skip(f"{reason}; {HOW_TO_RUN}")


@pytest.fixture(scope="session")
def slurm_lab(marked_session: None) -> Iterator[SlurmLab]:
    """A lab with the nodes nfs1 and nfs2, which have kernels of their own and mount real NFS."""
    if reason := _why_not():
        raise LabUnavailable(reason)
    directory = _lab_directory()
    environment = {**os.environ, "SLURMLAB": str(directory), "SLURMLAB_NUML": "2"}
    del environment[SESSION_VARIABLE]  # what the lab's daemons start is not a test's left-over
    was_up = run_to_end([str(CLUSTER), "status"], environment).returncode == 0
    started = run_to_end([str(CLUSTER), "up"], environment)
    try:
        if "apt-get failed" in started.stderr:
            raise LabUnavailable("apt-get could not install the lab's packages")
        assert started.returncode == 0, f"the lab does not start: {started.stdout}{started.stderr}"
        if "nfs2" not in run_to_end([str(CLUSTER), "status"], environment).stdout:
            raise LabUnavailable(f"the lab that is running has no NFS nodes: stop it by {CLUSTER} down")
        session = uuid.uuid4().hex
        yield SlurmLab(directory / "shared", directory / "net" / session)
        shutil.rmtree(
            directory / "net.export" / session, ignore_errors=True
        )  # the same, as the server sees it
    finally:
        if not was_up:
            run_to_end([str(CLUSTER), "down"], environment)


@pytest.fixture(scope="session")
def cluster_lab(request: pytest.FixtureRequest, marked_session: None) -> SlurmLab:
    """A lab for tests that need no NFS: the one in $SLURMLAB if it is up, else the session's."""
    directory = _lab_directory()
    if _why_not() is None:
        environment = {**os.environ, "SLURMLAB": str(directory)}
        if run_to_end([str(CLUSTER), "status"], environment).returncode == 0:
            return SlurmLab(directory / "shared", directory / "net")
    lab: SlurmLab = request.getfixturevalue("slurm_lab")
    return lab


@pytest.fixture
def slurm_run(cluster_lab: SlurmLab) -> Iterator[SlurmRun]:
    """Runs of one test in the lab; nothing of them survives it."""
    yield from runs_in(cluster_lab)


def _lab_directory() -> Path:
    return Path(os.environ.get("SLURMLAB", "/var/tmp/slurmlab"))


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "the Slurm lab needs root"
    if shutil.which("apt-get") is None:
        return "the Slurm lab needs apt-get"
    for path in (REPOSITORY, Path(sys.executable)):
        if path.is_relative_to("/tmp"):
            return f"{path} is not visible on the lab's hosts, whose /tmp is their own"
    return None
