"""The Slurm lab for tests with the `slurm` marker: started once for the session, stopped at its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.leaks import SESSION_VARIABLE

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "slurm" / "lab" / "cluster.sh"
HOW_TO_RUN = "run `make test-slurm` as root on Debian or Ubuntu"


@dataclass(frozen=True)
class SlurmLab:
    """A running lab.

    Attributes:
        shared: directory that every host sees alike.
        net: directory on what the nodes nfs1 and nfs2 mount by NFS; the first user makes it.
    """

    shared: Path
    net: Path

    def command(self, *command: str, host: str = "head") -> list[str]:
        """The command line that runs `command` on a host with a namespace of its own: head, cpu1.., gpu1.."""
        return [str(CLUSTER), "exec", host, *command]

    def srun(self, node: str, *command: str) -> list[str]:
        """The command line that runs `command` as a job on a node, stdin and stdout connected."""
        partition = node.rstrip("0123456789")
        options = ["--partition", partition, "--nodelist", node, "--ntasks=1", "--unbuffered", "--quiet"]
        return self.command("srun", *options, *command)


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
    directory = Path(os.environ.get("SLURMLAB", "/var/tmp/slurmlab"))
    environment = {**os.environ, "SLURMLAB": str(directory), "SLURMLAB_NUML": "2"}
    del environment[SESSION_VARIABLE]  # what the lab's daemons start is not a test's left-over
    was_up = _run([str(CLUSTER), "status"]).returncode == 0
    started = _run([str(CLUSTER), "up"], environment)
    try:
        if "apt-get failed" in started.stderr:
            raise LabUnavailable("apt-get could not install the lab's packages")
        assert started.returncode == 0, f"the lab does not start: {started.stdout}{started.stderr}"
        if "nfs2" not in _run([str(CLUSTER), "status"]).stdout:
            raise LabUnavailable(f"the lab that is running has no NFS nodes: stop it by {CLUSTER} down")
        session = uuid.uuid4().hex
        yield SlurmLab(directory / "shared", directory / "net" / session)
        shutil.rmtree(
            directory / "net.export" / session, ignore_errors=True
        )  # the same, as the server sees it
    finally:
        if not was_up:
            _run([str(CLUSTER), "down"], environment)


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "the Slurm lab needs root"
    if shutil.which("apt-get") is None:
        return "the Slurm lab needs apt-get"
    for path in (REPOSITORY, Path(sys.executable)):
        if path.is_relative_to("/tmp"):
            return f"{path} is not visible on the lab's hosts, whose /tmp is their own"
    return None


def _run(
    command: Sequence[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        check=False,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
