"""Which trial a command means: naming, refusing to run twice, going on from a checkpoint."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import psutil

from hpc_marl.base.epoch_fence import read_epoch
from hpc_marl.base.launch_record import read_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig
from hpc_marl.errors import ConfigError


def choose_trial_name(config: ExperimentConfig) -> str:
    """Return the trial that `config` means.

    Without a trial_name: a fresh run is seedN, or seedN-2, seedN-3 ... where that is taken; `resume=true` means the
    last of them.

    Raises:
        ConfigError: a fresh run would overwrite a trial, or there is nothing to resume.
    """
    experiment = Path(config.root) / config.experiment_name
    existing = [path.name for path in experiment.iterdir() if path.is_dir()] if experiment.is_dir() else []
    if config.trial_name is not None:
        return _named_trial(config, config.trial_name, existing)
    numbered = re.compile(rf"seed{config.seed}(?:-(\d+))?")
    numbers = [int(found[1] or 1) for name in existing if (found := numbered.fullmatch(name))]
    last = max(numbers, default=0)
    if config.resume and not last:
        raise ConfigError(
            f"nothing to resume: no trial of seed {config.seed} in {experiment}; there are: {_listed(existing)}"
        )
    number = last if config.resume else last + 1
    return f"seed{config.seed}" if number <= 1 else f"seed{config.seed}-{number}"


def _named_trial(config: ExperimentConfig, name: str, existing: list[str]) -> str:
    if config.resume and name not in existing:
        raise ConfigError(f"nothing to resume: no trial {name!r}; there are: {_listed(existing)}")
    if not config.resume and name in existing:
        raise ConfigError(
            f"trial {config.experiment_name}/{name} exists; go on with it by resume=true, or choose another trial_name"
        )
    return name


def require_not_running(directory: RunDirectory) -> None:
    """Refuse to touch a trial whose controller is alive on this machine, or whose jobs may go on without one.

    Raises:
        ConfigError: says which process it is, or how to end the run.
    """
    if not directory.launch_file.exists():
        return
    record = read_launch_record(directory)
    if record.has_deputy and directory.auth(record.run_uuid).is_dir() and not directory.verdict_file.exists():
        name = f"{record.experiment_name}/{record.trial_name}"
        raise ConfigError(
            f"{name} may still run, in jobs {', '.join(job.job_id for job in record.jobs) or 'not yet submitted'}: "
            f"go on with it by `hpc-marl attach {name}`, or end it first by `hpc-marl stop {name}` or `cancel`"
        )
    if record.host != socket.gethostname() or not record.pid or not psutil.pid_exists(record.pid):
        return
    try:
        alive = abs(psutil.Process(record.pid).create_time() - record.pid_create_time) < 1.0
    except psutil.NoSuchProcess:
        return
    if alive:
        raise ConfigError(f"{directory.path} is being trained by process {record.pid}; stop that one first")


def next_epoch(directory: RunDirectory, resume: bool) -> int:
    """Return the epoch of a new launch: above that of every checkpoint, and of every life that wrote none.

    Raises:
        ConfigError: `resume`, and there is no valid checkpoint.
    """
    found = None
    if directory.checkpoints.is_dir() and any(directory.checkpoints.iterdir()):
        # It loads numpy, for which a new trial need not wait.
        from hpc_marl.base.checkpoints import latest_checkpoint

        found = latest_checkpoint(directory.checkpoints)
    if resume and found is None:
        raise ConfigError(f"nothing to resume: {directory.checkpoints} has no valid checkpoint")
    return max(0 if found is None else found.epoch, read_epoch(directory.epoch_file) or 0) + 1


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "none"
