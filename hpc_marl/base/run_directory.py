"""Where everything of one trial lies on the shared file system.

    <root>/<experiment_name>/<trial_name>/
      config.yaml  launch.json        the resolved experiment; the handle for attach and stop
      run-<uuid>/auth/ names/         keys, name entries
      state/                          final word of every worker
      checkpoints/  metrics/  logs/

Every directory of a trial is readable by its owner only. Nothing in a path depends on a job id or the time.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from hpc_marl.base.durable_files import atomic_write
from hpc_marl.base.permissions import check_private_directory, make_private_directory
from hpc_marl.errors import ConfigError

__all__ = ["RunDirectory", "atomic_write"]

# No '/' and no leading '.' or '-': the name is a directory, and an argument of commands.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+@-]{0,199}")


class RunDirectory:
    """The paths of one trial; makes no file by itself.

    Args:
        root: where all experiments lie; `~` is understood.
        experiment_name: letters, digits and `_ . , = + @ -`.
        trial_name: the same.

    Attributes:
        path: the trial's directory.

    Raises:
        ConfigError: a name that cannot be a directory.
    """

    def __init__(self, root: str | Path, experiment_name: str, trial_name: str) -> None:
        for what, name in (("experiment_name", experiment_name), ("trial_name", trial_name)):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{what} {name!r} cannot name a directory; expected 1 to 200 letters, digits or "
                    "_ . , = + @ -, not beginning with . or -"
                )
        self.experiment_name = experiment_name
        self.trial_name = trial_name
        self.path = Path(os.path.abspath(Path(root).expanduser())) / experiment_name / trial_name

    @classmethod
    def at(cls, path: str | Path) -> RunDirectory:
        """Return the run directory that lies at `path`. Raises ConfigError as the constructor does."""
        absolute = Path(os.path.abspath(Path(path).expanduser()))
        return cls(absolute.parent.parent, absolute.parent.name, absolute.name)

    @property
    def config_file(self) -> Path:
        """The resolved experiment."""
        return self.path / "config.yaml"

    @property
    def launch_file(self) -> Path:
        """Jobs, placement and code version."""
        return self.path / "launch.json"

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Directory of metrics.jsonl and TensorBoard events."""
        return self.path / "metrics"

    @property
    def logs(self) -> Path:
        """Directory of the workers' logs."""
        return self.path / "logs"

    @property
    def state(self) -> Path:
        """Directory of every worker's final word."""
        return self.path / "state"

    @property
    def ledger_file(self) -> Path:
        """What became of every sample batch; the trainer's final word."""
        return self.state / "ledger.json"

    @property
    def controller_file(self) -> Path:
        """What a controller that takes over must know: epoch, lives, phase."""
        return self.state / "controller.json"

    @property
    def verdict_file(self) -> Path:
        """How the run ended: status, reason, exit_code; not there while it has not."""
        return self.state / "verdict.json"

    @property
    def epoch_file(self) -> Path:
        """The trainers' newest right to write; who holds a lower one writes nothing any more."""
        return self.state / "epoch"

    @property
    def usage(self) -> Path:
        """Directory of what every host process measured of its workers."""
        return self.state / "usage"

    @property
    def time_use_file(self) -> Path:
        """Where the time of the workers went."""
        return self.state / "time_use.json"

    @property
    def job_scripts(self) -> Path:
        """Directory of the sbatch scripts as submitted."""
        return self.path / "jobs"

    @property
    def evaluation_file(self) -> Path:
        """The final evaluation."""
        return self.path / "evaluation.json"

    def run(self, run_uuid: str) -> Path:
        """Return the directory of one run: one life of the whole experiment. Raises ConfigError."""
        if not _NAME.fullmatch(run_uuid):
            raise ConfigError(
                f"run uuid {run_uuid!r} cannot name a directory; expected 32 hexadecimal digits"
            )
        return self.path / f"run-{run_uuid}"

    def auth(self, run_uuid: str) -> Path:
        """Return the directory of a run's keys."""
        return self.run(run_uuid) / "auth"

    def names(self, run_uuid: str) -> Path:
        """Return the directory of a run's name entries."""
        return self.run(run_uuid) / "names"

    def create(self) -> None:
        """Make the trial's directories, mode 0700, where they are not there yet.

        Raises:
            SecurityError: one of them is, or lies, where others can read or replace it.
        """
        make_private_directory(self.path)
        for directory in (self.state, self.checkpoints, self.metrics, self.logs):
            make_private_directory(directory)

    def check(self) -> None:
        """Return if only this user can read or replace the trial's directory. Raises SecurityError."""
        check_private_directory(self.path)

    def forget_run(self, run_uuid: str) -> None:
        """Delete the keys and names of a run that has ended. What cannot be deleted stays behind."""
        # The keys first, so that whatever happens then, nobody can talk as this run any more.
        shutil.rmtree(self.auth(run_uuid), ignore_errors=True)
        shutil.rmtree(self.run(run_uuid), ignore_errors=True)
