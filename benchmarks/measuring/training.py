"""Runs `hpc-marl train` as its users do, in a process of its own, and watches what its workers cost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE, read_metrics
from measuring.timeline import Point

_EXPERIMENT, _TRIAL = "benchmark", "run"
_SAMPLE_INTERVAL_S = 0.2
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
        names = [f"root={root}", f"experiment_name={_EXPERIMENT}", f"trial_name={_TRIAL}"]
        self._command = [sys.executable, "-m", "hpc_marl.train", *overrides, *names]
        self._output = root / "output.txt"

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: the command failed.
        """
        started_s = time.monotonic()
        with open(self._output, "wb") as output:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                self._watch(process)
            finally:
                if (
                    process.poll() is None
                ):  # interrupted: killing the controller would leave its workers behind
                    process.terminate()
                    process.wait(_STOP_TIMEOUT_S)
        self.wall_s = time.monotonic() - started_s
        if process.returncode:
            tail = "\n".join(self._output.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:])
            raise TrainingError(f"exit code {process.returncode} of {' '.join(self._command)}\n{tail}")

    def points(self) -> list[Point]:
        """Return the environment steps after every update, on the trainer's clock."""
        rows = read_metrics(self.directory.metrics / METRICS_FILE)
        return [Point(row["time_s"], row["env_steps"], {}) for row in rows]

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            points = self.points()
            now_s = time.monotonic()
            self.cpu_points.append(Point(now_s, points[-1].env_steps if points else 0, _cpu_s(process.pid)))
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SAMPLE_INTERVAL_S)


def _cpu_s(pid: int) -> dict[str, float]:
    """Return the CPU seconds so far of a controller and of its workers by kind."""
    used: dict[str, float] = {}
    with suppress(psutil.NoSuchProcess):
        controller = psutil.Process(pid)
        for process in (controller, *controller.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                names = [argument.partition("/")[0] for argument in process.cmdline()[3:4]]
                kind = "controller" if process.pid == pid else "".join(names)
                times = process.cpu_times()
                used[kind] = used.get(kind, 0.0) + times.user + times.system
    return used


def stop_in_order_on_sigterm() -> None:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that a running training is stopped, too."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, handler)
