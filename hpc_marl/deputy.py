"""`python -m hpc_marl.deputy --run-dir DIR`: the controller inside the core job, for as long as nobody else drives.

The host of the first slot starts it: at once with controller=job, else when no controller has spoken for a while. It
ends when the run does, when a session takes over by `hpc-marl attach`, or with its job.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from hpc_marl.base.descriptor_limit import raise_descriptor_limit
from hpc_marl.base.launch_record import read_launch_record
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.control.lease import LEASE_TTL_S
from hpc_marl.control.worker_state import WorkerStatus, exit_code
from hpc_marl.errors import HpcMarlError
from hpc_marl.runs.interrupts import StopSignals
from hpc_marl.runs.run_log import controller_log
from hpc_marl.runs.session import closing_display, conclude, drive_run
from hpc_marl.trials.saved_config import read_config
from hpc_marl.views.display import PlainDisplay
from hpc_marl.workers.process_identity import die_with_parent

_LINE_INTERVAL_S = 30.0
_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Drive the run in a directory; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hpc_marl.deputy", description="Drive a run from inside its core job."
    )
    parser.add_argument("--run-dir", required=True, type=Path, help="the trial's directory")
    parser.add_argument("--parent", type=int, help="end when this process, the host, does")
    options = parser.parse_args(arguments)
    directory = RunDirectory.at(options.run_dir)
    # Slurm's notice before a time limit goes to every process of the job: the host acts on it, and tells this one.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    raise_descriptor_limit()
    if options.parent is not None and not die_with_parent(options.parent):
        return exit_code(WorkerStatus.INTERRUPTED)
    try:
        config, record = read_config(directory), read_launch_record(directory)
        with ExitStack() as stack:
            stack.enter_context(controller_log(directory))
            display = stack.enter_context(
                closing_display(PlainDisplay(config.total_env_steps, sys.stdout, interval_s=_LINE_INTERVAL_S))
            )
            signals = stack.enter_context(StopSignals())
            # A lease whose holder was killed becomes free after its time to live; one that submits now, sooner.
            drive = drive_run(
                config,
                directory,
                record,
                kind="job",
                display=display,
                signals=signals,
                can_detach=True,
                lease_timeout_s=3 * LEASE_TTL_S,
            )
    except HpcMarlError as error:
        _log.exception("the deputy failed")
        sys.stderr.write(f"error: {error}\n")
        return 1
    command = shlex.join(
        [
            "hpc-marl",
            "train",
            f"experiment_name={directory.experiment_name}",
            f"trial_name={directory.trial_name}",
        ]
    )
    return conclude(config, directory, drive, command).exit_code


if __name__ == "__main__":
    sys.exit(main())
