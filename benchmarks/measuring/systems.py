"""What is compared: environments alone, our training, the peer's training; each measured in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring.timeline import Point, Rates, middle_rates
from measuring.training import Training

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def measure_env_only(overrides: Sequence[str], seed: int, num_processes: int, seconds: float) -> Rates:
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
    return Rates(rate, {"env": sum(one["cpu_s"] / one["elapsed_s"] for one in found)})


def measure_training(overrides: Sequence[str], mode: str, seed: int) -> Rates:
    """Run the real command."""
    with tempfile.TemporaryDirectory() as root:
        settings = [f"mode={mode}", f"seed={seed}", "evaluation.episodes=1", "evaluation.num_envs=1"]
        training = Training([*overrides, *settings], Path(root))
        training.run()
        rate = middle_rates(training.points()).env_steps_per_s
        return Rates(rate, middle_rates(training.cpu_points).cores)


def measure_peer(overrides: Sequence[str], seed: int) -> Rates:
    """Train the same with stable-baselines3."""
    process = _start("stable_baselines3_ppo.py", {"overrides": overrides, "seed": seed})
    try:
        return middle_rates([Point(*point) for point in _result(process)])
    finally:
        _end([process])


def _start(program: str, arguments: Mapping[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).parent / program), json.dumps(arguments)]
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1")}
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
