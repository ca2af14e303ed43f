"""Which trial `EXP/TRIAL` on a command line means.

foraging/seed0     that trial below the root
foraging           all its trials; where one is needed, the newest
/path/to/trial     a run directory, wherever it lies
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.errors import ConfigError

ROOT_VARIABLE = "HPC_MARL_ROOT"
_DEFAULT_ROOT = "runs"
_LISTED = 12


def default_root() -> str:
    """Return where all experiments lie: $HPC_MARL_ROOT, else `runs` below the working directory."""
    return os.environ.get(ROOT_VARIABLE) or _DEFAULT_ROOT


def find_trial(reference: str, root: str | Path) -> RunDirectory:
    """Return the trial that is meant; an experiment means its newest trial.

    Raises:
        ConfigError: there is none; the message lists near ones and what there is.
    """
    return find_trials(reference, root)[0]


def find_trials(reference: str, root: str | Path) -> list[RunDirectory]:
    """Return the trials that are meant, the newest first: one, or all of an experiment.

    Raises:
        ConfigError: there is none; the message lists near ones and what there is.
    """
    words = reference.rstrip("/")
    if words:
        below = Path(root).expanduser() / words
        # Below the root first: a directory here that happens to have an experiment's name is not meant.
        for path in (below, Path(words).expanduser()):
            if found := _trials_at(path):
                return found
    raise ConfigError(_nothing_found(reference, Path(root).expanduser()))


def trials_below(root: str | Path) -> list[list[RunDirectory]]:
    """Return all trials by experiment, newest first: the experiments, and the trials of each.

    Raises:
        ConfigError: there is no such directory.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise ConfigError(_no_root(path))
    dated = [trials for name in _directories(path) if (trials := _dated_trials(path / name))]
    dated.sort(key=lambda trials: trials[0][0], reverse=True)
    return [[directory for _, directory in trials] for trials in dated]


def _trials_at(path: Path) -> list[RunDirectory]:
    """Return the trial that lies at `path`, or the trials of the experiment there."""
    directory = _trial_directory(path)
    if directory is not None and directory.launch_file.is_file():
        return [directory]
    return [directory for _, directory in _dated_trials(path)]


def _dated_trials(experiment: Path) -> list[tuple[float, RunDirectory]]:
    """Return (when it was launched, trial) for every trial of an experiment, the newest first."""
    found = []
    for name in _directories(experiment):
        directory = _trial_directory(experiment / name)
        if directory is None:
            continue
        try:
            found.append((directory.launch_file.stat().st_mtime, directory))
        except OSError:
            continue  # a directory of something else
    return sorted(found, key=lambda item: (item[0], item[1].trial_name), reverse=True)


def _trial_directory(path: Path) -> RunDirectory | None:
    try:
        return RunDirectory.at(path)
    except ConfigError:
        return None  # no name that a trial could have


def _directories(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []


def _nothing_found(reference: str, root: Path) -> str:
    if not root.is_dir():
        return f"no run {reference!r}: {_no_root(root)}"
    experiments = trials_below(root)
    names = [f"{trial.experiment_name}/{trial.trial_name}" for trials in experiments for trial in trials]
    known = [*dict.fromkeys(name.partition("/")[0] for name in names), *names]
    near = difflib.get_close_matches(reference, known, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"no run {reference!r} below {root}; {hint}there are: {_listed(names)}"


def _no_root(root: Path) -> str:
    return f"there is no directory {root}; say where the runs lie by --root DIR or {ROOT_VARIABLE}=DIR"


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    more = f" and {len(all_names) - _LISTED} more" if len(all_names) > _LISTED else ""
    return (", ".join(all_names[:_LISTED]) or "none") + more
