"""Two trainer processes, the test their controller: who waits answers, who promised keeps it, who leaves is missed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc_marl.base.checkpoints import latest_checkpoint
from hpc_marl.config import ActorGroupConfig, TrainerGroupConfig, assignment
from hpc_marl.control.worker_control import ZmqWorkerControl
from hpc_marl.errors import RemoteError
from tests.unit.workers.trainer_trial import NUM_ENVS, MadeUpActor, Trial, make_config

NAMES = ("trainer/0", "trainer/1")
CONFIG = make_config(
    actors=ActorGroupConfig(count=2, num_envs=NUM_ENVS),
    trainer=TrainerGroupConfig(count=2, checkpoint_interval_s=100.0),
)


class Pair:
    """Two trainers that run, an actor for each, and the controller's end of the line."""

    def __init__(self, path: Path) -> None:
        self.trial = Trial(path)
        command = [sys.executable, "-m", "hpc_marl.workers"]
        where = ["--run-dir", str(self.trial.directory.path)]
        self.processes = {
            name: subprocess.Popen(
                [*command, name, *where, "--log-file", str(path / f"{name[-1]}.log")],
                stdin=subprocess.DEVNULL,
            )
            for name in NAMES
        }
        self.panel = ZmqWorkerControl("exp", "trial", context=self.trial.context())
        self.panel.connect(list(NAMES), timeout=60.0)
        for name in NAMES:
            given = assignment(CONFIG, name, epoch=1, life=0, num_actors=2)
            self.panel.request(name, "configure", config=given)
            self.panel.request(name, "start")
        self.actors = [MadeUpActor(self.trial, rank, name) for rank, name in enumerate(NAMES)]
        self._path = path

    def metrics(self, name: str) -> dict[str, Any]:
        """Ask a trainer for its metrics; it must answer soon."""
        found: dict[str, Any] = self.panel.request(name, "status", timeout=10.0)["metrics"]
        return found

    def versions(self) -> list[int]:
        """Return the policy versions of both."""
        return [int(self.metrics(name).get("policy_version", 0)) for name in NAMES]

    def play(self, condition: Callable[[], object]) -> None:
        """Let the actors act until the condition, which is looked at now and then, holds."""
        deadline = time.monotonic() + 60.0
        while not condition():
            assert time.monotonic() < deadline, "waited in vain\n" + self.logs()
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                for actor in self.actors:
                    actor.poll()
                time.sleep(0.001)

    def settled(self) -> int:
        """Let the actors act until nothing happens any more; return the policy version of both."""
        seen: list[list[int]] = []
        looks = 30  # of 0.05 s and two requests each; heartbeats' metrics are a quarter of a second old

        def is_still() -> bool:
            seen.append(self.versions())
            return len(seen) > looks and all(versions == [seen[-1][0]] * 2 for versions in seen[-looks:])

        self.play(is_still)
        return seen[-1][0]

    def logs(self) -> str:
        """Return what the trainers logged."""
        return "\n".join(path.read_text()[-4000:] for path in sorted(self._path.glob("*.log")))

    def wait(self, name: str) -> int:
        """Return a trainer's exit code."""
        return self.processes[name].wait(timeout=60.0)

    def close(self) -> None:
        """Leave nothing behind."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        for actor in self.actors:
            actor.close()
        self.panel.close()
        self.trial.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_trainer_that_waits_for_the_other_answers_and_a_paused_one_keeps_its_promise(pair: Pair) -> None:
    second = pair.actors[1]
    pair.play(lambda: min(pair.versions()) >= 2)
    # trainer/1 alone has nothing to learn from: both wait, and answer
    second.muted = True
    version = pair.settled()
    path = pair.panel.request("trainer/0", "checkpoint", timeout=20.0)
    assert path.endswith(f"step-{version:06d}.e0001")
    with pytest.raises(RemoteError, match="trainer/0 does"):
        pair.panel.request("trainer/1", "checkpoint", timeout=20.0)
    # trainer/0 cannot go yet: it is paused. trainer/1 says that it is ready, and is paused too.
    assert pair.panel.request("trainer/0", "pause") == "PAUSED"
    second.muted = False
    assert pair.settled() == version
    assert pair.panel.request("trainer/1", "pause") == "PAUSED"
    # trainer/0 goes on alone; the other keeps what it promised, and no more than that
    pair.panel.request("trainer/0", "start")
    pair.play(lambda: min(pair.versions()) > version)
    assert pair.settled() == version + 1
    pair.panel.request("trainer/1", "start")
    pair.play(lambda: min(pair.versions()) > version + 1)


def test_both_leave_at_once_in_the_midst_of_training(pair: Pair) -> None:
    pair.play(lambda: min(pair.versions()) >= 2)
    calls = [pair.panel.async_request(name, "interrupt", timeout=20.0) for name in NAMES]
    assert [call.result(20.0) for call in calls] == ["INTERRUPTED"] * 2
    assert [pair.wait(name) for name in NAMES] == [75, 75], pair.logs()
    words = [json.loads(path.read_text()) for path in pair.trial.directory.state.glob("trainer-*.json")]
    assert words[0]["metrics"]["env_steps"] == words[1]["metrics"]["env_steps"]
    ledger = json.loads(pair.trial.directory.ledger_file.read_text())
    assert ledger["produced"] == ledger["consumed"] + sum(ledger["dropped"].values())
    assert ledger["consumed_env_steps"] == words[0]["metrics"]["env_steps"]
    found = latest_checkpoint(pair.trial.directory.checkpoints)
    assert found is not None and found.step == words[0]["metrics"]["policy_version"]
    assert len(found.state["ledgers"]) == 2


def test_one_may_leave_and_the_other_still_accounts_for_both(pair: Pair) -> None:
    pair.play(lambda: min(pair.versions()) >= 2)
    pair.panel.request("trainer/1", "exit")
    assert pair.wait("trainer/1") == 0, pair.logs()
    assert pair.panel.request("trainer/0", "ping", timeout=10.0) == "RUNNING"
    steps = pair.metrics("trainer/0")["env_steps"]
    pair.panel.request("trainer/0", "exit")
    assert pair.wait("trainer/0") == 0, pair.logs()
    ledger = json.loads(pair.trial.directory.ledger_file.read_text())
    assert ledger["consumed_env_steps"] == steps
    assert ledger["produced"] == ledger["consumed"] + sum(ledger["dropped"].values())


def test_the_death_of_one_lets_the_other_end(pair: Pair) -> None:
    """Either the other waits and can be told to exit, or it was in the midst of an update and fails by itself."""
    pair.play(lambda: min(pair.versions()) >= 2)
    os.kill(pair.processes["trainer/1"].pid, signal.SIGKILL)
    if pair.processes["trainer/0"].poll() is None:
        pair.panel.async_request("trainer/0", "exit", timeout=20.0)
    assert pair.wait("trainer/0") in (0, 1), pair.logs()
    ledger = json.loads(pair.trial.directory.ledger_file.read_text())
    assert ledger["produced"] == ledger["consumed"] + sum(ledger["dropped"].values())
