"""A lab and a directory of the test's own, for commands that look at a site rather than train."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.lab import SlurmLab


@dataclass(frozen=True)
class RunningLab:
    """A lab and a place in it.

    Attributes:
        lab: the lab.
        directory: which every host sees alike; the test's own.
    """

    lab: SlurmLab
    directory: Path

    def run(self, *command: str, timeout_s: int = 200) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node to its end."""
        return self.lab.run(*command, timeout_s=timeout_s)

    def hpc_marl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `hpc-marl` on the login node."""
        return self.run(sys.executable, "-m", "hpc_marl.cli", *arguments)

    def cut(self, one: str, other: str) -> None:
        """Let nothing pass between two hosts."""
        self.lab.control("cut", one, other)

    def uncut(self, one: str, other: str) -> None:
        """Undo `cut`."""
        self.lab.control("uncut", one, other)

    def job_names(self) -> list[str]:
        """Names of all jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%j").stdout.split()


@pytest.fixture
def running_lab(cluster_lab: SlurmLab) -> Iterator[RunningLab]:
    """Give the test a directory in the lab that is up, or else in the session's."""
    directory = cluster_lab.shared / f"test-{uuid.uuid4().hex[:8]}"
    directory.mkdir(mode=0o700)
    yield RunningLab(cluster_lab, directory)
    shutil.rmtree(directory, ignore_errors=True)
