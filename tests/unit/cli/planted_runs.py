"""Run directories as real runs leave them, snapshots, and a controller that only answers."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpc_marl.base.launch_record import JobRecord, LaunchRecord, write_launch_record
from hpc_marl.base.run_context import RunContext
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.security import create_keyring
from hpc_marl.control.controller_state import ControllerState, write_controller_state
from hpc_marl.control.worker_control import ZmqServer

RUN_UUID = "0123456789abcdef0123456789abcdef"


def plant(
    root: Path,
    name: str = "foraging/seed0",
    *,
    rows: Sequence[dict[str, Any]] = (),
    verdict: str = "",
    phase: str = "",
    jobs: Sequence[JobRecord] = (),
    is_open: bool = True,
    launched: float | None = None,
    host: str = "elsewhere",
    total_env_steps: int = 1000,
) -> RunDirectory:
    """Make the run directory of a trial.

    Args:
        root: where all experiments lie.
        name: EXPERIMENT/TRIAL.
        rows: of metrics.jsonl.
        verdict: status in state/verdict.json; "": none.
        phase: in state/controller.json; "": none.
        jobs: in launch.json.
        is_open: the keys and names of the run are there.
        launched: modification time of launch.json.
        host: where it was launched.
        total_env_steps: in config.yaml.
    """
    directory = RunDirectory(root, *name.split("/"))
    directory.create()
    record = LaunchRecord(
        experiment_name=directory.experiment_name,
        trial_name=directory.trial_name,
        run_uuid=RUN_UUID,
        epoch=1,
        interface=None,
        heartbeat_interval_s=0.5,
        orphan_grace_s=60.0,
        host=host,
        pid=os.getpid(),
        jobs=list(jobs),
    )
    write_launch_record(directory, record)
    if launched is not None:
        os.utime(directory.launch_file, (launched, launched))
    directory.config_file.write_text(json.dumps({"seed": 0, "total_env_steps": total_env_steps}, indent=2))
    if rows:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory.metrics / "metrics.jsonl").write_text(text)
    if phase:
        write_controller_state(directory, ControllerState(run_uuid=RUN_UUID, phase=phase))
    if verdict:
        plant_verdict(directory, verdict)
    if is_open:
        create_keyring(directory.auth(RUN_UUID))
    return directory


def plant_verdict(directory: RunDirectory, status: str, reason: str = "as planted") -> None:
    """Write state/verdict.json."""
    directory.verdict_file.write_text(json.dumps({"status": status, "reason": reason, "exit_code": 0}))


def plant_log(directory: RunDirectory, name: str, text: str) -> Path:
    """Write a file below logs."""
    path = directory.logs / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def job(job_id: str = "101", role: str = "core", slots: Sequence[int] = (0,)) -> JobRecord:
    return JobRecord(job_id=job_id, role=role, slots=list(slots))


def snapshot(
    num_actors: int = 3, *, per_slot: int = 1, pending: int = 0, elapsed_s: float = 60.0
) -> dict[str, Any]:
    """Return what a controller says of a run with one trainer, one policy worker and some actors.

    Args:
        num_actors: how many; the last of them wait for their slots.
        per_slot: actors in one slot.
        pending: slots whose jobs are still in the queue.
        elapsed_s: time of the run; counters grow with it.
    """
    num_slots = -(-num_actors // per_slot)
    slots = [_slot(0, "core", "101", "gpu1", ["trainer/0", "policy/0"])]
    workers = [
        _worker("trainer/0", 0, "gpu1", {"policy_lag": 1.25, "policy_version": 40, "env_steps": 420}),
        _worker("policy/0", 0, "gpu1", {"policy_version": 39, "rows": 100 * elapsed_s}),
    ]
    for k in range(num_slots):
        names = [f"actor/{i}" for i in range(k * per_slot, min((k + 1) * per_slot, num_actors))]
        is_pending = k >= num_slots - pending
        node = "" if is_pending else f"cpu{k + 1}"
        slots.append(_slot(k + 1, "actors", f"102_{k}", node, names))
        workers += [_worker(name, k + 1, node, {"env_steps_produced": 10 * elapsed_s}) for name in names]
    return {
        "experiment_name": "foraging",
        "trial_name": "seed0",
        "phase": "training",
        "verdict": "",
        "controller": {"host": "head", "pid": 4242, "kind": "session", "age_s": elapsed_s},
        "progress": {
            "env_steps": 420,
            "total_env_steps": 1000,
            "env_steps_per_s": 12345.6,
            "agent_steps_per_s": 24691.2,
            "return_mean": 0.8765,
            "policy_lag": 1.25,
            "policy_version": 40,
            "elapsed_s": elapsed_s,
            "eta_s": 312.0,
            "batches_produced": 100,
            "batches_consumed": 90,
            "batches_dropped": 2,
        },
        "actors": {"wanted": num_actors, "min": 1},
        "restarts": 1,
        "workers": workers,
        "slots": slots,
        "events": [[1_700_000_000.0 + i, f"event {i}"] for i in range(30)],
    }


def _worker(name: str, slot: int, node: str, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "status": "RUNNING" if node else "PENDING",
        "slot": slot,
        "life": 0,
        "node": node,
        "waiting": "" if node else "Resources",
        "cpu_percent": 95.0 if node else None,
        "rss_mb": 200.0 if node else None,
        "metrics": metrics if node else {},
        "last_error": "",
    }


def _slot(index: int, role: str, job_id: str, node: str, workers: list[str]) -> dict[str, Any]:
    return {
        "slot": index,
        "role": role,
        "status": "RUNNING" if node else "PENDING",
        "node": node,
        "job_id": job_id,
        "job_state": "RUNNING" if node else "PENDING",
        "reason": "" if node else "Resources",
        "expected_start": "" if node else "2026-11-03T14:00:00",
        "time_left_s": 3600.0 - index if node else None,
        "cpu_percent": 96.0 if node else None,
        "rss_mb": 250.0 if node else None,
        "gpu_percent": 33.0 if role == "core" else None,
        "workers": workers,
    }


class FakeController:
    """Serves RPC as the worker `controller` of a planted run, in a thread; a context manager.

    Attributes:
        calls: (command, arguments) so far.
    """

    def __init__(self, directory: RunDirectory, **handlers: Callable[..., Any]) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._context = RunContext.open(directory, RUN_UUID, interface=None)
        self._server = ZmqServer(
            directory.experiment_name, directory.trial_name, "controller", context=self._context
        )
        for command, handler in handlers.items():
            self._server.register_handler(command, self._noted(command, handler))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _noted(self, command: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        def call(**kwargs: Any) -> Any:
            self.calls.append((command, kwargs))
            return handler(**kwargs)

        return call

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._server.handle_requests(timeout=0.02)
        self._server.close()

    def __enter__(self) -> FakeController:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._context.close()


def this_host() -> str:
    return socket.gethostname()
