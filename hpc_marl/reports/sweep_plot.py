"""The learning curves of a sweep as one picture: trials that differ in their seed alone are one curve.

config.yaml of each trial -> what differs -> groups -> mean over seeds with its 95 % interval
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_marl.reports.plotting import (
    PANEL_COLOR,
    PLOT_STYLE,
    format_steps,
    metric_series,
    smooth,
    smoothing_window,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by people who do not see all colours (Okabe and Ito), the strongest first.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")
_GRID_POINTS = 400
_LEGEND_ROWS = 8
# Where and how a trial runs, and how it is called, says nothing of what it learns.
_NO_DIFFERENCE = (
    "seed", "trial_name", "experiment_name", "root", "resume", "cluster", "controller", "control", "max_concurrent",
)  # fmt: skip
# What names a group best comes first; what it implies is then not said.
_FIRST_WORDS = ("algorithm.name", "env.name", "inference")
_SAID_BY_VALUE = ("algorithm.name", "env.name")
# 97.5 % quantiles of Student's t by degrees of freedom, from 1.
_T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
_T_MANY = 1.96
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TrialCurve:
    """One trial's learning curve.

    Attributes:
        settings: its config.yaml, nested.
        env_steps: [n], growing.
        returns: [n], mean episode returns, smoothed.
    """

    settings: Mapping[str, Any]
    env_steps: Array
    returns: Array


@dataclass(frozen=True)
class MeanCurve:
    """The mean over seeds, at the steps that all of them have reached.

    Attributes:
        env_steps: [k].
        mean: [k].
        low: [k], end of the mean's 95 % interval by Student's t; the mean itself where there is one seed.
        high: [k], the other end.
    """

    env_steps: Array
    mean: Array
    low: Array
    high: Array


def trial_curve(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> TrialCurve | None:
    """Return the smoothed curve of one trial's metrics; None while no episode has ended."""
    env_steps, returns = metric_series(rows, "episode_return")
    if not len(env_steps):
        return None
    _, episodes = metric_series(
        [row for row in rows if row.get("episode_return") is not None], "num_episodes"
    )
    weights = episodes if len(episodes) == len(returns) else np.ones(len(returns))
    return TrialCurve(settings, env_steps, smooth(returns, weights, smoothing_window(len(returns))))


def group_curves(curves: Sequence[TrialCurve]) -> dict[str, list[TrialCurve]]:
    """Return the curves by what their settings differ in other than the seed; "" where they differ in nothing.

    Settings that always differ together are named by the one that says most.
    """
    flat = [dict(_flattened(curve.settings)) for curve in curves]
    names = sorted({name for settings in flat for name in settings})
    differing = [name for name in names if len({settings.get(name) for settings in flat}) > 1]
    differing.sort(key=lambda name: _FIRST_WORDS.index(name) if name in _FIRST_WORDS else len(_FIRST_WORDS))
    telling: list[str] = []
    for name in differing:
        if _num_groups(flat, [*telling, name]) > _num_groups(flat, telling):
            telling.append(name)
    groups: dict[str, list[TrialCurve]] = {}
    for curve, settings in zip(curves, flat, strict=True):
        groups.setdefault(_label(settings, telling), []).append(curve)
    return dict(sorted(groups.items(), key=lambda item: _natural(item[0])))


def mean_curve(curves: Sequence[TrialCurve]) -> MeanCurve | None:
    """Return the mean of some curves, interpolated on common steps; None where they have no steps in common."""
    first = max(curve.env_steps[0] for curve in curves)
    last = min(curve.env_steps[-1] for curve in curves)
    if last < first:
        return None
    grid = np.linspace(first, last, _GRID_POINTS)
    values = np.stack([np.interp(grid, curve.env_steps, curve.returns) for curve in curves])
    mean, count = values.mean(0), len(curves)
    half = np.zeros_like(mean)
    if count > 1:
        quantile = _T_QUANTILES[count - 2] if count - 2 < len(_T_QUANTILES) else _T_MANY
        half = quantile * values.std(0, ddof=1) / math.sqrt(count)
    return MeanCurve(grid, mean, mean - half, mean + half)


def plot_learning_curves(curves: Sequence[TrialCurve], path: str | Path, *, title: str = "") -> Path:
    """Draw the curves of a sweep as a PNG and return its path.

    Args:
        curves: of all trials, at least one.
        path: where the picture goes; replaced where there is one.
        title: above the picture, such as the experiment's name.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = group_curves(curves)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for position, (label, members) in enumerate(groups.items()):
            _draw_group(axes, members, label, position)
        many_seeds = any(len(members) > 1 for members in groups.values())
        note = (
            "mean over seeds, as far as all have come, and its 95 % interval; faint: each seed"
            if many_seeds
            else "one seed each"
        )
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22)
        axes.text(0, 1.025, note, transform=axes.transAxes, fontsize=8.5, color=PANEL_COLOR)
        axes.set_xlabel("env_steps")
        axes.set_ylabel("episode return (moving average)")
        _limit_returns(axes, curves)
        format_steps(axes, np.concatenate([curve.env_steps for curve in curves]))
        if len(groups) > _LEGEND_ROWS:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
        else:
            axes.legend(loc="best", frameon=False)
        figure.savefig(path, facecolor="white", metadata={"Software": "hpc_marl"})
    return Path(path)


def _draw_group(axes: Axes, members: Sequence[TrialCurve], label: str, position: int) -> None:
    color = _COLORS[position % len(_COLORS)]
    style = _LINE_STYLES[position // len(_COLORS) % len(_LINE_STYLES)]
    count = f"{len(members)} seed{'s' * (len(members) > 1)}"
    text = f"{label} ({count})" if label else count
    mean = mean_curve(members)
    if mean is None or len(members) == 1:
        for i, curve in enumerate(members):
            axes.plot(
                curve.env_steps,
                curve.returns,
                color=color,
                linestyle=style,
                linewidth=1.6,
                label=text if i == 0 else None,
            )
        return
    for curve in members:
        axes.plot(curve.env_steps, curve.returns, color=color, alpha=0.3, linewidth=0.8)
    axes.fill_between(mean.env_steps, mean.low, mean.high, color=color, alpha=0.15, linewidth=0)
    axes.plot(mean.env_steps, mean.mean, color=color, linestyle=style, linewidth=2.2, label=text)


def _limit_returns(axes: Axes, curves: Sequence[TrialCurve]) -> None:
    """Fit the axis to the curves: the interval of two or three seeds can be far wider than all there is to see."""
    low = min(float(curve.returns.min()) for curve in curves)
    high = max(float(curve.returns.max()) for curve in curves)
    margin = 0.08 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, value as text) of every setting that can tell trials apart."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in _NO_DIFFERENCE:
            continue
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{name}.")
        else:
            yield name, str(value)


def _natural(label: str) -> list[str | float]:
    """Return a key that sorts numbers within texts by their value: text and number in turn."""
    return [float(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(label))]


def _num_groups(flat: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    return len({tuple(settings.get(name) for name in names) for settings in flat})


def _label(settings: Mapping[str, str], names: Sequence[str]) -> str:
    values = {name.removeprefix("algorithm."): settings.get(name, "default") for name in names}
    return ", ".join(
        value if name in _SAID_BY_VALUE else f"{shown}={value}"
        for name, (shown, value) in zip(names, values.items(), strict=True)
    )
