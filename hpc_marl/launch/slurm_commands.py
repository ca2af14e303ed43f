"""Runs Slurm's commands: in an environment of our own, and without waiting for them."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

_TIMEOUT_S = 30.0
# A controller inside a job has that job's SLURM_*, which sbatch and srun would take for options; a user's SQUEUE_*
# and the like would filter what we ask for. SLURM_CONF alone says where the cluster is.
_SCRUBBED = re.compile(r"(?:SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SCANCEL)_.*|PMI.*")
_KEPT = {"SLURM_CONF"}

RATE_LIMITED = re.compile(r"rate.?limit|too many|backoff|back off", re.IGNORECASE)
"""Slurm asks for fewer questions."""
BUSY = re.compile(
    r"timed out|unable to contact|rate.?limit|too many requests|backoff|temporarily un|connect(ion)? (failure|refused)",
    re.IGNORECASE,
)
"""What Slurm's commands say when it is worth trying again."""


def slurm_environment() -> dict[str, str]:
    """Return this process's environment without what would mislead Slurm's commands."""
    return {
        name: value for name, value in os.environ.items() if name in _KEPT or not _SCRUBBED.fullmatch(name)
    }


def user_name() -> str:
    """Return who runs this, as squeue writes it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@dataclass(frozen=True)
class Answer:
    """What a command said.

    Attributes:
        is_ok: it exited with 0, in time.
        output: its standard output.
        error: its standard error, or why there was none.
    """

    is_ok: bool
    output: str
    error: str


def run_command(command: Sequence[str], timeout_s: float = _TIMEOUT_S, script: str | None = None) -> Answer:
    """Run a command of Slurm's to its end; never raises for what becomes of it.

    Args:
        command: with arguments.
        timeout_s: it is killed after this long.
        script: its standard input.
    """
    try:
        done = subprocess.run(
            list(command),
            input=script or "",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
            env=slurm_environment(),
            start_new_session=True,
        )
    except OSError as error:
        return Answer(False, "", f"{command[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Answer(False, "", f"{command[0]} timed out after {timeout_s:g} s")
    return Answer(done.returncode == 0, done.stdout, done.stderr.strip())


class BackgroundCommand:
    """Starts a command now and collects its answer later, without threads.

    Args:
        command: with arguments.
        timeout_s: it is killed when its answer is asked for after this long.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        command: Sequence[str],
        timeout_s: float = _TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = command[0]
        self._clock = clock
        self._deadline = clock() + timeout_s
        # Files, not pipes: a pipe that nobody reads would stop the command.
        self._files = ExitStack()
        self._output: IO[bytes] = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  closed with the stack
        self._error: IO[bytes] = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  closed with the stack
        self._failure = ""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._error,
                env=slurm_environment(),
                # Ctrl-C in the terminal is for the controller alone.
                start_new_session=True,
            )
        except OSError as error:
            self._failure = f"{self._name}: {error.strerror}"

    def collect(self) -> Answer | None:
        """Return its answer, once; None while it runs."""
        if self._process is None:
            self.close()
            return Answer(False, "", self._failure)
        code = self._process.poll()
        if code is None and self._clock() < self._deadline:
            return None
        if code is None:
            self.close()
            return Answer(False, "", f"{self._name} timed out")
        output, error = (self._read(file) for file in (self._output, self._error))
        self.close()
        return Answer(code == 0, output, error.strip())

    def close(self) -> None:
        """Kill it if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._files.close()

    @staticmethod
    def _read(file: IO[bytes]) -> str:
        file.seek(0)
        return file.read().decode(errors="replace")
