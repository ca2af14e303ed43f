"""A training run as a user starts it: one command line in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

SMALL = ("experiment=matrix_game", "control.heartbeat_interval_s=0.1")
"""A two-agent matrix game: learned in seconds."""


@dataclass
class Run:
    """One `hpc-marl train` process and its run directory."""

    root: Path
    overrides: tuple[str, ...]
    process: subprocess.Popen[str]
    output: str = ""
    _killed: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        """The newest trial's directory."""
        return max(self.root.glob("*/*/launch.json"), key=lambda path: path.stat().st_mtime).parent

    def worker_pid(self, worker_name: str) -> int | None:
        """Return the process of a worker, None while it has none."""
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if worker_name in child.cmdline():
                    return child.pid
        except psutil.NoSuchProcess:
            return None
        return None

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """Return the condition's first true value."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := condition():
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(
            f"waited in vain; the process says: {self.finish(timeout_s=1.0, kill=True)}{self.logs()}"
        )

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows written so far."""
        try:
            lines = (self.directory / "metrics" / "metrics.jsonl").read_text().splitlines()
        except (FileNotFoundError, ValueError):
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def trained(self, env_steps: int) -> Callable[[], bool]:
        """Return a condition: that much has been learned from."""
        return lambda: bool(self.metrics()) and self.metrics()[-1]["env_steps"] >= env_steps

    def signal(self, number: int) -> None:
        """Send a signal to the controller alone."""
        self.process.send_signal(number)

    def kill_worker(self, worker_name: str) -> int:
        """Kill -9 a worker; return its process id."""
        pid = self.wait_until(lambda: self.worker_pid(worker_name))
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def finish(self, timeout_s: float = 120.0, kill: bool = False) -> str:
        """Wait for the end; return what was printed."""
        try:
            output, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            if not kill:
                raise
            self.process.kill()
            output, _ = self.process.communicate()
        self.output += output or ""
        return self.output

    def finish_well(self, timeout_s: float = 120.0) -> str:
        """Wait for the end, which must be a good one."""
        output = self.finish(timeout_s)
        assert self.process.returncode == 0, output + self.logs()
        return output

    def logs(self) -> str:
        """Return the ends of all logs, for failures."""
        parts = [f"--- {path}\n{path.read_text()[-2000:]}" for path in sorted(self.root.rglob("*.log"))]
        return "\n".join(parts)

    def state(self, name: str) -> Any:
        """Return a JSON file of the run directory."""
        return json.loads((self.directory / name).read_text())

    def final_words(self) -> list[dict[str, Any]]:
        """Return the final words of all workers' lives that had one."""
        return [json.loads(path.read_text()) for path in (self.directory / "state").glob("*-*.json")]


Train = Callable[..., Run]


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Train]:
    """Start `hpc-marl train` with a small experiment and further overrides; nothing of it survives the test."""
    runs: list[Run] = []

    def start(*overrides: str, small: bool = True) -> Run:
        given = (*(SMALL if small else ()), f"root={tmp_path}", *overrides)
        process = subprocess.Popen(
            [sys.executable, "-m", "hpc_marl.train", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        runs.append(Run(tmp_path, given, process))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            children = psutil.Process(run.process.pid).children(recursive=True)
            run.process.kill()
            run.process.wait()
            for child in children:
                if child.is_running():
                    child.kill()
        if run.process.stdout is not None:
            run.process.stdout.close()
