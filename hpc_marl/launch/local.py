"""LocalLauncher: workers as processes of this machine.

A worker is known here only as a command line. Each has a session of its own, so that Ctrl-C in the terminal reaches the
controller alone, which then stops the workers in order.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_KILL_WAIT_S = 5.0


class LocalLauncher:
    """Starts, watches and ends worker processes.

    Args:
        run_directory: the trial's directory, handed to every worker.
    """

    def __init__(self, run_directory: Path) -> None:
        self._run_directory = run_directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, worker_name: str, life: int, num_threads: int) -> None:
        """Start a worker; its output goes to logs/KIND/INDEX.LIFE.log."""
        kind, index = worker_name.split("/")
        log_file = self._run_directory / "logs" / kind / f"{index}.{life}.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "hpc_marl.workers",
            worker_name,
            "--run-dir",
            str(self._run_directory),
        ]
        environment = {
            **os.environ,
            **dict.fromkeys(_THREAD_VARIABLES, str(num_threads)),
            "PYTHONUNBUFFERED": "1",
        }
        with open(log_file, "ab") as log:
            self._processes[worker_name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def exits(self) -> list[tuple[str, int]]:
        """Return (worker name, exit code) of every process that ended by itself since the last call.

        Killed by signal N is -N, as in subprocess.
        """
        ended = [
            (name, code) for name, process in self._processes.items() if (code := process.poll()) is not None
        ]
        for name, _ in ended:
            del self._processes[name]
        return ended

    def is_alive(self, worker_name: str) -> bool:
        """Whether the worker's process is there."""
        process = self._processes.get(worker_name)
        return process is not None and process.poll() is None

    def kill(self, worker_name: str) -> None:
        """Make sure that the worker's process is gone; it is not reported by `exits`."""
        process = self._processes.pop(worker_name, None)
        if process is not None:
            process.kill()
            process.wait(_KILL_WAIT_S)

    def pids(self) -> dict[str, int]:
        """Return the process id of every live worker."""
        return {name: process.pid for name, process in self._processes.items()}

    def close(self) -> None:
        """Kill whatever is still there."""
        for name in list(self._processes):
            self.kill(name)
