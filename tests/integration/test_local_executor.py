"""Runs on simulated nodes: jobs that wait for room, and the commands that steer a run from another shell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.conftest import Run, Train
from tests.integration.test_training import assert_ledger_balances

NEVER_DONE = "total_env_steps=100000000"


def command(run: Run, name: str, *arguments: str) -> str:
    """Run `hpc-marl NAME EXP` in another process; return what it printed."""
    reference = run.directory.parent.name
    done = subprocess.run(
        [sys.executable, "-m", "hpc_marl.cli", name, reference, *arguments, "--root", str(run.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + run.logs()
    return done.stdout


def snapshot(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command(run, "status", "--json"))
    return found


def workers(run: Run) -> dict[str, str]:
    """Return status or, while they wait, the reason of all workers."""
    return {worker["name"]: worker["waiting"] or worker["status"] for worker in snapshot(run)["workers"]}


def until(run: Run, condition: Callable[[], Any]) -> Any:
    return run.wait_until(condition, timeout_s=60)


def steps(run: Run) -> int:
    return int(snapshot(run)["progress"]["env_steps"])


def test_training_goes_on_while_an_actor_waits_for_room(train: Train) -> None:
    run = train(
        NEVER_DONE,
        "cluster.nodes=2",
        "cluster.node_cpus=2",
        "trainer.cpus=2",
        "actors.count=3",
        "actors.per_task=1",
        "actors.min_actors=2",
    )
    until(run, run.trained(1000))
    until(run, lambda: workers(run)["actor/0"] == "RUNNING")
    found = snapshot(run)
    assert found["phase"] == "training" and found["actors"] == {"wanted": 3, "min": 2}
    by_name = {worker["name"]: worker for worker in found["workers"]}
    assert {by_name[name]["status"] for name in ("trainer/0", "actor/0", "actor/1")} == {"RUNNING"}
    assert (by_name["actor/2"]["status"], by_name["actor/2"]["waiting"]) == ("PENDING", "Resources")
    assert by_name["trainer/0"]["node"] == "node0" and by_name["actor/1"]["node"] == "node1"
    assert [slot["job_state"] for slot in found["slots"]] == ["RUNNING"] * 3 + ["PENDING"]

    assert "scales to 2" in command(run, "scale", "actors=2")
    assert workers(run)["actor/2"] == "DRAINED"
    assert "stops" in command(run, "stop")
    assert run.finish() and run.process.returncode == 130
    assert_ledger_balances(run)


def test_pause_resume_checkpoint_and_stop(train: Train) -> None:
    run = train(NEVER_DONE, "trainer.checkpoint_interval_s=1000")
    until(run, run.trained(1000))
    assert "pauses" in command(run, "pause")
    until(run, lambda: set(workers(run).values()) == {"PAUSED"})
    before = steps(run)
    assert snapshot(run)["phase"] == "paused" and steps(run) == before
    checkpoint = Path(command(run, "checkpoint").strip())
    assert checkpoint.is_dir() and checkpoint.parent == run.directory / "checkpoints"
    assert "goes on" in command(run, "resume")
    until(run, lambda: steps(run) > before)
    assert "has ended INTERRUPTED" in command(run, "stop")
    output = run.finish()
    assert run.process.returncode == 130 and "stopped by command" in output
    assert run.state("state/verdict.json")["status"] == "INTERRUPTED"
    assert {path.name for path in (run.directory / "checkpoints").glob("step-*")} > {checkpoint.name}
    assert_ledger_balances(run)
    usage = [json.loads(path.read_text()) for path in (run.directory / "state" / "usage").glob("host-*.json")]
    assert {one["ended"] for one in usage} == {"DONE"}


def test_actors_come_and_go_by_command(train: Train) -> None:
    run = train(NEVER_DONE, "actors.per_task=1", "actors.count=2")
    until(run, run.trained(1000))
    command(run, "scale", "actors=3")
    until(run, lambda: workers(run).get("actor/2") == "RUNNING")
    reached = steps(run)
    command(run, "scale", "actors=1")
    until(run, lambda: run.worker_pid("actor/1") is None and run.worker_pid("actor/2") is None)
    found = workers(run)
    assert found["actor/0"] == "RUNNING" and found["actor/1"] in ("DRAINED", "COMPLETED")
    until(run, lambda: steps(run) > reached + 2000)
    assert snapshot(run)["restarts"] == 0
    command(run, "stop")
    run.finish()
    assert_ledger_balances(run)


def test_a_command_that_does_not_fit_is_refused_with_a_reason(train: Train) -> None:
    run = train(NEVER_DONE, "actors.min_actors=2")
    until(run, run.trained(500))
    done = subprocess.run(
        [sys.executable, "-m", "hpc_marl.cli", "scale", str(run.directory), "actors=1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and "actors=1: at least 2 (actors.min_actors" in done.stderr
    command(run, "cancel")
    assert run.finish() and run.process.returncode == 130
