"""Hands scripts to sbatch through submitit. Nothing is pickled: what runs on the nodes is a command line.

text --submit_script--> sbatch --> job id, and the script as <folder>/<job id>.sbatch
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from hpc_marl.errors import LaunchError, QueueBusyError
from hpc_marl.launch.slurm_commands import BUSY, slurm_environment

# A slurmctld that hangs must not hang who submits; sbatch's own patience is a few minutes.
_SBATCH_TIMEOUT_S = 120
_TIMED_OUT = 124


class _ScriptExecutor(SlurmExecutor):
    """A SlurmExecutor whose command is the whole script, run in an environment that sbatch is not misled by."""

    script: Path | None = None

    @classmethod
    def affinity(cls) -> int:
        return 2 if shutil.which("sbatch") else -1

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return command

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        self.script = submission_file_path
        removed = [f"--unset={name}" for name in sorted(set(os.environ) - set(slurm_environment()))]
        command: list[str] = super()._make_submission_command(submission_file_path)
        return ["env", *removed, "timeout", str(_SBATCH_TIMEOUT_S), *command]

    def submit_text(self, text: str) -> tuple[str, Path]:
        """Return the job's id and where its script lies."""
        job = self._submit_command(text)
        return job.job_id, job.paths.submission_file


def submit_script(text: str, folder: Path) -> str:
    """Submit a script, keep it as `<folder>/<job id>.sbatch` and return the job's id.

    Args:
        text: the script.
        folder: an existing directory.

    Raises:
        QueueBusyError: Slurm did not answer or is busy.
        LaunchError: Slurm refused; what it said.
    """
    if not shutil.which("sbatch"):
        raise LaunchError(
            "there is no sbatch on PATH: submit on a login node of a Slurm cluster, or use cluster=local"
        )
    executor = _ScriptExecutor(folder)
    try:
        # submitit prints what sbatch says, which is in the error too.
        with contextlib.redirect_stderr(io.StringIO()):
            job_id, script = executor.submit_text(text)
        script.rename(folder / f"{job_id}.sbatch")
    except (FailedJobError, FailedSubmissionError) as error:
        said = str(error).strip() or "nothing"
        cause = error.__cause__
        is_silent = isinstance(cause, subprocess.CalledProcessError) and cause.returncode == _TIMED_OUT
        if is_silent or BUSY.search(said):
            raise QueueBusyError(f"sbatch got no answer from Slurm; it said: {said}") from error
        raise LaunchError(f"sbatch refused the job; it said: {said}") from error
    finally:
        if executor.script is not None:
            executor.script.unlink(missing_ok=True)
    return job_id
