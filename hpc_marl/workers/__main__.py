"""`python -m hpc_marl.workers actor/3 --run-dir DIR`: one worker process, whoever launched it.

Every task of a Slurm job runs `... host --run-dir DIR --slots 2,5,7`; its array index or rank says which it fills.

    open the run's keys and names -> construct the worker on its server -> run() until told to exit -> exit code

Exit codes: 0 completed, 1 error, 2 usage, 75 interrupted (may be run again).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pkgutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_marl.base.launch_record import LaunchRecord, read_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory, atomic_write
from hpc_marl.base.telemetry import configure_logging
from hpc_marl.control.heartbeat_relay import HeartbeatRelay, HostHeartbeats
from hpc_marl.control.worker_base import Worker, WorkerServer
from hpc_marl.control.worker_control import ZmqServer
from hpc_marl.control.worker_state import WorkerStatus, exit_code
from hpc_marl.errors import ConfigError, HpcMarlError
from hpc_marl.workers import WORKER_KINDS
from hpc_marl.workers.child_processes import Inheritance
from hpc_marl.workers.nursery import Nurseries, start_nurseries
from hpc_marl.workers.process_identity import die_with_parent, leave
from hpc_marl.workers.waiting_host import WaitingHost, wait_for_orders

_log = logging.getLogger("hpc_marl.workers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker to its end and return the process's exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # Slurm's notice before a time limit goes to every process of a job; the host acts on it, and it kills by default.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    early: WaitingHost | None = None
    if options.ordered_by is not None:
        started = wait_for_orders(options.ordered_by)
        if isinstance(started, list):
            leave(main(started))  # not the host, but a worker that came of it
        if started is None:
            return 0
        early = started
        options = parser.parse_args(early.arguments)
    if options.run_dir is None:
        parser.error("--run-dir is required")
    if options.slots is not None:
        options.worker_name = f"host/{own_slot(options.slots, os.environ)}"
    configure_logging(options.worker_name, options.log_file)
    try:
        if options.parent is not None and not die_with_parent(options.parent):
            return exit_code(WorkerStatus.INTERRUPTED)
        directory = RunDirectory.at(options.run_dir)
        record = read_launch_record(directory)
        relay: HeartbeatRelay | None = None
        nurseries: Nurseries | None = None
        if (slot := _slot_of(options.worker_name)) is not None:
            relay, heavy = (early.relay, early.nursery) if early else (HeartbeatRelay(), None)
            found = start_nurseries(directory.path, record.role_of(slot) == "core", heavy)
            if isinstance(found, list):
                relay.leave_to_worker()
                leave(main(found))  # not the host any more, but a worker that came of it
            nurseries = found
        return _run(
            options.worker_name,
            directory,
            record,
            has_host=options.parent is not None,
            relay=relay,
            nurseries=nurseries,
        )
    except HpcMarlError as error:
        _log.error("%s: %s", type(error).__name__, error)
        return 1
    except Exception:  # noqa: BLE001  The worker main is the last place that can say what happened.
        _log.exception("%s failed", options.worker_name)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hpc_marl.workers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("worker_name", help="kind/index, such as actor/3; or host, with --slots")
    parser.add_argument("--run-dir", type=Path, help="the trial's directory: ROOT/EXPERIMENT/TRIAL")
    parser.add_argument("--log-file", type=Path, help="where to log; default: standard error")
    parser.add_argument(
        "--slots", help="slots of the job, such as 2,5,7: which one is this task's says Slurm"
    )
    parser.add_argument("--life", type=int, default=0, help="how often this worker was started before")
    parser.add_argument("--parent", type=int, help="end when this process, the parent, does")
    parser.add_argument("--ordered-by", type=int, help="host only: await orders of this process, the parent")
    parser.add_argument("--room", help="for longer arguments to be shown")
    return parser


def own_slot(slots: str, environment: Mapping[str, str]) -> int:
    """Return which of a job's slots this task fills.

    >>> own_slot("2,5,7", {"SLURM_ARRAY_TASK_ID": "1", "SLURM_PROCID": "0"})
    5

    Raises:
        ConfigError: the job has more tasks than slots, or these are not numbers.
    """
    rank = int(environment.get("SLURM_ARRAY_TASK_ID", environment.get("SLURM_PROCID", "0")))
    numbers = slots.split(",")
    if not all(number.isdigit() for number in numbers) or rank >= len(numbers):
        raise ConfigError(f"--slots {slots}: expected numbers as in 2,5,7, and at least {rank + 1} of them")
    return int(numbers[rank])


def _slot_of(worker_name: str) -> int | None:
    kind, _, index = worker_name.partition("/")
    return int(index) if kind == "host" else None


def _run(
    worker_name: str,
    directory: RunDirectory,
    record: LaunchRecord,
    *,
    has_host: bool,
    relay: HeartbeatRelay | None,
    nurseries: Nurseries | None,
) -> int:
    worker_class = resolve_kind(worker_name.partition("/")[0], record.worker_kinds)
    context = RunContext.open(
        directory, record.run_uuid, interface=record.interface, port_range=record.port_range
    )
    had_deputy = False
    try:
        server = ZmqServer(
            record.experiment_name,
            record.trial_name,
            worker_name,
            context=context,
            heartbeat_interval_s=record.heartbeat_interval_s,
            host=HostHeartbeats.of_this_process() if has_host else None,
            relay=relay,
        )
        made_for: dict[str, Inheritance] = {}
        if relay is not None and server.heartbeat is not None:
            environment = relay.environment(server.heartbeat)
            made_for["inheritance"] = Inheritance(nurseries, environment, (relay.workers_descriptor,))
        # A host hears the controller for all its workers, and ends them when it does not.
        grace_s = None if has_host else record.orphan_grace_s
        worker: Worker = worker_class(server, context, directory, orphan_grace_s=grace_s, **made_for)
        _exit_on_signals(worker)
        _log.info("%s pid %d serves", worker_name, os.getpid())
        try:
            worker.run()
        finally:
            had_deputy = getattr(worker, "had_deputy", False)
            write_final_word(directory, worker, server, context.incarnation)
            server.close()
        _log.info("%s ends %s", worker_name, worker.status.value)
        if worker_name.startswith("host/") and worker.status is not WorkerStatus.ERROR:
            return 0  # for srun, which would end the other tasks of the job while they still save
        return exit_code(worker.status)
    finally:
        context.close()
        if relay is not None:
            relay.close()
        if had_deputy and directory.verdict_file.exists():
            # The last one of a run that a deputy has ended; nobody needs its keys and names any more. A session sees to
            # that itself, when it has done with them.
            directory.forget_run(record.run_uuid)


def write_final_word(directory: RunDirectory, worker: Worker, server: WorkerServer, incarnation: str) -> None:
    """Write state/KIND-INDEX.INCARNATION.json: how this life of the worker ended and what it had counted."""
    word = {
        "worker_name": worker.name,
        "incarnation": incarnation,
        "status": worker.status.value,
        "metrics": dict(server.report.metrics),
        "error": worker.last_error,
    }
    name = f"{worker.name.replace('/', '-')}.{incarnation}.json"
    atomic_write(directory.state / name, json.dumps(word, indent=1).encode())


def resolve_kind(kind: str, extra: dict[str, str]) -> Any:
    """Return the Worker class of a kind.

    Raises:
        ConfigError: there is no such kind, or its class cannot be imported.
    """
    kinds = {**WORKER_KINDS, **extra}
    if kind not in kinds:
        raise ConfigError(f"no worker kind {kind!r}; there are {', '.join(kinds)}")
    try:
        return pkgutil.resolve_name(kinds[kind])
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"worker kind {kind!r} = {kinds[kind]!r} (module:Class) cannot be imported: {error}"
        ) from error


def _exit_on_signals(worker: Worker) -> None:
    """SIGTERM and SIGINT only set a flag; the worker's loop does the rest."""

    def handler(signal_number: int, frame: object) -> None:
        worker.request_exit()

    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)


if __name__ == "__main__":
    sys.exit(main())
