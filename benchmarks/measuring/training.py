"""Runs `hpc-marl train` as its users do, in a process of its own, and watches what its workers cost."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE, read_metrics
from measuring.timeline import Point
from measuring.watching import RowFile, Watched, watch

_EXPERIMENT, _TRIAL = "benchmark", "run"
_STOP_TIMEOUT_S = 60.0
_TAIL_LINES = 15


class TrainingError(Exception):
    """A training did not end well; the message holds the end of what it printed."""


class Training:
    """One run of the command.

    Attributes:
        directory: of the run; its files can be read as soon as they are there.
        wall_s: time of the whole command, start-up and evaluation included.
        cpu_points: CPU time by worker kind, several times a second.
    """

    def __init__(self, overrides: Sequence[str], root: Path) -> None:
        """Prepare a run below `root`, which must not hold another one."""
        self.directory = RunDirectory(root, _EXPERIMENT, _TRIAL)
        self.wall_s = 0.0
        self.cpu_points: list[Point] = []
        self._started_s = 0.0
        self._seen: list[tuple[float, dict[str, Any]]] = []
        names = [f"root={root}", f"experiment_name={_EXPERIMENT}", f"trial_name={_TRIAL}"]
        self._command = [sys.executable, "-m", "hpc_marl.train", *overrides, *names]
        self._output = root / "output.txt"

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: the command failed.
        """
        self._started_s = time.monotonic()
        with open(self._output, "wb") as output:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                rows = RowFile(self.directory.metrics / METRICS_FILE)
                self._seen, self.cpu_points = watch(process, rows, _kind_of)
            finally:
                if process.poll() is None:
                    process.terminate()  # interrupted: killing the controller would leave its workers behind
                    process.wait(_STOP_TIMEOUT_S)
        self.wall_s = time.monotonic() - self._started_s
        if process.returncode:
            tail = "\n".join(self._output.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:])
            raise TrainingError(f"exit code {process.returncode} of {' '.join(self._command)}\n{tail}")

    def points(self) -> list[Point]:
        """Return the environment steps after every update, on the trainer's clock."""
        rows = read_metrics(self.directory.metrics / METRICS_FILE)
        return [Point(row["time_s"], row["env_steps"], {}) for row in rows]

    def watched(self) -> Watched:
        """Return what was seen; the trainer's clock is set by the row that was seen soonest after it was made."""
        zero_s = min(seen_s - row["time_s"] for seen_s, row in self._seen)
        rows = [{**row, "time_s": zero_s + row["time_s"]} for _, row in self._seen]
        return Watched(self._started_s, self._first_step_s(), rows, self.cpu_points)

    def _first_step_s(self) -> float:
        """Return when the first actor had parameters to act with, which is just before the first environment step."""
        found = []
        for log in sorted((self.directory.logs / "actor").glob("*.0.log")):
            text = log.read_text("utf-8")
            if line := re.search(
                r"^(\S+ \S+) actor/\d+ INFO .* acts from policy version", text, re.MULTILINE
            ):
                found.append(datetime.strptime(line.group(1), "%Y-%m-%d %H:%M:%S,%f").timestamp())
        if not found:
            raise TrainingError("no actor's log says when it began to act")
        return min(found) - time.time() + time.monotonic()


def _kind_of(process: psutil.Process) -> str:
    """Return the kind of a worker; of the session, which drives them, `controller`."""
    arguments = process.cmdline()
    return arguments[3].partition("/")[0] if arguments[2:3] == ["hpc_marl.workers"] else "controller"


def stop_in_order_on_sigterm() -> None:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that a running training is stopped, too."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handler)
