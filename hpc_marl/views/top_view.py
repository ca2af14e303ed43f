"""One frame of `hpc-marl top`: a pure function of a snapshot, at most one screen however large the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpc_marl.views.display import clock_text
from hpc_marl.views.screen_table import screen_table
from hpc_marl.views.snapshot_view import (
    JobView,
    KindView,
    batches_queued,
    fraction_done,
    job_views,
    kind_views,
    progress_of,
    troubled_workers,
)
from hpc_marl.views.status_text import shortened, wall_clock
from hpc_marl.views.text_table import listed, optional_number

_MAX_EVENTS = 6
_MAX_TROUBLED = 3
_HEADER_LINES = 4
_STYLES = {
    "RUNNING": "green",
    "COMPLETED": "green",
    "READY": "cyan",
    "PENDING": "yellow",
    "PAUSED": "yellow",
    "DRAINED": "yellow",
    "ERROR": "bold red",
    "FAILED": "bold red",
    "LOST": "bold red",
    "TIMEOUT": "bold red",
    "NODE_FAIL": "bold red",
}


def render(
    snapshot: Mapping[str, Any],
    *,
    rates: Mapping[str, float] | None = None,
    width: int = 120,
    height: int = 40,
    note: str = "",
) -> RenderableType:
    """Return a frame.

    Args:
        snapshot: as the controller's `status` returns it.
        rates: what each kind of worker does per second, as `work_rates` says; None: not known yet.
        width: columns of the screen.
        height: lines of the screen. Slots are shown one by one if they fit, else by job.
        note: what is wrong with the snapshot, such as that it is old.
    """
    kinds = kind_views(snapshot, rates)
    troubled = troubled_workers(snapshot)
    parts: list[RenderableType] = [_title(snapshot, note), _bar(snapshot), _figures(snapshot), Text("")]
    parts.append(_kind_table(kinds, width))
    trouble_lines = _trouble(troubled)
    parts += trouble_lines
    left = height - _HEADER_LINES - len(kinds) - 1 - len(trouble_lines)
    events = list(snapshot.get("events", ()))[-_MAX_EVENTS:]
    # A blank line and a header belong to the table, a blank line to the events.
    jobs, max_jobs = job_views(snapshot), left - 3 - min(len(events), 3) - 1
    slots = snapshot.get("slots", ())
    if len(slots) <= max_jobs:
        # One by one: a snapshot that has only this slot says how it stands.
        jobs = [view for slot in slots for view in job_views({"slots": [slot]})]
    if jobs and max_jobs > 0:
        table = _job_table(jobs, max_jobs, width)
        parts += [Text(""), table]
        left -= table.row_count + 2
    if (max_events := min(left - 2, len(events))) > 0:
        parts += [Text(""), *(_line(f"{wall_clock(at)}  {text}", "dim") for at, text in events[-max_events:])]
    return Group(*parts)


def _title(snapshot: Mapping[str, Any], note: str) -> Text:
    controller = snapshot.get("controller", {})
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{snapshot.get('experiment_name')}/{snapshot.get('trial_name')}", "bold")
    text.append(f"  {snapshot.get('phase', '?')}", _STYLES.get(str(snapshot.get("phase")).upper(), "cyan"))
    if verdict := snapshot.get("verdict"):
        text.append(f"  {verdict}", "bold")
    text.append(f"  controller {controller.get('kind', '?')} on {controller.get('host', '?')}", "dim")
    return text.append(f"  {note}", "bold red") if note else text


def _bar(snapshot: Mapping[str, Any]) -> RenderableType:
    progress, fraction = progress_of(snapshot), fraction_done(progress_of(snapshot))
    eta_s = progress.get("eta_s")
    row = Table.grid(padding=(0, 2), expand=True)
    for ratio in (None, 1, None, None):
        row.add_column(ratio=ratio, no_wrap=True)
    row.add_row(
        f"[bold]{fraction:4.0%}[/]",
        ProgressBar(total=1.0, completed=fraction, complete_style="cyan", finished_style="green"),
        f"{progress.get('env_steps', 0):,}[dim]/{progress.get('total_env_steps') or 0:,} env_steps[/]",
        f"[dim]{clock_text(progress.get('elapsed_s') or 0.0)}  ETA[/] {'-' if eta_s is None else clock_text(eta_s)}",
    )
    return row


def _figures(snapshot: Mapping[str, Any]) -> Text:
    progress, actors = progress_of(snapshot), snapshot.get("actors", {})
    figures = {
        "return": (optional_number(progress.get("return_mean")), "bold green"),
        "env_steps/s": (f"{progress.get('env_steps_per_s') or 0.0:,.0f}", "cyan"),
        "agent_steps/s": (f"{progress.get('agent_steps_per_s') or 0.0:,.0f}", "cyan"),
        "lag": (f"{progress.get('policy_lag') or 0.0:.1f}", "cyan"),
        "queue": (f"{batches_queued(progress):,}", "cyan"),
        "dropped": (f"{progress.get('batches_dropped', 0):,}", "cyan"),
        "updates": (f"{progress.get('policy_version', 0):,}", "cyan"),
        "actors": (str(actors.get("wanted", "?")), "cyan"),
        "restarts": (str(snapshot.get("restarts", 0)), "yellow" if snapshot.get("restarts") else "cyan"),
    }
    text = Text(no_wrap=True, overflow="ellipsis")
    for name, (value, style) in figures.items():
        text.append(f"{name} ", "dim").append(value, style).append("  ")
    return text


def _kind_table(kinds: Sequence[KindView], width: int) -> Table:
    rows = [
        (
            kind.kind,
            _counts(kind.statuses, kind.total),
            _counts(kind.waiting),
            listed(kind.hosts, 2),
            kind.rate,
            _number(kind.policy_lag, ".1f"),
            _number(kind.cpu_percent),
            _number(kind.gpu_percent),
            _memory(kind.rss_mb),
            str(kind.restarts),
            _time_left(kind.time_left_s),
        )
        for kind in kinds
    ]
    figures = ("rate", "lag", "CPU %", "GPU %", "RSS", "restarts", "left")
    return screen_table(
        ("workers", "states", "waiting for", "nodes", *figures),
        rows,
        width=width,
        right=figures,
        expendable=("nodes", "restarts", "lag", "RSS", "GPU %", "left", "CPU %", "waiting for", "rate"),
    )


def _job_table(jobs: Sequence[JobView], max_rows: int, width: int) -> Table:
    """Return a table of slots or jobs of at most `max_rows` rows."""
    shown = jobs if len(jobs) <= max_rows else jobs[: max_rows - 1]
    rows: list[tuple[str | Text, ...]] = [
        (
            job.role,
            str(job.slots[0]) if len(job.slots) == 1 else f"{len(job.slots)} slots",
            shortened(job.job_id, 20),
            Text(job.state, _STYLES.get(job.state, "")),
            listed(job.nodes, 2),
            job.reason,
            job.expected_start.replace("T", " "),
            str(job.workers),
            _number(job.cpu_percent),
            _number(job.gpu_percent),
            _memory(job.rss_mb),
            _time_left(job.time_left_s),
        )
        for job in shown
    ]
    if len(shown) < len(jobs):
        rows.append((Text(f"+{len(jobs) - len(shown)} more", "dim"), *[""] * 11))
    figures = ("workers", "CPU %", "GPU %", "RSS", "left")
    return screen_table(
        ("role", "slots", "job", "state", "nodes", "reason", "expected start", *figures),
        rows,
        width=width,
        right=figures,
        expendable=("workers", "RSS", "GPU %", "CPU %", "nodes", "expected start", "left", "reason"),
    )


def _trouble(troubled: Sequence[tuple[str, str]]) -> list[Text]:
    lines = [_line(f"{name}: {shortened(error, 300)}", "red") for name, error in troubled[:_MAX_TROUBLED]]
    if len(troubled) > _MAX_TROUBLED:
        lines.append(
            _line(f"and {len(troubled) - _MAX_TROUBLED} more that failed; see `hpc-marl logs`", "red")
        )
    return lines


def _counts(counts: Sequence[tuple[str, int]], total: int | None = None) -> Text:
    """Return `3/4 running, 1 pending`; without a total, `1 Resources`."""
    text = Text()
    for position, (word, count) in enumerate(counts):
        number = f"{count}/{total}" if total is not None and position == 0 else str(count)
        text.append(", " if position else "")
        text.append(f"{number} {word if total is None else word.lower()}", _STYLES.get(word, ""))
    return text


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _number(value: float | None, form: str = ".0f") -> str:
    return "" if value is None else format(value, form)


def _memory(megabytes: float | None) -> str:
    if megabytes is None:
        return ""
    return f"{megabytes:.0f} MB" if megabytes < 10_000 else f"{megabytes / 1024:.0f} GB"


def _time_left(seconds: float | None) -> str:
    return "" if seconds is None else clock_text(seconds)
