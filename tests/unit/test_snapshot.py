"""The snapshot: what `status` shows, as plain values under fixed keys."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from hpc_marl.config import ActorGroupConfig, ExperimentConfig
from hpc_marl.control.controller import TRAINER, Controller, Phase
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.control.worker_view import WorkerView
from hpc_marl.runs.snapshot import progress_of, snapshot_of
from tests.unit.control.played_site import CORE, FIRST, SECOND, Site

CONFIG = ExperimentConfig(
    experiment_name="exp",
    trial_name="trial",
    total_env_steps=1000,
    actors=ActorGroupConfig(count=3, min_actors=2),
)
NAMES = (TRAINER, "actor/0", "actor/1", "actor/2")


def played() -> tuple[Controller, Site]:
    """Return a run whose core and first actors are there; the last actor waits."""
    site = Site()
    views = [WorkerView(name, 3, 1) for name in NAMES]
    controller = Controller(CONFIG, views, site, site.launcher, epoch=1, clock=lambda: site.now)  # type: ignore[arg-type]
    controller.launch()
    site.step()
    site.appear(CORE)
    site.appear(FIRST)
    site.step()
    site.step()
    return controller, site


def snapshot(controller: Controller, site: Site, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "kind": "job",
        "age_s": 3.0,
        "elapsed_s": 10.0,
        "verdict": "",
        "events": [(1.5, "training starts")],
        **changes,
    }
    return snapshot_of(controller, site.launcher, CONFIG, **values)


def test_the_keys_are_those_that_are_promised() -> None:
    controller, site = played()
    found = snapshot(controller, site)
    assert set(found) == {
        "experiment_name", "trial_name", "phase", "verdict", "controller", "progress", "actors", "restarts",
        "workers", "slots", "events",
    }  # fmt: skip
    assert found["controller"] == {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "kind": "job",
        "age_s": 3.0,
    }
    assert set(found["progress"]) == {
        "env_steps", "total_env_steps", "env_steps_per_s", "agent_steps_per_s", "return_mean", "policy_lag",
        "policy_version", "elapsed_s", "eta_s", "batches_produced", "batches_consumed", "batches_dropped",
    }  # fmt: skip
    assert found["actors"] == {"wanted": 3, "min": 2}
    for worker in found["workers"]:
        assert set(worker) == {
            "name", "status", "slot", "life", "node", "waiting", "cpu_percent", "rss_mb", "metrics", "last_error",
        }  # fmt: skip
    for slot in found["slots"]:
        assert set(slot) == {
            "slot", "role", "status", "node", "job_id", "job_state", "reason", "expected_start", "time_left_s",
            "cpu_percent", "rss_mb", "gpu_percent", "workers",
        }  # fmt: skip
    assert found["events"] == [[1.5, "training starts"]]
    assert json.loads(json.dumps(found)) == found


def test_who_waits_and_for_what() -> None:
    controller, site = played()
    found = snapshot(controller, site)
    workers = {worker["name"]: worker for worker in found["workers"]}
    assert (workers["actor/2"]["status"], workers["actor/2"]["waiting"]) == ("PENDING", "Resources")
    assert (workers["actor/0"]["status"], workers["actor/0"]["node"]) == ("UNKNOWN", "node1")
    slots = {slot["slot"]: slot for slot in found["slots"]}
    assert (slots[CORE]["status"], slots[CORE]["job_state"], slots[CORE]["role"]) == (
        "RUNNING",
        "RUNNING",
        "core",
    )
    assert (slots[SECOND]["status"], slots[SECOND]["reason"]) == ("PENDING", "Resources")
    assert slots[SECOND]["job_id"] == "102" and slots[SECOND]["time_left_s"] is None
    assert slots[FIRST]["workers"] == ["actor/0", "actor/1"]
    progress = progress_of(controller, site.launcher, CONFIG, 10.0)
    assert progress.waiting == {"actors": "1 waiting: Resources"}


def test_progress_phase_and_workers_that_left() -> None:
    controller, site = played()
    found = snapshot(controller, site)
    assert found["phase"] == "starting" and found["progress"]["return_mean"] is None
    assert found["progress"]["eta_s"] is None and found["progress"]["total_env_steps"] == 1000

    controller.phase = Phase.TRAINING
    trainer = controller.workers[TRAINER]
    trainer.status = WorkerStatus.RUNNING
    trainer.metrics = {"env_steps": 600, "env_steps_per_s": 40.0, "return_mean": 1.5, "batches_consumed": 7}
    controller.workers["actor/2"].drained = True
    controller.workers["actor/1"].last_error = "x" * 600
    site.launcher.release([SECOND])
    found = snapshot(controller, site)
    assert found["phase"] == "training" and found["progress"]["eta_s"] == 10.0
    assert found["progress"]["return_mean"] == 1.5 and found["progress"]["batches_consumed"] == 7
    assert len(found["workers"][2]["last_error"]) == 500
    assert found["workers"][3]["status"] == "DRAINED" and found["slots"][SECOND]["status"] == "DRAINED"
    controller.is_paused = True
    assert snapshot(controller, site)["phase"] == "paused"
    assert snapshot(controller, site, verdict="COMPLETED")["verdict"] == "COMPLETED"
