"""The Slurm lab as tests see it: commands on its hosts, its own controls."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.leaks import SESSION_VARIABLE

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "slurm" / "lab" / "cluster.sh"


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

    def run(
        self,
        *command: str,
        host: str = "head",
        timeout_s: int = 120,
        environment: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; nothing of it stays where it takes too long."""
        # Whoever kills `exec` does not kill what it started: the host's own `timeout` does.
        return subprocess.run(
            self.command("timeout", "--signal=KILL", str(timeout_s), *command, host=host),
            env=self.environment | (environment or {}),
            cwd=REPOSITORY,
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s + 30,
        )

    def control(self, *command: str) -> None:
        """Run `cluster.sh COMMAND`: crash, boot, slurmd, ctld, partition, heal, cut, uncut."""
        environment = self.environment
        environment.pop(
            SESSION_VARIABLE, None
        )  # the daemons of a host that is booted are no left-over of the test
        done = subprocess.run(
            [str(CLUSTER), *command],
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def environment(self) -> dict[str, str]:
        """Of everything that is started in this lab."""
        return {**os.environ, "SLURMLAB": str(self.shared.parent), "PYTHONPATH": str(REPOSITORY)}


def run_to_end(command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the lab's own, which may install packages first."""
    return subprocess.run(
        command,
        env=environment,
        check=False,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
