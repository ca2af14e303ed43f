"""A lab for tests that need no NFS: the one that is running, or else the session's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "slurm" / "lab" / "cluster.sh"


@dataclass(frozen=True)
class RunningLab:
    """A lab and a directory of the test's own.

    Attributes:
        directory: which every host sees alike.
    """

    directory: Path

    def run(self, *command: str, timeout_s: int = 200) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node to its end."""
        return subprocess.run(
            [str(CLUSTER), "exec", "head", "timeout", str(timeout_s), *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s + 60,
            stdin=subprocess.DEVNULL,
        )

    def hpc_marl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `hpc-marl` on the login node."""
        return self.run(sys.executable, "-m", "hpc_marl.cli", *arguments)

    def cut(self, one: str, other: str) -> None:
        """Let nothing pass between two hosts."""
        subprocess.run([str(CLUSTER), "cut", one, other], check=True, capture_output=True)

    def uncut(self, one: str, other: str) -> None:
        """Undo `cut`."""
        subprocess.run([str(CLUSTER), "uncut", one, other], check=True, capture_output=True)

    def job_names(self) -> list[str]:
        """Names of all jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%j").stdout.split()


@pytest.fixture
def running_lab(request: pytest.FixtureRequest) -> Iterator[RunningLab]:
    """Use the lab in $SLURMLAB if it is up, whoever has started it; else have one started."""
    shared = Path(os.environ.get("SLURMLAB", "/var/tmp/slurmlab")) / "shared"
    is_up = (
        os.geteuid() == 0 and subprocess.run([str(CLUSTER), "status"], capture_output=True).returncode == 0
    )
    if not is_up:
        shared = request.getfixturevalue("slurm_lab").shared
    directory = shared / f"test-{uuid.uuid4().hex[:8]}"
    directory.mkdir(mode=0o700)
    yield RunningLab(directory)
    shutil.rmtree(directory, ignore_errors=True)
