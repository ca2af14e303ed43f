"""What is compared: environments alone, our training, peers; each measured in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring.peers import THREAD_VARIABLES
from measuring.timeline import Rates
from measuring.training import Training
from measuring.watching import Outcome


def measure_env_only(overrides: Sequence[str], seed: int, num_processes: int, seconds: float) -> Outcome:
    """Step environments in `num_processes` processes at the same time."""
    arguments = {"overrides": overrides, "seconds": seconds}
    processes = [_start("env_only.py", {**arguments, "seed": seed + i}) for i in range(num_processes)]
    try:
        for process in processes:
            _await_ready(process)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [_result(process) for process in processes]
    finally:
        _end(processes)
    rate = sum(one["env_steps"] / one["elapsed_s"] for one in found)
    return Outcome(Rates(rate, {"env": sum(one["cpu_s"] / one["elapsed_s"] for one in found)}))


def measure_training(
    overrides: Sequence[str],
    mode: str,
    seed: int,
    env_steps: int,
    goal: float | None,
    *,
    returns_after: Sequence[int] = (),
) -> Outcome:
    """Run the real command, once to the goal, where there is one, and once for `env_steps`, to have a steady rate."""
    settings = [*overrides, f"mode={mode}", f"seed={seed}", "evaluation.episodes=1", "evaluation.num_envs=1"]
    found = _train([*settings, f"total_env_steps={env_steps}"], None, returns_after)
    return found if goal is None else _train(settings, goal)._replace(rates=found.rates)


def _train(settings: Sequence[str], goal: float | None, returns_after: Sequence[int] = ()) -> Outcome:
    with tempfile.TemporaryDirectory() as root:
        training = Training(settings, Path(root))
        training.run()
        return training.watched().outcome(goal, returns_after)


def _start(program: str, arguments: Mapping[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).parent / program), json.dumps(arguments)]
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:  # packages may print when they are imported
        if line == "ready\n":
            return
    raise subprocess.CalledProcessError(process.wait(), process.args)


def _result(process: subprocess.Popen[str]) -> Any:
    output, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return json.loads(output.splitlines()[-1])


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()
