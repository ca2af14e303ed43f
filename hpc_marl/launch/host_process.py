"""A host process of this machine: its environment, its start, and the end of everything it has started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from hpc_marl.base.early_host import MARK_VARIABLE, EarlyHost, common_environment
from hpc_marl.launch.simulated_nodes import Seat

_REAP_WAIT_S = 2.0


def host_environment(seat: Seat, *, job_id: str, restarts: int, mark: str, has_gpus: bool) -> dict[str, str]:
    """Return the environment of a host process.

    Args:
        seat: where it is.
        job_id: of its job.
        restarts: how often the job has started before, as Slurm counts.
        mark: inherited by all that it starts, which is how `kill_marked` finds them.
        has_gpus: GPUs are slots, so it may see its own alone.
    """
    visible = {}
    if has_gpus:
        outer = [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number]
        numbers = [outer[gpu] if gpu < len(outer) else str(gpu) for gpu in seat.gpus]
        visible["CUDA_VISIBLE_DEVICES"] = ",".join(numbers)
    return {
        **common_environment(mark),
        **visible,
        "HPC_MARL_NODE": seat.node_name,
        "HPC_MARL_JOB_ID": job_id,
        "SLURM_CPUS_PER_TASK": str(seat.cpus),
        **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
    }


def start_process(
    command: Sequence[str], environment: dict[str, str], log_file: Path, early: EarlyHost | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C does not reach it; its output is appended to a file.

    Args:
        command: the command line.
        environment: all of it.
        log_file: its directory is made where missing.
        early: one that was started for this, where there is one.

    Raises:
        OSError: the command cannot be run.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if early is not None and (process := early.take(command, environment, log_file)) is not None:
        return process
    with open(log_file, "ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def kill_marked(marks: Collection[str], *, wait: bool = False) -> int:
    """Kill every process that inherited one of the marks, whoever its parent is now; return how many.

    Workers have sessions of their own and outlive a host that was killed. Slurm ends what a job leaves; so does this.
    """
    if not marks:
        return 0
    killed: dict[int, psutil.Process] = {}
    # Again until none is left: one of them may have started another while we looked.
    while found := [process for process in _marked(marks) if process.pid not in killed]:
        for process in found:
            killed[process.pid] = process
            with suppress(psutil.NoSuchProcess):
                process.kill()
    if wait:
        psutil.wait_procs(list(killed.values()), timeout=_REAP_WAIT_S)
    return len(killed)


def _marked(marks: Collection[str]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        # Other users' processes cannot be read, and some end while we look.
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK_VARIABLE) in marks:
                found.append(process)
    return found
