"""How long a run takes from its command to its first update, and how soon many workers work.

command            Popen of `hpc-marl train experiment=cartpole_ppo` until its first row of metrics
start to sample    a worker's process launched by its host until the worker has finished its first batch, as one that
                   comes of the host's nursery (ours) and as one that is started as a program
many workers       200 actors of a stand-in environment on this machine until all of them are RUNNING

python benchmarks/start_up.py [--actors 200] [--repeats 5] [--quick]
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import psutil
from measuring.comparisons import shown, verdict
from measuring.reporting import machine_facts, markdown_table

from hpc_marl.base.descriptor_limit import raise_descriptor_limit
from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE
from hpc_marl.composing.compose import compose_experiment
from hpc_marl.control.worker_state import WorkerStatus
from hpc_marl.runs.driver import Driver
from hpc_marl.runs.interrupts import Ending
from hpc_marl.runs.session import prepare
from hpc_marl.views.display import PlainDisplay

FIRST_UPDATE_S, SAMPLE_S, RUNNING_S = 2.0, 3.0, 60.0
_MANY_BATCHES = 200
HEADER = ("what", "median", "lowest to highest", "goal", "")


def first_update_s(overrides: Sequence[str]) -> dict[str, float]:
    """Run the command until its first update; return when what had been reached [s]."""
    with tempfile.TemporaryDirectory() as root:
        names = [f"root={root}", "experiment_name=benchmark", "trial_name=run"]
        directory = RunDirectory(root, "benchmark", "run")
        started, started_at = time.monotonic(), time.time()
        with subprocess.Popen(
            [sys.executable, "-m", "hpc_marl.train", *overrides, *names],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            rows = directory.metrics / METRICS_FILE
            while process.poll() is None and not (rows.exists() and rows.stat().st_size):
                time.sleep(0.005)
            found = {"first update": time.monotonic() - started}
            found |= {what: at - started_at for what, at in _reached(directory)}
            process.terminate()
            process.wait()
        if process.returncode not in (0, 130):
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return found


def _reached(directory: RunDirectory) -> list[tuple[str, float]]:
    """Return what the logs tell, with wall-clock times."""
    looked_for = {
        "hosts are up": (directory.logs / "jobs", "*.out", r"host/\d+ pid \d+ serves"),
        "actors are up": (directory.logs / "actor", "*.log", r"actor/\d+ pid \d+ serves"),
        "the trainer is up": (directory.logs / "trainer", "*.log", r"trainer/\d+ pid \d+ serves"),
        "training starts": (directory.logs, "controller.log", r"training starts"),
    }
    found = []
    for what, (path, pattern, text) in looked_for.items():
        times = [
            time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")) + int(line[20:23]) / 1000
            for file in path.glob(pattern)
            for line in file.read_text().splitlines()
            if re.search(text, line)
        ]
        if times:
            found.append((what, max(times)))
    return found


def many_running_s(num_actors: int) -> float:
    """Bring up a run with so many actors; return the time until all are RUNNING [s]."""
    began = time.monotonic()
    running_s = float("inf")

    def poll(driver: Driver) -> Ending | None:
        nonlocal running_s
        views = driver.controller.workers.values()
        if any(view.status is not WorkerStatus.RUNNING for view in views):
            return None
        running_s = time.monotonic() - began
        return Ending.CANCEL

    _drive([f"actors.count={num_actors}", "actors.num_envs=1", "streams.sample_slots=1"], poll)
    return running_s


def first_sample_s() -> float:
    """Kill an actor at its work; return the time until a batch of its successor is known [s]."""
    name, before, killed_at, sample_s = "actor/1", 0, 0.0, float("inf")

    def poll(driver: Driver) -> Ending | None:
        nonlocal before, killed_at, sample_s
        view = driver.controller.workers[name]
        produced = int(view.metrics.get("batches_produced", 0))
        if not killed_at and produced > _MANY_BATCHES:
            for process in psutil.Process().children(recursive=True):
                if name in process.cmdline():
                    process.kill()
                    before, killed_at = produced, time.monotonic()
        elif killed_at and view.life == 1 and 0 < produced < before:
            sample_s = time.monotonic() - killed_at
            return Ending.CANCEL
        return None

    _drive(["control.heartbeat_interval_s=0.05"], poll)
    return sample_s


def _drive(overrides: Sequence[str], poll: Callable[[Driver], Ending | None]) -> None:
    with tempfile.TemporaryDirectory() as root:
        config = compose_experiment(
            ["experiment=matrix_game", f"root={root}", "total_env_steps=1000000000", *overrides]
        )
        config, directory, record = prepare(config)
        display = PlainDisplay(config.total_env_steps, io.StringIO())
        with Driver(config, directory, record, "session", display) as driver:
            driver.lease.acquire(0.0)
            driver.drive(poll)


def row(what: str, values: Sequence[float], goal: float | None = None) -> tuple[str, ...]:
    """Return one row of the table."""
    median = statistics.median(values)
    goal_text = "-" if goal is None else f"<= {goal:g} s"
    spread = f"{shown(min(values))} to {shown(max(values))} s"
    return (what, f"{shown(median)} s", spread, goal_text, verdict(median, goal))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--actors", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat, few actors")
    options = parser.parse_args()
    raise_descriptor_limit()
    repeats, actors = (1, 10) if options.quick else (options.repeats, options.actors)
    runs = [first_update_s(["experiment=cartpole_ppo"]) for _ in range(repeats)]
    rows = [
        row(f"command to: {what}", [run[what] for run in runs], FIRST_UPDATE_S if "update" in what else None)
        for what in sorted(runs[0], key=lambda what: runs[0][what])
    ]
    samples = [first_sample_s() for _ in range(repeats)]
    rows.append(row("an actor killed, to its successor's first samples", samples, SAMPLE_S))
    rows.append(row(f"{actors} actors RUNNING", [many_running_s(actors)], RUNNING_S))
    print(machine_facts())
    print(markdown_table(HEADER, rows))


if __name__ == "__main__":
    main()
