"""Plans are values; the local launcher starts, watches and ends processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil

from hpc_marl.config import ActorGroupConfig, ExperimentConfig, ExtraGroupConfig, PolicyGroupConfig
from hpc_marl.launch import LocalLauncher, make_plan


def test_the_plan_names_every_worker() -> None:
    config = ExperimentConfig(
        inference="remote",
        actors=ActorGroupConfig(count=3, cpus=2, max_restarts=7),
        policies=PolicyGroupConfig(count=2),
        extra_workers={"monitor": ExtraGroupConfig(worker_class="a.b:C")},
    )
    plan = make_plan(config)
    assert plan.worker_names == [
        "trainer/0", "policy/0", "policy/1", "actor/0", "actor/1", "actor/2", "monitor/0",
    ]  # fmt: skip
    assert plan.group_of("actor/2").cpus == 2 and plan.group_of("actor/2").max_restarts == 7
    assert not any(name.startswith("policy") for name in make_plan(ExperimentConfig()).worker_names)


def wait_for_exit(launcher: LocalLauncher) -> list[tuple[str, int]]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if ended := launcher.exits():
            return ended
        time.sleep(0.02)
    raise AssertionError("the process did not end")


def test_a_worker_without_a_run_says_so_in_its_log_and_exits_1(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "exp" / "trial")
    launcher.launch("actor/0", life=3, num_threads=1)
    assert wait_for_exit(launcher) == [("actor/0", 1)]
    assert launcher.exits() == [] and not launcher.is_alive("actor/0")
    log = (tmp_path / "exp" / "trial" / "logs" / "actor" / "0.3.log").read_text()
    assert "holds no run" in log


def test_killed_processes_are_reaped_and_not_reported(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path / "exp" / "trial")
    launcher.launch("actor/0", life=0, num_threads=1)
    launcher.launch("actor/1", life=0, num_threads=1)
    pids = launcher.pids()
    assert set(pids) == {"actor/0", "actor/1"}
    assert os.getsid(pids["actor/0"]) == pids["actor/0"]  # Ctrl-C in our terminal does not reach it
    os.kill(pids["actor/1"], signal.SIGKILL)
    launcher.kill("actor/0")
    assert wait_for_exit(launcher) == [("actor/1", -signal.SIGKILL)]
    launcher.close()
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
