"""A host process of this machine: its environment, its start, and the end of everything it has started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from hpc_marl.launch.simulated_nodes import Seat

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_MARK_VARIABLE = "HPC_MARL_PROCESS_MARK"
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
    # Inside an allocation of Slurm, its variables tell another job's ranks and array index.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    visible = {}
    if has_gpus:
        outer = [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number]
        numbers = [outer[gpu] if gpu < len(outer) else str(gpu) for gpu in seat.gpus]
        visible["CUDA_VISIBLE_DEVICES"] = ",".join(numbers)
    return {
        **inherited,
        # The host sets its workers' threads; it needs one itself.
        **dict.fromkeys(_THREAD_VARIABLES, "1"),
        **visible,
        "PYTHONUNBUFFERED": "1",
        "HPC_MARL_NODE": seat.node_name,
        "HPC_MARL_JOB_ID": job_id,
        "SLURM_CPUS_PER_TASK": str(seat.cpus),
        **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
        _MARK_VARIABLE: mark,
    }


def start_process(
    command: Sequence[str], environment: dict[str, str], log_file: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C does not reach it; its output is appended to a file.

    Raises:
        OSError: the command cannot be run.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
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
            if process.pid != os.getpid() and process.environ().get(_MARK_VARIABLE) in marks:
                found.append(process)
    return found
