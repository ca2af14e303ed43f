"""End to end: training throughput and time to the score beside the peers, the same task on the same cores in one run.

    repeat R times, interleaved:  env only | hpc_marl, sync | hpc_marl, async | each peer
    -> per row the median rate; ratios are taken within each repeat, then their median

`env only` steps the same environments with random actions and nothing else, in as many processes as there are actors:
on as many free cores no training can be faster. Rates are those of the middle of a training. The score is the mean
return of the last 100 training episodes; its time counts from the command, start-up included, and from the first
environment step. Peers use the settings that their authors give for the task, or ours where those serve them better, or
both; networks are the same but for rows of a peer's own settings, and so are the cores: --cores pins everything. Where
one update takes minutes, the rate is that of the first, and mean returns say what each had learned by when. Peers run
one after the other, each in its own virtual environment: python benchmarks/peers/install.py makes them; one that is not
there has no row.

    python benchmarks/end_to_end.py [--quick] [--tasks cartpole lbf] [--repeats 1] [--no-peers] [--cores 2]

All tasks take about 13 minutes per repeat, as peers take their time to the score; --quick about 3 in all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from statistics import median

from measuring.comparing import (
    ENV_ONLY,
    GOALS_HEADER,
    HEADER,
    best_row,
    is_ours,
    limit_goal,
    our_row,
    rate,
    rate_goal,
    return_rows,
    share_goal,
    table_rows,
    time_goal,
)
from measuring.contestants import TASKS, Task, runnable_tasks
from measuring.peers import Peer, PeerError, run_peer
from measuring.reporting import machine_facts, markdown_table
from measuring.systems import measure_env_only, measure_training
from measuring.training import TrainingError, stop_in_order_on_sigterm
from measuring.watching import Outcome

from hpc_marl.composing.compose import compose_experiment
from hpc_marl.errors import HpcMarlError

RATE_OF_BEST_PEER, TIME_OF_BEST_PEER = 5.0, 3.0
MOST_ENV_STEPS_TO_SCORE = 150_000
VECTOR_RATE = 150_000
_UNDISTURBED = 0.95  # of the cores that it could have used
_QUICK_MAX_S = 12.0

Results = dict[str, list[Outcome]]


def measure_task(task: Task, options: argparse.Namespace, seed: int) -> dict[str, Outcome]:
    """Return one repeat of every row; a peer that fails is left out with a remark."""
    overrides = [f"experiment={task.experiment}", *options.overrides]
    config = compose_experiment(overrides)
    env_steps = task.env_steps // 4 if options.quick else task.env_steps
    seconds = 2.0 if options.quick else 5.0
    measures: dict[str, Callable[[], Outcome]] = {
        ENV_ONLY: lambda: measure_env_only(overrides, seed, config.actors.count, seconds)
    }
    for mode in task.modes:
        measures[our_row(mode)] = lambda mode=mode: measure_training(
            overrides, mode, seed, env_steps, task.goal, returns_after=task.returns_after
        )
    for peer in [] if options.no_peers else task.peers(config):
        if options.quick and peer.takes_minutes:
            continue
        if peer.is_installed:
            measures[peer.title] = lambda peer=peer: measure_peer(peer, task, options, seed)
        elif seed == 1:
            _note(peer.how_to_install)
    found = {}
    for row, measure in measures.items():
        try:
            found[row] = measure()
        except PeerError as error:
            _note(f"{task.title}: left out: {error}")
            continue
        _note(f"{task.title}: {row}: {_in_words(found[row])}")
    return found


def measure_peer(peer: Peer, task: Task, options: argparse.Namespace, seed: int) -> Outcome:
    """Let a peer train until it holds the score, or its time is over."""
    max_s = min(task.peer_max_s, _QUICK_MAX_S) if options.quick else task.peer_max_s
    watched = run_peer(peer, seed, task.goal, max_s if task.goal is None else min(8.0, max_s), max_s)
    try:
        return watched.outcome(task.goal, task.returns_after, is_whole=peer.takes_minutes)
    except ValueError as error:
        raise PeerError(f"{peer.title}: {error}") from error


def complete(repeats: Sequence[dict[str, Outcome]]) -> Results:
    """Return every row that all repeats have."""
    rows = [row for row in repeats[0] if all(row in repeat for repeat in repeats)]
    return {row: [repeat[row] for repeat in repeats] for row in rows}


def goal_rows(name: str, results: Results) -> list[list[str]]:
    """Return what one task is held against."""
    ours = best_row(results, is_ours, rate)
    if ours is None:
        return []
    task = TASKS[name]
    if task.wanted or task.of_actors:
        found = [rate_goal(results, wanted, peer) for peer, wanted in task.wanted.items()]
        if task.of_actors is not None:
            found.append(share_goal(results, task.of_actors))
        return [row for row in found if row is not None]
    if name == "cartpole_vector":
        return [limit_goal("env_steps/s", [rate(outcome) for outcome in results[ours]], VECTOR_RATE, True)]
    if name != "cartpole":
        return []
    own = next(row for row in results if is_ours(row))
    steps = [outcome.goal_env_steps for outcome in results[own]]
    found = [
        rate_goal(results, RATE_OF_BEST_PEER),
        time_goal(
            results, "s from the command to the score", lambda outcome: outcome.goal_s, TIME_OF_BEST_PEER
        ),
        time_goal(
            results,
            "s from the first step to the score",
            lambda outcome: outcome.learning_s,
            TIME_OF_BEST_PEER,
        ),
        None
        if None in steps
        else limit_goal(f"env_steps to the score, {own}", steps, MOST_ENV_STEPS_TO_SCORE, False),
    ]
    return [row for row in found if row is not None]


def where_the_time_goes(results: Results) -> list[str]:
    """Say where the CPU time of our trainings goes."""
    remarks = []
    for row in filter(is_ours, results):
        cores = [outcome.rates.cores for outcome in results[row]]
        parts = {part: median(one.get(part, 0.0) / sum(one.values()) for one in cores) for part in cores[0]}
        shares = ", ".join(f"{part} {share:.0%}" for part, share in sorted(parts.items()) if share >= 0.005)
        remarks.append(f"{row}: CPU time: {shares}.")
    return remarks


def disturbance(results: Results, num_processes: int, num_cores: int) -> str:
    """Return a warning where others used the machine while `env only` was measured; else ""."""
    wanted = min(num_processes, num_cores)
    got = median(outcome.rates.cores["env"] for outcome in results[ENV_ONLY])
    if got >= _UNDISTURBED * wanted:
        return ""
    return f"env only got {got:.2f} of {wanted} cores, as others use this machine: compare by CPU-second."


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = _parse(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    _note(machine_facts())
    repeats: dict[str, list[dict[str, Outcome]]] = {name: [] for name in options.tasks}
    for seed in range(1, options.repeats + 1):
        for name in options.tasks:
            repeats[name].append(measure_task(TASKS[name], options, seed))
    for name, found in repeats.items():
        results = complete(found)
        print(f"## {TASKS[name].title}\n\n{markdown_table(HEADER, table_rows(results))}\n")
        if returns := return_rows(results):
            header = [f"after {env_steps:,} env_steps" for env_steps in TASKS[name].returns_after]
            print(markdown_table(["mean return of the last 100 episodes", *header], returns), end="\n\n")
        if goals := goal_rows(name, results):
            print(markdown_table(GOALS_HEADER, goals), end="\n\n")
        count = compose_experiment([f"experiment={TASKS[name].experiment}", *options.overrides]).actors.count
        remarks = [*where_the_time_goes(results), disturbance(results, count, options.cores)]
        print("\n".join(filter(None, remarks)), end="\n\n")
    print(f"{machine_facts()}; repeats: {options.repeats}.")
    return 0


def _in_words(outcome: Outcome) -> str:
    words = f"{rate(outcome):,.0f} env_steps/s"
    if outcome.goal_s is None or outcome.learning_s is None:
        return words
    times = f"{outcome.goal_s:.1f} s ({outcome.learning_s:.1f} s from the first step)"
    return f"{words}, score after {outcome.goal_env_steps:,} env_steps, {times}"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short runs; slow peers do not reach the score")
    parser.add_argument("--repeats", type=int, default=1, help="default: 1; figures to quote need 3")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=runnable_tasks())
    parser.add_argument("--no-peers", action="store_true", help="only env only and hpc_marl")
    parser.add_argument("--cores", type=int, default=2, help="cores that everything shares; default: 2")
    parser.add_argument("overrides", nargs="*", help="settings of our trainings, as for hpc-marl train")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    stop_in_order_on_sigterm()
    try:
        sys.exit(main())
    except (HpcMarlError, TrainingError, subprocess.CalledProcessError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
