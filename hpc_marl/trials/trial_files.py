"""What the files of a trial say about it, without asking any process or queue: for sweeps, and for runs that ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from hpc_marl.base.launch_record import JobRecord, LaunchRecord, read_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE
from hpc_marl.control.controller_state import ControllerState, read_controller_state
from hpc_marl.errors import ConfigError, HpcMarlError
from hpc_marl.trials.evaluation import Evaluation, read_evaluation

# Some fifty rows: enough for a mean return that does not jump.
_TAIL_BYTES = 16 * 1024
_RECENT_EPISODES = 200
_TOTAL = re.compile(r'^\s*"?total_env_steps"?\s*:\s*([\d_]+)', re.MULTILINE)


class VerdictRecord(msgspec.Struct, frozen=True):
    """state/verdict.json: how a run ended."""

    status: str
    """COMPLETED, INTERRUPTED or ERROR."""
    reason: str = ""
    exit_code: int = 1

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status


@dataclass(frozen=True)
class TrialFacts:
    """Where a trial stands, by its files.

    Attributes:
        directory: of the trial.
        state: pending, running, completed, failed or interrupted.
        phase: as the last controller wrote it; "" if none did.
        host: where that controller was.
        verdict: how it ended; None while it has not.
        env_steps: learned from.
        total_env_steps: to be learned from; None if config.yaml does not say.
        env_steps_per_s: their rate at the newest row of metrics.
        return_mean: mean return of recent episodes; None while none has ended.
        policy_lag: at the newest row.
        policy_version: updates so far.
        train_time_s: of all lives.
        evaluation: of the final policy; None while there is none.
        jobs: as submitted.
        age_s: time since the newest sign of life in the files.
    """

    directory: RunDirectory
    state: str
    phase: str
    host: str
    verdict: VerdictRecord | None
    env_steps: int
    total_env_steps: int | None
    env_steps_per_s: float
    return_mean: float | None
    policy_lag: float
    policy_version: int
    train_time_s: float
    evaluation: Evaluation | None
    jobs: tuple[JobRecord, ...]
    age_s: float

    @property
    def name(self) -> str:
        """EXPERIMENT/TRIAL."""
        return f"{self.directory.experiment_name}/{self.directory.trial_name}"


def trial_facts(directory: RunDirectory) -> TrialFacts:
    """Read what the files of a trial say: about ten small reads.

    Raises:
        ConfigError: it has no launch.json, or that is not one.
    """
    record = read_launch_record(directory)
    verdict, controller = read_verdict(directory), _controller_or_none(directory, record)
    metrics_file = directory.metrics / METRICS_FILE
    rows = _newest_rows(metrics_file)
    newest = rows[-1] if rows else {}
    evaluation = _evaluation_or_none(directory)
    times = [_mtime(path) for path in (directory.launch_file, metrics_file, directory.verdict_file)]
    return TrialFacts(
        directory=directory,
        state=_state(directory, record, verdict, controller, evaluation is not None),
        phase="paused" if controller and controller.is_paused else controller.phase if controller else "",
        host=controller.host if controller else record.host,
        verdict=verdict,
        env_steps=int(newest.get("env_steps") or 0),
        total_env_steps=_total_env_steps(directory.config_file),
        env_steps_per_s=float(newest.get("env_steps_per_s") or 0.0),
        return_mean=_recent_return(rows),
        policy_lag=float(newest.get("policy_lag") or 0.0),
        policy_version=int(newest.get("policy_version") or 0),
        train_time_s=float(newest.get("time_s") or 0.0),
        evaluation=evaluation,
        jobs=tuple(record.jobs),
        age_s=max(0.0, time.time() - max(*times, controller.updated if controller else 0.0)),
    )


def read_verdict(directory: RunDirectory) -> VerdictRecord | None:
    """Return how the run ended; None while it has not.

    Sees a verdict at once that another machine has written on a network file system.
    """
    # Opening the directory makes NFS ask again for a file that was missing a moment ago.
    with contextlib.suppress(OSError):
        os.close(os.open(directory.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        return msgspec.json.decode(directory.verdict_file.read_bytes(), type=VerdictRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def queue_jobs(record: LaunchRecord) -> list[str]:
    """Return the jobs of a launch that a queue knows, as scancel takes them; processes of one machine are none.

    The elements of an array and the components of a heterogeneous job go with their leader.
    """
    ids = dict.fromkeys(job.job_id.split("+")[0] for job in record.jobs)
    return [job_id for job_id in ids if job_id[:1].isdigit()]


def launcher_is_alive(record: LaunchRecord) -> bool | None:
    """Whether the process that launched a run is there; None on another machine than its own."""
    if record.host != socket.gethostname() or not record.pid:
        return None
    try:
        return bool(abs(psutil.Process(record.pid).create_time() - record.pid_create_time) < 1.0)
    except psutil.NoSuchProcess:
        return False


def _state(
    directory: RunDirectory,
    record: LaunchRecord,
    verdict: VerdictRecord | None,
    controller: ControllerState | None,
    is_evaluated: bool,
) -> str:
    if verdict is not None:
        return {"COMPLETED": "completed", "INTERRUPTED": "interrupted"}.get(verdict.status, "failed")
    if not directory.run(record.run_uuid).is_dir():  # removed at the end of a run
        return "completed" if is_evaluated else "interrupted"
    # Jobs outlive the process that submitted them; processes of this machine do not.
    if not queue_jobs(record) and launcher_is_alive(record) is False:
        return "interrupted"
    launched, learned = _mtime(directory.launch_file), _mtime(directory.metrics / METRICS_FILE)
    starting = controller.phase == "starting" if controller else learned < launched
    return "pending" if starting else "running"


def _controller_or_none(directory: RunDirectory, record: LaunchRecord) -> ControllerState | None:
    try:
        return read_controller_state(directory, record.run_uuid)
    except ConfigError:
        return None  # of another version: as good as none


def _evaluation_or_none(directory: RunDirectory) -> Evaluation | None:
    try:
        return read_evaluation(directory.path)
    except HpcMarlError:
        return None


def _newest_rows(path: Path) -> list[dict[str, Any]]:
    """Return the last rows of metrics.jsonl, oldest first, from its tail."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the first and the last line may be torn
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def _recent_return(rows: list[dict[str, Any]]) -> float | None:
    """Return the mean over the newest episodes, as the trainer does for its display."""
    episodes, total = 0, 0.0
    for row in reversed(rows):
        count, mean = row.get("num_episodes"), row.get("episode_return")
        if count and mean is not None:
            episodes += count
            total += count * mean
        if episodes >= _RECENT_EPISODES:
            break
    return total / episodes if episodes else None


def _total_env_steps(config_file: Path) -> int | None:
    try:
        found = _TOTAL.search(config_file.read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
