"""Scores: the learning results, as a table: every experiment, variant and seed against its goal.

    experiments x variants x seeds --hpc-marl train, one after the other--> results.json --> table, exit code

A series that was interrupted is continued by the same command: what results.json holds is not run again. The exit
code is 1 where a goal is missed or a run failed. The interquartile mean and its bootstrap interval over seeds are
those of Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".

    python benchmarks/scores.py --experiments lbf_mappo cartpole_ppo --seeds 1..5 --output results.json
    python benchmarks/scores.py --report --output results.json
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring.learning import bootstrap_interval, first_reached, interquartile_mean
from measuring.reporting import machine_facts, markdown_table
from measuring.results import GOALS, Run, Score, read_scores, write_scores
from measuring.training import Training, TrainingError, stop_in_order_on_sigterm

from hpc_marl.base.telemetry import METRICS_FILE, read_metrics
from hpc_marl.composing.compose import compose_experiment
from hpc_marl.errors import HpcMarlError
from hpc_marl.trials.evaluation import read_evaluation

VARIANTS = ("sync/inline", "sync/remote", "async/inline", "async/remote")
HEADER = (
    *("experiment", "mode/inference", "seed", "final return (95 % interval)", "episodes", "env_steps"),
    *("goal first held at env_steps", "wall-clock s", "goal"),
)
_MIN_EPISODES = 100


def measure(run: Run) -> Score:
    """Train once.

    Raises:
        TrainingError: the command failed, or left no evaluation.
    """
    mode, inference = run.variant.split("/")
    settings = [f"experiment={run.experiment}", f"mode={mode}", f"inference={inference}", f"seed={run.seed}"]
    episodes = max(_MIN_EPISODES, compose_experiment(settings).evaluation.episodes)
    settings += [f"total_env_steps={run.total_env_steps}", f"evaluation.episodes={episodes}"]
    with tempfile.TemporaryDirectory() as root:
        training = Training(settings, Path(root))
        training.run()
        evaluation = read_evaluation(training.directory.path)
        rows = read_metrics(training.directory.metrics / METRICS_FILE)
    if evaluation is None:
        raise TrainingError(f"{run}: no evaluation was written")
    return Score(
        **run._asdict(),
        return_mean=evaluation.return_mean,
        interval=evaluation.interval,
        episodes=evaluation.episodes,
        env_steps=evaluation.env_steps,
        goal_env_steps=first_reached(rows, GOALS[run.experiment]),
        wall_s=round(training.wall_s, 1),
        machine=machine_facts(),
    )


def planned_runs(options: argparse.Namespace) -> list[Run]:
    """Return the runs asked for; whole experiments after each other, so that early tables say something."""
    variants = VARIANTS if "all" in options.variants else options.variants
    budgets = {
        name: options.total_env_steps or compose_experiment([f"experiment={name}"]).total_env_steps
        for name in options.experiments
    }
    return [
        Run(name, variant, budget, seed)
        for name, budget in budgets.items()
        for variant in variants
        for seed in options.seeds
    ]


def run_series(runs: Sequence[Run], output: Path | None) -> list[Score]:
    """Run what is not there yet, noting each result at once; return the scores of `runs` that there are."""
    scores = read_scores(output) if output else []
    known = {score.run for score in scores}
    missing = [run for run in runs if run not in known]
    for number, run in enumerate(missing, start=1):
        name = f"[{number}/{len(missing)}] {run.experiment} {run.variant} seed {run.seed}"
        _note(f"{name}: {run.total_env_steps:,} env_steps ...")
        try:
            score = measure(run)
        except TrainingError as error:
            _note(f"{name}: FAILED: {error}")
            continue
        _note(f"{name}: return {score.return_mean:.4g} in {score.wall_s:.0f} s")
        scores.append(score)
        if output:
            write_scores(output, scores)
    asked = set(runs)
    return [score for score in scores if score.run in asked]


def report(scores: Sequence[Score]) -> str:
    """Return the table, each variant's seeds followed by the line that sums them up."""
    groups: dict[tuple[Any, ...], list[Score]] = {}
    for score in sorted(scores, key=lambda score: score.run):
        groups.setdefault(score.run[:3], []).append(score)
    rows = []
    for group in groups.values():
        rows += [_row(score) for score in group]
        rows.append(_sum_row(group))
    machines = sorted({re.sub(r"load [\d.]+, ", "", score.machine) for score in scores})
    return "\n".join([markdown_table(HEADER, rows), "", *machines])


def _row(score: Score) -> list[str]:
    low, high = score.interval
    return [
        *(score.experiment, score.variant, str(score.seed)),
        f"{score.return_mean:.4g} ({low:.4g} to {high:.4g})",
        f"{score.episodes}",
        f"{score.env_steps:,}",
        "-" if score.goal_env_steps is None else f"{score.goal_env_steps:,}",
        f"{score.wall_s:,.0f}",
        f"{'holds' if score.holds else 'MISSED'} (>= {GOALS[score.experiment]:g})",
    ]


def _sum_row(group: Sequence[Score]) -> list[str]:
    returns = [score.return_mean for score in group]
    low, high = bootstrap_interval(returns)
    return [
        *(group[0].experiment, group[0].variant, "all"),
        f"interquartile mean {interquartile_mean(returns):.4g} ({low:.4g} to {high:.4g})",
        *("", "", "", ""),
        f"{sum(score.holds for score in group)} of {len(group)} seeds",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the series, print the table; 0 where every goal holds."""
    options = _parse(arguments)
    runs = [] if options.report else planned_runs(options)
    scores = read_scores(options.output) if options.report else run_series(runs, options.output)
    if scores:
        print(report(scores))
    return 0 if scores and len(scores) >= len(runs) and all(score.holds for score in scores) else 1


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that `1..5`, `7` or `1..3,7` name."""
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("..")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--experiments", nargs="+", choices=list(GOALS), default=["lbf_mappo", "cartpole_ppo"], metavar="NAME",
        help=f"of {', '.join(GOALS)}; default: the first two",
    )  # fmt: skip
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, "all"], default=["sync/inline"])
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("1..5"), help="such as 1..5 or 1,4")
    parser.add_argument("--total-env-steps", type=int, help="budget; default: the experiment's own")
    parser.add_argument("--output", type=Path, help="results file, continued where it is there")
    parser.add_argument("--report", action="store_true", help="run nothing: the table of all in --output")
    options = parser.parse_args(arguments)
    if options.report and options.output is None:
        parser.error("--report needs --output, the file to report on")
    return options


if __name__ == "__main__":
    stop_in_order_on_sigterm()
    try:
        sys.exit(main())
    except (HpcMarlError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
