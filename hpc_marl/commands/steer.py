"""`hpc-marl pause | resume | checkpoint | scale | stop | cancel EXP[/TRIAL]`: what a shell asks of a controller."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from hpc_marl.base.launch_record import read_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.commands.command_line import run_command, trial_parser
from hpc_marl.control.controller_state import write_verdict
from hpc_marl.control.lease import LEASE_TTL_S, ControllerLease
from hpc_marl.control.verdict import Verdict
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.errors import ConfigError, LaunchError, NoControllerError
from hpc_marl.exit_codes import EXIT_FAILED
from hpc_marl.runs.live_client import LiveController, live_controller
from hpc_marl.trials.reference import find_trial
from hpc_marl.trials.trial_files import VerdictRecord, queue_jobs, read_verdict

# The trainer answers between two updates, and a checkpoint may have to be written first.
_CHECKPOINT_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 180.0
_VERDICT_POLL_S = 0.5
_SCANCEL_TIMEOUT_S = 60.0


def pause(arguments: Sequence[str]) -> int:
    """Have all workers of a run stand still."""
    parser = trial_parser("pause", "Have all workers stand still; they keep their nodes and their state.")

    def carry_out(controller: LiveController, name: str) -> str:
        controller.request("pause")
        return f"{name} pauses; go on by `hpc-marl resume {name}`"

    return _steer(parser.parse_args(arguments), carry_out)


def resume(arguments: Sequence[str]) -> int:
    """Have the workers of a paused run go on."""
    parser = trial_parser(
        "resume", "Have the workers of a paused run go on. (A run that ended goes on by `train resume=true`.)"
    )

    def carry_out(controller: LiveController, name: str) -> str:
        controller.request("resume")
        return f"{name} goes on"

    return _steer(parser.parse_args(arguments), carry_out)


def checkpoint(arguments: Sequence[str]) -> int:
    """Have the trainer write a checkpoint now; print its path."""
    parser = trial_parser("checkpoint", "Have the trainer write a checkpoint now, and print its path.")

    def carry_out(controller: LiveController, name: str) -> str:
        return str(controller.request("checkpoint", timeout=_CHECKPOINT_TIMEOUT_S))

    return _steer(parser.parse_args(arguments), carry_out)


def scale(arguments: Sequence[str]) -> int:
    """Change how many actors a run has: `hpc-marl scale EXP/TRIAL actors=16`."""
    parser = trial_parser("scale", "Change how many actors a run has, while it runs.")
    parser.add_argument("setting", metavar="actors=N", help="how many there should be")
    options = parser.parse_args(arguments)

    def carry_out(controller: LiveController, name: str) -> str:
        actors = _actors_of(options.setting)
        controller.request("scale", actors=actors)
        return f"{name} scales to {actors} actors; watch it by `hpc-marl status {name}`"

    return _steer(options, carry_out)


def stop(arguments: Sequence[str]) -> int:
    """End a run in order: the trainer writes a checkpoint, then everything ends."""
    parser = trial_parser(
        "stop", "End a run in order: the trainer writes a checkpoint, then everything ends."
    )
    _add_timeout(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _end(find_trial(options.reference, options.root), "stop", options.timeout))


def cancel(arguments: Sequence[str]) -> int:
    """End a run at once: its jobs are cancelled; what was learned since the last checkpoint is lost."""
    parser = trial_parser(
        "cancel",
        "End a run at once: its jobs are cancelled, and what was learned since the last checkpoint is lost. "
        "Where no controller answers, the jobs that launch.json lists are cancelled by scancel.",
    )
    parser.add_argument(
        "--yes", action="store_true", help="cancel without asking where no controller answers"
    )
    _add_timeout(parser)
    options = parser.parse_args(arguments)

    def carry_out() -> int:
        directory = find_trial(options.reference, options.root)
        try:
            return _end(directory, "cancel", options.timeout)
        except NoControllerError as error:
            if read_verdict(directory) is not None:
                raise
            return _cancel_jobs(directory, error, is_confirmed=options.yes)

    return run_command(carry_out)


def _steer(options: argparse.Namespace, carry_out: Callable[[LiveController, str], str]) -> int:
    """Do something with the controller of the trial that is meant, and print what it says."""

    def command() -> int:
        directory = find_trial(options.reference, options.root)
        with live_controller(directory) as controller:
            sys.stdout.write(carry_out(controller, _name(directory)) + "\n")
        return 0

    return run_command(command)


def _actors_of(setting: str) -> int:
    key, _, value = setting.partition("=")
    if key != "actors" or not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            f"cannot scale by {setting!r}; expected actors=N with N of at least 1, such as actors=16"
        )
    return int(value)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=float,
        default=_END_TIMEOUT_S,
        metavar="SECONDS",
        help=f"how long to wait for the end; default: {_END_TIMEOUT_S:g}",
    )


def _end(directory: RunDirectory, command: str, timeout_s: float) -> int:
    """Have the controller end the run, wait for the verdict and print it."""
    name = _name(directory)
    with live_controller(directory) as controller:
        before = read_verdict(directory)
        try:
            controller.request(command)
        except NoControllerError:
            # It may have ended before its answer was on the way.
            if read_verdict(directory) in (None, before):
                raise
    doing = "stops; its trainer writes a checkpoint" if command == "stop" else "is being cancelled"
    sys.stdout.write(f"{name} {doing}\n")
    sys.stdout.flush()
    verdict = _wait_for_verdict(directory, before, timeout_s)
    if verdict is None:
        sys.stderr.write(
            f"error: {name} has not ended within {timeout_s:g} s; look by `hpc-marl status {name}`\n"
        )
        return EXIT_FAILED
    sys.stdout.write(f"{name} has ended {verdict}\n")
    return EXIT_FAILED if verdict.status == "ERROR" else 0


def _wait_for_verdict(
    directory: RunDirectory, before: VerdictRecord | None, timeout_s: float
) -> VerdictRecord | None:
    deadline = time.monotonic() + timeout_s
    while (verdict := read_verdict(directory)) is None or verdict == before:
        if time.monotonic() >= deadline:
            return verdict
        time.sleep(_VERDICT_POLL_S)
    return verdict


def _cancel_jobs(directory: RunDirectory, why: NoControllerError, *, is_confirmed: bool) -> int:
    """Cancel what launch.json lists, because nobody drives the run."""
    name = _name(directory)
    jobs = queue_jobs(read_launch_record(directory))
    if not jobs:
        raise NoControllerError(f"{why}; launch.json lists no jobs to cancel")
    sys.stderr.write(f"{why}\n")
    if not is_confirmed and not _confirms(f"cancel jobs {', '.join(jobs)} by scancel?"):
        raise NoControllerError(
            f"nothing was cancelled; `hpc-marl cancel {name} --yes` cancels {', '.join(jobs)}"
        )
    _scancel(jobs)
    _conclude(directory)
    sys.stdout.write(f"{name}: cancelled jobs {', '.join(jobs)}\n")
    return 0


def _conclude(directory: RunDirectory) -> None:
    """Write the verdict that no controller will write any more; one that lives after all goes on, and will."""
    record = read_launch_record(directory)
    if not directory.auth(record.run_uuid).is_dir():
        return
    with RunContext.open(directory, record.run_uuid, interface=None) as context:
        lease = ControllerLease(context, "session")
        if lease.acquire(LEASE_TTL_S + 5.0):
            write_verdict(directory, Verdict(WorkerStatus.INTERRUPTED, "its jobs were cancelled"))
            lease.release()
    if read_verdict(directory) is not None:
        directory.forget_run(record.run_uuid)


def _confirms(question: str) -> bool:
    """Ask the person at the terminal; nobody there means no."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _scancel(jobs: Sequence[str]) -> None:
    """Cancel jobs by one command; --quiet: those that have ended already are no error.

    Raises:
        LaunchError: there is no scancel here, or it failed.
    """
    command = ["scancel", "--quiet", *jobs]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SCANCEL_TIMEOUT_S
        )
    except FileNotFoundError:
        raise LaunchError(
            "there is no scancel on this machine; cancel from a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"scancel has not answered within {_SCANCEL_TIMEOUT_S:g} s; try again") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise LaunchError(f"`{' '.join(command)}` failed ({done.returncode}): {said}")


def _name(directory: RunDirectory) -> str:
    return f"{directory.experiment_name}/{directory.trial_name}"
