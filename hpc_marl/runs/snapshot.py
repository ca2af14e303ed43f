"""What a controller knows, as plain values: for the display beside it, and for `status` and `top` elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from hpc_marl.config import ExperimentConfig
from hpc_marl.control.controller import TRAINER, Controller, Phase
from hpc_marl.control.host_launcher import HostLauncher
from hpc_marl.control.slot_view import SlotView
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import WorkerView
from hpc_marl.views.display import Progress

PENDING = "PENDING"
DRAINED = "DRAINED"
# A trainer that is being started again has figures of the life before, but does nothing.
_AWAY = (WorkerStatus.UNKNOWN, WorkerStatus.LOST, WorkerStatus.ERROR, WorkerStatus.INTERRUPTED)
_MAX_ERROR_CHARACTERS = 500


def progress_of(
    controller: Controller, launcher: HostLauncher, config: ExperimentConfig, elapsed_s: float
) -> Progress:
    """Return where a run stands."""
    trainer = controller.workers[TRAINER]
    metrics, is_away = trainer.metrics, trainer.status in _AWAY
    env_steps = int(metrics.get("env_steps", 0))
    rate, agent_rate = (
        0.0 if is_away else float(metrics.get(name, 0.0)) for name in ("env_steps_per_s", "agent_steps_per_s")
    )
    return_mean = metrics.get("return_mean")
    return Progress(
        env_steps=env_steps,
        env_steps_per_s=rate,
        agent_steps_per_s=agent_rate,
        return_mean=None if return_mean is None else float(return_mean),
        policy_lag=float(metrics.get("policy_lag", 0.0)),
        policy_version=int(metrics.get("policy_version", 0)),
        workers={name: _status(worker, launcher) for name, worker in controller.workers.items()},
        restarts=controller.faults.restarts,
        elapsed_s=elapsed_s,
        eta_s=max(config.total_env_steps - env_steps, 0) / rate if rate > 0 else None,
        waiting=_reasons(controller, launcher),
    )


def snapshot_of(
    controller: Controller,
    launcher: HostLauncher,
    config: ExperimentConfig,
    *,
    kind: str,
    age_s: float,
    elapsed_s: float,
    verdict: str,
    events: Sequence[tuple[float, str]],
) -> dict[str, Any]:
    """Return everything that `hpc-marl status --json` prints.

    Args:
        controller: of the run.
        launcher: its places.
        config: the experiment.
        kind: of the controller: session or job.
        age_s: of the controller.
        elapsed_s: of the run.
        verdict: how it ended; "" while it has not.
        events: (unix time, what happened), newest last.
    """
    progress = progress_of(controller, launcher, config, elapsed_s)
    metrics = controller.workers[TRAINER].metrics
    fields = (
        "env_steps",
        "env_steps_per_s",
        "agent_steps_per_s",
        "return_mean",
        "policy_lag",
        "policy_version",
        "elapsed_s",
        "eta_s",
    )
    is_training = controller.phase is Phase.TRAINING
    return {
        "experiment_name": config.experiment_name,
        "trial_name": config.trial_name,
        "phase": "paused" if controller.is_paused and is_training else controller.phase.value,
        "verdict": verdict,
        "controller": {"host": socket.gethostname(), "pid": os.getpid(), "kind": kind, "age_s": age_s},
        "progress": {
            **{name: getattr(progress, name) for name in fields},
            "total_env_steps": config.total_env_steps,
            **{
                name: metrics.get(name, 0)
                for name in ("batches_produced", "batches_consumed", "batches_dropped")
            },
        },
        "actors": {"wanted": controller.num_actors, "min": config.actors.min_actors},
        "restarts": controller.faults.restarts,
        "workers": [_worker(worker, launcher) for worker in controller.workers.values()],
        "slots": [_slot(slot, launcher) for slot in launcher.slots.values()],
        "events": [list(event) for event in events],
    }


def _status(worker: WorkerView, launcher: HostLauncher) -> str:
    if worker.drained:
        return DRAINED if worker.status is not WorkerStatus.COMPLETED else worker.status.value
    waits = worker.status is WorkerStatus.UNKNOWN and launcher.waiting_for(worker.name)
    return PENDING if waits else worker.status.value


def _reasons(controller: Controller, launcher: HostLauncher) -> dict[str, str]:
    """Return why slots are not filled yet, by role: `actors` -> `3 jobs pending: Resources`."""
    reasons: dict[str, dict[str, int]] = {}
    for slot in launcher.slots.values():
        if slot.is_up or slot.parked:
            continue
        report = launcher.jobs.report(slot.spec.index)
        reason = (report.reason or report.state.value) if report is not None else slot.lost or "not submitted"
        starts = (
            f" (expected {report.expected_start})" if report is not None and report.expected_start else ""
        )
        counts = reasons.setdefault(slot.spec.role, {})
        counts[reason + starts] = counts.get(reason + starts, 0) + 1
    return {
        role: ", ".join(f"{count} waiting: {reason}" for reason, count in counts.items())
        for role, counts in reasons.items()
    }


def _worker(worker: WorkerView, launcher: HostLauncher) -> dict[str, Any]:
    slot = launcher.place_of(worker.name)
    return {
        "name": worker.name,
        "status": _status(worker, launcher),
        "slot": slot.spec.index,
        "life": worker.life,
        "node": slot.metric("node", ""),
        "waiting": launcher.waiting_for(worker.name) if worker.is_wanted else "",
        "cpu_percent": slot.metric(f"cpu/{worker.name}"),
        "rss_mb": slot.metric(f"rss/{worker.name}"),
        "metrics": dict(worker.metrics),
        "last_error": worker.last_error[-_MAX_ERROR_CHARACTERS:],
    }


def _slot(slot: SlotView, launcher: HostLauncher) -> dict[str, Any]:
    report = launcher.jobs.report(slot.spec.index)
    left_s = slot.metric("time_left_s", -1.0)
    status = "RUNNING" if slot.is_up else "LOST" if slot.silent else PENDING
    return {
        "slot": slot.spec.index,
        "role": slot.spec.role,
        "status": DRAINED if slot.parked else status,
        "node": slot.metric("node") or (report.node if report else ""),
        "job_id": slot.metric("job_id") or (report.job_id if report else ""),
        # A host that is heard runs, whatever the queue said a minute ago.
        "job_state": "RUNNING"
        if slot.is_up
        else DRAINED
        if slot.parked
        else report.state.value
        if report
        else "",
        "reason": "" if slot.is_up else (report.reason if report else slot.lost),
        "expected_start": "" if slot.is_up or report is None else report.expected_start,
        "time_left_s": None if left_s is None or left_s < 0 else left_s,
        "cpu_percent": slot.metric("cpu_percent"),
        "rss_mb": slot.metric("rss_mb"),
        "gpu_percent": slot.metric("gpu_percent"),
        "workers": list(slot.spec.workers),
    }
