"""One run from an experiment to its outcome: directory, keys, launch record, driving, summary.

config -> run directory + launch.json -> Driver (jobs, controller) -> a verdict -> summary
                                      \\-> controller=job: jobs are submitted, the handle is printed
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import shlex
import socket
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import psutil

from hpc_marl import __version__
from hpc_marl.base.descriptor_limit import raise_descriptor_limit
from hpc_marl.base.early_host import EarlyHost
from hpc_marl.base.launch_record import LaunchRecord, write_launch_record
from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.base.security import create_keyring
from hpc_marl.config import ExperimentConfig, to_dict
from hpc_marl.control.verdict import Verdict
from hpc_marl.runs.driver import Drive, Driver, MakeJobs
from hpc_marl.runs.interrupts import Ending, StopSignals, ask_ending, ending_of, is_answerable
from hpc_marl.runs.run_log import controller_log
from hpc_marl.runs.run_parts import make_job_service
from hpc_marl.trials.naming import choose_trial_name, next_epoch, require_not_running
from hpc_marl.views.display import Display, make_display

_HEARTBEATS_PER_S = 100.0
"""Of all workers together, at most, so that watching a thousand workers costs a login node next to nothing."""


@dataclass(frozen=True)
class Outcome:
    """How a command that trains ended.

    Attributes:
        verdict: status and reason; None: the run goes on without this command.
        run_directory: where everything of the trial is.
        objective: mean return of the final evaluation; None where there was none.
    """

    verdict: Verdict | None
    run_directory: RunDirectory
    objective: float | None

    @property
    def exit_code(self) -> int:
        """0 done or submitted or detached, 1 failed, 130 interrupted."""
        return 0 if self.verdict is None else self.verdict.exit_code


def run_experiment(
    config: ExperimentConfig, overrides: Sequence[str] = (), *, early_host: EarlyHost | None = None
) -> Outcome:
    """Train, evaluate and sum up; return when it is over, or when it goes on without this process.

    On this machine SIGINT (Ctrl-C) and SIGTERM stop the run in order: the trainer writes a checkpoint and every
    process ends. A run on Slurm goes on without its session: see `cluster.on_interrupt`.

    Args:
        config: the experiment.
        overrides: that it was composed from, for the command that means this trial again.
        early_host: a host process that was started for it, where there is one.

    Raises:
        ConfigError: the trial cannot be started as asked for.
    """
    raise_descriptor_limit()
    config, directory, record = prepare(config)
    with ExitStack() as stack:
        stack.enter_context(controller_log(directory))
        title = f"{config.experiment_name}/{config.trial_name}"
        display = stack.enter_context(
            closing_display(make_display(config.total_env_steps, sys.stdout, title=title))
        )
        signals = stack.enter_context(StopSignals())
        display.event(f"run directory {directory.path}")
        drive = drive_run(
            config,
            directory,
            record,
            kind="session",
            display=display,
            signals=signals,
            can_detach=record.has_deputy,
            make_jobs=partial(make_job_service, early_host=early_host),
        )
    return conclude(config, directory, drive, resume_command(config, overrides))


def drive_run(
    config: ExperimentConfig,
    directory: RunDirectory,
    record: LaunchRecord,
    *,
    kind: str,
    display: Display,
    signals: StopSignals,
    can_detach: bool,
    lease_timeout_s: float = 0.0,
    make_jobs: MakeJobs = make_job_service,
) -> Drive | None:
    """Take the lease and drive a run until it ends or this process leaves; None: somebody else holds the lease."""
    on_interrupt = config.cluster.on_interrupt

    def poll(driver: Driver) -> Ending | None:
        if not (name := signals.take()):
            return None
        if can_detach and name == "SIGINT" and on_interrupt == "ask" and is_answerable():
            display.suspend()
            ending = ask_ending(signals)
            display.resume()
        else:
            ending = ending_of(name, on_interrupt, can_detach=can_detach)
        word = "detached" if ending is Ending.DETACH else "stopped"
        return driver.end(ending, f"{word} by {name}")

    with Driver(config, directory, record, kind, display, make_jobs=make_jobs) as driver:
        if not driver.lease.acquire(lease_timeout_s, give_up=lambda: bool(signals.take())):
            return None
        drive = driver.drive(poll)
    if drive.verdict is not None and kind == "session":
        directory.forget_run(record.run_uuid)  # a deputy's host, which outlives it, does it there
    drive.last_act()
    return drive


def conclude(config: ExperimentConfig, directory: RunDirectory, drive: Drive | None, command: str) -> Outcome:
    """Sum a run up that has ended, or say how to come back to one that goes on."""
    if drive is not None and drive.verdict is not None:
        from hpc_marl.reports.summary import write_summary  # nobody waits for it at the start

        objective = write_summary(config, directory, drive.verdict, drive.progress.elapsed_s, command)
        return Outcome(drive.verdict, directory, objective)
    name = f"{directory.experiment_name}/{directory.trial_name}"
    root = root_flag(directory)
    reason = "somebody else drives it" if drive is None else drive.reason
    sys.stdout.write(
        f"\n{name} goes on without this session: {reason}\n"
        f"  come back   hpc-marl attach {name}{root}\n"
        f"  look        hpc-marl status {name}{root}\n"
        f"  end         hpc-marl stop {name}{root}\n"
    )
    return Outcome(None, directory, None)


def root_flag(directory: RunDirectory) -> str:
    """Return ` --root DIR` as other commands need it, "" where the run lies below ./runs."""
    root = directory.path.parent.parent
    return "" if root == Path("runs").absolute() else f" --root {shlex.quote(str(root))}"


def prepare(config: ExperimentConfig) -> tuple[ExperimentConfig, RunDirectory, LaunchRecord]:
    """Make a new launch of a trial: run directory, keys, config.yaml, launch.json.

    Raises:
        ConfigError: the trial is running, would be overwritten, or has nothing to resume.
    """
    config = _settled(config)
    assert config.trial_name is not None
    directory = RunDirectory(config.root, config.experiment_name, config.trial_name)
    require_not_running(directory)
    directory.create()
    for stale in (directory.verdict_file, directory.controller_file):
        stale.unlink(missing_ok=True)
    record = _record(config, next_epoch(directory, config.resume))
    create_keyring(directory.auth(record.run_uuid))
    atomic_write(directory.config_file, _as_yaml(config))
    write_launch_record(directory, record)
    return config, directory, record


def _settled(config: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with its trial's name, its root on the shared file system, and intervals for its size."""
    config = dataclasses.replace(config, root=run_root(config))
    num_workers = config.actors.count + config.policies.count + config.trainer.count
    interval_s = max(config.control.heartbeat_interval_s, num_workers / _HEARTBEATS_PER_S)
    control = dataclasses.replace(
        config.control,
        heartbeat_interval_s=interval_s,
        heartbeat_timeout_s=max(config.control.heartbeat_timeout_s, 4 * interval_s),
    )
    return dataclasses.replace(config, trial_name=choose_trial_name(config), control=control)


def run_root(config: ExperimentConfig) -> str:
    """Return where all experiments lie: on a cluster, below its shared directory unless the root is absolute."""
    return os.path.join(config.cluster.shared_root or "", config.root)


def resume_command(config: ExperimentConfig, overrides: Sequence[str] = ()) -> str:
    """Return the command that means this trial again, but for `resume=true`."""
    kept = [text for text in overrides if text.split("=")[0] not in ("trial_name", "resume")]
    return shlex.join(
        ["hpc-marl", "train", *_config_dir_flag(sys.argv), *kept, f"trial_name={config.trial_name}"]
    )


def _config_dir_flag(argv: list[str]) -> list[str]:
    for flag in ("--config-dir", "-cd"):
        for position, argument in enumerate(argv):
            if argument.startswith(f"{flag}="):
                return [argument]
            if argument == flag and position + 1 < len(argv):
                return [flag, argv[position + 1]]
    return []


def _record(config: ExperimentConfig, epoch: int) -> LaunchRecord:
    assert config.trial_name is not None
    cluster, control = config.cluster, config.control
    is_slurm = cluster.kind == "slurm"
    return LaunchRecord(
        experiment_name=config.experiment_name,
        trial_name=config.trial_name,
        run_uuid=uuid.uuid4().hex,
        epoch=epoch,
        interface=cluster.interface or ("all" if is_slurm else None),
        port_range=cluster.port_range,
        heartbeat_interval_s=control.heartbeat_interval_s,
        orphan_grace_s=control.orphan_grace_s,
        host_grace_s=cluster.actor_grace_s if is_slurm else control.orphan_grace_s,
        controller=config.controller,
        has_deputy=is_slurm,
        worker_kinds={kind: extra.worker_class for kind, extra in config.extra_workers.items()},
        code_version=__version__,
        user=getpass.getuser(),
        host=socket.gethostname(),
        pid=os.getpid(),
        pid_create_time=psutil.Process().create_time(),
    )


def _as_yaml(config: ExperimentConfig) -> bytes:
    # JSON is YAML; msgspec writes it without a further dependency on this path.
    return msgspec.json.format(json.dumps(to_dict(config)).encode(), indent=2) + b"\n"


@contextmanager
def closing_display(display: Display) -> Iterator[Display]:
    """Close the display at the end."""
    try:
        yield display
    finally:
        display.close()
