"""The learning curve as a picture: the return over env_steps, and below it what explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.trials.evaluation import Evaluation
from hpc_marl.views.display import number_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_COLOR = "#57606a"
"""Of what is less important."""

_RETURN_COLOR = "#1f6feb"
_EVALUATION_COLOR = "#d1242f"
_TEXT_COLOR = "#24292f"
_GRID_COLOR = "#d8dee4"

_PANELS = {
    "env_steps_per_s": "env_steps/s",
    "entropy": "entropy",
    "value_loss": "value loss",
    "explained_variance": "explained variance",
    "approx_kl": "approximate KL",
    "policy_lag": "policy lag",
}
"""Metric -> title of its small panel."""

_SMOOTHING_FRACTION = 0.03

PLOT_STYLE: Any = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": _TEXT_COLOR,
    "axes.labelcolor": _TEXT_COLOR,
    "axes.edgecolor": _GRID_COLOR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID_COLOR,
    "grid.linewidth": 0.6,
    "xtick.color": PANEL_COLOR,
    "ytick.color": PANEL_COLOR,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
"""Settings of matplotlib within which every picture is drawn."""


def plot_learning_curve(
    rows: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    title: str = "",
    evaluation: Evaluation | None = None,
) -> Path:
    """Draw metrics as a PNG and return its path.

    Args:
        rows: of metrics.jsonl, as `read_metrics` returns them; may be empty.
        path: where the picture goes; replaced where there is one.
        title: above the picture, such as EXPERIMENT/TRIAL.
        evaluation: the final evaluation, drawn as a point with its interval.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [name for name in _PANELS if len(metric_series(rows, name)[0]) > 1]
    with matplotlib.rc_context(PLOT_STYLE):
        num_panel_rows = -(-len(panels) // 3)
        figure = Figure(figsize=(9, 4.2 + 1.7 * num_panel_rows), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(1 + num_panel_rows, 3, height_ratios=[2.6, *[1] * num_panel_rows])
        _draw_return(figure.add_subplot(grid[0, :]), rows, title, evaluation)
        for position, name in enumerate(panels):
            axes = figure.add_subplot(grid[1 + position // 3, position % 3])
            _draw_panel(axes, *metric_series(rows, name), title=_PANELS[name])
        figure.savefig(path, facecolor="white", metadata={"Software": "hpc_marl"})
    return Path(path)


def smooth(values: NDArray[np.float64], weights: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the centred moving average of values, each counted by its weight; ends use what there is.

    Args:
        values: [n].
        weights: [n], such as the episodes behind each mean; >= 0.
        window: how many neighbours are averaged, odd.
    """
    kernel = np.ones(window)
    totals = np.convolve(values * weights, kernel, mode="full")
    counts = np.convolve(weights, kernel, mode="full")
    half = window // 2
    inner = slice(half, half + len(values))
    averaged: NDArray[np.float64] = totals[inner] / np.maximum(counts[inner], 1e-12)
    return averaged


def metric_series(
    rows: Sequence[Mapping[str, Any]], name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (env_steps, values) of the rows that have the metric."""
    found = [
        (row["env_steps"], row[name]) for row in rows if "env_steps" in row and row.get(name) is not None
    ]
    points = np.array(found, np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def smoothing_window(num_points: int) -> int:
    """Return how many neighbours the moving average of a curve takes in: an odd number."""
    return 2 * int(_SMOOTHING_FRACTION * num_points / 2) + 1


def _draw_return(
    axes: Axes, rows: Sequence[Mapping[str, Any]], title: str, evaluation: Evaluation | None
) -> None:
    env_steps, returns = metric_series(rows, "episode_return")
    weights = np.array(
        [row.get("num_episodes") or 1 for row in rows if row.get("episode_return") is not None], np.float64
    )
    if len(env_steps):
        axes.plot(env_steps, returns, color=_RETURN_COLOR, alpha=0.22, linewidth=0.8, label="each update")
        smoothed = smooth(returns, weights, smoothing_window(len(returns)))
        axes.plot(env_steps, smoothed, color=_RETURN_COLOR, linewidth=2.0, label="moving average")
    else:
        axes.text(
            0.5, 0.5, "no episode has ended yet", transform=axes.transAxes, ha="center", color=PANEL_COLOR
        )
    if evaluation is not None:
        _draw_evaluation(axes, evaluation)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10)
    axes.set_ylabel("episode return")
    axes.set_xlabel("env_steps")
    format_steps(axes, np.append(env_steps, evaluation.env_steps if evaluation else ()))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", frameon=False)


def _draw_evaluation(axes: Axes, evaluation: Evaluation) -> None:
    low, high = evaluation.interval
    mean = evaluation.return_mean
    axes.errorbar(
        [evaluation.env_steps],
        [mean],
        yerr=[[max(mean - low, 0.0)], [max(high - mean, 0.0)]],
        fmt="o",
        color=_EVALUATION_COLOR,
        markersize=6,
        markeredgecolor="white",
        capsize=4,
        zorder=5,
        clip_on=False,
        label=f"final evaluation {number_text(mean)} "
        f"[{number_text(low)}, {number_text(high)}], {evaluation.episodes} episodes",
    )


def _draw_panel(
    axes: Axes, env_steps: NDArray[np.float64], values: NDArray[np.float64], *, title: str
) -> None:
    from matplotlib.ticker import EngFormatter, ScalarFormatter

    axes.plot(env_steps, values, color=PANEL_COLOR, alpha=0.25, linewidth=0.7)
    smoothed = smooth(values, np.ones(len(values)), smoothing_window(len(values)))
    axes.plot(env_steps, smoothed, color=PANEL_COLOR, linewidth=1.3)
    # A single spike, as the first update often has, must not flatten all the rest.
    low, high = np.percentile(values, [1, 99])
    if low == high:
        low, high = min(low, 0.0), max(high, 1.0)
    margin = 0.08 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_title(title, loc="left", fontsize=9, color=PANEL_COLOR)
    axes.tick_params(labelsize=7)
    axes.locator_params(nbins=4)
    axes.yaxis.set_major_formatter(EngFormatter(sep="") if high >= 10_000 else ScalarFormatter())
    format_steps(axes, env_steps)


def format_steps(axes: Axes, env_steps: NDArray[np.float64]) -> None:
    """Write the numbers of the step axis as 200k or 1.5M, and let it begin at 0."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(0, 1.015 * env_steps.max(initial=1.0))
