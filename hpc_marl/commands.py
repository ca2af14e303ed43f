"""The smaller subcommands of `hpc-marl`; each takes its arguments and returns the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE, read_metrics
from hpc_marl.command_line import run_command, trial_parser
from hpc_marl.data.spaces import EnvSpec
from hpc_marl.errors import ConfigError, HpcMarlError
from hpc_marl.exit_codes import exit_code_of
from hpc_marl.report import read_evaluation
from hpc_marl.trial_reference import find_trial, find_trials

LEARNING_CURVE_FILE = "learning_curve.png"
LEARNING_CURVES_FILE = "learning_curves.png"


def plot(arguments: Sequence[str]) -> int:
    """Draw the learning curves of a run or a sweep: `hpc-marl plot EXP[/TRIAL] [--root DIR] [--output FILE]`."""
    parser = trial_parser(
        "plot",
        "Draw the learning curve of one run, or those of all trials of an experiment: the mean over seeds.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"the PNG; default: {LEARNING_CURVE_FILE} of the run, {LEARNING_CURVES_FILE} of the experiment",
    )
    options = parser.parse_args(arguments)

    def body() -> int:
        run = _run_directory(options.reference, options.root)
        if run is not None:
            path = draw_learning_curve(run, options.output)
        else:
            path = draw_learning_curves(find_trials(options.reference, options.root), options.output)
        sys.stdout.write(f"{path}\n")
        return 0

    return run_command(body)


def _run_directory(reference: str, root: str) -> RunDirectory | None:
    """Return the one run that is meant, by EXP/TRIAL or its path; None where it is an experiment."""
    for path in (Path(root).expanduser() / reference, Path(reference).expanduser()):
        if (path / "metrics").is_dir() or (path / "launch.json").is_file():
            return RunDirectory.at(path)
    return None


def draw_learning_curves(trials: Sequence[RunDirectory], output: Path | None = None) -> Path:
    """Draw the learning curves of an experiment's trials and return the PNG's path.

    Raises:
        ConfigError: no trial has finished an episode yet.
    """
    from hpc_marl.sweep_plot import plot_learning_curves, trial_curve
    from hpc_marl.usage import read_saved_settings

    found = [
        trial_curve(read_saved_settings(trial), read_metrics(trial.metrics / METRICS_FILE))
        for trial in trials
    ]
    curves = [curve for curve in found if curve is not None]
    experiment = trials[0].path.parent
    if not curves:
        raise ConfigError(f"none of the {len(trials)} trials in {experiment} has finished an episode yet")
    path = output or experiment / LEARNING_CURVES_FILE
    return plot_learning_curves(curves, path, title=experiment.name)


def draw_learning_curve(directory: RunDirectory, output: Path | None = None) -> Path:
    """Draw the learning curve of the run in `directory` and return the PNG's path.

    Raises:
        ConfigError: the run has no metrics.
    """
    rows = read_metrics(directory.metrics / METRICS_FILE)
    if not rows:
        raise ConfigError(
            f"{directory.path} has no {directory.metrics.name}/{METRICS_FILE} with rows to draw"
        )
    from hpc_marl.plotting import plot_learning_curve

    return plot_learning_curve(
        rows,
        output or directory.path / LEARNING_CURVE_FILE,
        title=f"{directory.experiment_name}/{directory.trial_name}",
        evaluation=read_evaluation(directory.path),
    )


def report(arguments: Sequence[str]) -> int:
    """Say how well a run used what it held: `hpc-marl report EXP[/TRIAL] [--root DIR] [--json]`."""
    parser = trial_parser("report", "Say how well a run used its CPUs, GPUs and memory, and what to change.")
    parser.add_argument("--json", action="store_true", help="print plain values instead of tables")
    options = parser.parse_args(arguments)

    def body() -> int:
        from hpc_marl.efficiency_report import make_report
        from hpc_marl.efficiency_text import report_text, report_values
        from hpc_marl.sizing_advice import advise
        from hpc_marl.usage import gather_facts

        facts = gather_facts(find_trial(options.reference, options.root))
        made = make_report(facts)
        made = replace(made, advice=advise(made, facts.config))
        text = json.dumps(report_values(made), indent=2) + "\n" if options.json else report_text(made)
        sys.stdout.write(text)
        return 0

    return run_command(body)


def check_environment(arguments: Sequence[str]) -> int:
    """Test an environment against the contract: `hpc-marl check-env [env=FILE ...]`."""
    parser = argparse.ArgumentParser(
        prog="hpc-marl check-env",
        description="Test an environment against the contract that training relies on.",
    )
    parser.add_argument("overrides", nargs="*", help="as for `hpc-marl train`: env=cartpole, env.make.id=...")
    parser.add_argument("--config-dir", "-cd", help="add YAML files of your own, laid out like conf/")
    options = parser.parse_intermixed_args(arguments)
    # Environments of one's own are modules beside which one stands; a console script does not look there.
    sys.path.insert(0, os.getcwd())
    try:
        from hpc_marl.compose import compose_experiment
        from hpc_marl.envs import check_env, make_env

        config = compose_experiment(options.overrides, options.config_dir).env
        check_env(config)
        env = make_env(config, 1)
        spec = env.spec
        env.close()
    except HpcMarlError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code_of(error)
    finally:
        sys.path.remove(os.getcwd())
    sys.stdout.write(f"{config.name} keeps the contract: {_described(spec)}\n")
    return 0


def _described(spec: EnvSpec) -> str:
    actions = (
        f"{spec.action_size} continuous actions" if spec.is_continuous else f"{spec.num_actions} actions"
    )
    parts = [
        f"{spec.num_agents} agents ({', '.join(spec.agent_names)})" if spec.num_agents > 1 else "1 agent",
        f"observation_size {spec.observation_size}",
        f"state_size {spec.state_size}" if spec.state_size else "no global state",
        actions + (" with masks" if spec.has_action_mask else ""),
        f"episodes of at most {spec.episode_limit} env_steps" if spec.episode_limit else "no episode limit",
    ]
    return ", ".join(parts)
