"""Learning curves as PNG files beside what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpc_marl.base.run_directory import RunDirectory
from hpc_marl.base.telemetry import METRICS_FILE, read_metrics
from hpc_marl.errors import ConfigError
from hpc_marl.trials.evaluation import read_evaluation

LEARNING_CURVE_FILE = "learning_curve.png"
LEARNING_CURVES_FILE = "learning_curves.png"


def draw_learning_curves(trials: Sequence[RunDirectory], output: Path | None = None) -> Path:
    """Draw the learning curves of an experiment's trials and return the PNG's path.

    Raises:
        ConfigError: no trial has finished an episode yet.
    """
    from hpc_marl.reports.sweep_plot import plot_learning_curves, trial_curve
    from hpc_marl.reports.usage import read_saved_settings

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
    from hpc_marl.reports.plotting import plot_learning_curve

    return plot_learning_curve(
        rows,
        output or directory.path / LEARNING_CURVE_FILE,
        title=f"{directory.experiment_name}/{directory.trial_name}",
        evaluation=read_evaluation(directory.path),
    )
