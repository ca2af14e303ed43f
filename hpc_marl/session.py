"""One run from an experiment to its outcome: directory, keys, plan, launcher, controller, display, summary.

config -> run directory + launch.json -> launcher + controller -> step() until a verdict -> summary
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import logging
import os
import resource
import shlex
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import msgspec
import psutil
from hydra.core.hydra_config import HydraConfig

from hpc_marl import __version__
from hpc_marl.base.launch_record import LaunchRecord, write_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.base.security import create_keyring
from hpc_marl.config import ExperimentConfig, to_dict
from hpc_marl.control.controller import TRAINER, Controller, Verdict
from hpc_marl.control.worker_control import ZmqWorkerControl
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import WorkerView
from hpc_marl.display import Display, Progress, make_display
from hpc_marl.launch import LocalLauncher, make_plan
from hpc_marl.summary import write_summary
from hpc_marl.trials import choose_trial_name, next_epoch, require_not_running

_STEP_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended.

    Attributes:
        verdict: status and reason.
        run_directory: where everything of the trial is.
        objective: mean return of the final evaluation; None where there was none.
    """

    verdict: Verdict
    run_directory: RunDirectory
    objective: float | None

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 130 interrupted."""
        return self.verdict.exit_code


def run_experiment(config: ExperimentConfig) -> Outcome:
    """Train, evaluate and sum up; return when it is over.

    SIGINT (Ctrl-C) and SIGTERM stop the run in order: the trainer writes a checkpoint and every process ends.

    Raises:
        ConfigError: the trial cannot be started as asked for.
    """
    _raise_descriptor_limit()
    config = dataclasses.replace(config, trial_name=choose_trial_name(config))
    assert config.trial_name is not None
    directory = RunDirectory(config.root, config.experiment_name, config.trial_name)
    require_not_running(directory)
    directory.create()
    record = _record(config, next_epoch(directory, config.resume))
    create_keyring(directory.auth(record.run_uuid))
    atomic_write(directory.config_file, _as_yaml(config))
    write_launch_record(directory, record)
    with ExitStack() as stack:
        stack.enter_context(_controller_log(directory))
        title = f"{config.experiment_name}/{config.trial_name}"
        display = stack.enter_context(_closing(make_display(config.total_env_steps, sys.stdout, title=title)))
        stop_signals = stack.enter_context(_StopSignals())
        display.event(f"run directory {directory.path}")
        verdict, last = _drive(config, directory, record, display, stop_signals)
    objective = write_summary(config, directory, verdict, last.elapsed_s, resume_command(config))
    return Outcome(verdict, directory, objective)


def _raise_descriptor_limit() -> None:
    """Use all the file descriptors that this process may have: every worker costs the controller a few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def resume_command(config: ExperimentConfig) -> str:
    """Return the command that means this trial again, but for `resume=true`."""
    given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    kept = [override for override in given if override.split("=")[0] not in ("trial_name", "resume")]
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


def _drive(
    config: ExperimentConfig,
    directory: RunDirectory,
    record: LaunchRecord,
    display: Display,
    stop_signals: _StopSignals,
) -> tuple[Verdict, Progress]:
    """Run the workers until there is a verdict; whatever happens, none is left behind."""
    plan = make_plan(config)
    views = [
        WorkerView(name, group.max_restarts, group.cpus)
        for group in plan.groups
        for name in group.worker_names
    ]
    launcher = LocalLauncher(directory.path)
    context = RunContext.open(directory, record.run_uuid, interface=record.interface)
    try:
        panel = ZmqWorkerControl(config.experiment_name, record.trial_name, context=context)
        try:
            controller = Controller(config, views, panel, launcher, epoch=record.epoch)
            return _watch(controller, display, stop_signals, config.total_env_steps)
        finally:
            panel.close()
    finally:
        launcher.close()
        context.close()
        directory.forget_run(record.run_uuid)


def _watch(
    controller: Controller, display: Display, stop_signals: _StopSignals, total_env_steps: int
) -> tuple[Verdict, Progress]:
    started_s = time.monotonic()
    controller.launch()
    verdict: Verdict | None = None
    try:
        while verdict is None:
            verdict = controller.step()
            progress = _progress(controller, total_env_steps, time.monotonic() - started_s)
            _show(controller, display, progress)
            if stop_signals.name and verdict is None:
                display.event(f"{stop_signals.name}: stopping; the trainer writes a checkpoint")
                verdict = Verdict(WorkerStatus.INTERRUPTED, f"stopped by {stop_signals.name}")
            time.sleep(_STEP_INTERVAL_S)
    finally:
        controller.stop(verdict)
    progress = _progress(controller, total_env_steps, time.monotonic() - started_s)
    _show(controller, display, progress)
    return verdict, progress


def _show(controller: Controller, display: Display, progress: Progress) -> None:
    while controller.events:
        display.event(controller.events.popleft())
    display.update(progress)


def _progress(controller: Controller, total_env_steps: int, elapsed_s: float) -> Progress:
    metrics = controller.workers[TRAINER].metrics
    env_steps, rate = int(metrics.get("env_steps", 0)), float(metrics.get("env_steps_per_s", 0.0))
    return_mean = metrics.get("return_mean")
    return Progress(
        env_steps=env_steps,
        env_steps_per_s=rate,
        agent_steps_per_s=float(metrics.get("agent_steps_per_s", 0.0)),
        return_mean=None if return_mean is None else float(return_mean),
        policy_lag=float(metrics.get("policy_lag", 0.0)),
        policy_version=int(metrics.get("policy_version", 0)),
        workers={name: worker.status.value for name, worker in controller.workers.items()},
        restarts=controller.restarts,
        elapsed_s=elapsed_s,
        eta_s=max(total_env_steps - env_steps, 0) / rate if rate > 0 else None,
    )


def _record(config: ExperimentConfig, epoch: int) -> LaunchRecord:
    assert config.trial_name is not None
    return LaunchRecord(
        experiment_name=config.experiment_name,
        trial_name=config.trial_name,
        run_uuid=uuid.uuid4().hex,
        epoch=epoch,
        interface=config.cluster.interface,
        heartbeat_interval_s=config.control.heartbeat_interval_s,
        orphan_grace_s=config.control.orphan_grace_s,
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
def _closing(display: Display) -> Iterator[Display]:
    try:
        yield display
    finally:
        display.close()


@contextmanager
def _controller_log(directory: RunDirectory) -> Iterator[None]:
    """Log what the controller does to logs/controller.log for the time of the run."""
    directory.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(directory.logs / "controller.log")
    handler.setFormatter(logging.Formatter("%(asctime)s controller %(levelname)s %(message)s"))
    logger = logging.getLogger("hpc_marl")
    before, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the terminal belongs to the display
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagate
        handler.close()


class _StopSignals:
    """Notes SIGINT and SIGTERM while the run is driven; a second one changes nothing, the first is being obeyed."""

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
