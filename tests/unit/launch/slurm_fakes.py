"""Fake commands of Slurm, runs to submit, and a clock that the test moves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_marl.base.launch_record import LaunchRecord, write_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ActorGroupConfig, ClusterConfig, ExperimentConfig, TrainerGroupConfig

COMMANDS = ("sbatch", "squeue", "scancel", "sacct", "scontrol", "srun")
# Answers are shell scripts, used in turn; the last one stays.
FAKE = """#!/bin/sh
cd '{directory}' || exit 99
printf '%s\\n' "$*" >> calls
env > environment
answer=$(ls answers | head -n 1)
[ -n "$answer" ] || exit 0
cp "answers/$answer" now
[ "$(ls answers | wc -l)" = 1 ] || rm "answers/$answer"
. ./now
"""


class FakeSlurm:
    """Slurm's commands, first on PATH."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True)
        for command in COMMANDS:
            (directory / command / "answers").mkdir(parents=True)
            program = self.bin / command
            program.write_text(FAKE.format(directory=directory / command))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")

    def says(self, command: str, *answers: str) -> None:
        """Have a command run these shell scripts, one a call."""
        for old in (self._directory / command / "answers").iterdir():
            old.unlink()
        for number, answer in enumerate(answers):
            (self._directory / command / "answers" / f"{number:04}").write_text(answer)

    def accepts(self, *job_ids: int) -> None:
        """Have sbatch accept jobs."""
        self.says("sbatch", *(f"echo 'Submitted batch job {job_id}'" for job_id in job_ids))

    def lists(self, *rows: str) -> None:
        """Have squeue list these: id|state|reason|nodes|start|user|name."""
        self.says("squeue", "cat <<'END'\n" + "\n".join(rows) + "\nEND\n")

    def calls(self, command: str) -> list[str]:
        """Return the arguments of every call so far."""
        log = self._directory / command / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def environment(self, command: str) -> dict[str, str]:
        """Return the environment of the last call."""
        lines = (self._directory / command / "environment").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines if "=" in line)


class Clock:
    """A clock that moves when told, and a sleep that moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def experiment(
    placement: str = "split", *, actors: int = 6, trainers: int = 1, nodes: int = 1, **cluster: object
) -> ExperimentConfig:
    """Return an experiment with a trainer on a GPU and two actors in a task."""
    site = {"gpu_partition": "gpu", "python": "/site/bin/python", **cluster}
    return ExperimentConfig(
        experiment_name="lab",
        trial_name="seed1",
        cluster=ClusterConfig(kind="slurm", placement=placement, core_nodes=nodes, **site),  # type: ignore[arg-type]
        actors=ActorGroupConfig(count=actors, per_task=2, cpus=2, memory_mb=500),
        trainer=TrainerGroupConfig(count=trainers, cpus=4, device="cuda", memory_mb=4000),
    )


def make_run(root: Path) -> RunDirectory:
    """Make a run's directory with a launch record and no jobs."""
    directory = RunDirectory(root, "lab", "seed1")
    directory.create()
    record = LaunchRecord(
        experiment_name="lab",
        trial_name="seed1",
        run_uuid="0" * 32,
        epoch=0,
        interface=None,
        heartbeat_interval_s=1.0,
        orphan_grace_s=1.0,
    )
    write_launch_record(directory, record)
    return directory


def poll_until(poll: Callable[[], None], condition: Callable[[], bool]) -> None:
    """Poll until the answer of a background command has had its effect."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it"
        poll()
        time.sleep(0.01)
