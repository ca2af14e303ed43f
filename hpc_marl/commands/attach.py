"""`hpc-marl attach EXP/TRIAL`: drive a run from this shell, or watch it where another person's session drives.

nobody drives, or the controller before is dead --> take the lease, adopt workers and jobs
the deputy in the core job drives               --> it hands over
another session drives                          --> read-only, unless --take-over
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from hpc_marl.base.descriptor_limit import raise_descriptor_limit
from hpc_marl.base.launch_record import LaunchRecord, read_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.commands.command_line import run_command, trial_parser
from hpc_marl.config import ExperimentConfig
from hpc_marl.control.lease import LEASE_TTL_S
from hpc_marl.errors import ConfigError, NoControllerError
from hpc_marl.runs.interrupts import StopSignals
from hpc_marl.runs.live_client import live_controller
from hpc_marl.runs.run_log import controller_log
from hpc_marl.runs.session import closing_display, conclude, drive_run
from hpc_marl.trials.reference import find_trial
from hpc_marl.trials.saved_config import read_config
from hpc_marl.trials.trial_files import read_verdict
from hpc_marl.views.display import Display, Progress, make_display

_HANDOVER_S = LEASE_TTL_S + 10.0  # also where the one before is dead and its lease has to run out
_WATCH_INTERVAL_S = 2.0


def attach(arguments: Sequence[str]) -> int:
    """Drive or watch a run that is under way: `hpc-marl attach EXP[/TRIAL]`."""
    parser = trial_parser("attach", "Drive a run that is under way, or watch it where another session does.")
    parser.add_argument(
        "--take-over", action="store_true", help="also from another person's session, which then leaves"
    )
    parser.add_argument("--read-only", action="store_true", help="only watch")
    options = parser.parse_args(arguments)
    return run_command(lambda: _attach(options))


def _attach(options: argparse.Namespace) -> int:
    raise_descriptor_limit()
    directory = find_trial(options.reference, options.root)
    name = f"{directory.experiment_name}/{directory.trial_name}"
    if (verdict := read_verdict(directory)) is not None:
        raise ConfigError(f"{name} has ended {verdict}; go on from its checkpoint by `train ... resume=true`")
    config, record = read_config(directory), read_launch_record(directory)
    if not record.has_deputy:
        raise ConfigError(
            f"{name} runs on {record.host} as long as its own session does; it cannot be taken over"
        )
    with ExitStack() as stack:
        display = stack.enter_context(
            closing_display(make_display(config.total_env_steps, sys.stdout, title=name))
        )
        signals = stack.enter_context(StopSignals())
        if options.read_only or not _ask_to_release(directory, display, options.take_over):
            return _watch(directory, config, display, signals)
        stack.enter_context(controller_log(directory))
        drive = drive_run(
            config,
            directory,
            record,
            kind="session",
            display=display,
            signals=signals,
            can_detach=True,
            lease_timeout_s=_HANDOVER_S,
        )
        if drive is None:
            display.event("somebody else was faster")
            return _watch(directory, config, display, signals)
    return conclude(config, directory, drive, _train_command(record)).exit_code


def _ask_to_release(directory: RunDirectory, display: Display, take_over: bool) -> bool:
    """Have the present controller hand over; False where another session drives and keeps the lease."""
    try:
        with live_controller(directory) as controller:
            present = controller.status()["controller"]
            who = f"process {present['pid']} on {present['host']}"
            if present["kind"] == "session" and not take_over:
                display.event(f"{who} drives this run: watching only; --take-over takes it from there")
                return False
            display.event(f"taking over from {who}")
            controller.request("release")
    except NoControllerError as error:
        display.event(f"{error.args[0].split(';')[0]}; taking over")
    return True


def _watch(directory: RunDirectory, config: ExperimentConfig, display: Display, signals: StopSignals) -> int:
    """Show what the controller says until the run ends, or Ctrl-C."""
    shown: set[tuple[float, str]] = set()
    while not signals.name:
        if (verdict := read_verdict(directory)) is not None:
            display.event(f"the run has ended {verdict}")
            return 0
        try:
            with live_controller(directory) as controller:
                while not signals.name and read_verdict(directory) is None:
                    _show(controller.status(), display, shown)
                    time.sleep(_WATCH_INTERVAL_S)
        except NoControllerError:
            time.sleep(_WATCH_INTERVAL_S)  # one hands over to the next
    return 0


def _show(snapshot: dict[str, Any], display: Display, shown: set[tuple[float, str]]) -> None:
    for at, text in snapshot["events"]:
        if (at, text) not in shown:
            shown.add((at, text))
            display.event(text)
    progress = snapshot["progress"]
    display.update(
        Progress(
            env_steps=progress["env_steps"],
            env_steps_per_s=progress["env_steps_per_s"],
            agent_steps_per_s=progress["agent_steps_per_s"],
            return_mean=progress["return_mean"],
            policy_lag=progress["policy_lag"],
            policy_version=progress["policy_version"],
            workers={worker["name"]: worker["status"] for worker in snapshot["workers"]},
            restarts=snapshot["restarts"],
            elapsed_s=progress["elapsed_s"],
            eta_s=progress["eta_s"],
        )
    )


def _train_command(record: LaunchRecord) -> str:
    return f"hpc-marl train experiment_name={record.experiment_name} trial_name={record.trial_name}"
