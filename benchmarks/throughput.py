"""Throughput: which fraction of the environments' own stepping rate training reaches, beside a peer in the same run.

    repeat R times, interleaved: env only | hpc-marl train (async) | hpc-marl train (sync) | stable-baselines3
    -> per row the median rate; ratios are taken within each repeat, then their median

`env only` steps the same environments with random actions and nothing else, in as many processes as there are
actors: on as many free cores no training can be faster. Training rates are those of the middle of the run. Every
process has one thread. The peer's PPO has the same networks, batch, minibatches and epochs; on LBF each agent is one
of its environments, with shared parameters and, as it knows no other, a local critic.

    python benchmarks/throughput.py [--quick] [--repeats 3] [--environments cartpole lbf] [--actors 2]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from measuring.reporting import machine_facts, markdown_table
from measuring.systems import measure_env_only, measure_peer, measure_training
from measuring.timeline import Rates
from measuring.training import TrainingError, stop_in_order_on_sigterm

ENV_ONLY, PEER = "env only", "stable-baselines3 PPO"
MODES = ("async", "sync")
_UNDISTURBED = 0.95  # of the cores that it could have used
HEADER = (
    *("environment", "what", "env_steps/s", "lowest to highest", "of env only", "of the peer"),
    *("cores busy", "env_steps per CPU-second"),
)
_INSTALL_PEER = "The peer is not installed; to have its row: pip install stable-baselines3 -c constraints.txt"


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        title: as the table names it.
        experiment: of conf/experiment.
        total_env_steps: of one training.
        quick_env_steps: with --quick.
    """

    title: str
    experiment: str
    total_env_steps: int
    quick_env_steps: int


TASKS = {
    "cartpole": Task("CartPole-v1, PPO", "cartpole_ppo", 600_000, 150_000),
    "lbf": Task("LBF 8x8-2p-3f, MAPPO", "lbf_mappo", 100_000, 20_000),
}

Results = dict[str, list[Rates]]
"""What each row reached, one entry per repeat."""


def train_row(mode: str) -> str:
    """Return the name of the row of our own training."""
    return f"hpc-marl train, {mode}"


def measure_task(task: Task, options: argparse.Namespace, seed: int, with_peer: bool) -> dict[str, Rates]:
    """Return one repeat of every row."""
    env_steps = task.quick_env_steps if options.quick else task.total_env_steps
    overrides = [
        f"experiment={task.experiment}",
        f"actors.count={options.actors}",
        f"total_env_steps={env_steps}",
    ]
    measures: dict[str, Callable[[], Rates]] = {
        ENV_ONLY: lambda: measure_env_only(overrides, seed, options.actors, 2.0 if options.quick else 5.0),
        train_row("async"): lambda: measure_training(overrides, "async", seed),
        train_row("sync"): lambda: measure_training(overrides, "sync", seed),
    }
    if with_peer:
        measures[PEER] = lambda: measure_peer(overrides, seed)
    found = {}
    for row, measure in measures.items():
        found[row] = measure()
        _note(f"{task.title}: {row}: {found[row].env_steps_per_s:,.0f} env_steps/s")
    return found


def ratio(results: Results, row: str, reference: str) -> float | None:
    """Return the median over repeats of row / reference; None where the reference was not measured."""
    if reference not in results:
        return None
    pairs = zip(results[row], results[reference], strict=True)
    return median(ours.env_steps_per_s / theirs.env_steps_per_s for ours, theirs in pairs)


def table_rows(title: str, results: Results) -> list[list[str]]:
    """Return one environment's part of the table."""
    rows = []
    for row, repeats in results.items():
        rates = [repeat.env_steps_per_s for repeat in repeats]
        cores = [sum(repeat.cores.values()) for repeat in repeats]
        of_env_only, of_peer = ratio(results, row, ENV_ONLY), ratio(results, row, PEER)
        per_cpu_s = median(rate / busy for rate, busy in zip(rates, cores, strict=True))
        cells = [
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            "-" if of_env_only is None else f"{of_env_only:.1%}",
            "-" if of_peer is None else f"{of_peer:.2f} x",
            f"{median(cores):.2f}",
            f"{per_cpu_s:,.0f}",
        ]
        rows.append([title, row, *cells])
    return rows


def actor_share(results: Results, mode: str) -> str:
    """Say where the CPU time of a training goes, and how much of the actors' is in env.step.

    env.step's part is what `env only` needs per environment step, over what an actor needs for one.
    """
    repeats = results[train_row(mode)]
    parts = {
        part: median(repeat.cores.get(part, 0.0) / sum(repeat.cores.values()) for repeat in repeats)
        for part in repeats[0].cores
    }
    in_step = median(
        (limit.cores["env"] / limit.env_steps_per_s) / (ours.cores["actor"] / ours.env_steps_per_s)
        for ours, limit in zip(repeats, results[ENV_ONLY], strict=True)
    )
    shares = ", ".join(f"{part} {share:.0%}" for part, share in sorted(parts.items()) if share >= 0.005)
    return f"{mode}, CPU time: {shares}; env.step is {in_step:.0%} of the actors'"


def disturbance(results: Results, num_actors: int, num_cores: int) -> str:
    """Return a warning where others used the machine while `env only` was measured; else ""."""
    wanted = min(num_actors, num_cores)
    got = median(repeat.cores["env"] for repeat in results[ENV_ONLY])
    if got >= _UNDISTURBED * wanted:
        return ""
    return f"env only got {got:.2f} of {wanted} cores, as others use this machine: compare by CPU-second"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parse(arguments)
    with_peer = importlib.util.find_spec("stable_baselines3") is not None
    _note(machine_facts())
    results: dict[str, Results] = {name: {} for name in options.environments}
    for seed in range(1, options.repeats + 1):
        for name in options.environments:
            for row, rates in measure_task(TASKS[name], options, seed, with_peer).items():
                results[name].setdefault(row, []).append(rates)
    rows = [row for name, found in results.items() for row in table_rows(TASKS[name].title, found)]
    print(markdown_table(HEADER, rows), end="\n\n")
    for name, found in results.items():
        remarks = [actor_share(found, mode) for mode in MODES]
        remarks.append(disturbance(found, options.actors, len(os.sched_getaffinity(0))))
        print("\n".join(f"{TASKS[name].title}: {remark}." for remark in filter(None, remarks)))
    print(f"\n{machine_facts()}; actors: {options.actors}, repeats: {options.repeats}.")
    print(
        "A policy's environment steps may cost more or less than random ones, as its episodes end later or sooner."
    )
    if not with_peer:
        print(_INSTALL_PEER)
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat of short runs: about a minute")
    parser.add_argument("--repeats", type=int, default=None, help="default: 3, with --quick 1")
    parser.add_argument("--environments", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--actors", type=int, default=2, help="actor processes; default: 2")
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    stop_in_order_on_sigterm()
    try:
        sys.exit(main())
    except (TrainingError, subprocess.CalledProcessError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
