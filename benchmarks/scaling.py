"""Scale: how throughput grows with the number of actors of one trainer, beside the model of docs/scaling.md.

    for 1, 2, 4 ... 64 actors:  hpc-marl train env=stand_in actors.count=N     (every environment step sleeps 1 ms)

The environment only sleeps, so many actors fit on few cores and what is seen is the system: each actor adds its own
rate until the CPU time of an environment step (actor, trainer and controller together) fills the cores. The model
takes the rate of one actor and the CPU time per step of the largest run whose cores are not full, and nothing else.

    python benchmarks/scaling.py [--quick] [--actors 1 2 4 8 16 32 64] [--seconds 10]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring.reporting import in_words, machine_facts, markdown_table
from measuring.scaling_model import Cluster, Costs, Load, first_bottleneck, loads, predicted_rate
from measuring.timeline import Point
from measuring.training import Training, TrainingError, stop_in_order_on_sigterm

GOAL = 0.9
"""Of N times the rate of one actor, wherever the cores are not full."""
FULL = 0.9
"""Share of the cores from which on they count as full."""
ROLLOUT_LENGTH = 100
LOADS_HEADER = ("part", "asked for", "can do", "unit", "load", "the design's answer")
BIG = Cluster(
    actors=15_000,
    trainers=32,
    actors_per_node=64,
    env_steps_per_s=1000.0,
    bytes_per_env_step=160.0,
    env_steps_per_batch=2048,
    parameter_bytes=1e6,
    updates_per_s=2.0,
)
"""Environments of 1 ms per step and about 30 observed numbers, a network of 1 MB, two updates a second."""
COSTS = Costs(
    receive_bytes_per_s=1.1e9,  # sample_stream.py: images across sockets
    send_bytes_per_s=1.1e9,  # parameter_stream.py: CPU of the I/O thread per MB
    receive_cpu_s=60e-6,  # sample_stream.py: half of what both ends take for a batch across sockets
    learn_s=4.8e-6,  # ppo_update.py: whole updates of large minibatches, 4 epochs, one core
    heartbeat_cpu_s=85e-6,  # controller_footprint.py: 1000 workers, of which 100 are heard of per second
    heartbeats_per_s=100.0,  # heartbeat intervals are at least workers / 100 seconds
    file_operations_per_worker_s=0.07 / 60,  # controller_footprint.py, 1000 workers
    file_operations_per_host_s=3 / 15,  # state/usage: write, rename and look every 15 s
    file_operations_per_s=1000.0,  # a modest NFS server
)
"""As measured on the machine of docs/performance.md; the last one is an assumption."""
HEADER = (
    *("actors", "env_steps/s", "of linear", "goal", "cores busy", "actor", "trainer", "controller"),
    *("us CPU per env_step", "model", "measured / model"),
)


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        actors: how many.
        env_steps_per_s: trained, once all actors take part.
        cores: CPU seconds per second, by part.
    """

    actors: int
    env_steps_per_s: float
    cores: Mapping[str, float]

    @property
    def cpu_s_per_env_step(self) -> float:
        """CPU seconds of all processes per environment step."""
        return sum(self.cores.values()) / self.env_steps_per_s


def measure(num_actors: int, seconds: float) -> Measured:
    """Train for about `seconds` with so many actors; all of them are there when it begins."""
    env_steps = int(num_actors * 900 * seconds)
    overrides = [
        *("env=stand_in", "algorithm=ppo", "mode=async", "seed=1", "policy.hidden_sizes=[64,64]"),
        *(f"actors.count={num_actors}", f"actors.min_actors={num_actors}", "actors.num_envs=1"),
        *(
            f"algorithm.rollout_length={ROLLOUT_LENGTH}",
            "algorithm.num_epochs=1",
            "algorithm.num_minibatches=1",
        ),
        *("algorithm.max_policy_lag=1000", f"total_env_steps={env_steps}", "evaluation.episodes=1"),
    ]
    with tempfile.TemporaryDirectory() as root:
        training = Training(overrides, Path(root))
        training.run()
        env_steps_per_s, _ = _rate(training.points(), 0.3)
        _, cores = _rate(training.cpu_points, 0.3)
    return Measured(num_actors, env_steps_per_s, cores)


def table_rows(runs: Sequence[Measured], num_cores: int) -> list[list[str]]:
    """Return one row per run, the smallest number of actors first."""
    first = runs[0]
    single_rate = first.env_steps_per_s / first.actors
    free = [run for run in runs if sum(run.cores.values()) < FULL * num_cores]
    cpu_s = (free or runs)[-1].cpu_s_per_env_step
    rows = []
    for run in runs:
        linear = run.env_steps_per_s / (run.actors * single_rate)
        model = predicted_rate(run.actors, single_rate, cpu_s, num_cores)
        verdict = "cores are full" if run not in free else in_words(linear >= GOAL)
        rows.append(
            [
                str(run.actors),
                f"{run.env_steps_per_s:,.0f}",
                f"{linear:.1%}",
                verdict,
                f"{sum(run.cores.values()):.2f} of {num_cores}",
                *(f"{run.cores.get(part, 0.0):.2f}" for part in ("actor", "trainer", "controller")),
                f"{1e6 * run.cpu_s_per_env_step:.0f}",
                f"{model:,.0f}",
                f"{run.env_steps_per_s / model:.2f}",
            ]
        )
    return rows


def load_rows(found: Sequence[Load]) -> list[list[str]]:
    """Return one row per part of a run."""
    return [
        [
            load.part,
            f"{load.demand:,.3g}",
            f"{load.capacity:,.4g}",
            load.unit,
            f"{load.share:.0%}",
            load.answer,
        ]
        for load in found
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parse(arguments)
    num_cores = len(os.sched_getaffinity(0))
    print(machine_facts(), file=sys.stderr, flush=True)
    runs = []
    for num_actors in options.actors:
        runs.append(measure(num_actors, options.seconds))
        print(
            f"{num_actors} actors: {runs[-1].env_steps_per_s:,.0f} env_steps/s", file=sys.stderr, flush=True
        )
    print(markdown_table(HEADER, table_rows(runs, num_cores)))
    print(f"\nGoal: {GOAL:.0%} of linear until {FULL:.0%} of the cores are busy. {machine_facts()}.\n")
    found = loads(BIG, COSTS)
    print(f"The model at {BIG.actors:,} actors and {BIG.trainers} trainers; first bottleneck: ", end="")
    print(f"{first_bottleneck(found).part}.\n\n{markdown_table(LOADS_HEADER, load_rows(found))}")
    return 0


def _rate(points: Sequence[Point], start: float) -> tuple[float, Mapping[str, float]]:
    """Return env_steps/s and cores in use from `start` (a share of all env_steps) to the last update."""
    last_env_steps = points[-1].env_steps
    inside = [point for point in points if start * last_env_steps <= point.env_steps]
    inside = [point for point in inside if point.env_steps < last_env_steps] or inside
    if len(inside) < 2:
        raise TrainingError(f"too few updates to measure a rate: {len(points)} in all; take more --seconds")
    first, last = inside[0], inside[-1]
    elapsed_s = last.time_s - first.time_s
    cores = {part: (cpu_s - first.cpu_s.get(part, 0.0)) / elapsed_s for part, cpu_s in last.cpu_s.items()}
    return (last.env_steps - first.env_steps) / elapsed_s, cores


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1, 2 and 4 actors for 4 seconds each")
    parser.add_argument("--actors", type=int, nargs="+", help="default: 1 2 4 8 16 32 64")
    parser.add_argument(
        "--seconds", type=float, help="training time of each, start-up not counted; default: 10"
    )
    options = parser.parse_args(arguments)
    options.actors = sorted(options.actors or ([1, 2, 4] if options.quick else [1, 2, 4, 8, 16, 32, 64]))
    options.seconds = options.seconds or (4.0 if options.quick else 10.0)
    return options


if __name__ == "__main__":
    stop_in_order_on_sigterm()
    try:
        sys.exit(main())
    except (TrainingError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
