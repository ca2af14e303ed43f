"""What a run used, gathered from its directory and from Slurm's accounting: the facts of `hpc-marl report`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from hpc_marl.base.launch_record import JobRecord, read_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.config import ExperimentConfig, build
from hpc_marl.errors import ConfigError
from hpc_marl.launch.accounting import Accounting, ask_accounting
from hpc_marl.launch.plan import Plan, make_plan
from hpc_marl.trials.time_record import TimeRecord, read_time_record


class WorkerUse(msgspec.Struct, frozen=True):
    """What one worker used within one life of its host."""

    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    seconds: float = 0.0


class HostLife(msgspec.Struct, frozen=True):
    """state/usage/host-SLOT.INCARNATION.json: what one life of a host process measured."""

    slot: int
    role: str
    started: float
    """Unix time, by its node's clock."""
    seconds: float
    node: str = ""
    job_id: str = ""
    cpus: int = 1
    gpus: float = 0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    gpu_percent_mean: float | None = None
    run_uuid: str = ""
    """Of the launch that it belonged to."""
    ended: str = ""
    """DONE, PREEMPTED, TIMEOUT, FAILED or ORPHANED; "" while it runs, and where it was killed."""
    workers: dict[str, WorkerUse] = {}


@dataclass(frozen=True)
class RunFacts:
    """Everything that a report is made of.

    Attributes:
        name: EXPERIMENT/TRIAL.
        config: as the trial was launched; None where config.yaml is not ours.
        jobs: submissions, in order.
        lives: of the host processes, in order of their starts.
        accounting: what sacct said.
        worker_lives: worker -> restarts so far.
        ledger: sample batches by what became of them.
        checkpoint_times: unix times of the checkpoints that are kept.
        times: where the workers' time went; None: not known.
    """

    name: str
    config: ExperimentConfig | None
    jobs: tuple[JobRecord, ...]
    lives: tuple[HostLife, ...]
    accounting: Accounting
    worker_lives: Mapping[str, int]
    ledger: Mapping[str, int]
    checkpoint_times: tuple[float, ...]
    times: TimeRecord | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan of the config."""
        return make_plan(self.config) if self.config else None


def gather_facts(directory: RunDirectory) -> RunFacts:
    """Read a run's files, and ask sacct once where it has jobs of Slurm.

    Raises:
        ConfigError: there is no run.
    """
    record = read_launch_record(directory)
    slurm_ids = [job.job_id for job in record.jobs if job.job_id[:1].isdigit()]
    lives = _json(directory.controller_file).get("lives", {})
    return RunFacts(
        name=f"{record.experiment_name}/{record.trial_name}",
        config=read_saved_config(directory),
        jobs=tuple(record.jobs),
        lives=tuple(
            # A launch before, which resume=true went on from, has jobs of its own that are not asked for.
            life
            for life in read_host_lives(directory)
            if life.run_uuid in ("", record.run_uuid)
        ),
        accounting=ask_accounting(slurm_ids),
        worker_lives={name: int(life) for name, life in lives.items()} if isinstance(lives, dict) else {},
        ledger=read_ledger(directory),
        checkpoint_times=_checkpoint_times(directory),
        times=read_time_record(directory, record.run_uuid),
    )


def read_saved_config(directory: RunDirectory) -> ExperimentConfig | None:
    """Return the experiment as config.yaml holds it; None where there is none, or of another version."""
    settings = read_saved_settings(directory)
    try:
        return build(ExperimentConfig, settings) if settings else None
    except ConfigError:
        return None


def read_saved_settings(directory: RunDirectory) -> dict[str, Any]:
    """Return config.yaml as plain nested values; empty where there is none."""
    try:
        text = directory.config_file.read_text()
    except OSError:
        return {}
    try:
        found = json.loads(text)  # as we write it: JSON is YAML
    except ValueError:
        import yaml

        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError:
            return {}
    return found if isinstance(found, dict) else {}


def read_host_lives(directory: RunDirectory) -> tuple[HostLife, ...]:
    """Return what the host processes measured, in order of their starts; a file that is not one is passed over."""
    lives = []
    for path in directory.usage.glob("host-*.json"):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            lives.append(msgspec.json.decode(path.read_bytes(), type=HostLife))
    return tuple(sorted(lives, key=lambda life: (life.started, life.slot)))


def read_ledger(directory: RunDirectory) -> dict[str, int]:
    """Return the trainer's final ledger, in batches: produced, consumed, and dropped by reason; empty without one."""
    totals = _json(directory.ledger_file)
    if not totals:
        return {}
    dropped = {f"dropped ({reason})": number for reason, number in totals["dropped"].items() if number}
    return {"produced": totals["produced"], "consumed": totals["consumed"], **dropped}


def submission_time(job: JobRecord) -> float | None:
    """Return the unix time of a submission; None where it is unknown."""
    try:
        return datetime.fromisoformat(job.submitted).timestamp()
    except ValueError:
        return None


def _checkpoint_times(directory: RunDirectory) -> tuple[float, ...]:
    times = []
    for path in directory.checkpoints.glob("step-*"):
        with contextlib.suppress(OSError):  # the oldest ones are removed while we look
            times.append(path.stat().st_mtime)
    return tuple(sorted(times))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
