"""The profile as a picture: one bar for each kind of worker, cut into shares of its time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hpc_marl.reports.bottleneck import WAITS
from hpc_marl.reports.plotting import PANEL_COLOR, PLOT_STYLE
from hpc_marl.reports.profile import activity_name, ordered_kinds, ordered_shares
from hpc_marl.trials.time_record import TimeRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {
    "env": "#0072b2",
    "inference": "#e69f00",
    "learn": "#009e73",
    "write": "#56b4e9",
    "reply": "#cc79a7",
    "publish": "#f0e442",
    "checkpoint": "#d55e00",
    "other": "#57606a",
}
"""Work, in the colours of Okabe and Ito, which people with any colour vision can tell apart."""
_OWN_COLORS = ("#332288", "#882255", "#44aa99", "#999933")
"""Work of worker kinds of the user's own."""
_WAIT_COLORS = ("#e3e7eb", "#ced5dc", "#eef1f4")
"""Waiting looks empty: pale, and hatched."""
_DARK = ("env", "learn", "checkpoint", "other")
_LEAST_SHARE = 0.0005
_LEAST_LABELLED = 0.04
_CHARACTER_SHARE = 0.007  # of the bar's width


def plot_profile(record: TimeRecord, path: str | Path, *, title: str = "") -> Path:
    """Draw shares of time as a PNG and return its path.

    Args:
        record: where the time went.
        path: where the picture goes; replaced where there is one.
        title: above the picture, such as EXPERIMENT/TRIAL.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = ordered_kinds(record)
    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(9, 1.9 + 0.75 * len(kinds)), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        colors = _colors([activity for _, kind in kinds for activity in ordered_shares(kind)])
        for row, (_, kind) in enumerate(kinds):
            _draw_bar(axes, row, ordered_shares(kind), colors)
        axes.set_yticks(range(len(kinds)), [f"{name} x {kind.workers}" for name, kind in kinds])
        axes.tick_params(axis="y", labelsize=10)
        axes.set_ylim(max(len(kinds), 1) - 0.45, -0.55)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of time while training [%]")
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_title(f"{title}: where the time went", loc="left", fontsize=12, fontweight="bold", pad=10)
        if not kinds:
            axes.text(50, 0, "no training was seen", ha="center", color=PANEL_COLOR)
        elif (handles := axes.get_legend_handles_labels())[0]:
            figure.legend(
                *handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8, handlelength=1.6
            )
        figure.savefig(path, facecolor="white", metadata={"Software": "hpc_marl"})
    return Path(path)


def _colors(activities: list[str]) -> dict[str, str]:
    """Return a colour for each activity."""
    waits = [name for name in dict.fromkeys(activities) if _is_wait(name)]
    own = [name for name in dict.fromkeys(activities) if name not in _COLORS and name not in waits]
    return {
        **_COLORS,
        **{name: _WAIT_COLORS[i % len(_WAIT_COLORS)] for i, name in enumerate(waits)},
        **{name: _OWN_COLORS[i % len(_OWN_COLORS)] for i, name in enumerate(own)},
    }


def _draw_bar(axes: Axes, row: int, shares: dict[str, float], colors: dict[str, str]) -> None:
    left = 0.0
    labelled = {text.get_label() for text in axes.containers}
    for activity, share in shares.items():
        if share < _LEAST_SHARE:
            continue
        name = activity_name(activity)
        axes.barh(
            row,
            100 * share,
            left=left,
            height=0.62,
            color=colors[activity],
            hatch="////" if _is_wait(activity) else None,
            edgecolor="white",
            linewidth=0.8,
            label=name if name not in labelled else f"_{name}",
        )
        if share >= _LEAST_LABELLED:
            percent = f"{100 * share:.0f} %"
            is_wide = share >= _CHARACTER_SHARE * (len(name) + 2)
            axes.text(
                left + 50 * share,
                row,
                f"{name}\n{percent}" if is_wide else percent,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if activity in _DARK else "#24292f",
            )
        left += 100 * share


def _is_wait(activity: str) -> bool:
    return activity in WAITS or activity.startswith("wait")
