"""What happens when processes die, hang or are told to stop, on real processes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Run, Train
from tests.integration.test_training import assert_ledger_balances


def left_behind(run: Run, before: set[int]) -> list[str]:
    """Return what a run should not leave: processes of its directory, keys, names, sockets, shared memory."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if process.pid not in before and str(run.root) in " ".join(process.info["cmdline"] or []):
            found.append(f"process {process.info}")
    found += [str(path) for path in run.root.rglob("*") if path.name.startswith("run-") or path.is_socket()]
    found += [str(path) for path in Path("/dev/shm").glob("*hpc_marl*")]
    return found


def test_ctrl_c_leaves_a_checkpoint_and_nothing_else_and_resume_goes_on(train: Train) -> None:
    before = set(psutil.pids())
    run = train("total_env_steps=1000000")
    run.wait_until(run.trained(3000))
    run.signal(signal.SIGINT)
    output = run.finish(timeout_s=30)
    assert run.process.returncode == 130, output
    assert "resume=true" in output
    assert left_behind(run, before) == []
    stopped = run.metrics()[-1]
    checkpoint = max((run.directory / "checkpoints").glob("step-*"))
    assert int(checkpoint.name.split(".")[0].split("-")[1]) == stopped["policy_version"]

    first = run.directory
    total = stopped["env_steps"] + 4000
    resumed = train(f"total_env_steps={total}", "resume=true")
    resumed.finish_well()
    assert resumed.directory == first
    rows = resumed.metrics()
    continued = [row for row in rows if row["env_steps"] > stopped["env_steps"]]
    assert continued[0]["policy_version"] == stopped["policy_version"] + 1
    assert rows[-1]["env_steps"] >= total
    assert left_behind(resumed, before) == []


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_killed_actors_are_replaced_while_training_goes_on(train: Train, mode: str) -> None:
    run = train("total_env_steps=400000", f"mode={mode}", "algorithm.rollout_length=32")
    run.wait_until(run.trained(1000))
    killed = set()
    for worker in ("actor/0", "actor/1", "actor/0"):
        killed.add(run.kill_worker(worker))
        reached = run.metrics()[-1]["env_steps"]
        run.wait_until(lambda name=worker: run.worker_pid(name) not in {None, *killed})  # type: ignore[misc]
        run.wait_until(run.trained(reached + 2000))
    output = run.finish_well()
    assert len(killed) == 3 and output.count("killed by signal 9") == 3
    assert_ledger_balances(run)
    assert run.state("evaluation.json")["return_mean"] > 6.0


@pytest.mark.parametrize("inference", ["inline", "remote"])
def test_a_killed_trainer_goes_on_from_the_checkpoint(train: Train, inference: str) -> None:
    run = train("total_env_steps=200000", f"inference={inference}", "trainer.checkpoint_interval_s=0.5")
    run.wait_until(lambda: list((run.directory / "checkpoints").glob("step-*")) if run.metrics() else None)
    run.wait_until(run.trained(4000))
    run.kill_worker("trainer/0")
    run.finish_well()
    epochs = {path.name.rpartition(".e")[2] for path in (run.directory / "checkpoints").glob("step-*")}
    assert max(epochs) == "0002"
    rows = run.metrics()
    versions = [row["policy_version"] for row in rows]
    # It went on from a checkpoint, with that one's counters: not from scratch. What came after the checkpoint is
    # learned again, if there was anything.
    assert versions.count(1) == 1
    again = [i for i in range(1, len(rows)) if versions[i] <= versions[i - 1]]
    assert len(again) <= 1
    for i in again:
        saved = next(row for row in rows[:i] if row["policy_version"] == versions[i] - 1)
        assert 0 < rows[i]["env_steps"] - saved["env_steps"] <= 2 * 8 * 16
    assert_ledger_balances(run)


def test_a_killed_policy_worker_is_replaced(train: Train) -> None:
    run = train("total_env_steps=150000", "inference=remote", "streams.inference_timeout_s=0.5")
    run.wait_until(run.trained(2000))
    run.kill_worker("policy/0")
    reached = run.metrics()[-1]["env_steps"]
    run.wait_until(run.trained(reached + 4000))
    run.finish_well()
    assert_ledger_balances(run)


def test_a_hanging_actor_is_killed_and_replaced(train: Train) -> None:
    run = train("total_env_steps=150000", "control.heartbeat_timeout_s=2")
    run.wait_until(run.trained(1000))
    pid = run.wait_until(lambda: run.worker_pid("actor/1"))
    os.kill(pid, signal.SIGSTOP)
    run.wait_until(lambda: run.worker_pid("actor/1") not in (None, pid))
    run.finish_well()
    assert_ledger_balances(run)


def test_workers_and_hosts_end_by_themselves_when_the_controller_is_gone(train: Train) -> None:
    before = set(psutil.pids())
    run = train("total_env_steps=100000000", "control.orphan_grace_s=2")
    run.wait_until(run.trained(1000))
    processes = psutil.Process(run.process.pid).children(recursive=True)
    commands = [" ".join(process.cmdline()) for process in processes]
    for worker in ("trainer/0", "actor/0", "actor/1", "host --run-dir"):
        assert any(worker in command for command in commands), commands
    run.signal(signal.SIGKILL)
    run.finish()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert list((run.directory / "checkpoints").glob("step-*"))
    assert [found for found in left_behind(run, before) if found.startswith("process")] == []


def test_a_failing_environment_ends_the_run_with_its_traceback(train: Train) -> None:
    run = train("env.make._target_=tests.integration.failing_env.FailingEnv", "control.stop_timeout_s=3")
    output = run.finish(timeout_s=90)
    assert run.process.returncode == 1
    assert "level 7 is not there" in output


@pytest.mark.slow
def test_a_minute_of_killing_random_actors(train: Train) -> None:
    """kill -9 of a random actor every 5 s for a minute: training ends normally, the ledger balances."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    choose = random.Random(seed)
    run = train("experiment=lbf_mappo", "total_env_steps=600000", small=False)
    run.wait_until(run.trained(1000), timeout_s=120)
    end = time.monotonic() + 60
    kills = 0
    while time.monotonic() < end and run.process.poll() is None:
        run.kill_worker(f"actor/{choose.randrange(2)}")
        kills += 1
        time.sleep(5)
    run.finish_well(timeout_s=400)
    ledger = assert_ledger_balances(run)
    assert kills >= 8, ledger
